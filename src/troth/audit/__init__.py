"""Which pairs are wrong: scores of every training pair, how they hold against a known truth, and a table to act on."""

from __future__ import annotations

from troth.audit.estimates import estimates_by_similarity, estimates_of_run, mixture_of
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
    "estimates_by_similarity",
    "estimates_of_run",
    "fit_mixture",
    "mixture_of",
    "pair_scores",
    "percentile_quality",
    "similarity_histogram",
]
