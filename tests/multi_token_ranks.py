"""Run under torchrun by test_multi_token_runs.py: a whole run of towers with several class tokens."""

import sys
from pathlib import Path

import torch

from tests.small_runs import train
from troth import distributed

if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.initialise()
    root = Path(sys.argv[1])
    train(root / "run", *(root / "settings").read_text().splitlines())
    distributed.barrier()
    distributed.leave()
