"""What a task returns: numbers, how sure we are of them, and what a report needs to show them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from troth.errors import UserError

#: Any array of a result's details.
Array = npt.NDArray[Any]

_VERSION = 1


@dataclass(frozen=True)
class TaskResult:
    """The outcome of one task on one model's embeddings.

    Attributes:
        task: the task's name, e.g. ``"retrieval"``.
        metrics: metric name to value; accuracies and recalls are fractions in [0, 1], ranks count from 1.
        standard_errors: metric name to standard error, in the metric's unit, where one can be given.
        num_queries: how many queries were scored.
        influences: metric name to ``(U,)`` float64: what each independent unit (a query, or a group of queries that
            belong together) contributed to the error of the metric; the standard errors, and those of a comparison of
            two models on the same queries, come from it (:mod:`troth.evaluate.uncertainty`).
        details: arrays a report or a comparison needs: ``"rank"``, ``"prediction"``, ...; those whose name begins
            with ``"query/"`` say what was asked, and are equal for two results that may be compared.
        notes: what a reader must know, in sentences, e.g. that a cut-off was dropped.
    """

    task: str
    metrics: Mapping[str, float]
    standard_errors: Mapping[str, float]
    num_queries: int
    influences: Mapping[str, Array] = field(default_factory=dict)
    details: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            assert math.isfinite(value), f"metric {name} of {self.task} is {value}"
        unknown = set(self.standard_errors) - set(self.metrics)
        assert not unknown, f"standard errors without a metric: {sorted(unknown)}"

    def to_json(self, *, with_arrays: bool = True) -> str:
        """Return the result as one line of JSON; ``with_arrays=False`` leaves out influences and details."""
        record: dict[str, Any] = {
            "version": _VERSION,
            "task": self.task,
            "metrics": dict(self.metrics),
            "standard_errors": dict(self.standard_errors),
            "num_queries": self.num_queries,
            "notes": list(self.notes),
        }
        if with_arrays:
            record["influences"] = {name: _to_plain(array) for name, array in self.influences.items()}
            record["details"] = {name: _to_plain(array) for name, array in self.details.items()}
        return json.dumps(record, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, where: str = "task result") -> TaskResult:
        """Read what :meth:`to_json` wrote.

        Args:
            text: the JSON.
            where: the file it came from, for the error message.

        Raises:
            UserError: if the text is not a task result, or one of another version.
        """
        try:
            record = json.loads(text)
            if record["version"] != _VERSION:
                raise UserError(
                    f"task result of version {record['version']}, this Troth reads version {_VERSION}",
                    where=where,
                    remedy="evaluate again",
                )
            return cls(
                task=record["task"],
                metrics=record["metrics"],
                standard_errors=record["standard_errors"],
                num_queries=record["num_queries"],
                influences={k: _from_plain(v) for k, v in record.get("influences", {}).items()},
                details={k: _from_plain(v) for k, v in record.get("details", {}).items()},
                notes=tuple(record["notes"]),
            )
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"not a task result ({type(error).__name__}: {error})", where=where, remedy="evaluate again"
            ) from error


def _to_plain(array: Array) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.reshape(-1).tolist()}


def _from_plain(record: Mapping[str, Any]) -> Array:
    return np.array(record["values"], dtype=record["dtype"]).reshape(record["shape"])
