"""Geometries: where embeddings live, and what "close" means there."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from troth.geometry.base import Geometry
from troth.geometry.sphere import Sphere

#: What a recipe may put under ``[geometry]``, told apart by ``kind``.
GeometryConfig = Annotated[Sphere, Field()]

__all__ = ["Geometry", "GeometryConfig", "Sphere"]
