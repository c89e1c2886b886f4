"""What every weight of a reweighted objective offers, and the simplest: weights that came with the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import field
from pathlib import Path
from typing import Literal

import pyarrow
import torch
from jaxtyping import Float
from pyarrow import parquet
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.errors import UserError
from troth.similarity import Pairs
from troth.state import State
from troth.types import STRICT


class Weight(ABC):
    """A frozen dataclass that is its own configuration, and says how much each pair's loss counts.

    Subclasses have a ``kind``, their name in recipes.
    """

    def prepare(self, state: State) -> None:
        """Declare what is remembered about each pair: nothing. Called once before training and after a resume."""
        return

    @abstractmethod
    def __call__(self, pairs: Pairs, losses: Float[Tensor, " B"], state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` weights, not negative, through which no gradient flows.

        Args:
            pairs: this rank's pairs.
            losses: what the reweighted objective says of them, in nats, detached.
            state: the weight's own scope.
        """


@dataclass(frozen=True, config=STRICT)
class GivenWeights(Weight):
    """Weights known beforehand: those the pairs carry (``Pairs.weight``), or a column of a table keyed by sample id.

    The table may be what ``troth audit`` wrote: ``file = "runs/mine/audit.parquet"``, ``column = "p_mismatch"`` and
    ``complement = true`` count each pair as much as it was found to be right.

    Source: this package; importance weighting.

    Attributes:
        file: a parquet table with a column ``id`` of sample ids; None: the pairs carry their weights.
        column: its column of weights, none below zero. Samples without a row, or without a value, count 1.
        complement: take one minus the column, as for a probability of being wrong.
    """

    kind: Literal["given"] = field(default="given", kw_only=True)
    file: str | None = None
    column: str = "weight"
    complement: bool = False

    def prepare(self, state: State) -> None:
        """Read the table into a memory, unless a resumed run remembers it.

        Raises:
            UserError: if the table cannot be read or does not fit the data.
        """
        if self.file is not None and "weight" not in state:
            weights = self._read(Path(self.file), state.num_samples)
            state.declare("weight", fill=1.0)
            state.write("weight", torch.arange(state.num_samples), weights)

    def __call__(self, pairs: Pairs, losses: Float[Tensor, " B"], state: State) -> Float[Tensor, " B"]:
        """Return ``(B,)`` weights.

        Raises:
            UserError: if neither a file nor the pairs give any.
        """
        if self.file is not None:
            return state.read("weight", pairs.sample_ids()).to(losses)
        if pairs.weight is None:
            raise UserError(
                "these pairs carry no weights (or an outer reweighted objective applies them already)",
                where="objective.by",
                remedy='name a table, file = "audit.parquet", or choose another kind of weight: clean_posterior',
            )
        return pairs.weight.to(losses)

    def _read(self, path: Path, num_samples: int) -> Float[Tensor, " num_samples"]:
        if not path.is_file():
            raise UserError("no such file", where="objective.by.file", remedy=f"{path} must be a parquet table")
        try:
            table = parquet.read_table(path)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{path} is no parquet table ({error})", where="objective.by.file") from None
        for name in ("id", self.column):
            if name not in table.column_names:
                raise UserError(
                    f"{path} has no column {name!r}",
                    where="objective.by.column" if name == self.column else "objective.by.file",
                    remedy=f"it has {', '.join(table.column_names)}",
                )
        ids, column = table.column("id"), table.column(self.column)
        if not pyarrow.types.is_integer(ids.type) or ids.null_count:
            raise UserError(f"{path}: ids must be whole numbers, not {ids.type}", where="objective.by.file")
        if not (pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)):
            raise UserError(
                f"{path}: weights must be numbers, and {self.column!r} holds {column.type}", where="objective.by.column"
            )
        index = torch.tensor(ids.to_numpy().copy(), dtype=torch.int64)
        if len(torch.unique(index)) < len(index):
            raise UserError(f"{path} has several rows for one sample", where="objective.by.file")
        values = torch.tensor(column.to_numpy().astype("float64"), dtype=torch.float64)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < num_samples:
            raise UserError(
                f"{path} has sample ids from {int(index.min())} to {int(index.max())}, the data has {num_samples:,}",
                where="objective.by.file",
                remedy="use a table of this data set",
            )
        values = torch.where(torch.isnan(values), 1.0, 1 - values if self.complement else values)
        if bool((values < 0).any()) or not bool(torch.isfinite(values).all()):
            raise UserError(
                f"{path} gives a weight of {float(values.min()):g}; weights are finite and not negative",
                where="objective.by.column",
                remedy="choose another column, or complement = true for a probability of being wrong",
            )
        return torch.ones(num_samples, dtype=torch.float64).index_put_((index,), values)
