"""What is thought of pairs, and the table of it that a run keeps if it has a judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from troth.errors import UserError

JUDGEMENT_NAME = "judgement.parquet"

Float64 = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_RATE = b"noise_rate"
_REMEDY = "remove it, and the model's own similarities are taken, or train the run again"


@dataclass(frozen=True)
class Judged:
    """What is thought of pairs.

    Attributes:
        id: ``(Q,)`` sample ids.
        score: ``(Q,)`` of any scale; higher is a better fit.
        noise_rate: estimated share of wrong pairs, 0 to 1; NaN if unknown.
        p_mismatch: ``(Q,)`` the probability that a pair is wrong, 0 to 1; NaN if unknown.
    """

    id: Int64Array
    score: Float64
    noise_rate: float
    p_mismatch: Float64

    @classmethod
    def of_run(cls, folder: Path, num_pairs: int) -> Judged | None:
        """Return what a run's judge left beside its weights; None if it had none. Raises as :meth:`read`."""
        path = folder / JUDGEMENT_NAME
        return cls.read(path, num_pairs) if path.is_file() else None

    @classmethod
    def read(cls, path: Path, num_pairs: int, remedy: str = _REMEDY) -> Judged:
        """Read what a method that judges the pairs itself leaves in its run.

        Args:
            path: a parquet file with the columns ``id`` and ``score`` and, if known, ``p_mismatch`` and, in the
                metadata of its schema, ``noise_rate``.
            num_pairs: how many pairs there are.
            remedy: what to do about one that cannot be used.

        Raises:
            UserError: if there is no such file, it lacks something or holds other things than numbers, or it judges
                pairs that are not there, or one twice.
        """
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            raise UserError(f"not a judgement: {str(error).splitlines()[0]}", where=str(path), remedy=remedy) from None
        missing = {"id", "score"} - set(table.column_names)
        if missing:
            raise UserError(f"not a judgement: no column {', '.join(sorted(missing))}", where=str(path), remedy=remedy)
        number = _column(table, "id", path, remedy)
        whole = np.isfinite(number) & (number == np.floor(number)) & (number >= 0) & (number < num_pairs)
        if not whole.all() or len(np.unique(number)) != len(number):
            raise UserError(f"its ids are not distinct numbers of {num_pairs} pairs", where=str(path), remedy=remedy)
        score = _column(table, "score", path, remedy)
        if not np.isfinite(score).all():
            raise UserError("some scores are not finite", where=str(path), remedy=remedy)
        known = "p_mismatch" in table.column_names
        probability = _column(table, "p_mismatch", path, remedy) if known else np.full(len(number), np.nan)
        if ((probability < 0) | (probability > 1)).any():
            raise UserError("some p_mismatch are no probabilities", where=str(path), remedy=remedy)
        try:
            rate = float((table.schema.metadata or {}).get(_RATE, b"nan"))
        except ValueError:
            raise UserError("the noise_rate of its metadata is no number", where=str(path), remedy=remedy) from None
        return cls(number.astype(np.int64), score, rate, probability)


def _column(table: pa.Table, name: str, path: Path, remedy: str) -> Float64:
    kind = table.schema.field(name).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UserError(f"not a judgement: {name} holds no numbers", where=str(path), remedy=remedy)
    return np.asarray(table[name].to_numpy(), dtype=np.float64)
