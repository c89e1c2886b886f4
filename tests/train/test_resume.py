"""Resuming: what is refused, what is said, and what goes on bit for bit."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.train.small import SmallEncoder, SmallStream, small_model, trainer
from troth.errors import UserError
from troth.objectives import CleanPosterior, GeneralizedCE, InfoNCE, Objective, Reweighted, Sum
from troth.similarity import Pairs
from troth.state import Clock, State
from troth.train import (
    OptimizerConfig,
    TrainResult,
    read_position,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": SmallStream(batch_size=4), "config": {"epochs": 1}}, "batch size was 8"),
        ({"config": {"epochs": 4}}, "number of steps was 15 .* is 20 now"),
        ({"config": {"max_steps": 14}}, "max_steps: the number of steps was 15 .* is 14 now"),
        ({"seed": 3}, "seed was 0"),
        (
            {"stream": type("Other", (SmallStream,), {"fingerprint": "e" * 64})()},
            "the content of the data .* was ffffffffffff",
        ),
        ({"objective": GeneralizedCE()}, "objective: the objective was InfoNCE"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, changes: dict, message: str) -> None:
    trainer(tmp_path).run()
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, **changes).run(resume=True)


def test_resuming_with_other_threads_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, config={"epochs": 1}).run()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with caplog.at_level(logging.WARNING, logger="troth"):
            trainer(tmp_path, config={"epochs": 1}).run(resume=True)
    finally:
        torch.set_num_threads(threads)
    assert f"not bit for bit: threads {threads} -> {threads + 1}" in caplog.text


def test_resuming_in_another_precision_or_on_another_device_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = trainer(tmp_path, config={"epochs": 1}).run().checkpoint
    assert (read_position(path).device, read_position(path).precision) == ("cpu", "float32")

    def said(**config: object) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="troth"):
            trainer(tmp_path, config={"epochs": 1, **config}).run(resume=True)
        return caplog.text

    assert said() == ""
    assert "not bit for bit: precision float32 -> bfloat16" in said(precision="bfloat16")
    text = (path / "trainer.json").read_text()
    (path / "trainer.json").write_text(text.replace('"device": "cpu"', '"device": "cuda (Some GPU)"'))
    assert "not bit for bit: device cuda (Some GPU) -> cpu" in said()
    record = json.loads(text)
    del record["position"]["device"], record["position"]["precision"]  # as earlier versions wrote it
    (path / "trainer.json").write_text(json.dumps(record))
    assert said(precision="bfloat16") == ""


def test_later_checkpoints_tell_what_the_resumed_run_computed_with(tmp_path: Path) -> None:
    class Stopping(SmallStream):
        def batches(self, start_step: int, stop_step: int):
            yield from super().batches(start_step, 7)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer(tmp_path, stream=Stopping()).run()
    path = trainer(tmp_path, config={"precision": "bfloat16"}).run(resume=True).checkpoint
    assert read_position(path).precision == "bfloat16"


class _Convolution(SmallEncoder):
    """Makes a picture of the features, so that layouts and BatchNorm's buffers matter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 3, 3, padding=1))

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return self.image_tower(self.stem(image.view(-1, 3, 2, 2)).flatten(1))


def test_channels_last_resumes_exactly(tmp_path: Path) -> None:
    class Stopping(SmallStream):
        def batches(self, start_step: int, stop_step: int):
            yield from super().batches(start_step, min(stop_step, 7))
            raise InterruptedError

    def run(folder: Path, stream: SmallStream, **arguments) -> bytes:
        config = {"channels_last": True, "checkpoint_every_steps": 2}
        torch.manual_seed(0)
        model = small_model(encoder=_Convolution())
        result = trainer(folder, model=model, stream=stream, config=config).run(**arguments)
        return (result.checkpoint / "model.safetensors").read_bytes()

    whole = run(tmp_path / "whole", SmallStream())
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", Stopping())
    assert run(tmp_path / "parts", SmallStream(), resume=True) == whole


class _Stopping(SmallStream):
    """A stream that ends with an error before a step."""

    stop = 0

    def batches(self, start_step: int, stop_step: int):
        yield from super().batches(start_step, self.stop)
        raise InterruptedError


@dataclass(frozen=True)
class _Following(Objective):
    """Losses that depend on the clock and on a number kept from epoch to epoch."""

    kind: str = "following"
    clocks: list[Clock] = field(default_factory=list)

    def prepare(self, state: State) -> None:
        state.declare_value("factor", torch.tensor(1.0))

    def __call__(self, pairs: Pairs, state: State) -> torch.Tensor:
        self.clocks.append(state.clock)
        losses = InfoNCE()(pairs, state)
        if state.clock.starts_epoch:
            state.set_value("factor", 1 + losses.detach().mean())
        return losses * state.value("factor") * (1 + state.clock.progress)


def _bits(result: TrainResult) -> dict[str, bytes]:
    files = ("model", "optimizer", "state")
    tensors = {file: load_file(result.checkpoint / f"{file}.safetensors") for file in files}
    return {f"{file}: {name}": values.numpy().tobytes() for file in files for name, values in tensors[file].items()}


def test_objectives_see_the_clock_and_resume_with_their_values(tmp_path: Path) -> None:
    whole, first, second = _Following(), _Following(), _Following()
    config = {"checkpoint_every_steps": 3}
    result = trainer(tmp_path / "whole", objective=whole, config=config, seed=9).run()
    assert whole.clocks == [Clock(seed=9, step=step, steps_per_epoch=5, total_steps=15) for step in range(15)]
    stream = _Stopping()
    stream.stop = 8
    with pytest.raises(InterruptedError):
        trainer(tmp_path / "parts", objective=first, stream=stream, config=config, seed=9).run()
    resumed = trainer(tmp_path / "parts", objective=second, config=config, seed=9).run(resume=True)
    assert [clock.step for clock in second.clocks] == list(range(6, 15))
    assert _bits(resumed) == _bits(result)


@pytest.mark.parametrize("stop", [11, 10])
def test_a_fitted_mixture_resumes_exactly(tmp_path: Path, stop: int) -> None:
    """Stopped within an epoch, and where one begins: the mixture is loaded there, and fitted anew here."""

    def stream(cls: type[SmallStream] = SmallStream) -> SmallStream:
        made = cls(num_samples=160, batch_size=32)
        made.text[:48] = made.text[:48].roll(1, 0)
        return made

    weighted = Reweighted(InfoNCE(), by=CleanPosterior(warmup_epochs=1, keep=0.3))
    objective = Sum(((1.0, weighted), (0.5, GeneralizedCE())))
    config = {"epochs": 4, "checkpoint_every_steps": 1, "optimizer": OptimizerConfig(learning_rate=0.03)}
    whole = trainer(tmp_path / "whole", objective=objective, stream=stream(), config=config)
    result = whole.run()
    fitted = whole.state.scope("0-reweighted").scope("by").value("mixture")
    assert torch.isfinite(fitted).all(), "the test needs a mixture"
    stopping = stream(_Stopping)
    stopping.stop = stop
    with pytest.raises(InterruptedError):
        trainer(tmp_path / "parts", objective=objective, stream=stopping, config=config).run()
    resumed = trainer(tmp_path / "parts", objective=objective, stream=stream(), config=config).run(resume=True)
    assert _bits(resumed) == _bits(result)
