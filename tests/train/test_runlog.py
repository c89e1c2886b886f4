"""The log holds every step once, whatever happened to the process that wrote it."""

import json
import math
from pathlib import Path

from troth.train import LOG_NAME, RunLog, read_log


def test_lines_are_on_disk_before_the_log_is_closed(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write("train", 1, loss=2.5, note="x")
    assert json.loads((tmp_path / LOG_NAME).read_text()) == {"event": "train", "step": 1, "loss": 2.5, "note": "x"}
    log.close()


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write("evaluate", 1, recall=math.nan, nested={"a": math.inf})
    assert read_log(tmp_path) == [{"event": "evaluate", "step": 1, "recall": None, "nested": {"a": None}}]


def test_resuming_cuts_off_the_steps_that_come_again(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(1, 7):
            log.write("train", step)
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write('{"event": "train", "st')  # killed in the middle of a line
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with RunLog(tmp_path, after_step=4) as log:
        log.write("train", 5)
        log.write("evaluate", 5)
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3, 4, 5, 5]
    assert len(read_log(tmp_path, "evaluate")) == 1
    with RunLog(tmp_path, after_step=0):
        pass
    assert read_log(tmp_path) == []


def test_damage_in_the_middle_costs_only_its_own_lines(tmp_path: Path) -> None:
    lines = [
        '{"event": "train", "step": 1}',
        '{"event": "train", "st\x00\x00',
        "[1, 2]",
        '{"note": "no step, no event"}',
        '{"event": "train", "step": 2}',
        '{"event": "train", "step": 3}',
        '{"note": "goes with step 3"}',
    ]
    (tmp_path / LOG_NAME).write_text("\n".join(lines) + "\n")
    assert [record["step"] for record in read_log(tmp_path, "train")] == [1, 2, 3]
    assert len(read_log(tmp_path)) == 5
    with RunLog(tmp_path, after_step=2) as log:
        log.write("train", 3)
    assert read_log(tmp_path) == [
        {"event": "train", "step": 1},
        {"note": "no step, no event"},
        {"event": "train", "step": 2},
        {"event": "train", "step": 3},
    ]


def test_an_evaluation_that_comes_again_is_cut_off(tmp_path: Path) -> None:
    for evaluated in (True, False):
        with RunLog(tmp_path) as log:
            for step in (1, 2):
                log.write("train", step)
                log.write("evaluate", step)
        with RunLog(tmp_path, after_step=2, evaluated=evaluated):
            pass
        assert [record["step"] for record in read_log(tmp_path, "train")] == [1, 2]
        assert [record["step"] for record in read_log(tmp_path, "evaluate")] == ([1, 2] if evaluated else [1])


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, tensorboard=True) as log:
        log.write("train", 3, loss=1.5, note="not a number")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 1.5)]
