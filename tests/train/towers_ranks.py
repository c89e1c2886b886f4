"""Run under torchrun by test_towers_ranks.py: averages and locks, whose result must not depend on the ranks."""

import contextlib
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.train.small import Copying, SmallEncoder, SmallStream, small_config, small_model
from troth import distributed
from troth.encoders import Towers, TowerTraining, apply_towers
from troth.train import AverageConfig, Trainer

TOWERS = Towers(TowerTraining(lock_after_epochs=2, layer_decay=0.5), TowerTraining(locked=True, unlocked_groups=1))


class Normed(SmallEncoder):
    """Has a batch norm, whose statistics are another on each rank."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def encode_image(self, image: Tensor) -> Tensor:
        return super().encode_image(self.norm(image))


def run(folder: Path, *, normed: bool, stop: int | None = None, resume: bool = False) -> Trainer:
    """Train in float64, taught by the average."""

    class Stopping(SmallStream):
        def batches(self, start_step: int, stop_step: int):
            yield from super().batches(start_step, stop_step if stop is None else stop)
            if stop is not None:
                raise InterruptedError

    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = Normed() if normed else SmallEncoder()
    model = small_model(dtype=torch.float64, encoder=encoder)
    apply_towers(model, TOWERS)
    config = small_config(average=AverageConfig(decay=0.8), checkpoint_every_steps=6, evaluate_every_epochs=9)
    stream = Stopping(dtype=torch.float64)
    trainer = Trainer(model, Copying(), stream, config=config, folder=folder, progress=False)
    trainer.run(resume=resume)
    return trainer


def main(root: Path) -> None:
    """Train one model that one process must make, too, and one that is resumed."""
    results = {}
    for name in ("plain", "normed"):
        trainer = run(root / name, normed=name == "normed")
        results[name] = {"model": trainer.model.state_dict(), "average": trainer._companions["average"].state_dict()}
    with contextlib.suppress(InterruptedError):
        run(root / "parts", normed=True, stop=7)
    trainer = run(root / "parts", normed=True, resume=True)
    results["parts"] = {"model": trainer.model.state_dict(), "average": trainer._companions["average"].state_dict()}
    torch.save(results, root / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.initialise()
    main(Path(sys.argv[1]))
    distributed.barrier()
    distributed.leave()
