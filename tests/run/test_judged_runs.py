"""Recipes with a judge, from the file to the weights: it weighs the pairs, teaches, and stands beside the heads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from troth import recipe as recipes
from troth.audit import AuditTable
from troth.encoders import HeadsEncoder, SpectralHead
from troth.encoders.tower_groups import tower_groups
from troth.errors import UserError
from troth.recipe import Recipe
from troth.run import build, open_run, resume, train
from troth.run.scoring import audit
from troth.run.start import start
from troth.state import State
from troth.train import JUDGEMENT_NAME

SETTINGS = [
    "data={source={kind='spiked', num_samples=400}, noise={fraction=0.4}}",
    "judge.procedure={folds=3, neighbours=9, repairings=2}",
    "model={kind='heads', embed_dim=16, hidden_dim=16, skip='spectral'}",
    "train={epochs=2, batch_size=80, precision='float32', device='cpu', checkpoint_every_steps=5, tensorboard=false}",
    "evaluation.tasks=[]",
]


def judged_recipe(*more: str) -> Recipe:
    return recipes.load("robust", [*SETTINGS, *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judged") / "run"
    train(judged_recipe(), path, progress=False)
    return path


def test_the_judgement_is_written_beside_the_run_and_finds_the_wrong_pairs(folder: Path) -> None:
    table = parquet.read_table(folder / JUDGEMENT_NAME)
    wrong = build(judged_recipe()).noise.mismatched
    assert table.column_names == ["id", "score", "p_mismatch", "weight"]
    assert roc_auc_score(wrong, table["p_mismatch"].to_numpy()) > 0.85
    np.testing.assert_allclose(table["weight"].to_numpy(), 1 - table["p_mismatch"].to_numpy())
    assert float(table.schema.metadata[b"noise_rate"]) == pytest.approx(0.4, abs=0.2)
    assert table.schema.metadata[b"evidence"] == b"features"


def test_batches_carry_the_judges_weights_and_points() -> None:
    built = build(judged_recipe())
    assert built.judged is not None
    judgement = built.judged.judgement
    (loaded,) = built.stream().batches(0, 1)
    assert loaded.judged is not None
    index = loaded.batch.index
    torch.testing.assert_close(loaded.judged.weight, (1 - judgement.p_mismatch[index]).float())
    # The captions are those that the pairs were given, wrong ones among them.
    torch.testing.assert_close(loaded.judged.text, judgement.alignment.text(F.normalize(loaded.batch.text, dim=-1)))
    torch.testing.assert_close(loaded.judged.image, judgement.alignment.image(F.normalize(loaded.batch.image, dim=-1)))


@pytest.mark.parametrize("more", [(), ("model={kind='plain', embed_dim=8}",)])
def test_vectors_have_no_stages_and_are_judged_without(more: tuple[str, ...]) -> None:
    with_stages, none = (build(judged_recipe(*more, f"judge.stages={value}")) for value in ("true", "false"))
    judged, without = with_stages.judged, none.judged
    assert judged is not None
    assert without is not None
    assert torch.equal(judged.judgement.score, without.judgement.score)


def test_heads_begin_at_the_judges_map_and_their_checkpoint_holds_it(folder: Path) -> None:
    built = build(judged_recipe())
    built.begin()
    assert built.judged is not None
    encoder = built.model.encoder
    assert isinstance(encoder, HeadsEncoder)
    image = built.judged.image_features
    expected = built.judged.judgement.alignment.image(F.normalize(image, dim=-1))[:, :16]
    torch.testing.assert_close(built.model.embed_image(image), F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)
    trained = open_run(folder, "last").model.encoder
    assert isinstance(trained, HeadsEncoder)
    assert isinstance(trained.image_head, SpectralHead)
    torch.testing.assert_close(trained.image_head.matrix, encoder.image_head.matrix)
    assert bool(trained.image_head.head[-1].weight.any()), "the head beside it has learnt"


def test_a_judged_run_resumes_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    last = max((copy / "checkpoints").iterdir())
    expected = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    assert resume(copy, progress=False).step == 10
    assert (last / "model.safetensors").read_bytes() == expected
    assert load_file(last / "model.safetensors")


def test_a_run_goes_by_a_judgement_of_another_or_by_an_audit(folder: Path, tmp_path: Path) -> None:
    """Judged once, the pairs weigh the same in every run that names the file, and train the same weights."""
    given = f"judge.file={(folder / JUDGEMENT_NAME).as_posix()!r}"
    train(judged_recipe(given), tmp_path / "again", progress=False)
    mine, theirs = (parquet.read_table(each / JUDGEMENT_NAME) for each in (tmp_path / "again", folder))
    assert mine.equals(theirs)
    assert mine.schema.metadata[b"evidence"] == theirs.schema.metadata[b"evidence"] + b" file"
    assert float(mine.schema.metadata[b"noise_rate"]) == pytest.approx(theirs["p_mismatch"].to_numpy().mean())
    once_more = f"judge.file={(tmp_path / 'again' / JUDGEMENT_NAME).as_posix()!r}"
    judged = build(judged_recipe(once_more)).judged
    assert judged is not None
    assert judged.judgement.evidence.count("file") == 1
    final = [max((each / "checkpoints").iterdir()) / "model.safetensors" for each in (tmp_path / "again", folder)]
    ours, expected = map(load_file, final)
    assert ours.keys() == expected.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name], atol=1e-5, rtol=1e-4)

    audit(folder, "last", tmp_path / "audit.parquet")
    built = build(judged_recipe(f"judge.file={(tmp_path / 'audit.parquet').as_posix()!r}"))
    assert built.judged is not None
    np.testing.assert_allclose(built.judged.judgement.p_mismatch, theirs["p_mismatch"].to_numpy())


def test_a_missing_judgement_is_one_line() -> None:
    with pytest.raises(UserError, match=r"nowhere\.parquet: not a judgement: .*judge\.file is a run's"):
        train(judged_recipe("judge.file='nowhere.parquet'"), Path("never"), progress=False)
    assert not Path("never").exists()


def test_pairs_are_drawn_as_often_as_they_are_likely_right() -> None:
    built = build(judged_recipe("judge.draw_wrong=0.0"))
    assert built.judged is not None
    weight = built.judged.weight
    stream = built.stream()
    assert stream.total_steps(2) == 10, "the steps do not depend on the judge"
    drawn = list(stream.batches(0, 200))
    counts = torch.bincount(torch.cat([loaded.batch.index for loaded in drawn]), minlength=len(weight))
    expected = 200 * 80 * weight / weight.sum()
    assert np.corrcoef(counts, expected)[0, 1] > 0.99
    assert int((weight == 0).sum()) > 10
    assert not counts[weight == 0].any()
    for loaded in drawn:
        assert loaded.judged is not None
        torch.testing.assert_close(loaded.judged.weight, torch.ones(80))


def test_what_the_draw_leaves_of_a_weight_is_left_to_the_loss() -> None:
    built = build(judged_recipe("judge.draw_wrong=0.25"))
    assert built.judged is not None
    share = 0.25 + 0.75 * built.judged.weight
    for loaded in built.stream().batches(0, 12):
        assert loaded.judged is not None
        index = loaded.batch.index
        torch.testing.assert_close(loaded.judged.weight.double() * share[index], built.judged.weight[index])


def test_a_run_of_drawn_pairs_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings = (
        "judge.draw_wrong=0.0",
        "objective.terms=[[1.0, {kind='infonce'}], [1.0, {kind='feature_distillation'}]]",
    )
    train(judged_recipe(*settings), tmp_path / "run", progress=False)
    last = max((tmp_path / "run" / "checkpoints").iterdir())
    expected = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    assert resume(tmp_path / "run", progress=False).step == 10
    assert (last / "model.safetensors").read_bytes() == expected

    # What is drawn goes by the judgement that the run kept, whatever would be judged today.
    path = tmp_path / "run" / JUDGEMENT_NAME
    table = parquet.read_table(path)
    place = table.column_names.index("p_mismatch")
    parquet.write_table(table.set_column(place, "p_mismatch", [table["p_mismatch"].to_numpy()[::-1].copy()]), path)
    shutil.rmtree(last)
    resume(tmp_path / "run", progress=False)
    assert (last / "model.safetensors").read_bytes() != expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["judge=none"], r"objective.by.file: the data carry no weights .* or add a \[judge\]"),
        (["judge=none", "objective={kind='distillation'}"], "judge: the objective learns from a judge's points"),
        (["judge=none", "objective={kind='infonce'}"], "judge: model.skip puts a judge's map beside the heads"),
        (["objective={kind='infonce'}", "model.skip=none"], "judge: nothing in the recipe goes by a judge"),
        (["judge.draw_wrong=1.5"], "judge.draw_wrong: input should be less than or equal to 1"),
        (
            ["judge.draw_wrong=0.0", "train.batch_size=400"],
            r"train.batch_size: a batch of 400 samples where \d+ of 400",
        ),
        (
            ["judge.draw_wrong=0.5", "objective={kind='distillation'}"],
            "judge.draw_wrong: a draw by 0.5 leaves a rest of",
        ),
        (["judge.draw_wrong=0.5", "episodes={size=100}"], "judge.draw_wrong: episodes have an order of their own"),
        (["data.noise.mode=batch"], "data.noise.mode: noise of every batch"),
        (["judge.folds=3"], "judge.folds: unknown key"),
        (["data.source.num_samples=150"], "judge: 150 pairs are too few to judge"),
        (
            ["judge.procedure.repairings=9999", "judge.procedure.cluster_size=0"],
            r"judge.procedure: \d+ pairs do not make 3 folds of 40 in blocks of 10000",
        ),
        (
            ["judge.procedure.repairings=9999"],
            "judge.procedure.cluster_size: clusters of 100 captions are too small to re-pair them 9999 times",
        ),
        (["judge.procedure.folds=1"], "judge.procedure.folds: input should be greater than or equal to 2"),
        (["model.multi={num_tokens=2, sub_dim=8}"], "skip: several class tokens have no linear map beside them"),
    ],
)
def test_what_a_judge_cannot_do_is_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(judged_recipe(*settings)).stream()


def test_who_judged_says_whether_wrong_captions_were_looked_for_among_like_ones() -> None:
    found, without = (build(judged_recipe(*more)).judged for more in ((), ("judge.procedure.cluster_size=0",)))
    assert found is not None
    assert without is not None
    assert "; clusters of 100" in found.identity
    assert "clusters" not in without.identity
    assert not torch.equal(found.judgement.score, without.judgement.score)


def test_weights_without_a_judge_need_a_table() -> None:
    weighted = "objective={kind='reweighted', objective={kind='infonce'}, by={kind='given'}}"
    with pytest.raises(UserError, match=r"objective\.by\.file: the data carry no weights"):
        build(judged_recipe("judge=none", "model.skip=none", weighted))
    assert build(judged_recipe("model.skip=none", weighted)).judged is not None


def test_an_audit_of_a_judged_run_has_the_judges_probabilities(folder: Path, tmp_path: Path) -> None:
    audit(folder, "last", tmp_path / "audit.parquet")
    table = AuditTable.read(tmp_path / "audit.parquet")
    expected = parquet.read_table(folder / JUDGEMENT_NAME)["p_mismatch"].to_numpy()
    np.testing.assert_allclose(table.p_mismatch, expected[table.id])
    assert all((decision == "drop") == (p >= 0.9) for decision, p in zip(table.decision, expected, strict=True))


def test_only_objectives_that_ask_are_weighted() -> None:
    """Without the weights InfoNCE counts all pairs alike: otherwise leaving them out would change nothing."""
    weighted = "{kind='reweighted', objective={kind='infonce'}, by={kind='given'}}"
    losses = []
    for objective in (weighted, "{kind='infonce'}"):
        built = build(judged_recipe(f"objective={objective}", "model.dropout=0.0"))
        stream = built.stream()
        built.begin()
        state = State(stream.num_samples, stream.fingerprint)
        step = built.recipe.train.step_maker(built.model, built.recipe.objective, state, 0, stream)
        (loaded,) = stream.batches(0, 1)
        losses.append(step(loaded, 0, 1e-3).loss)
    assert losses[0] < 0.9 * losses[1]


def test_heads_beside_a_map_are_grouped_locked_and_begun_with_as_others(folder: Path) -> None:
    built = build(judged_recipe("towers.image.layer_decay=0.5", "towers.text.locked=true"))
    groups = tower_groups(built.model.encoder, "image")
    assert groups[0][0].startswith("image_head.head.0.")
    assert groups[-1] == ["image_head.head.4.weight", "image_head.head.4.bias"]
    assert not any(p.requires_grad for name, p in built.model.named_parameters() if "text_head" in name)
    # Another run's weights bring the map that their heads were learnt beside, whatever this run's judge finds.
    again = build(judged_recipe(f"start_from={folder}", "data.noise.fraction=0.1"))
    start(again.recipe, again.model)
    again.begin()
    first = open_run(folder, "last").model.encoder
    assert torch.equal(again.model.encoder.image_head.matrix, first.image_head.matrix)
