"""The command line's way into the yardstick."""

from __future__ import annotations

from pathlib import Path

import pytest

from troth import bench, cli
from troth.bench import Order


def ends(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    return int(ended.value.code or 0)


def test_options_become_an_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    orders: list[Order] = []
    monkeypatch.setattr(bench, "run_robustness", orders.append)
    assert ends("robustness", "--quick", "--out", str(tmp_path)) == 0
    assert ends("robustness", "--only", "GCE", "--only", "SaCo", "--noise", "foreign-40", "--seeds", "5") == 0
    assert ends("robustness", "--regime", "small", "--jobs", "1") == 0
    assert orders == [
        Order(tmp_path, quick=True, regimes=("heads",)),
        Order(Path("runs/robustness"), only=("GCE", "SaCo"), noise=("foreign-40",), seeds=5),
        Order(Path("runs/robustness"), regimes=("small",), jobs=1),
    ]
    settings = [setting.name for setting in orders[0].settings()]
    assert settings == ["uniform-0", "uniform-40"]


def test_a_selection_takes_a_method_and_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(bench, "run_select", lambda *args, **options: asked.append((*args, options["seed"])))
    assert ends("select", "GCE", "--grid", "objective.q=0.3,0.5", "--grid", "train.epochs=1,2") == 0
    assert asked == [("GCE", ["objective.q=0.3,0.5", "train.epochs=1,2"], 100)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("robustness", "--regime", "large"), "--regime large: no such regime (one of: heads, small)"),
        (("robustness", "--noise", "much"), "--noise much: no such noise (KIND-PERCENT, such as uniform-40, or clean)"),
        (("select", "GEC"), "GEC: no such method"),
        (("select", "GCE", "--grid", "q"), "--grid q: not a grid"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
