"""How every benchmark reports: a table for people and one line of JSON for programs."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Record:
    """One measurement, of ours and perhaps of a peer.

    For ``seconds`` and ``peak_mib`` a ratio below 1 is better, for ``per_second`` one above.
    """

    case: str
    metric: str
    ours: float
    peer: float | None = None
    peer_name: str | None = None

    @property
    def ratio(self) -> float | None:
        """``ours / peer``; None without a peer."""
        return self.ours / self.peer if self.peer else None

    def to_json(self) -> dict[str, Any]:
        """The record as every benchmark's last line holds it."""
        return {
            "case": self.case,
            "metric": self.metric,
            "ours": self.ours,
            "peer": self.peer,
            "peer_name": self.peer_name,
            "ratio": self.ratio,
        }


def report(title: str, records: Sequence[Record]) -> None:
    """Print a table, and as the last line of standard output one JSON list of the records."""
    table = Table(title=title)
    for name in ("case", "metric", "ours", "peer", "ours / peer"):
        table.add_column(name, justify="left" if name in ("case", "metric") else "right")
    for each in records:
        peer = "" if each.peer is None else f"{each.peer:,.4g} ({each.peer_name})"
        ratio = "" if each.ratio is None else f"{each.ratio:.3f}"
        table.add_row(each.case, each.metric, f"{each.ours:,.4g}", peer, ratio)
    Console().print(table)
    print(json.dumps([each.to_json() for each in records]), flush=True)


def save(name: str, command: str, machine: str, records: Sequence[Record]) -> None:
    """Write ``benchmarks/results/NAME.json``: the records, the command and the kind of machine that made them."""
    content = {"command": command, "machine": machine, "records": [each.to_json() for each in records]}
    RESULTS.mkdir(exist_ok=True)
    temporary = RESULTS / f".{name}.json.{os.getpid()}"
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(RESULTS / f"{name}.json")


def kept(name: str, again: Callable[[str], bool]) -> list[Record]:
    """Return the saved records of a benchmark but for those of cases that are measured again."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    records = json.loads(path.read_text(encoding="utf-8"))["records"]
    fields = ("case", "metric", "ours", "peer", "peer_name")
    return [Record(*(each[field] for field in fields)) for each in records if not again(each["case"])]


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark may take: ``--quick`` and ``--save``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller version, for trying it out")
    parser.add_argument(
        "--save",
        nargs="?",
        const=machine(),
        metavar="MACHINE",
        help="keep the result under benchmarks/results, with this description of the machine (found out by default)",
    )
    return parser


def machine() -> str:
    """Describe the machine in a few words, without naming it."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    extensions = [name for name, flag in (("AVX-512", "avx512f"), ("AMX bf16", "amx_bf16")) if flag in flags]
    return ", ".join([f"{os.cpu_count()}-core {platform.machine()}", *extensions])
