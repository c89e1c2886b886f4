"""What every pair of towers offers, whatever is inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float, Int64
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL import Image

#: Turns one RGB picture into the ``(3, H, W)`` tensor a tower takes.
ImageTransform = Callable[["Image.Image"], Tensor]
#: Turns captions into the ``(B, L)`` token ids a tower takes.
Tokenize = Callable[[Sequence[str]], Int64[Tensor, "B L"]]


class DualEncoder(nn.Module, ABC):
    """An image tower and a text tower that end in the same dimension.

    The features are raw: neither normalised nor scaled. Geometry, scale and bias belong to
    :class:`~troth.encoders.contrastive.ContrastiveModel`.

    Attributes:
        embed_dim: the dimension ``D`` of both towers' features.
        num_tokens: class tokens of each tower, whose embeddings lie side by side in its features.
        image_size: the side of the square pictures the image tower takes, in pixels.
        pretrained_scale: the multiplier that came with pretrained weights, or None.
        pretrained_bias: the logit bias that came with pretrained weights, or None.
        preprocessing: how pictures are prepared for evaluation, for people and cache keys.
        tokenization: how captions are prepared, for people and cache keys.
        architecture: what is done with the weights, for cache keys.
    """

    embed_dim: int
    num_tokens: int = 1
    image_size: int
    pretrained_scale: float | None = None
    pretrained_bias: float | None = None
    preprocessing: str
    tokenization: str
    architecture: str

    @abstractmethod
    def encode_image(self, image: Tensor) -> Float[Tensor, "B D"]:
        """Return raw features of ``image``: ``(B, 3, H, W)`` pictures, or ``(B, F)`` features for heads."""

    @abstractmethod
    def encode_text(self, text: Tensor) -> Float[Tensor, "B D"]:
        """Return raw features of ``text``: ``(B, L)`` token ids, or ``(B, F)`` features for heads."""

    @abstractmethod
    def image_transform(self, train: bool) -> ImageTransform:
        """Return the transform from an RGB picture to a tensor.

        Args:
            train: whether to augment. The training transform draws from torch's global generator, so that a loader
                makes it repeatable by seeding that generator from the sample's place in training.
        """

    @property
    @abstractmethod
    def tokenize(self) -> Tokenize:
        """The tokeniser: a list of captions to ``(B, L)`` int64 ids, cut to the tower's context length."""

    def forward(self, image: Tensor, text: Tensor) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """Return the raw features of both modalities."""
        return self.encode_image(image), self.encode_text(text)
