"""CLIP_benchmark's own functions, called as the documentation calls them, find what Troth finds."""

from __future__ import annotations

import importlib.util
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from tests.encoders.test_models import TINY
from troth.data import EmbeddedSource, Source
from troth.embed import Embedder
from troth.encoders import ContrastiveModel, FlatClip, ScaleConfig, export_flat, load_export
from troth.evaluate.tasks import RetrievalTask, ZeroShotTask
from troth.geometry import Oblique

SOURCE = EmbeddedSource(split="retrieval")
ZERO_SHOT = ZeroShotTask(source=SOURCE, class_field="category", templates=("a picture of a {}",))
RETRIEVAL = RetrievalTask(source=SOURCE, captions=1, k=(1, 10, 100))


@cache
def picture(index: int) -> Image.Image:
    return Image.open(io.BytesIO(opened().read_image(index))).convert("RGB")


@cache
def opened() -> Source:
    return SOURCE.open()


class Pictures(Dataset):
    """The embedded pictures of the retrieval split, with their class or their first caption."""

    def __init__(self, preprocess: Any, *, captioned: bool) -> None:
        self.source, self.preprocess, self.captioned = opened(), preprocess, captioned
        self.categories = [self.source.category(index) for index in range(len(self.source))]
        self.classes = sorted(set(self.categories))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        target = [self.source.captions(index)[0]] if self.captioned else self.classes.index(self.categories[index])
        return self.preprocess(picture(index)), target


def documented_calls(repository: Path, **given: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Run the documentation's calls on a model and data; return what they find."""
    if importlib.util.find_spec("clip_benchmark") is None:
        pytest.skip("clip-benchmark is not installed (make test installs it)")
    page = (repository / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python clip-benchmark\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    namespace = {"torch": torch, **given}
    exec(compile(code, "docs/export.md", "exec"), namespace)
    return namespace["classification"], namespace["retrieval"]


@pytest.fixture
def older_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tensor of one number become an array that ``float`` takes, as arrays of one number were before numpy 2.4.

    CLIP_benchmark 1.6.2 counts on it, for whatever model; the package itself stays as it is.
    """
    numpy = torch.Tensor.numpy
    monkeypatch.setattr(
        torch.Tensor, "numpy", lambda self: numpy(self).reshape(() if self.shape == (1,) else self.shape)
    )


def trained(geometry: Oblique) -> ContrastiveModel:
    """Towers that have seen a tenth of the pictures with their categories, through open_clip's loss of a flat model.

    Untrained ones put every picture into the same class.
    """
    model = ContrastiveModel(TINY.build(4), geometry, ScaleConfig(init=5.0))
    flat, tokenizer = FlatClip.of(model), model.encoder.tokenize
    data = Pictures(model.encoder.image_transform(train=False), captioned=False)
    rows = [data[index] for index in range(0, len(data), 10)]
    images = torch.stack([image for image, _ in rows])
    tokens = tokenizer([f"a picture of a {data.classes[label]}" for _, label in rows])
    optimizer, loss = torch.optim.AdamW(flat.clip.parameters(), lr=3e-4), open_clip.ClipLoss()
    for _ in range(40):
        optimizer.zero_grad()
        loss(*flat(images, tokens)).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.usefixtures("older_numpy")
def test_it_finds_the_numbers_of_troths_own_evaluation(repository, tmp_path, capsys):
    learned = trained(Oblique(sub_dim=16, num_spheres=2))
    embedder = Embedder(learned, num_workers=0)
    ours, found = ZERO_SHOT.run(embedder).metrics, RETRIEVAL.run(embedder).metrics
    model, preprocess, tokenizer = load_export(export_flat(learned, TINY, tmp_path / "export"))
    classification, retrieval = documented_calls(
        repository,
        model=model,
        tokenizer=tokenizer,
        pictures=Pictures(preprocess, captioned=False),
        captioned=Pictures(preprocess, captioned=True),
    )
    capsys.readouterr()  # its progress bars
    assert classification["acc1"] == pytest.approx(ours["top1"], abs=1e-6)
    assert classification["acc5"] == pytest.approx(ours["top5"], abs=1e-6)
    assert classification["mean_per_class_recall"] == pytest.approx(ours["mean_class_accuracy"], abs=1e-6)
    for k in RETRIEVAL.k:
        assert retrieval[f"text_retrieval_recall@{k}"] == pytest.approx(found[f"image_to_text/recall@{k}"], abs=1e-6)
        assert retrieval[f"image_retrieval_recall@{k}"] == pytest.approx(found[f"text_to_image/recall@{k}"], abs=1e-6)
    assert classification["mean_per_class_recall"] > 3 / 96, "several classes are told apart"
