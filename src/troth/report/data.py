"""What a report is made from: saved results, never a live model.

:meth:`ReportData.save` writes a folder that :meth:`ReportData.load` reads back, so that a report can be rendered again,
elsewhere and later:

.. code-block:: text

    report.json       everything with words and single numbers
    arrays.npz        curves and histograms
    images/NAME       encoded pictures, as they were given
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from troth.data.files import atomic_path
from troth.data.saved import reading
from troth.errors import UserError

_VERSION = 1
_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True)
class Curve:
    """Values over training steps: ``step`` and ``value``, both ``(P,)``."""

    step: tuple[float, ...] = ()
    value: tuple[float, ...] = ()


@dataclass(frozen=True)
class Histogram:
    """Counts of right and wrong pairs ``(bins,)`` in the intervals between ``edges`` ``(bins + 1,)``."""

    edges: tuple[float, ...] = ()
    right: tuple[float, ...] = ()
    wrong: tuple[float, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error in the same unit, None where none is known."""

    value: float
    standard_error: float | None = None


@dataclass(frozen=True)
class Metric:
    """A row of the headline table.

    Attributes:
        name: key into :attr:`MethodResult.metrics`.
        label: what the table calls it.
        explanation: one plain sentence; what it asks and of which data.
        unit: ``"percent"`` shows a fraction as 12.3; ``"number"`` as it is.
        decimals: shown of the value, its error and its differences.
        higher_is_better: False for ranks and rates of error.
        group: the heading it stands under.
    """

    name: str
    label: str
    explanation: str = ""
    unit: Literal["percent", "number"] = "percent"
    decimals: int = 1
    higher_is_better: bool = True
    group: str = ""


@dataclass(frozen=True)
class MethodResult:
    """One trained model.

    Attributes:
        name: short and unique.
        label: what people read.
        explanation: one or two sentences about the method.
        ceiling: whether it was given what the others lack (the pairs without noise, say): shown beside them, but never
            called the best.
        metrics: metric name to estimate.
        differences: metric name to the paired difference from the report's baseline, where it was computed; without it
            the difference is shown with the error of two independent results.
        loss_curve: training loss, in nats, by step.
        scale_curve: logit scale (1 / temperature) by step.
        histogram: similarities of right and wrong training pairs.
        auroc: how well the similarity, or the judge's score, tells them apart.
        average_precision: of the list of pairs, most suspicious first.
        true_noise_rate: share of wrong pairs.
        estimated_noise_rate: as estimated without knowing them.
        judged: whether that, ``auroc`` and ``average_precision`` are by a judge's scores and not by the similarity.
        seconds: training time.
    """

    name: str
    label: str
    explanation: str = ""
    ceiling: bool = False
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    loss_curve: Curve = field(default_factory=Curve)
    scale_curve: Curve = field(default_factory=Curve)
    histogram: Histogram = field(default_factory=Histogram)
    auroc: Estimate | None = None
    average_precision: float | None = None
    true_noise_rate: float | None = None
    estimated_noise_rate: float | None = None
    judged: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class RetrievedItem:
    """One of a query's results: a picture (``image``) or a caption (``text``), or both."""

    right: bool
    score: float
    image: str | None = None
    text: str = ""


@dataclass(frozen=True)
class MethodAnswer:
    """What one method returned for a query, best first."""

    method: str
    results: tuple[RetrievedItem, ...]


@dataclass(frozen=True)
class RetrievalExample:
    """A query, as text or as the name of a picture, and every method's answer."""

    answers: tuple[MethodAnswer, ...]
    query_text: str = ""
    query_image: str | None = None


@dataclass(frozen=True)
class SuspiciousPair:
    """A training pair the audit distrusts.

    Attributes:
        id: sample id.
        image: name of the pair's picture.
        caption: the caption it was trained with.
        score: their similarity.
        mismatched: whether the caption was truly another picture's (the saved mask); None if not known.
        p_mismatch: estimated probability of that.
        owner_image: name of the picture the caption belongs to, where known.
        owner_key: that picture's key in its source.
        own_caption: the picture's own caption, where known.
        suggested_caption: the caption of the set that fits the picture best, if it fits better.
    """

    id: int
    image: str | None
    caption: str
    score: float
    mismatched: bool | None = None
    p_mismatch: float | None = None
    owner_image: str | None = None
    owner_key: str = ""
    own_caption: str = ""
    suggested_caption: str = ""


@dataclass(frozen=True)
class Provenance:
    """How the numbers were made: enough to make them again."""

    command: str = ""
    seed: int | None = None
    seconds: float | None = None
    date: str = ""
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        title: the page's heading.
        introduction: a paragraph under it.
        metrics: rows of the headline table; the first one is the headline's.
        methods: the trained models.
        baseline: name of the method the others are measured against; the first if empty.
        facts: short label to value: the data, the noise.
        retrievals: examples.
        suspicious: training pairs, most suspicious first.
        suspicious_by: label of the method whose audit they come from.
        provenance: how it was made.
        images: name to encoded bytes (webp, png, jpeg), for all the names used above.
    """

    title: str
    metrics: tuple[Metric, ...]
    methods: tuple[MethodResult, ...]
    introduction: str = ""
    baseline: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    retrievals: tuple[RetrievalExample, ...] = ()
    suspicious: tuple[SuspiciousPair, ...] = ()
    suspicious_by: str = ""
    provenance: Provenance = field(default_factory=Provenance)
    images: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        if not names or len(set(names)) < len(names):
            raise UserError(f"method names must be unique and at least one, got {names}", where="methods")
        if self.baseline and self.baseline not in names:
            raise UserError(f"{self.baseline!r} is not a method", where="baseline", remedy=f"one of {names}")
        for name in self.images:
            if not _IMAGE_NAME.fullmatch(name):
                raise UserError(
                    f"{name!r} cannot name a file", where="images", remedy="use letters, digits, dot, dash, underscore"
                )

    @property
    def reference(self) -> MethodResult:
        """The method the others are measured against."""
        return next((method for method in self.methods if method.name == self.baseline), self.methods[0])

    def save(self, folder: Path) -> None:
        """Write the folder; each file atomically, ``report.json`` last, so that a broken save is not read as whole."""
        for name, data in self.images.items():
            with atomic_path(folder / "images" / name) as temporary:
                temporary.write_bytes(data)
        arrays: dict[str, Any] = {}
        methods = [_without_arrays(method, number, arrays) for number, method in enumerate(self.methods)]
        record = {
            "version": _VERSION,
            **_plain(dataclasses.replace(self, methods=tuple(methods), images={})),
            "images": list(self.images),
        }
        with atomic_path(folder / "arrays.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        with atomic_path(folder / "report.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ReportData:
        """Read a saved folder.

        Raises:
            UserError: if a file is missing or does not hold a report of this version.
        """
        path = folder / "report.json"
        with reading("a saved report", path, remedy="give a folder a run saved"):
            record = json.loads(path.read_text(encoding="utf-8"))
            version = record.pop("version")
            if version != _VERSION:
                raise UserError(f"report of version {version}, this Troth reads {_VERSION}", where=str(path))
            record["images"] = {name: (folder / "images" / name).read_bytes() for name in _safe(record["images"])}
            with (folder / "arrays.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                for number, method in enumerate(record["methods"]):
                    _put_arrays(method, number, arrays)
            return TypeAdapter(cls).validate_python(record)


def _safe(names: list[str]) -> list[str]:
    """Refuse names that would leave the folder: the JSON may come from anywhere."""
    for name in names:
        if not _IMAGE_NAME.fullmatch(name):
            raise UserError(f"{name!r} cannot name a picture", where="report.json")
    return names


_ARRAYS = {
    "loss_curve": ("step", "value"),
    "scale_curve": ("step", "value"),
    "histogram": ("edges", "right", "wrong"),
}


def _without_arrays(method: MethodResult, number: int, arrays: dict[str, Any]) -> MethodResult:
    for group, parts in _ARRAYS.items():
        for part in parts:
            values = getattr(getattr(method, group), part)
            arrays[f"{number}/{group}/{part}"] = np.asarray(values, dtype=np.float64)
    return dataclasses.replace(method, loss_curve=Curve(), scale_curve=Curve(), histogram=Histogram())


def _put_arrays(method: dict[str, Any], number: int, arrays: Mapping[str, Any]) -> None:
    for group, parts in _ARRAYS.items():
        method[group] = {part: tuple(arrays[f"{number}/{group}/{part}"].tolist()) for part in parts}


def _plain(value: Any) -> Any:
    """Turn nested frozen dataclasses and mappings into what JSON holds (``dataclasses.asdict`` keeps odd mappings)."""
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
