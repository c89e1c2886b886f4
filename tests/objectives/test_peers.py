"""Our losses against open_clip's, values and gradients."""

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

from tests.objectives.test_conformance import features, losses
from troth.objectives import GeneralizedCE, InfoNCE, Sigmoid


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_infonce_is_open_clips(dtype: torch.dtype, tolerance: float) -> None:
    inputs = [x.requires_grad_() for x in features(50, dim=16, dtype=dtype)]
    scale = torch.tensor(14.3, dtype=dtype, requires_grad=True)
    ours = losses(InfoNCE(), *inputs, scale, None, tile=(16, 16)).mean()
    theirs = ClipLoss()(*inputs, scale)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for a, b in zip(
        torch.autograd.grad(ours, [*inputs, scale]), torch.autograd.grad(theirs, [*inputs, scale]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=tolerance * 10, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_sigmoid_is_open_clips(dtype: torch.dtype, tolerance: float) -> None:
    inputs = [x.requires_grad_() for x in features(50, dim=16, dtype=dtype)]
    inputs.append(torch.tensor(10.0, dtype=dtype, requires_grad=True))
    inputs.append(torch.tensor(-10.0, dtype=dtype, requires_grad=True))
    ours = losses(Sigmoid(), *inputs, tile=(16, 16)).mean()
    theirs = SigLipLoss()(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance * 10, atol=tolerance)


def test_generalized_ce_tends_to_infonce_as_q_tends_to_zero() -> None:
    image, text = features(20)
    scale = torch.tensor(6.0, dtype=torch.float64)
    limit = losses(InfoNCE(), image, text, scale, None)
    near = losses(GeneralizedCE(q=1e-7), image, text, scale, None)
    torch.testing.assert_close(near, limit, rtol=1e-5, atol=1e-6)


def test_generalized_ce_pulls_p_to_the_q_as_hard_as_infonce() -> None:
    """The law the docstring states: for one direction the gradient is InfoNCE's times p^q."""
    log_probability = torch.tensor([-0.01, -1.0, -12.0], dtype=torch.float64, requires_grad=True)
    q = 0.5
    (gradient,) = torch.autograd.grad(GeneralizedCE(q=q)._loss(log_probability).sum(), log_probability)
    torch.testing.assert_close(gradient, -torch.exp(q * log_probability.detach()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_in_float32_we_are_no_less_exact_than_open_clip_where_pairs_fit_well(kind: str, scale: float) -> None:
    """Late in training losses are small differences of large logits; streaming must not cost their digits."""
    image, _ = features(256, dim=16, seed=3)
    text = torch.nn.functional.normalize(image + 0.02 * features(256, dim=16, seed=4)[0], dim=-1)

    def evaluate(dtype: torch.dtype, ours: bool) -> list[torch.Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in (image, text, torch.tensor(scale, dtype=torch.float64))]
        bias = torch.tensor(-10.0, dtype=dtype) if kind == "sigmoid" else None
        if ours:
            objective = InfoNCE() if kind == "infonce" else Sigmoid()
            loss = losses(objective, *inputs, bias, tile=(100, 90)).mean()
        else:
            loss = ClipLoss()(*inputs) if kind == "infonce" else SigLipLoss()(*inputs, bias)
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    exact = evaluate(torch.float64, ours=True)
    for ours, theirs, truth in zip(evaluate(torch.float32, True), evaluate(torch.float32, False), exact, strict=True):
        size = truth.abs().max().clamp_min(1e-30)
        error, allowed = (ours - truth).abs().max() / size, (theirs - truth).abs().max() / size
        assert error <= 1.5 * allowed + 1e-6
