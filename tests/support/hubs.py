"""A hub and who is around it, all in memory: a recorder that is a list, an archive that is a dict, and no Redis."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from msgspec import structs
from msgspec.json import decode

from zander.cluster.single import Alone
from zander.delivery.outbox import Outbox
from zander.errors import Forbidden, Unavailable
from zander.hub.hub import Hub
from zander.journal.records import GapRecord, PredictionRecord, SessionRecord
from zander.streams.stored import StoredSession
from zander.streams.stream import Stream
from zander.wire.chunk import Chunk, Origin
from zander.wire.messages import Auth, DeviceInfo, Note

DEVICE = DeviceInfo(sampling_rate=128, channel_count=2)


class Sample(NamedTuple):
    """One recorded sample."""

    session_id: str
    position: int


class Listed(list[Any]):
    """A recorder that is a list of records; a chunk is listed sample by sample, and kept as pending."""

    takes = True

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[Chunk] = []

    def record(self, record: SessionRecord | GapRecord) -> None:
        self.append(record)

    def record_chunk(self, chunk: Chunk, fence: int) -> bool:
        if self.takes:
            self += [Sample(chunk.origin.session_id, position) for position in range(chunk.position, chunk.end)]
            self.chunks.append(chunk)
        return self.takes

    def drop(self, n_records: int) -> None:
        pass

    def record_prediction(self, record: PredictionRecord) -> bool:
        self.append(record)
        return True

    async def pending(self, origin: Origin, start: int, end: int) -> list[Chunk]:
        own = [chunk for chunk in self.chunks if chunk.origin.session_id == origin.session_id]
        return [chunk for chunk in own if chunk.position < end and chunk.end > start]

    def of(self, kind: type) -> list[Any]:
        """The records of one kind."""
        return [record for record in self if isinstance(record, kind)]


class Shelf:
    """An archive that is a dict. `is_away`: the database is."""

    def __init__(self) -> None:
        self.sessions: dict[str, StoredSession] = {}
        self.chunks: dict[str, list[Chunk]] = {}
        self.is_away = False
        self.n_asked = 0

    def put(self, session: StoredSession, chunks: list[Chunk]) -> None:
        """Store more of a session."""
        self.sessions[session.session_id] = session
        self.chunks.setdefault(session.session_id, []).extend(chunks)

    async def resume(self, user_id: str, session_id: str, now_us: int, device_info: str) -> StoredSession:
        new = StoredSession(session_id, user_id, now_us, None, decode(device_info), 0, None, 0)
        found = self._there().setdefault(session_id, new)
        if found.user_id != user_id:
            raise Forbidden(f"expected a session of user {user_id}")
        self.sessions[session_id] = structs.replace(found, fence=found.fence + 1, end_us=None)
        return self.sessions[session_id]

    async def session(self, session_id: str) -> StoredSession | None:
        return self._there().get(session_id)

    async def later_sessions(self, user_id: str, session_id: str) -> list[StoredSession]:
        start_us = self._there()[session_id].start_us if session_id in self.sessions else 1 << 62
        later = (session for session in self.sessions.values() if session.start_us > start_us)
        return sorted((session for session in later if session.user_id == user_id), key=lambda found: found.start_us)

    async def samples(self, session: StoredSession, position: int, n: int) -> list[Chunk]:
        found: list[Chunk] = []
        for chunk in self._there() and self.chunks[session.session_id]:
            if chunk.end > position and n > 0:
                found.append(chunk.since(position).pieces(n)[0])
                n -= len(found[-1])
        return found

    def _there(self) -> dict[str, StoredSession]:
        self.n_asked += 1
        if self.is_away:
            raise Unavailable("the database is away")
        return self.sessions


class Overheard(Alone):
    """A node without others that keeps what it would have told them."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def announce(self, user_id: str, stream: Stream | None) -> None:
        self.said.append(("announce", user_id, stream.online if stream else None))

    def publish(self, stream: Stream, event: Chunk | Note) -> None:
        what = event.kind if isinstance(event, Note) else range(event.position, event.end)
        self.said.append(("publish", stream.session.user_id, what))

    def unfollow(self, user_id: str) -> None:
        self.said.append(("unfollow", user_id))


class House(NamedTuple):
    """A hub and who is around it."""

    hub: Hub
    recorder: Listed
    archive: Shelf
    broadcast: Overheard

    async def relay(
        self, user_id: str = "me", device: DeviceInfo = DEVICE, session_id: str | None = None, ack: bool = False
    ) -> Stream:
        """Connect a relay."""
        info = {"firmware": "7"} | ({"sampling_rate": 128, "channel_count": 2} if session_id else {})
        auth = Auth(user_id, None, info, UUID(session_id) if session_id else None, ack)
        return await self.hub.connect(auth, device, Outbox(user_id, types=()))

    async def consumer(self, user_id: str = "me", last: int = 0, **options: Any) -> Outbox:
        """Connect a consumer."""
        outbox = Outbox(user_id, **options)
        await self.hub.subscribe(outbox, last)
        return outbox

    def disconnect(self, stream: Stream, relay: Outbox | None = None) -> None:
        """Let a stream's relay go, or one that it had before."""
        relay = relay or stream.relay
        assert relay
        self.hub.disconnect(stream, relay)


def build(**options: Any) -> House:
    """Build a house."""
    recorder, archive, broadcast = Listed(), Shelf(), Overheard()
    settings: dict[str, Any] = {"buffer_samples": 10, "buffer_keep_seconds": 900.0} | options
    hub = Hub(recorder, archive, broadcast, **settings)
    broadcast.attach(hub)
    return House(hub, recorder, archive, broadcast)
