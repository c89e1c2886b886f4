"""Which pairs are wrong: scores of every training pair, how they hold against a known truth, and a table to act on."""

from __future__ import annotations

from troth.audit.judged import judged_by_similarity, judged_mixture
from troth.audit.scores import Mixture, fit_mixture, pair_scores, percentile_quality
from troth.audit.table import AuditTable, Decisions, audit_pairs
from troth.audit.truth import SimilarityHistogram, Truth, against_truth, similarity_histogram

__all__ = [
    "AuditTable",
    "Decisions",
    "Mixture",
    "SimilarityHistogram",
    "Truth",
    "against_truth",
    "audit_pairs",
    "fit_mixture",
    "judged_by_similarity",
    "judged_mixture",
    "pair_scores",
    "percentile_quality",
    "similarity_histogram",
]
