"""How many class tokens the towers have, and how wide each one's embedding is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from troth.types import STRICT

Count = Annotated[int, Field(gt=0)]
#: ``auto`` is resolved when towers are built.
TextAttention = Literal["auto", "bidirectional", "causal"]
#: Which weights of a model come from training: none, those of the image tower before its projection, or all.
Trained = Literal["nothing", "image trunk", "everything"]


@dataclass(frozen=True, config=STRICT)
class Multi:
    """``m`` class tokens in each tower, whose ``n``-dimensional embeddings are the spheres of an oblique manifold.

    .. code-block:: text

        image tower:  class token 1 ... class token m   patch 1 ... patch P
        text tower:   first token 1 ... first token m   the other words        padding      "bidirectional"
                      the words   end token 1 ... end token m                  padding      "causal"

        features of a sample = (W z_1, ..., W z_m)      z_k: the last layer's k-th class token, W: n rows, shared

    Every class token has a position of its own. In an image tower each is an embedding of its own, too; in a text
    tower all are the embedding of one word, told apart by their positions. The features are ``m n`` wide, token ``k``
    at dimensions ``[k n, (k + 1) n)``, which is what ``geometry.Oblique(sub_dim=n, num_spheres=m)`` takes.

    Weights that were trained with one class token start as its token 0: same embedding, position and projection, the
    added ones are drawn as a tower's own are. With ``num_tokens = 1`` such a tower computes what it did, but for two:
    a tower that averaged its words or patches is read at its class tokens instead, and a text tower of open_clip's that
    is told to be ``bidirectional`` at its first token, which sees no padding.

    Attributes:
        sub_dim: ``n``, dimensions of a token's embedding. None: the ``embed_dim`` of the model, with the projection
            that its weights bring. A model whose ``embed_dim`` is another gets a new projection.
        num_tokens: ``m``. The defaults of the two are not the paper's Multi(32, 16), which needs ``sub_dim = 32``.
        text_attention: who sees whom in the text tower. ``bidirectional``, the paper's: every token sees all words and
            all class tokens, none sees padding; the class tokens are copies of the first token. ``causal``: every token
            sees those before it; the class tokens are copies of the end-of-text token right behind it, so that each
            sees the whole text, and token 0 sees what it would see alone. ``auto``: ``causal`` for a causal tower with
            trained weights, whose token 0 keeps its meaning; ``bidirectional`` otherwise. It is refused for open_clip's
            transformers with trained weights that are not causal (MobileCLIP2's): neither of the two is what they did.

    Source: "Design of the topology for contrastive visual-textual alignment" (submission to TMLR), section 3.1
    (multi-token oblique implementation) and figure 2; Multi(n, m) in its tables is ``sub_dim = n, num_tokens = m``.
    Its text says that text class tokens differ by their absolute positions and image class tokens by their draw;
    projections start at N(0, 1 / width), as CLIP's.
    """

    sub_dim: Count | None = None
    num_tokens: Count = 16
    text_attention: TextAttention = "auto"

    def token_dim(self, embed_dim: int) -> int:
        """Return ``n`` for a model of ``embed_dim`` dimensions."""
        return embed_dim if self.sub_dim is None else self.sub_dim
