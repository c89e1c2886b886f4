"""The logarithm of a Gamma draw as a function of a normal one, fitted once a shape.

``log F_a^-1(Phi(z))`` turns a standard normal ``z`` into the logarithm of a Gamma draw of shape ``a`` exactly: ``F_a``
is the Gamma distribution function, ``Phi`` the normal one. For ``a >= 1`` it is smooth and nearly straight: over all
``z`` that can occur a polynomial, or one over a quadratic, equals it to the rounding of float32. Its nearest
singularities are where ``Phi`` has zeros in the complex plane, the first at 1.9 + 2.8i and its conjugate. The quadratic
takes care of those; as the shape grows they matter less and the degree falls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import chebyshev
from scipy import special
from torch import Tensor

from troth.errors import UserError

#: No normal made from a 31-bit uniform exceeds sqrt(62 log 2) = 6.5555.
REACH = 6.5625

#: How far a fit may be from the truth, relative to max(1, |log draw|): half a unit in the last place of a float32.
_TOLERANCE = 2.0**-24

#: Chebyshev nodes of a fit, several to a coefficient.
_NODES = 128
_MOST = 28

#: From here on the cube root of a draw is normal to far below the resolution of a float32 logarithm.
_LARGE = 1e6

_Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True)
class Quantile:
    """``numerator(z) / denominator(z)``, equal to ``log F_a^-1(Phi(z))`` for ``|z| <= REACH``.

    Attributes:
        numerator: coefficients from the constant upwards.
        denominator: the constant and the linear coefficient of a quadratic whose leading one is 1; empty for none.
    """

    numerator: tuple[float, ...]
    denominator: tuple[float, ...]

    def __call__(self, z: Tensor, out: Tensor, work: Tensor, spare: Tensor) -> None:
        """Write the quantile of every ``z`` to ``out``; float32 tensors of one shape, the last two are overwritten.

        A sweep a coefficient. None of these operations depends on where in memory an element lies.
        """
        *lower, last, first = z.new_tensor(self.numerator).unbind()
        torch.mul(z, first, out=work).add_(last)
        for coefficient in reversed(lower[1:]):
            torch.addcmul(coefficient, work, z, out=work)
        if not self.denominator:
            torch.addcmul(lower[0], work, z, out=out)
            return
        torch.addcmul(lower[0], work, z, out=work)
        constant, linear = z.new_tensor(self.denominator).unbind()
        torch.add(z, linear, out=spare)
        torch.addcmul(constant, spare, z, out=spare)
        torch.div(work, spare, out=out)


def checked_shape(shape: float) -> float:
    """Return ``shape`` as a float.

    Raises:
        UserError: unless it is positive and finite.
    """
    shape = float(shape)
    if not 0 < shape < math.inf:
        raise UserError(f"the shape of a Gamma distribution is a positive number, not {shape}")
    return shape


@torch.no_grad()
def log_gamma_quantile(z: Float[Tensor, "*any"], shape: float) -> Float[Tensor, "*any"]:
    """Return ``log F_shape^-1(Phi(z))`` in float32: the quantile of log Ga(shape, 1) that ``z`` is of a normal.

    Args:
        z: float32 normals, ``|z| <= 6.5625``.
        shape: of the Gamma distribution, at least 1.

    Raises:
        ValueError: for a shape below 1 (draws of such shapes take a second uniform, see ``PairDraws``).
    """
    quantile, out = fitted(checked_shape(shape)), torch.empty_like(z)
    quantile(z, out, torch.empty_like(z), torch.empty_like(z))
    return out


@functools.lru_cache(maxsize=256)
def fitted(shape: float) -> Quantile:
    """Return the cheapest quantile function of Ga(``shape``, 1) that meets the tolerance; ``shape >= 1``.

    Takes up to 0.1 s, once a shape.
    """
    if shape < 1:
        raise ValueError(f"the quantile is fitted for shapes from 1, not {shape}")
    nodes = np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    truth = _log_quantile(shape, REACH * nodes)
    weight = 1 / np.maximum(1, np.abs(truth))
    fits = (_fit(nodes, truth, weight, *degrees) for degrees in _candidates())
    best = (math.inf, Quantile((), ()))
    for error, quantile in fits:
        if error < best[0]:
            best = (error, quantile)
        if error <= _TOLERANCE:
            break
    return best[1]


def _candidates() -> Iterator[tuple[int, int]]:
    """Yield degrees of numerator and denominator, the cheapest first.

    A quadratic costs three sweeps and, by the rounding of one polynomial more, about as much again in accuracy.
    """
    for cost in range(3, _MOST):
        if cost <= 18:  # beyond, coefficients of alternating sign cancel too many digits
            yield cost, 0
        if cost >= 11:
            yield cost - 5, 2


def _log_quantile(shape: float, z: _Array) -> _Array:
    """``log F^-1(Phi(z))`` in float64, from the nearer tail.

    Source, for large shapes, where the special functions lose their digits: Wilson and Hilferty (1931), "The
    distribution of chi-square".
    """
    if shape > _LARGE:
        return np.asarray(math.log(shape) + 3 * np.log1p(z / (3 * math.sqrt(shape)) - 1 / (9 * shape)))
    lower = special.gammaincinv(shape, special.ndtr(np.minimum(z, 0)))
    upper = special.gammainccinv(shape, special.ndtr(-np.maximum(z, 0)))
    return np.asarray(np.log(np.where(z < 0, lower, upper)))


def _fit(nodes: _Array, truth: _Array, weight: _Array, top: int, bottom: int) -> tuple[float, Quantile]:
    """Fit degrees ``(top, bottom)`` by least squares; return the largest weighted error at the nodes, and the fit.

    With a denominator: Sanathanan and Koerner (1963), the linearised problem solved a few times, weighted by the
    denominator of the time before.
    """
    basis = chebyshev.chebvander(nodes, max(top, bottom))
    best = (math.inf, Quantile((), ()))
    denominator = np.ones_like(nodes)
    for _ in range(4 if bottom else 1):
        columns = np.hstack([basis[:, : top + 1], -truth[:, None] * basis[:, 1 : bottom + 1]])
        scaled = weight / denominator
        solution = np.linalg.lstsq(columns * scaled[:, None], truth * scaled, rcond=None)[0]
        above, below = solution[: top + 1], np.concatenate([[1.0], solution[top + 1 :]])
        denominator = basis[:, : bottom + 1] @ below
        if denominator.min() <= 0 or (bottom and below[-1] <= 0):
            break
        error = float(np.max(np.abs(basis[:, : top + 1] @ above / denominator - truth) * weight))
        if error < best[0]:
            best = (error, _in_powers(above, below))
    return best


def _in_powers(above: _Array, below: _Array) -> Quantile:
    """Return Chebyshev coefficients on ``z / REACH`` as those of powers of ``z``, the denominator's leading one 1."""
    top, bottom = (chebyshev.cheb2poly(part) / REACH ** np.arange(len(part)) for part in (above, below))
    return Quantile(tuple((top / bottom[-1]).tolist()), tuple((bottom / bottom[-1]).tolist()[:-1]))
