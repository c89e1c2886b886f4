"""Whole runs of towers with adapters or taught by their average, and mistakes in their settings."""

import shutil
from pathlib import Path

import open_clip
import pytest
import torch

from tests.small_runs import ADAPTED, AVERAGE, TOWERS, same, shared_settings, train, weights
from troth import recipe as recipes
from troth import run
from troth.encoders.towers import quiet_open_clip
from troth.errors import UserError
from troth.run import build, open_run
from troth.train import read_log


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return shared_settings(tmp_path_factory.mktemp("pictures"))


def test_the_average_can_be_the_teacher(settings: list[str], tmp_path: Path) -> None:
    mimic = "objective={kind='sum', terms=[[1.0, {kind='infonce'}], [2.5, {kind='mimic'}]]}"
    own = [*settings, TOWERS, mimic, "teacher.kind=momentum"]
    with pytest.raises(UserError, match=r"teacher\.kind: there is no average of the weights to teach"):
        train(tmp_path / "run", *own)
    result = train(tmp_path / "run", *own, AVERAGE)
    losses = [record["loss"] for record in read_log(tmp_path / "run", "train")]
    whole = (result.checkpoint / "average.safetensors").read_bytes()
    shutil.rmtree(result.checkpoint)
    run.resume(tmp_path / "run", progress=False)
    assert (result.checkpoint / "average.safetensors").read_bytes() == whole
    assert [record["loss"] for record in read_log(tmp_path / "run", "train")] == losses
    run.show_dry_run(recipes.load("small-infonce", [*own, AVERAGE]))


def test_adapters_train_resume_and_leave_with_the_export(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    train(plain, *settings, ADAPTED, "train.epochs=1")
    lora = "towers.image.lora={rank=2, targets=['qkv'], dropout=0.1}"
    own = [*settings, ADAPTED, lora, f"start_from={plain}", AVERAGE]
    recipe = recipes.load("small-infonce", own)
    run.show_dry_run(recipe)
    image = next(line for line in capsys.readouterr().out.splitlines() if "image tower" in line)
    total, learning = (int(word.replace(",", "")) for word in image.split() if word.replace(",", "").isdigit())
    assert 0 < learning < total / 10
    folder = tmp_path / "adapted"
    result = train(folder, *own)
    before, after = weights(plain, 2), weights(folder, 4)
    trunk = {name for name in before if ".trunk." in name}
    for name in trunk:
        known = name if name in after else f"{name.rpartition('.')[0]}.base_layer.{name.rpartition('.')[2]}"
        assert torch.equal(before[name], after[known]), name
    assert all(values.any() for name, values in after.items() if "lora_B" in name)
    whole = (result.checkpoint / "model.safetensors").read_bytes()
    shutil.rmtree(result.checkpoint)
    run.resume(folder, progress=False)
    assert (result.checkpoint / "model.safetensors").read_bytes() == whole
    run.export(folder, "best", tmp_path / "exported")
    with quiet_open_clip():
        theirs = open_clip.create_model(f"local-dir:{tmp_path / 'exported'}").eval()
    picture = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        ours = open_run(folder).model.embed_image(picture)
        torch.testing.assert_close(theirs.encode_image(picture, normalize=True), ours, rtol=1e-4, atol=1e-5)
    begun = build(recipes.load("small-infonce", [*settings, ADAPTED, lora, f"start_from={folder}"]))
    run.start(begun.recipe, begun.model)
    assert same(begun.model, weights(folder, 4, "average"))
    without = build(recipes.load("small-infonce", [*settings, ADAPTED, f"start_from={folder}"]))
    with pytest.raises(UserError, match="has adapters, which this model has no places for") as caught:
        run.start(without.recipe, without.model)
    assert "local-dir:" in str(caught.value)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["towers.image.locked=1.5"], "towers.image.locked"),
        (["towers.image.lockd=true"], "towers.image.lockd: unknown key (did you mean 'locked'"),
        (["towers.picture.locked=true"], "towers.picture: unknown key (known here: image, text)"),
        (["towers.image.unlocked_groups=1"], "towers.image: unlocked_groups counts groups of a locked tower"),
        (["train.average.decay=2"], "train.average.decay"),
        (["towers.image.lora.rnk=2"], "towers.image.lora.rnk: unknown key (did you mean 'rank'?)"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(own: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load("small-infonce", own)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_only_building_can_find_names_its_tower(settings: list[str]) -> None:
    for own, message in (
        ("towers.text.freeze_batch_norm=true", "towers.text.freeze_batch_norm: the text tower has no batch norms"),
        ("towers.image={locked=true, unlocked_groups=9}", "towers.image.unlocked_groups: the image tower has 4 groups"),
        ("towers.image.lora={rank=2}", "towers.image.lora: adapters go into timm"),
    ):
        with pytest.raises(UserError) as caught:
            build(recipes.load("small-infonce", [*settings, TOWERS, own]))
        assert str(caught.value).startswith(message)
