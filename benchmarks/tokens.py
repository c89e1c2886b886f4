"""What several class tokens cost: a forward pass of a ViT-B/16 with one class token and with sixteen.

    python -m benchmarks.tokens [--quick] [--save]

Both are image towers of the package's own open_clip ``ViT-B-16`` at 224 pixels, with the same weights but for the added
tokens and the projection, to 512 dimensions the one and to 32 each the other: 197 places and 212. Inference mode, in
float32 and under bfloat16 autocast, on the same random pictures. The two alternate pass by pass in one process, so that
a machine that drifts drifts for both; the ratio is that of the medians. "Design of the topology for contrastive
visual-textual alignment" says that the tokens cost little; the bar is 1.08.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

from benchmarks.table import Record, arguments, report, save
from troth.encoders import Multi, OpenClip
from troth.train.hardware import autocast


def compare(towers: list[nn.Module], image: Tensor, passes: int, precision: torch.dtype | None) -> tuple[float, float]:
    """Return the median seconds of a pass of each of two towers."""
    features = [forward(tower, image, precision) for tower in towers]  # pays for pages and thread pools
    assert features[0].shape == features[1].shape
    seconds: list[list[float]] = [[], []]
    for number in range(passes):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            forward(towers[which], image, precision)
            seconds[which].append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def forward(tower: nn.Module, image: Tensor, precision: torch.dtype | None) -> Tensor:
    """Return the features of a batch of pictures."""
    with torch.inference_mode(), autocast(image.device, precision):
        features: Tensor = tower(image)
    return features


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    quick = options.quick
    name, batch_size, passes = ("ViT-S-32", 2, 3) if quick else ("ViT-B-16", 8, 25)
    width = 384 if quick else 512  # the one token's embedding is as wide as the sixteen together: Multi(32, 16)
    encoders = [
        OpenClip(name=name, multi=multi).build(seed=0) for multi in (Multi(sub_dim=width // 16, num_tokens=16), None)
    ]
    towers: list[nn.Module] = [encoder.clip.visual.eval() for encoder in encoders]
    size = encoders[0].image_size
    image = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
    records = []
    for words, precision in (("float32", None), ("bfloat16", torch.bfloat16)):
        ours, peer = compare(towers, image, passes, precision)
        records.append(Record(f"{name} B={batch_size} {words}, 16 tokens", "seconds", ours, peer, "1 token"))
    report("A forward pass with several class tokens", records)
    if options.save:
        save("tokens", "python -m benchmarks.tokens", options.save, records)


if __name__ == "__main__":
    main()
