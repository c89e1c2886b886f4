"""What the yardstick's tests share."""

from __future__ import annotations

import pytest

from tests.bench import small


@pytest.fixture
def small_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    small.patch(monkeypatch)
