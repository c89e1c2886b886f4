"""Gamma draws for every pair of a tile against torch's own sampler and numpy's, in float32: draws per second.

    python -m benchmarks.gamma [--quick] [--save]

``--quick`` takes a quarter of the tile and three shapes. The goal: at least five times torch's. All three deliver Gamma
draws, so ours includes the exponential of the logarithm that it makes; ours is besides a function of its pair, the same
in any tile. Ours and torch's may use every core, numpy's generator uses one. A ratio above 1 is better.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.table import Record, arguments, report, save
from troth.draws import PairDraws

SHAPES = (0.3, 1.0, 2.5, 5.0, 6.0, 10.0, 11.0, 20.0)
QUICK = (0.3, 1.0, 10.0)


def ours(shape: float, size: int) -> Callable[[], object]:
    """Prepare ``2 * size * size`` draws: both directions of a tile."""
    ids = torch.arange(size)
    draws = PairDraws.from_ids(0, 0, "benchmark", ids, ids)
    out = torch.empty(2, size, size)

    def draw() -> object:
        draws.log_gamma(shape, out)
        return out.exp_()

    return draw


def torchs(shape: float, size: int) -> Callable[[], object]:
    """Prepare as many of torch's, the sampler behind ``torch.distributions.Gamma``."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.full((2, size, size), shape)
    return lambda: torch._standard_gamma(shapes, generator=generator)


def numpys(shape: float, size: int) -> Callable[[], object]:
    """Prepare as many of numpy's, into a buffer."""
    generator = np.random.default_rng(0)
    out = np.empty((2, size, size), dtype=np.float32)
    return lambda: generator.standard_gamma(shape, dtype=np.float32, out=out)


def fastest(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Return each call's seconds at its best, after one that is not timed; they take turns, so that drift is shared."""
    for call in calls:
        call()
    seconds = [float("inf")] * len(calls)
    for _ in range(rounds):
        for number, call in enumerate(calls):
            start = time.perf_counter()
            call()
            seconds[number] = min(seconds[number], time.perf_counter() - start)
    return seconds


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    size = 512 if options.quick else 1024
    records: list[Record] = []
    for shape in QUICK if options.quick else SHAPES:
        times = fastest([prepare(shape, size) for prepare in (ours, torchs, numpys)], rounds=5)
        mine, torch_rate, numpy_rate = (2 * size * size / seconds for seconds in times)
        case = f"shape {shape:g}, {size} x {size} pairs"
        records.append(Record(case, "per_second", mine, torch_rate, "torch"))
        records.append(Record(case, "per_second", mine, numpy_rate, "numpy"))
    report(f"Gamma draws, float32, {torch.get_num_threads()} threads", records)
    if options.save:
        save("gamma", "python -m benchmarks.gamma", options.save, records)


if __name__ == "__main__":
    main()
