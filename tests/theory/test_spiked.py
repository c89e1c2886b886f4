"""The spiked model is what it says: signal, uneven noise, wrong pairs, edges, orders."""

import numpy as np
import pytest
import torch

from tests.references import theory as reference
from troth.errors import UserError
from troth.theory import (
    ContrastiveLoss,
    LinearEncoders,
    SpikedModel,
    contrastive_cross_covariance,
    cross_covariance,
    edge_cross_covariance,
    haar_columns,
    principal_components,
    sin_theta,
    spectral_step,
    unimodal_contrastive,
)

MODEL = SpikedModel(image_dim=7, text_dim=6, rank=2, noise=0.5, heterogeneity=1.5, seed=3)


def test_bases_are_orthonormal_and_all_splits_share_them() -> None:
    for basis in MODEL.bases():
        torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert not torch.equal(MODEL.bases()[0], SpikedModel(7, 6, 2, seed=4).bases()[0])


@pytest.mark.parametrize("rotated", [False, True])
def test_moments_are_the_models(rotated: bool) -> None:
    model = SpikedModel(7, 6, 2, noise=0.5, heterogeneity=1.5, rotated_noise=rotated, seed=3)
    sample = model.sample(200_000)
    image, text = model.bases()
    torch.testing.assert_close(cross_covariance(sample.x, sample.y), image @ text.T, rtol=0, atol=0.02)
    noise = cross_covariance(sample.x, sample.x) - image @ image.T
    levels = model.noise_levels()[0]
    assert float(levels.square().mean()) == pytest.approx(0.25)
    assert float(noise.trace()) == pytest.approx(7 * 0.25, rel=0.02)
    found = torch.linalg.eigvalsh(noise) if rotated else noise.diagonal()
    expected = levels.square().sort().values if rotated else levels.square()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    off = noise - torch.diag(noise.diagonal())
    assert bool(off.abs().max() > 0.05) == rotated


def test_wrong_pairs_exchange_captions_and_nothing_else() -> None:
    right, wrong = MODEL.sample(50), MODEL.sample(50, wrong=0.3)
    torch.testing.assert_close(right.x, wrong.x, rtol=0, atol=0)
    assert int((~wrong.right).sum()) == 15
    moved = (right.y != wrong.y).any(1)
    assert torch.equal(moved, ~wrong.right)
    torch.testing.assert_close(right.y.sort(0).values, wrong.y.sort(0).values, rtol=0, atol=0)
    assert not torch.equal(MODEL.sample(50, draw=1).x, right.x)
    assert bool(MODEL.sample(3, wrong=0.3).right.all())  # one caption has nowhere to go


def test_unpaired_samples_have_their_partners_somewhere() -> None:
    model = SpikedModel(7, 6, 2, noise=0.0)
    sample = model.unpaired(40)
    image, text = model.bases()
    torch.testing.assert_close(sample.x @ image, sample.y[sample.partner] @ text, rtol=1e-10, atol=1e-10)
    assert not torch.equal(sample.partner, torch.arange(40))


def test_edges_join_classes_and_flips_leave_the_subspace() -> None:
    model = SpikedModel(rank=4, noise=0.3, seed=1)
    clean = model.many_to_many(200, 3, 4)
    assert torch.equal(clean.edges, clean.truth)
    assert clean.edges.sum(1).unique().tolist() == [4]
    flipped = model.many_to_many(200, 3, 4, flip=0.005)
    assert float((flipped.edges != flipped.truth).double().mean()) == pytest.approx(0.005, rel=0.1)
    errors, signal = [], []
    image, text = model.bases()
    for sample in (clean, flipped):
        covariance = edge_cross_covariance(sample.x, sample.y, sample.edges)
        signal.append(float((image.T @ covariance @ text).trace()))
        errors.append(float(sin_theta(spectral_step(covariance, 4).image.mT, image)))
    right = float(flipped.truth[flipped.edges].double().mean())  # half of what was given is wrong
    assert right == pytest.approx(0.5, abs=0.02)
    assert signal[1] / signal[0] == pytest.approx(right, abs=0.03)
    assert errors[1] < 0.3


def test_haar_columns_are_uniform() -> None:
    """The first entry of a uniform unit vector of 3 dimensions is uniform on [-1, 1]."""
    draws = np.random.default_rng(0)
    first = np.array([haar_columns(draws, 3, 2)[0, 1] for _ in range(2000)])
    quantiles = np.quantile(first, [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, [-0.8, -0.5, 0, 0.5, 0.8], atol=0.06)


def test_masked_views_leave_the_covariance_without_its_diagonal() -> None:
    """The mean over masks of the linear member's cross-covariance of both views."""
    x = MODEL.sample(6).x[:, :4]
    total = torch.zeros(4, 4, dtype=torch.float64)
    zero, linear = LinearEncoders(torch.zeros(1, 4).double(), torch.zeros(1, 4).double()), ContrastiveLoss.linear()
    for number in range(2**4):
        mask = torch.tensor([(number >> bit) & 1 for bit in range(4)], dtype=torch.float64)
        total += contrastive_cross_covariance(x * mask, x * (1 - mask), zero, linear) / 2**4
    covariance = (
        reference.covariance(x, x, torch.ones(6).double(), torch.full((6, 6), 1 / 6, dtype=torch.float64)) * 6 / 5
    )
    expected = (covariance - torch.diag(covariance.diagonal())) / 4
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    leading = torch.linalg.eigh(expected).eigenvectors[:, -2:]
    assert float(sin_theta(unimodal_contrastive(x, 2).mT, leading)) < 1e-10


def test_uneven_noise_misleads_one_modality_only() -> None:
    model = SpikedModel(noise=1.0, heterogeneity=1.5, rotated_noise=True, seed=0)
    sample = model.sample(2000)
    basis, _ = model.bases()
    both = float(sin_theta(spectral_step(cross_covariance(sample.x, sample.y), 10).image.mT, basis))
    for alone in (principal_components(sample.x, 10), unimodal_contrastive(sample.x, 10)):
        assert float(sin_theta(alone.mT, basis)) > 2 * both


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpikedModel(rank=60), "rank: 60 is not between 1 and the smaller dimension, 39"),
        (lambda: SpikedModel(noise=-1.0), "noise: -1.0"),
        (lambda: SpikedModel(seed=-1), "seed: -1 is below 0"),
        (lambda: MODEL.sample(0), "count: 0 is below 1"),
        (lambda: MODEL.unpaired(-1), "count: -1 is below 1"),
        (lambda: MODEL.many_to_many(2, 0, 2), "images: 0 is below 1"),
        (lambda: MODEL.sample(5, wrong=1.5), "wrong: 1.5 is not a fraction"),
        (lambda: MODEL.many_to_many(2, 2, 2, flip=2.0), "flip: 2.0 is not a probability"),
        (lambda: principal_components(torch.zeros(3, 2), 3), "rank: 3 is not between 1 and 2"),
        (lambda: unimodal_contrastive(torch.zeros(1, 2), 1), "a single sample has no covariance"),
    ],
)
def test_mistakes_are_one_line(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]
