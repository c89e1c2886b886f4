"""What towers see on their way is the mean of what their stages give, in order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from troth.encoders import FrozenImageEncoder
from troth.encoders.stages import TimmStages, timm_stages


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_efficientnets_stages_are_what_passes_through_it(pixels: torch.Tensor) -> None:
    encoder = FrozenImageEncoder()
    seen: list[torch.Tensor] = []
    blocks = encoder.module.network._blocks
    for row in (0, 2, 4, 7, 10, 14, 15):  # where the width changes: 16, 24, 40, 80, 112, 192, 320
        blocks[row].register_forward_hook(lambda _module, _inputs, output: seen.append(output.mean(dim=(2, 3))))
    stages = encoder.encode_pixel_stages(pixels)
    assert stages.shape == (3, 784)
    seen.clear()
    encoder.encode_pixels(pixels)
    torch.testing.assert_close(stages, torch.cat(seen, dim=1))


def test_a_timm_pyramids_stages_are_all_of_its_own(pixels: torch.Tensor) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    stages = timm_stages(network)
    assert stages is not None
    images = pixels.float() / 255
    with torch.no_grad():
        found = stages(images)
        assert found.shape == (3, 64 + 64 + 128 + 256 + 512)
        torch.testing.assert_close(found[:, -512:], network.forward_features(images).mean(dim=(2, 3)))


def test_of_a_transformer_four_layers_are_taken_the_last_one_among_them() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=32).eval()
    stages = timm_stages(network)
    assert isinstance(stages, TimmStages)
    assert stages.indices == [2, 5, 8, 11]
    with torch.no_grad():
        assert stages(torch.zeros(2, 3, 32, 32)).shape == (2, 4 * 192)


def test_a_tower_that_does_not_say_has_none() -> None:
    assert timm_stages(nn.Linear(2, 2)) is None
