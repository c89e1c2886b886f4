"""What embeddings are worth: tasks that are pure functions from embeddings to a :class:`TaskResult`.

Nothing here encodes anything: pictures and texts arrive as points of a geometry, so that a model is encoded once and
scored on as many tasks as one likes.
"""

from __future__ import annotations

from troth.evaluate.affinity import affinity_consistency
from troth.evaluate.averages import class_embedding, mean_point
from troth.evaluate.clustering import clustering_quality
from troth.evaluate.concept import concept_test
from troth.evaluate.labels import ConceptLabels, check_class_names, concept_labels
from troth.evaluate.matching import class_matching, matching
from troth.evaluate.probes import knn, linear_probe
from troth.evaluate.result import TaskResult
from troth.evaluate.retrieval import retrieval
from troth.evaluate.uncertainty import Difference, compare, mean_influence, paired_difference, standard_error
from troth.evaluate.zero_shot import zero_shot

__all__ = [
    "ConceptLabels",
    "Difference",
    "TaskResult",
    "affinity_consistency",
    "check_class_names",
    "class_embedding",
    "class_matching",
    "clustering_quality",
    "compare",
    "concept_labels",
    "concept_test",
    "knn",
    "linear_probe",
    "matching",
    "mean_influence",
    "mean_point",
    "paired_difference",
    "retrieval",
    "standard_error",
    "zero_shot",
]
