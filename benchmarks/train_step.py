"""A whole training step of a small open_clip model: ours against a bare loop with open_clip's ClipLoss.

    python -m benchmarks.train_step [--quick] [--save]

Both train the same towers with the same AdamW on the same random batch. Ours is the step that ``troth train`` makes:
finite-loss checks, the figures of the log and the gradient norm included. The bare loop is forward, ClipLoss, backward,
clipping and AdamW, under the same autocast. The two alternate step by step in one process, so that a machine that
drifts drifts for both; the ratio is that of the medians.
"""

from __future__ import annotations

import math
import statistics
import time

import torch
from open_clip.loss import ClipLoss

from benchmarks.table import Record, arguments, report, save
from troth.data import LoadedBatch
from troth.encoders import ContrastiveModel, Small
from troth.geometry import Sphere
from troth.objectives import InfoNCE
from troth.state import State
from troth.train import OptimizerConfig
from troth.train.step import TrainStep
from troth.types import Batch


def compare(batch_size: int, steps: int, precision: torch.dtype | None) -> tuple[float, float]:
    """Return the median seconds of our step and of the bare loop's."""
    config, optimizer_config = Small(), OptimizerConfig()
    ours = ContrastiveModel(config.build(seed=0), Sphere()).train()
    step = TrainStep(
        ours,
        InfoNCE(),
        State(batch_size, "benchmark"),
        optimizer_config.build(ours),
        gradient_clip=optimizer_config.gradient_clip,
        precision=precision,
    )
    peer = config.build(seed=0).clip.train()
    peer.logit_scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # ours keeps it outside the towers
    optimizer = optimizer_config.build(peer)
    loss_function = ClipLoss()

    generator = torch.Generator().manual_seed(0)
    size = ours.encoder.image_size
    image = torch.randn(batch_size, 3, size, size, generator=generator)
    text = ours.encoder.tokenize([f"a drawing of number {number}" for number in range(batch_size)])
    loaded = LoadedBatch(Batch(torch.arange(batch_size), image, text), (), torch.zeros(batch_size, dtype=torch.bool))

    def bare_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
            image_features, text_features, scale = peer(image, text)[:3]
            loss = loss_function(image_features, text_features, scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), optimizer_config.gradient_clip or math.inf)
        optimizer.step()
        loss.item()

    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(steps + 2):
        for name in ("ours", "peer"):
            start = time.perf_counter()
            if name == "ours":
                step(loaded, number, 1e-4)
            else:
                bare_step()
            if number >= 2:  # the first steps pay for allocations and the optimiser's moments
                seconds[name].append(time.perf_counter() - start)
    return statistics.median(seconds["ours"]), statistics.median(seconds["peer"])


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    quick = options.quick
    records = []
    for batch_size in (64,) if quick else (256, 1024):
        for name, precision in (("float32", None), ("bfloat16", torch.bfloat16)):
            ours, peer = compare(batch_size, 3 if quick else 9, precision)
            records.append(Record(f"small ViT B={batch_size} {name}", "seconds", ours, peer, "bare loop, ClipLoss"))
    report("One training step", records)
    if options.save:
        save("train_step", "python -m benchmarks.train_step", options.save, records)


if __name__ == "__main__":
    main()
