"""Towers whose pairs a judge draws, from pictures of which one cannot be read."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from troth import recipe as recipes
from troth.data import EmbeddedSource, FolderSource, Ledger, LedgerEntry
from troth.embed import CacheEntry
from troth.encoders import OpenClip
from troth.errors import UserError
from troth.judge import Procedure, judge
from troth.recipe import Recipe
from troth.run import build, train
from troth.train import JUDGEMENT_NAME, judging
from troth.train.teacher import encode_pictures
from troth.train.teacher_tower import FrozenTower, Tower, TowerPrecision, load_stages

PAIRS = 240
BROKEN = 7


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, source = tmp_path_factory.mktemp("pictures"), EmbeddedSource().open()
    for number in range(PAIRS):
        data = source.read_image(number)
        (folder / f"{number:03d}.webp").write_bytes(data[:40] if number == BROKEN else data)
        (folder / f"{number:03d}.txt").write_text(source.captions(number)[0] + "\n", encoding="utf-8")
    return folder


def recipe_of(pictures: Path, *more: str) -> Recipe:
    settings = (
        f"data={{source={{kind='folder', path='{pictures}'}}, noise={{fraction=0.3}}}}",
        "judge.procedure={folds=3, neighbours=9, repairings=2, rounds=2, cluster_size=0}",
        "model={kind='small', embed_dim=32, vision_width=64, vision_layers=1, text_width=64, text_layers=1}",
        "train={epochs=2, batch_size=32, num_workers=0, precision='float32', device='cpu', tensorboard=false}",
        "evaluation.tasks=[]",
    )
    return recipes.load("robust-small", [*settings, *more])


@pytest.mark.parametrize("draw_wrong", [0.0, 0.3])
def test_what_cannot_be_read_is_not_drawn_and_told(pictures: Path, draw_wrong: float) -> None:
    ledger, drawn = Ledger(), []
    for workers in (0, 2):
        built = build(recipe_of(pictures, f"judge.draw_wrong={draw_wrong}", f"train.num_workers={workers}"))
        assert built.judged is not None
        assert float(built.judged.share[BROKEN]) == 0
        batches = list(built.stream(ledger).batches(0, 25))
        assert all(not loaded.skipped for loaded in batches), "nobody has to stand in for it"
        drawn.append(torch.stack([loaded.batch.index for loaded in batches]))
    assert torch.equal(*drawn), "worker processes draw what this one draws"
    assert BROKEN not in drawn[0]
    assert {entry.key for entry in ledger} == {f"{BROKEN:03d}.webp"}


HEADS = (
    "model={kind='heads', embed_dim=32, hidden_dim=16, image_size=64, precision='bfloat16'}",
    "judge.draw_wrong=1.0",
)


@pytest.mark.parametrize(("settings", "size", "precision"), [((), 112, "float32"), (HEADS, 64, "bfloat16")])
def test_what_stages_see_goes_into_the_judgement(
    pictures: Path, settings: tuple[str, ...], size: int, precision: TowerPrecision
) -> None:
    """Those of the judge's encoder for towers, and under heads of the encoder that made their features."""
    objective = "objective={kind='reweighted', objective={kind='infonce'}, by={kind='given'}}"
    common = (*settings, objective, "teacher=none", "judge.words=false")
    without = build(recipe_of(pictures, *common, "judge.stages=false")).judged
    found = build(recipe_of(pictures, *common, "judge.stages=true")).judged
    assert without is not None
    assert found is not None
    tower = load_stages(FrozenTower(image_size=size), precision, torch.device("cpu"))
    assert tower is not None
    read = found.valid
    stages = encode_pictures(tower, FolderSource(path=str(pictures)).open(), num_workers=0).tensors["features"]
    procedure = Procedure(folds=3, neighbours=9, repairings=2, rounds=2, cluster_size=0)
    for judged, seen in ((without, None), (found, stages[read])):
        expected = judge(judged.image_features[read], judged.text_features[read], procedure, 0, stages=seen)
        torch.testing.assert_close(judged.judgement.score[read], expected.score)
        assert bool(judged.judgement.score[~read].isnan().all())
    assert not torch.equal(found.judgement.score[read], without.judgement.score[read])
    assert found.ledger == without.ledger, "each picture is told once"
    assert found.identity.endswith(f"; stages {tower.identity}; neighbours by them")
    assert "stages" not in without.identity


def test_towers_are_judged_as_heads_are_and_only_draw_otherwise() -> None:
    heads, towers = (recipes.load(name).judge for name in ("robust", "robust-small"))
    assert heads is not None
    assert towers is not None
    assert towers == replace(heads, draw_wrong=0.0)


def test_a_picture_that_only_the_stages_could_not_read_is_not_judged(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = judging.encode_pictures

    def failing(tower: Tower, *arguments: Any) -> CacheEntry:
        entry = encode(tower, *arguments)
        if "means of the blocks" not in tower.preprocessing:
            return entry
        valid = entry.tensors["valid"].clone()
        valid[11] = False
        lost = LedgerEntry("011.webp", "missing-file", "gone")
        notes = json.dumps([*json.loads(entry.notes["ledger"]), asdict(lost)])
        return replace(entry, tensors=entry.tensors | {"valid": valid}, notes={"ledger": notes})

    monkeypatch.setattr(judging, "encode_pictures", failing)
    found = build(recipe_of(pictures, "judge.stages=true")).judged
    assert found is not None
    assert (~found.valid).nonzero()[:, 0].tolist() == [BROKEN, 11]
    assert found.weight[[BROKEN, 11]].tolist() == [0, 0]
    assert [entry.key for entry in found.ledger] == [f"{BROKEN:03d}.webp", "011.webp"]


def test_open_clips_encoders_do_not_say_what_their_stages_see() -> None:
    encoder = OpenClip(name="ViT-B-32", pretrained="file")
    assert load_stages(encoder, "float32", torch.device("cpu")) is None


def test_a_run_tells_of_it_and_draws_what_its_judge_kept(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe_of(pictures), tmp_path / "run", progress=False)
    said = " ".join(capsys.readouterr().out.split())
    assert f"of {PAIRS - 1} pairs are wrong, going by features, words, stages (see " in said
    told = [json.loads(line)["key"] for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    assert told == [f"{BROKEN:03d}.webp"]

    judged = build(recipe_of(pictures)).judged
    assert judged is not None
    path = tmp_path / "other.parquet"
    table = parquet.read_table(tmp_path / "run" / JUDGEMENT_NAME)
    assert table.schema.metadata[b"evidence"] == b"features words stages"
    kept = np.linspace(0, 1, len(table))
    parquet.write_table(table.set_column(2, "p_mismatch", [kept]), path)
    remembered = judged.remembered(path)
    np.testing.assert_array_equal(remembered.weight[torch.from_numpy(table["id"].to_numpy().copy())], 1 - kept)
    assert float(remembered.weight[BROKEN]) == 0
    assert torch.equal(remembered.judgement.score.nan_to_num(), judged.judgement.score.nan_to_num())
    parquet.write_table(table.slice(1), path)
    with pytest.raises(UserError, match=r"other.parquet: this judgement is of other pairs"):
        judged.remembered(path)
    parquet.write_table(table.drop_columns("p_mismatch"), path)
    with pytest.raises(UserError, match=r"other.parquet: some pairs have no p_mismatch \(remove it, and the pairs are"):
        judged.remembered(path)
    path.write_text("cut off")
    with pytest.raises(UserError, match=r"other.parquet: not a judgement: .*\(remove it, and the pairs are"):
        judged.remembered(path)
