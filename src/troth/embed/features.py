"""Features of frozen encoders: every picture and every distinct caption once, then from the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from troth.data.ledger import LedgerEntry
from troth.data.source import Source
from troth.embed.cache import CacheEntry, CacheKey, FeatureCache
from troth.embed.pictures import DECODER, Decoded, PictureBatch, picture_batches, picture_identity
from troth.encoders import FrozenImageEncoder, FrozenTextEncoder

#: Called with (done, in all) while something is encoded.
Progress = Callable[[int, int], None]

#: Pictures a frozen tower takes at once: few enough that their activations stay in a CPU's caches.
_PICTURES = 32


@dataclass(frozen=True)
class CaptionTable:
    """Distinct captions and the row each has.

    Attributes:
        captions: the distinct captions, in the order in which they were first met.
    """

    captions: tuple[str, ...]
    _row_of: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_row_of", {caption: row for row, caption in enumerate(self.captions)})

    def __contains__(self, caption: object) -> bool:
        return caption in self._row_of

    def rows(self, captions: Iterable[str]) -> Int64[Tensor, " B"]:
        """Return the row of each caption. A caption that was not encoded is a ``KeyError``: a fault of the caller."""
        return torch.tensor([self._row_of[caption] for caption in captions], dtype=torch.int64)


@dataclass(frozen=True)
class FrozenFeatures(CaptionTable):
    """What frozen encoders make of a source.

    Attributes:
        image_features: ``(N, F)`` float32, row = sample id; zero where the picture could not be read.
        valid: ``(N,)`` whether the picture could be read.
        captions: the distinct captions of the source and the extra ones.
        text_features: ``(C, F')`` float32, row = place in ``captions``.
        ledger: an entry for each picture that could not be read.
    """

    image_features: Float[Tensor, "N F"]
    valid: Bool[Tensor, " N"]
    text_features: Float[Tensor, "C G"]
    ledger: tuple[LedgerEntry, ...]


def distinct_captions(source: Source, extra_captions: Iterable[str] = ()) -> tuple[str, ...]:
    """Return all captions of ``source`` and then the extra ones, each once, in the order they are met."""
    known = dict.fromkeys(caption for index in range(len(source)) for caption in source.captions(index))
    known.update(dict.fromkeys(extra_captions))
    return tuple(known)


def hash_texts(texts: Sequence[str]) -> str:
    """Return the sha256 (hex) of texts in their order."""
    return hashlib.sha256(json.dumps(list(texts), ensure_ascii=True).encode()).hexdigest()


def collect_images(
    num_samples: int,
    batches: Iterator[PictureBatch],
    encode: Callable[[Tensor], Float[Tensor, "B F"]],
    dim: int,
    missing: frozenset[str],
    on_progress: Progress | None = None,
) -> CacheEntry:
    """Encode batches of pictures into one ``(num_samples, dim)`` tensor with ``valid`` and the ledger's entries.

    ``missing`` holds the keys that could not be read when the cache key was made. Should others fail now, the result is
    not kept: what a file server did not hand over this once may be there the next time.
    """
    features = torch.zeros(num_samples, dim)
    valid = torch.zeros(num_samples, dtype=torch.bool)
    entries: list[LedgerEntry] = []
    done = 0
    for batch in batches:
        if batch.images is not None:
            features[batch.rows] = encode(batch.images)
            valid[batch.rows] = True
        entries.extend(batch.entries)
        done += batch.size
        if on_progress is not None:
            on_progress(done, num_samples)
    ledger = json.dumps([asdict(entry) for entry in entries])
    lasting = all(entry.reason != "missing-file" or entry.key in missing for entry in entries)
    return CacheEntry({"features": features, "valid": valid}, {"ledger": ledger}, lasting)


def ledger_of(entry: CacheEntry) -> tuple[LedgerEntry, ...]:
    """Return the ledger entries that :func:`collect_images` noted."""
    return tuple(LedgerEntry(**fields) for fields in json.loads(entry.notes["ledger"]))


def frozen_features(
    source: Source,
    image_encoder: FrozenImageEncoder,
    text_encoder: FrozenTextEncoder,
    cache: FeatureCache | None = None,
    extra_captions: Iterable[str] = (),
    *,
    num_workers: int | None = None,
    on_progress: Progress | None = None,
) -> FrozenFeatures:
    """Encode all pictures and all distinct captions of ``source`` once; a second call reads the cache.

    Args:
        source: the samples.
        image_encoder: encodes the pictures.
        text_encoder: encodes the captions.
        cache: where features are kept; None for the default folder.
        extra_captions: further texts that will be needed (a noise reserve's captions, class prompts).
        num_workers: processes that decode pictures; see :func:`~troth.embed.pictures.picture_batches`.
        on_progress: called with (pictures and captions done, pictures and captions in all); not at all on what is
            cached.

    Returns:
        The features. Pictures that cannot be read are not an error: ``valid`` is False and the ledger says why.
    """
    cache = cache or FeatureCache()
    identity = picture_identity(source)
    captions = distinct_captions(source, extra_captions)
    total = len(source) + len(captions)

    def report(offset: int) -> Progress | None:
        return None if on_progress is None else lambda done, _: on_progress(offset + done, total)

    def encode_images() -> CacheEntry:
        transform = Decoded(image_encoder.transform, image_encoder.image_size)
        batches = picture_batches(source, transform, _PICTURES, num_workers)
        return collect_images(
            len(source), batches, image_encoder.encode_pixels, image_encoder.dim, identity.missing, report(0)
        )

    images = cache.get_or_compute(_image_key(image_encoder, identity.digest), encode_images)
    text_features = frozen_texts(captions, text_encoder, cache, on_progress=report(len(source)))
    return FrozenFeatures(
        captions=captions,
        image_features=images.tensors["features"],
        valid=images.tensors["valid"],
        text_features=text_features,
        ledger=ledger_of(images),
    )


def frozen_texts(
    texts: Sequence[str],
    text_encoder: FrozenTextEncoder,
    cache: FeatureCache | None = None,
    *,
    on_progress: Progress | None = None,
) -> Float[Tensor, "C F"]:
    """Return the frozen features of ``texts`` in their order, computed once and then read from the cache.

    ``on_progress`` is called with (texts done, texts in all) while they are computed.
    """
    entry = (cache or FeatureCache()).get_or_compute(
        _text_key(text_encoder, texts), lambda: CacheEntry({"features": text_encoder.encode(texts, on_progress)})
    )
    return entry.tensors["features"]


def share_features(
    features: FrozenFeatures,
    rows: Int64[Tensor, " M"],
    source: Source,
    image_encoder: FrozenImageEncoder,
    text_encoder: FrozenTextEncoder,
    cache: FeatureCache,
) -> None:
    """Cache the features of a source whose pictures and captions another one has, without encoding them again.

    :func:`frozen_features` of ``source`` then reads what this wrote. They are the other's to the last bits only: how
    many were encoded at a time may have differed.

    Args:
        features: of the other source, all of whose pictures could be read.
        rows: ``(M,)`` which sample of the other each of the source has the picture of.
        source: M samples.
        image_encoder: made the picture features.
        text_encoder: made the text features.
        cache: where to keep them; what is there already stays.
    """
    assert bool(features.valid.all()), "an unreadable picture has no features to share"
    captions = distinct_captions(source)
    key = _image_key(image_encoder, picture_identity(source).digest)
    if cache.load(key) is None:
        tensors = {
            "features": features.image_features[rows],
            "valid": torch.ones(len(rows), dtype=torch.bool),
        }
        cache.store(key, CacheEntry(tensors, {"ledger": "[]"}))
    key = _text_key(text_encoder, captions)
    if cache.load(key) is None:
        cache.store(key, CacheEntry({"features": features.text_features[features.rows(captions)]}))


def _image_key(encoder: FrozenImageEncoder, digest: str) -> CacheKey:
    return CacheKey(
        weights=encoder.weights_hash,
        data=digest,
        preprocessing=f"{DECODER}; {encoder.name}: {encoder.preprocessing}",
        dtype=encoder.precision,
    )


def _text_key(encoder: FrozenTextEncoder, texts: Sequence[str]) -> CacheKey:
    return CacheKey(
        weights=encoder.weights_hash, data=hash_texts(texts), tokenizer=encoder.tokenization, dtype=encoder.precision
    )
