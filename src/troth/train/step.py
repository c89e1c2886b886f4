"""One step of training, from a batch to new weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from troth import distributed
from troth.data.loader import LoadedBatch, UnpairedRows
from troth.encoders.contrastive import ContrastiveModel, Features
from troth.errors import UserError
from troth.objectives.base import Objective
from troth.objectives.composition import asks_for_weights
from troth.similarity import GroupMatches, Pairs, TwoWay
from troth.state import State
from troth.train import accumulate
from troth.train.average import AverageConfig, AveragedWeights
from troth.train.captions import caption_groups
from troth.train.detection import Detection
from troth.train.episodes import Episodes
from troth.train.optimizer import drop_locked_gradients, set_learning_rate, trainable_parameters
from troth.train.parallel import replicate
from troth.train.randomness import seed_step
from troth.types import Batch


@dataclass(frozen=True)
class StepReport:
    """What one step was like, over all ranks.

    Attributes:
        loss: the mean loss, in nats.
        positive_similarity: the mean unscaled similarity of the given pairs; None if there were none.
        gradient_norm: the global norm before clipping.
        loss_matched: the mean loss of the pairs not known to be wrong, if some pairs are known to be wrong.
        loss_mismatched: the mean loss of the pairs known to be wrong (injected noise); None if there were none.
        positive_similarity_matched: the similarity that belongs to ``loss_matched``.
        positive_similarity_mismatched: the similarity that belongs to ``loss_mismatched``.
        notes: what the objective wants in the log beside its loss, each a mean over pairs.
    """

    loss: float
    positive_similarity: float | None
    gradient_norm: float
    loss_matched: float | None = None
    loss_mismatched: float | None = None
    positive_similarity_matched: float | None = None
    positive_similarity_mismatched: float | None = None
    notes: dict[str, float] = field(default_factory=dict)


class NonFiniteStepError(Exception):
    """A step was given up before the optimiser saw it.

    Attributes:
        what: ``"loss"`` or ``"gradient norm"``.
        losses: ``(B,)`` losses of this rank's pairs.
    """

    def __init__(self, what: str, losses: Float[Tensor, " B"]) -> None:
        super().__init__(what)
        self.what = what
        self.losses = losses


class TrainStep:
    """Makes training steps.

    .. code-block:: text

        batch -> towers (autocast) -> features -> pairs -> (B,) losses -> mean -> backward -> mean over ranks
              -> clip -> AdamW -> clamp the scale -> average

    The pairs carry what is known about them beside their embeddings: sample ids, which of them have the same caption
    (``matches``), and the teacher's features of their images if the batch comes from a
    :class:`~troth.train.teacher.TaughtStream`. To an objective that needs a teacher when the batch brings none, the
    average of the weights is one (:class:`~troth.train.momentum_teacher.MomentumTeacher`).

    Args:
        model: the model, on its device; wrapped for several ranks at the first step.
        objective: gives one loss a pair.
        state: what the objective remembers about each pair.
        optimizer: over the model's trainable parameters.
        seed: the run's seed, for the towers' random draws (dropout).
        gradient_clip: the largest global gradient norm, or None.
        micro_batch_size: rows the towers take at once on each rank, or None for all.
        precision: what the towers are autocast to, or None.
        channels_last: whether pictures go to the towers in channels-last layout.
        episodes: the clusters that the pairs carry, or None.
        average: keep an average of the weights, or None.

    Attributes:
        average: the average, or None.
        detection: what learns from the unpaired rows of batches that have such (:mod:`troth.train.detection`).
    """

    detection: Detection | None = None

    def __init__(
        self,
        model: ContrastiveModel,
        objective: Objective,
        state: State,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int = 0,
        gradient_clip: float | None = None,
        micro_batch_size: int | None = None,
        precision: torch.dtype | None = None,
        channels_last: bool = False,
        episodes: Episodes | None = None,
        average: AverageConfig | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.state = state
        self.optimizer = optimizer
        self.seed = seed
        self.gradient_clip = math.inf if gradient_clip is None else gradient_clip
        self.micro_batch_size = micro_batch_size
        self.precision = precision
        self.channels_last = channels_last
        self.episodes = episodes
        self.average = None if average is None else AveragedWeights(model, average)
        self._weighted = asks_for_weights(objective)
        self._parameters = [parameter for _, parameter in trainable_parameters(model)]
        self._replica: nn.Module | None = None

    def __call__(self, loaded: LoadedBatch, step: int, learning_rate: float) -> StepReport:
        """Make step number ``step`` (the first is 0) with this rank's rows of a batch.

        Raises:
            UserError: if the objective needs a teacher and the batch comes without its features.
            NonFiniteStepError: on every rank alike, before the optimiser has changed a weight, if the loss of any rank
                or the gradient is not finite.
        """
        batch = loaded.batch.to(self._parameters[0].device, channels_last=self.channels_last)
        unpaired = loaded.unpaired
        given = batch if unpaired is None else batch.slice(0, unpaired.num_paired)
        teacher_image, judged = self._teacher_image(loaded, given), loaded.judged
        matches = GroupMatches(caption_groups(given.text))
        if self._replica is None:
            sample = batch.slice(0, self.micro_batch_size or len(batch))
            self._replica = replicate(self.model, sample, self.precision)
        self.optimizer.zero_grad(set_to_none=True)
        seed_step(self.seed, step, distributed.rank())
        sums: list[float] = []
        notes: dict[str, Tensor] = {}
        joined: dict[str, float] = {}

        def losses_of(features: Features) -> Tensor:
            pairs = Pairs(
                features.image,
                features.text,
                features.scale,
                features.bias,
                index=given.index,
                geometry=self.model.geometry,
                matches=matches,
                # Only to objectives that ask: others would be weighted, too, and an ablation of the weights be none.
                weight=judged.weight.to(features.image) if judged is not None and self._weighted else None,
                teacher_image=None if teacher_image is None else teacher_image.to(features.image),
                teacher_points=None
                if judged is None
                else TwoWay(judged.image.to(features.image), judged.text.to(features.image)),
                prototypes=None if self.episodes is None else self.episodes.pairs(step, features, self.state),
            )
            losses = self.objective(pairs, self.state)
            notes.update(self.state.take_notes())
            sums.extend(_sums(losses.detach(), pairs, loaded.mismatched))
            if not math.isfinite(sums[1]):
                raise NonFiniteStepError("loss", losses.detach())
            return losses

        losses = accumulate.backward(
            self._replica,
            batch,
            losses_of if unpaired is None else self._joined(losses_of, batch, unpaired, joined),
            micro_batch_size=self.micro_batch_size,
            precision=self.precision,
        )
        drop_locked_gradients(self.optimizer, step)
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self.gradient_clip))
        if not math.isfinite(norm):
            raise NonFiniteStepError("gradient norm", losses)
        set_learning_rate(self.optimizer, learning_rate, step)
        self.optimizer.step()
        self.model.clamp_scale()
        if self.average is not None:
            self.average.update_parameters(self.model)
        report = _report(sums, norm, notes) if sums else StepReport(math.nan, None, norm)
        if joined:
            paired = {"paired_loss": report.loss} if sums else {}
            report = replace(report, loss=joined.pop("loss"), notes={**report.notes, **paired, **joined})
        return report

    def _joined(
        self, paired: accumulate.LossFunction, batch: Batch, rows: UnpairedRows, notes: dict[str, float]
    ) -> accumulate.LossFunction:
        """Return a loss of pairs and the unpaired rows behind them, whose mean is the weighted sum of both's means.

        ``notes`` are given the whole loss and what was detected.
        """
        detection, start = self.detection, rows.num_paired
        assert detection is not None, "batches with unpaired rows need a detection"

        def losses_of(features: Features) -> Tensor:
            behind = features._replace(image=features.image[start:], text=features.text[start:])
            detected, found = detection(behind, batch.slice(start, len(batch)), rows)
            parts = [detected * (detection.config.weight * len(batch) / len(detected))]
            if start:
                in_front = features._replace(image=features.image[:start], text=features.text[:start])
                try:
                    parts.insert(0, paired(in_front) * (detection.config.paired_weight * len(batch) / start))
                except NonFiniteStepError as error:
                    raise NonFiniteStepError(error.what, torch.cat([error.losses, detected.detach()])) from None
            losses = torch.cat(parts)
            total = float(distributed.sum_over_ranks(losses.detach().mean())) / distributed.world_size()
            if not math.isfinite(total):
                raise NonFiniteStepError("loss", losses.detach())
            notes.update(found, loss=total)
            return losses

        return losses_of

    def _teacher_image(self, loaded: LoadedBatch, batch: Batch) -> Float[Tensor, "B F"] | None:
        if loaded.teacher_image is not None or not self.objective.needs_teacher or len(batch) == 0:
            return loaded.teacher_image
        if self.average is None:
            raise UserError(
                "the objective copies a teacher, and there is none",
                where="teacher",
                remedy="name one in the recipe, train on a TaughtStream, or keep an average",
            )
        return self.average.embed_image(batch.image, self.micro_batch_size, self.precision)


@torch.no_grad()
def _sums(losses: Float[Tensor, " B"], pairs: Pairs, mismatched: Bool[Tensor, " B"]) -> list[float]:
    """Return, over all ranks: pairs, their loss, their similarity; then the same of the mismatched pairs."""
    wrong = mismatched.to(losses)
    similarity = pairs.positive_similarities().detach().to(losses)
    parts = [
        torch.ones_like(losses).sum(),
        losses.sum(),
        similarity.sum(),
        wrong.sum(),
        # Not a product: a mismatched pair's 0 must not become NaN through an infinite loss elsewhere.
        losses.masked_fill(wrong == 0, 0.0).sum(),
        (similarity * wrong).sum(),
    ]
    return [float(value) for value in distributed.sum_over_ranks(torch.stack(parts)).tolist()]


def _report(sums: list[float], gradient_norm: float, notes: dict[str, Float[Tensor, " B"]]) -> StepReport:
    pairs, loss, similarity, wrong, wrong_loss, wrong_similarity = sums
    right = pairs - wrong
    return StepReport(
        loss=loss / pairs,
        positive_similarity=similarity / pairs,
        gradient_norm=gradient_norm,
        loss_matched=(loss - wrong_loss) / right if wrong and right else None,
        loss_mismatched=wrong_loss / wrong if wrong else None,
        positive_similarity_matched=(similarity - wrong_similarity) / right if wrong and right else None,
        positive_similarity_mismatched=wrong_similarity / wrong if wrong else None,
        notes={name: float(distributed.sum_over_ranks(values.sum())) / pairs for name, values in notes.items()},
    )


def rows_of(batch: Batch, losses: Float[Tensor, " B"]) -> list[dict[str, float | int | None]]:
    """Return, over all ranks in order, every pair's sample id and loss (None where it is not finite)."""
    rows: list[dict[str, float | int | None]] = [
        {"sample_id": int(sample), "loss": float(loss) if math.isfinite(loss) else None}
        for sample, loss in zip(batch.index.tolist(), losses.tolist(), strict=True)
    ]
    return [row for rank_rows in distributed.all_gather_objects(rows) for row in rank_rows]
