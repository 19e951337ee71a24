"""Interfaces of the hub: what it needs of the recorder, of the database and of the other nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from zander.delivery.outbox import Outbox
from zander.journal.records import GapRecord, PredictionRecord, SessionRecord
from zander.journal.shares import Kind
from zander.streams.query import Found, Query
from zander.streams.session import StoredSession
from zander.streams.stream import Stream, StreamSummary
from zander.wire.chunk import Chunk, Origin
from zander.wire.connection import Client
from zander.wire.messages import Gap, Status

LinkState = Literal["off", "up", "down"]


class RecordSink(Protocol):
    """The way into the journal; no method waits, but `pending`."""

    @property
    def takes(self) -> bool:
        """Whether there is room."""

    def takes_from(self, user_id: str, kind: Kind = "samples", client: Client | None = None) -> bool:
        """Return whether there is room for what comes of a user; `client`: whose relay begins a session now."""

    def record(self, record: SessionRecord | GapRecord) -> None:
        """Record what must not be missed; it is never refused."""

    def record_chunk(self, chunk: Chunk, fence: int) -> bool:
        """Record samples; False when there is no room."""

    def record_frames(
        self, frames: bytes, n_samples: int, sizes: Sequence[tuple[str, int]] | None = None
    ) -> bool | None:
        """Record samples that are frames of the journal already; False when there is no room.

        None when `sizes` have to be told too: users, and how many of the bytes are theirs.
        """

    def drop(self, n_records: int) -> None:
        """Count records that were not even offered."""

    def record_prediction(self, record: PredictionRecord) -> bool:
        """Record a prediction or features; False when there is no room."""

    async def pending(self, origin: Origin, start: int, end: int) -> list[Chunk | Gap]:
        """Return the samples from position `start` to `end` that are not in the database yet, and gaps, in order."""


class SessionStore(Protocol):
    """The sessions and samples in the database; every method raises Unavailable when it is away."""

    async def resume(self, user_id: str, session_id: str, now_us: int, device_info: str) -> StoredSession:
        """Take a session over from whoever held it, by raising its fence; begin it if nobody did.

        `device_info` is JSON text. Forbidden when it is another user's.
        """

    async def session(self, session_id: str) -> StoredSession | None:
        """Return a session; None where it is unknown."""

    async def later_sessions(self, user_id: str, session_id: str) -> list[StoredSession]:
        """Return the user's sessions that began after that one, oldest first."""

    async def samples(self, session: StoredSession, position: int, n: int) -> list[Chunk | Gap]:
        """Return the first `n` durable samples at or after `position`, and what the relay skipped there."""


class Peers(Protocol):
    """The other nodes, as the hub needs them. What happens to a stream reaches them as subscribers."""

    @property
    def state(self) -> LinkState:
        """Whether they can be reached; `off` where there are none."""

    @property
    def n_peers(self) -> int:
        """How many other nodes are known."""

    def announce(self, user_id: str, stream: Stream | None) -> None:
        """Tell them that this node's stream of the user changed its status, or (None) is no more."""

    def unfollow(self, user_id: str) -> None:
        """Follow a user no more, whom nobody here subscribes to."""

    def user_of(self, session_id: str) -> str | None:
        """Return whose session it is, if another node holds it."""

    def status(self, user_id: str) -> Status:
        """Return the status of the user's relay on the other nodes."""

    async def subscribe(self, outbox: Outbox, last: int) -> None:
        """Make a consumer live once what the owning node has buffered is at hand."""

    async def join(self, outbox: Outbox, at_a_loss: bool) -> int | None:
        """Make a consumer live if the owning node's memory reaches back to its cursor, or `at_a_loss`.

        Else return the position from which on the owning node has the session. If no node holds the user, the consumer
        is live at once.
        """

    async def ask(self, query: Query) -> Found:
        """Let the owning node look into its buffers; NotFound without one, Unavailable when it doesn't answer."""

    async def predict(self, user_id: str, text: str, sender: str) -> bool:
        """Let the owning node take a prediction; errors as for `ask`."""

    async def streams(self) -> list[StreamSummary]:
        """Return the streams online on the other nodes."""
