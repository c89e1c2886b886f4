"""The yardstick cut to a few hundred pictures, in this process and in those that it starts."""

from __future__ import annotations

import pytest

from troth.bench import guard, methods, runs
from troth.bench import select as selecting
from troth.bench.methods import Method
from troth.data import EmbeddedSource, IndexedSource

#: How many samples of each split take part; every one of a test's emoji must keep its name among the classes.
SIZES = {"train": 192, "style-shift": 96, "retrieval": 48, "concept": 24}
_CUT = ("train.batch_size=32", "train.epochs=2")
METHODS = (
    Method("InfoNCE", "heads-infonce", settings=_CUT),
    Method("GCE", "heads-generalized-ce", settings=_CUT),
    Method("oracle: InfoNCE on the right pairs", "heads-infonce", settings=_CUT, data="right"),
)
_whole = EmbeddedSource.open
_guarded, _plain = guard.guarded_worker, guard.plain_worker


def part(self: EmbeddedSource) -> IndexedSource:
    source = _whole(self)
    return IndexedSource(source.name, source.index.slice(0, SIZES[self.split]), source.reader, source.ledger)


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the yardstick small here and in the processes that it starts."""
    monkeypatch.setattr(EmbeddedSource, "open", part)
    monkeypatch.setattr(methods, "METHODS", METHODS)
    monkeypatch.setattr(runs, "METHODS", METHODS)
    monkeypatch.setattr(runs, "guarded_worker", guarded_worker)
    monkeypatch.setattr(runs, "plain_worker", plain_worker)
    monkeypatch.setattr(selecting, "guarded_worker", guarded_worker)
    monkeypatch.setattr(selecting, "plain_worker", plain_worker)


def _cut_here() -> None:
    EmbeddedSource.open = part  # type: ignore[method-assign]
    methods.METHODS = METHODS


def guarded_worker(paths: tuple[str, ...]) -> None:
    _cut_here()
    _guarded(paths)


def plain_worker() -> None:
    _cut_here()
    _plain()
