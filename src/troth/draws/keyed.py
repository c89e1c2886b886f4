"""Draws that belong to the pairs, or to the samples, of one training step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from troth.draws import bits
from troth.draws.quantile import checked_shape, fitted

#: Pairs that are drawn at a time: the three buffers that a sweep touches stay in the second-level caches of two cores,
#: and a sweep is long enough to outweigh its call (``python -m benchmarks.gamma``).
BLOCK = 1 << 18

_Lanes = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PairDraws:
    """The draws of all pairs (row, column) of one step; a draw depends on its pair's two keys and on nothing else.

    Attributes:
        row_key: ``(B, 2)`` int32, a 64-bit key a row.
        column_key: ``(N, 2)`` int32, a 64-bit key a column.
    """

    row_key: Int32[Tensor, "B 2"]
    column_key: Int32[Tensor, "N 2"]

    @classmethod
    def from_ids(
        cls, seed: int, step: int, stream: str, row_ids: Int64[Tensor, " B"], column_ids: Int64[Tensor, " N"]
    ) -> PairDraws:
        """Return the draws of the pairs of samples ``row_ids`` and ``column_ids``.

        Args:
            seed: the run's seed.
            step: the training step.
            stream: what the draws are for: two streams of one step are independent.
            row_ids: ``(B,)`` stable sample ids of the rows. Rows of one id have equal draws.
            column_ids: ``(N,)`` those of the columns; the pair (i, j) draws independently of (j, i).
        """
        return cls(bits.keys(seed, step, stream, "row", row_ids), bits.keys(seed, step, stream, "column", column_ids))

    def tile(self, rows: slice, columns: slice) -> PairDraws:
        """Return the draws of a tile: those that the whole has there."""
        return PairDraws(self.row_key[rows], self.column_key[columns])

    @torch.no_grad()
    def log_gamma(
        self, shape: float, out: Float[Tensor, "2 B N"] | None = None
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
        """Return two independent draws of log Ga(``shape``, 1) a pair: for the image and for the text direction.

        Args:
            shape: of the Gamma distribution, any positive number.
            out: a ``(2, B, N)`` float32 buffer to draw into; what is returned are its halves. By default, fresh memory.

        Raises:
            UserError: unless the shape is positive and finite.
        """
        height, width = len(self.row_key), len(self.column_key)
        out = self.row_key.new_empty((2, height, width), dtype=torch.float32) if out is None else out
        row, column = _lanes(self.row_key), _lanes(self.column_key)
        across = max(1, min(width, BLOCK))
        down = max(1, min(height, BLOCK // across))
        sampler = _Sampler(shape, down * across, out.device)
        for columns in _slices(width, across):
            for rows in _slices(height, down):
                block = out[:, rows, columns]
                sampler(
                    (row[0][rows, None], row[1][rows, None]),
                    (column[0][None, columns], column[1][None, columns]),
                    block,
                )
        return out[0], out[1]

    @torch.no_grad()
    def log_gamma_at(
        self, rows: Int64[Tensor, " K"], columns: Int64[Tensor, " K"], shape: float
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
        """Return the draws of the pairs ``(rows[k], columns[k])``, as :meth:`log_gamma` has them there.

        With another shape they come from the same normals: a quantile of the one distribution becomes the same quantile
        of the other (for shapes below 1, up to their second uniform).

        Args:
            rows: ``(K,)`` rows of this tile.
            columns: ``(K,)`` its columns.
            shape: of the Gamma distribution, any positive number.
        """
        return _paired(_lanes(self.row_key[rows]), _lanes(self.column_key[columns]), shape)


@dataclass(frozen=True)
class SampleDraws:
    """The draws of the samples of one step; a draw depends on its sample's key and on nothing else.

    Attributes:
        key: ``(B, 2)`` int32, a 64-bit key a sample.
    """

    key: Int32[Tensor, "B 2"]

    @classmethod
    def from_ids(cls, seed: int, step: int, stream: str, ids: Int64[Tensor, " B"]) -> SampleDraws:
        """Return the draws of the samples ``ids``, independent of every pair's of the same stream."""
        return cls(bits.keys(seed, step, stream, "sample", ids))

    @torch.no_grad()
    def log_gamma(self, shape: float) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Return two independent draws of log Ga(``shape``, 1) a sample: for the image and for the text direction.

        Raises:
            UserError: unless the shape is positive and finite.
        """
        return _paired(_lanes(self.key), _lanes(torch.zeros_like(self.key[:1])), shape)


class _Sampler:
    """Draws blocks of at most ``size`` pairs in buffers that it keeps: a block costs no allocation.

    All arithmetic after the bits is in float32. A right shift, a sum or a product of 32-bit lanes wraps around.
    """

    def __init__(self, shape: float, size: int, device: torch.device) -> None:
        shape = checked_shape(shape)
        #: Ga(a) is Ga(a + 1) U^(1/a): below 1 the quantile has a sharp bend, and this has not.
        self._boost = 1 / shape if shape < 1 else None
        self._quantile = fitted(shape + 1 if shape < 1 else shape)
        self._buffer = torch.empty((5 if self._boost is None else 7) * size, dtype=torch.int32, device=device)

    def __call__(self, row: _Lanes, column: _Lanes, out: Tensor) -> None:
        """Draw for rows and columns, whose lanes broadcast to the shape of ``out[0]``."""
        shape = out.shape[1:]
        integers = self._buffer[: self._buffer.numel() // (size := shape.numel()) * size].view(-1, *shape)
        floats = integers.view(torch.float32)
        lanes, spare, normals = (integers[0], integers[1]), integers[2], (floats[3], floats[4])
        bits.combine(row, column, lanes, spare)
        _normals(lanes, normals, floats[2])
        if self._boost is None:
            for normal, drawn in zip(normals, out, strict=True):
                self._quantile(normal, drawn, floats[0], floats[1])
            return
        bits.mix(lanes, spare)
        for lane, uniform in zip(lanes, floats[5:7], strict=True):
            _log_of_squared_uniform(lane, uniform)
        for normal, uniform, drawn in zip(normals, floats[5:7], out, strict=True):
            self._quantile(normal, normal, floats[0], floats[1])
            torch.add(normal, uniform, alpha=self._boost / 2, out=drawn)


def _log_of_squared_uniform(lane: Tensor, out: Tensor) -> None:
    """Write ``2 log U`` to ``out``, with ``U`` the size of a signed 32-bit number over 2^31; overwrites ``lane``.

    The sign costs a bit and spares a shift of the range: near 0, where the logarithm has its tail, ``U`` keeps all its
    digits. An odd number is never 0.
    """
    out.copy_(lane.bitwise_or_(1))
    torch.addcmul(out.new_zeros(()), out, out, value=2.0**-62, out=out).log_()


def _normals(lanes: _Lanes, out: tuple[Tensor, Tensor], spare: Tensor) -> None:
    """Write two independent standard normals for each two 32-bit words; overwrites the first lane's lowest bit.

    Source: Box and Muller (1958), "A note on the generation of random normal deviates".
    """
    cosine, sine = out
    _log_of_squared_uniform(lanes[0], spare)
    spare.neg_().sqrt_()
    cosine.copy_(lanes[1]).mul_(torch.pi / 2**31)
    torch.sin(cosine, out=sine)
    sine.mul_(spare)
    cosine.cos_().mul_(spare)


def _paired(row: _Lanes, column: _Lanes, shape: float) -> tuple[Tensor, Tensor]:
    """Return the draws of row ``k`` with column ``k``, for every ``k``."""
    count = len(row[0])
    out = row[0].new_empty((2, count), dtype=torch.float32)
    sampler = _Sampler(shape, min(max(count, 1), BLOCK), out.device)
    for part in _slices(count, BLOCK):
        at = part if len(column[0]) > 1 else slice(None)
        sampler((row[0][part], row[1][part]), (column[0][at], column[1][at]), out[:, part])
    return out[0], out[1]


def _lanes(key: Tensor) -> _Lanes:
    """Return the two lanes of keys, each contiguous: a sweep over strided numbers is several times slower."""
    return key[:, 0].contiguous(), key[:, 1].contiguous()


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
