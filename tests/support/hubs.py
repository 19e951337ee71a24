"""A hub and what is around it, all in memory: a sink that is a list, a store that is a dict, and no Redis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import structs
from msgspec.json import decode

from zander.cluster.single import NoPeers
from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscribers
from zander.errors import Forbidden, Unavailable
from zander.hub.hub import Hub
from zander.hub.ingest import Ingest
from zander.hub.kept import Kept
from zander.hub.replay import Replays
from zander.journal.records import GapRecord, PredictionRecord, SessionRecord
from zander.streams.session import StoredSession
from zander.streams.stream import Stream, Streams
from zander.wire.chunk import Chunk, Origin
from zander.wire.connection import NOBODY
from zander.wire.messages import Auth, DeviceInfo, Gap, Item, Note

DEVICE = DeviceInfo(sampling_rate=128, channel_count=2)


class Sample(NamedTuple):
    """One recorded sample."""

    session_id: str
    position: int


def session_of(item: Chunk | Gap) -> str:
    """The session of an item."""
    return item.session_id if isinstance(item, Gap) else item.origin.session_id


def begin(item: Chunk | Gap) -> int:
    """Its first position."""
    return item.start if isinstance(item, Gap) else item.position


class Listed(list[Any]):
    """A recorder that is a list of records; a chunk is listed sample by sample. `items`: what is pending."""

    takes = True

    def __init__(self) -> None:
        super().__init__()
        self.items: list[Chunk | Gap] = []
        self.frames: list[bytes] = []

    def record(self, record: SessionRecord | GapRecord) -> None:
        self.append(record)
        if isinstance(record, GapRecord) and record.reason == "relay":
            self.items.append(Gap(record.session_id, record.start, record.end, "relay"))

    def record_chunk(self, chunk: Chunk, fence: int) -> bool:
        if self.takes:
            self += [Sample(chunk.origin.session_id, position) for position in range(chunk.position, chunk.end)]
            self.items.append(chunk)
        return self.takes

    def takes_from(self, user_id: str, kind: str = "samples", client: object = None) -> bool:
        return self.takes

    def record_frames(self, frames: bytes, n_samples: int, sizes: object = None) -> bool:
        self.frames.append(frames)
        return self.takes

    def drop(self, n_records: int) -> None:
        pass

    def record_prediction(self, record: PredictionRecord) -> bool:
        self.append(record)
        return True

    async def pending(self, origin: Origin, start: int, end: int) -> list[Chunk | Gap]:
        return [it for it in self.items if session_of(it) == origin.session_id and begin(it) < end and it.end > start]

    def of(self, kind: type) -> list[Any]:
        """The records of one kind."""
        return [record for record in self if isinstance(record, kind)]


class Shelf:
    """An archive that is a dict. `is_away`: the database is."""

    def __init__(self) -> None:
        self.sessions: dict[str, StoredSession] = {}
        self.items: dict[str, list[Chunk | Gap]] = {}
        self.is_away = False
        self.n_asked = 0

    def put(self, session: StoredSession, items: Iterable[Chunk | Gap]) -> None:
        """Store more of a session."""
        self.sessions[session.session_id] = session
        self.items.setdefault(session.session_id, []).extend(items)

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

    async def samples(self, session: StoredSession, position: int, n: int) -> list[Chunk | Gap]:
        found: list[Chunk | Gap] = []
        for item in self.items[session.session_id] if self._there() else []:
            if item.end > position and n > 0:
                if isinstance(item, Chunk):
                    item = item.since(position).pieces(n)[0]  # noqa: PLW2901
                    n -= len(item)
                found.append(item)
        return found

    def _there(self) -> dict[str, StoredSession]:
        self.n_asked += 1
        if self.is_away:
            raise Unavailable("the database is away")
        return self.sessions


class ListedPeers(NoPeers):
    """A node without others that lists what it would have told them."""

    def __init__(self, subscribers: Subscribers) -> None:
        super().__init__(subscribers)
        self.said: list[tuple[Any, ...]] = []
        self.users: dict[str, str] = {}  # whose sessions the others hold

    def follow(self, user_id: str) -> None:
        """List what happens to a user from now on, as a node that follows would get it."""
        self._subscribers.follow(user_id, ListedFollower(user_id, self.said))

    def user_of(self, session_id: str) -> str | None:
        return self.users.get(session_id)

    def announce(self, user_id: str, stream: Stream | None) -> None:
        self.said.append(("announce", user_id, stream.online if stream else None))

    def unfollow(self, user_id: str) -> None:
        self.said.append(("unfollow", user_id))


class ListedFollower:
    """A follower that lists what it is given, but a status."""

    def __init__(self, user_id: str, said: list[tuple[Any, ...]]) -> None:
        self.user_id = user_id
        self.said = said

    def offer(self, item: Item) -> None:
        if isinstance(item, Chunk):
            self.said.append(("publish", self.user_id, range(item.position, item.end)))
        elif isinstance(item, Note) and item.kind != "status":
            self.said.append(("publish", self.user_id, item.kind))


class House(NamedTuple):
    """A hub and what is around it."""

    hub: Hub
    recorder: Listed
    archive: Shelf
    peers: ListedPeers
    replays: Replays

    @property
    def ingest(self) -> Ingest:
        return self.hub.ingest

    @property
    def streams(self) -> Streams:
        return self.hub.ingest.streams

    @property
    def subscribers(self) -> Subscribers:
        return self.hub.subscribers

    async def relay(
        self, user_id: str = "me", device: DeviceInfo = DEVICE, session_id: str | None = None, ack: bool = False
    ) -> Stream:
        """Connect a relay."""
        info = {"firmware": "7"} | ({"sampling_rate": 128, "channel_count": 2} if session_id else {})
        auth = Auth(user_id, None, info, UUID(session_id) if session_id else None, ack)
        return await self.ingest.connect(auth, device, Outbox(user_id, types=()), NOBODY)

    async def consumer(self, user_id: str = "me", last: int = 0, **options: Any) -> Outbox:
        """Connect a consumer."""
        outbox = Outbox(user_id, **options)
        await self.hub.subscribe(outbox, last)
        return outbox

    def disconnect(self, stream: Stream, relay: Outbox | None = None) -> None:
        """Let a stream's relay go, or one that it had before."""
        relay = relay or stream.relay
        assert relay
        self.ingest.disconnect(stream, relay)


def build(**options: Any) -> House:
    """Build a house."""
    streams, subscribers, recorder, archive = Streams(), Subscribers(), Listed(), Shelf()
    settings: dict[str, Any] = {"buffer_samples": 10, "buffer_keep_seconds": 900.0, "buffer_keep_bytes": 1 << 30}
    settings |= options
    peers = ListedPeers(subscribers)
    peers.follow("me")
    kept = Kept(streams, peers, max_bytes=settings["buffer_keep_bytes"], seconds=settings["buffer_keep_seconds"])
    ingest = Ingest(
        streams, subscribers, recorder, archive, peers, kept=kept, buffer_samples=settings["buffer_samples"]
    )
    hub = Hub(ingest, subscribers, peers)
    return House(hub, recorder, archive, peers, Replays(hub, subscribers, archive, recorder))
