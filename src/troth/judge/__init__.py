"""Which pairs fit, going by frozen features, words and stages: nothing is trained, nobody says how many are wrong."""

from __future__ import annotations

from troth.judge.density import Mismatch, mismatch
from troth.judge.evidence import Evidence
from troth.judge.judgement import Judgement, Procedure, judge
from troth.judge.neighbours import NeighbourPredictions
from troth.judge.spectral import AffineMap, SpectralAlignment, Whitened
from troth.judge.words import caption_words

__all__ = [
    "AffineMap",
    "Evidence",
    "Judgement",
    "Mismatch",
    "NeighbourPredictions",
    "Procedure",
    "SpectralAlignment",
    "Whitened",
    "caption_words",
    "judge",
    "mismatch",
]
