"""Cross-entropies against targets known beforehand: several positives, soft targets, smoothing, left-out negatives."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from troth import distributed
from troth.similarity.block import Block, Folded, Upstream
from troth.similarity.logsumexp import combine_exponentials, fold_exponentials, no_exponentials
from troth.similarity.matches import Matches

#: What a known match that is not the given pair is taken for: a negative like any other, nothing at all (it is a known
#: false negative, left out), or a positive.
KnownMatches = Literal["negative", "ignore", "positive"]


class _Targeted:
    """What the two reductions below share: how positive each combination of a block is, and what is left out."""

    def __init__(self, matches: Matches | None, known: KnownMatches, smoothing: float) -> None:
        self.matches = None if known == "negative" else matches
        self.known = known
        self.smoothing = smoothing

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the matches ask for."""
        return () if self.matches is None else self.matches.inputs

    def degrees(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """Return the degrees ``m_ij`` and, if some combinations are left out, which."""
        if self.matches is not None and self.known == "positive":
            return self.matches.block(block), None
        given = torch.zeros_like(block.logits)
        given[block.positives] = 1
        if self.matches is None:
            return given, None
        return given, (self.matches.block(block) > 0) & (given == 0)


class TargetCrossEntropy(_Targeted):
    """``log sum_j exp(l_ij) - sum_j t_ij l_ij``, the targets of every row (and column) summing to one.

    .. code-block:: text

        t_ij = (1 - smoothing) m_ij / sum_k m_ik + smoothing / K_i          K_i: how many j are not left out

    The sums that normalise the targets are folded along with the logits, so that no pass comes before. A row that
    nothing fits, its own pair included, has no target: its loss is 0, without a gradient.
    """

    def start(self, length: int, like: Tensor) -> Folded:
        """Return no logits at all, folded: log-sum-exp, targeted logits, their mass, all logits, their number."""
        return *no_exponentials(length, like), *(like.new_zeros(length) for _ in range(4))

    def fold(self, rows: Folded, columns: Folded, block: Block) -> None:
        """Fold one block."""
        degree, dropped = self.degrees(block)
        logits = block.logits
        targeted = degree * logits
        for (_, _, target, mass, _, _), dim in ((rows, 1), (columns, 0)):
            target.add_(targeted.sum(dim=dim))
            mass.add_(degree.sum(dim=dim))
        if self.smoothing:
            kept = torch.ones_like(logits) if dropped is None else (~dropped).to(logits)
            for (_, _, _, _, everything, number), dim in ((rows, 1), (columns, 0)):
                everything.add_((logits * kept).sum(dim=dim))
                number.add_(kept.sum(dim=dim))
        if dropped is not None:
            logits.masked_fill_(dropped, -torch.inf)
        fold_exponentials(rows[0], rows[1], logits, 1)
        fold_exponentials(columns[0], columns[1], logits, 0, overwrite=True)

    def over_ranks(self, columns: Folded) -> Folded:
        """Combine the ranks' partial columns."""
        return *combine_exponentials(*columns[:2]), *(distributed.sum_over_ranks(part) for part in columns[2:])

    def losses(self, state: Folded) -> Tensor:
        """Return one loss a row (or column), in nats."""
        largest, total, target, mass, everything, number = state
        expected = target / mass.where(mass > 0, 1.0)
        if self.smoothing:
            expected = (1 - self.smoothing) * expected + self.smoothing * everything / number
        return ((largest - expected) + total.log()).where(mass > 0, 0.0)

    def gradient(self, block: Block, rows: Folded, columns: Folded, upstream: Upstream) -> Tensor:
        """Return the derivative with respect to the block's logits."""
        degree, dropped = self.degrees(block)
        logits = block.logits if dropped is None else block.logits.masked_fill_(dropped, -torch.inf)
        gradient = torch.zeros_like(logits)
        for (largest, total, _, mass, _, number), arriving, dim in (
            (rows, upstream.rows, 1),
            (columns, upstream.columns, 0),
        ):
            fitted = mass > 0
            part = (logits - largest.unsqueeze(dim)).exp_().mul_((1 / total).unsqueeze(dim))
            part.sub_(degree * ((1 - self.smoothing) / mass.where(fitted, 1.0)).unsqueeze(dim))
            if self.smoothing:
                part.sub_((self.smoothing / number).unsqueeze(dim))
            gradient.add_(part.mul_(arriving.where(fitted, 0.0).unsqueeze(dim)))
        return gradient if dropped is None else gradient.masked_fill_(dropped, 0.0)


class BinaryCrossEntropy(_Targeted):
    """``sum_j [log(1 + exp(l_ij)) - t_ij l_ij]`` over what is not left out: a yes-or-no question each.

    .. code-block:: text

        t_ij = (1 - smoothing) min(m_ij, 1) + smoothing / 2
    """

    def start(self, length: int, like: Tensor) -> Folded:
        """Return no logits at all, folded."""
        return (like.new_zeros(length),)

    def fold(self, rows: Folded, columns: Folded, block: Block) -> None:
        """Fold one block."""
        logits = block.logits
        if self.matches is None and not self.smoothing:
            logits[block.positives] *= -1
            terms = F.softplus(logits)
        else:
            target, dropped = self._targets(block)
            # softplus(-l) for a whole match, softplus(l) for none: exact at both ends, where l itself would cancel.
            terms = F.softplus(logits).mul_(1 - target).add_(F.softplus(-logits).mul_(target))
            if dropped is not None:
                terms.masked_fill_(dropped, 0.0)
        rows[0].add_(terms.sum(dim=1))
        columns[0].add_(terms.sum(dim=0))

    def _targets(self, block: Block) -> tuple[Tensor, Tensor | None]:
        degree, dropped = self.degrees(block)
        return degree.clamp_(max=1).mul_(1 - self.smoothing).add_(self.smoothing / 2), dropped

    def over_ranks(self, columns: Folded) -> Folded:
        """Combine the ranks' partial columns."""
        return (distributed.sum_over_ranks(columns[0]),)

    def losses(self, state: Folded) -> Tensor:
        """Return one loss a row (or column), in nats."""
        return state[0].clone()

    def gradient(self, block: Block, rows: Folded, columns: Folded, upstream: Upstream) -> Tensor:
        """Return the derivative with respect to the block's logits."""
        logits, arriving = block.logits, upstream.rows[:, None] + upstream.columns
        if self.matches is None and not self.smoothing:
            positives = block.positives
            logits[positives] *= -1
            gradient = logits.sigmoid_().mul_(arriving)
            gradient[positives] *= -1
            return gradient
        target, dropped = self._targets(block)
        # sigmoid(l) - t, as the difference of two small numbers where the answer is right.
        gradient = torch.sigmoid(logits).mul_(1 - target).sub_(torch.sigmoid(-logits).mul_(target)).mul_(arriving)
        return gradient if dropped is None else gradient.masked_fill_(dropped, 0.0)
