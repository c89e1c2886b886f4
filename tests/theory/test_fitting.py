"""Gradient descent and alternating SVDs end in the same place, and at the rate of the theory."""

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
    fit_gradient_descent,
    fit_spectral,
    gradient,
    sin_theta,
    spectral_step,
)

MODEL = SpikedModel(image_dim=9, text_dim=8, rank=3, noise=0.3, seed=4)
MEMBERS = [
    ContrastiveLoss.linear(),
    ContrastiveLoss.infonce(5.0),
    ContrastiveLoss.generalized_cross_entropy(0.5, 5.0),
    ContrastiveLoss.logistic(5.0),
]


@pytest.mark.parametrize("loss", MEMBERS, ids=lambda loss: f"{loss.phi}-{loss.psi}")
def test_both_fits_agree_and_are_their_own_svd(loss: ContrastiveLoss) -> None:
    sample, rho = MODEL.sample(80), 0.5
    spectral = fit_spectral(sample.x, sample.y, loss, MODEL.rank, rho=rho).encoders
    covariance = contrastive_cross_covariance(sample.x, sample.y, spectral, loss)
    torch.testing.assert_close(
        spectral_step(covariance, MODEL.rank, rho).product, spectral.product, rtol=1e-6, atol=1e-8
    )
    start = LinearEncoders.random(MODEL.rank, 9, 8, seed=1)
    descent = fit_gradient_descent(
        sample.x,
        sample.y,
        loss,
        start,
        rho=rho,
        learning_rate=0.3 / float(torch.linalg.matrix_norm(covariance, 2)),
        steps=1500,
    ).encoders
    torch.testing.assert_close(descent.product, spectral.product, rtol=1e-6, atol=1e-8)


def test_the_linear_members_fit_is_one_step() -> None:
    sample = MODEL.sample(50, wrong=0.4)
    once = spectral_step(cross_covariance(sample.x, sample.y), 3)
    fit = fit_spectral(sample.x, sample.y, ContrastiveLoss.linear(), 3, measure=lambda each: float(each.product.norm()))
    torch.testing.assert_close(fit.encoders.product, once.product, rtol=1e-10, atol=1e-10)
    assert len(fit.trace) <= 3  # zero, the step, and the one that finds nothing to do


def test_stationary_encoders_need_not_be_the_leading_singular_triples() -> None:
    sample, loss = SpikedModel(noise=1.0, seed=1).sample(100, wrong=0.6), ContrastiveLoss.infonce(5.0)
    fit = fit_spectral(sample.x, sample.y, loss, 10, steps=600).encoders
    slope = gradient(sample.x, sample.y, fit, loss, 1.0)
    covariance = contrastive_cross_covariance(sample.x, sample.y, fit, loss)
    assert slope.image.norm() < 1e-3 * fit.image.norm()
    assert torch.dist(spectral_step(covariance, 10).product, fit.product) > 0.1 * fit.product.norm()


def test_divergence_is_one_line() -> None:
    sample = MODEL.sample(20)
    start = LinearEncoders.random(3, 9, 8)
    with pytest.raises(UserError, match="diverged"):
        fit_gradient_descent(sample.x, sample.y, ContrastiveLoss.linear(), start, learning_rate=1e3, steps=200)


def test_sin_theta_is_that_of_the_principal_angles() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(8, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    assert float(sin_theta(a, b)) == pytest.approx(reference.sin_theta(a, b), rel=1e-12)
    assert float(sin_theta(a, a @ torch.randn(3, 3, generator=generator, dtype=torch.float64))) < 1e-13
    angle = 1e-9
    line, turned = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[1.0], [angle]]).double()
    assert float(sin_theta(line, turned)) == pytest.approx(angle, rel=1e-6)
    orthogonal = torch.eye(6, dtype=torch.float64)
    assert float(sin_theta(orthogonal[:, :3], orthogonal[:, 3:])) == pytest.approx(3**0.5)
    assert float(sin_theta(orthogonal[:, :3], orthogonal[:, 3:], "spectral")) == pytest.approx(1.0)
    with pytest.raises(UserError, match="different shapes"):
        sin_theta(a, b[:, :2])


@pytest.mark.parametrize("wrong", [0.0, 0.4])
def test_the_error_falls_with_the_root_of_the_number_of_pairs(wrong: float) -> None:
    """The slope of log error against log n is -1/2: three standard errors of ten seeds are about 0.05."""
    counts, slopes = [1024, 4096, 16384], []
    for seed in range(10):
        model = SpikedModel(image_dim=20, text_dim=18, rank=4, noise=0.7, heterogeneity=1.0, seed=seed)
        errors = []
        for count in counts:
            sample = model.sample(count, wrong=wrong)
            found = spectral_step(cross_covariance(sample.x, sample.y), model.rank)
            errors.append(float(sin_theta(found.image.mT, model.bases()[0])))
        slopes.append(np.polyfit(np.log(counts), np.log(errors), 1)[0])
    assert np.mean(slopes) == pytest.approx(-0.5, abs=0.05)


def test_wrong_pairs_shrink_the_signal_by_one_less_their_share() -> None:
    model, fraction = SpikedModel(rank=4, noise=0.3, seed=2), 0.6
    image, text = model.bases()
    shares, count = [], 20_000
    for draw in range(5):
        sample = model.sample(count, wrong=fraction, draw=draw)
        shares.append(float((image.T @ cross_covariance(sample.x, sample.y) @ text).trace()) / model.rank)
    assert np.mean(shares) == pytest.approx(1 - fraction, abs=0.01)
