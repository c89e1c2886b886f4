"""What every test shares: few threads, no network, and a cache of its own."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores, and so do the processes they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TROTH_TEST_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a test's cached indexes and features away from the user's."""
    if "TROTH_CACHE" not in os.environ:
        monkeypatch.setenv("TROTH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def repository() -> Path:
    """Return the checkout's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(int(os.environ.get("TROTH_TEST_THREADS", "2")))
