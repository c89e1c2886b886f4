"""How likely pairs are wrong, and the table of it that a run keeps if it has a judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from troth.data import atomic_path
from troth.errors import UserError

JUDGEMENT_NAME = "judgement.parquet"

Float64 = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_RATE = "noise_rate"
_EVIDENCE = "evidence"


@dataclass(frozen=True)
class MismatchEstimates:
    """How well captions fit their pictures, and how likely they are the wrong ones, by a model or by a judge.

    Attributes:
        id: ``(Q,)`` sample ids.
        score: ``(Q,)`` of any scale; higher is a better fit.
        noise_rate: estimated share of wrong pairs, 0 to 1; NaN if unknown.
        p_mismatch: ``(Q,)`` the probability that a pair is wrong, 0 to 1; NaN if unknown.
        evidence: what they go by, in single words; empty if it was not said.
    """

    id: Int64Array
    score: Float64
    noise_rate: float
    p_mismatch: Float64
    evidence: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write them as parquet, atomically.

        The columns are ``id``, ``score``, ``p_mismatch`` and ``weight`` (the probability that a pair is right, 0 if
        unknown); the metadata of the schema has ``noise_rate`` and ``evidence``.
        """
        weight = np.nan_to_num(1 - self.p_mismatch, nan=0.0)
        columns = {"id": self.id, "score": self.score, "p_mismatch": self.p_mismatch, "weight": weight}
        metadata = {_RATE: str(self.noise_rate), _EVIDENCE: " ".join(self.evidence)}
        with atomic_path(path) as temporary:
            pq.write_table(pa.table(columns).replace_schema_metadata(metadata), temporary)

    @classmethod
    def read(cls, path: Path, num_pairs: int, *, remedy: str) -> MismatchEstimates:
        """Read what :meth:`write` wrote, or what another judge left in that form.

        Args:
            path: a parquet file with the columns ``id`` and ``score`` and, if known, ``p_mismatch`` and, in the
                metadata of its schema, ``noise_rate`` and ``evidence``.
            num_pairs: how many pairs there are.
            remedy: what to do about a file that cannot be used.

        Raises:
            UserError: if there is no such file, it is damaged, lacks something or holds other things than numbers, or
                it judges pairs that are not there, or one twice.
        """

        def refused(message: str) -> UserError:
            return UserError(message, where=str(path), remedy=remedy)

        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise refused(f"not a judgement: {str(error).splitlines()[0]}") from None
        missing = {"id", "score"} - set(table.column_names)
        if missing:
            raise refused(f"not a judgement: no column {', '.join(sorted(missing))}")
        columns = {name: table[name] for name in ("id", "score", "p_mismatch") if name in table.column_names}
        for name, column in columns.items():
            if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
                raise refused(f"not a judgement: {name} holds no numbers")
        values = {name: np.array(column.to_numpy(), dtype=np.float64) for name, column in columns.items()}
        number, score = values["id"], values["score"]
        whole = np.isfinite(number) & (number == np.floor(number)) & (number >= 0) & (number < num_pairs)
        if not whole.all() or len(np.unique(number)) != len(number):
            raise refused(f"its ids are not distinct numbers of {num_pairs} pairs")
        if not np.isfinite(score).all():
            raise refused("some scores are not finite")
        probability = values.get("p_mismatch", np.full(len(number), np.nan))
        if ((probability < 0) | (probability > 1)).any():
            raise refused("some p_mismatch are no probabilities")
        said = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        try:
            rate = float(said.get(_RATE, "nan"))
        except ValueError:
            rate = np.inf
        if rate < 0 or rate > 1:
            raise refused("the noise_rate of its metadata is no number from 0 to 1")
        return cls(number.astype(np.int64), score, rate, probability, tuple(said.get(_EVIDENCE, "").split()))
