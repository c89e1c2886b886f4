"""Pairs whose pictures and captions are vectors already: features of any encoder, or synthetic data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from pydantic.dataclasses import dataclass
from torch import Tensor

from troth.data.draws import Int64Array
from troth.data.ledger import Ledger
from troth.data.source import Source, is_unicode
from troth.errors import UserError
from troth.types import STRICT

#: Files a vector source reads, by suffix.
VECTOR_SUFFIXES = (".npz", ".safetensors")

_ARRAYS = ("image", "text", "label", "id")

#: Where shipped recipes look for the codes of digits and garments, which no installed package holds.
_OWN_FILES = "benchmarks/data/digits/"
_OWN_REMEDY = "it is in Troth's repository: run from its root, or make it with python -m tools.digits and name it here"


class VectorSource:
    """A source whose samples are pairs of vectors.

    Whatever is keyed by captions (noise, audits, groups of equal captions) works as with pictures: the one caption of a
    sample is a name for its text vector. Equal vectors have one name, that of the first sample that has them, and
    different vectors have different names in any two sources.

    Args:
        name: what to call it in messages.
        image_vectors: ``(N, D)`` finite, kept as float32 on the CPU.
        text_vectors: ``(N, D')`` likewise.
        keys: unique names of the samples.
        labels: the class of every sample, which is its category; None if there are none.

    Attributes:
        image_vectors: ``(N, D)`` float32.
        text_vectors: ``(N, D')`` float32.
        labels: as above.
        ledger: empty.
    """

    def __init__(
        self,
        name: str,
        image_vectors: Float[Tensor, "N D"],
        text_vectors: Float[Tensor, "N E"],
        keys: Sequence[str],
        labels: Sequence[str] | None = None,
    ) -> None:
        assert len(image_vectors) == len(text_vectors) == len(keys), "one row, one key a sample"
        self.name = name
        self.image_vectors = image_vectors.detach().to("cpu", torch.float32).contiguous()
        self.text_vectors = text_vectors.detach().to("cpu", torch.float32).contiguous()
        self.labels = None if labels is None else tuple(labels)
        self.ledger = Ledger()
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        dims = self.image_vectors.shape[1], self.text_vectors.shape[1]
        return f"VectorSource({self.name!r}, {len(self)} pairs of {dims[0]} and {dims[1]} dimensions)"

    def of_rows(self, name: str, rows: Int64Array) -> VectorSource:
        """Return a source called ``name`` of some samples, in the order of ``rows``."""
        chosen = torch.from_numpy(rows)
        return VectorSource(
            name,
            self.image_vectors[chosen],
            self.text_vectors[chosen],
            [self._keys[row] for row in rows],
            None if self.labels is None else [self.labels[row] for row in rows],
        )

    def key(self, index: int) -> str:
        """The key of sample ``index``."""
        return self._keys[index]

    def captions(self, index: int) -> tuple[str, ...]:
        """The name of its text vector, such as ``text 17 (9f3a61c204b7)``."""
        return (self._captions[index],)

    def category(self, index: int) -> str | None:
        """Its label."""
        return None if self.labels is None else self.labels[index]

    def metadata(self, index: int) -> Mapping[str, Any]:
        """Its label, as ``label``, if it has one."""
        return {} if self.labels is None else {"label": self.labels[index]}

    def read_image(self, index: int) -> NoReturn:
        """Raise a UserError: there is no picture."""
        raise UserError(
            f"{self.name} carries vectors, not pictures",
            where="model.kind",
            remedy='use "plain" or "heads", which take vectors, or a source of pictures',
        )

    @cached_property
    def _captions(self) -> tuple[str, ...]:
        names: dict[bytes, str] = {}
        found = []
        for key, row in zip(self._keys, self.text_vectors.numpy(), strict=True):
            data = row.tobytes()
            if data not in names:
                names[data] = f"text {key} ({hashlib.sha256(data).hexdigest()[:12]})"
            found.append(names[data])
        return tuple(found)

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) of keys, labels and the bits of all vectors, in id order."""
        digest = hashlib.sha256(repr((self._keys, self.labels)).encode())
        for vectors in (self.image_vectors, self.text_vectors):
            digest.update(repr(tuple(vectors.shape)).encode())
            digest.update(vectors.numpy().tobytes())
        return digest.hexdigest()


@plain_dataclass(frozen=True)
class PairedVectors:
    """The vectors of a source, and of further captions, in the form in which frozen features come.

    Attributes:
        image: ``(N, D)`` row = sample id.
        captions: ``C`` names of text vectors, each at least once.
        text: ``(C, D')`` the vectors they name.
    """

    image: Float[Tensor, "N D"]
    captions: tuple[str, ...]
    text: Float[Tensor, "C E"]


def carries_vectors(source: Source) -> bool:
    """Whether a source has ``image_vectors`` and ``text_vectors``: a :class:`VectorSource`, or a view of one."""
    return isinstance(getattr(source, "image_vectors", None), Tensor) and isinstance(
        getattr(source, "text_vectors", None), Tensor
    )


def named_text_vectors(source: Source) -> tuple[tuple[str, ...], Float[Tensor, "C E"]]:
    """Return the distinct captions of a source of vectors, in the order they are met, and the vectors they name.

    Raises:
        UserError: if the source carries no vectors.
    """
    rows: dict[str, int] = {}
    for index in range(len(source)):
        rows.setdefault(source.captions(index)[0], index)
    return tuple(rows), _vectors(source)[1][list(rows.values())]


def paired_vectors(source: Source, reserve: Source | None = None) -> PairedVectors:
    """Return what a :class:`~troth.data.feature_stream.FeatureStream` needs of a source of vectors.

    Args:
        source: the pairs.
        reserve: where foreign captions come from; its text vectors are named too.

    Raises:
        UserError: if one of them carries no vectors, or the reserve's text vectors have another dimension.
    """
    image, text = _vectors(source)
    captions, vectors = named_text_vectors(source)
    if reserve is not None:
        found = _vectors(reserve)[1].shape[1]
        if found != text.shape[1]:
            raise UserError(
                f"its text vectors have {found} dimensions, those of {source.name} {text.shape[1]}", where="reserve"
            )
        more, more_vectors = named_text_vectors(reserve)
        captions, vectors = captions + more, torch.cat([vectors, more_vectors])
    return PairedVectors(image, captions, vectors)


def _vectors(source: Source) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N E"]]:
    if not carries_vectors(source):
        raise UserError(
            f"{source.name} carries pictures and captions, not vectors",
            remedy='use a source of vectors, such as { kind = "vectors", path = "pairs.npz" }',
        )
    carrier: Any = source
    return carrier.image_vectors, carrier.text_vectors


@dataclass(frozen=True, config=STRICT)
class VectorsSource:
    """Pairs of vectors in an .npz or .safetensors file.

    The file holds the arrays ``image`` ``(N, D)`` and ``text`` ``(N, D')`` of floats, whose rows belong together.
    It may hold ``label`` ``(N,)``, integers or (npz) strings: the samples' categories; and ``id`` ``(N,)``, likewise:
    unique names of the samples, which without it are called by their row, from 0. Vectors are read as float32.

    Attributes:
        path: the file.
    """

    kind: Literal["vectors"] = "vectors"
    path: str = ""

    def open(self) -> VectorSource:
        """Read and check the file.

        Raises:
            UserError: no such file, an array that is missing, or not what it should be.
        """
        path = Path(self.path).expanduser()
        if not self.path or not path.is_file():
            ours = self.path.startswith(_OWN_FILES)
            raise UserError(
                f"there is no file {self.path!r}", where="path", remedy=_OWN_REMEDY if ours else "check the path"
            )
        arrays = _read(path)
        image, text = _floats(arrays, "image"), _floats(arrays, "text")
        if len(image) != len(text):
            raise UserError(
                f"{len(image)} rows of 'image' and {len(text)} of 'text'",
                where="path",
                remedy="row i of one belongs to row i of the other",
            )
        if not len(image):
            raise UserError(f"{self.path} holds no pair", where="path")
        labels, ids = _names(arrays, "label", len(image)), _names(arrays, "id", len(image))
        return VectorSource(self.path, image, text, _unique(ids) or [str(row) for row in range(len(image))], labels)


def _read(path: Path) -> dict[str, Any]:
    """Return the arrays a vector source knows: numpy arrays of an .npz, tensors of a .safetensors file."""
    suffix = path.suffix.lower()
    if suffix not in VECTOR_SUFFIXES:
        raise UserError(
            f"the suffix of {path.name!r} names no format", where="path", remedy=f"one of: {', '.join(VECTOR_SUFFIXES)}"
        )
    try:
        if suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            return {name: arrays[name] for name in _ARRAYS if name in arrays.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path.name} cannot be read: {first}", where="path") from None
    except Exception as error:  # safetensors has an error class of its own, raised from Rust
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(f"{path.name} cannot be read: {error}", where="path") from None


def _floats(arrays: Mapping[str, Any], name: str) -> Float[Tensor, "N D"]:
    if name not in arrays:
        raise UserError(
            f"there is no array {name!r}",
            where="path",
            remedy="the file holds 'image' (N, D) and 'text' (N, D'), and may hold 'label' (N,) and 'id' (N,)",
        )
    array = arrays[name]
    if isinstance(array, np.ndarray) and not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{name!r} holds {array.dtype}, not floats", where="path", remedy="save it as float32")
    tensor = torch.as_tensor(array)
    if not tensor.is_floating_point():
        raise UserError(f"{name!r} holds {tensor.dtype}, not floats", where="path", remedy="save it as float32")
    if tensor.ndim != 2 or not tensor.shape[1]:
        raise UserError(f"{name!r} has the shape {tuple(tensor.shape)}, not (N, D)", where="path")
    tensor = tensor.float()
    broken = ~torch.isfinite(tensor).all(dim=1)
    if bool(broken.any()):
        raise UserError(
            f"{int(broken.sum())} rows of {name!r} are not finite, the first is row {int(broken.nonzero()[0])}",
            where="path",
            remedy="leave such pairs out",
        )
    return tensor


def _names(arrays: Mapping[str, Any], name: str, count: int) -> list[str] | None:
    if name not in arrays:
        return None
    array = np.asarray(arrays[name])
    if array.dtype.kind not in "iuU":
        raise UserError(f"{name!r} holds {array.dtype}, not integers or strings", where="path")
    if array.shape != (count,):
        raise UserError(f"{name!r} has the shape {array.shape}, not ({count},)", where="path")
    names = [str(value) for value in array.tolist()]
    blank = next((row for row, text in enumerate(names) if not text.strip() or not is_unicode(text)), None)
    if blank is not None:
        raise UserError(f"row {blank} of {name!r} is blank or not text", where="path")
    return names


def _unique(ids: list[str] | None) -> list[str] | None:
    if ids is None:
        return None
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if first.setdefault(name, row) != row:
            raise UserError(
                f"rows {first[name]} and {row} have one 'id', {name!r}", where="path", remedy="unique names"
            )
    return ids
