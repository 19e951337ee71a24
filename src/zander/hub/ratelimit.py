"""Rate limit of relays: each may send so many bytes a second, and more for a while."""

from __future__ import annotations

from collections.abc import Callable

from zander.delivery.outbox import Outbox
from zander.errors import CloseCode
from zander.wire.codec import dumps
from zander.wire.messages import Error

OVER_SECONDS = 10  # that a relay may be over it: it has to bring what it kept while it was cut off


class RateLimit:
    """The relays that are connected, and how much they send; `tick` is called about every second."""

    def __init__(self, max_bytes_per_second: int) -> None:
        self._max_bytes = max_bytes_per_second
        self._relays: dict[Outbox, tuple[Callable[[], int], int, int]] = {}  # its count, that before, seconds over it

    def watch(self, relay: Outbox, n_received: Callable[[], int]) -> None:
        """Limit a relay, whose connection counts the bytes."""
        self._relays[relay] = n_received, n_received(), 0

    def forget(self, relay: Outbox) -> None:
        """Limit a relay no more: it has gone."""
        self._relays.pop(relay, None)

    def tick(self) -> None:
        """Close those who have been over it for too long."""
        for relay, (n_received, n_before, n_over_before) in list(self._relays.items()):
            n_now = n_received()
            n_over = n_over_before + 1 if n_now - n_before > self._max_bytes else 0
            self._relays[relay] = n_received, n_now, n_over
            if n_over == OVER_SECONDS:
                relay.say(dumps(Error("too_many", f"expected at most {self._max_bytes} bytes a second")))
                relay.close(CloseCode.TOO_MANY)
