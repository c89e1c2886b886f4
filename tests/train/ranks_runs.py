"""Run under torchrun by test_ranks.py: runs on several ranks whose result one process must give too."""

import sys
from pathlib import Path

import torch
from torch import nn

from tests.train.small import Remembering, SmallStream, small_config, small_model
from troth import distributed
from troth.data.ledger import LedgerEntry
from troth.errors import NonFiniteLossError, UserError
from troth.objectives.infonce import InfoNCE
from troth.train import Trainer

#: Rows that the towers take at once on each rank.
MICRO = {"plain": None, "micro": 3}


def trainer(folder: Path, stream: SmallStream, **arguments) -> Trainer:
    defaults = {"folder": folder, "config": small_config(checkpoint_every_steps=3), "progress": False, "seed": 4}
    return Trainer(stream=stream, **{**defaults, **arguments})


def main(root: Path) -> None:
    """Train in float64 without dropout: everything must be what one process computes."""
    rank = distributed.rank()
    for name, micro in MICRO.items():
        model = small_model(dtype=torch.float64, bias=True)
        if micro is not None:
            model.spare = nn.Parameter(torch.ones(2, dtype=torch.float64))  # that no output depends on
        skipped = (LedgerEntry(f"{rank}.png", "corrupt-image"), LedgerEntry("all.png", "corrupt-image"))
        trainer(
            root / name,
            SmallStream(dtype=torch.float64, mismatched=7, skipped=skipped),
            model=model,
            objective=InfoNCE() if micro is None else Remembering(),
            config=small_config(micro_batch_size=micro),
            evaluate=lambda model, epoch: {"recall": float(epoch)},
        ).run()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save({"gradients": gradients, "weights": model.state_dict()}, root / f"{name}-{rank}.pt")
    messages = []
    poisoned = SmallStream(dtype=torch.float64, poison=int(SmallStream().indices(1)[0]))  # seen by rank 0 only
    for stream, folder in ((poisoned, "poisoned"), (SmallStream(dtype=torch.float64), "plain")):
        try:
            trainer(root / folder, stream, model=small_model(dtype=torch.float64), objective=InfoNCE()).run()
        except (NonFiniteLossError, UserError) as error:
            messages.append(str(error))
    torch.save(messages, root / f"messages-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.initialise()
    main(Path(sys.argv[1]))
    distributed.barrier()
    distributed.leave()
