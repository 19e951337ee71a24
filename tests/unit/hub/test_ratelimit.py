"""The rate limit of relays: what is over it for a while is borne, and for longer is told and closed."""

from __future__ import annotations

import json

from zander.delivery.outbox import Outbox
from zander.errors import CloseCode
from zander.hub.ratelimit import OVER_SECONDS, RateLimit
from zander.routes.asgi import AsgiConnection


class Sender:
    """A relay that sends as much a second as it is told to, on a server that only counts."""

    def __init__(self, limit: RateLimit) -> None:
        self.outbox = Outbox("me", types=())
        self._connection = Counted()
        self._limit = limit
        limit.watch(self.outbox, self._connection)

    def send(self, n_bytes: int, seconds: int) -> None:
        for _ in range(seconds):
            self._connection.n_bytes += n_bytes
            self._limit.tick()


class Counted(AsgiConnection):
    """A connection of which only the bytes count."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.max_bytes = 0.0

    def limit(self, bytes_per_second: float) -> None:
        self.max_bytes = bytes_per_second

    def take_throttled(self) -> bool:
        n_bytes, self.n_bytes = self.n_bytes, 0
        return n_bytes > self.max_bytes


async def test_a_relay_that_brings_what_it_kept_is_not_closed() -> None:
    relay = Sender(RateLimit(1000))
    for _ in range(3):
        relay.send(5000, OVER_SECONDS - 1)
        relay.send(1000, 1)
    assert not relay.outbox.closed.done()


async def test_a_relay_that_is_held_back_for_too_long_is_told_and_closed() -> None:
    relay = Sender(RateLimit(1000))
    relay.send(1001, OVER_SECONDS)
    [message] = relay.outbox.take()
    assert json.loads(message)["code"] == "too_many"
    assert relay.outbox.closed.result() == CloseCode.TOO_MANY


async def test_a_relay_that_has_gone_is_forgotten() -> None:
    limit = RateLimit(1000)
    relay = Sender(limit)
    limit.forget(relay.outbox)
    relay.send(5000, 2 * OVER_SECONDS)
    assert not relay.outbox.closed.done()
