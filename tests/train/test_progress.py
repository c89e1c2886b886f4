"""What a person at a terminal sees, and a pipe does not."""

import io
import time

import pytest
from rich.console import Console

from troth.train.progress import Meter, ProgressBar


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (True, False), (False, True)])
def test_the_bar_is_drawn_for_people_only(terminal: bool, shown: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=100)
    with ProgressBar(20, done=4, shown=shown, console=console) as bar:
        bar.update(10, epoch=2, status="loss 1.2345 · 678 pairs/s")
    if terminal and shown:
        for part in ("epoch 2", "10/20", "loss 1.2345 · 678 pairs/s", "left"):
            assert part in screen.getvalue()
    else:
        assert screen.getvalue() == ""


def test_the_meter_leaves_out_the_pauses() -> None:
    meter = Meter()
    meter.count(100)
    with meter:
        time.sleep(0.3)
    assert meter.read() > 100 / 0.3
    meter.count(5)
    time.sleep(0.01)
    assert meter.read() < 5 / 0.01
