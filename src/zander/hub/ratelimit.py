"""Rate limit of relays: each may send so many bytes a second; who would send more waits, and not for ever."""

from __future__ import annotations

from zander.delivery.outbox import Outbox
from zander.errors import CloseCode
from zander.wire.codec import dumps
from zander.wire.connection import Connection
from zander.wire.messages import Error

OVER_SECONDS = 30  # that a relay may be held back: it has to bring what it kept while it was cut off


class RateLimit:
    """The relays that are connected, and for how long each has been held back; `tick` is called about every second."""

    def __init__(self, max_bytes_per_second: int) -> None:
        self._max_bytes = max_bytes_per_second
        self._relays: dict[Outbox, tuple[Connection, int]] = {}  # and for how many seconds

    def watch(self, relay: Outbox, connection: Connection) -> None:
        """Limit a relay."""
        connection.limit(self._max_bytes)
        self._relays[relay] = connection, 0

    def forget(self, relay: Outbox) -> None:
        """Limit a relay no more: it has gone."""
        self._relays.pop(relay, None)

    def tick(self) -> None:
        """Close those who have been held back for too long."""
        for relay, (connection, n_seconds) in list(self._relays.items()):
            n_held = n_seconds + 1 if connection.take_throttled() else 0
            self._relays[relay] = connection, n_held
            if n_held == OVER_SECONDS:
                relay.say(dumps(Error("too_many", f"expected at most {self._max_bytes} bytes a second")))
                relay.close(CloseCode.TOO_MANY)
