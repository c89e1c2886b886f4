"""Teachers: frozen image encoders whose features some objectives compare the student's images with.

A teacher belongs to the data, not to the model: :class:`TaughtStream` hands out its features with every batch, and no
optimiser or checkpoint knows of it. A resumed run builds it again; which teacher it was is part of the stream's
fingerprint, so that another one is refused. The exception is the model's own average
(:mod:`troth.train.momentum_teacher`), which the training step keeps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.data.ledger import LedgerEntry
from troth.data.loader import BatchStream, LoadedBatch
from troth.data.source import Source
from troth.embed.cache import CacheEntry, CacheKey, FeatureCache
from troth.embed.features import Progress, collect_images, ledger_of
from troth.embed.pictures import DECODER, picture_batches, picture_identity
from troth.encoders import DualEncoder, FeatureEncoder, OpenClipEncoder
from troth.errors import UserError
from troth.train.momentum_teacher import MomentumTeacher
from troth.train.teacher_tower import FrozenTower, Tower, TowerConfig, TowerPrecision, load_tower
from troth.types import STRICT, Batch

Count = Annotated[int, Field(gt=0)]

#: Pictures a teacher takes at once while a whole source is encoded.
_PICTURES = 32


class Teacher(Protocol):
    """Gives the image features of a batch.

    Attributes:
        identity: what its features depend on; empty if they are a function of the batch alone.
        ledger: the pictures it could not read.
    """

    identity: str
    ledger: tuple[LedgerEntry, ...]

    def __call__(self, batch: Batch) -> Float[Tensor, "B F"]:
        """Return one row of features, without a gradient, for each row of ``batch``."""
        ...


@plain_dataclass(frozen=True)
class TaughtRun:
    """What a teacher is built for.

    Attributes:
        student: the model's towers or heads.
        source: the training pairs.
        device: where the run computes.
        cache: where features are kept between runs; None for the default folder.
        num_workers: processes that decode pictures; None chooses.
        on_progress: called with (pictures done, pictures in all) while a source is encoded.
    """

    student: DualEncoder
    source: Source
    device: torch.device
    cache: FeatureCache | None = None
    num_workers: int | None = None
    on_progress: Progress | None = None


@dataclass(frozen=True, config=STRICT)
class InputTeacher:
    """The student's own input teaches: under heads that is the feature of their frozen image encoder, or a vector.

    Costs nothing. Not for towers, whose input is pixels.
    """

    kind: Literal["input"] = "input"

    def check(self, student: DualEncoder) -> None:
        """Raise a UserError if ``student`` does not take features."""
        if not isinstance(student, FeatureEncoder):
            raise UserError(
                "towers take pictures, which are no features to be taught by",
                where="teacher.kind",
                remedy='use "online" or "cached" with an encoder, or train heads',
            )

    def build(self, run: TaughtRun) -> Teacher:
        """Return the teacher. Raises as :meth:`check`."""
        self.check(run.student)
        return InputFeatures()


@dataclass(frozen=True, config=STRICT)
class CachedTeacher:
    """A frozen encoder runs once over the training pictures, and its features are looked up by sample id.

    As cheap as no teacher after the first time, but blind to the random augmentation: the teacher sees each picture
    whole, the student a crop of it. The source of the method (see ``mimic``) shows the teacher the student's view,
    which ``online`` does. For heads, whose pictures are never augmented, there is no such difference.

    Attributes:
        encoder: what teaches, by default EfficientNet-Lite0 of the extra ``troth[demo]``.
        precision: what it computes in; features are float32 either way.
    """

    kind: Literal["cached"] = "cached"
    encoder: TowerConfig = field(default_factory=FrozenTower)
    precision: TowerPrecision = "float32"

    def check(self, student: DualEncoder) -> None:
        """Accept any student."""

    def build(self, run: TaughtRun) -> Teacher:
        """Load the encoder and encode all pictures of the source, or read them from the cache.

        Raises:
            UserError: if there is no such encoder, or its weights cannot be loaded.
        """
        tower = load_tower(self.encoder, self.precision, run.device)
        entry = encode_pictures(tower, run.source, run.cache, run.num_workers, run.on_progress)
        return FeatureTable(entry.tensors["features"], tower.identity, ledger_of(entry))


def encode_pictures(
    tower: Tower,
    source: Source,
    cache: FeatureCache | None = None,
    num_workers: int | None = None,
    on_progress: Progress | None = None,
) -> CacheEntry:
    """Return a tower's ``features (N, F)`` of all pictures of a source, and which are ``valid``, or read them again.

    Args:
        tower: encodes them.
        source: the pictures.
        cache: where features are kept; None for the default folder.
        num_workers: processes that decode pictures; None chooses.
        on_progress: called with (pictures done, pictures in all); not at all on what is cached.
    """
    identity = picture_identity(source)
    return (cache or FeatureCache()).get_or_compute(
        _pictures_key(tower, identity.digest),
        lambda: collect_images(
            len(source),
            picture_batches(source, tower.transform, _PICTURES, num_workers),
            tower.encode_transformed,
            tower.dim,
            identity.missing,
            on_progress,
        ),
    )


def share_pictures(
    tower: Tower, features: Float[Tensor, "N F"], rows: Int64[Tensor, " M"], source: Source, cache: FeatureCache
) -> None:
    """Cache what :func:`encode_pictures` would return for a source whose pictures another one has.

    Args:
        tower: made the features.
        features: ``(N, F)`` of the other source, all of whose pictures could be read.
        rows: ``(M,)`` which sample of the other each of the source has the picture of.
        source: M samples.
        cache: where to keep them; what is there already stays.
    """
    key = _pictures_key(tower, picture_identity(source).digest)
    if cache.load(key) is None:
        tensors = {"features": features[rows], "valid": torch.ones(len(rows), dtype=torch.bool)}
        cache.store(key, CacheEntry(tensors, {"ledger": "[]"}))


def _pictures_key(tower: Tower, digest: str) -> CacheKey:
    return CacheKey(
        weights=tower.weights, data=digest, preprocessing=f"{DECODER}; {tower.preprocessing}", dtype=tower.precision
    )


@dataclass(frozen=True, config=STRICT)
class OnlineTeacher:
    """A frozen encoder sees the very view that the student sees, at every step. For towers.

    The student's normalisation is undone, the picture resized to the encoder's own size if that is another, and
    normalised as the encoder was trained. Costs the encoder's forward pass for every picture of every epoch.

    Attributes:
        encoder: what teaches, by default EfficientNet-Lite0 of the extra ``troth[demo]``.
        precision: what it computes in; features are float32 either way.
        micro_batch_size: pictures it takes at once on each rank; None: all of the rank's.
    """

    kind: Literal["online"] = "online"
    encoder: TowerConfig = field(default_factory=FrozenTower)
    precision: TowerPrecision = "float32"
    micro_batch_size: Count | None = None

    def check(self, student: DualEncoder) -> None:
        """Raise a UserError if ``student`` takes no pictures."""
        if not isinstance(student, OpenClipEncoder):
            raise UserError(
                "heads take features: there is no picture that a teacher could see beside them",
                where="teacher.kind",
                remedy='use "input" or "cached", or train towers',
            )

    def build(self, run: TaughtRun) -> Teacher:
        """Load the encoder onto the run's device.

        Raises:
            UserError: if the student takes no pictures, there is no such encoder, or its weights cannot be loaded.
        """
        self.check(run.student)
        assert isinstance(run.student, OpenClipEncoder)
        preprocess = run.student.preprocess_cfg
        tower = load_tower(self.encoder, self.precision, run.device)
        return ViewEncoder(tower, tuple(preprocess["mean"]), tuple(preprocess["std"]), self.micro_batch_size)


#: What a recipe may put under ``[teacher]``, told apart by ``kind``.
TeacherConfig = Annotated[InputTeacher | CachedTeacher | OnlineTeacher | MomentumTeacher, Field(discriminator="kind")]


class InputFeatures:
    """The batch's images, which are features already."""

    identity = ""
    ledger: tuple[LedgerEntry, ...] = ()

    def __call__(self, batch: Batch) -> Float[Tensor, "B F"]:
        """Return the batch's images."""
        return batch.image.detach()


class FeatureTable:
    """Features that were computed before, one row a sample.

    Args:
        features: ``(N, F)``, row = sample id; zeros for a picture that could not be read.
        identity: what they depend on.
        ledger: the pictures that could not be read.
    """

    def __init__(self, features: Float[Tensor, "N F"], identity: str, ledger: tuple[LedgerEntry, ...] = ()) -> None:
        self.features = features
        self.identity = identity
        self.ledger = ledger

    def __call__(self, batch: Batch) -> Float[Tensor, "B F"]:
        """Return the rows of the batch's sample ids, on the batch's device."""
        return self.features[batch.index.to(self.features.device)].to(batch.index.device)


class ViewEncoder:
    """Encodes the student's pictures as the student sees them.

    Args:
        tower: what teaches.
        mean: of the student's normalisation.
        std: of the student's normalisation.
        micro_batch_size: pictures at once; None for all.
    """

    ledger: tuple[LedgerEntry, ...] = ()

    def __init__(
        self, tower: Tower, mean: tuple[float, ...], std: tuple[float, ...], micro_batch_size: int | None = None
    ) -> None:
        self.tower = tower
        self.identity = tower.identity
        self.micro_batch_size = micro_batch_size
        self._student = _channels(mean, tower.device), _channels(std, tower.device)
        self._own = _channels(tower.mean, tower.device), _channels(tower.std, tower.device)
        self._mode = tower.interpolation if tower.interpolation in ("bilinear", "bicubic") else "bicubic"

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Float[Tensor, "B F"]:
        """Return the tower's features of the batch's pictures, on the tower's device."""
        images = batch.image.to(self.tower.device, torch.float32)
        parts = torch.split(images, self.micro_batch_size or max(1, len(images)))
        return torch.cat([self.tower.encode(self.view(part)) for part in parts])

    def view(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """Return pictures that were normalised for the student as the teacher takes them."""
        mean, std = self._student
        pixels = image * std + mean
        if tuple(pixels.shape[-2:]) != self.tower.size:
            # A bicubic filter overshoots at edges; no picture has values outside [0, 1].
            pixels = F.interpolate(pixels, self.tower.size, mode=self._mode, antialias=True).clamp_(0.0, 1.0)
        mean, std = self._own
        return (pixels - mean) / std


def _channels(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "1 3 1 1"]:
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


class TaughtStream:
    """A stream's batches, each with a teacher's features.

    Args:
        stream: this rank's rows of every batch.
        teacher: gives their features.
    """

    def __init__(self, stream: BatchStream, teacher: Teacher) -> None:
        self.stream = stream
        self.teacher = teacher
        self.num_samples = stream.num_samples
        self.steps_per_epoch = stream.steps_per_epoch
        self.batch_size = stream.batch_size
        self.plan = stream.plan
        self.fingerprint = stream.fingerprint
        if teacher.identity:
            self.fingerprint = hashlib.sha256(f"{stream.fingerprint} {teacher.identity}".encode()).hexdigest()

    def total_steps(self, epochs: int) -> int:
        """How many steps a run of that many epochs has."""
        return self.stream.total_steps(epochs)

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        """This rank's rows of the batches of steps ``start_step`` to ``stop_step - 1``; taught in view 0 alone."""
        if view:  # nothing is taught by another view
            yield from self.stream.batches(start_step, stop_step, view=view)
            return
        for loaded in self.stream.batches(start_step, stop_step):
            yield replace(loaded, teacher_image=self.teacher(loaded.batch))
