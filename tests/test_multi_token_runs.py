"""Whole runs of towers with several class tokens: trained, resumed, begun with a run of one token, and refused."""

from pathlib import Path

import open_clip
import pytest
import torch

from tests.small_runs import AVERAGE, TOWERS, same, shared_settings, train, weights
from tests.torchrun import two_ranks
from troth import recipe as recipes
from troth import run
from troth.encoders import load_export
from troth.errors import UserError
from troth.run import build, open_run
from troth.train import read_log

OBLIQUE = "geometry={kind='oblique', sub_dim=8, num_spheres=3}"


def towers(**multi: object) -> str:
    fields = {"sub_dim": 8, "num_tokens": 3} | multi
    text = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    return TOWERS.removesuffix("}") + f", multi={{{text}}}}}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return shared_settings(tmp_path_factory.mktemp("pictures"))


def test_a_run_trains_resumes_and_is_opened(settings: list[str], tmp_path: Path) -> None:
    own = [*settings, towers(), OBLIQUE, "scale.cap=100/m", AVERAGE, "train.precision=bfloat16"]
    result = train(tmp_path / "run", *own)
    assert all(record["loss"] < 10 for record in read_log(tmp_path / "run", "train"))
    first, last = weights(tmp_path / "run", 2), weights(tmp_path / "run", 4)
    for name in ("visual.class_embedding", "visual.proj", "text.positional_embedding", "text.text_projection"):
        assert not torch.equal(first[f"encoder.clip.{name}"], last[f"encoder.clip.{name}"]), name
    whole = {name: (result.checkpoint / f"{name}.safetensors").read_bytes() for name in ("model", "average")}
    for file in result.checkpoint.iterdir():
        file.unlink()
    result.checkpoint.rmdir()
    run.resume(tmp_path / "run", progress=False)
    assert {name: (result.checkpoint / f"{name}.safetensors").read_bytes() for name in whole} == whole
    opened = open_run(tmp_path / "run")
    assert (opened.model.encoder.num_tokens, opened.model.encoder.embed_dim) == (3, 24)
    assert same(opened.model, weights(tmp_path / "run", 4, "average"))
    run.export(tmp_path / "run", "best", tmp_path / "export")
    assert load_export(tmp_path / "export").model.num_spheres == 3
    run.show_dry_run(recipes.load("small-infonce", own))


def test_two_ranks_have_the_losses_of_one(settings: list[str], tmp_path: Path) -> None:
    own = [*settings, towers(), OBLIQUE]
    train(tmp_path / "one", *own)
    (tmp_path / "settings").write_text("\n".join(own))
    two_ranks("tests.multi_token_ranks", tmp_path)
    losses = [[record["loss"] for record in read_log(tmp_path / run, "train")] for run in ("one", "run")]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_each_token_is_a_sphere(settings: list[str]) -> None:
    for geometry in ("sub_dim=12, num_spheres=2", "sub_dim=4, num_spheres=6", "sub_dim=8, num_spheres=4"):
        with pytest.raises(UserError) as caught:
            build(recipes.load("small-infonce", [*settings, towers(), f"geometry={{kind='oblique', {geometry}}}"]))
        assert str(caught.value).startswith("geometry.num_spheres: the towers give 3 class tokens of 8 dimensions")
        assert "set geometry.num_spheres = 3 and geometry.sub_dim = 8" in str(caught.value)
    for sub_dim in (4, 12):
        with pytest.raises(UserError, match=r"^geometry\.sub_dim: the towers give 3 class tokens of 8 .*sub_dim = 8"):
            build(recipes.load("small-infonce", [*settings, towers(), f"geometry={{kind='filip', sub_dim={sub_dim}}}"]))
    for geometry in ("kind='sphere'", "kind='filip', sub_dim=8", "kind='euclidean'"):
        model = build(recipes.load("small-infonce", [*settings, towers(), f"geometry={{{geometry}}}"])).model
        assert model.encoder.embed_dim == 24
    single = [*settings, towers(num_tokens=1, sub_dim=24), OBLIQUE]
    assert build(recipes.load("small-infonce", single)).model.encoder.num_tokens == 1


def test_several_tokens_on_one_sphere_are_exported_as_a_flat_model(settings: list[str], tmp_path: Path) -> None:
    train(tmp_path / "run", *settings, towers(), "train.epochs=1")
    run.export(tmp_path / "run", "best", tmp_path / "export")
    assert load_export(tmp_path / "export").model.num_spheres == 1


def test_the_shipped_recipe_is_small_infonce_with_eight_tokens() -> None:
    ours, single = (recipes.to_dict(recipes.load(name)) for name in ("small-multi-token", "small-infonce"))
    changed = {section for section in ours if ours[section] != single[section]}
    assert changed == {"description", "model", "geometry", "scale"}
    model = recipes.load("small-multi-token").model.build(0)
    assert (model.num_tokens, model.embed_dim) == (8, 256)


# Beginning with a run of one token


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    """A run of four steps of towers with one token."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    train(folder, *settings, TOWERS)
    return folder


def started(settings: list[str], base: Path, model: str, *own: str) -> torch.nn.Module:
    built = build(recipes.load("small-infonce", [*settings, model, f"start_from={base}", "seed=5", *own]))
    run.start(built.recipe, built.model)
    return built.model


def test_a_run_of_one_token_is_the_beginning_of_token_0(settings: list[str], base: Path) -> None:
    model = started(settings, base, towers(sub_dim="none", text_attention="causal")).double().eval()
    single = open_run(base).model.double().eval()
    ids = single.encoder.tokenize(["a red square", "nothing"])
    text = model.encoder.encode_text(ids)
    assert text.shape == (2, 48)
    torch.testing.assert_close(text[:, :16], single.encoder.encode_text(ids), rtol=1e-10, atol=1e-10)
    assert model.log_scale == single.log_scale
    ours, theirs = model.encoder.clip.visual, single.encoder.clip.visual
    assert torch.equal(ours.class_embedding[0], theirs.class_embedding)
    assert torch.equal(ours.positional_embedding[[0, 3, 4, 5, 6]], theirs.positional_embedding)
    fresh = build(recipes.load("small-infonce", [*settings, towers(sub_dim="none"), "seed=5"])).model.double()
    assert torch.equal(ours.class_embedding[1:], fresh.encoder.clip.visual.class_embedding[1:])
    # One token begins as the whole of it, pictures too.
    model = started(settings, base, towers(sub_dim="none", num_tokens=1, text_attention="causal")).double().eval()
    picture = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(
        model.encoder.encode_image(picture), single.encoder.encode_image(picture), rtol=1e-10, atol=1e-10
    )


def test_how_its_text_tower_attends_must_be_said(settings: list[str], base: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.multi\.text_attention: the weights are of a causal text tower"):
        started(settings, base, towers(sub_dim="none"))
    model = started(settings, base, towers(sub_dim="none", text_attention="bidirectional"))
    assert model.encoder.clip.text.attention == "bidirectional"


def test_a_causal_run_of_several_tokens_does_not_go_on_as_another(settings: list[str], tmp_path: Path) -> None:
    causal = towers(text_attention="causal")
    train(tmp_path / "causal", *settings, causal, "train.epochs=1")
    with pytest.raises(UserError, match=r"attention: the weights are of a causal text tower, .* be bidirectional"):
        started(settings, tmp_path / "causal", towers())
    for said in ("causal", "bidirectional"):
        model = started(settings, tmp_path / "causal", towers(text_attention=said))
        assert same(model, weights(tmp_path / "causal", 2))
        assert model.encoder.clip.text.attention == said
    (tmp_path / "causal" / "recipe.toml").unlink()
    with pytest.raises(UserError, match="nothing says how the text tower of the weights attends"):
        started(settings, tmp_path / "causal", towers())


def test_a_text_tower_apart_with_one_token_does_not_go_on_as_another(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts have the names of one with several tokens, which says nothing of how it attends."""
    cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
        "text_cfg": {"context_length": 8, "width": 64, "heads": 1, "layers": 1},
        "custom_text": True,
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-apart", cfg)
    model = "model={kind='open_clip', name='tiny-apart'"
    train(tmp_path / "base", *settings, model + "}", "train.epochs=1")
    with pytest.raises(UserError, match=r"attention: the weights are of a causal text tower"):
        started(settings, tmp_path / "base", model + ", multi={num_tokens=2}}")
    begun = started(settings, tmp_path / "base", model + ", multi={num_tokens=2, text_attention='causal'}}")
    theirs = weights(tmp_path / "base", 2)
    assert torch.equal(begun.encoder.clip.text.text_projection, theirs["encoder.clip.text.text_projection"])


def test_weights_that_do_not_fit_are_named(settings: list[str], base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clip\.visual\.proj is \[64, 16\] in .* and \[64, 8\] here"):
        started(settings, base, towers(text_attention="causal"))
    train(tmp_path / "multi", *settings, towers())
    again = started(settings, tmp_path / "multi", towers())
    assert same(again, weights(tmp_path / "multi", 4))
    with pytest.raises(UserError, match=r"class_embedding is \[3, 64\] in .* and \[2, 64\] here"):
        started(settings, tmp_path / "multi", towers(num_tokens=2))
    with pytest.raises(UserError, match="the weights do not fit"):
        started(settings, tmp_path / "multi", TOWERS)


def test_a_timm_run_of_one_vector_begins_several_tokens(settings: list[str], tmp_path: Path) -> None:
    model = (
        "model={kind='timm', name='test_vit', image_size=32, embed_dim=16, text_width=32, text_layers=1, text_heads=1, "
        "context_length=8"
    )
    train(tmp_path / "base", *settings, model + "}", "train.epochs=1")
    begun = started(settings, tmp_path / "base", model + ", multi={num_tokens=3, text_attention='causal'}}")
    theirs = weights(tmp_path / "base", 2)
    trunk = begun.encoder.clip.visual.trunk
    assert torch.equal(trunk.cls_token, theirs["encoder.clip.visual.trunk.cls_token"])
    assert torch.equal(trunk.pos_embed[:, [0, 3, 4, 5, 6]], theirs["encoder.clip.visual.trunk.pos_embed"])
    assert torch.equal(begun.encoder.clip.visual.head.proj.weight, theirs["encoder.clip.visual.head.proj.weight"])
    assert (trunk.reg_token.std(dim=-1) > 0.05).all()
