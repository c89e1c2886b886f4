"""What embeddings are worth: tasks that are pure functions from embeddings to a :class:`TaskResult`.

Nothing here encodes anything: pictures and texts arrive as points of a geometry, so that a model is encoded once and
scored on as many tasks as one likes. Beside the tasks, which say how good they are, stand diagnostics, which say how
they lie: the distances of pairs, the gap between the modalities, what a part of an oblique point knows.
"""

from __future__ import annotations

from troth.evaluate.affinity import affinity_consistency
from troth.evaluate.averages import class_embedding, mean_point
from troth.evaluate.clustering import clustering_quality
from troth.evaluate.concept import concept_test
from troth.evaluate.convergence import converge_step
from troth.evaluate.diagnostics import Diagnostics
from troth.evaluate.distances import PairDistances, distance_limits, pair_distances
from troth.evaluate.labels import ConceptLabels, check_class_names, concept_labels
from troth.evaluate.matching import class_matching, matching
from troth.evaluate.probes import knn, linear_probe
from troth.evaluate.result import TaskResult
from troth.evaluate.retrieval import retrieval
from troth.evaluate.spread import alignment, modality_gap, uniformity
from troth.evaluate.token_subsets import SubsetAccuracy, token_subset_accuracy
from troth.evaluate.uncertainty import Difference, compare, mean_influence, paired_difference, standard_error
from troth.evaluate.zero_shot import zero_shot

__all__ = [
    "ConceptLabels",
    "Diagnostics",
    "Difference",
    "PairDistances",
    "SubsetAccuracy",
    "TaskResult",
    "affinity_consistency",
    "alignment",
    "check_class_names",
    "class_embedding",
    "class_matching",
    "clustering_quality",
    "compare",
    "concept_labels",
    "concept_test",
    "converge_step",
    "distance_limits",
    "knn",
    "linear_probe",
    "matching",
    "mean_influence",
    "mean_point",
    "modality_gap",
    "pair_distances",
    "paired_difference",
    "retrieval",
    "standard_error",
    "token_subset_accuracy",
    "uniformity",
    "zero_shot",
]
