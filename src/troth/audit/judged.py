"""What somebody else than the model thinks of the pairs: a table that a run keeps, and scores to hold against it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from troth.audit.scores import Float64, Int64Array, Mixture
from troth.errors import UserError

_RATE = b"noise_rate"


@dataclass(frozen=True)
class Judged:
    """Scores of pairs, whoever made them.

    Attributes:
        id: ``(Q,)`` sample ids.
        score: ``(Q,)`` higher is a better fit.
        noise_rate: estimated share of wrong pairs; NaN if unknown.
        p_mismatch: ``(Q,)`` the probability that a pair is wrong; NaN if unknown.
    """

    id: Int64Array
    score: Float64
    noise_rate: float
    p_mismatch: Float64

    @classmethod
    def read(cls, path: Path, num_pairs: int) -> Judged:
        """Read what a method that judges the pairs itself leaves in its run.

        Args:
            path: a parquet file with the columns ``id`` and ``score`` and, if known, ``p_mismatch`` and, in the
                metadata of its schema, ``noise_rate``.
            num_pairs: how many pairs there are.

        Raises:
            UserError: if the file lacks something, or judges pairs that are not there, or one twice.
        """
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise UserError(f"not a judgement: {str(error).splitlines()[0]}", where=str(path)) from None
        missing = {"id", "score"} - set(table.column_names)
        if missing:
            raise UserError(f"not a judgement: no column {', '.join(sorted(missing))}", where=str(path))
        number = table["id"].to_numpy().astype(np.int64)
        if len(np.unique(number)) != len(number) or ((number < 0) | (number >= num_pairs)).any():
            raise UserError(f"its ids are not distinct numbers of {num_pairs} pairs", where=str(path))
        try:
            rate = float((table.schema.metadata or {}).get(_RATE, b"nan"))
        except ValueError:
            raise UserError("the noise_rate of its metadata is no number", where=str(path)) from None
        known = "p_mismatch" in table.column_names
        probability = table["p_mismatch"].to_numpy() if known else np.full(len(number), np.nan)
        return cls(number, table["score"].to_numpy().astype(np.float64), rate, probability.astype(np.float64))

    def mixture(self, ids: Int64Array) -> Mixture:
        """Return the probabilities of some samples as an audit takes them: NaN for those that were not judged."""
        places = {int(sample): row for row, sample in enumerate(self.id)}
        rows = np.array([places.get(int(sample), -1) for sample in ids], dtype=np.int64)
        probability = np.append(self.p_mismatch, np.nan)[rows]  # the last one is nobody's
        unknown = (float("nan"), float("nan"))
        return Mixture(True, probability, self.noise_rate, means=unknown, deviations=unknown, note="not judged")
