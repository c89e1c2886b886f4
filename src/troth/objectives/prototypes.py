"""ProtoCLIP's prototypical losses: samples recognise the clusters that another modality, or a teacher, put them in."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.errors import UserError
from troth.objectives.base import About, Objective
from troth.similarity import Pairs
from troth.similarity.prototypes import ClusterTargets, PrototypeEntropy, PrototypePairs, prototype_cross_entropy
from troth.state import State
from troth.types import STRICT

TargetTemperature = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_CITATION = "Chen et al., ProtoCLIP: prototypical contrastive language image pretraining, 2022"


@dataclass(frozen=True, config=STRICT)
class Prototypes(Objective):
    """An image finds its caption's cluster, and a caption its image's.

    .. code-block:: text

        loss_i = 1/2 [ H(y^T_i, p^I_i) + H(y^I_i, p^T_i) ]                H: cross-entropy                       (nats)
        p^I_i  = softmax_k( s <h^I_i, c_k> )          h: projected, unit length;  s: the learned prototype scale
        y^T_i  = softmax_k( <C^T_label, C^T_k> / target_temperature )     label: the cluster of caption i
        c_k    = mean of h^I over the samples whose captions are in cluster k         back translation (equation 7)
               = C^T_k                                                                without

    and the same with the modalities exchanged. The prototypes ``C`` are k-means centroids of the projected embeddings
    of an episode (``[episodes]`` of a recipe), held fixed until the next one. Beside a contrastive loss:
    ``Sum(((1.0, InfoNCE()), (1.0, Prototypes())))``.

    Source: Chen et al. 2022, "ProtoCLIP: prototypical contrastive language image pretraining", equations 3-7; the
    released code's form, which takes the mean over the batch where equation 4 has a sum over the episode. Centroids
    are not of unit length there, nor are they here unless ``normalize_prototypes``, so that the target of a cluster
    need not be largest at the cluster itself; an empty cluster is a row of zeros with a score of 0, unless
    ``mask_empty`` leaves it out.

    Attributes:
        target_temperature: of the soft targets (the released default, 0.01); None: hard targets.
        back_translation: whether the classifier is made of the students' own means (the source's PBT).
        normalize_prototypes: bring classifier and prototypes to unit length.
        mask_empty: leave empty clusters out of the sums.
    """

    kind: Literal["prototypes"] = field(default="prototypes", kw_only=True)
    target_temperature: TargetTemperature | None = 0.01
    back_translation: bool = True
    normalize_prototypes: bool = False
    mask_empty: bool = False
    about: ClassVar[About] = About(
        equation="½ [H(yᵀᵢ, softmaxₖ s⟨hᴵᵢ, cₖ⟩) + H(yᴵᵢ, softmaxₖ s⟨hᵀᵢ, cₖ⟩)], y: the other modality's cluster",
        inputs="episodes: clusters of the projected embeddings",
        state="nothing of its own; the episode's clusters are the run's",
        cost="O(B K D) for K prototypes, 4 products (6 with soft targets)",
        when="beside infonce: groups of alike samples are worth learning",
        relation="external_prototypes, whose clusters are a frozen teacher's",
        citation=_CITATION,
    )

    @property
    def needs_prototypes(self) -> bool:
        """ClusterTargets of the run's episodes."""
        return True

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats: zero in a phase without prototypes.

        Raises:
            UserError: if the pairs carry no projections, because the run has no episodes.
        """
        batch = _batch(pairs, self.kind)
        if not batch.clusters:
            return _nothing(pairs, batch)
        text, image = batch.clusters["text"], batch.clusters["image"]
        of_image = _recognise(self, batch.image, batch.scale, text, text.image if self.back_translation else None)
        of_text = _recognise(self, batch.text, batch.scale, image, image.text if self.back_translation else None)
        state.note("image_finds_cluster", of_image.correct)
        state.note("text_finds_cluster", of_text.correct)
        return pairs.weighted(0.5 * (of_image.losses + of_text.losses).to(pairs.image))


@dataclass(frozen=True, config=STRICT)
class ExternalPrototypes(Objective):
    """An image and a caption both find the cluster that a frozen teacher puts their pair in.

    .. code-block:: text

        loss_i = 1/2 [ H(y_i, softmax_k s <h^I_i, c^I_k>) + H(y_i, softmax_k s <h^T_i, c^T_k>) ]                 (nats)
        c^I_k  = mean of h^I over the samples that the teacher puts into cluster k;  c^T_k likewise
        y_i    = [k = label_i]

    The teacher's space is another than the students', so that back translation is not a choice here. ``[episodes]``
    of a recipe names the teacher (``external``).

    Source: Chen et al. 2022 (ProtoCLIP), equation 8, whose signs and halves are misplaced in print: this is the
    released code's form, with its hard targets.

    Attributes:
        target_temperature: of soft targets, as :class:`Prototypes` has them; None, the released default: hard targets.
        normalize_prototypes: as :class:`Prototypes`.
        mask_empty: as :class:`Prototypes`.
    """

    kind: Literal["external_prototypes"] = field(default="external_prototypes", kw_only=True)
    target_temperature: TargetTemperature | None = None
    normalize_prototypes: bool = False
    mask_empty: bool = False
    about: ClassVar[About] = About(
        equation="½ [H(yᵢ, softmaxₖ s⟨hᴵᵢ, cᴵₖ⟩) + H(yᵢ, softmaxₖ s⟨hᵀᵢ, cᵀₖ⟩)], y: a teacher's cluster",
        inputs="episodes with an external teacher: its clusters",
        state="nothing of its own; the episode's clusters are the run's",
        cost="O(B K D) for K prototypes, 4 products",
        when="with prototypes, where a well trained text or image model is at hand",
        relation="prototypes, with a frozen teacher's clusters for both modalities",
        citation=_CITATION,
    )

    @property
    def needs_prototypes(self) -> bool:
        """ClusterTargets of the run's episodes."""
        return True

    @property
    def needs_external(self) -> bool:
        """ClusterTargets of a frozen teacher's features."""
        return True

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats: zero in a phase without prototypes.

        Raises:
            UserError: if the pairs carry no projections, because the run has no episodes, or the episodes no teacher.
        """
        batch = _batch(pairs, self.kind)
        if not batch.clusters:
            return _nothing(pairs, batch)
        if "external" not in batch.clusters:
            raise UserError(
                "external_prototypes learns from a teacher's clusters, and there is no teacher",
                where="episodes.external",
                remedy='name one, such as external = { kind = "text" }',
            )
        clusters = batch.clusters["external"]
        of_image = _recognise(self, batch.image, batch.scale, clusters, clusters.image)
        of_text = _recognise(self, batch.text, batch.scale, clusters, clusters.text)
        state.note("image_finds_external_cluster", of_image.correct)
        state.note("text_finds_external_cluster", of_text.correct)
        return pairs.weighted(0.5 * (of_image.losses + of_text.losses).to(pairs.image))


def _batch(pairs: Pairs, kind: str) -> PrototypePairs:
    if pairs.prototypes is None:
        raise UserError(
            f"{kind} learns from the clusters of episodes, and the run has none",
            where="episodes",
            remedy="add an [episodes] section to the recipe",
        )
    return pairs.prototypes


def _nothing(pairs: Pairs, batch: PrototypePairs) -> Float[Tensor, " B"]:
    # Zero with a graph: a phase without prototypes may have no other term.
    return (0.0 * batch.scale).to(pairs.image).expand(len(pairs))


def _recognise(
    objective: Prototypes | ExternalPrototypes,
    samples: Float[Tensor, "B Dp"],
    scale: Float[Tensor, ""],
    clusters: ClusterTargets,
    classifier: Float[Tensor, "K Dp"] | None,
) -> PrototypeEntropy:
    """Cross-entropy of ``samples`` over ``clusters``: by ``classifier``, or by the clusters' own prototypes if None."""
    teacher = clusters.prototypes
    classifier = teacher if classifier is None else classifier
    if objective.normalize_prototypes:
        # In the samples' precision: rounded to the clusters' float32, unit length depends on the processor.
        classifier, teacher = (F.normalize(rows.to(samples), dim=1) for rows in (classifier, teacher))
    temperature = objective.target_temperature
    return prototype_cross_entropy(
        samples,
        scale,
        classifier,
        clusters.label,
        teacher=None if temperature is None else teacher,
        target_temperature=1.0 if temperature is None else temperature,
        allowed=clusters.occupied if objective.mask_empty else None,
    )
