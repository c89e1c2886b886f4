"""Multilayer perceptrons on vectors: for features of the user's own, and for the linear models of theory."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from troth.encoders.base import ImageTransform, Tokenize
from troth.encoders.features import FeatureEncoder
from troth.encoders.towers import seeded
from troth.errors import UserError
from troth.types import STRICT

Count = Annotated[int, Field(gt=0)]


class Perceptron(nn.Sequential):
    """Linear maps with ReLU between them, initialised as torch does.

    Args:
        dims: dimensions of the input, of the hidden layers and of the output: at least two numbers.
        bias: whether the maps have biases.
    """

    def __init__(self, *dims: int, bias: bool = True) -> None:
        layers: list[nn.Module] = []
        for taken, given in pairwise(dims):
            layers += [nn.Linear(taken, given, bias=bias), nn.ReLU()]
        super().__init__(*layers[:-1])


class PlainEncoder(FeatureEncoder):
    """Two perceptrons. Its "images" are ``(B, image_dim)`` vectors, its "texts" ``(B, text_dim)``.

    Args:
        config: the configuration it was built from.
        image_dim: dimension of the image vectors.
        text_dim: dimension of the text vectors.
    """

    def __init__(self, config: Plain, image_dim: int, text_dim: int) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = config.embed_dim
        self.architecture = repr(config)
        self.image_size = 1
        self.image_feature_dim = image_dim
        self.text_feature_dim = text_dim
        self.preprocessing = self.tokenization = "vectors as they are"
        self.image_tower = Perceptron(image_dim, *config.hidden, config.embed_dim, bias=config.bias)
        self.text_tower = Perceptron(text_dim, *config.hidden, config.embed_dim, bias=config.bias)

    def encode_image(self, image: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """Return raw embeddings of image vectors."""
        embeddings: Tensor = self.image_tower(image)
        return embeddings

    def encode_text(self, text: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """Return raw embeddings of text vectors."""
        embeddings: Tensor = self.text_tower(text)
        return embeddings

    def image_transform(self, train: bool) -> ImageTransform:
        """Raise a UserError: a plain encoder takes vectors, not pictures."""
        raise UserError("a plain encoder takes vectors, not pictures", where="model.kind", remedy=_REMEDY)

    @property
    def tokenize(self) -> Tokenize:
        """Raise a UserError: a plain encoder takes vectors, not tokens."""
        raise UserError("a plain encoder takes vectors, not words", where="model.kind", remedy=_REMEDY)


_REMEDY = 'train heads, a small model or open_clip towers on pictures, or use a source of kind "vectors"'


@dataclass(frozen=True, config=STRICT)
class Plain:
    """A multilayer perceptron for each modality, on the vectors that the source carries.

    Attributes:
        embed_dim: dimension of the embeddings.
        hidden: widths of the hidden layers, each followed by a ReLU; an empty list is one linear map.
        bias: whether the linear maps have biases.
        image_dim: dimension of the image vectors; None: that of the training source's.
        text_dim: dimension of the text vectors; None: that of the training source's.
    """

    kind: Literal["plain"] = "plain"
    embed_dim: Count = 16
    hidden: tuple[Count, ...] = (16,)
    bias: bool = True
    image_dim: Count | None = None
    text_dim: Count | None = None

    def build(self, seed: int = 0) -> PlainEncoder:
        """Build the encoder, weights drawn from ``seed``.

        Raises:
            UserError: if a dimension is None, which only the data can say.
        """
        for field, dim in (("image_dim", self.image_dim), ("text_dim", self.text_dim)):
            if dim is None:
                raise UserError("no data to take the dimension from", where=field, remedy="say it as a number")
        assert self.image_dim is not None
        assert self.text_dim is not None
        with seeded(seed):
            return PlainEncoder(self, self.image_dim, self.text_dim)
