"""Batches of features that frozen encoders computed before: nothing but indexing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from troth.data.draws import Int64Array
from troth.data.loader import LoadedBatch, checked_noise, stream_fingerprint
from troth.data.noise import CaptionChoice
from troth.data.plan import BatchPlan, chosen_captions, rank_rows
from troth.data.source import Source, captions_column
from troth.errors import UserError
from troth.types import Batch


class FeatureStream:
    """The same batches as :class:`~troth.data.loader.ImageTextStream`, with features for pictures and captions.

    Only samples with valid image features take part. Sample ids are still those of the source.

    Args:
        source: the pairs.
        plan: over as many samples as are valid.
        image_features: ``(N, D)`` one row a sample of the source.
        captions: ``C`` distinct captions, all that source and reserve have among them.
        text_features: ``(C, D')`` their features.
        valid: ``(N,)`` whether the image could be read; None if all could.
        noise: whose captions to use; None for everyone's own.
        reserve: where foreign captions come from, if the noise has such.
        rank: of this process.
        world_size: how many processes share each batch.

    Raises:
        UserError: a caption has no features, or as for :class:`~troth.data.loader.ImageTextStream`.
    """

    def __init__(
        self,
        source: Source,
        plan: BatchPlan,
        *,
        image_features: Float[Tensor, "N D"],
        captions: Sequence[str],
        text_features: Float[Tensor, "C D"],
        valid: Bool[Tensor, " N"] | None = None,
        noise: CaptionChoice | None = None,
        reserve: Source | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert len(image_features) == len(source), "one row of image features a sample"
        assert len(text_features) == len(captions), "one row of text features a caption"
        usable = torch.ones(len(source), dtype=torch.bool) if valid is None else valid.cpu()
        self._ids = usable.nonzero()[:, 0].numpy()
        if plan.num_samples != len(self._ids):
            raise UserError(
                f"the plan is for {plan.num_samples} samples and {len(self._ids)} have image features",
                where="plan",
                remedy="plan with the number of valid samples",
            )
        self._noise = checked_noise(noise, source, plan)
        self.plan = plan
        self._rows = rank_rows(plan.batch_size, rank, world_size)
        self._image_features = image_features
        self._text_features = text_features
        self._starts, self._counts, self._caption_rows = _lookup(source, reserve, captions)
        self.num_samples = len(source)
        self.fingerprint = _fingerprint(stream_fingerprint(source, self._noise), usable, image_features, text_features)
        self.steps_per_epoch = plan.steps_per_epoch
        self.batch_size = plan.batch_size

    def total_steps(self, epochs: int) -> int:
        """How many steps a run of that many epochs has."""
        return self.plan.total_steps(epochs)

    def batches(self, start_step: int, stop_step: int, *, view: int = 0) -> Iterator[LoadedBatch]:
        """This rank's rows of the batches of steps ``start_step`` to ``stop_step - 1``, as :class:`BatchStream`."""
        for step in range(start_step, stop_step):
            planned = self._ids[self.plan.indices(step)]
            caption_of, mismatched = self._noise.draw(planned, step)
            index, owner = planned[self._rows], caption_of[self._rows]
            choice = chosen_captions(self.plan.seed, self.plan.epoch(step), index, self._counts[owner], view)
            text = torch.from_numpy(self._caption_rows[self._starts[owner] + choice])
            ids = torch.from_numpy(index)
            batch = Batch(ids, self._image_features[ids].float(), self._text_features[text].float())
            yield LoadedBatch(batch, (), torch.from_numpy(mismatched[self._rows]))


def _fingerprint(pairs: str, usable: Tensor, *features: Tensor) -> str:
    """Hash what batches are made of: keys, captions, which samples take part, and the bits of the features."""
    digest = hashlib.sha256(pairs.encode())
    for tensor in (usable, *features):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _lookup(
    source: Source, reserve: Source | None, captions: Sequence[str]
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """For each sample (the reserve's behind the source's) where its captions' rows start and how many there are."""
    lists = captions_column(source)
    if reserve is not None:
        lists = pa.concat_arrays([lists, captions_column(reserve)])
    flat = lists.flatten()
    rows = pc.index_in(flat, value_set=pa.array(captions, type=flat.type))
    if rows.null_count:
        example = flat.filter(rows.is_null())[0].as_py()
        raise UserError(f"{rows.null_count} captions have no features, for example {example!r}", where="captions")
    counts = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return np.cumsum(counts) - counts, counts, rows.to_numpy(zero_copy_only=False).astype(np.int64)
