"""What was measured about a run's embeddings and its scale, to be read, drawn and compared later.

:meth:`Diagnostics.save` writes a folder that :meth:`Diagnostics.load` reads back:

.. code-block:: text

    diagnostics.json   everything with words and single numbers
    arrays.npz         curves, histograms and single draws; the JSON says which is which
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from troth.data.files import atomic_path
from troth.data.saved import reading
from troth.errors import UserError
from troth.evaluate.distances import PairDistances
from troth.evaluate.token_subsets import SubsetAccuracy

DIAGNOSTICS_NAME = "diagnostics.json"
_ARRAYS_NAME = "arrays.npz"
_VERSION = 1
#: How the JSON says that a list of numbers is in the other file.
_ARRAY = "array"


@dataclass(frozen=True)
class ScaleCourse:
    """The learned scale over training.

    Attributes:
        step: ``(P,)`` logged steps.
        scale: ``(P,)`` the multiplier at each.
        steps_per_epoch: None if it is not known.
        converged: the first step from which the scale keeps still for an epoch, None if there is none
            (:func:`~troth.evaluate.converge_step`).
        settled: the first step from which it keeps still for good.
        learnable: whether it was trained.
    """

    step: tuple[int, ...] = ()
    scale: tuple[float, ...] = ()
    steps_per_epoch: float | None = None
    converged: int | None = None
    settled: int | None = None
    learnable: bool = True


@dataclass(frozen=True)
class DataDiagnostics:
    """How a model's points of one data set lie.

    Attributes:
        name: the data set's, unique.
        in_domain: whether it is the training data.
        distances: of pairs.
        measures: ``modality_gap``, ``alignment``, ``image_uniformity``, ``text_uniformity``; empty where the geometry
            has none.
    """

    name: str
    in_domain: bool
    distances: PairDistances
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnostics:
    """Everything ``troth diagnose`` measured.

    Attributes:
        run: the run's folder.
        step: of the checkpoint.
        weights: ``trained`` or ``average``.
        geometry: in words.
        distance: what a distance is in this geometry, with its unit.
        scale: over training.
        data: the training data first.
        subsets: accuracy with some of the spheres, one a zero-shot task; empty for one sphere.
        seed: of the samples and subsets.
        notes: what a reader must know, in sentences.
    """

    run: str
    step: int
    weights: str
    geometry: str
    distance: str
    scale: ScaleCourse
    data: tuple[DataDiagnostics, ...]
    subsets: tuple[SubsetAccuracy, ...] = ()
    seed: int = 0
    notes: tuple[str, ...] = ()

    def save(self, folder: Path) -> Path:
        """Write the folder, each file atomically, the JSON last; return the JSON's path."""
        arrays: dict[str, Any] = {}
        record = _lift(_adapter().dump_python(self, mode="json"), "", arrays)
        with atomic_path(folder / _ARRAYS_NAME) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        path = folder / DIAGNOSTICS_NAME
        with atomic_path(path) as temporary:
            text = json.dumps({"version": _VERSION, **record}, indent=1, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: Path) -> Diagnostics:
        """Read a saved folder.

        Raises:
            UserError: if a file is missing, or does not hold diagnostics of this version.
        """
        path = folder / DIAGNOSTICS_NAME
        with reading("saved diagnostics", path, remedy="give a folder that troth diagnose wrote"):
            record = json.loads(path.read_text(encoding="utf-8"))
            version = record.pop("version")
            if version != _VERSION:
                raise UserError(f"diagnostics of version {version}, this Troth reads {_VERSION}", where=str(path))
            with (folder / _ARRAYS_NAME).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return _adapter().validate_python(_put_back(record, arrays))


@cache
def _adapter() -> TypeAdapter[Diagnostics]:
    return TypeAdapter(Diagnostics)


def _lift(node: Any, name: str, arrays: dict[str, Any]) -> Any:
    """Return the tree with every list of numbers moved to ``arrays``, under the name of its place."""
    if isinstance(node, dict):
        return {key: _lift(value, f"{name}/{key}" if name else key, arrays) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    if node and all(isinstance(item, int | float) and not isinstance(item, bool) for item in node):
        arrays[name] = np.asarray(node)
        return {_ARRAY: name}
    return [_lift(item, f"{name}/{number}", arrays) for number, item in enumerate(node)]


def _put_back(node: Any, arrays: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        if set(node) == {_ARRAY}:
            return arrays[node[_ARRAY]].tolist()
        return {key: _put_back(value, arrays) for key, value in node.items()}
    return [_put_back(item, arrays) for item in node] if isinstance(node, list) else node
