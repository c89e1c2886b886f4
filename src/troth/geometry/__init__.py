"""Geometries: where embeddings live, and what "close" means there."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from troth.geometry.base import Geometry
from troth.geometry.euclidean import Euclidean
from troth.geometry.filip import FILIP
from troth.geometry.oblique import Oblique
from troth.geometry.sphere import Sphere

#: What a recipe may put under ``[geometry]``, told apart by ``kind``.
GeometryConfig = Annotated[Sphere | Euclidean | Oblique | FILIP, Field(discriminator="kind")]

__all__ = ["FILIP", "Euclidean", "Geometry", "GeometryConfig", "Oblique", "Sphere"]
