"""The average of the weights: its arithmetic, its place in checkpoints and evaluation, and what it teaches."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.train.small import Copying, SmallEncoder, SmallStream, small_config, small_model, trainer
from troth.encoders import ContrastiveModel
from troth.errors import UserError
from troth.state import State
from troth.train import AverageConfig, AveragedWeights, dry_run, load_average


class Normed(SmallEncoder):
    """Has a batch norm, and a buffer of infinities like the mask of a causal text tower."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.norm = nn.BatchNorm1d(12)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1), persistent=False)

    def encode_image(self, image: Tensor) -> Tensor:
        return super().encode_image(self.norm(image))


def moved(model: ContrastiveModel, draw: torch.Generator) -> None:
    """Change every weight and statistic, as a step would."""
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith("num_batches_tracked"):
                values += 1
            elif not name.endswith("mask"):
                values.add_(torch.rand(values.shape, generator=draw, dtype=values.dtype))


@pytest.mark.parametrize("warmup", [True, False])
def test_it_is_the_loop_of_the_definition(warmup: bool) -> None:
    model, draw = small_model(encoder=Normed(), dtype=torch.float64), torch.Generator().manual_seed(0)
    average = AveragedWeights(model, AverageConfig(decay=0.3, warmup=warmup))
    expected: dict[str, Tensor] = {}
    for update in range(6):
        moved(model, draw)
        average.update_parameters(model)
        decay = min(0.3, (1 + update) / (10 + update)) if warmup else 0.3
        for name, values in model.state_dict().items():
            if update == 0 or not values.is_floating_point():
                expected[name] = values.clone()
            else:
                expected[name] = decay * expected[name] + (1 - decay) * values
        state = average.module.state_dict()
        assert state.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(state[name], values, rtol=1e-13, atol=1e-13, msg=name)
    assert int(average.n_averaged) == 6
    assert torch.equal(average.module.encoder.mask, model.encoder.mask)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not average.module.training


def test_a_late_update_uses_the_whole_decay() -> None:
    config = AverageConfig(decay=0.99)
    assert config.at(0) == 0.1
    assert config.at(1) == pytest.approx(2 / 11)
    assert config.at(10_000) == 0.99
    assert AverageConfig(decay=0.99, warmup=False).at(0) == 0.99
    for wrong in ({"decay": 1.0}, {"decay": 0.0}, {"deacy": 0.9}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            AverageConfig(**wrong)


def test_training_averages_after_each_step_and_changes_nothing_else(tmp_path: Path) -> None:
    seen: list[ContrastiveModel] = []
    averaged = trainer(
        tmp_path / "averaged",
        config={"average": AverageConfig(decay=0.8), "epochs": 1, "checkpoint_every_steps": 1, "keep_last": 9},
        evaluate=lambda model, epoch: seen.append(model) or {"recall": 0.0},
    )
    last = averaged.run().checkpoint
    plain = trainer(tmp_path / "plain", config={"epochs": 1}).run().checkpoint
    assert (last / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    expected = None
    for update in range(5):
        folder = last.parent / f"step-{update + 1:08d}"
        weights = load_file(folder / "model.safetensors")
        decay = min(0.8, (1 + update) / (10 + update))
        expected = weights if expected is None else {n: decay * expected[n] + (1 - decay) * weights[n] for n in weights}
        saved = load_file(folder / "average.safetensors")
        assert int(saved.pop("n_averaged")) == update + 1
        for name, values in expected.items():
            torch.testing.assert_close(saved[f"module.{name}"], values)
    loaded = small_model()
    load_average(last, loaded)
    for name, values in seen[0].state_dict().items():
        assert torch.equal(values, loaded.state_dict()[name]), "evaluation sees the average"
    assert not torch.equal(loaded.log_scale, averaged.model.log_scale)
    assert averaged.model.training


class _Stopping(SmallStream):
    def batches(self, start_step: int, stop_step: int):
        yield from super().batches(start_step, min(stop_step, 7))
        raise InterruptedError


@pytest.mark.parametrize("objective", ["averaged", "taught"])
def test_a_resumed_run_has_the_same_average(tmp_path: Path, objective: str) -> None:
    def run(folder: Path, stream: SmallStream, **arguments) -> dict[str, bytes]:
        encoder = None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = Normed(dropout=0.3)
        made = trainer(
            folder,
            model=small_model(encoder=encoder),
            stream=stream,
            config={"average": AverageConfig(decay=0.9), "checkpoint_every_steps": 3},
            **({"objective": Copying()} if objective == "taught" else {}),
        )
        checkpoint = made.run(**arguments).checkpoint
        names = ("model", "average", "optimizer")
        return {name: (checkpoint / f"{name}.safetensors").read_bytes() for name in names}

    whole = run(tmp_path / "whole", SmallStream())
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", _Stopping())
    assert run(tmp_path / "parts", SmallStream(), resume=True) == whole


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_the_average_teaches_what_it_makes_of_the_very_batch(micro_batch_size: int | None) -> None:
    given = []

    class Noting(Copying):
        def __call__(self, pairs, state):
            given.append(pairs.teacher_image.clone())
            return super().__call__(pairs, state)

    model, stream = small_model(dropout=0.5), SmallStream()
    step = small_config(average=AverageConfig(decay=0.5, warmup=False), micro_batch_size=micro_batch_size).step_maker(
        model, Noting(), State(40, "f"), 0
    )
    model.train()
    for number, loaded in enumerate(stream.batches(0, 3)):
        before = step.average.module.state_dict()
        teacher = small_model().eval()
        teacher.load_state_dict(before)
        expected = teacher.embed_image(loaded.batch.image).detach()
        step(loaded, number, 0.01)
        torch.testing.assert_close(given[-1], expected)
    assert not torch.equal(given[0], given[1])


def test_a_teacher_of_the_batch_comes_first_and_none_is_an_error() -> None:
    step = small_config().step_maker(small_model(), Copying(), State(40, "f"), 0)
    with pytest.raises(UserError, match="copies a teacher, and there is none"):
        step(next(SmallStream().batches(0, 1)), 0, 0.01)


def test_a_run_without_average_is_not_resumed_with_one(tmp_path: Path) -> None:
    trainer(tmp_path, config={"epochs": 1}).run()
    with pytest.raises(UserError, match=r"average\.safetensors: the weights cannot be read"):
        trainer(tmp_path, config={"epochs": 1, "average": AverageConfig()}).run(resume=True)


def test_a_dry_run_with_an_average_leaves_the_model_alone() -> None:
    model = small_model()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    dry_run(model, Copying(), SmallStream(), small_config(average=AverageConfig()))
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
