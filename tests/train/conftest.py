"""The runs in child processes, made once for all tests that look at them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute with one thread: these tensors are too small to share, and waiting for each other costs seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def forked_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs that ``tests.train.forked_runs`` made; ``results.json`` says how they ended."""
    root = tmp_path_factory.mktemp("forked")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.train.forked_runs", str(root)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    (root / "results.json").write_text(finished.stdout)
    return root
