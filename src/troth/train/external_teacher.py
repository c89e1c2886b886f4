"""External teachers: features of the training samples that are clustered beside the student's own.

What a sample's row depends on is the sample alone, so that it is computed once and kept in the feature cache. A teacher
of texts reads the captions that the pairs *have*, wrong ones among them: the right captions would tell the student what
noise injection took away.

Source: Chen et al. 2022, "Prototypical contrastive language image pretraining" (ProtoCLIP), section 3 ("external
teacher"), and its released code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.clustering import pca
from troth.data import BatchNoise, CaptionAssignment, LedgerEntry, Source, caption_owner
from troth.embed import CacheEntry, CacheKey, FeatureCache, frozen_texts
from troth.embed.features import CaptionTable, Progress, ledger_of
from troth.encoders import FrozenTextEncoder
from troth.encoders.hashing import hash_tensors
from troth.errors import UserError
from troth.train.external_features import read_features
from troth.train.teacher import encode_pictures
from troth.train.teacher_tower import FrozenTower, TowerConfig, TowerPrecision, load_tower
from troth.types import STRICT

_Dims = Annotated[int, Field(gt=0)] | None


@plain_dataclass(frozen=True)
class TaughtData:
    """What an external teacher is built for.

    Attributes:
        source: the training pairs.
        noise: whose captions each of them has.
        reserve: where foreign captions come from, if any do.
        device: where encoders compute.
        cache: where features are kept between runs; None for the default folder.
        num_workers: processes that decode pictures; None chooses.
        on_progress: called with (done, in all) while something is encoded.
    """

    source: Source
    noise: CaptionAssignment | BatchNoise
    reserve: Source | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: FeatureCache | None = None
    num_workers: int | None = None
    on_progress: Progress | None = None


@plain_dataclass(frozen=True)
class ExternalFeatures:
    """What a teacher makes of the training samples.

    Attributes:
        features: ``(N, d)`` float32 on the CPU, row = sample id; zeros for a picture that could not be read.
        identity: the teacher and what is done with its features. The data they are of, and the noise, are part of the
            stream's own fingerprint.
        ledger: the pictures that could not be read.
    """

    features: Float[Tensor, "N d"]
    identity: str
    ledger: tuple[LedgerEntry, ...] = ()


@dataclass(frozen=True, config=STRICT)
class TextTeacher:
    """A frozen sentence encoder: the mean of the normalised features of a pair's captions.

    Pooled over a caption's own tokens, as the encoder was trained. The released code of the source takes the mean of
    RoBERTa-large over all 77 positions, those of padding among them.

    Attributes:
        encoder: ``minilm-l6`` (``pip install 'troth[demo]'``), or a sentence-transformers or transformers model: its
            folder, or ``hf-hub:NAME``.
        dims: principal components that are kept (:func:`troth.clustering.pca`); None keeps the features.
        precision: what it computes in; features are float32 either way.
    """

    kind: Literal["text"] = "text"
    encoder: str = "minilm-l6"
    dims: _Dims = 64
    precision: TowerPrecision = "float32"

    def build(self, data: TaughtData) -> ExternalFeatures:
        """Encode the captions that the pairs have, or read them from the cache.

        Raises:
            UserError: as :meth:`check`; if there is no such encoder; if there are fewer samples than components.
        """
        captions = given_captions(data.source, data.noise, data.reserve)
        with named_as_encoder():
            encoder = FrozenTextEncoder(self.encoder, precision=self.precision, device=data.device)
        distinct = CaptionTable(tuple(dict.fromkeys(caption for group in captions for caption in group)))
        encoded = frozen_texts(distinct.captions, encoder, data.cache, on_progress=data.on_progress)
        features = mean_captions(captions, distinct, encoded)
        valid = torch.ones(len(captions), dtype=torch.bool)
        return ExternalFeatures(
            _reduced(features, valid, self.dims, data.cache),
            f"{encoder.weights_hash}; {encoder.tokenization}; {self.precision}; {_words(self.dims)}",
        )


@dataclass(frozen=True, config=STRICT)
class ImageTeacher:
    """A frozen image encoder: its normalised features of the whole pictures, without augmentation.

    Attributes:
        encoder: what teaches, by default EfficientNet-Lite0 of the extra ``troth[demo]``.
        dims: principal components that are kept; None keeps the features.
        precision: what it computes in; features are float32 either way.
    """

    kind: Literal["image"] = "image"
    encoder: TowerConfig = field(default_factory=FrozenTower)
    dims: _Dims = 64
    precision: TowerPrecision = "float32"

    def build(self, data: TaughtData) -> ExternalFeatures:
        """Encode the pictures, or read them from the cache.

        Raises:
            UserError: if there is no such encoder; if fewer pictures than components can be read.
        """
        with named_as_encoder():
            tower = load_tower(self.encoder, self.precision, data.device)
        entry = encode_pictures(tower, data.source, data.cache, data.num_workers, data.on_progress)
        features = F.normalize(entry.tensors["features"], dim=1)
        return ExternalFeatures(
            _reduced(features, entry.tensors["valid"], self.dims, data.cache),
            f"{tower.identity}; {_words(self.dims)}",
            ledger_of(entry),
        )


@dataclass(frozen=True, config=STRICT)
class FileTeacher:
    """Features from a file, as they are; whoever made it answers for whose captions it has seen.

    Attributes:
        path: ``.npz`` with an array ``(N, F)``, row = sample id; or ``.parquet`` with a column ``id`` of sample ids
            and a column of lists.
        column: the name of that array or column.
        dims: principal components that are kept; None keeps the features.
    """

    kind: Literal["file"] = "file"
    path: str = ""
    column: str = "features"
    dims: _Dims = 64

    def build(self, data: TaughtData) -> ExternalFeatures:
        """Read the file.

        Raises:
            UserError: if it does not have exactly one finite row for every sample.
        """
        features = read_features(Path(self.path).expanduser(), self.column, len(data.source))
        reduced = _reduced(features, torch.ones(len(features), dtype=torch.bool), self.dims, data.cache)
        return ExternalFeatures(reduced, f"{hash_tensors({'features': features})}; {_words(self.dims)}")


#: What a recipe may name as an external teacher, told apart by ``kind``.
ExternalTeacherConfig = Annotated[TextTeacher | ImageTeacher | FileTeacher, Field(discriminator="kind")]


def given_captions(
    source: Source, noise: CaptionAssignment | BatchNoise, reserve: Source | None = None
) -> list[tuple[str, ...]]:
    """Return the captions each pair is trained with: its own, or after noise injection another's.

    Raises:
        UserError: for noise that is drawn anew in every batch.
    """
    if isinstance(noise, BatchNoise):
        raise UserError(
            "noise of every batch gives pairs new captions at each step, and here they are read once for all",
            where="data.noise.mode",
            remedy='use "static" noise, or leave out the teacher or judge that reads captions',
        )
    places = (caption_owner(owner, source, reserve) for owner in noise.caption_of.tolist())
    return [place.captions(sample) for place, sample in places]


def mean_captions(
    captions: list[tuple[str, ...]], distinct: CaptionTable, encoded: Float[Tensor, "C G"]
) -> Float[Tensor, "N G"]:
    """Return the mean of the unit features of each pair's captions.

    Args:
        captions: of each pair, one at least.
        distinct: the captions that were encoded.
        encoded: their features.
    """
    owner = torch.tensor([number for number, group in enumerate(captions) for _ in group])
    rows = distinct.rows(caption for group in captions for caption in group)
    total = torch.zeros(len(captions), encoded.shape[1]).index_add_(0, owner, F.normalize(encoded, dim=1)[rows])
    return total / torch.bincount(owner, minlength=len(captions)).unsqueeze(1)


def _reduced(
    features: Float[Tensor, "N F"], valid: Bool[Tensor, " N"], dims: int | None, cache: FeatureCache | None
) -> Float[Tensor, "N d"]:
    """Return the principal components of the valid rows, and zeros, their mean, in place of the others.

    Cached, so that a resumed run on another number of threads clusters the same numbers to the last bit.
    """
    if dims is None:
        return features
    content = hash_tensors({"features": features, "valid": valid})

    def compute() -> CacheEntry:
        found = pca(features[valid], dims)
        return CacheEntry({"features": features.new_zeros(len(features), found.shape[1]).index_put_((valid,), found)})

    key = CacheKey(weights="none", data=content, preprocessing=_words(dims))
    return (cache or FeatureCache()).get_or_compute(key, compute).tensors["features"]


def _words(dims: int | None) -> str:
    return "all dimensions" if dims is None else f"first {dims} principal components"


@contextlib.contextmanager
def named_as_encoder() -> Iterator[None]:
    """Give the place of an encoder's UserError as a field of the teacher: it takes itself for the model's or ours."""
    try:
        yield
    except UserError as error:
        where = "encoder"
        for prefix in ("teacher.encoder.", "model."):
            if error.where and error.where.startswith(prefix):
                where = f"encoder.{error.where.removeprefix(prefix)}"
        where = where.removesuffix(".text_encoder")
        remedy = error.remedy and error.remedy.replace("teacher.encoder.", "encoder.")
        raise UserError(error.message, where=where, remedy=remedy) from None
