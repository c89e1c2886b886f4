"""What a picture's caption should be like, going by the captions of pictures like it; and the reverse."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from troth.geometry import Sphere
from troth.similarity import topk

#: Of the softmax over neighbours' cosines.
_TEMPERATURE = 0.1


@dataclass(frozen=True)
class NeighbourPredictions:
    """Neighbours of every sample within each modality, found once; what they predict changes with the weights.

    .. code-block:: text

        predicted_i = sum_{n in neighbours(i)} a_in y_n / sum a_in  -  mean(y)      a_in = w_n exp(<x_i, x_n> / 0.1)
        score(i, j) = <predicted_i, y_j>

    for pictures by their neighbouring pictures, and for captions by their neighbouring captions. A sample is not its
    own neighbour.

    Source: the idea of a caption's neighbourhood as evidence is that of Zhang et al. 2025, "LEMoN: label error
    detection using multimodal neighbors"; this centred form with weights is ours.

    Attributes:
        image: ``(N, F)`` centred unit image features.
        text: ``(N, G)`` centred unit text features.
        near_image: ``(N, k)`` the nearest pictures of each picture, nearest first.
        near_text: ``(N, k)`` the nearest captions of each caption.
        closeness_image: ``(N, k)`` their cosines.
        closeness_text: ``(N, k)`` theirs.
    """

    image: Float[Tensor, "N F"]
    text: Float[Tensor, "N G"]
    near_image: Int64[Tensor, "N k"]
    near_text: Int64[Tensor, "N k"]
    closeness_image: Float[Tensor, "N k"]
    closeness_text: Float[Tensor, "N k"]

    @classmethod
    def of(
        cls, image_features: Float[Tensor, "N F"], text_features: Float[Tensor, "N G"], k: int
    ) -> NeighbourPredictions:
        """Find the ``k`` nearest of each sample in each modality, by cosine about the mean."""
        image, text = _centred(image_features), _centred(text_features)
        closeness_image, near_image = _others(image, k)
        closeness_text, near_text = _others(text, k)
        return cls(image, text, near_image, near_text, closeness_image, closeness_text)

    def by_other_images(self, image_features: Float[Tensor, "N F"]) -> NeighbourPredictions:
        """Return the same with other features of the same pictures, and by them other neighbours of each picture."""
        image = _centred(image_features)
        closeness, near = _others(image, self.near_image.shape[1])
        return replace(self, image=image, near_image=near, closeness_image=closeness)

    def predict(
        self, weights: Float[Tensor, " N"], k: int, rows: Int64[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n G"], Float[Tensor, "n F"]]:
        """Return the centred caption predicted for the pictures of ``rows`` and the picture for their captions.

        Of the ``k`` nearest, those of weight 0 do not count; where none counts, the prediction is minus the mean.
        """
        images = _mean_of(self.near_text[rows], self.closeness_text[rows], self.image, weights, k)
        return (
            self.mean_of_near_images(self.text, weights, k, rows) - self.text.mean(dim=0),
            images - self.image.mean(dim=0),
        )

    def mean_of_near_images(
        self, values: Float[Tensor, "N D"], weights: Float[Tensor, " N"], k: int, rows: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n D"]:
        """Return the mean of ``values`` over the ``k`` nearest pictures of those of ``rows``, as far as they count."""
        return _mean_of(self.near_image[rows], self.closeness_image[rows], values, weights, k)


def _centred(features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    return F.normalize(features - features.mean(dim=0), dim=-1)


def _others(points: Float[Tensor, "N D"], k: int) -> tuple[Float[Tensor, "N k"], Int64[Tensor, "N k"]]:
    """Return the nearest others of each point: the point itself is taken out wherever it stands among its equals."""
    closeness, near = topk(points, points, k + 1, Sphere())
    own = near == torch.arange(len(points)).unsqueeze(1)
    own[:, -1] |= ~own.any(dim=1)  # equals have crowded it out: drop the last one instead
    kept = (~own).nonzero()[:, 1].view(len(points), -1)
    return closeness.gather(1, kept), near.gather(1, kept)


def _mean_of(
    near: Int64[Tensor, "n K"],
    closeness: Float[Tensor, "n K"],
    values: Float[Tensor, "N D"],
    weights: Float[Tensor, " N"],
    k: int,
) -> Float[Tensor, "n D"]:
    near, closeness = near[:, :k], closeness[:, :k]
    votes = torch.softmax(closeness / _TEMPERATURE, dim=1) * weights.to(closeness)[near]
    votes = votes / votes.sum(dim=1, keepdim=True).clamp(min=1e-6)
    total = values.new_zeros(len(near), values.shape[1])
    for neighbour in range(near.shape[1]):  # (n, k, D) at once would be k times the data
        total.addcmul_(values[near[:, neighbour]], votes[:, neighbour : neighbour + 1])
    return total
