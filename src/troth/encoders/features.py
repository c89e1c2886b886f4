"""What encoders have in common whose inputs are features and not pictures and words."""

from __future__ import annotations

from troth.encoders.base import DualEncoder


class FeatureEncoder(DualEncoder):
    """A dual encoder of vectors: "images" are ``(B, image_feature_dim)``, "texts" ``(B, text_feature_dim)``.

    Attributes:
        image_feature_dim: dimension of the image features it takes.
        text_feature_dim: dimension of the text features it takes.
    """

    image_feature_dim: int
    text_feature_dim: int
