"""A judge of the training pairs: what frozen features, words and stages say of each, carried along with every batch."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.data import BatchStream, LedgerEntry, LoadedBatch, WeightedPlan
from troth.data.loader import JudgedRows
from troth.embed import CacheEntry, CacheKey, FeatureCache, frozen_texts
from troth.embed.features import CaptionTable, FrozenFeatures, hash_texts, ledger_of
from troth.encoders import FrozenTextEncoder
from troth.encoders.hashing import hash_tensors
from troth.errors import UserError
from troth.judge import AffineMap, Judgement, Procedure, SpectralAlignment, Whitened, caption_words, judge
from troth.judge.judgement import check_features
from troth.train.external_teacher import TaughtData, given_captions, mean_captions, named_as_encoder
from troth.train.mismatch_estimates import MismatchEstimates
from troth.train.teacher import encode_pictures
from troth.train.teacher_tower import FrozenTower, Tower, TowerConfig, TowerPrecision, load_stages, load_tower
from troth.types import STRICT

_ON_RESUME = "remove it, and the pairs are judged again, which may differ in the last bits, or start a new run"
_ON_FILE = "judge.file is a run's judgement.parquet, or what troth audit wrote, of these pairs as they are given"
_ON_UNKNOWN = f"{_ON_FILE}; add rows for pictures that could not be read there"

#: Raised with every change of :mod:`troth.judge` that moves a number: cached judgements are not read again then.
_PROCEDURE = "judge 2"
#: Raised with every change of what the cache keeps of a judgement, which is the same judgement.
_KEPT = f"{_PROCEDURE}; with what it went by"


@dataclass(frozen=True, config=STRICT)
class JudgeConfig:
    """A judge of the training pairs (:mod:`troth.judge`), and the frozen features it goes by.

    Heads are judged by the features they take themselves, by words, and by the stages of the encoder that made these
    features; ``encoder``, ``text_encoder`` and ``precision`` are for towers.

    Attributes:
        encoder: of the pictures, by default EfficientNet-Lite0 of the extra ``troth[demo]``.
        text_encoder: of the captions: ``minilm-l6``, or a sentence-transformers or transformers model.
        precision: what they compute in; features are float32 either way.
        words: whether the captions' words are evidence beside their features.
        stages: whether the image encoder's intermediate features, the outputs of its stages averaged over the picture,
            are evidence beside its features: one more pass over the pictures, cached. Open_clip's encoders, vectors and
            timm's models without ``forward_intermediates`` have none, and are judged without.
        draw_wrong: how often a pair that is surely wrong is drawn for each time that a surely right one is: with 1 all
            pairs are drawn alike, with 0 as often as they are likely right. What a pair's weight asks for beyond that
            is left to the loss. What is fitted to the losses of an epoch (``clean_posterior``, a learnt
            ``noise_mixture``) then sees the pairs drawn, and is meant for ``1``.
        file: a judgement to take in place of one's own: a parquet table with ``id``, ``score`` and ``p_mismatch`` of
            every pair, as a run's ``judgement.parquet`` or what ``troth audit`` writes, perhaps corrected by hand. Only
            the alignment is fitted then, to the pairs as far as they are right by it: of ``procedure`` its shrinkage
            and dimensions; words and stages take no part. The file has to stay as it is for as long as the run may be
            resumed.
        procedure: how pairs are judged.
    """

    encoder: TowerConfig = field(default_factory=FrozenTower)
    text_encoder: str = "minilm-l6"
    precision: TowerPrecision = "float32"
    words: bool = True
    stages: bool = field(default=True, repr=False)  # the identity names the stages themselves
    draw_wrong: Annotated[float, Field(ge=0, le=1)] = 1.0
    file: Annotated[str | None, Field(min_length=1)] = field(default=None, repr=False)  # the identity has its content
    procedure: Procedure = field(default_factory=Procedure)

    def build(self, data: TaughtData, seed: int, features: FrozenFeatures | None = None) -> JudgedPairs:
        """Judge the pairs, or read the judgement from the cache.

        Args:
            data: the training pairs, with the captions that noise gave them.
            seed: of the run.
            features: of pictures and captions, for heads, those of pictures by ``encoder``; None encodes them.

        Raises:
            UserError: if an encoder cannot be loaded, noise is drawn anew in every batch, the pairs are too few, or a
                ``file`` cannot be read or does not know of all of them.
        """
        captions = given_captions(data.source, data.noise, data.reserve)
        distinct = CaptionTable(tuple(dict.fromkeys(caption for group in captions for caption in group)))
        if features is not None:
            image, valid, ledger = features.image_features, features.valid, features.ledger
            encoded = features.text_features[features.rows(distinct.captions)]
        else:
            with named_as_encoder():
                tower = load_tower(self.encoder, self.precision, data.device)
            entry = encode_pictures(tower, data.source, data.cache, data.num_workers, data.on_progress)
            image, valid, ledger = entry.tensors["features"], entry.tensors["valid"], ledger_of(entry)
            with _named_as_text_encoder():
                encoder = FrozenTextEncoder(self.text_encoder, precision=self.precision, device=data.device)
            encoded = frozen_texts(distinct.captions, encoder, data.cache, on_progress=data.on_progress)
        text = mean_captions(captions, distinct, encoded)
        cache = data.cache or FeatureCache()
        if self.file is not None:
            given, content = self._given(Path(self.file), image, text, valid, cache)
            identity = f"{_PROCEDURE}; {self!r}; as given {content}"
            return JudgedPairs(given, image, text, valid, identity, self.draw_wrong, tuple(ledger))
        identity, stages = f"{_PROCEDURE}; {self!r}; seed {seed}{self._by_clusters}", None
        staged = self._load_stages(data)
        if staged is not None:
            entry = encode_pictures(staged, data.source, data.cache, data.num_workers, data.on_progress)
            stages = entry.tensors["features"]
            # What only this pass could not read is as little judged as what the other could not.
            valid = valid & entry.tensors["valid"]
            ledger = tuple(dict.fromkeys([*ledger, *ledger_of(entry)]))
            identity += f"; stages {staged.identity}{self._by_near_stages}"
        judgement = self._cached(image, text, captions, valid, stages, seed, cache)
        return JudgedPairs(judgement, image, text, valid, identity, self.draw_wrong, tuple(ledger))

    @property
    def _by_near_stages(self) -> str:
        return "; neighbours by them" if self.procedure.stage_neighbours else ""

    @property
    def _by_clusters(self) -> str:
        return f"; clusters of {self.procedure.cluster_size}" if self.procedure.cluster_size else ""

    def _load_stages(self, data: TaughtData) -> Tower | None:
        if not self.stages:
            return None
        with named_as_encoder():
            return load_stages(self.encoder, self.precision, data.device)

    def _cached(
        self,
        image: Tensor,
        text: Tensor,
        captions: Sequence[Sequence[str]],
        valid: Bool[Tensor, " N"],
        stages: Tensor | None,
        seed: int,
        cache: FeatureCache,
    ) -> Judgement:
        """Cached, so that a run resumed on another number of threads goes by the same numbers to the last bit."""
        known = {"image": image, "text": text, "valid": valid} | ({} if stages is None else {"stages": stages})
        content = hash_tensors(known)
        content += hash_texts(["\n".join(group) for group in captions])
        way = f"{self.procedure!r}; words {self.words}; seed {seed}{self._by_clusters}"
        key = CacheKey(weights=_KEPT, data=content, preprocessing=way if stages is None else way + self._by_near_stages)

        def compute() -> CacheEntry:
            read = [group for group, is_read in zip(captions, valid.tolist(), strict=True) if is_read]
            words = caption_words(read, seed) if self.words else None
            seen = None if stages is None else stages[valid]
            found = judge(image[valid], text[valid], self.procedure, seed, words, seen)
            unread = torch.full((len(valid),), torch.nan, dtype=torch.float64)
            tensors = {
                "score": unread.clone().index_put_((valid,), found.score),
                "p_mismatch": unread.clone().index_put_((valid,), found.p_mismatch),
                "noise_rate": torch.tensor([found.noise_rate], dtype=torch.float64),
                **_maps(found.alignment),
            }
            return CacheEntry(tensors, {"evidence": " ".join(found.evidence)})

        entry = cache.get_or_compute(key, compute)
        stored = entry.tensors
        return Judgement(
            score=stored["score"],
            p_mismatch=stored["p_mismatch"],
            noise_rate=float(stored["noise_rate"]),
            alignment=_alignment(stored),
            evidence=tuple(entry.notes["evidence"].split()),
        )

    def _given(
        self, path: Path, image: Tensor, text: Tensor, valid: Bool[Tensor, " N"], cache: FeatureCache
    ) -> tuple[Judgement, str]:
        """Return the judgement of a file, with an alignment fitted to it, and a hash of what it says."""
        found = MismatchEstimates.read(path, len(valid), remedy=_ON_FILE)
        score, probability = (torch.full((len(valid),), torch.nan, dtype=torch.float64) for _ in range(2))
        rows = torch.from_numpy(found.id)
        score[rows], probability[rows] = torch.from_numpy(found.score), torch.from_numpy(found.p_mismatch)
        score[~valid] = probability[~valid] = torch.nan
        if unknown := int(probability[valid].isnan().sum()):
            raise UserError(
                f"{unknown:,} of {int(valid.sum()):,} pairs have no p_mismatch", where=str(path), remedy=_ON_UNKNOWN
            )
        if bool((probability[valid] == 1).all()):
            raise UserError("by its p_mismatch all pairs are wrong", where=str(path), remedy=_ON_FILE)
        check_features(image[valid], text[valid], {})
        content = hash_tensors({"score": score, "p_mismatch": probability})
        features = hash_tensors({"image": image, "text": text, "valid": valid})
        key = CacheKey(weights=f"{_PROCEDURE}; given", data=features + content, preprocessing=repr(self.procedure))

        def fit() -> CacheEntry:
            whitened = Whitened(F.normalize(image[valid].float(), dim=-1), text[valid].float())
            weights = (1 - probability[valid]).float().clamp(min=1e-6)
            return CacheEntry(_maps(whitened.align(weights, self.procedure.dim, self.procedure.shrinkage)))

        alignment = _alignment(cache.get_or_compute(key, fit).tensors)
        # Not what the file says of itself: corrected by hand, its probabilities are what was meant.
        rate = float(probability[valid].mean())
        evidence = tuple(dict.fromkeys([*found.evidence, "file"]))
        return Judgement(score, probability, rate, alignment, evidence), content


def _maps(alignment: SpectralAlignment) -> dict[str, Tensor]:
    """Return an alignment as the cache keeps it."""
    sides = {"image": alignment.image, "text": alignment.text}
    return {f"{side}_{name}": getattr(found, name) for side, found in sides.items() for name in ("mean", "matrix")}


def _alignment(stored: Mapping[str, Tensor]) -> SpectralAlignment:
    image, text = (AffineMap(stored[f"{side}_mean"], stored[f"{side}_matrix"]) for side in ("image", "text"))
    return SpectralAlignment(image, text)


@contextlib.contextmanager
def _named_as_text_encoder() -> Iterator[None]:
    """Give the place of the text encoder's UserError as ours: it takes itself for the model's."""
    try:
        yield
    except UserError as error:
        raise UserError(error.message, where="text_encoder", remedy=error.remedy) from None


@plain_dataclass(frozen=True)
class JudgedPairs:
    """A judgement, and the points of the pairs it is about.

    Attributes:
        judgement: of every pair; NaN where the picture could not be read.
        image_features: ``(N, F)`` what it goes by.
        text_features: ``(N, G)`` likewise, of the captions given.
        valid: ``(N,)`` whether the picture could be read.
        identity: who judged, and how.
        draw_wrong: how often surely wrong pairs are drawn, beside surely right ones.
        ledger: the pictures that could not be read.
    """

    judgement: Judgement
    image_features: Float[Tensor, "N F"]
    text_features: Float[Tensor, "N G"]
    valid: Bool[Tensor, " N"]
    identity: str
    draw_wrong: float = 1.0
    ledger: tuple[LedgerEntry, ...] = ()

    def __str__(self) -> str:
        rate, evidence = self.judgement.noise_rate, ", ".join(self.judgement.evidence)
        return f"An estimated {rate:.1%} of {int(self.valid.sum()):,} pairs are wrong, going by {evidence}"

    @property
    def weight(self) -> Float[Tensor, " N"]:
        """``(N,)`` how much pairs count: their probability of being right; 0 where the picture could not be read."""
        return torch.nan_to_num(1 - self.judgement.p_mismatch, nan=0.0)

    @property
    def share(self) -> Float[Tensor, " N"]:
        """``(N,)`` in [0, 1], how often pairs are drawn; 0 where the picture could not be read."""
        return torch.where(self.valid, self.draw_wrong + (1 - self.draw_wrong) * self.weight, 0.0)

    def remembered(self, path: Path) -> JudgedPairs:
        """Return the pairs with the probabilities that a run kept in ``path``, which say what it draws.

        Judged again on another machine, or another number of threads, they would differ in the last bits, and the
        draws with them.

        Raises:
            UserError: if the file cannot be read, is of other pairs, or does not know of all of them.
        """
        kept = MismatchEstimates.read(path, len(self.valid), remedy=_ON_RESUME)
        rows = self.valid.nonzero()[:, 0]
        if not np.array_equal(kept.id, rows.numpy()):
            raise UserError("this judgement is of other pairs", where=str(path), remedy="start a new run")
        if np.isnan(kept.p_mismatch).any():
            raise UserError("some pairs have no p_mismatch", where=str(path), remedy=_ON_RESUME)
        probability = self.judgement.p_mismatch.clone()
        probability[rows] = torch.from_numpy(kept.p_mismatch)
        return replace(self, judgement=replace(self.judgement, p_mismatch=probability))

    def save(self, path: Path) -> None:
        """Write the judgement of the pairs whose picture could be read, as :class:`MismatchEstimates` do."""
        rows = self.valid.nonzero()[:, 0]
        found = self.judgement
        score, probability = found.score[rows].numpy(), found.p_mismatch[rows].numpy()
        MismatchEstimates(rows.numpy(), score, found.noise_rate, probability, tuple(found.evidence)).write(path)


class JudgedStream:
    """A stream's batches, each with what a judge thinks of its pairs.

    Args:
        stream: this rank's rows of every batch, drawn with the shares that ``pairs`` has.
        pairs: the judge's, of all samples.
    """

    def __init__(self, stream: BatchStream, pairs: JudgedPairs) -> None:
        self.stream = stream
        alignment = pairs.judgement.alignment
        assert isinstance(stream.plan, WeightedPlan) == (pairs.draw_wrong < 1), "the draw and the weights go together"
        share = pairs.share  # pairs that are drawn rarely count the more when they come
        self._weight = torch.where(share > 0, pairs.weight / share.clamp_min(1e-12), 0.0).float()
        self._image = alignment.image(F.normalize(pairs.image_features, dim=-1))
        self._text = alignment.text(pairs.text_features)
        self.num_samples = stream.num_samples
        self.steps_per_epoch = stream.steps_per_epoch
        self.batch_size = stream.batch_size
        self.plan = stream.plan
        # Not the numbers themselves: another machine's decompositions differ in the last bits, and are the same judge.
        self.fingerprint = hashlib.sha256(f"{stream.fingerprint} {pairs.identity}".encode()).hexdigest()

    def total_steps(self, epochs: int) -> int:
        """How many steps a run of that many epochs has."""
        return self.stream.total_steps(epochs)

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        """This rank's rows of the batches of steps ``start_step`` to ``stop_step - 1``, as :class:`BatchStream`."""
        for loaded in self.stream.batches(start_step, stop_step, view=view):
            index = loaded.batch.index.to(self._weight.device)
            rows = (each[index].to(loaded.batch.index.device) for each in (self._weight, self._image, self._text))
            yield replace(loaded, judged=JudgedRows(*rows))
