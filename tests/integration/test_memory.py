"""Memory of a node: nothing stays of connections that have ended."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from support.clients import consumer, relay
from support.nodes import Node
from support.services import eventually

KINDS = {
    *("Chunk", "Cursor", "FirstRequest", "Origin", "Outbox", "Pending", "Ring", "SendQueue", "Session", "Stream"),
    *("WebSocketConnection", "_Consumer", "_Handshake", "_Relay"),
}
AT_ONCE = 25


async def relay_session(node: Node, user_id: str) -> None:
    """Come, send two samples, and go."""
    async with relay(node.ws, user_id) as peer:
        await peer.send({"type": "raw", "channels": [1.0, 2.0]})
        await peer.send({"type": "raw", "channels": [1.0, 2.0]})


async def consumer_session(node: Node, user_id: str) -> None:
    """Come, read the status, and go."""
    async with consumer(node.ws, user_id) as peer:
        assert not peer.status["online"]


async def sessions(node: Node, session: Callable[[Node, str], Coroutine[Any, Any, None]], n: int) -> None:
    """Hold `n` sessions of users of their own."""
    for first in range(0, n, AT_ONCE):
        await asyncio.gather(*(session(node, f"{session.__name__}-{i}") for i in range(first, first + AT_ONCE)))


def n_objects() -> Counter[str]:
    """Count the objects of the service that are kept for a connection."""
    return Counter(name for it in gc.get_objects() if (name := type(it).__name__) in KINDS)


@pytest.mark.parametrize(("session", "n"), [(relay_session, 1000), (consumer_session, 100)])
def test_sessions_that_have_ended_leave_nothing_even_without_a_collection(
    start_node: Callable[..., Node], session: Callable[[Node, str], Coroutine[Any, Any, None]], n: int
) -> None:
    node = start_node(buffer_keep_seconds=0.0)
    eventually(node.ready)
    hub = node.app.state.service.hub
    asyncio.run(sessions(node, session, AT_ONCE))  # what is made once, on first use
    eventually(lambda: not hub.ingest.streams and not hub.n_connections)
    gc.collect()
    gc.disable()
    try:
        before = n_objects()
        asyncio.run(sessions(node, session, n))
        eventually(lambda: not hub.ingest.streams and not hub.n_connections)
        eventually(lambda: n_objects() - before == Counter())
    finally:
        gc.enable()
