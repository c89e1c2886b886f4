"""A run on the oblique manifold is exported as a flat model, by the command."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.small_runs import TOWERS, shared_settings, train
from troth import run
from troth.encoders import load_export
from troth.errors import UserError

FOUR_SPHERES = "geometry={kind='oblique', sub_dim=4, num_spheres=4, distance='%s'}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*shared_settings(tmp_path_factory.mktemp("pictures")), TOWERS, "train.epochs=1", "train.batch_size=8"]


def test_a_run_comes_back_as_a_flat_model_with_its_scores(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", *settings, FOUR_SPHERES % "inner_product")
    run.export(tmp_path / "run", "last", tmp_path / "export")
    said = "".join(capsys.readouterr().out.split())  # a terminal's lines may break anywhere
    assert f'loaditwithtroth.encoders.load_export("{tmp_path / "export"}")' in said
    model, preprocess, tokenizer = load_export(tmp_path / "export")
    opened = run.open_run(tmp_path / "run", "last").model
    images = torch.stack([preprocess(Image.effect_noise((40, 48), 60).convert("RGB")) for _ in range(3)])
    tokens = tokenizer(["picture 1", "picture 2"])
    with torch.no_grad():
        points = opened.embed_image(images), opened.embed_text(tokens)
        vectors = model.encode_image(images), model.encode_text(tokens)
        logits = model.get_logits(images, tokens)[0]
        scores = opened.scale * opened.geometry.similarity(*points)
    torch.testing.assert_close(logits, scores, rtol=1e-5, atol=1e-5)
    for flat, point in zip(vectors, points, strict=True):
        assert torch.equal(flat * 2, point)  # the root of four is exact


def test_a_run_with_a_distance_is_refused(settings: list[str], tmp_path: Path) -> None:
    train(tmp_path / "run", *settings, FOUR_SPHERES % "geodesic")
    with pytest.raises(UserError, match="geodesic") as refusal:
        run.export(tmp_path / "run", "last", tmp_path / "export")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "export").exists()
