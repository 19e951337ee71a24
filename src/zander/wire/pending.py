"""Connections whose client is not known yet: bounded in number, in bytes and in time, before anything else.

A client has REQUEST_SECONDS for a request, and then to authenticate; until then its connection is *pending*. Where
there are too many, one is cut: the oldest of those at the same stage of the same address, where these are most. So
nobody takes the places of others, and journal and database always find a descriptor.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from time import monotonic

REQUEST_SECONDS = 10.0
SPARED_SECONDS = 0.2  # in which nobody is cut: an honest client says something at once
MAX_PENDING_BYTES = 8 << 20  # received by all that are pending

RESET = struct.pack("ii", 1, 0)  # of SO_LINGER


class Pending:
    """One connection that is pending.

    `since_s` is of `monotonic()`, when it began to wait for the peer. `is_answered`: its request was for a WebSocket,
    and a session task keeps the time from then on.
    """

    __slots__ = ("address", "is_answered", "n_bytes", "since_s", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.address: tuple[str, int] | None = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple | list) else None
        self.since_s = 0.0
        self.is_answered = False
        self.n_bytes = 0

    def received(self) -> int:
        """Return how many bytes it sent."""
        return self.n_bytes

    @property
    def group(self) -> tuple[str, bool]:
        """Those with whom it competes for a place: at the same stage, from the same address."""
        return self.address[0] if self.address else "", self.is_answered


class PendingConnections:
    """All connections that are pending, in groups, each oldest first."""

    def __init__(self, max_connections: int) -> None:
        self.n_cut = 0
        self._max_connections = max_connections
        self._groups: dict[tuple[str, bool], dict[Pending, None]] = {}
        self._n = 0
        self._n_bytes = 0

    @property
    def n(self) -> int:
        """How many there are."""
        return self._n

    def __iter__(self) -> Iterator[Pending]:
        for found in self._groups.values():
            yield from found

    def __contains__(self, pending: Pending) -> bool:
        return pending in self._groups.get(pending.group, ())

    def add(self, pending: Pending) -> None:
        """Count a connection that waits for a request from now on, and cut another where there are too many."""
        pending.since_s = monotonic()
        if self._n >= self._max_connections:
            self.cut()
        self._groups.setdefault(pending.group, {})[pending] = None
        self._n += 1

    def receive(self, pending: Pending, n_bytes: int) -> None:
        """Count what a pending connection sent, and cut the one that sent most where it is too much in all."""
        if pending in self:
            pending.n_bytes += n_bytes
            self._n_bytes += n_bytes
            if self._n_bytes > MAX_PENDING_BYTES:
                self._cut(max(self, key=Pending.received))

    def remove(self, pending: Pending) -> None:
        """Count a connection no more: its client is known, is being answered, or has gone."""
        if pending in self:
            found = self._groups[pending.group]
            del found[pending]
            if not found:
                del self._groups[pending.group]
            self._n -= 1
            self._n_bytes -= pending.n_bytes
            pending.n_bytes = 0

    def wait_s(self) -> float:
        """Return for how long nobody should come, so that those who are here can say something first."""
        if self._n < self._max_connections:
            return 0.0
        return max(0.0, self._first().since_s + SPARED_SECONDS - monotonic())

    def cut(self) -> bool:
        """Cut the oldest of the largest group; False when there is none."""
        if not self._n:
            return False
        self._cut(self._first())
        return True

    def _first(self) -> Pending:
        """Return the one that would be cut."""
        largest: dict[Pending, None] = max(self._groups.values(), key=len)
        return next(iter(largest))

    def expired(self) -> list[Pending]:
        """Return those whose request has not come in time."""
        begun_s = monotonic() - REQUEST_SECONDS
        return [pending for pending in self if not pending.is_answered and pending.since_s < begun_s]

    def _cut(self, pending: Pending) -> None:
        self.n_cut += 1
        self.remove(pending)
        abort(pending.transport)


def abort(transport: asyncio.Transport) -> None:
    """End a connection, and drop what could not be sent: the kernel would wait for a peer that does not read."""
    if carried := transport.get_extra_info("socket"):
        carried.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    transport.abort()
