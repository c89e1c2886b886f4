"""Random weights on every combination of the batch, drawn from their posterior at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.draws import PairDraws, SampleDraws
from troth.objectives.base import About, Objective
from troth.similarity import Block, LogWeights, Pairs
from troth.state import State, log_blend
from troth.types import STRICT

Shape = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class GammaWeights(Objective):
    """InfoNCE with a Gamma weight on every term of its sums, inferred by Gibbs sampling at each step.

    .. code-block:: text

        w = 1; repeat ``sweeps`` times, for each anchor i of each direction:
            u_i  ~ Ga( a_u, b_u + sum_j w_ij s_ij )
            w_ii ~ Ga( 1 + a_plus, b_plus + u_i s_ii ),      w_ij ~ Ga( a_minus, b_minus + u_i s_ij )     j != i
        loss_i = -log[ w_ii exp(l_ii) / sum_j w_ij exp(l_ij) ]         weights held fixed; both directions, averaged

    Ga(shape, *rate*). Everything is in log space: ``s`` alone overflows float32 at CLIP's scales. Draws are functions
    of (seed, step, sample ids) and are made again in the backward pass, so no weight is ever stored.

    **Which similarity the sampler sees decides everything.** The paper writes "the exponential cosine similarity" for
    ``s`` both in the loss and in the sampler. Read literally (``similarity="logits"``, ``s = exp(l)``) with its
    ``b = 0``, the weights cancel the similarities: ``w_ij s_ij = G_ij / u_i`` with Gamma variables ``G`` that know
    nothing of the data, the loss is ``psi(A0) - psi(1 + a_plus)`` in expectation whatever the model
    (``A0 = 1 + a_plus + (N - 1) a_minus``), and its mean gradient is the linear loss's. With ``similarity="cosine"``,
    ``s = exp(cos)`` in the sampler only, they take off one unit of scale and add noise, and the model trains as with
    InfoNCE. The default is ``cosine``; measured figures are in docs/gamma_weights.md.

    At ``b_plus = b_minus = 0`` with separate weights, ``u_i`` is a factor of the whole row and drops out of the loss,
    sweeps and memory with it: none of it is then computed. The value of the loss says nothing of progress; InfoNCE's is
    logged beside it. Under the literal reading the expected gradient only ever raises a learnable scale, once positives
    are closer than the average negative.

    Source: "Learning multi-modal representation alignments from noisy data-pairs" (anonymous submission), equations 1
    and 2 and algorithm 1, with its defaults.

    Attributes:
        similarity: what the sampler takes for ``log s``: the unscaled ``cosine`` or the ``logits``.
        a_plus: prior shape of the positives' weights.
        a_minus: prior shape of the negatives' weights.
        b_plus: prior rate of the positives' weights.
        b_minus: prior rate of the negatives' weights.
        a_u: prior shape of ``u``.
        b_u: prior rate of ``u``.
        sweeps: how often ``u`` and ``w`` are drawn in turn, each step anew from ``w = 1``. Like ``a_u`` and ``b_u`` it
            has no effect while ``u`` drops out.
        draw: ``sample`` draws; ``mean`` takes the means of the same distributions, which at ``b = 0`` gives the
            expected gradient exactly.
        shared: one weight for each combination, inferred from both directions together, instead of one each (on a
            geometry whose directions have similarities of their own: one draw, and a weight by each similarity).
        keep: how much of a remembered ``u`` stays at each visit; the paper calls the average optional. 0: no memory.
    """

    kind: Literal["gamma_weights"] = field(default="gamma_weights", kw_only=True)
    similarity: Literal["cosine", "logits"] = "cosine"
    a_plus: Shape = 5.0
    a_minus: Shape = 10.0
    b_plus: Rate = 0.0
    b_minus: Rate = 0.0
    a_u: Shape = 1.0
    b_u: Rate = 0.0
    sweeps: Annotated[int, Field(ge=1)] = 2
    draw: Literal["sample", "mean"] = "sample"
    shared: bool = False
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.0
    about: ClassVar[About] = About(
        equation="−log[wᵢᵢ exp(lᵢᵢ) / Σⱼ wᵢⱼ exp(lᵢⱼ)], w drawn from its Gamma posterior, both ways, halved",
        inputs="sample ids",
        state="with keep (b > 0 or shared): log u of each pair, both ways",
        cost="5 products and 4 Gamma draws a combination; with b > 0 or shared, 1 and 2 more a sweep",
        when="studying its paper; [the page on it](gamma_weights.md) says which reading trains",
        relation="b = 0 on logits: the linear mmcl in expectation; b > 0: infonce with Gamma noise on its terms",
        citation="Learning multi-modal representation alignments from noisy data-pairs, anonymous submission",
    )

    @model_validator(mode="after")
    def _memory_has_an_effect(self) -> GammaWeights:
        if self.keep > 0 and not self._needs_u:
            raise ValueError("keep has no effect while u drops out of the loss: set keep=0, b_minus above 0, or shared")
        return self

    def prepare(self, state: State) -> None:
        """Remember ``log u`` of each pair, for both directions, if ``u`` is averaged."""
        if self.keep > 0:
            state.declare("log_u_image")
            state.declare("log_u_text")

    def __call__(self, pairs: Pairs, state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` losses in nats."""
        with torch.no_grad():
            image, text = pairs.cross_entropy()
        state.note("infonce", 0.5 * (image + text))
        surprise = pairs.cross_entropy(self.log_weights(pairs, state))
        return 0.5 * (surprise.image + surprise.text)

    def log_weights(self, pairs: Pairs, state: State) -> LogWeights:
        """Return the step's weights as the loss takes them, block by block.

        While ``u`` drops out of the loss it is not drawn, and each row of weights is known up to a factor.
        """
        log_u = self._sample_u(pairs, state) if self._needs_u else None
        return self._weights(pairs, state, self.sweeps, log_u)

    @property
    def _needs_u(self) -> bool:
        """Whether ``u`` does not drop out of the loss."""
        return self.shared or self.b_plus > 0 or self.b_minus > 0

    def _weights(self, pairs: Pairs, state: State, sweep: int, log_u: tuple[Tensor, Tensor] | None) -> LogWeights:
        clock, ids = state.clock, pairs.sample_ids()
        draws = PairDraws.from_ids(clock.seed, clock.step, f"{state.path}gamma-weights/{sweep}", ids, ids)
        return _Posterior(self, draws.row_key, draws.column_key, log_u or ())

    @torch.no_grad()
    def _sample_u(self, pairs: Pairs, state: State) -> tuple[Tensor, Tensor]:
        """Return ``log u`` of the last sweep, for both directions."""
        clock, ids = state.clock, pairs.sample_ids()
        if self.similarity == "cosine":  # the sampler's own s
            pairs = replace(pairs, scale=torch.ones_like(pairs.scale), bias=None)
        weights: LogWeights | None = None
        for sweep in range(1, self.sweeps + 1):
            stream = f"{state.path}gamma-u/{sweep}"
            draws = SampleDraws.from_ids(clock.seed, clock.step, stream, ids).log_gamma(self.a_u)
            log_u = []
            for name, log_sum, draw in zip(("image", "text"), pairs.log_partition(weights), draws, strict=True):
                shape = draw.to(log_sum) if self.draw == "sample" else math.log(self.a_u)
                new = shape - _log_add(log_sum, self.b_u)
                old = state.read(f"log_u_{name}", pairs.memory_ids()).to(new) if self.keep > 0 else new
                log_u.append(log_blend(old, new, self.keep))
            weights = self._weights(pairs, state, sweep, (log_u[0], log_u[1]))
        if self.keep > 0:
            state.write("log_u_image", ids, log_u[0])
            state.write("log_u_text", ids, log_u[1])
        return log_u[0], log_u[1]


@plain_dataclass(frozen=True, slots=True)
class _Posterior:
    """Draws from the weights' conditional given ``u``, block by block; without ``u`` where it is a factor of the row.

    Attributes:
        method: the priors.
        row_key: ``(B, 2)`` what the draws of each pair as a row follow from.
        column_key: ``(B, 2)`` the same as a column.
        log_u: ``log u`` of images and captions, or nothing.
    """

    method: GammaWeights
    row_key: Tensor
    column_key: Tensor
    log_u: tuple[()] | tuple[Tensor, Tensor]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The keys, then ``log u``."""
        return self.row_key, self.column_key, *self.log_u

    def __call__(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return ``log w`` for the image rows and for the caption columns."""
        method, like = self.method, block.logits
        log_s = block.similarity if method.similarity == "cosine" else block.logits
        draws = PairDraws(block.row_inputs[0], block.column_inputs[1])
        image_u = block.row_inputs[2][:, None] if self.log_u else log_s.new_zeros(())
        text_u = block.column_inputs[3] if self.log_u else log_s.new_zeros(())
        if method.shared:
            image_u = text_u = torch.logaddexp(image_u, text_u)
        shape = (2 if method.shared else 1) + method.a_plus
        if method.draw == "mean":
            negatives = [torch.full_like(like, math.log(method.a_minus)) for _ in range(2)]
            positives = [like.new_tensor(math.log(shape))] * 2
        else:
            negatives = [draw.to(like) for draw in draws.log_gamma(method.a_minus)]
            positives = [draw.to(like) for draw in draws.log_gamma_at(*block.positives, shape)]
        image = self._weigh(negatives[0], positives[0], image_u + log_s, block)
        if method.shared:
            return image, image
        return image, self._weigh(negatives[1], positives[1], text_u + log_s, block)

    def _weigh(self, log_gamma: Tensor, positive: Tensor, log_us: Tensor, block: Block) -> Tensor:
        """Return ``log Ga(shape, rate + u s)`` everywhere, the positives with their own shape and rate."""
        at = block.positives
        own = positive - _log_add(log_us[at], self.method.b_plus)
        weights = log_gamma.sub_(_log_add(log_us, self.method.b_minus))
        weights[at] = own
        return weights


def _log_add(log_value: Tensor, rate: float) -> Tensor:
    """Return ``log(rate + exp(log_value))``."""
    return log_value if rate == 0 else torch.logaddexp(log_value, log_value.new_tensor(math.log(rate)))
