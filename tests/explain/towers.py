"""Small models to explain, of every kind."""

import numpy as np
from PIL import Image

from troth.encoders import ContrastiveModel, DualEncoder, OpenClipEncoder, Small, Timm
from troth.encoders.towers import VOCABULARY, assemble, seeded, simple_tokenizer
from troth.geometry import Geometry, Sphere

CAPTION = "a unicornfish"


def picture(size: tuple[int, int] = (70, 50)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def small(**fields: int) -> OpenClipEncoder:
    settings = {
        "image_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "vision_width": 64,
        "vision_layers": 2,
        "text_width": 64,
        "text_layers": 2,
        "context_length": 12,
    }
    return Small(**{**settings, **fields}).build(1)


def timm(name: str, image_size: int) -> OpenClipEncoder:
    config = Timm(
        name=name, image_size=image_size, embed_dim=32, text_width=64, text_layers=1, text_heads=1, context_length=12
    )
    return config.build(0)


def open_clip_resnet(image_size: int = 64) -> OpenClipEncoder:
    """open_clip's RN50 with one block a stage, a quarter of its width."""
    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": image_size, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": {"context_length": 12, "vocab_size": VOCABULARY, "width": 64, "heads": 1, "layers": 1},
    }
    with seeded(1):
        return OpenClipEncoder(assemble(model_cfg), model_cfg, simple_tokenizer(12), pretrained=False)


def model_of(encoder: DualEncoder, geometry: Geometry | None = None) -> ContrastiveModel:
    return ContrastiveModel(encoder, geometry or Sphere()).eval()
