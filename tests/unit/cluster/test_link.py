"""The link to Redis, where only redis-py can be at fault."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from zander.cluster import link as link_module
from zander.cluster.link import _keep_primary


class Swallowing:
    """A client whose command swallows its cancellation, as redis-py's do where the reply comes with it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def execute_command(self, *_: Any) -> list[str]:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return ["role", "master"]
        raise AssertionError


async def test_the_question_for_a_replica_ends_though_its_cancellation_is_swallowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "REPLICA_CHECK_SECONDS", 0.0)
    client: Any = Swallowing()
    asking = asyncio.create_task(_keep_primary(client))
    await client.asked.wait()
    asking.cancel()
    done, _ = await asyncio.wait([asking], timeout=10)
    assert done
