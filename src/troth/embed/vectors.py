"""Features that nobody has to compute: the vectors that sources carry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from troth.data.source import Source
from troth.data.vectors import carries_vectors, paired_vectors
from troth.embed.features import FrozenFeatures


def carried_features(source: Source, reserve: Source | None = None) -> FrozenFeatures:
    """Return the vectors of a source, and the captions' of a reserve, as frozen features; every sample is valid.

    Raises:
        UserError: if one of them carries no vectors.
    """
    vectors = paired_vectors(source, reserve)
    return FrozenFeatures(
        captions=vectors.captions,
        image_features=vectors.image,
        valid=torch.ones(len(source), dtype=torch.bool),
        text_features=vectors.text,
        ledger=(),
    )


class CarriedVectors:
    """The vectors of the sources that were met, by source and by caption.

    A source of vectors calls each text vector by a name, its caption. What asks for captions, as tasks and audits do,
    can be answered for the sources met before, and for these alone.
    """

    def __init__(self) -> None:
        self._features: dict[str, FrozenFeatures] = {}
        self._text: dict[str, Float[Tensor, " F"]] = {}

    def meet(self, source: Source) -> FrozenFeatures | None:
        """Return the vectors of a source, and remember them; None if it carries none."""
        if not carries_vectors(source):
            return None
        key = source.fingerprint
        if key not in self._features:
            features = carried_features(source)
            self._features[key] = features
            self._text.update(zip(features.captions, features.text_features.unbind(), strict=True))
        return self._features[key]

    def texts(self, captions: Sequence[str]) -> Float[Tensor, "C F"] | None:
        """Return the vectors of captions in their order; None if there are none, or one belongs to no source met."""
        if not captions or not all(caption in self._text for caption in captions):
            return None
        return torch.stack([self._text[caption] for caption in captions])
