"""A user's stream on the node that holds it: the session, its buffers, and the relay while it is connected."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from zander.delivery.outbox import Outbox
from zander.errors import CloseCode
from zander.streams.notes import History
from zander.streams.ring import Ring, Run
from zander.streams.session import Session
from zander.wire.chunk import Chunk
from zander.wire.codec import dumps, memory_bytes
from zander.wire.connection import NOBODY, Client
from zander.wire.messages import DEVICE_IS, Ack, DeviceInfo, Error, Gap, Item, Note, SessionId, Status, User

SampleType = Literal["features", "raw", "prediction"]
RATE_SECONDS = 5  # over which a rate is taken
RECENT_NOTES = 256  # that another node can still ask for after its connection broke: minutes of features


class Rates:
    """Rates per second of `n` things, over the last RATE_SECONDS; `tick` is called about every second."""

    def __init__(self, n: int) -> None:
        self._counts = array("d", [monotonic(), *[0] * n])  # rows: when, then a count of each
        self._width = 1 + n

    def tick(self, *counts: int) -> None:
        """Keep the counts until now."""
        self._counts.extend((monotonic(), *counts))
        del self._counts[: -self._width * (RATE_SECONDS + 1)]

    def per_second(self, *counts: int) -> list[float]:
        """Return the rates, given the counts until now; 0 where none were kept for long, as the relay has gone."""
        then, *before = self._counts[: self._width]
        elapsed = monotonic() - then
        if elapsed > 2 * RATE_SECONDS:
            return [0.0] * len(counts)
        return [
            round((n - n_then) / elapsed, 2) if elapsed > 0 else 0.0 for n, n_then in zip(counts, before, strict=True)
        ]


RATE_IS = f"how many a second, over the last {RATE_SECONDS} s"
NEXT_POSITION_IS = "position after the last sample"


class BufferStats(Struct):
    """The content of one buffer."""

    held: Annotated[int, Meta(description="how many are buffered")]
    capacity: Annotated[int, Meta(description="how many there is room for")]
    rate: Annotated[float, Meta(description=RATE_IS)]
    first_time: Annotated[float | None, Meta(description="time of the oldest, Unix seconds")]
    last_time: Annotated[float | None, Meta(description="time of the newest, Unix seconds")]
    bytes: Annotated[int, Meta(description="memory taken")]
    gaps: Annotated[int, Meta(description="of raw: holes in the positions since the session began")] = 0
    duplicates: Annotated[int, Meta(description="of raw: samples dropped because they were there already")] = 0
    clamped: Annotated[int, Meta(description="of raw: samples whose time ran backwards and was moved")] = 0


class StreamStats(Struct):
    """A stream's buffers, by sample type."""

    user_id: User
    session_id: SessionId
    online: Annotated[bool, Meta(description="whether the relay is connected")]
    next_position: Annotated[int, Meta(description=NEXT_POSITION_IS)]
    bad_messages: Annotated[int, Meta(description="messages of this session that broke a rule and were dropped")]
    bytes: Annotated[int, Meta(description="memory taken by all that is kept of the user: buffers and device_info")]
    raw: Annotated[BufferStats, Meta(description="the buffer of samples")]
    features: Annotated[BufferStats, Meta(description="the buffer of features")]
    prediction: Annotated[BufferStats, Meta(description="the buffer of predictions")]


class StreamSummary(Struct):
    """A stream in the list of those online."""

    user_id: User
    session_id: SessionId
    start_time: Annotated[float, Meta(description="when the session began, Unix seconds")]
    rate: Annotated[float, Meta(description=f"samples: {RATE_IS}")]
    next_position: Annotated[int, Meta(description=NEXT_POSITION_IS)]
    device_info: Annotated[dict[str, Any], Meta(description=DEVICE_IS)]


class Stream:
    """One session being received or, for a while after, remembered."""

    def __init__(self, session: Session, relay: Outbox, buffer_samples: int) -> None:
        self.session = session
        self.relay: Outbox | None = relay
        self.client = NOBODY  # whose relay it is, or was last
        self.acks = False  # whether the relay is told what is durable
        self.durable = session.next_position
        self.lost_from: int | None = None  # first position that found no room in the journal
        self.offline_at: float | None = None  # time.monotonic() when the relay went
        self.ring = Ring(buffer_samples, session.next_position)
        self.features = History(buffer_samples)
        self.predictions = History(buffer_samples)
        self.recent = History(RECENT_NOTES)  # of all kinds, in their order
        self._device_bytes = memory_bytes(session.device_info)
        self._told: set[str] = set()
        self._rates = Rates(3)

    @property
    def online(self) -> bool:
        """Whether the relay is connected."""
        return self.relay is not None

    def drop_buffers(self) -> None:
        """Forget the samples and notes, but not where the session goes on."""
        self.ring = Ring(self.ring.capacity, self.session.next_position)
        for history in (self.features, self.predictions, self.recent):
            history.clear()

    def reconnect(self, relay: Outbox, device: DeviceInfo) -> None:
        """Go on with a relay that comes back; one that is still here is closed. BadMessage: its device is another."""
        self.session.resume(device, self.durable)
        if self.relay:
            self.relay.close(CloseCode.TAKEN_OVER)
        self.relay, self.offline_at = relay, None

    def acknowledge(self, durable: int) -> None:
        """Set what is durable, and tell the relay if it asked for acks.

        Never less than before, which it has forgotten: a database that went back comes as far again.
        """
        if durable < self.durable:
            return
        self.durable = durable
        if self.acks and self.relay:
            self.relay.say(dumps(Ack(self.session.session_id, durable)))

    def tell_once(self, code: str, message: str) -> bool:
        """Tell the relay of something that goes on, once in a session; True when it was the first time."""
        if code in self._told:
            return False
        self._told.add(code)
        if self.relay:
            self.relay.say(dumps(Error(code, message)))
        return True

    @property
    def n_notes(self) -> int:
        """How many features and predictions there were."""
        return self.recent.n_written

    @property
    def nbytes(self) -> int:
        """Bytes of memory that all this takes."""
        # The buffers by kind hold every recent note, unless they are the shorter ones.
        alone = self.recent.nbytes if self.features.capacity < RECENT_NOTES else 0
        return sum(buffer.nbytes for buffer in self.buffers) + alone + self._device_bytes

    @property
    def buffers(self) -> tuple[Ring | History, ...]:
        """Raw, features, predictions."""
        return self.ring, self.features, self.predictions

    def write(self, chunk: Chunk) -> None:
        """Buffer accepted raw."""
        self.ring.write(chunk.position, chunk.times_us, chunk.samples)

    def follows(self) -> bool:
        """Return whether the native path may go on: what comes next simply follows what is in the ring."""
        return self.lost_from is None and self.ring.next_position == self.session.next_position

    def note(self, note: Note) -> None:
        """Buffer features or a prediction."""
        self.recent.write(note)
        if note.kind == "features":
            self.features.write(note)
        elif note.kind == "prediction":
            self.predictions.write(note)

    def chunks(self, runs: list[Run]) -> list[Chunk]:
        """Return what was read from the ring as chunks."""
        return [piece for run in runs for piece in Chunk(self.session.origin, *run).pieces()]

    def last_items(self, n: int) -> list[Item]:
        """Return the last `n` features and predictions, by time, then the last `n` samples, with the gaps in them."""
        notes = sorted(self.features.last(n) + self.predictions.last(n), key=lambda note: note.time_us)
        return [*notes, *self._with_gaps(self.chunks(self.ring.last(n)))]

    def items_since(self, position: int, n_notes: int) -> list[Item]:
        """Return what came after the first `n_notes` and is still in `recent`, and the samples from `position` on.

        What lies before the samples that memory still has is no gap.
        """
        notes = self.recent.last(max(0, self.n_notes - n_notes))
        expected = max(position, self.ring.first_position)
        return [*notes, *self._with_gaps(self.chunks(self.ring.since(position)), expected)]

    def _with_gaps(self, chunks: list[Chunk], expected: int | None = None) -> Iterator[Item]:
        """Put what the relay skipped between chunks, and before them from `expected` on."""
        for chunk in chunks:
            if expected is not None and expected < chunk.position:
                yield Gap(self.session.session_id, expected, chunk.position, "relay")
            yield chunk
            expected = chunk.end

    def status(self) -> Status:
        """Return whether the relay is connected, and with what."""
        session = self.session
        return Status(session.user_id, self.online, session.session_id, session.device_info)

    def tick(self) -> None:
        """Take the counts from which rates are told."""
        self._rates.tick(*self._n_written())

    def summary(self) -> StreamSummary:
        """Describe the stream in a line."""
        session = self.session
        return StreamSummary(
            user_id=session.user_id,
            session_id=session.session_id,
            start_time=session.start_us / 1e6,
            rate=self._rates.per_second(*self._n_written())[0],
            next_position=session.next_position,
            device_info=session.device_info,
        )

    def stats(self) -> StreamStats:
        """Describe the buffers."""
        session = self.session
        raw, features, prediction = map(_buffer_stats, self.buffers, self._rates.per_second(*self._n_written()))
        raw.gaps, raw.duplicates, raw.clamped = session.n_gaps, session.n_duplicates, session.n_clamped
        return StreamStats(
            user_id=session.user_id,
            session_id=session.session_id,
            online=self.online,
            next_position=session.next_position,
            bad_messages=session.n_bad,
            bytes=self.nbytes,
            raw=raw,
            features=features,
            prediction=prediction,
        )

    def _n_written(self) -> list[int]:
        return [buffer.n_written for buffer in self.buffers]


def _buffer_stats(buffer: Ring | History, rate: float) -> BufferStats:
    first_us, last_us = buffer.span_us or (None, None)
    return BufferStats(
        held=len(buffer),
        capacity=buffer.capacity,
        rate=rate,
        first_time=first_us and first_us / 1e6,
        last_time=last_us and last_us / 1e6,
        bytes=buffer.nbytes,
    )


class Streams(Mapping[str, Stream]):
    """The streams that this node holds, by user."""

    def __init__(self) -> None:
        self.connected: dict[str, Stream] = {}  # those whose relay is
        self._by_user: dict[str, Stream] = {}
        self._by_session: dict[str, Stream] = {}

    def __getitem__(self, user_id: str) -> Stream:
        return self._by_user[user_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_user)

    def __len__(self) -> int:
        return len(self._by_user)

    def of_session(self, session_id: str) -> Stream | None:
        """Return the stream of a session."""
        return self._by_session.get(session_id)

    def client_of(self, user_id: str) -> Client:
        """Return whose relay a user has, or had last."""
        stream = self._by_user.get(user_id)
        return stream.client if stream else NOBODY

    def enter(self, stream: Stream) -> None:
        """Hold a stream whose relay is connected; the user has no other."""
        session = stream.session
        self.connected[session.user_id] = self._by_user[session.user_id] = stream
        self._by_session[session.session_id] = stream

    def leave(self, stream: Stream) -> None:
        """Note that the relay of a stream has gone."""
        self.connected.pop(stream.session.user_id, None)

    def remove(self, user_id: str) -> Stream | None:
        """Hold a user's stream no more, and return it."""
        if stream := self._by_user.pop(user_id, None):
            self.leave(stream)
            del self._by_session[stream.session.session_id]
        return stream

    def online(self) -> list[StreamSummary]:
        """Return a summary of each whose relay is connected."""
        return [stream.summary() for stream in self.connected.values()]
