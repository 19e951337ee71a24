"""Interface of a WebSocket that is accepted: ours is in `wire/websocket.py`, that of any other server in `routes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from zander._native import FrameReader, Socket

Message = str | bytes
Take = Callable[[Message], Awaitable[None] | None]


class Client(NamedTuple):
    """A key, and the address that it came from; both empty where there is none."""

    key: str
    address: str


NOBODY = Client("", "")


class Disconnected(OSError):
    """The peer has closed, or the connection is lost."""


class Connection(Protocol):
    """A WebSocket on which samples, predictions and answers go.

    `socket` and `reader` are those of the native path, where the connection is on it.
    """

    @property
    def socket(self) -> Socket | None: ...

    @property
    def reader(self) -> FrameReader | None: ...

    def limit(self, bytes_per_second: float) -> None:
        """Read no more than so much in the long run, where the server can do that."""

    def take_throttled(self) -> bool:
        """Return whether the peer has sent more since the last time, about a second ago."""

    async def receive(self) -> Message:
        """Return the next message; Disconnected when there is none any more. Not after `listen`."""

    def listen(self, take: Take, ended: Callable[[], None]) -> None:
        """Give `take` every message, one after the other; once the peer has gone, call `ended`. Neither may raise."""

    def when_lost(self, call: Callable[[], None]) -> None:
        """Call when the peer has gone, where the server can tell; at once if it has already."""

    def admit(self) -> None:
        """Let the client stay: it has authenticated."""

    async def send_all(self, waiting: Callable[[], list[Message]]) -> None:
        """Send what waits, once the peer takes more; Disconnected when it has gone."""

    async def close(self, code: int) -> None:
        """Close, behind what was sent; nothing happens when the peer has gone."""

    def release(self) -> None:
        """Drop what still comes, and hold nothing of the session task."""
