"""Streamed InfoNCE and sigmoid losses against open_clip's, forward and backward: seconds and extra peak memory.

    python -m benchmarks.similarity [--quick] [--save]

``--quick`` stops at B = 4,096. The goals: at B = 16,384 and D = 512 in float32 at most a tenth of ClipLoss's memory and
no more of its time; B = 65,536 in less than 3 GiB (no peer there: its logits alone would be 2 x 16 GiB).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from benchmarks.measure import Measurement, measure
from benchmarks.table import Record, arguments, report, save
from troth.objectives import InfoNCE, Sigmoid
from troth.similarity import Pairs
from troth.state import State

DIM = 512
OBJECTIVES = {"infonce": InfoNCE(), "sigmoid": Sigmoid()}


def _inputs(size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = [F.normalize(torch.randn(size, DIM, generator=generator), dim=-1) for _ in range(2)]
    return [x.requires_grad_() for x in (*features, torch.tensor(14.3), torch.tensor(-10.0))]


def ours(kind: str, size: int) -> Callable[[], float]:
    """Prepare our loss on random unit features."""
    image, text, scale, bias = _inputs(size)
    objective, state = OBJECTIVES[kind], State(size, "benchmark")

    def step() -> float:
        loss = objective(Pairs(image, text, scale, bias if objective.needs_bias else None), state).mean()
        loss.backward()
        return loss.item()

    return step


def open_clips(kind: str, size: int) -> Callable[[], float]:
    """Prepare open_clip's loss on the same features."""
    from open_clip.loss import ClipLoss, SigLipLoss

    image, text, scale, bias = _inputs(size)

    def step() -> float:
        loss = ClipLoss()(image, text, scale) if kind == "infonce" else SigLipLoss()(image, text, scale, bias)
        loss.backward()
        return loss.item()

    return step


def _together(measurements: Sequence[Measurement]) -> Measurement:
    seconds = statistics.median(each.seconds for each in measurements)
    return Measurement(seconds, max(each.peak_mib for each in measurements), measurements[0].value)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    quick = options.quick
    records: list[Record] = []
    for size in (1024, 4096) if quick else (4096, 16384):
        for kind, peer in (("infonce", "open_clip ClipLoss"), ("sigmoid", "open_clip SigLipLoss")):
            # Taking turns, so that a machine that drifts drifts for both.
            rounds = [(measure(ours, kind, size), measure(open_clips, kind, size)) for _ in range(2)]
            mine, theirs = (_together([each[place] for each in rounds]) for place in (0, 1))
            assert abs(mine.value - theirs.value) <= 1e-5 * abs(theirs.value), (mine.value, theirs.value)
            case = f"{kind} B={size} D={DIM}"
            records.append(Record(case, "seconds", mine.seconds, theirs.seconds, peer))
            records.append(Record(case, "peak_mib", mine.peak_mib, theirs.peak_mib, peer))
    if not quick:
        alone = measure(ours, "infonce", 65536, repeats=1)
        records.append(Record(f"infonce B=65536 D={DIM}", "seconds", alone.seconds, None, None))
        records.append(Record(f"infonce B=65536 D={DIM}", "peak_mib", alone.peak_mib, None, None))
    report("Streamed losses, forward + backward, float32", records)
    if options.save:
        save("similarity", "python -m benchmarks.similarity", options.save, records)


if __name__ == "__main__":
    main()
