"""Objectives: one idea a file, each reads like its equation.

A new objective is one file here, one member of :data:`ObjectiveConfig` and one float64 reference loop in
``tests/references``; the conformance tests pick it up from the union.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from troth.objectives.base import Objective
from troth.objectives.generalized_ce import GeneralizedCE
from troth.objectives.infonce import InfoNCE
from troth.objectives.sigmoid import Sigmoid

#: What a recipe may put under ``[objective]``, told apart by ``kind``.
ObjectiveConfig = Annotated[InfoNCE | Sigmoid | GeneralizedCE, Field(discriminator="kind")]

__all__ = ["GeneralizedCE", "InfoNCE", "Objective", "ObjectiveConfig", "Sigmoid"]
