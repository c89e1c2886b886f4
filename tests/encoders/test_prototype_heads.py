"""Projection heads: their start, their lengths, what decays, their scale, and batch norm over several processes."""

import pytest
import torch
from torch import nn

from tests.encoders.batch_norm_ranks import compute
from tests.torchrun import two_ranks
from troth.encoders import ContrastiveModel, Heads
from troth.encoders.prototype_heads import ProjectionConfig, PrototypeHeads, SharedBatchNorm
from troth.errors import UserError
from troth.geometry import Sphere
from troth.train import OptimizerConfig

CONFIG = ProjectionConfig(hidden_dim=16, dim=5)
HEADS = Heads(embed_dim=8, hidden_dim=16, image_feature_dim=6, text_feature_dim=7)


def heads(seed: int = 0, **changes: float) -> PrototypeHeads:
    return ProjectionConfig(hidden_dim=16, dim=5, **changes).build(8, seed)


def model() -> ContrastiveModel:
    return ContrastiveModel(HEADS.build(0), Sphere(), prototype_heads=heads())


def test_both_heads_start_alike_and_learn_apart() -> None:
    built = heads()
    image, text = built.image_head.state_dict(), built.text_head.state_dict()
    assert image.keys() == text.keys()
    assert all(torch.equal(image[name], text[name]) for name in image)
    assert {p.data_ptr() for p in built.image_head.parameters()}.isdisjoint(
        p.data_ptr() for p in built.text_head.parameters()
    )
    assert [type(layer) for layer in built.image_head] == [nn.Linear, SharedBatchNorm, nn.ReLU, nn.Linear]


def test_the_seed_alone_gives_the_weights() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = heads(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = heads(seed=3), heads(seed=4)
    assert torch.equal(first.image_head[0].weight, again.image_head[0].weight)
    assert not torch.equal(first.image_head[0].weight, other.image_head[0].weight)


def test_projections_are_of_unit_length_and_come_with_the_scale() -> None:
    projected = model()(torch.randn(9, 6), torch.randn(9, 7))
    for rows in (projected.image_projection, projected.text_projection):
        assert rows.shape == (9, 5)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(9))
    assert float(projected.prototype_scale.detach()) == pytest.approx(1 / 0.07)
    assert float(heads(scale_init=20.0).log_scale.detach().exp()) == pytest.approx(20)


def test_they_project_the_towers_raw_features() -> None:
    """Not the points of the geometry, which have lost the features' lengths."""
    contrastive, image, text = model().eval(), torch.randn(9, 6), torch.randn(9, 7)
    raw = contrastive.encoder.encode_image(image)
    expected = nn.functional.normalize(contrastive.prototype_heads.image_head(raw), dim=1)
    torch.testing.assert_close(contrastive(image, text).image_projection, expected)


def test_projections_are_float32_under_autocast_and_float64_in_a_float64_model() -> None:
    contrastive, image, text = model(), torch.randn(9, 6), torch.randn(9, 7)
    with torch.autocast("cpu", torch.bfloat16):
        projected = contrastive(image, text)
    assert projected.image_projection.dtype == projected.text_projection.dtype == torch.float32
    torch.testing.assert_close(projected.image_projection.norm(dim=1), torch.ones(9), rtol=0, atol=1e-6)
    doubled = contrastive.double()(image.double(), text.double())
    assert {doubled.image_projection.dtype, doubled.prototype_scale.dtype} == {torch.float64}


def test_nothing_in_them_decays() -> None:
    contrastive = model()
    groups = OptimizerConfig(weight_decay=0.3).build(contrastive).param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    own = list(contrastive.prototype_heads.parameters())
    assert len(own) == 13
    assert {decays[id(parameter)] for parameter in own} == {0.0}
    assert 0.3 in decays.values()


def test_the_scale_stays_between_one_and_its_cap() -> None:
    contrastive = model()
    for value, kept in ((50.0, 50.0), (1000.0, 100.0), (0.01, 1.0)):
        with torch.no_grad():
            contrastive.prototype_heads.log_scale.fill_(value).log_()
        contrastive.clamp_scale()
        assert float(contrastive.prototype_heads.log_scale.detach().exp()) == pytest.approx(kept)
    capped = heads(scale_cap=30.0)
    with torch.no_grad():
        capped.log_scale.fill_(9.0)
    capped.clamp_scale()
    assert float(capped.log_scale.detach().exp()) == pytest.approx(30)


def test_alone_shared_batch_norm_is_torchs() -> None:
    found = []
    for kind in (SharedBatchNorm, nn.BatchNorm1d):
        norm = kind(4).double()
        for seed in (0, 1):
            torch.manual_seed(seed)
            rows = (torch.randn(7, 4, dtype=torch.float64) * 3 + 1).requires_grad_()
            output = norm(rows)
            gradients = torch.autograd.grad(output.pow(3).sum(), [rows, *norm.parameters()])
        found.append([output, *gradients, *norm.buffers(), norm.eval()(rows)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_one_row_in_training_is_a_user_error() -> None:
    built = heads()
    with pytest.raises(UserError, match=r"^train\.micro_batch_size: .*one row"):
        built(torch.randn(1, 8), torch.randn(1, 8))
    built.eval()(torch.randn(1, 8), torch.randn(1, 8))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict]]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    compute(one)
    two_ranks("tests.encoders.batch_norm_ranks", two)
    return torch.load(one / "0.pt"), [torch.load(two / f"{rank}.pt") for rank in range(2)]


def test_two_ranks_normalise_as_one_process_does(ranks: tuple[dict, list[dict]]) -> None:
    one, two = ranks
    for number, step in enumerate(one["exact"]["steps"]):
        parts = [rank["exact"]["steps"][number] for rank in two]
        torch.testing.assert_close(torch.cat([part["output"] for part in parts]), step["output"], rtol=1e-12, atol=0)
        # Each rank's loss is the mean over half the rows: its gradients are of twice the global mean.
        together = torch.cat([part["input"] for part in parts]) / 2
        torch.testing.assert_close(together, step["input"], rtol=1e-10, atol=1e-13)
        for name, expected in step["weights"].items():
            averaged = torch.stack([part["weights"][name] for part in parts]).mean(dim=0)
            torch.testing.assert_close(averaged, expected, rtol=1e-10, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


def test_running_averages_are_the_same_on_every_rank_and_in_one_process(ranks: tuple[dict, list[dict]]) -> None:
    one, two = ranks
    for rank in two:
        for name, expected in one["exact"]["buffers"].items():
            torch.testing.assert_close(rank["exact"]["buffers"][name], expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(rank["exact"]["evaluated"], one["exact"]["evaluated"], rtol=1e-12, atol=1e-13)


def test_statistics_of_bfloat16_rows_lose_no_more_on_two_ranks(ranks: tuple[dict, list[dict]]) -> None:
    one, two = ranks
    for name, expected in one["bfloat16"]["buffers"].items():
        for rank in two:
            torch.testing.assert_close(rank["bfloat16"]["buffers"][name], expected, rtol=1e-5, atol=1e-6)
