"""Fixtures of the hub's tests: a hub in memory, and a clock that stands still."""

from __future__ import annotations

import pytest

from support.hub_items import NOW_US
from support.hubs import House, build
from zander.streams import clock as clock_module


@pytest.fixture
async def house() -> House:
    return build()


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server's clock show NOW_US."""
    monkeypatch.setattr(clock_module, "time", lambda: NOW_US / 1e6)
