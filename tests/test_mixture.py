"""Two Gaussians under one heap of numbers."""

import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from troth.mixture import TwoGaussians, fit_two_gaussians


def heap(gap: float = 4.0, scale: float = 1.0) -> np.ndarray:
    draw = np.random.default_rng(0)
    return scale * np.concatenate([draw.normal(0, 1, 700), draw.normal(gap, 0.5, 300)])


def test_the_fit_finds_what_was_planted_on_any_scale() -> None:
    for scale in (1e-6, 1.0, 1e4):
        found = fit_two_gaussians(heap(scale=scale))
        assert found is not None
        assert found.lower_weight == pytest.approx(0.7, abs=0.02)
        assert np.array(found[1:]) / scale == pytest.approx([0, 4, 1, 0.5], abs=0.1)
        assert found.separation == pytest.approx(4 / math.sqrt(0.625), rel=0.1)


def test_the_posterior_between_the_means_is_scikit_learn_s() -> None:
    values = heap()
    found = fit_two_gaussians(values)
    model = GaussianMixture(2)
    model.weights_ = np.array([found.lower_weight, 1 - found.lower_weight])
    model.means_ = np.array([[found.lower_mean], [found.upper_mean]])
    model.covariances_ = np.array([found.lower_deviation**2, found.upper_deviation**2])[:, None, None]
    model.precisions_cholesky_ = model.covariances_**-0.5
    between = np.linspace(found.lower_mean, found.upper_mean, 50)
    expected = model.predict_proba(between[:, None])[:, 0]
    assert found.lower_posterior(torch.from_numpy(between)).numpy() == pytest.approx(expected, abs=1e-12)


def test_the_posterior_never_rises_and_keeps_what_is_unknown() -> None:
    wide = TwoGaussians(0.5, 0.0, 1.5, 1.0, 0.1)
    posterior = wide.lower_posterior(torch.linspace(-3, 9, 200))
    assert posterior.dtype == torch.float64
    assert (posterior.diff() <= 0).all()
    assert torch.isnan(wide.lower_posterior(torch.tensor([math.nan]))).all()


@pytest.mark.parametrize(
    "values", [np.empty(0), np.ones(100), np.arange(100) % 19.0, np.random.default_rng(0).normal(size=1000)]
)
def test_one_group_is_no_mixture(values: np.ndarray) -> None:
    assert fit_two_gaussians(values) is None
