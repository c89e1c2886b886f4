"""Run under torchrun by test_teacher.py: one taught run, whose result must not depend on how many ranks share it."""

import sys
from pathlib import Path

import torch

from tests.train.small import Copying, SmallStream, small_config, small_model
from troth import distributed
from troth.train import TaughtStream, Trainer
from troth.train.teacher import FeatureTable


class _Noting(FeatureTable):
    """Notes what it hands out."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__(features, "a table")
        self.given: list[torch.Tensor] = []

    def __call__(self, batch):
        self.given.append(super().__call__(batch))
        return self.given[-1]


def main(root: Path) -> None:
    """Train in float64 without dropout: everything must be what one process computes."""
    table = torch.randn(40, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    teacher, model = _Noting(table), small_model(dtype=torch.float64)
    stream = TaughtStream(SmallStream(dtype=torch.float64), teacher)
    Trainer(model, Copying(), stream, config=small_config(), folder=root / "run", progress=False).run()
    results = {"weights": model.state_dict(), "teacher": torch.stack(teacher.given)}
    torch.save(results, root / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.initialise()
    main(Path(sys.argv[1]))
    distributed.barrier()
    distributed.leave()
