"""Two Gaussians under one heap of numbers: similarities or losses of right and of wrong pairs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

#: Fewer different values than this and two Gaussians would be fitted to single points.
MINIMUM_VALUES = 20


class TwoGaussians(NamedTuple):
    """A mixture of two Gaussians, the one with the smaller mean first.

    Attributes:
        lower_weight: the lower one's share, in (0, 1).
        lower_mean: its mean.
        upper_mean: the other's.
        lower_deviation: its standard deviation.
        upper_deviation: the other's.
    """

    lower_weight: float
    lower_mean: float
    upper_mean: float
    lower_deviation: float
    upper_deviation: float

    @property
    def separation(self) -> float:
        """Ashman's D: the distance of the means in root-mean-square widths; below 2 the two overlap heavily."""
        spread = math.sqrt((self.lower_deviation**2 + self.upper_deviation**2) / 2)
        return (self.upper_mean - self.lower_mean) / spread

    def lower_posterior(self, values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Return the float64 probability that each value came from the lower Gaussian; it never rises with the value.

        A Gaussian mixture's posterior need not be monotone in the tails (a wider lower component wins again above the
        higher one); values are held between the two means, between which it is monotone. NaN stays NaN.
        """
        held = values.double().clamp(self.lower_mean, self.upper_mean)
        lower = math.log(self.lower_weight / self.lower_deviation) - 0.5 * self._squares(held, lower=True)
        upper = math.log((1 - self.lower_weight) / self.upper_deviation) - 0.5 * self._squares(held, lower=False)
        return torch.sigmoid(lower - upper)

    def _squares(self, values: Tensor, *, lower: bool) -> Tensor:
        mean = self.lower_mean if lower else self.upper_mean
        deviation = self.lower_deviation if lower else self.upper_deviation
        return ((values - mean) / deviation) ** 2


def fit_two_gaussians(values: npt.NDArray[np.float64], *, seed: int = 0) -> TwoGaussians | None:
    """Fit two Gaussians by expectation-maximisation (scikit-learn, 4 starts from k-means).

    Args:
        values: ``(N,)``, finite.
        seed: of the starting points.

    Returns:
        The mixture; None if there are fewer than :data:`MINIMUM_VALUES` different values, or if one Gaussian describes
        them as well (by the Bayesian information criterion).
    """
    from sklearn.mixture import GaussianMixture  # takes a second to import, and few runs fit one

    if np.unique(values).size < MINIMUM_VALUES:
        return None
    # Unit variance first: scikit-learn adds an absolute 1e-6 to variances, which close values would drown in.
    centre, width = float(values.mean()), float(values.std())
    column = ((values - centre) / width)[:, None]
    one = GaussianMixture(1, random_state=seed).fit(column)
    two = GaussianMixture(2, n_init=4, random_state=seed, max_iter=500).fit(column)
    low, high = (int(component) for component in np.argsort(two.means_[:, 0]))
    weight = float(two.weights_[low])
    if not two.converged_ or not 0 < weight < 1 or two.bic(column) >= one.bic(column):
        return None
    return TwoGaussians(
        lower_weight=weight,
        lower_mean=centre + width * float(two.means_[low, 0]),
        upper_mean=centre + width * float(two.means_[high, 0]),
        lower_deviation=width * math.sqrt(float(two.covariances_[low, 0, 0])),
        upper_deviation=width * math.sqrt(float(two.covariances_[high, 0, 0])),
    )
