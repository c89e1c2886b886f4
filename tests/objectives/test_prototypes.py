"""The losses over prototypes, beyond what every objective owes."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.objectives.clusters import prototypes_of, rows_of, with_leaves
from tests.objectives.instances import case_of, features, pairs_of, state_of
from troth.errors import UserError
from troth.objectives import ExternalPrototypes, Objective, Prototypes
from troth.similarity import ClusterTargets, PrototypePairs
from troth.similarity import prototypes as scores
from troth.similarity.prototypes import prototype_cross_entropy

OBJECTIVES: dict[str, Objective] = {
    "soft": Prototypes(target_temperature=0.3, mask_empty=True),
    "hard": Prototypes(target_temperature=None, back_translation=False),
    "external": ExternalPrototypes(),
}


def loss_of(objective: Objective, prototypes: PrototypePairs | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and notes of a batch that has these prototypes."""
    case = replace(case_of(objective, size=8), prototypes=prototypes, weight=None)
    state = state_of(case)
    return objective(pairs_of(case), state), state.take_notes()


@pytest.mark.parametrize("block", [1, 9, 17])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_size_of_the_blocks_changes_nothing(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    weights = torch.linspace(0.2, 2.0, 8, dtype=torch.float64)
    for size in (scores._SCORES, block):
        monkeypatch.setattr(scores, "_SCORES", size)
        batch, leaves = with_leaves(case_of(OBJECTIVES[name], size=8).prototypes)
        losses, notes = loss_of(OBJECTIVES[name], batch)
        found.append([losses, *notes.values(), *torch.autograd.grad((weights * losses).sum(), leaves)])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-13)


def test_no_block_has_more_scores_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_SCORES", 9)
    seen = []
    plain = scores._log_softmax
    monkeypatch.setattr(
        scores, "_log_softmax", lambda block, allowed: seen.append(block.shape) or plain(block, allowed)
    )
    loss_of(OBJECTIVES["soft"], case_of(OBJECTIVES["soft"], size=8).prototypes)
    assert seen
    assert all(shape == (2, 4) for shape in seen)


def test_by_hand() -> None:
    """Two prototypes at right angles, and a sample on the first."""
    samples, classifier = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    scale, first, second = torch.tensor(2.0).double(), torch.tensor([0]), torch.tensor([1])
    right = prototype_cross_entropy(samples, scale, classifier, first)
    assert right.losses.item() == pytest.approx(math.log(1 + math.exp(-2)))
    wrong = prototype_cross_entropy(samples, scale, classifier, second)
    assert wrong.losses.item() == pytest.approx(math.log(1 + math.exp(2)))
    assert (right.correct.item(), wrong.correct.item()) == (1, 0)
    # A teacher whose prototypes are alike shares the target between them.
    alike = prototype_cross_entropy(samples, scale, classifier, first, teacher=torch.ones(2, 3).double())
    assert alike.losses.item() == pytest.approx(0.5 * (right.losses + wrong.losses).item())
    # One that knows them apart, by log 3 at this temperature, divides it 3 : 1.
    apart = prototype_cross_entropy(
        samples, scale, classifier, first, teacher=torch.eye(2).double(), target_temperature=1 / math.log(3)
    )
    assert apart.losses.item() == pytest.approx((0.75 * right.losses + 0.25 * wrong.losses).item())
    alone = prototype_cross_entropy(samples, scale, classifier, first, allowed=torch.tensor([True, False]))
    assert alone.losses.item() == 0


def test_a_prototype_of_no_samples_scores_zero_unless_it_is_left_out() -> None:
    """As in the released code, whose rows of empty clusters are zeros."""
    sample = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    means = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    clusters = ClusterTargets(torch.tensor([0]), torch.eye(2).double(), means, means, torch.tensor([True, False]))
    pairs = PrototypePairs(
        sample, sample, torch.tensor(3.0).double(), {"text": clusters, "image": clusters, "external": clusters}
    )
    for kind in (Prototypes, ExternalPrototypes):
        objective = kind(target_temperature=None)
        case = replace(case_of(objective, size=1), prototypes=pairs, weight=None)
        assert objective(pairs_of(case), state_of(case)).item() == pytest.approx(math.log(1 + math.exp(-3)))
        assert replace(objective, mask_empty=True)(pairs_of(case), state_of(case)).item() == 0


def test_each_modality_learns_from_the_others_clusters() -> None:
    """Labels of images reach captions only, and those of captions images only."""
    batch, (image, text, scale) = with_leaves(case_of(Prototypes(), size=8).prototypes)
    moved = batch.clusters["text"]
    moved = replace(moved, label=(moved.label + 1) % len(moved.prototypes))
    changed = replace(batch, clusters={**batch.clusters, "text": moved})
    slopes = [
        torch.autograd.grad(loss_of(Prototypes(), each)[0].sum(), (image, text, scale)) for each in (batch, changed)
    ]
    assert not torch.allclose(slopes[0][0], slopes[1][0])
    torch.testing.assert_close(slopes[0][1], slopes[1][1])


def test_no_gradient_enters_the_prototypes() -> None:
    image, text = (x.requires_grad_() for x in features(8))
    batch = prototypes_of(image, text, torch.tensor(5.0).double())
    clusters = {
        name: replace(of, **{field: getattr(of, field).requires_grad_() for field in ("prototypes",)})
        for name, of in batch.clusters.items()
    }
    loss_of(Prototypes(back_translation=False), replace(batch, clusters=clusters))[0].sum().backward()
    assert image.grad is not None
    assert all(of.prototypes.grad is None for of in clusters.values())


def test_exchanged_captions_cost_more_with_the_same_clusters() -> None:
    image, text = features(64, dim=24)
    right = prototypes_of(image, text, torch.tensor(10.0).double())
    order = torch.arange(64).roll(1)
    captions = rows_of(right, lambda rows: rows[order])
    wrong = PrototypePairs(
        right.image,
        captions.text,
        right.scale,
        {"image": right.clusters["image"], "text": captions.clusters["text"], "external": right.clusters["external"]},
    )
    for objective in (Prototypes(), Prototypes(target_temperature=None), Prototypes(back_translation=False)):
        case = replace(case_of(objective, size=64), weight=None)
        losses = [objective(pairs_of(replace(case, prototypes=each)), state_of(case)).mean() for each in (right, wrong)]
        assert losses[0] < losses[1]


def test_how_often_the_cluster_is_found_is_noted() -> None:
    batch = case_of(Prototypes(), size=8).prototypes
    _, notes = loss_of(Prototypes(), batch)
    text, image = batch.clusters["text"], batch.clusters["image"]
    assert notes.keys() == {"image_finds_cluster", "text_finds_cluster"}
    found = (batch.image @ text.image.double().T).argmax(dim=1) == text.label
    assert notes["image_finds_cluster"].tolist() == found.double().tolist()
    found = (batch.text @ image.text.double().T).argmax(dim=1) == image.label
    assert notes["text_finds_cluster"].tolist() == found.double().tolist()
    assert loss_of(ExternalPrototypes(), batch)[1].keys() == {
        "image_finds_external_cluster",
        "text_finds_external_cluster",
    }


@pytest.mark.parametrize("objective", [Prototypes(), ExternalPrototypes()])
def test_without_clusters_the_losses_are_zero_and_have_a_gradient(objective: Objective) -> None:
    """An episode that learns pairs alone may have no other term."""
    batch, (image, text, scale) = with_leaves(replace(case_of(objective, size=8).prototypes, clusters={}))
    losses, notes = loss_of(objective, batch)
    assert losses.tolist() == [0.0] * 8
    assert not notes
    losses.sum().backward()
    assert scale.grad == 0
    assert image.grad is None
    assert text.grad is None


@pytest.mark.parametrize("objective", [Prototypes(), ExternalPrototypes()])
def test_a_run_without_episodes_is_a_user_error(objective: Objective) -> None:
    with pytest.raises(UserError, match=r"^episodes: .*add an \[episodes\] section"):
        loss_of(objective, None)


def test_external_clusters_without_a_teacher_are_a_user_error() -> None:
    batch = case_of(ExternalPrototypes(), size=8).prototypes
    alone = replace(batch, clusters={name: of for name, of in batch.clusters.items() if name != "external"})
    loss_of(Prototypes(), alone)
    with pytest.raises(UserError, match=r"^episodes\.external: .*there is no teacher"):
        loss_of(ExternalPrototypes(), alone)


def test_normalised_prototypes_are_those_of_unit_length() -> None:
    batch = case_of(Prototypes(), size=8).prototypes

    def unit(of: ClusterTargets) -> ClusterTargets:
        means = {
            name: None if x is None else F.normalize(x, dim=1) for name, x in (("image", of.image), ("text", of.text))
        }
        return replace(of, prototypes=F.normalize(of.prototypes, dim=1), **means)

    prepared = replace(batch, clusters={name: unit(of) for name, of in batch.clusters.items()})
    for objective in (Prototypes(), ExternalPrototypes(target_temperature=0.1)):
        expected, _ = loss_of(objective, prepared)
        assert not torch.allclose(loss_of(objective, batch)[0], expected)
        torch.testing.assert_close(loss_of(replace(objective, normalize_prototypes=True), batch)[0], expected)
