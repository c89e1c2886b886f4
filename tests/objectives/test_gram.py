"""SaCo's and CyCLIP's objectives are their float64 loops, streamed or not, masked or not."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from tests.references.case import Case
from tests.references.gram import GRAM as REFERENCES
from troth.errors import UserError
from troth.geometry import Oblique, Sphere
from troth.objectives.affinity import Affinity
from troth.objectives.base import Objective
from troth.objectives.cyclip import CyCLIP
from troth.objectives.mimic import Mimic
from troth.similarity import Pairs
from troth.state import Clock, State

SIZE = 9
CLOCK = Clock(step=3, total_steps=10)
WEIGHTS = torch.linspace(0.2, 2.0, SIZE, dtype=torch.float64)  # unequal, so that rows cannot stand in for each other
DISTANCES, REDUCTIONS, STRATEGIES = ("l1", "l2", "pearson"), ("mean", "row", "sum"), ("constant", "ramp", "mask")
EVERY: list[Objective] = [
    *(
        Affinity(distance=d, reduction=r, strategy=s, threshold=0.55)
        for d, r, s in product(DISTANCES, REDUCTIONS, STRATEGIES)
    ),
    *(Mimic(distance=d, strategy=s, threshold=0.55) for d, s in product(DISTANCES, STRATEGIES)),
    *(Affinity(distance=d, detach_image=True) for d in DISTANCES),
    *(Affinity(distance=d, detach_text=True, strategy="mask", threshold=0.55) for d in DISTANCES),
    CyCLIP(),
    CyCLIP(in_modal=0.0, cross_modal=1.5),
    CyCLIP(in_modal=0.7, cross_modal=0.0),
]


def name(objective: Objective) -> str:
    return "-".join(str(value) for value in vars(objective).values())


def features(size: int = SIZE, dim: int = 5, seed: int = 0, noise: float = 0.7) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, captions and a teacher's (wider, not normalised) image features, in float64."""
    generator = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=-1)
    image = text + noise * torch.randn(size, dim, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(size, dim + 3, generator=generator, dtype=torch.float64)
    return F.normalize(image, dim=-1), text, teacher


def losses(objective: Objective, image: Tensor, text: Tensor, teacher: Tensor | None = None, **pairs: object) -> Tensor:
    state = State(len(image), "test")
    state.clock = CLOCK
    objective.prepare(state)
    scale = torch.tensor(5.0, dtype=image.dtype)
    return objective(Pairs(image, text, scale, teacher_image=teacher, **pairs), state)


def gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = WEIGHTS[: len(value)].to(value)
    return list(torch.autograd.grad((weights * value).sum(), inputs, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("tile", [(1024, 1024), (3, 4), (1, 1), (4, 100), (2, 5)])
@pytest.mark.parametrize("objective", EVERY, ids=name)
def test_values_and_gradients_equal_the_float64_loop(objective: Objective, tile: tuple[int, int]) -> None:
    image, text, teacher = features()
    if getattr(objective, "strategy", "") == "mask":
        assert 3 <= ((image * text).sum(1) > objective.threshold).sum() < SIZE  # the mask leaves some out, and some in
    inputs = [image.requires_grad_(), text.requires_grad_()]
    case = Case(objective, *inputs, torch.tensor(5.0), teacher_image=teacher, clock=CLOCK)
    expected = REFERENCES[objective.kind](case)
    value = losses(objective, *inputs, teacher, tile=tile)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    for ours, reference in zip(gradients(value, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("objective", [o for o in EVERY if "detach" not in repr(o).replace("=False", "")], ids=name)
def test_gradcheck(objective: Objective) -> None:
    image, text, teacher = features(5, dim=3, seed=3)
    assert torch.autograd.gradcheck(
        lambda image, text: losses(objective, image, text, teacher, tile=(2, 3)),
        (image.requires_grad_(), text.requires_grad_()),
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_what_is_detached_gets_no_gradient_and_the_other_the_same_as_before(distance: str) -> None:
    inputs = [x.requires_grad_() for x in features()[:2]]
    both = gradients(losses(Affinity(distance=distance), *inputs), inputs)
    only_text = gradients(losses(Affinity(distance=distance, detach_image=True), *inputs), inputs)
    only_image = gradients(losses(Affinity(distance=distance, detach_text=True), *inputs), inputs)
    assert not only_text[0].any()
    assert not only_image[1].any()
    torch.testing.assert_close(only_text[1], both[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(only_image[0], both[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_reductions_are_the_mean_of_entries_the_mean_of_rows_and_the_sum_of_the_paper(distance: str) -> None:
    image, text, _ = features()
    difference = image @ image.T - text @ text.T
    entries = difference.abs() if distance == "l1" else difference.square()
    for reduction, expected in (("mean", entries.mean()), ("row", entries.sum(1).mean()), ("sum", entries.sum())):
        value = losses(Affinity(distance=distance, reduction=reduction), image, text).mean()
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_pearson_is_numpys_correlation_of_the_rows_without_the_diagonal() -> None:
    image, text, _ = features()
    off = ~torch.eye(SIZE, dtype=torch.bool)
    rows = zip((image @ image.T)[off].reshape(SIZE, -1), (text @ text.T)[off].reshape(SIZE, -1), strict=True)
    expected = torch.stack([1 - torch.corrcoef(torch.stack(row))[0, 1] for row in rows])
    torch.testing.assert_close(losses(Affinity(distance="pearson"), image, text), expected, rtol=1e-12, atol=1e-12)


def test_cyclip_is_the_authors_scaling_of_the_squared_means() -> None:
    image, text, _ = features()
    within = (image @ image.T - text @ text.T).square().mean() * SIZE
    across = (image @ text.T - text @ image.T).square().mean() * SIZE
    value = losses(CyCLIP(in_modal=0.25, cross_modal=0.1), image, text).mean()
    torch.testing.assert_close(value, 0.25 * within + 0.1 * across, rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_mask_leaves_pairs_out_as_rows_and_as_columns(distance: str) -> None:
    inputs = [x.requires_grad_() for x in features()[:2]]
    cosine = (inputs[0] * inputs[1]).sum(1)
    threshold = float(cosine.detach().median())
    kept = cosine > threshold
    masked = losses(Affinity(distance=distance, strategy="mask", threshold=threshold), *inputs)
    alone = losses(Affinity(distance=distance), *(x[kept] for x in inputs))
    assert not masked[~kept].any()
    torch.testing.assert_close(masked.mean(), alone.mean(), rtol=1e-12, atol=0)
    image_gradient, text_gradient = torch.autograd.grad(masked.sum(), inputs)
    assert not image_gradient[~kept].any()
    assert not text_gradient[~kept].any()
    assert image_gradient[kept].any(dim=1).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_mask_that_leaves_no_pair_costs_nothing_and_moves_nothing(distance: str) -> None:
    image, text, teacher = features()
    inputs = [image.requires_grad_(), text.requires_grad_()]
    settings = {"distance": distance, "strategy": "mask", "threshold": 1.0}
    for objective in (Affinity(**settings), Mimic(**settings)):
        value = losses(objective, image, text if isinstance(objective, Affinity) else -image.detach(), teacher)
        assert not value.any()
        assert value.requires_grad
        for gradient in gradients(value, inputs):
            assert not gradient.any()


@pytest.mark.parametrize("objective", [Affinity(strategy="ramp"), Mimic(strategy="ramp")], ids=name)
def test_the_ramp_starts_at_nothing_and_grows_with_the_clock(objective: Objective) -> None:
    image, text, teacher = features()
    state, values = State(SIZE, "test"), []
    for step in (0, 25, 50):
        state.clock = Clock(step=step, total_steps=100)
        values.append(objective(Pairs(image, text, torch.tensor(1.0), teacher_image=teacher), state))
    assert not values[0].any()
    torch.testing.assert_close(values[2], 2 * values[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("collapse", ["image", "both", "two samples", "one sample"])
def test_affinities_that_do_not_vary_give_finite_losses_and_gradients(distance: str, collapse: str) -> None:
    image, text, _ = (x.float() for x in features(40, dim=16))
    if collapse == "image":
        image = image[:1].expand(40, -1).contiguous()
    elif collapse == "both":
        image, text = image[:1].expand(40, -1).contiguous(), text[:1].expand(40, -1).contiguous()
    else:
        image, text = (x[: 2 if collapse == "two samples" else 1].clone() for x in (image, text))
    inputs = [image.requires_grad_(), text.requires_grad_()]
    value = losses(Affinity(distance=distance), *inputs)
    assert torch.isfinite(value).all()
    assert (value >= 0).all()
    for gradient in torch.autograd.grad(value.mean(), inputs):
        assert torch.isfinite(gradient).all()
    if distance == "pearson":
        assert (value == 1).all()


def test_a_teacher_is_normalised_and_gets_no_gradient() -> None:
    image, text, teacher = features()
    teacher.requires_grad_()
    value = losses(Mimic(), image.requires_grad_(), text, teacher)
    torch.testing.assert_close(value, losses(Mimic(), image, text, 7 * teacher), rtol=1e-12, atol=0)
    assert torch.autograd.grad(value.sum(), teacher, allow_unused=True) == (None,)
    half = losses(Mimic(), image.detach().float(), text.float(), teacher.detach().bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), value, rtol=2e-2, atol=2e-2)


def test_without_a_teacher_mimic_says_where_to_name_one() -> None:
    assert Mimic().needs_teacher
    assert not Affinity().needs_teacher
    with pytest.raises(UserError, match=r"objective: .* there is no teacher \(.*\[teacher\]"):
        losses(Mimic(), *features()[:2])


def test_points_of_other_geometries_are_compared_by_their_cosines() -> None:
    oblique = Oblique(num_spheres=3, sub_dim=4)
    image, text = (oblique.project(x) for x in features(dim=12)[:2])
    flat = [x / 3**0.5 for x in (image, text)]
    for objective in (Affinity(), Affinity(strategy="mask"), CyCLIP()):
        ours, expected = losses(objective, image, text, geometry=oblique), losses(objective, *flat, geometry=Sphere())
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_sides_of_different_widths_have_affinities_but_no_cosine() -> None:
    image, _, text = features()
    text = F.normalize(text, dim=-1)
    case = Case(Affinity(), image, text, torch.tensor(5.0))
    torch.testing.assert_close(losses(Affinity(), image, text), REFERENCES["affinity"](case), rtol=1e-12, atol=1e-14)
    with pytest.raises(UserError, match="5 and 8 numbers"):
        losses(Affinity(strategy="mask"), image, text)
    with pytest.raises(UserError, match="5 and 8 numbers"):
        losses(CyCLIP(), image, text)


def test_settings_that_leave_no_loss_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave nothing that learns"):
        Affinity(detach_image=True, detach_text=True)
    with pytest.raises(ValidationError, match="leaves no loss"):
        CyCLIP(in_modal=0, cross_modal=0)
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Affinity(threshold=1.5)


@pytest.mark.parametrize("objective", [o for o in EVERY if o.kind != "mimic"], ids=name)
def test_autocast_does_not_reach_the_affinities(objective: Objective) -> None:
    inputs = [x.float().requires_grad_() for x in features(32, dim=16)[:2]]
    plain = losses(objective, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = losses(objective, *inputs)
    assert torch.equal(plain, inside)
