"""Whole runs of small towers on sixteen pictures, and what they leave behind."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from troth import recipe as recipes
from troth import run
from troth.train import TrainResult

TOWERS = (
    "model={kind='small', image_size=32, patch_size=16, embed_dim=16, vision_width=64, vision_layers=2, "
    "text_width=64, text_layers=1, context_length=8}"
)
ADAPTED = (
    "model={kind='timm', name='test_vit', image_size=160, embed_dim=16, text_width=32, text_layers=1, text_heads=1, "
    "context_length=8}"
)
AVERAGE = "train.average={decay=0.5}"


def shared_settings(folder: Path) -> list[str]:
    """Make sixteen small pictures with captions in ``folder``; return what all runs on them share."""
    draw = np.random.default_rng(0)
    for number in range(16):
        Image.fromarray(draw.integers(0, 255, (40, 48, 3)).astype(np.uint8)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"picture {number}\n")
    return [
        f"data.source={{kind='folder', path='{folder}'}}",
        "evaluation={tasks=[]}",
        "train={epochs=2, batch_size=8, precision='float32', device='cpu', checkpoint_every_steps=2, keep_last=9, "
        "log_every=1, tensorboard=false}",
    ]


def train(folder: Path, *settings: str) -> TrainResult:
    return run.train(recipes.load("small-infonce", settings), folder, progress=False)


def weights(folder: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")
    return {key.removeprefix("module."): values for key, values in tensors.items() if key != "n_averaged"}


def same(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    return all(torch.equal(values, expected[name]) for name, values in state.items())
