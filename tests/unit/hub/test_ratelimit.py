"""The rate limit of relays: what is over it for a while is borne, and for longer is told and closed."""

from __future__ import annotations

import json

from zander.delivery.outbox import Outbox
from zander.errors import CloseCode
from zander.hub.ratelimit import OVER_SECONDS, RateLimit


class Sender:
    """A relay that sends as much a second as it is told to."""

    def __init__(self, limit: RateLimit) -> None:
        self.outbox = Outbox("me", types=())
        self.n_sent = 0
        self._limit = limit
        limit.watch(self.outbox, lambda: self.n_sent)

    def send(self, n_bytes: int, seconds: int) -> None:
        for _ in range(seconds):
            self.n_sent += n_bytes
            self._limit.tick()


async def test_a_relay_that_brings_what_it_kept_is_not_closed() -> None:
    relay = Sender(RateLimit(1000))
    for _ in range(3):
        relay.send(5000, OVER_SECONDS - 1)
        relay.send(1000, 1)
    assert not relay.outbox.closed.done()


async def test_a_relay_that_sends_too_much_for_too_long_is_told_and_closed() -> None:
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
