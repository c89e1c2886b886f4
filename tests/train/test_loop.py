"""The loop: what it learns, what it writes, how it stops, how it goes on."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.train.small import SmallEncoder, SmallStream, small_model, trainer, without_clock
from troth.data.ledger import Ledger, LedgerEntry
from troth.encoders.contrastive import ContrastiveModel
from troth.errors import NonFiniteLossError, UserError
from troth.train import (
    Checkpoints,
    OptimizerConfig,
    Position,
    RunLog,
    ScheduleConfig,
    TrainResult,
    read_log,
    read_position,
)


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    model = small_model(bias=True)
    result = trainer(tmp_path, model=model, stream=SmallStream(mismatched=5), config={"epochs": 12}).run()
    records = read_log(tmp_path, "train")
    assert [record["step"] for record in records] == list(range(1, 61))
    assert [record["epoch"] for record in records] == [1 + step // 5 for step in range(60)]
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert result.step == 60
    assert result.checkpoint == tmp_path / "checkpoints" / "step-00000060"
    last = records[-1]
    assert last["scale"] == pytest.approx(model.scale.item())
    assert last["bias"] == model.bias.item()
    assert last["samples_per_second"] > 0
    assert last["gradient_norm"] > 0
    with_noise = next(record for record in records if "loss_mismatched" in record)
    assert min(with_noise["loss_matched"], with_noise["loss_mismatched"]) <= with_noise["loss"]
    assert max(with_noise["loss_matched"], with_noise["loss_mismatched"]) >= with_noise["loss"]
    assert -1 <= with_noise["positive_similarity_mismatched"] <= 1


def test_the_learning_rate_is_the_schedules(tmp_path: Path) -> None:
    schedule = ScheduleConfig(warmup_steps=4, final_fraction=0.2)
    trainer(tmp_path, config={"schedule": schedule}).run()
    rates = [record["learning_rate"] for record in read_log(tmp_path, "train")]
    assert rates == pytest.approx([1e-2 * schedule.factor(step, 15) for step in range(15)])


@pytest.mark.parametrize(("limit", "steps"), [(7, 7), (15, 15), (99, 15)])
def test_a_run_of_so_many_steps_ends_within_an_epoch_with_its_schedule(tmp_path: Path, limit: int, steps: int) -> None:
    schedule = ScheduleConfig(warmup_steps=2, final_fraction=0.1)
    result = trainer(tmp_path, config={"schedule": schedule, "max_steps": limit}).run()
    rates = [record["learning_rate"] for record in read_log(tmp_path, "train")]
    assert rates == pytest.approx([1e-2 * schedule.factor(step, steps) for step in range(steps)])
    assert (result.step, read_position(result.checkpoint).total_steps) == (steps, steps)


def test_a_run_of_so_many_steps_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", config={"max_steps": 13}).run()
    config = {"max_steps": 13, "checkpoint_every_steps": 4, "keep_last": 9}
    broken = trainer(tmp_path / "broken", config=config)
    broken.run()
    for step in (13, 12, 10):
        shutil.rmtree(tmp_path / "broken" / "checkpoints" / f"step-{step:08d}")
    again = trainer(tmp_path / "broken", config=config).run(resume=True)
    assert again.step == 13
    first, second = (load_file(each.checkpoint / "model.safetensors") for each in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_step_is_a_plain_pytorch_step(tmp_path: Path) -> None:
    stream, model, plain = SmallStream(), small_model(), small_model()
    config = OptimizerConfig(learning_rate=1e-2, gradient_clip=0.5)
    trainer(tmp_path, model=model, stream=stream, config={"epochs": 1, "optimizer": config}).run()
    optimizer = config.build(plain)
    for step in range(5):
        index = stream.indices(step)
        features = plain(stream.image[index], stream.text[index])
        logits = features.scale * features.image @ features.text.T
        labels = torch.arange(8)
        loss = (nn.functional.cross_entropy(logits, labels) + nn.functional.cross_entropy(logits.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-2 * ScheduleConfig(
            warmup_steps=3
        ).factor(step, 5)
        optimizer.step()
        plain.clamp_scale()
    for name, values in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], values, rtol=1e-4, atol=1e-5, msg=name)


def test_the_scale_never_exceeds_its_cap(tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.log_scale.fill_(math.log(99.0))
    trainer(tmp_path, model=model, config={"optimizer": OptimizerConfig(learning_rate=0.5)}).run()
    assert max(record["scale"] for record in read_log(tmp_path, "train")) <= 100.0001


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_bits(tmp_path: Path, precision: str) -> None:
    def run(name: str, seed: int) -> bytes:
        torch.rand(seed + len(name))  # whatever the process did before
        model = small_model(dropout=0.3)
        result = trainer(tmp_path / name, model=model, seed=seed, config={"precision": precision}).run()
        return (result.checkpoint / "model.safetensors").read_bytes()

    assert run("one", 1) == run("again", 1)
    assert without_clock(read_log(tmp_path / "one")) == without_clock(read_log(tmp_path / "again"))
    assert run("other", 2) != run("yet another", 1)
    assert read_log(tmp_path / "one")[0]["loss"] != read_log(tmp_path / "other")[0]["loss"]


def test_evaluation_picks_the_best_and_resumes_know_it(tmp_path: Path) -> None:
    scores = {1: 0.2, 2: 0.9, 3: 0.1, 4: 0.3, 5: 0.0}

    def evaluate(model: ContrastiveModel, epoch: int) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(7)
        return {"recall": scores[epoch], "other": math.nan}

    arguments = {"evaluate": evaluate, "best_metric": "recall", "config": {"epochs": 5, "keep_last": 1}}
    result = trainer(tmp_path, **arguments).run()
    assert (result.best_step, result.best_value, result.metrics["recall"]) == (10, 0.9, 0.0)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000025"]
    assert [(r["epoch"], r["recall"], r["other"]) for r in read_log(tmp_path, "evaluate")] == [
        (epoch, score, None) for epoch, score in scores.items()
    ]
    assert Checkpoints(tmp_path / "checkpoints").best() == tmp_path / "checkpoints" / "step-00000010"
    again = trainer(tmp_path, **arguments).run(resume=True)  # nothing is left to do
    assert (again.best_step, again.best_value, again.step) == (10, 0.9, 25)
    assert len(read_log(tmp_path, "evaluate")) == 5


class _KilledError(Exception):
    pass


def _kill_around(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Make the run end at a place around the saving and evaluating of step 10."""
    owner, method, after = {
        "saved": (Checkpoints, "save", True),
        "evaluated": (RunLog, "write", False),
        "logged": (Checkpoints, "rewrite_position", False),
        "rewritten": (Checkpoints, "rewrite_position", True),
    }[where]
    original = getattr(owner, method)

    def killing(self: Checkpoints | RunLog, first: Position | str, *others: object, **named: object) -> object:
        here = first.step == 10 if isinstance(first, Position) else (first, others[0]) == ("evaluate", 10)
        if here and not after:
            raise _KilledError
        result = original(self, first, *others, **named)
        if here:
            raise _KilledError
        return result

    monkeypatch.setattr(owner, method, killing)


@pytest.mark.parametrize("best_epoch", [1, 2])
@pytest.mark.parametrize("where", ["saved", "evaluating", "evaluated", "logged", "rewritten"])
def test_a_run_that_ends_around_an_evaluation_resumes_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, best_epoch: int
) -> None:
    failing = False

    def evaluate(model: ContrastiveModel, epoch: int) -> dict[str, float]:
        if failing and epoch == 2:
            raise _KilledError
        pairs = model.encoder.encode_image(SmallStream().image)
        return {"recall": float(epoch == best_epoch), "mean": float(pairs.mean()), "drawn": float(torch.rand(()))}

    def run(name: str, **named: bool) -> TrainResult:
        arguments = {"evaluate": evaluate, "best_metric": "recall", "config": {"keep_last": 1}}
        return trainer(tmp_path / name, model=small_model(dropout=0.3), **arguments).run(**named)

    whole = run("whole")
    with monkeypatch.context() as patch:
        failing = where == "evaluating"
        if not failing:
            _kill_around(patch, where)
        with pytest.raises(_KilledError):
            run("parts")
    failing = False
    checkpoints = Checkpoints(tmp_path / "parts" / "checkpoints")
    assert checkpoints.latest() == checkpoints.path(10)
    assert len(read_log(tmp_path / "parts", "evaluate")) == (2 if where in ("logged", "rewritten") else 1)
    best = checkpoints.best()
    assert best is not None
    assert best.exists()

    resumed = run("parts", resume=True)
    assert (resumed.metrics, resumed.best_step) == (whole.metrics, 5 * best_epoch) == (whole.metrics, whole.best_step)
    assert without_clock(read_log(tmp_path / "parts")) == without_clock(read_log(tmp_path / "whole"))
    for step in {5 * best_epoch, 15}:
        folders = [tmp_path / name / "checkpoints" / f"step-{step:08d}" for name in ("whole", "parts")]
        assert sorted(path.name for path in folders[1].iterdir()) == sorted(path.name for path in folders[0].iterdir())
        assert read_position(folders[0]) == read_position(folders[1])
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), (step, name)
    assert checkpoints.steps() == sorted({5 * best_epoch, 15})


def test_an_evaluation_that_fails_at_the_end_is_made_up_for_without_a_step(tmp_path: Path) -> None:
    def broken(model: ContrastiveModel, epoch: int) -> dict[str, float]:
        raise ValueError("no captions")

    config = {"evaluate_every_epochs": 100}
    with pytest.raises(ValueError, match="no captions"):
        trainer(tmp_path, evaluate=broken, config=config).run()
    assert Checkpoints(tmp_path / "checkpoints").steps() == [15]
    seen: list[int] = []
    arguments = {"evaluate": lambda model, epoch: seen.append(epoch) or {"recall": 1.0}, "config": config}
    result = trainer(tmp_path, **arguments).run(resume=True)
    assert (result.step, result.metrics, seen) == (15, {"recall": 1.0}, [3])
    assert len(read_log(tmp_path, "train")) == 15
    assert trainer(tmp_path, **arguments).run(resume=True).metrics == {"recall": 1.0}
    assert (seen, len(read_log(tmp_path, "evaluate"))) == ([3], 1)


def test_evaluating_changes_nothing_in_training(tmp_path: Path) -> None:
    def evaluate(model: ContrastiveModel, epoch: int) -> dict[str, float]:
        return {"noise": float(torch.rand(()))}

    for name, function in (("with", evaluate), ("without", None)):
        trainer(tmp_path / name, model=small_model(dropout=0.3), evaluate=function).run()
    losses = [[r["loss"] for r in read_log(tmp_path / name, "train")] for name in ("with", "without")]
    assert losses[0] == losses[1]


def test_an_evaluation_without_the_deciding_metric_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^evaluation\.best: .*no metric 'recal'.*one of: recall"):
        trainer(tmp_path, evaluate=lambda model, epoch: {"recall": 1.0}, best_metric="recal").run()


@pytest.mark.parametrize("micro", [None, 3])
def test_a_loss_that_is_not_finite_stops_the_run_with_everything_saved(tmp_path: Path, micro: int | None) -> None:
    model, stream = small_model(), SmallStream(poison=17)
    bad_step = next(step for step in range(5) if 17 in stream.indices(step))
    message = rf"the loss of step {bad_step + 1} is not finite.*batch\.json.*learning rate"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer(tmp_path, model=model, stream=stream, config={"micro_batch_size": micro}).run()
    folder = tmp_path / "checkpoints" / f"non-finite-step-{bad_step + 1:08d}"
    pairs = json.loads((folder / "batch.json").read_text())["pairs"]
    assert [pair["sample_id"] for pair in pairs] == stream.indices(bad_step).tolist()
    assert next(pair["loss"] for pair in pairs if pair["sample_id"] == 17) is None
    assert read_position(folder).step == bad_step
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert read_log(tmp_path)[-1]["event"] == "non-finite"


class _Exploding(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features.register_hook(lambda gradient: gradient * math.inf)
        return features


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    encoder.image_tower.append(_Exploding())
    model = small_model(encoder=encoder)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="the gradient norm of step 1 is not finite"):
        trainer(tmp_path, model=model).run()
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name])


def test_what_batches_skip_is_written_once(tmp_path: Path) -> None:
    entry = LedgerEntry("b.png", "corrupt-image", "truncated")
    indexed = LedgerEntry("a.png", "missing-file")
    for resume in (False, True):
        trainer(tmp_path, stream=SmallStream(skipped=(entry,)), ledger=Ledger([indexed])).run(resume=resume)
        assert list(Ledger.read(tmp_path / "ledger.jsonl")) == [indexed, entry]


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(UserError, match=r"holds a run already.*resume it"):
        trainer(tmp_path).run()


def test_a_batch_larger_than_the_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.batch_size: a batch of 50 is larger than the data set of 40"):
        trainer(tmp_path, stream=SmallStream(batch_size=50))
