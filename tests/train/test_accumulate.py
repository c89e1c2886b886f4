"""Micro-batches give the big batch's gradients, because they are one batch to the loss."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.train.small import SmallEncoder, SmallStream, small_model
from troth.encoders.contrastive import ContrastiveModel, Features
from troth.objectives.infonce import InfoNCE
from troth.similarity import Pairs
from troth.state import State
from troth.train.accumulate import backward
from troth.types import Batch

ROWS = 8


def batch_of(dtype: torch.dtype = torch.float64) -> Batch:
    return next(iter(SmallStream(dtype=dtype).batches(0, 1))).batch


def losses_of(features: Features) -> Tensor:
    pairs = Pairs(features.image, features.text, features.scale, features.bias)
    return InfoNCE()(pairs, State(40, "f")) * torch.linspace(0.5, 1.5, ROWS).to(features.image)


def gradients(model: ContrastiveModel) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def naive_gradients(model: ContrastiveModel, batch: Batch) -> dict[str, Tensor | None]:
    model = copy.deepcopy(model)
    losses_of(model(batch.image, batch.text)).mean().backward()
    return gradients(model)


@pytest.mark.parametrize("micro", [None, 1, 3, 4, 8, 100])
def test_gradients_are_those_of_the_big_batch(micro: int | None) -> None:
    model, batch = small_model(dtype=torch.float64, bias=True), batch_of()
    expected = naive_gradients(model, batch)
    losses = backward(model, batch, losses_of, micro_batch_size=micro)
    torch.testing.assert_close(losses, losses_of(model(batch.image, batch.text)).detach(), rtol=1e-12, atol=1e-12)
    for name, gradient in gradients(model).items():
        if name == "bias":  # the objective shifts all logits alike: no gradient but the rounding's
            assert abs(gradient.item()) < 1e-12
            continue
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("micro", [None, 3])
def test_a_frozen_tower_stays_without_gradients(micro: int | None) -> None:
    model, batch = small_model(dtype=torch.float64), batch_of()
    model.encoder.image_tower.requires_grad_(False)
    expected = naive_gradients(model, batch)
    backward(model, batch, losses_of, micro_batch_size=micro)
    assert model.encoder.image_tower[0].weight.grad is None
    torch.testing.assert_close(model.encoder.text_tower[0].weight.grad, expected["encoder.text_tower.0.weight"])


class RecordingDropout(nn.Dropout):
    """Remembers which units it dropped."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.kept: list[Tensor] = []

    def forward(self, input: Tensor) -> Tensor:
        kept = super().forward(torch.ones_like(input))
        self.kept.append(kept.detach().clone())
        return input * kept


def test_both_passes_drop_the_same_units() -> None:
    encoder = SmallEncoder()
    dropout = encoder.image_tower[3] = RecordingDropout()
    model = small_model(encoder=encoder, dtype=torch.float64)
    backward(model, batch_of(), losses_of, micro_batch_size=3)
    first, second = dropout.kept[:3], dropout.kept[3:]
    assert len(second) == 3
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first[0], first[1])  # and yet the micro-batches have masks of their own


def test_with_dropout_the_gradient_is_that_of_the_losses_it_reports() -> None:
    model, batch = small_model(dropout=0.5, dtype=torch.float64), batch_of()
    model.train()
    step = 1e-6
    parameter = model.encoder.image_tower[0].weight

    def mean_loss() -> float:
        torch.manual_seed(0)
        model.zero_grad()
        return backward(model, batch, losses_of, micro_batch_size=3).mean().item()

    mean_loss()
    analytic = parameter.grad[2, 1].item()
    parameter.data[2, 1] += step
    above = mean_loss()
    parameter.data[2, 1] -= 2 * step
    below = mean_loss()
    assert analytic == pytest.approx((above - below) / (2 * step), rel=1e-5)


def test_under_autocast_the_loss_is_still_formed_in_float32() -> None:
    seen: list[torch.dtype] = []

    def watched(features: Features) -> Tensor:
        seen.append(features.image.dtype)
        assert not torch.is_autocast_enabled("cpu")
        return losses_of(features)

    model, batch = small_model(), batch_of(torch.float32)
    backward(model, batch, watched, micro_batch_size=3, precision=torch.bfloat16)
    cached = {name: gradient.clone() for name, gradient in gradients(model).items() if gradient is not None}
    model.zero_grad()
    backward(model, batch, watched, precision=torch.bfloat16)
    assert seen == [torch.float32, torch.float32]
    for name, gradient in cached.items():
        torch.testing.assert_close(gradient, gradients(model)[name], rtol=0.05, atol=0.02)
