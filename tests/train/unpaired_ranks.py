"""Run under torchrun by test_unpaired.py: runs in two stages, the same on any number of ranks."""

import sys
from pathlib import Path

import torch

from tests.train.small import small_model
from tests.train.small_unpaired import VARIANTS, trainer, two_stages
from troth import distributed

#: Rows that the towers and the judge take at once, and no more checkpoints than there must be.
SETTINGS = {"micro_batch_size": 3, "checkpoint_every_steps": None, "evaluate_every_epochs": 5}

COMPARED = ("top", "mutual, with pairs")


def main(root: Path) -> None:
    """Train in float64 without dropout: everything must be what one process computes."""
    results = {}
    for variant in COMPARED:
        model = small_model(dtype=torch.float64)
        stream = two_stages(with_pairs="paired_weight" in VARIANTS[variant], dtype=torch.float64)
        trainer(root / variant, variant=variant, stream=stream, model=model, config=SETTINGS).run()
        results[variant] = model.state_dict()
    torch.save(results, root / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.initialise()
    main(Path(sys.argv[1]))
    distributed.barrier()
    distributed.leave()
