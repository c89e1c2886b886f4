"""Laws of the loss class of Nakada et al.."""

import pytest
import torch
from pydantic import ValidationError

from tests.objectives.instances import features, losses
from troth.objectives import MMCL, InfoNCE

SCALE = torch.tensor(7.0, dtype=torch.float64)


def test_its_infonce_is_infonce() -> None:
    image, text = features(15)
    ours = losses(MMCL.infonce(), image, text, SCALE, None, tile=(4, 6))
    torch.testing.assert_close(ours, losses(InfoNCE(), image, text, SCALE, None), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("wrong", [0.0, 0.3, 0.6])
def test_wrong_pairs_shrink_the_linear_loss_and_leave_its_minimiser(wrong: float) -> None:
    """Each caption replaced by another of the batch with probability p: exactly (1 - p B/(B-1)) of the loss is left.

    The expectation over the replacement is taken in full: the positive's logit becomes (1 - p) l_ii + p mean_j l_ij
    over j != i.
    """
    size = 12
    image, text = features(size)
    logits = SCALE * image @ text.T
    clean = losses(MMCL.linear(), image, text, SCALE, None).mean()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            probability = 1 - wrong if i == j else wrong / (size - 1)
            others = (logits[i].sum() - logits[i, j]) / (size - 1)
            total += probability * (others - logits[i, j]) / size
    row_loss = ((logits.sum(1) - logits.diagonal()) / (size - 1) - logits.diagonal()).mean()
    torch.testing.assert_close(row_loss, clean, rtol=1e-10, atol=1e-12)  # both directions have one mean
    torch.testing.assert_close(total, (1 - wrong * size / (size - 1)) * clean, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("phi", "psi"), [("log", "identity"), ("log", "softplus"), ("log", "hinge"), ("identity", "exp")]
)
def test_members_that_cannot_be_computed_are_refused(phi: str, psi: str) -> None:
    with pytest.raises(ValidationError, match=f'phi="{phi}"'):
        MMCL(phi=phi, psi=psi)  # type: ignore[arg-type]
