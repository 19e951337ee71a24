"""Fixtures of the hub's tests: a hub in memory, and a clock that stands still."""

from __future__ import annotations

import pytest

from support.hub_items import NOW_US
from support.hubs import House, build
from zander.hub import ingest


@pytest.fixture
async def house() -> House:
    return build()


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the server's clock show NOW_US."""
    monkeypatch.setattr(ingest, "now_us", lambda: NOW_US)
