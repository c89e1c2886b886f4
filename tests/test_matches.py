"""Known matches, however they are given, are one matrix read block by block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives.instances import features
from troth.similarity import DenseMatches, GroupMatches, KnownMatches, ListedMatches, Matches, Pairs

SCALE = torch.tensor(4.0, dtype=torch.float64)


def both_losses(matches: Matches, known: KnownMatches, tile: tuple[int, int]) -> Tensor:
    size = 9
    pairs = Pairs(*features(size), SCALE, matches=matches, tile=tile)
    parts = (*pairs.target_cross_entropy(known, 0.1), *pairs.binary_cross_entropy(known, 0.1))
    return torch.stack(parts)


@given(groups=st.lists(st.integers(0, 4), min_size=9, max_size=9), rows=st.integers(1, 10), columns=st.integers(1, 10))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("known", ["negative", "ignore", "positive"])
def test_groups_are_the_matrix_of_equal_groups(known: KnownMatches, groups: list[int], rows: int, columns: int) -> None:
    group = torch.tensor(groups)
    dense = DenseMatches((group[:, None] == group).double())
    ours = both_losses(GroupMatches(group), known, (rows, columns))
    torch.testing.assert_close(ours, both_losses(dense, known, (100, 100)), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("tile", [(100, 100), (4, 3), (1, 1)])
def test_a_list_names_samples_by_their_ids_and_passes_over_strangers(tile: tuple[int, int]) -> None:
    index = torch.tensor([31, 5, 77, 12, 40, 8, 99, 60, 1])
    image, caption = torch.tensor([5, 99, 12, 7, 31, 77]), torch.tensor([31, 1, 12, 5, 1000, 8])
    degree = torch.tensor([0.5, 0.25, 0.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    dense = torch.eye(9, dtype=torch.float64)
    dense[1, 0], dense[6, 8], dense[3, 3], dense[2, 5] = 0.5, 0.25, 0.0, 1.0
    dense[3, 0] = degree[0]  # so that the pair that does not fit itself has something that does
    image, caption = torch.cat([image, torch.tensor([12])]), torch.cat([caption, torch.tensor([31])])
    dense[:, 3] += torch.tensor([0.0, 0, 0, 0, 1, 0, 0, 0, 0], dtype=torch.float64)
    image, caption = torch.cat([image, torch.tensor([40])]), torch.cat([caption, torch.tensor([12])])
    degree = torch.cat([degree, torch.tensor([0.5, 1.0], dtype=torch.float64)])
    listed = ListedMatches.from_samples(image, caption, degree, index)
    torch.testing.assert_close(
        both_losses(listed, "positive", tile),
        both_losses(DenseMatches(dense), "positive", tile),
        rtol=1e-11,
        atol=1e-12,
    )


def test_an_empty_list_leaves_the_given_pairs() -> None:
    nothing = torch.tensor([], dtype=torch.int64)
    listed = ListedMatches.from_samples(nothing, nothing, torch.tensor([], dtype=torch.float64), torch.arange(9))
    plain = both_losses(DenseMatches(torch.eye(9, dtype=torch.float64)), "positive", (4, 4))
    torch.testing.assert_close(both_losses(listed, "positive", (4, 4)), plain)


def test_a_known_false_negative_no_longer_pushes() -> None:
    """What ignoring is for: the left-out caption gets no gradient from the image it fits."""
    image, text = features(6)
    text = text.clone().requires_grad_()
    group = torch.tensor([0, 0, 1, 2, 3, 4])
    loss = Pairs(image, text, SCALE, matches=GroupMatches(group)).target_cross_entropy("ignore").image[0]
    (gradient,) = torch.autograd.grad(loss, text)
    assert gradient[1].abs().max() == 0
    assert gradient[2].abs().max() > 0
