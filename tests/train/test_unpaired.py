"""Runs in two stages: what the second learns from, who judges, and that a resumed run is the uninterrupted one."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from tests.torchrun import two_ranks
from tests.train.small import Copying, small_model, without_clock
from tests.train.small_unpaired import BORDER, METRIC, METRICS, TOTAL, VARIANTS, trainer, two_stages
from tests.train.unpaired_ranks import COMPARED, main
from troth.data import LoadedBatch, UnpairedStream
from troth.encoders import Towers, TowerTraining, apply_towers
from troth.errors import NonFiniteLossError, UserError
from troth.objectives.base import Objective
from troth.objectives.detection import detection_losses
from troth.objectives.infonce import InfoNCE
from troth.similarity import Pairs, detect
from troth.state import State
from troth.train import AverageConfig, TaughtStream, TrainResult, dry_run, read_log
from troth.train.teacher import FeatureTable


def bits(result: TrainResult) -> dict[str, bytes]:
    return {
        f"{path.stem}: {name}": values.numpy().tobytes()
        for path in sorted(result.checkpoint.glob("*.safetensors"))
        for name, values in load_file(path).items()
    }


def records(folder: Path) -> list[dict]:
    return without_clock(read_log(folder))


class _Stopping(UnpairedStream):
    stop = 0

    def batches(self, start_step: int, stop_step: int, *, view: int = 0):
        yield from super().batches(start_step, min(self.stop, stop_step), view=view)
        raise InterruptedError


def stopping(stop: int, with_pairs: bool) -> UnpairedStream:
    stream = two_stages(with_pairs=with_pairs)
    stream.__class__ = _Stopping
    stream.stop = stop  # type: ignore[attr-defined]
    return stream


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, variant: str) -> None:
    whole = trainer(tmp_path / "whole", variant=variant).run()
    assert whole.step == TOTAL
    expected, with_pairs = bits(whole), "paired_weight" in VARIANTS[variant]
    assert any(name.startswith("judge: ") for name in expected) == ("judge" in VARIANTS[variant])
    # Where the second stage begins, where the judge is replaced, and after; checkpoints are of steps 9, 10, 15 and 18.
    for stop in (BORDER, 15, 19):
        folder = tmp_path / f"{stop}"
        with pytest.raises(InterruptedError):
            trainer(folder, variant=variant, stream=stopping(stop, with_pairs)).run()
        assert bits(trainer(folder, variant=variant).run(resume=True)) == expected
        assert records(folder) == records(tmp_path / "whole")


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_run_that_ends_in_an_evaluation_is_resumed_with_the_same_judge(tmp_path: Path, epoch: int) -> None:
    def broken(model: torch.nn.Module, now: int) -> dict[str, float]:
        if now == epoch:
            raise InterruptedError
        return {METRIC: METRICS[now]}

    whole = trainer(tmp_path / "whole", variant="argmax").run()
    with pytest.raises(InterruptedError):
        trainer(tmp_path / "parts", variant="argmax", evaluate=broken).run()
    assert bits(trainer(tmp_path / "parts", variant="argmax").run(resume=True)) == bits(whole)


def test_the_judge_is_replaced_where_the_metric_has_grown_enough(tmp_path: Path) -> None:
    run = trainer(tmp_path, variant="argmax", config={"keep_last": 100, "checkpoint_every_steps": 1})
    run.run()

    def weights(step: int, name: str) -> bytes:
        file = load_file(tmp_path / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")
        return file["encoder.image_tower.0.weight"].numpy().tobytes()

    for step in range(BORDER + 1, TOTAL + 1):
        # The first copy stands for 0.2; 0.3 is more than 1.1 times that, 0.31 is not so much more than 0.3.
        source = BORDER if step <= 15 else 15
        assert weights(step, "judge") == weights(source, "model"), step
    assert float(run.state.scope("unpaired").value("best")) == METRICS[3]


def test_the_judge_is_what_was_evaluated_the_average_if_there_is_one(tmp_path: Path) -> None:
    config = {"keep_last": 100, "checkpoint_every_steps": 1, "average": AverageConfig(decay=0.9)}
    trainer(tmp_path, variant="argmax", config=config).run()

    def weights(step: int, name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")

    for step, source in ((BORDER + 1, BORDER), (15, BORDER), (16, 15), (TOTAL, 15)):
        judge, average = weights(step, "judge"), weights(source, "average")
        assert all(torch.equal(values, average[f"module.{name}"]) for name, values in judge.items()), step


def test_a_judge_without_a_metric_stays(tmp_path: Path) -> None:
    config = {"keep_last": 100, "checkpoint_every_steps": 5}
    result = trainer(tmp_path, variant="argmax", unpaired={"refresh_metric": None}, config=config).run()
    judge, border = (
        load_file(path)
        for path in (result.checkpoint / "judge.safetensors", tmp_path / "checkpoints/step-00000010/model.safetensors")
    )
    assert all(torch.equal(judge[name], values) for name, values in border.items())


def test_the_first_stage_is_a_run_on_pairs_alone(tmp_path: Path) -> None:
    config = {"keep_last": 100, "checkpoint_every_steps": 5}
    trainer(tmp_path / "top", variant="top", config=config).run()
    trainer(tmp_path / "argmax", variant="argmax", config=config).run()
    weights = [
        load_file(tmp_path / which / "checkpoints/step-00000010/model.safetensors") for which in ("top", "argmax")
    ]
    assert all(torch.equal(weights[0][name], values) for name, values in weights[1].items())
    for record in read_log(tmp_path / "top", "train"):
        assert ("positive_similarity" in record) == (record["step"] <= BORDER)
        assert ("detection_loss" in record) == (record["step"] > BORDER)
    assert [record["step"] for record in read_log(tmp_path / "top", "evaluate")] == [5, 10, 15, 20, 25]
    assert [record["epoch"] for record in read_log(tmp_path / "top", "evaluate")] == [1, 2, 3, 4, 5]


def test_each_stage_has_a_course_of_its_own(tmp_path: Path) -> None:
    run = trainer(tmp_path, unpaired={"learning_rate_factor": 0.01})
    run.run()
    rates = [record["learning_rate"] for record in read_log(tmp_path, "train")]
    schedule = run.config.schedule
    assert rates[:BORDER] == pytest.approx([1e-2 * schedule.factor(step, BORDER) for step in range(BORDER)])
    assert rates[BORDER:] == pytest.approx([1e-4 * schedule.factor(step, 15) for step in range(15)])


def test_a_towers_part_of_the_learning_rate_is_the_same_in_both_stages(tmp_path: Path) -> None:
    model = small_model()
    apply_towers(model, Towers(image=TowerTraining(learning_rate_factor=0.5, layer_decay=0.1)))
    run = trainer(tmp_path, model=model, unpaired={"learning_rate_factor": 0.01})
    optimizer, seen = run._make_step.optimizer, []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append({id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]})
    )
    run.run()
    usual = [record["learning_rate"] for record in read_log(tmp_path, "train")]
    assert len(seen) == len(usual) == TOTAL
    tower = model.encoder.image_tower
    for rate, rates in zip(usual, seen, strict=True):
        assert rates[id(tower[4].weight)] == pytest.approx(0.5 * rate, rel=1e-12)
        assert rates[id(tower[0].weight)] == pytest.approx(0.005 * rate, rel=1e-12)  # two groups are behind it
        assert rates[id(model.encoder.text_tower[0].weight)] == rate


def test_the_loss_is_the_weighted_sum_of_both_means(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float64)
    run = trainer(
        tmp_path,
        variant="mutual, with pairs",
        model=model,
        stream=two_stages(with_pairs=True, dtype=torch.float64),
        unpaired={"weight": 3.0, "judge": "current", "refresh_metric": None},
        config={"optimizer": {"gradient_clip": None}},
    )
    loaded: LoadedBatch = next(iter(run.stream.batches(BORDER, BORDER + 1)))
    features = model(loaded.batch.image, loaded.batch.text)
    state = State(40, "x")
    paired = InfoNCE()(Pairs(features.image[:8], features.text[:8], features.scale), state).mean()
    image, text = features.image[8:], features.text[8:]
    edges = detect(image, text, model.geometry, "mutual")
    detected = detection_losses(Pairs(image, text, features.scale), edges, "mutual").mean()
    total = 0.5 * paired + 3.0 * detected
    expected = torch.autograd.grad(total, list(model.parameters()))
    report = run._make_step(loaded, BORDER, 0.0)
    assert report.loss == pytest.approx(total.item(), rel=1e-12)
    assert report.notes["paired_loss"] == pytest.approx(paired.item(), rel=1e-12)
    assert report.notes["detection_loss"] == pytest.approx(detected.item(), rel=1e-12)
    assert report.notes["detected"] == len(edges) / 8
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


@dataclass(frozen=True)
class Watching(Objective):
    """InfoNCE that takes down how far the run is."""

    kind: str = "watching"
    seen: list[float] = field(default_factory=list)
    needs_bias: ClassVar[bool] = False

    def __call__(self, pairs: Pairs, state: State) -> torch.Tensor:
        self.seen.append(state.clock.progress)
        return InfoNCE()(pairs, state)


@pytest.mark.parametrize(("variant", "steps"), [("top", BORDER), ("mutual, with pairs", TOTAL)])
def test_a_schedule_of_the_objective_ends_where_the_pairs_do(tmp_path: Path, variant: str, steps: int) -> None:
    objective = Watching()
    run = trainer(tmp_path, variant=variant, objective=objective)
    run.run()
    assert objective.seen == [step / steps for step in range(steps)]
    objective.seen.clear()
    dry_run(small_model(), objective, run.stream, run.config, unpaired=run.unpaired)
    expected = [0, 1, BORDER, BORDER + 1][: 2 if steps == BORDER else 4]
    assert objective.seen == [step / steps for step in expected]


def test_the_truth_is_told_and_never_learned_from(tmp_path: Path) -> None:
    known = trainer(tmp_path / "known").run()
    strange = trainer(tmp_path / "strange", stream=two_stages(captions="no such")).run()
    assert bits(known) == bits(strange)
    shares = [record for record in read_log(tmp_path / "known", "train") if record["step"] > BORDER]
    assert max(record["detected_right"] for record in shares) > 0
    plans = two_stages()._plans
    for record in shares:
        step = record["step"] - 1 - BORDER
        both = set(plans.images.indices(step)) & set(plans.texts.indices(step))
        assert record["detectable"] == len(both) / 8
        assert 0 <= record["detected_right"] <= 1
    assert all(record["detected_right"] == 0 for record in read_log(tmp_path / "strange", "train")[BORDER:])


def test_a_teacher_sees_the_pairs_of_both_stages(tmp_path: Path) -> None:
    stream = two_stages(with_pairs=True)
    stream._paired = TaughtStream(stream._paired, FeatureTable(torch.randn(40, 12), "a table"))
    trainer(tmp_path, variant="mutual, with pairs", objective=Copying(), stream=stream).run()


def test_without_pairs_the_second_stage_needs_no_teacher(tmp_path: Path) -> None:
    stream = two_stages()
    stream._paired = TaughtStream(stream._paired, FeatureTable(torch.randn(40, 12), "a table"))
    assert trainer(tmp_path, objective=Copying(), stream=stream).run().step == TOTAL


@pytest.mark.parametrize("variant", ["top", "mutual, with pairs"])
def test_a_loss_that_is_no_number_ends_the_run_with_all_rows_written_down(tmp_path: Path, variant: str) -> None:
    stream = two_stages(with_pairs="paired_weight" in VARIANTS[variant], poison=0)
    with pytest.raises(NonFiniteLossError, match="is not finite"):
        trainer(tmp_path, variant=variant, stream=stream).run()
    (file,) = tmp_path.glob("checkpoints/non-finite-*/batch.json")
    assert len(json.loads(file.read_text())["pairs"]) == (8 if variant == "top" else 16)


def test_another_matching_is_not_resumed(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(UserError, match="objective"):
        trainer(tmp_path, unpaired={"matching": "hungarian"}).run(resume=True)


def test_a_judge_that_follows_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unpaired\.refresh_metric"):
        trainer(tmp_path, variant="argmax", evaluate=None)
    with pytest.raises(UserError, match="the evaluation has no metric"):
        trainer(tmp_path / "run", variant="argmax", evaluate=lambda model, epoch: {"other": 1.0}).run()


def test_two_ranks_train_the_model_that_one_trains(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    main(tmp_path / "one")
    two_ranks("tests.train.unpaired_ranks", tmp_path / "two")
    expected = torch.load(tmp_path / "one" / "0.pt")
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / "two" / f"{rank}.pt"), expected, rtol=1e-8, atol=1e-9)
    for variant in COMPARED:
        logs = (read_log(tmp_path / which / variant, "train") for which in ("one", "two"))
        for one, two in zip(*logs, strict=True):
            assert one.keys() == two.keys()
            for name in one.keys() & {"loss", "detected_right", "detectable", "detection_loss", "paired_loss"}:
                assert one[name] == pytest.approx(two[name], rel=1e-8), (variant, name)
