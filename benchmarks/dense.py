"""Every objective as a user would write it who has the memory: plain torch, whole ``B x B`` matrices, autograd.

The benchmarks measure the package against these, and ``tests/test_benchmarks_dense.py`` holds the two to the same
values and gradients. Nothing here is shared with the package's own arithmetic. Each function takes the objective, for
its settings, and :class:`Inputs`, and returns ``(B,)`` losses; randomness comes from torch's own generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: A function of matrices (rows are anchors, positives on the diagonal) that returns one loss a row.
RowLosses = Callable[..., Tensor]


@dataclass
class Inputs:
    """A whole batch in one process.

    Attributes:
        image: ``(B, D)`` unit images.
        text: ``(B, D)`` unit captions.
        scale: ``()`` multiplier of the cosines.
        bias: ``()`` added to the logits, or None.
        matches: ``(B, B)`` degrees to which captions fit images, ones on the diagonal; None: the given pairs alone.
        weight: ``(B,)`` weights given with the data, or None.
        teacher_image: ``(B, Dt)`` a frozen teacher's image features, or None.
        index: ``(B,)`` sample ids, which are the numbers 0 to B - 1.
        progress: the share of the run that is over.
        starts_epoch: whether the step is the first of an epoch.
        memory: what is remembered between batches, by name; a part of a composite has a dictionary of its own.
        teacher_points: ``(B, r)`` a teacher's unit points of images and of captions, or None.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None = None
    matches: Tensor | None = None
    weight: Tensor | None = None
    teacher_image: Tensor | None = None
    index: Tensor | None = None
    progress: float = 0.0
    starts_epoch: bool = False
    memory: dict[str, Any] = field(default_factory=dict)
    teacher_points: tuple[Tensor, Tensor] | None = None

    def logits(self) -> Tensor:
        """Return the ``(B, B)`` logits."""
        logits = self.scale * (self.image @ self.text.T)
        return logits if self.bias is None else logits + self.bias

    def eye(self) -> Tensor:
        """Return the given pairs: a ``(B, B)`` identity."""
        return torch.eye(len(self.image), dtype=self.image.dtype)

    def weighted(self, losses: Tensor) -> Tensor:
        """Return the losses times the given weights."""
        return losses if self.weight is None else losses * self.weight

    @torch.no_grad()
    def average(self, name: str, new: Tensor, keep: float) -> Tensor:
        """Move what is remembered of each sample towards ``new``, and return it."""
        index = torch.arange(len(new)) if self.index is None else self.index
        memory = self.memory.setdefault(name, torch.full_like(new, torch.nan))
        old = memory[index]
        memory[index] = torch.where(old.isnan(), new, keep * old + (1 - keep) * new)
        return memory[index]


def both_ways(losses: RowLosses, *matrices: Tensor) -> Tensor:
    """Average a loss of rows over the matrices and their transposes."""
    return 0.5 * (losses(*matrices) + losses(*(matrix.T for matrix in matrices)))


def infonce(method: Any, batch: Inputs) -> Tensor:
    """Cross-entropy of rows and of columns."""
    logits, smoothing = batch.logits(), method.label_smoothing
    if method.known_matches == "negative" or batch.matches is None:
        labels = torch.arange(len(logits))
        return batch.weighted(
            both_ways(lambda rows: F.cross_entropy(rows, labels, reduction="none", label_smoothing=smoothing), logits)
        )
    eye = batch.eye()
    if method.known_matches == "positive":
        degrees, kept = batch.matches, torch.ones_like(eye)
    else:
        degrees, kept = eye, ((batch.matches == 0) | (eye > 0)).to(eye)

    def losses(logits: Tensor, degrees: Tensor, kept: Tensor) -> Tensor:
        targets = (1 - smoothing) * degrees / degrees.sum(1, keepdim=True) + smoothing * kept / kept.sum(
            1, keepdim=True
        )
        return logits.masked_fill(kept == 0, -torch.inf).logsumexp(1) - (targets * logits).sum(1)

    return batch.weighted(both_ways(losses, logits, degrees, kept))


def sigmoid(method: Any, batch: Inputs) -> Tensor:
    """A yes-or-no question for every combination."""
    answers = batch.eye()
    kept = torch.ones_like(answers)
    if batch.matches is not None and method.known_matches == "positive":
        answers = batch.matches.clamp(max=1)
    elif batch.matches is not None and method.known_matches == "ignore":
        kept = ((batch.matches == 0) | (answers > 0)).to(answers)
    answers = (1 - method.label_smoothing) * answers + method.label_smoothing / 2
    terms = kept * F.binary_cross_entropy_with_logits(batch.logits(), answers, reduction="none")
    return batch.weighted(0.5 * (terms.sum(1) + terms.sum(0)))


def generalized_ce(method: Any, batch: Inputs) -> Tensor:
    """A power of the match probability instead of its logarithm."""
    return both_ways(lambda rows: (1 - rows.softmax(1).diagonal() ** method.q) / method.q, batch.logits())


def noise_mixture(method: Any, batch: Inputs) -> Tensor:
    """The match probability mixed with chance."""
    logits = batch.logits()
    if batch.starts_epoch and "wrong" in batch.memory:
        batch.memory["rate"] = min(max(float(batch.memory["wrong"].nanmean()), 1e-4), method.most)
    noise = batch.memory.get("rate", method.noise)
    chance = noise / len(logits)
    likelihoods = [(1 - noise) * rows.softmax(1).diagonal() + chance for rows in (logits, logits.T)]
    if method.learn:
        batch.average("wrong", 0.5 * (chance / likelihoods[0] + chance / likelihoods[1]).detach(), keep=0.0)
    return -0.5 * (likelihoods[0].log() + likelihoods[1].log())


def soft_targets(method: Any, batch: Inputs) -> Tensor:
    """Targets softened by the cosines within each modality."""

    def losses(logits: Tensor, points: Tensor) -> Tensor:
        soft = (method.affinity_scale * points @ points.T).softmax(1)
        return F.cross_entropy(logits, (1 - method.share) * batch.eye() + method.share * soft, reduction="none")

    logits = batch.logits()
    return 0.5 * (losses(logits, batch.image.detach()) + losses(logits.T, batch.text.detach()))


def self_distillation(method: Any, batch: Inputs) -> Tensor:
    """Targets softened by the model's own match probabilities."""
    share = method.share * (batch.progress if method.schedule == "progressive" else 1.0)

    def losses(logits: Tensor) -> Tensor:
        beliefs = logits.detach().T if method.targets == "swapped" else logits.detach()
        targets = (1 - share) * batch.eye() + share * (method.sharpness * beliefs).softmax(1)
        return F.cross_entropy(logits, targets, reduction="none")

    return both_ways(losses, batch.logits())


def distillation(method: Any, batch: Inputs) -> Tensor:
    """Targets that are a teacher's match probabilities."""
    assert batch.teacher_points is not None
    image, text = batch.teacher_points
    beliefs, logits = method.sharpness * (image @ text.T), batch.logits()
    losses = [
        F.cross_entropy(rows, targets.softmax(1), reduction="none")
        for rows, targets in ((logits, beliefs), (logits.T, beliefs.T))
    ]
    return 0.5 * (losses[0] + losses[1])


def feature_distillation(method: Any, batch: Inputs) -> Tensor:
    """Cosines with the points of a frozen teacher."""
    assert batch.teacher_points is not None
    width = min(batch.image.shape[1], batch.teacher_points[0].shape[1])
    cosines = [
        (student[:, :width] * F.normalize(points[:, :width], dim=-1)).sum(dim=-1)
        for student, points in zip((batch.image, batch.text), batch.teacher_points, strict=True)
    ]
    return 1 - 0.5 * (cosines[0] + cosines[1])


def global_infonce(method: Any, batch: Inputs) -> Tensor:
    """The mean of the negatives' ratios over a remembered average of itself; the value is the average's logarithm."""
    logits, total = batch.logits(), torch.zeros(())
    for name, rows in (("image", logits), ("text", logits.T)):
        ratios = (rows - rows.diagonal()[:, None]).exp()
        mean = (ratios * (1 - batch.eye())).sum(1) / (len(rows) - 1)
        average = batch.average(name, mean.detach(), method.keep)
        total = total + 0.5 * (average.log() + (mean - mean.detach()) / average)
    return total


def gamma(shape: Tensor | float, rate: Tensor, draw: str) -> Tensor:
    """Return Gamma draws of these shapes and rates, or their shape over their rate."""
    if draw == "mean":
        return shape / rate
    return torch.distributions.Gamma(shape, rate).sample()


def decl(method: Any, batch: Inputs) -> Tensor:
    """The partition sum times a remembered draw of its inverse."""
    logits, total = batch.logits(), torch.zeros(())
    for name, rows in (("image", logits), ("text", logits.T)):
        partition = rows.exp().sum(1)
        held = partition.detach()
        u = batch.average(name, gamma(method.a_u, method.b_u + held, method.draw), method.keep)
        total = total + 0.5 * (torch.minimum(u, method.clip / held) * partition - rows.diagonal())
    return total


@torch.no_grad()
def gamma_posterior(method: Any, batch: Inputs, logits: Tensor) -> list[Tensor]:
    """Draw ``u`` and the ``B x B`` weights in turn, both ways; return the weights with captions as columns."""
    s = (batch.image @ batch.text.T if method.similarity == "cosine" else logits).exp()
    shape = torch.full_like(s, method.a_minus).fill_diagonal_(method.a_plus + (2 if method.shared else 1))
    rate = torch.full_like(s, method.b_minus).fill_diagonal_(method.b_plus)
    weights = [torch.ones_like(s), torch.ones_like(s)]
    remembered = [batch.memory[name] if method.keep and name in batch.memory else None for name in ("image", "text")]
    for _ in range(method.sweeps):
        u = [gamma(method.a_u, method.b_u + (w * s).sum(1 - axis), method.draw) for axis, w in enumerate(weights)]
        u = [new if old is None else method.keep * old[batch.index] + (1 - method.keep) * new
             for new, old in zip(u, remembered, strict=True)]  # fmt: skip
        if method.shared:
            weights = [gamma(shape, rate + (u[0][:, None] + u[1]) * s, method.draw)] * 2
        else:
            weights = [gamma(shape, rate + u[0][:, None] * s, method.draw), gamma(shape, rate + u[1] * s, method.draw)]
    for name, last in zip(("image", "text"), u, strict=True):
        batch.average(name, last, keep=0.0)  # the blend is made above
    return weights


def gamma_weights(method: Any, batch: Inputs) -> Tensor:
    """InfoNCE with the drawn weights on the terms of its sums."""
    logits = batch.logits()
    by_row, by_column = (weights.log() for weights in gamma_posterior(method, batch, logits))
    labels = torch.arange(len(logits))
    image = F.cross_entropy(logits + by_row, labels, reduction="none")
    return 0.5 * (image + F.cross_entropy((logits + by_column).T, labels, reduction="none"))


def mmcl(method: Any, batch: Inputs) -> Tensor:
    """An outer function of the weighted sum of an inner function of every margin."""
    outer = {"log": torch.log, "identity": lambda v: v}[method.phi]
    inner = {"exp": torch.exp, "identity": lambda v: v, "softplus": F.softplus, "hinge": lambda v: F.relu(1 + v)}
    eps = torch.ones(len(batch.image), len(batch.image), dtype=batch.image.dtype).fill_diagonal_(method.eps)
    count = len(eps) - 1 + method.eps if method.average else 1.0

    def losses(logits: Tensor) -> Tensor:
        margins = logits - method.nu * logits.diagonal()[:, None]
        return outer((eps * inner[method.psi](margins)).sum(1) / count)

    return both_ways(losses, batch.logits())


def consistency(method: Any, batch: Inputs, left: Tensor, right: Tensor) -> Tensor:
    """How differently two views of the samples are alike within themselves."""
    size = len(left)
    kept = torch.ones(size, dtype=torch.bool)
    if method.strategy == "mask":
        kept = (batch.image * batch.text).detach().sum(1) > method.threshold
    number = int(kept.sum())
    left, right = left[kept], right[kept]
    tables = [view @ view.T for view in (left, right)]
    if method.distance == "pearson":
        off = ~torch.eye(number, dtype=torch.bool)  # an affinity to oneself is 1 in both
        rows = [table[off].view(number, -1) for table in tables]
        distances = 1 - F.cosine_similarity(*(each - each.mean(1, keepdim=True) for each in rows), eps=1e-30)
    else:
        difference = (tables[0] - tables[1]).fill_diagonal_(0)
        distances = (difference.abs() if method.distance == "l1" else difference**2).sum(1)
    power = {"mean": 1 if method.distance == "pearson" else 2, "row": 1, "sum": 0}[method.reduction]
    losses = torch.zeros_like(batch.image[:, 0]).masked_scatter(kept, distances * size / number**power)
    return losses * batch.progress if method.strategy == "ramp" else losses


def affinity(method: Any, batch: Inputs) -> Tensor:
    """Images against captions."""
    image = batch.image.detach() if method.detach_image else batch.image
    return consistency(method, batch, image, batch.text.detach() if method.detach_text else batch.text)


def mimic(method: Any, batch: Inputs) -> Tensor:
    """Images against a teacher's."""
    assert batch.teacher_image is not None
    return consistency(method, batch, batch.image, F.normalize(batch.teacher_image, dim=-1))


def cyclip(method: Any, batch: Inputs) -> Tensor:
    """Squared inconsistencies within and across modalities."""
    image, text = batch.image, batch.text
    within, across = image @ image.T - text @ text.T, image @ text.T - text @ image.T
    return method.in_modal * (within**2).sum(1) + method.cross_modal * (across**2).sum(1)


def weighted_sum(method: Any, batch: Inputs) -> Tensor:
    """The terms, each with a memory of its own."""
    total = torch.zeros(())
    for number, (weight, term) in enumerate(method.terms):
        part = replace(batch, memory=batch.memory.setdefault(str(number), {}))
        total = total + weight * losses(term, part)
    return total


def reweighted(method: Any, batch: Inputs) -> Tensor:
    """Losses times their weights; the mixture of ``clean_posterior`` is fitted elsewhere, once an epoch."""
    part = replace(batch, memory=batch.memory.setdefault("objective", {}), weight=None)
    plain = losses(method.objective, part)
    if method.by.kind == "given":
        return batch.weighted(plain)
    average = batch.average("loss", plain.detach(), method.by.keep)
    if "mixture" not in batch.memory:
        return batch.weighted(plain)
    share, low, high, *deviations = batch.memory["mixture"]
    held = average.double().clamp(low, high)
    densities = [
        of_all * torch.distributions.Normal(mean, deviation).log_prob(held).exp()
        for of_all, mean, deviation in zip((share, 1 - share), (low, high), deviations, strict=True)
    ]
    clean = (densities[0] / (densities[0] + densities[1])).clamp(min=method.by.floor)
    return batch.weighted(plain * clean.to(plain))


def losses(method: Any, batch: Inputs) -> Tensor:
    """Return the ``(B,)`` losses of any objective here."""
    return DENSE[method.kind](method, batch)


#: One function for each ``kind``.
DENSE: dict[str, Callable[[Any, Inputs], Tensor]] = {
    "infonce": infonce,
    "sigmoid": sigmoid,
    "generalized_ce": generalized_ce,
    "noise_mixture": noise_mixture,
    "soft_targets": soft_targets,
    "self_distillation": self_distillation,
    "distillation": distillation,
    "feature_distillation": feature_distillation,
    "global_infonce": global_infonce,
    "decl": decl,
    "gamma_weights": gamma_weights,
    "mmcl": mmcl,
    "affinity": affinity,
    "mimic": mimic,
    "cyclip": cyclip,
    "sum": weighted_sum,
    "reweighted": reweighted,
}
