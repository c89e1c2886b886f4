"""Embeddings of a trained model: the one way from data to vectors. Tasks and audits start from these tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from troth.data.ledger import LedgerEntry
from troth.data.source import Source
from troth.data.vectors import carries_vectors
from troth.embed.cache import CacheEntry, CacheKey, FeatureCache
from troth.embed.features import (
    CaptionTable,
    FrozenFeatures,
    Progress,
    collect_images,
    distinct_captions,
    frozen_features,
    frozen_texts,
    hash_texts,
    ledger_of,
)
from troth.embed.pictures import DECODER, picture_batches, picture_identity, picture_transform
from troth.embed.vectors import carried_features
from troth.encoders import (
    ContrastiveModel,
    DualEncoder,
    FeatureEncoder,
    FrozenTextEncoder,
    HeadsEncoder,
    OpenClipEncoder,
    hash_module,
)
from troth.errors import UserError

Precision = Literal["float32", "bfloat16"]

#: Rows of frozen features that heads take at once: they are small, so many.
_FEATURE_ROWS = 4096


@dataclass(frozen=True)
class SourceEmbeddings(CaptionTable):
    """What a trained model makes of a source: points of its geometry, on the CPU.

    Attributes:
        image: ``(N, D)`` image points, row = sample id; zero where the picture could not be read.
        valid: ``(N,)`` whether the picture could be read.
        captions: the distinct captions of the source and the extra ones.
        text: ``(C, D)`` text points, row = place in ``captions``.
        ledger: an entry for each picture that could not be read.
    """

    image: Float[Tensor, "N D"]
    valid: Bool[Tensor, " N"]
    text: Float[Tensor, "C D"]
    ledger: tuple[LedgerEntry, ...]


@contextlib.contextmanager
def _inference(model: ContrastiveModel, precision: Precision) -> Iterator[torch.device]:
    """Evaluation mode without gradients, under autocast if asked; the model's mode is restored."""
    device = model.log_scale.device
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield device
    finally:
        # Module by module: a frozen batch norm inside a training model stays in evaluation mode.
        for module in training:
            module.training = True


def _identity(encoder: DualEncoder) -> str:
    """Return what tells an encoder from every other: its weights, and what is done with them."""
    return f"{hash_module(encoder)} {encoder.architecture}"


def _in_chunks(encode: Callable[[Tensor], Tensor], features: Tensor, dim: int) -> Tensor:
    chunks = [encode(features[start : start + _FEATURE_ROWS]) for start in range(0, len(features), _FEATURE_ROWS)]
    return torch.cat(chunks) if chunks else torch.empty(0, dim)


def embed_source(
    model: ContrastiveModel,
    source: Source,
    cache: FeatureCache | None = None,
    *,
    features: FrozenFeatures | None = None,
    extra_captions: Iterable[str] = (),
    captions: bool = True,
    precision: Precision = "float32",
    batch_size: int = 64,
    num_workers: int | None = None,
    on_progress: Progress | None = None,
) -> SourceEmbeddings:
    """Embed all pictures and all distinct captions of ``source`` with a trained model.

    Towers encode each picture once per set of weights and then read the cache. Heads run on the frozen features,
    which are computed once per source whatever the heads' weights, or on the vectors that the source carries.

    Args:
        model: the trained model, on any device and in any mode (which it keeps).
        source: the samples.
        cache: where embeddings and frozen features are kept; None for the default folder,
            :class:`~troth.embed.cache.Uncached` to keep nothing (weights in the middle of a training).
        features: for heads and plain encoders, the features of ``source`` if the caller has them already; they must
            hold ``extra_captions`` too.
        extra_captions: further texts to embed (class prompts, say).
        captions: whether towers embed the captions too; without, ``text`` is empty.
        precision: ``bfloat16`` runs the towers under autocast; points are float32 either way.
        batch_size: pictures, or captions, that towers take at once.
        num_workers: processes that decode pictures.
        on_progress: called with (done, in all) while pictures are encoded.

    Returns:
        The embeddings; unreadable pictures are in ``ledger`` and not ``valid``.

    Raises:
        UserError: if the source carries pictures and the model takes vectors, the reverse, or vectors of other
            dimensions.
    """
    cache = cache or FeatureCache()
    if isinstance(model.encoder, FeatureEncoder):
        if features is None and (carries_vectors(source) or not isinstance(model.encoder, HeadsEncoder)):
            features = carried_features(source)
        if features is None:
            assert isinstance(model.encoder, HeadsEncoder)
            image_encoder, text_encoder = model.encoder.config.open_encoders()
            features = frozen_features(
                source,
                image_encoder,
                text_encoder,
                cache,
                extra_captions,
                num_workers=num_workers,
                on_progress=on_progress,
            )
        return _embed_features(model, features, precision)

    encoder = model.encoder
    assert isinstance(encoder, OpenClipEncoder)
    weights, geometry = _identity(encoder), repr(model.geometry)
    identity = picture_identity(source)

    def encode_images() -> CacheEntry:
        batches = picture_batches(source, picture_transform(encoder, train=False), batch_size, num_workers)
        with _inference(model, precision) as device:

            def encode(images: Tensor) -> Tensor:
                return model.embed_image(images.to(device, memory_format=torch.channels_last)).cpu()

            return collect_images(len(source), batches, encode, encoder.embed_dim, identity.missing, on_progress)

    images = cache.get_or_compute(
        CacheKey(
            weights=weights,
            data=identity.digest,
            preprocessing=f"{DECODER}; {encoder.preprocessing}",
            geometry=geometry,
            dtype=precision,
        ),
        encode_images,
    )
    texts = distinct_captions(source, extra_captions) if captions else ()
    return SourceEmbeddings(
        captions=texts,
        image=images.tensors["features"],
        valid=images.tensors["valid"],
        text=_embed_tokens(model, texts, cache, weights, precision, batch_size),
        ledger=ledger_of(images),
    )


def embed_texts(
    model: ContrastiveModel,
    texts: Sequence[str],
    cache: FeatureCache | None = None,
    *,
    features: FrozenFeatures | None = None,
    text_encoder: FrozenTextEncoder | None = None,
    precision: Precision = "float32",
    batch_size: int = 256,
) -> Float[Tensor, "C D"]:
    """Embed ``texts`` with a trained model; ``(C, D)`` points in the order of ``texts``, on the CPU.

    Args:
        model: the trained model, on any device and in any mode (which it keeps).
        texts: any texts, repetitions allowed.
        cache: where embeddings and frozen features are kept; None for the default folder.
        features: for heads, frozen features that hold all ``texts``; they then come from there.
        text_encoder: for heads, the frozen encoder if the caller has loaded it already.
        precision: as in :func:`embed_source`.
        batch_size: texts that a tower takes at once.
    """
    cache = cache or FeatureCache()
    encoder = model.encoder
    if not isinstance(encoder, FeatureEncoder):
        return _embed_tokens(model, texts, cache, _identity(encoder), precision, batch_size)
    if features is not None:
        inputs = features.text_features[features.rows(texts)]
    elif not isinstance(encoder, HeadsEncoder):
        raise UserError(
            f"the model takes vectors, and {texts[0] if texts else 'a caption'!r} is a text",
            where="model.kind",
            remedy='score it on a source of vectors, by tasks of kind "matching" or "class-matching"',
        )
    else:
        if text_encoder is None:
            text_encoder = FrozenTextEncoder(encoder.config.text_encoder, precision=encoder.config.precision)
        inputs = frozen_texts(texts, text_encoder, cache)
    return embed_text_features(model, inputs, precision)


def embed_text_features(
    model: ContrastiveModel, text_features: Float[Tensor, "C F"], precision: Precision = "float32"
) -> Float[Tensor, "C D"]:
    """Embed text features, of a frozen encoder or carried by a source, with a model that takes such."""
    with _inference(model, precision) as device:
        return _in_chunks(lambda rows: model.embed_text(rows.to(device)).cpu(), text_features, model.encoder.embed_dim)


def _embed_features(model: ContrastiveModel, features: FrozenFeatures, precision: Precision) -> SourceEmbeddings:
    encoder = model.encoder
    assert isinstance(encoder, FeatureEncoder)
    frozen = isinstance(encoder, HeadsEncoder)
    for field, found, expected in (
        ("image_feature_dim", features.image_features.shape[1], encoder.image_feature_dim),
        ("text_feature_dim", features.text_features.shape[1], encoder.text_feature_dim),
    ):
        if found != expected:
            raise UserError(
                f"the features have {found} dimensions, the {'heads take' if frozen else 'model takes'} {expected}",
                where=f"model.{field if frozen else field.replace('_feature', '')}",
                remedy="use the encoders, or the vectors, that the model was trained with",
            )
    with _inference(model, precision) as device:
        image = _in_chunks(
            lambda rows: model.embed_image(rows.to(device)).cpu(), features.image_features, encoder.embed_dim
        )
    text = embed_text_features(model, features.text_features, precision)
    return SourceEmbeddings(
        captions=features.captions,
        # A picture that could not be read has zeros for features; the heads would make a point even of those.
        image=image * features.valid.unsqueeze(1),
        valid=features.valid,
        text=text,
        ledger=features.ledger,
    )


def _embed_tokens(
    model: ContrastiveModel,
    texts: Sequence[str],
    cache: FeatureCache,
    weights: str,
    precision: Precision,
    batch_size: int,
) -> Float[Tensor, "C D"]:
    encoder = model.encoder

    def compute() -> CacheEntry:
        with _inference(model, precision) as device:
            points = [
                model.embed_text(encoder.tokenize(list(texts[start : start + batch_size])).to(device)).cpu()
                for start in range(0, len(texts), batch_size)
            ]
        return CacheEntry({"features": torch.cat([torch.empty(0, encoder.embed_dim), *points])})

    key = CacheKey(
        weights=weights,
        data=hash_texts(texts),
        tokenizer=encoder.tokenization,
        geometry=repr(model.geometry),
        dtype=precision,
    )
    return cache.get_or_compute(key, compute).tensors["features"]
