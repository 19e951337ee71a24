"""What the hub needs of its neighbours: the database, and the other nodes. It knows neither."""

from __future__ import annotations

from collections.abc import Container
from typing import Literal, Protocol

from zander.delivery.outbox import Outbox
from zander.streams.query import Answer, Query
from zander.streams.stored import StoredSession
from zander.streams.stream import Stream, StreamSummary
from zander.wire.chunk import Chunk
from zander.wire.messages import Note, Status

LinkState = Literal["off", "up", "down"]


class Archive(Protocol):
    """What the hub needs of the database; Unavailable when it is away."""

    async def resume(self, user_id: str, session_id: str, now_us: int, device_info: str) -> StoredSession:
        """Take a session over from whoever held it, by raising its fence; begin it if nobody did.

        `device_info` is JSON text. Forbidden when it is another user's.
        """

    async def session(self, session_id: str) -> StoredSession | None:
        """Return a session; None where it is unknown."""

    async def later_sessions(self, user_id: str, session_id: str) -> list[StoredSession]:
        """Return the user's sessions that began after that one, oldest first."""

    async def samples(self, session: StoredSession, position: int, n: int) -> list[Chunk]:
        """Return the first `n` durable samples at `position` or behind it; a new chunk begins behind every hole."""


class Broadcast(Protocol):
    """What the hub needs of the other nodes; `state` tells whether they can be reached."""

    @property
    def state(self) -> LinkState: ...

    @property
    def n_peers(self) -> int: ...

    @property
    def followed(self) -> Container[str]:
        """The users of ours of whom another node wants what happens."""

    def announce(self, user_id: str, stream: Stream | None) -> None:
        """Tell the others that this node's stream of the user changed its status, or (None) is no more."""

    def publish(self, stream: Stream, event: Chunk | Note) -> None:
        """Pass an event on to the nodes that follow the user."""

    def unfollow(self, user_id: str) -> None:
        """Nobody here listens to the user any more."""

    def status(self, user_id: str) -> Status:
        """Say what is known of the user's relay on the other nodes."""

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        """Call `hub.listen` once what the owning node has buffered is at hand."""

    async def join(self, outbox: Outbox, at_a_loss: bool) -> int | None:
        """Call `hub.listen` if the owning node's memory reaches back to where the consumer stands, or `at_a_loss`.

        Else return from where on it has the session. If no node holds the user, the consumer listens at once.
        """

    async def ask(self, query: Query) -> Answer:
        """Let the owning node answer; NotFound without one, Unavailable when it doesn't answer."""

    async def predict(self, user_id: str, text: str, sender: str) -> bool:
        """Let the owning node take a prediction; errors as for `ask`."""

    async def streams(self) -> list[StreamSummary]:
        """Return the streams online on the other nodes."""
