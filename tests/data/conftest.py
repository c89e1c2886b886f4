from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# The machine may be busy, and a failure must come again when it is looked at.
settings.register_profile("data", deadline=None, derandomize=True)
settings.load_profile("data")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TROTH_CACHE", str(folder))
    return folder
