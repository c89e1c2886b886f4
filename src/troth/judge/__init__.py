"""Which pairs fit, going by frozen features alone: nothing is trained, nobody says how many are wrong."""

from __future__ import annotations

from troth.judge.density import Mismatch, mismatch
from troth.judge.judgement import Judgement, Procedure, judge
from troth.judge.neighbours import NeighbourPredictions
from troth.judge.spectral import AffineMap, SpectralAlignment, Whitened

__all__ = [
    "AffineMap",
    "Judgement",
    "Mismatch",
    "NeighbourPredictions",
    "Procedure",
    "SpectralAlignment",
    "Whitened",
    "judge",
    "mismatch",
]
