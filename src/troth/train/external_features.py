"""Features that were computed elsewhere, by sample id: an npz file or a parquet table."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from jaxtyping import Float
from torch import Tensor

from troth.errors import UserError

_Array = np.ndarray[Any, np.dtype[Any]]


def read_features(path: Path, column: str, num_samples: int) -> Float[Tensor, "N F"]:
    """Read one row of features for every sample.

    Args:
        path: ``.npz`` with an array ``(N, F)``, row = sample id; or ``.parquet`` with ``id``, the sample ids in any
            order, and a column of lists of F numbers.
        column: the name of the array or of the column.
        num_samples: N of the data set.

    Raises:
        UserError: if the file is not that, or does not have exactly one finite row for every sample. Its place is
            ``path`` or ``column``.
    """
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}", where="path", remedy="check the path")
    if path.suffix == ".npz":
        array = _from_npz(path, column)
    elif path.suffix == ".parquet":
        array = _from_parquet(path, column, num_samples)
    else:
        raise UserError(f"{path.name} is of no known format", where="path", remedy="an .npz or a .parquet file")
    if array.ndim != 2 or array.dtype.kind not in "fiu" or 0 in array.shape:
        raise UserError(
            f"{column!r} of {path.name} holds {array.dtype} of shape {array.shape}, not (samples, dimensions) numbers",
            where="column",
        )
    if len(array) != num_samples:
        raise UserError(
            f"{path.name} has features of {len(array):,} samples, the data has {num_samples:,}",
            where="path",
            remedy="one row for each sample, in the order of the sample ids",
        )
    features = torch.from_numpy(array.astype(np.float32))
    if not bool(torch.isfinite(features).all()):
        row = int((~torch.isfinite(features)).any(dim=1).nonzero()[0])
        raise UserError(f"the features of sample {row} in {path.name} are not finite", where="column")
    return features


def _from_npz(path: Path, column: str) -> _Array:
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = list(stored)
            array: _Array | None = stored[column] if column in names else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path.name} is no npz file of numbers: {error}", where="path") from error
    if array is None:
        raise UserError(f"{path.name} has no array {column!r}", where="column", remedy=f"it has {', '.join(names)}")
    return array


def _from_parquet(path: Path, column: str, num_samples: int) -> _Array:
    try:
        table = parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        message = str(error).splitlines()[0]
        raise UserError(f"{path.name} is no parquet table: {message}", where="path") from error
    for name in ("id", column):
        if name not in table.column_names:
            raise UserError(
                f"{path.name} has no column {name!r}", where="column", remedy=f"it has {', '.join(table.column_names)}"
            )
    ids, rows = table.column("id"), table.column(column).combine_chunks()
    if not pa.types.is_integer(ids.type) or ids.null_count:
        raise UserError(f"{path.name}: ids must be whole numbers, not {ids.type}", where="path")
    if not np.array_equal(np.sort(ids.to_numpy()), np.arange(num_samples)):
        raise UserError(
            f"the ids of {path.name} are not those of the {num_samples:,} samples, each once",
            where="path",
            remedy=f"0 to {num_samples - 1}",
        )
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    lengths = set(rows.value_lengths().to_pylist()) if any(kind(rows.type) for kind in kinds) else set()
    if len(lengths) != 1 or None in lengths:
        raise UserError(f"{column!r} of {path.name} does not hold lists of one length", where="column")
    values: _Array = rows.flatten().to_numpy(zero_copy_only=False)
    placed = np.empty((num_samples, lengths.pop()), dtype=values.dtype)
    placed[ids.to_numpy()] = values.reshape(placed.shape)
    return placed
