"""The closed-form alignment against numpy's own decompositions, and what theory says of it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.judge.pairs import features
from troth.judge import Whitened
from troth.judge.spectral import singular_directions


def inverse_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(values**-0.5) @ vectors.T


def reference(image: np.ndarray, text: np.ndarray, weights: np.ndarray, shrinkage: float) -> np.ndarray:
    """The whitened weighted cross-covariance, a sum over pairs in float64."""
    whitening = []
    for x in (image, text):
        covariance = np.cov(x.T, bias=True)
        whitening.append(
            inverse_root(covariance + shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
        )
    share = weights / weights.sum()
    mean_image, mean_text = share @ image, share @ text
    moment = sum(w * np.outer(x - mean_image, y - mean_text) for w, x, y in zip(share, image, text, strict=True))
    return whitening[0] @ moment @ whitening[1]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_cosines_are_those_of_the_equation(power: float) -> None:
    image, text, _ = features(80, 0.2)
    image = F.normalize(image, dim=-1)
    weights = torch.from_numpy(np.random.default_rng(1).uniform(0.1, 1, 80)).float()
    alignment = Whitened(image, text).align(weights, dim=5, shrinkage=0.3, power=power)
    x, y, w = image.double().numpy(), text.double().numpy(), weights.double().numpy()
    left, values, right = np.linalg.svd(reference(x, y, w, 0.3))
    share = w / w.sum()
    points = []
    for each, mean, directions, covariance in (
        (x, share @ x, left[:, :5], np.cov(x.T, bias=True)),
        (y, share @ y, right[:5].T, np.cov(y.T, bias=True)),
    ):
        whitening = inverse_root(covariance + 0.3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
        mapped = (each - mean) @ whitening @ directions * values[:5] ** (power / 2)
        points.append(mapped / np.linalg.norm(mapped, axis=1, keepdims=True))
    ours = alignment.image(image) @ alignment.text(text).T
    np.testing.assert_allclose(ours.numpy(), points[0] @ points[1].T, atol=2e-4)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 8), columns=st.integers(1, 8), seed=st.integers(0, 1000))
def test_singular_directions_rebuild_the_matrix(rows: int, columns: int, seed: int) -> None:
    matrix = torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)))
    left, values, right = singular_directions(matrix)
    torch.testing.assert_close(left * values @ right.T, matrix, atol=1e-6, rtol=1e-6)
    assert bool((values[:-1] >= values[1:]).all())
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix)[: len(values)], atol=1e-6, rtol=1e-6)


def test_wrong_pairs_shrink_the_cross_covariance_and_leave_its_directions() -> None:
    """E[M] is (1 - p) times the clean one: the leading canonical directions of many pairs hardly move."""
    clean_image, clean_text, _ = features(20_000, 0.0)
    image, text, _ = features(20_000, 0.5)
    torch.testing.assert_close(image, clean_image)
    weights = torch.ones(20_000)
    clean, noisy = (Whitened(clean_image, each).cross_covariance(weights)[0] for each in (clean_text, text))
    assert float((noisy * clean).sum() / (clean * clean).sum()) == pytest.approx(0.5, abs=0.02)
    first, second = (singular_directions(each)[0][:, :6] for each in (clean, noisy))
    assert float(torch.linalg.svdvals(first.T @ second).min()) > 0.995


def test_pairs_of_no_weight_have_no_part() -> None:
    image, text, wrong = features(300, 0.3)
    weights = torch.from_numpy(~wrong).float()
    other = text.clone()
    other[torch.from_numpy(wrong)] = torch.randn(int(wrong.sum()), 16)
    given, moved = (Whitened(image, each).cross_covariance(weights)[0] for each in (text, other))
    torch.testing.assert_close(given, moved)
