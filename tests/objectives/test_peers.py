"""Our losses against open_clip's, values and gradients."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

from tests.objectives.instances import features, losses
from troth.objectives import GeneralizedCE, GlobalInfoNCE, InfoNCE, Sigmoid
from troth.similarity import GroupMatches, Pairs
from troth.state import State


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


def libauc_module() -> ModuleType:
    """LibAUC's file of contrastive losses, without the package around it, whose many requirements it does not need."""
    found = importlib.util.find_spec("libauc")
    if found is None or not found.submodule_search_locations:
        pytest.skip("libauc is not installed (make test installs it)")
    path = Path(found.submodule_search_locations[0]) / "losses" / "contrastive.py"
    spec = importlib.util.spec_from_file_location("libauc_contrastive", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_global_infonce_is_libaucs_in_memory_and_gradient(capsys: pytest.CaptureFixture[str]) -> None:
    """Two visits. LibAUC's loss is another value with the same gradient, (N - 1) / scale times ours."""
    size, temperature, gamma = 16, 0.2, 0.7
    theirs = libauc_module().GCLoss(mode="bimodal", N=size, tau=temperature, gamma=gamma)
    state, objective = State(size, "test"), GlobalInfoNCE(keep=1 - gamma)
    objective.prepare(state)
    for visit in range(2):
        order = torch.randperm(size, generator=torch.Generator().manual_seed(visit))
        image, text = features(size, dim=8, seed=visit, dtype=torch.float32)
        ours_in, theirs_in = ([x.clone().requires_grad_() for x in (image, text)] for _ in range(2))
        theirs.adjust_gamma(visit)
        ours = objective(Pairs(*ours_in, torch.tensor(1 / temperature), index=order), state).mean()
        loss, _ = theirs(*theirs_in, order)
        for mine, other in zip(torch.autograd.grad(ours, ours_in), torch.autograd.grad(loss, theirs_in), strict=True):
            torch.testing.assert_close(mine * (size - 1) * temperature, other, rtol=1e-4, atol=1e-6)
        for name, (estimate, shift) in {
            "log_u_image": (theirs.loss_fn.u1, theirs.loss_fn.b1),
            "log_u_text": (theirs.loss_fn.u2, theirs.loss_fn.b2),
        }.items():
            log_u = torch.log(estimate[:, 0]) + shift[:, 0]
            torch.testing.assert_close(state.read(name), log_u, rtol=1e-5, atol=1e-5)
    capsys.readouterr()


def test_global_infonces_slope_along_the_scale_is_libaucs_value(capsys: pytest.CaptureFixture[str]) -> None:
    size, temperature = 16, 0.2
    image, text = features(size, dim=8, dtype=torch.float32)
    scale = torch.tensor(1 / temperature, requires_grad=True)
    theirs = libauc_module().GCLoss(mode="bimodal", N=size, tau=temperature)
    theirs.adjust_gamma(0)
    value, _ = theirs(image, text, torch.arange(size))
    (slope,) = torch.autograd.grad(losses(GlobalInfoNCE(), image, text, scale, None).mean(), scale)
    torch.testing.assert_close(slope * (size - 1), value, rtol=1e-4, atol=1e-6)
    capsys.readouterr()


@pytest.mark.parametrize("direction", ["image", "text"])
def test_one_direction_of_infonce_is_ntxent_across_two_sets(direction: str) -> None:
    """pytorch-metric-learning's NTXent with captions as the reference set."""
    ntxent = pytest.importorskip("pytorch_metric_learning.losses").NTXentLoss(temperature=0.1)
    image, text = (x.requires_grad_() for x in features(24, dim=8))
    pairs = Pairs(image, text, torch.tensor(10.0, dtype=torch.float64), tile=(7, 5))
    ours = getattr(pairs.cross_entropy(), direction).mean()
    rows, others = (image, text) if direction == "image" else (text, image)
    labels = torch.arange(24)
    theirs = ntxent(rows, labels, ref_emb=others, ref_labels=labels.clone())  # one object would mean one set
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    ours_slopes, their_slopes = (torch.autograd.grad(loss, (image, text)) for loss in (ours, theirs))
    for points, mine, other in zip((image, text), ours_slopes, their_slopes, strict=True):
        # They normalise once more, which takes off what leads away from the sphere.
        along = mine - (mine * points).sum(dim=1, keepdim=True) * points
        torch.testing.assert_close(along, other, rtol=1e-7, atol=1e-9)


def test_several_positives_are_supervised_contrastive_loss() -> None:
    """pytorch-metric-learning's SupCon with captions as the reference set: the mean outside the logarithm."""
    supcon = pytest.importorskip("pytorch_metric_learning.losses").SupConLoss(temperature=0.1)
    image, text = features(24, dim=8)
    group = torch.arange(24) // 3
    pairs = Pairs(image, text, torch.tensor(10.0, dtype=torch.float64), matches=GroupMatches(group), tile=(7, 5))
    theirs = supcon(image, group, ref_emb=text, ref_labels=group.clone())
    torch.testing.assert_close(pairs.target_cross_entropy("positive").image.mean(), theirs, rtol=1e-8, atol=1e-9)
