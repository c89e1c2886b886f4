"""The table a user acts on: one row a pair, with its scores, a decision and the reason for it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass
from torch import Tensor

from troth.audit.scores import Float64, Int64Array, Mixture, fit_mixture, pair_scores, percentile_quality
from troth.data.files import atomic_path
from troth.errors import UserError
from troth.geometry import Geometry
from troth.similarity import topk
from troth.types import STRICT

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("caption_key", pa.string()),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("quality", pa.float64(), nullable=False),
        pa.field("p_mismatch", pa.float64()),
        pa.field("decision", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("suggested_caption_id", pa.int64(), nullable=False),
    ]
)


@config_dataclass(frozen=True, config=STRICT)
class Decisions:
    """From the estimated probability of a mismatch to a decision.

    Attributes:
        drop_above: a pair at least this likely wrong is dropped.
        review_above: one at least this likely wrong is left to a person.
    """

    drop_above: Annotated[float, Field(gt=0, le=1)] = 0.9
    review_above: Annotated[float, Field(gt=0, le=1)] = 0.5

    def decide(self, p_mismatch: float) -> str:
        """Return ``"drop"``, ``"review"`` or ``"keep"``; an unknown probability (NaN) keeps the pair."""
        if p_mismatch >= self.drop_above:
            return "drop"
        return "review" if p_mismatch >= self.review_above else "keep"


@dataclass(frozen=True)
class AuditTable:
    """One row a pair, in the order the pairs were given.

    Attributes:
        id: ``(N,)`` stable sample ids.
        key: each sample's key in its source.
        caption: the caption it was given.
        caption_key: whose caption that is, where known (injected noise); None otherwise.
        score: ``(N,)`` similarity of picture and given caption.
        quality: ``(N,)`` share of pairs that score lower.
        p_mismatch: ``(N,)`` estimated probability that the caption is another picture's; NaN if not known.
        decision: ``"keep"``, ``"drop"`` or ``"review"``.
        reason: why, in words.
        suggested_caption_id: ``(N,)`` a sample whose (different) caption fits the picture best; -1 if none fits better
            than the given one.
    """

    id: Int64Array
    key: tuple[str, ...]
    caption: tuple[str, ...]
    caption_key: tuple[str | None, ...]
    score: Float64
    quality: Float64
    p_mismatch: Float64
    decision: tuple[str, ...]
    reason: tuple[str, ...]
    suggested_caption_id: Int64Array

    def __post_init__(self) -> None:
        lengths = {name.name: len(getattr(self, name.name)) for name in fields(self)}
        assert len(set(lengths.values())) == 1, f"columns of different length: {lengths}"

    def __len__(self) -> int:
        return len(self.id)

    def most_suspicious(self, count: int) -> Int64Array:
        """Return the rows of the ``count`` pairs most likely wrong, of equally likely ones the lowest scores.

        An unknown probability counts as 0.
        """
        rows: Int64Array = np.lexsort((self.score, -np.nan_to_num(self.p_mismatch)))[:count]
        return rows

    def write(self, path: Path) -> None:
        """Write the table as parquet, atomically; an unknown ``p_mismatch`` becomes null."""
        columns = {name: getattr(self, name) for name in _SCHEMA.names}
        arrays = [
            pa.array(columns[field.name], type=field.type, from_pandas=field.name == "p_mismatch") for field in _SCHEMA
        ]
        table = pa.Table.from_arrays(arrays, schema=_SCHEMA)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def read(cls, path: Path) -> AuditTable:
        """Read what :meth:`write` wrote.

        Raises:
            UserError: if the file is missing, not parquet, or without one of the columns.
        """
        if not path.is_file():
            raise UserError("no such file", where=str(path), remedy="write it with an audit first")
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise UserError(f"not a parquet file ({str(error).splitlines()[0]})", where=str(path)) from error
        missing = [name for name in _SCHEMA.names if name not in table.column_names]
        if missing:
            raise UserError(f"not an audit table: no column {', '.join(missing)}", where=str(path))
        table = table.select(_SCHEMA.names).cast(_SCHEMA)
        values: dict[str, Any] = {}
        for field in _SCHEMA:
            column = table.column(field.name)
            is_text = field.type == pa.string()
            values[field.name] = tuple(column.to_pylist()) if is_text else column.to_numpy()
        return cls(**values)

    def kept(self) -> Int64Array:
        """Return the ids of the pairs to train on: all but the dropped, in order."""
        ids: Int64Array = self.id[np.array([decision != "drop" for decision in self.decision], dtype=bool)]
        return ids

    def write_subset(self, path: Path) -> None:
        """Write the pairs to train on as a DataComp subset file (.npy of dtype ``u8,u8``, sorted), atomically.

        A key that is a 32-digit hexadecimal uid is split into its two halves, as DataComp's resharder expects; of any
        other key the first 32 hexadecimal digits of its SHA-256 are taken.
        """
        kept = set(self.kept().tolist())
        halves = [_uid(key) for key, number in zip(self.key, self.id.tolist(), strict=True) if number in kept]
        subset = np.array(halves, dtype=np.dtype("u8,u8"))
        subset.sort()
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, subset)


def audit_pairs(
    image: Float[Tensor, "N D"],
    text: Float[Tensor, "N D"],
    geometry: Geometry,
    *,
    ids: npt.ArrayLike,
    keys: Sequence[str],
    captions: Sequence[str],
    caption_keys: Sequence[str | None] | None = None,
    decisions: Decisions | None = None,
    mixture: Mixture | None = None,
) -> AuditTable:
    """Score every pair, estimate which are wrong, and look for a better caption among those of the set.

    Args:
        image: one projected point a pair.
        text: likewise, of the caption the pair was given.
        geometry: of the points.
        ids: ``(N,)`` sample ids.
        keys: N keys.
        captions: N given captions.
        caption_keys: whose caption each is, where known.
        decisions: thresholds; the defaults if None.
        mixture: a fitted mixture of these pairs; fitted here if None.

    Raises:
        UserError: for columns of different length, and embeddings that are not finite.
    """
    score = pair_scores(image, text, geometry)
    number = np.asarray(ids, dtype=np.int64)
    owners = tuple(caption_keys) if caption_keys is not None else (None,) * len(score)
    for name, column in (("ids", number), ("keys", keys), ("captions", captions), ("caption_keys", owners)):
        if len(column) != len(score):
            raise UserError(f"{len(column)} values for {len(score)} pairs", where=name)
    fitted = mixture if mixture is not None else fit_mixture(score)
    thresholds = decisions if decisions is not None else Decisions()
    quality = percentile_quality(score)
    better, fit = _better_captions(image, text, geometry, captions, score)
    suggested = np.where(better >= 0, number[better], -1) if len(score) else number
    decision = tuple(thresholds.decide(p) for p in fitted.p_mismatch.tolist())
    reason = tuple(
        _reason(row, fitted, score, quality, other, similarity, captions)
        for row, (other, similarity) in enumerate(zip(better.tolist(), fit.tolist(), strict=True))
    )
    return AuditTable(
        id=number,
        key=tuple(keys),
        caption=tuple(captions),
        caption_key=owners,
        score=score,
        quality=quality,
        p_mismatch=fitted.p_mismatch,
        decision=decision,
        reason=reason,
        suggested_caption_id=suggested,
    )


def _better_captions(
    image: Tensor, text: Tensor, geometry: Geometry, captions: Sequence[str], score: Float64
) -> tuple[Int64Array, Float64]:
    """Return, for each pair, the first row of the best-fitting different caption and its similarity; -1 if none."""
    first: dict[str, int] = {}
    for row, caption in enumerate(captions):
        first.setdefault(caption, row)
    rows = torch.tensor(list(first.values()), dtype=torch.int64)
    # Each wording is a candidate once, so two places suffice: one may be the pair's own caption.
    values, found = topk(image, text[rows.to(text.device)], 2, geometry)
    origin, value = rows[found.cpu()].numpy(), values.double().cpu().numpy()
    own = np.array([first[caption] for caption in captions], dtype=np.int64)
    best, fit = np.full(len(captions), -1, dtype=np.int64), np.full(len(captions), np.nan)
    for place in reversed(range(origin.shape[1])):
        usable = (origin[:, place] != own) & (value[:, place] > score)
        best, fit = np.where(usable, origin[:, place], best), np.where(usable, value[:, place], fit)
    return best, fit


def _reason(
    row: int,
    mixture: Mixture,
    score: Float64,
    quality: Float64,
    better: int,
    fit: float,
    captions: Sequence[str],
) -> str:
    p = mixture.p_mismatch[row]
    chance = f"{p:.0%} likely mismatched" if math.isfinite(p) else f"no estimate ({mixture.note})"
    text = f"similarity {score[row]:.3f}, {1 - quality[row]:.0%} of pairs fit better; {chance}"
    if better < 0:
        return f"{text}; no caption of the set fits better"
    wording = captions[better] if len(captions[better]) <= 60 else f"{captions[better][:59]}…"
    return f"{text}; “{wording}” fits better ({fit:.3f})"


def _uid(key: str) -> tuple[int, int]:
    digits = key if re.fullmatch(r"[0-9a-fA-F]{32}", key) else hashlib.sha256(key.encode()).hexdigest()
    return int(digits[:16], 16), int(digits[16:32], 16)
