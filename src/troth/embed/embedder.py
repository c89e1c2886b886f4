"""What a task asks for points: one trained model, with everything it computed before close at hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from troth.data.ledger import Ledger
from troth.data.source import Source
from troth.embed.cache import FeatureCache, Uncached
from troth.embed.features import FrozenFeatures, Progress, frozen_features, share_features
from troth.embed.pictures import picture_identity
from troth.embed.trained import Precision, embed_source, embed_text_features, embed_texts
from troth.embed.vectors import CarriedVectors
from troth.encoders import ContrastiveModel, HeadsEncoder
from troth.geometry import Geometry

if TYPE_CHECKING:
    from troth.encoders import FrozenImageEncoder, FrozenTextEncoder, Heads


class FrozenEncoders:
    """The frozen encoders of a heads model, loaded when first needed, and the features they gave so far.

    Shared by all embedders of a run, so that evaluating after every epoch touches no file.

    Args:
        config: names the encoders.
        cache: where features are kept between runs; None for the default folder.
        on_progress: called with (done, in all) while something is encoded.
        num_workers: processes that decode pictures; None chooses.
    """

    def __init__(
        self,
        config: Heads,
        cache: FeatureCache | None = None,
        *,
        on_progress: Progress | None = None,
        num_workers: int | None = None,
    ) -> None:
        self.config = config
        self.cache = cache or FeatureCache()
        self._on_progress = on_progress
        self._num_workers = num_workers
        self._features: dict[tuple[str, tuple[str, ...]], FrozenFeatures] = {}

    @cached_property
    def _encoders(self) -> tuple[FrozenImageEncoder, FrozenTextEncoder]:
        return self.config.open_encoders()

    @property
    def text_encoder(self) -> FrozenTextEncoder:
        """The frozen text encoder."""
        return self._encoders[1]

    def features(self, source: Source, extra_captions: Sequence[str] = ()) -> FrozenFeatures:
        """Return the frozen features of a source and of further captions."""
        key = (picture_identity(source).digest, tuple(extra_captions))
        if key not in self._features:
            self._features[key] = frozen_features(
                source,
                *self._encoders,
                self.cache,
                extra_captions,
                num_workers=self._num_workers,
                on_progress=self._on_progress,
            )
        return self._features[key]

    def share(self, whole: Source, rows: Int64[Tensor, " M"], source: Source) -> None:
        """Cache the features of ``source``: the pictures of ``rows`` of ``whole``, with captions that occur there.

        See :func:`~troth.embed.features.share_features`.
        """
        share_features(self.features(whole), rows, source, *self._encoders, self.cache)


class Embedder:
    """Points of one trained model, for tasks and audits.

    Args:
        model: the trained model, on any device.
        cache: where points of towers are kept; None keeps nothing, which is right in the middle of a training.
        frozen: for heads, what their frozen encoders gave so far; None loads them when needed.
        precision: ``bfloat16`` runs towers under autocast; points are float32 either way.
        num_workers: processes that decode pictures; None chooses.

    Attributes:
        ledger: the pictures that could not be read so far.
    """

    def __init__(
        self,
        model: ContrastiveModel,
        cache: FeatureCache | None = None,
        *,
        frozen: FrozenEncoders | None = None,
        precision: Precision = "float32",
        num_workers: int | None = None,
    ) -> None:
        self.model = model
        self._cache = cache or Uncached()
        self._precision: Precision = precision
        self._num_workers = num_workers
        if frozen is None and isinstance(model.encoder, HeadsEncoder):
            frozen = FrozenEncoders(model.encoder.config, num_workers=num_workers)
        self._frozen = frozen
        self._carried = CarriedVectors()
        self.ledger = Ledger()
        self._texts: dict[tuple[str, ...], Float[Tensor, "C D"]] = {}
        self._images: dict[str, tuple[Int64[Tensor, " Q"], Float[Tensor, "Q D"]]] = {}

    @property
    def geometry(self) -> Geometry:
        """Where the points live."""
        return self.model.geometry

    def meet(self, source: Source) -> None:
        """Remember the text vectors of a source whose captions :meth:`texts` will be asked for, if it carries any.

        :meth:`images` does so too.
        """
        self._carried.meet(source)

    def images(self, source: Source) -> tuple[Int64[Tensor, " Q"], Float[Tensor, "Q D"]]:
        """Return the ids and points of all pictures of a source that can be read.

        Tasks on the same pictures share one pass over them, whatever opened the source.
        """
        features = self._carried.meet(source)
        key = source.fingerprint if features is not None else picture_identity(source).digest
        if key not in self._images:
            self._images[key] = self._embedded(source, features)
        return self._images[key]

    def _embedded(
        self, source: Source, features: FrozenFeatures | None
    ) -> tuple[Int64[Tensor, " Q"], Float[Tensor, "Q D"]]:
        if features is None and self._frozen is not None:
            features = self._frozen.features(source)
        embedded = embed_source(
            self.model,
            source,
            self._cache,
            features=features,
            captions=False,
            precision=self._precision,
            num_workers=self._num_workers,
        )
        self.ledger.extend(embedded.ledger)
        index = torch.nonzero(embedded.valid)[:, 0]
        return index, embedded.image[index]

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "C D"]:
        """Return one point for every text, in their order; the texts may be names of vectors of the sources met."""
        key = tuple(texts)
        if key not in self._texts:
            vectors = self._carried.texts(key)
            if vectors is not None:
                self._texts[key] = embed_text_features(self.model, vectors, self._precision)
                return self._texts[key]
            self._texts[key] = embed_texts(
                self.model,
                texts,
                self._cache if self._frozen is None else self._frozen.cache,
                text_encoder=None if self._frozen is None else self._frozen.text_encoder,
                precision=self._precision,
            )
        return self._texts[key]
