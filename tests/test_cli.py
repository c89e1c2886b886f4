"""The command line: light help, one-line errors, and every verb on a small real run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from troth import cli
from troth import recipe as recipes
from troth.audit import AuditTable

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "yellow": (230, 220, 40)}
SMALL = [
    'model={kind="small", image_size=32, patch_size=16, embed_dim=16, vision_width=64, vision_layers=1, text_width=64, '
    "text_layers=1, context_length=8}",
    "train={epochs=2, batch_size=16, precision='float32', checkpoint_every_steps=2, log_every=1, tensorboard=false}",
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 small pictures in four colours, with captions, and two files that cannot be used."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(48):
        name, colour = list(COLOURS.items())[number % 4]
        (folder / name).mkdir(exist_ok=True)
        noise = generator.integers(-25, 25, (40, 48, 3))
        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
        (folder / name / f"{number:02}.txt").write_text(f"a {name} square\nsquare number {number}\n")
    (folder / "red" / "broken.png").write_bytes(b"not a picture")
    (folder / "red" / "broken.txt").write_text("a broken picture\n")
    Image.new("RGB", (8, 8)).save(folder / "red" / "silent.png")
    return folder


def settings(pictures: Path) -> list[str]:
    source = f'{{kind="folder", path="{pictures}"}}'
    tasks = (
        f'evaluation.tasks=[{{kind="zero-shot", name="colour", source={source}, class_field="category", '
        f'templates=["a {{}} square", "{{}}"], topk=[1]}}, {{kind="retrieval", source={source}, k=[1]}}]'
    )
    return [f"data.source={source}", tasks, 'evaluation.best="colour/top1"', *SMALL]


def flags(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    wrong = ["data.noise.fraction=0.25"]
    call("train", "small-infonce", *flags([*settings(pictures), *wrong]), "--out", str(folder), "--quiet")
    return folder


def call(*arguments: str) -> None:
    """Run the command in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert ended.value.code == 0


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return the one line that a call ends with, having checked that it is one, with exit code 2."""

    def check(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        assert ended.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("troth: ")
        return lines[0]

    return check


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv=['troth', '--help']\n"
        "from troth.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'PIL', 'open_clip', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for verb in ("train", "evaluate", "embed", "audit", "export", "demo", "recipe", "data"):
        assert verb in finished.stdout


def test_a_users_mistake_is_one_line_and_exit_code_2_without_a_traceback() -> None:
    command = [sys.executable, "-m", "troth", "train", "heads-infonce", "--set", "train.epoch=3"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr == "troth: heads-infonce: train.epoch: unknown key (did you mean 'epochs'?)\n"
    assert finished.stdout == ""


def test_training_leaves_a_whole_run(run: Path, pictures: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"recipe.toml", "noise.npz", "log.jsonl", "ledger.jsonl", "checkpoints", "evaluation.json"} <= names
    metrics = json.loads((run / "evaluation.json").read_text())["metrics"]
    assert {"colour/top1", "retrieval/mean_recall"} <= set(metrics)
    ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert {(entry["key"], entry["reason"]) for entry in ledger} == {
        ("red/broken.png", "corrupt-image"),
        ("red/silent.png", "empty-caption"),
    }


def test_evaluate_writes_standard_errors(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("evaluate", str(run), "--checkpoint", "last")
    record = json.loads((run / "evaluation.json").read_text())
    assert record["num_queries"]["colour"] == 48
    for task in recipes.load(run / "recipe.toml").evaluation.tasks:
        measured = {name.partition("/")[2] for name in record["metrics"] if name.startswith(f"{task.name}/")}
        assert measured - set(task.metric_names()) <= {"image_to_text/median_rank", "text_to_image/median_rank"}
        assert set(task.metric_names()) <= measured
    assert 0 <= record["metrics"]["colour/top1"] <= 1
    assert "colour/top1" in record["standard_errors"] or record["metrics"]["colour/top1"] in (0, 1)
    assert "mean_recall" in capsys.readouterr().out


def test_embed_writes_points_with_ids(run: Path, pictures: Path, tmp_path: Path) -> None:
    call("embed", str(run), str(pictures), "--out", str(tmp_path / "points.safetensors"))
    tensors = load_file(tmp_path / "points.safetensors")
    assert tensors["image"].shape == tensors["text"].shape == (48, 16)
    torch.testing.assert_close(tensors["image"].norm(dim=1), torch.ones(48))
    assert len(set(tensors["index"].tolist())) == 48


def test_audit_writes_every_pair_with_the_caption_it_was_given(run: Path, tmp_path: Path) -> None:
    call("audit", str(run), "--out", str(tmp_path / "audit.parquet"))
    table = AuditTable.read(tmp_path / "audit.parquet")
    assert len(table) == 48
    moved = [key != owner for key, owner in zip(table.key, table.caption_key, strict=True)]
    with np.load(run / "noise.npz") as noise:
        assert sum(moved) == int(noise["mismatched"][table.id].sum()) > 0


def test_an_audit_can_weigh_the_pairs_of_the_next_run(run: Path, pictures: Path, tmp_path: Path) -> None:
    call("audit", str(run), "--out", str(tmp_path / "audit.parquet"))
    by = f'{{kind="given", file="{tmp_path / "audit.parquet"}", column="quality"}}'
    weighted = [*settings(pictures), f'objective={{kind="reweighted", objective={{kind="infonce"}}, by={by}}}']
    call("train", "small-infonce", *flags(weighted), "--out", str(tmp_path / "next"))
    table = AuditTable.read(tmp_path / "audit.parquet")
    checkpoint = sorted((tmp_path / "next" / "checkpoints").glob("step-*"))[-1]
    with safe_open(checkpoint / "state.safetensors", framework="pt") as file:
        remembered = file.get_tensor("memory/by/weight")
    assert remembered.numpy()[table.id].tolist() == pytest.approx(table.quality.tolist(), rel=1e-6)


def test_a_table_that_does_not_exist_is_found_before_a_folder_is_made(
    pictures: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    by = '{kind="given", file="nowhere.parquet"}'
    weighted = [*settings(pictures), f'objective={{kind="reweighted", objective={{kind="infonce"}}, by={by}}}']
    assert "objective.by.file: no such file" in fails(
        "train", "small-infonce", *flags(weighted), "--out", str(tmp_path / "next")
    )
    assert not (tmp_path / "next").exists()


def test_export_loads_in_open_clip(run: Path, tmp_path: Path) -> None:
    call("export", str(run), str(tmp_path / "exported"), "--weights", "trained")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'exported'}")
    image = transform(Image.new("RGB", (40, 40), (220, 30, 30)))[None]
    with torch.no_grad():
        assert model.encode_image(image).shape == (1, 16)


def test_a_run_resumes_to_the_same_weights(run: Path, tmp_path: Path) -> None:
    """A run that lost its last checkpoint is brought to the same end by the command line."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    last = sorted((copy / "checkpoints").glob("step-*"))[-1]
    shutil.rmtree(last)
    call("train", "--resume", str(copy), "--quiet")
    resumed = load_file(last / "model.safetensors")
    uninterrupted = load_file(run / "checkpoints" / last.name / "model.safetensors")
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_torchrun_trains_to_the_weights_of_one_process(pictures: Path, tmp_path: Path) -> None:
    values = [*settings(pictures), "train.epochs=1", "evaluation={tasks=[]}"]
    call("train", "small-infonce", *flags(values), "--out", str(tmp_path / "one"), "--quiet")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "troth"]
    finished = subprocess.run(
        [*command, "train", "small-infonce", *flags(values), "--out", str(tmp_path / "two"), "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [record["step"] for record in one] == [record["step"] for record in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)


def test_dry_run_prints_the_cost_and_writes_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call("train", "small-infonce", *flags(settings(pictures)), "--dry-run")
    printed = capsys.readouterr().out
    for part in ("image tower", "text tower", "trainable", "peak memory", "one step", "all steps"):
        assert part in printed
    assert not list(tmp_path.iterdir())


def test_data_check_counts_and_names_what_cannot_be_used(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("data", "check", str(pictures), "--ledger", str(tmp_path / "ledger.jsonl"))
    printed = capsys.readouterr().out
    assert "49 samples" in printed
    assert "corrupt-image" in printed
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2


def test_recipe_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    call("recipe", "list")
    assert "heads-generalized-ce" in capsys.readouterr().out
    call("recipe", "show", "heads-infonce", "--set", "train.epochs=3")
    assert "epochs = 3" in capsys.readouterr().out
    call("recipe", "check", "small-infonce")
    assert "valid" in capsys.readouterr().out


def test_what_can_go_wrong_on_the_command_line(run: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    # Without a recipe the default one is trained: here, told of data that are not there.
    assert cli.DEFAULT_RECIPE in recipes.shipped()
    assert "there is no folder" in fails(
        "train", "--set", f"data.source={{kind='folder', path='{tmp_path / 'nowhere'}'}}"
    )
    assert "leave out RECIPE" in fails("train", "heads-infonce", "--resume", str(run))
    assert "not a run" in fails("train", "--resume", str(tmp_path))
    assert "holds a run already" in fails("train", "heads-infonce", "--out", str(run))
    assert "not a run" in fails("evaluate", str(tmp_path))
    assert "no checkpoint '77'" in fails("evaluate", str(run), "--checkpoint", "77")
    assert "the run kept no average" in fails("evaluate", str(run), "--weights", "average")
    assert "trained or average" in fails("export", str(run), str(tmp_path / "new"), "--weights", "both")
    assert "no such data" in fails("embed", str(run), "nowhere", "--out", "x.safetensors")
    assert "writes .safetensors" in fails("embed", str(run), str(tmp_path), "--out", "x.npz")
    assert "no split 'test'" in fails("data", "check", "embedded:test")
    assert "holds something else" in fails("demo", "--out", str(run))
    assert "between 0 and 1" in fails("demo", "--noise", "1.5", "--out", str(tmp_path / "new"))
    assert "train.epochs" in fails("demo", "--set", "train.epochs=0", "--out", str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert "leave out" in fails("train", "--resume", str(run), "--dry-run")
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in fails("audit", str(run), "--out", str(tmp_path / "file" / "audit.parquet"))


def test_a_wrong_option_is_usage_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--epochz", "3"])
    assert ended.value.code == 2
    assert "--epochz" in capsys.readouterr().err


def test_a_folder_of_mine_is_not_the_demos_to_clear(tmp_path: Path, fails: Callable[..., str]) -> None:
    mine = tmp_path / "infonce" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    assert "holds something else" in fails("demo", "--out", str(tmp_path))
    assert mine.read_text() == "years of work"


def test_a_missing_test_set_is_found_before_training(pictures: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    missing = 'evaluation.tasks=[{kind="retrieval", source={kind="folder", path="no/such"}}]'
    values = flags([*settings(pictures)[:1], missing, *SMALL])
    for last in (["--out", str(tmp_path / "run")], ["--dry-run"]):
        assert "evaluation.tasks.0.source.path" in fails("train", "small-infonce", *values, *last)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_other_tasks_can_be_asked_of_a_trained_run(run: Path, pictures: Path) -> None:
    other = (
        f'evaluation.tasks=[{{kind="retrieval", name="again", source={{kind="folder", path="{pictures}"}}, k=[1, 5]}}]'
    )
    before = (run / "evaluation.json").read_text()
    call("evaluate", str(run), "--set", other)
    assert "again/mean_recall" in json.loads((run / "evaluation.json").read_text())["metrics"]
    (run / "evaluation.json").write_text(before)


def test_foreign_captions_are_audited_with_their_owners(pictures: Path, tmp_path: Path) -> None:
    reserve = tmp_path / "reserve"
    reserve.mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8)).save(reserve / f"r{number:02}.png")
        (reserve / f"r{number:02}.txt").write_text(f"reserve caption {number}\n")
    noise = f'data.noise={{fraction=0.25, partners="foreign", reserve={{kind="folder", path="{reserve}"}}}}'
    values = [*settings(pictures)[:1], "evaluation.tasks=[]", *SMALL, noise]
    call("train", "small-infonce", *flags(values), "--out", str(tmp_path / "run"), "--quiet")
    call("audit", str(tmp_path / "run"))
    table = AuditTable.read(tmp_path / "run" / "audit.parquet")
    assert sum(str(key).startswith("r") and str(key)[1:3].isdigit() for key in table.caption_key) == 12


def test_a_failed_build_leaves_no_folder(tmp_path: Path, fails: Callable[..., str]) -> None:
    line = fails("train", "small-infonce", "--set", "train.batch_size=999999", "--out", str(tmp_path / "run"))
    assert "batch_size" in line
    assert not (tmp_path / "run").exists()
