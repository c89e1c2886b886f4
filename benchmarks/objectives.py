"""Every objective, forward and backward: ours, the plain torch of ``benchmarks.dense``, and open_clip's ClipLoss.

    python -m benchmarks.objectives [--quick] [--save] [--only CASE ...]
    python -m benchmarks.objectives --huge [--save] [--only CASE ...]

``--quick`` stops at B = 4,096. The goals: at most 1.5 times ClipLoss's seconds (2.5 times for ``gamma_weights``, which
draws numbers for every combination) at every size, and at 16,384 at most an eighth of its memory. ``--huge`` runs ours
alone, once each, at B = 65,536: every objective in O(B (D + tile)) memory, where one matrix of logits has 16 GiB.

The plain code takes ``B x B`` memory; where its peak at the size before says it would pass 18 GiB, it is left out. Its
mean loss must be ours to 1e-4. The two draw different numbers, so sampled losses are compared up to the luck of the
draw; with means in place of draws the tests compare them exactly.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from benchmarks import dense
from benchmarks.measure import Measurement, measure
from benchmarks.table import RESULTS, Record, arguments, machine, report, save
from troth.objectives import (
    MMCL,
    Affinity,
    CleanPosterior,
    CyCLIP,
    DeCL,
    Distillation,
    FeatureDistillation,
    GammaWeights,
    GeneralizedCE,
    GlobalInfoNCE,
    InfoNCE,
    Mimic,
    NoiseMixture,
    Objective,
    Reweighted,
    SelfDistillation,
    Sigmoid,
    SoftTargets,
    Sum,
)
from troth.similarity import GroupMatches, Pairs, TwoWay
from troth.state import Clock, State

DIM = 512
HUGE = 65536
PEER = "open_clip ClipLoss"

#: The plain code is not run where it would need more than this.
DENSE_LIMIT_MIB = 18 * 1024

#: Objectives that share one measurement of ClipLoss, taken right before theirs.
TOGETHER = 4

#: Two Gaussians over the losses of :func:`inputs`: what an epoch's fit would have found.
MIXTURE = (0.7, 1.0, 6.0, 0.8, 1.2)

#: Half of the run is over, in the middle of an epoch.
CLOCK = Clock(seed=0, step=11, steps_per_epoch=4, total_steps=22)


@dataclass(frozen=True)
class Contender:
    """An objective with its settings.

    Attributes:
        objective: ours.
        tolerance: how far, relatively, the plain code's mean loss may be from ours.
        seconds_goal: at most so many times ClipLoss's seconds.
        memory_goal: at most so many times ClipLoss's peak memory, at 16,384.
    """

    objective: Objective
    tolerance: float = 1e-4
    seconds_goal: float = 1.5
    memory_goal: float = 1 / 8


def _gamma(**settings: Any) -> Contender:
    return Contender(GammaWeights(**settings), tolerance=0.02, seconds_goal=2.5)


CASES: dict[str, Contender] = {
    "infonce": Contender(InfoNCE()),
    "infonce positives smoothed": Contender(InfoNCE(known_matches="positive", label_smoothing=0.1)),
    "sigmoid": Contender(Sigmoid()),
    "generalized_ce": Contender(GeneralizedCE()),
    "noise_mixture": Contender(NoiseMixture()),
    "soft_targets": Contender(SoftTargets()),
    "self_distillation": Contender(SelfDistillation()),
    "distillation": Contender(Distillation()),
    "feature_distillation": Contender(FeatureDistillation()),
    "global_infonce": Contender(GlobalInfoNCE()),
    "decl": Contender(DeCL(), tolerance=0.1),
    "mmcl linear": Contender(MMCL.linear()),
    "mmcl logistic": Contender(MMCL(psi="softplus")),
    "affinity l1": Contender(Affinity()),
    "affinity l2": Contender(Affinity(distance="l2")),
    "affinity pearson": Contender(Affinity(distance="pearson")),
    "mimic": Contender(Mimic()),
    "cyclip": Contender(CyCLIP()),
    "sum (saco)": Contender(Sum(((1.0, InfoNCE()), (5.0, Affinity()), (5.0, Mimic())))),
    "reweighted (clean_posterior)": Contender(Reweighted(InfoNCE(), by=CleanPosterior())),
    "gamma_weights": _gamma(),
    "gamma_weights logits": _gamma(similarity="logits"),
    "gamma_weights b=0.5": _gamma(b_plus=0.5, b_minus=0.5),
}


@dataclass(frozen=True)
class Features:
    """A batch of pairs that fit fairly well, three in ten of them wrong, on the sphere; every second caption twice."""

    image: torch.Tensor
    text: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    teacher: torch.Tensor
    group: torch.Tensor


def inputs(size: int) -> Features:
    """Return the same random batch to every contender."""
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(size, DIM, generator=generator), dim=-1)
    image = torch.randn(size, DIM, generator=generator).mul_(1.2 / math.sqrt(DIM)).add_(text)
    wrong = 3 * size // 10
    image[:wrong] = image[:wrong].roll(1, dims=0)
    return Features(
        F.normalize(image, dim=-1).requires_grad_(),
        text.requires_grad_(),
        torch.tensor(14.3, requires_grad=True),
        torch.tensor(-10.0, requires_grad=True),
        torch.randn(size, DIM, generator=generator),
        torch.arange(size) // 2,
    )


def _step(losses: Callable[[], torch.Tensor]) -> Callable[[], float]:
    def step() -> float:
        loss = losses().mean()
        loss.backward()
        return loss.item()

    return step


def ours(name: str, size: int) -> Callable[[], float]:
    """Prepare our objective."""
    objective, batch, state = CASES[name].objective, inputs(size), State(size, "benchmark")
    objective.prepare(state)
    state.clock = CLOCK
    if isinstance(objective, Reweighted):
        state.scope("by").set_value("mixture", torch.tensor(MIXTURE, dtype=torch.float64))
    pairs = Pairs(
        batch.image,
        batch.text,
        batch.scale,
        batch.bias if objective.needs_bias else None,
        torch.arange(size),
        matches=GroupMatches(batch.group),
        teacher_image=batch.teacher if objective.needs_teacher else None,
        teacher_points=TwoWay(batch.teacher, batch.teacher) if objective.needs_judge else None,
    )
    return _step(lambda: objective(pairs, state))


def plain(name: str, size: int) -> Callable[[], float]:
    """Prepare the plain code."""
    objective, batch = CASES[name].objective, inputs(size)
    torch.manual_seed(0)
    whole = dense.Inputs(
        batch.image,
        batch.text,
        batch.scale,
        batch.bias if objective.needs_bias else None,
        teacher_image=batch.teacher,
        index=torch.arange(size),
        progress=CLOCK.progress,
        memory={"mixture": MIXTURE} if isinstance(objective, Reweighted) else {},
        teacher_points=(batch.teacher, batch.teacher),
    )

    def losses() -> torch.Tensor:
        if getattr(objective, "known_matches", "negative") != "negative":
            whole.matches = (batch.group[:, None] == batch.group).to(batch.text)
        return dense.losses(objective, whole)

    return _step(losses)


def clip_loss(size: int) -> Callable[[], float]:
    """Prepare open_clip's ClipLoss."""
    from open_clip.loss import ClipLoss

    batch = inputs(size)
    return _step(lambda: ClipLoss()(batch.image, batch.text, batch.scale))


def together(measurements: Sequence[Measurement]) -> Measurement:
    """Return the median of the seconds and the largest peak."""
    seconds = statistics.median(each.seconds for each in measurements)
    return Measurement(seconds, max(each.peak_mib for each in measurements), measurements[0].value)


def peaks_at(size: int, smaller: int, peaks: dict[str, float]) -> dict[str, float]:
    """Return what the plain code will need, going by its peaks at a smaller size."""
    return {name: peak * (size / smaller) ** 2 for name, peak in peaks.items()}


def measure_size(names: Sequence[str], size: int, expected: dict[str, float]) -> dict[str, dict[str, Measurement]]:
    """Measure ours and ClipLoss in turns, two rounds of them, and the plain code in the first.

    A call of several seconds is measured once a round, without a warm-up.
    """
    repeats = 2 if size <= 4096 else 1
    found: dict[str, dict[str, Measurement]] = {name: {} for name in names}
    for group in (names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER)):
        rounds: dict[tuple[str, str], list[Measurement]] = {}
        for number in range(2):
            peer = measure(clip_loss, size, repeats=repeats)
            for name in group:
                rounds.setdefault((name, PEER), []).append(peer)
                rounds.setdefault((name, "ours"), []).append(measure(ours, name, size, repeats=repeats))
                if expected.get(name, 0.0) > DENSE_LIMIT_MIB:
                    if number == 0:
                        print(f"dense {name} B={size}: about {expected[name] / 1024:.0f} GiB, not run", flush=True)
                elif number == 0:
                    rounds.setdefault((name, "dense"), []).append(measure(plain, name, size, repeats=repeats))
        for (name, who), each in rounds.items():
            found[name][who] = together(each)
        print(f"B={size}: {', '.join(group)} measured", flush=True)
    return found


def check_values(name: str, found: dict[str, Measurement]) -> None:
    """Raise unless the plain code's mean loss is ours."""
    if "dense" in found:
        mine, theirs = found["ours"].value, found["dense"].value
        if not math.isclose(mine, theirs, rel_tol=CASES[name].tolerance):
            raise AssertionError(f"{name}: the mean loss is {mine}, the plain code's {theirs}")


def records_of(case: str, found: dict[str, Measurement]) -> Iterable[Record]:
    """Yield ours against ClipLoss, then against the plain code."""
    mine = found["ours"]
    for who in (PEER, "dense"):
        if who in found:
            yield Record(case, "seconds", mine.seconds, found[who].seconds, who)
            yield Record(case, "peak_mib", mine.peak_mib, found[who].peak_mib, who)


def goals(results: dict[tuple[str, int], dict[str, Measurement]]) -> Table:
    """Return a table of what was to be reached, and whether it was."""
    table = Table(title="Goals, against ClipLoss")
    for title in ("case", "goal", "found", "verdict"):
        table.add_column(title, justify="left" if title == "case" else "right")
    for (name, size), found in results.items():
        contender, mine, peer = CASES[name], found["ours"], found[PEER]
        rows = [("seconds", mine.seconds / peer.seconds, contender.seconds_goal)]
        if size >= 16384:
            rows.append(("peak_mib", mine.peak_mib / peer.peak_mib, contender.memory_goal))
        for metric, ratio, goal in rows:
            verdict = "met" if ratio <= goal else "missed"
            table.add_row(f"{name} B={size} {metric}", f"≤ {goal:.3g}", f"{ratio:.3g}", verdict)
    return table


def compare(names: Sequence[str], sizes: Sequence[int]) -> list[Record]:
    """Measure every size, print the goals, and return the records."""
    results: dict[tuple[str, int], dict[str, Measurement]] = {}
    expected: dict[str, float] = {}
    for size, following in itertools.zip_longest(sizes, sizes[1:]):
        found = measure_size(names, size, expected)
        for name in names:
            check_values(name, found[name])
            results[name, size] = found[name]
        if following:
            known = {name: each["dense"].peak_mib for name, each in found.items() if "dense" in each}
            expected = peaks_at(following, size, known)
    Console().print(goals(results))
    return [
        record for (name, size), found in results.items() for record in records_of(f"{name} B={size} D={DIM}", found)
    ]


def huge(names: Sequence[str], keep: Callable[[list[Record]], None]) -> list[Record]:
    """Run ours once each at the largest size; hand over what there is after each, which takes minutes."""
    records: list[Record] = []
    for name in names:
        alone = measure(ours, name, HUGE, repeats=1)
        assert math.isfinite(alone.value)
        records += [Record(f"{name} B={HUGE} D={DIM}", "seconds", alone.seconds)]
        records += [Record(f"{name} B={HUGE} D={DIM}", "peak_mib", alone.peak_mib)]
        print(f"B={HUGE}: {name}: {alone.seconds:,.0f} s, {alone.peak_mib:,.0f} MiB", flush=True)
        keep(records)
    return records


def keep(name: str, command: str, machine_name: str, records: Sequence[Record]) -> None:
    """Save the records in place of earlier ones of the same cases; those of other cases stay."""
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["records"] if path.exists() else []
    measured = {each.case for each in records}
    fields = [each.name for each in dataclasses.fields(Record)]
    others = [Record(**{field: each[field] for field in fields}) for each in kept if each["case"] not in measured]
    save(name, command, machine_name, [*others, *records])


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__ or "")
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=list(CASES), help=f"of: {', '.join(CASES)}")
    parser.add_argument("--huge", action="store_true", help=f"ours alone at B = {HUGE:,}; keeps objectives_huge.json")
    options = parser.parse_args()
    names = options.only or list(CASES)
    if options.huge:
        command, name = "python -m benchmarks.objectives --huge", options.save or machine()
        records = huge(names, lambda found: keep("objectives_huge", command, name, found))
        report(f"Objectives at B = {HUGE:,}, forward + backward, float32", records)
        return
    records = compare(names, (1024, 4096) if options.quick else (4096, 16384))
    report("Objectives, forward + backward, float32", records)
    if options.save:
        keep("objectives", "python -m benchmarks.objectives", options.save, records)


if __name__ == "__main__":
    main()
