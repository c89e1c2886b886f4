"""Time and peak memory of one function in a process of its own.

A fresh process a measurement: allocators keep what a neighbour freed, and a peak once reached never falls. The peak is
the operating system's high-water mark, reset right before the timed call, less what the process held then; so it counts
what the call needs *extra*, whoever allocated it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """One function's cost: median seconds over the repeats, extra peak memory in MiB, and what it returned last."""

    seconds: float
    peak_mib: float
    value: Any


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status: these benchmarks need Linux")


def _run(prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], repeats: int, queue: Any) -> None:
    call = prepare(*arguments)
    seconds, peaks, value = [], [], None
    for _ in range(repeats):
        value = None
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to what is held now
        held = _status("VmRSS")
        start = time.perf_counter()
        value = call()
        seconds.append(time.perf_counter() - start)
        peaks.append(_status("VmHWM") - held)
    # The first call pays for pages and thread pools; its memory is the honest peak, its time is not.
    queue.put(Measurement(statistics.median(seconds[1:] or seconds), max(peaks), value))


def measure(prepare: Callable[..., Callable[[], Any]], *arguments: Any, repeats: int = 2) -> Measurement:
    """Measure ``prepare(*arguments)()`` in a fresh process, ``repeats`` times after one call that is not timed."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_run, args=(prepare, arguments, repeats + 1 if repeats > 1 else 1, queue))
    process.start()
    while True:
        try:
            result: Measurement = queue.get(timeout=1)
            break
        except Exception:
            if not process.is_alive():
                raise RuntimeError(f"{prepare.__name__}{arguments} ended with exit code {process.exitcode}") from None
    process.join()
    return result
