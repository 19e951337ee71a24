"""The rate limit of relays: what is over it for a while is borne, and for longer is told and closed."""

from __future__ import annotations

import json
from typing import Any

from zander.delivery.outbox import Outbox
from zander.errors import CloseCode
from zander.hub.ratelimit import OVER_SECONDS, RateLimit
from zander.routes.asgi import AsgiConnection


class Sender:
    """A relay that sends as much a second as it is told to, on a server that only counts."""

    def __init__(self, limit: RateLimit) -> None:
        self.outbox = Outbox("me", types=())
        self._n_bytes = 0
        self._limit = limit
        socket: Any = self
        self._connection = AsgiConnection(socket)
        limit.watch(self.outbox, self._connection)

    async def send(self, n_bytes: int, seconds: int) -> None:
        self._n_bytes = n_bytes
        for _ in range(seconds):
            await self._connection.receive()
            self._limit.tick()

    async def receive(self) -> dict[str, Any]:
        """Give the server a message."""
        return {"type": "websocket.receive", "bytes": bytes(self._n_bytes)}


async def test_a_relay_that_brings_what_it_kept_is_not_closed() -> None:
    relay = Sender(RateLimit(1000))
    for _ in range(3):
        await relay.send(5000, OVER_SECONDS - 1)
        await relay.send(1000, 1)
    assert not relay.outbox.closed.done()


async def test_a_relay_that_is_held_back_for_too_long_is_told_and_closed() -> None:
    relay = Sender(RateLimit(1000))
    await relay.send(1001, OVER_SECONDS)
    [message] = relay.outbox.take()
    assert json.loads(message)["code"] == "too_many"
    assert relay.outbox.closed.result() == CloseCode.TOO_MANY


async def test_a_relay_that_has_gone_is_forgotten() -> None:
    limit = RateLimit(1000)
    relay = Sender(limit)
    limit.forget(relay.outbox)
    await relay.send(5000, 2 * OVER_SECONDS)
    assert not relay.outbox.closed.done()
