"""Float64 loops, one for each equation of the package."""

from tests.references.composition import COMPOSITIONS
from tests.references.contrastive import CONTRASTIVE
from tests.references.gram import GRAM
from tests.references.prototypes import PROTOTYPES

#: One reference for each ``kind`` of ``troth.objectives.ObjectiveConfig``.
REFERENCES = {**CONTRASTIVE, **GRAM, **PROTOTYPES, **COMPOSITIONS}
