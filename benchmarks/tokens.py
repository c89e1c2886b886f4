"""What several class tokens cost: a forward pass of a ViT-B/16 with one class token and with sixteen.

    python -m benchmarks.tokens [--quick] [--save] [--precision float32 bfloat16]

Both are image towers of the package's own open_clip ``ViT-B-16`` at 224 pixels, with the same weights but for the added
tokens and the projection, to 512 dimensions the one and to 32 each the other: 197 places and 212. Inference mode, in
float32 or under bfloat16 autocast (far slower than float32 on processors without matrix units for it, where
``--precision float32`` leaves it out), on the same random pictures. The two alternate pass by pass in one process, so
that a machine that drifts drifts for both; the ratio is that of the medians of fifteen passes each. One thread, and
seconds of the processor, not of the clock: what else runs on the machine takes turns with a pass and is not counted.
"Design of the topology for contrastive visual-textual alignment" says that the tokens cost less than 8%; the bar is
1.08.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

from benchmarks.table import Record, arguments, report, save
from troth.encoders import Multi, OpenClip
from troth.train.hardware import autocast

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}


def compare(towers: list[nn.Module], image: Tensor, passes: int, precision: torch.dtype | None) -> tuple[float, float]:
    """Return the median seconds, of the processor, of a pass of each of two towers."""
    features = [forward(tower, image, precision) for tower in towers]  # pays for pages and thread pools
    assert features[0].shape == features[1].shape
    seconds: list[list[float]] = [[], []]
    for number in range(passes):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            forward(towers[which], image, precision)
            seconds[which].append(time.process_time() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def forward(tower: nn.Module, image: Tensor, precision: torch.dtype | None) -> Tensor:
    """Return the features of a batch of pictures."""
    with torch.inference_mode(), autocast(image.device, precision):
        features: Tensor = tower(image)
    return features


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="these only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quick = options.quick
    name, batch_size, passes = ("ViT-S-32", 2, 3) if quick else ("ViT-B-16", 8, 15)
    width = 384 if quick else 512  # the one token's embedding is as wide as the sixteen together: Multi(32, 16)
    encoders = [
        OpenClip(name=name, multi=multi).build(seed=0) for multi in (Multi(sub_dim=width // 16, num_tokens=16), None)
    ]
    towers: list[nn.Module] = [encoder.clip.visual.eval() for encoder in encoders]
    size = encoders[0].image_size
    image = torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
    records = []
    for words in options.precision:
        ours, peer = compare(towers, image, passes, PRECISIONS[words])
        records.append(Record(f"{name} B={batch_size} {words}, 16 tokens", "seconds", ours, peer, "1 token"))
    report("A forward pass with several class tokens", records)
    if options.save:
        save("tokens", f"python -m benchmarks.tokens --precision {' '.join(options.precision)}", options.save, records)


if __name__ == "__main__":
    main()
