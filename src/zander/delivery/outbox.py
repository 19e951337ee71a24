"""What one consumer still has to get: by position, once, and bounded in bytes.

An outbox knows where its consumer stands in the session. Whatever is offered, the consumer gets samples in position
order, none twice, and every hole as a gap: what came before is cut off, so whoever offers may do so again.

When it is full, the oldest raw makes room and the hole is announced in its place; everything else is kept, until it
alone is more than the bound: then the consumer is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable
from time import monotonic, time
from typing import Any, Literal

from zander.errors import CloseCode
from zander.event import Flag
from zander.wire.chunk import MAX_CHUNK_BYTES, Chunk, join
from zander.wire.codec import dumps
from zander.wire.messages import KINDS, Gap, Kind, Note, Reason

Format = Literal["json", "chunks", "binary"]
FORMATS: tuple[Format, ...] = ("json", "chunks", "binary")

TAKE_BYTES = 8 << 10  # what leaves the outbox at once: 0.1 ms of JSON, and then all others have their turn
BITE_SAMPLES = 32  # about that, of a few channels
STALLED_SECONDS = 60.0
MAX_SESSIONS = 64  # in which it is remembered where the consumer stood: one may be resumed after another

_NONE: deque[Any] = deque(maxlen=0)  # stands for every queue that is empty: one of its own takes 760 bytes


class Outbox:
    """The frames that wait for one consumer. `offer` and `note` never wait; one task takes.

    Its consumer stands at `position` of `session_id`. It stands where it is put, or at the base of a session that
    begins while it listens. `since_us`: when it came. The native path writes what comes next `through`, past the queue,
    while nothing waits in it, and moves `position` itself.
    """

    def __init__(
        self,
        user_id: str,
        consumer_id: str = "",
        format: Format = "json",
        types: Collection[Kind] = KINDS,
        max_bytes: int = 1 << 20,
    ) -> None:
        self.user_id = user_id
        self.consumer_id = consumer_id
        self.format = format
        self.types = tuple(kind for kind in KINDS if kind in types)
        self.max_bytes = max_bytes
        self.since_us = int(time() * 1e6)
        self.session_id: str | None = None
        self.position = 0
        self.through: Callable[[bytes], bool] | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self.ready = Flag()
        self.closed: asyncio.Future[CloseCode] = asyncio.get_running_loop().create_future()
        self.n_dropped = 0
        self.nbytes = 0
        self._unread_since = monotonic()  # when the consumer last took something, or something began to wait
        self._raw: deque[tuple[int, int, Chunk]] = _NONE  # order of arrival, bytes counted, what waits
        self._notes: deque[tuple[int, int, str]] = _NONE
        self._holes: list[tuple[int, Gap]] = []  # dropped raw, before all that is left, and not announced yet
        self._order = 0  # over all three
        self._stood: dict[str, int] = {}  # the position in other sessions
        self._emptied: Flag | None = None  # while somebody waits for it

    def stand(self, session_id: str, position: int) -> None:
        """Put the consumer at a position; it gets nothing of what lies before."""
        if self.session_id not in (None, session_id):
            self._stood[str(self.session_id)] = self.position
            if len(self._stood) > MAX_SESSIONS:
                del self._stood[next(iter(self._stood))]
        self._stood.pop(session_id, None)
        self.session_id, self.position = session_id, position

    def stand_before(self, session_id: str, events: Iterable[Chunk | Note], end: int) -> None:
        """Put the consumer where the first samples of `events` are, or at `end` where there are none."""
        self.stand(session_id, next((event.position for event in events if isinstance(event, Chunk)), end))

    def stands_in(self, session_id: str) -> int | None:
        """Return where the consumer stands in a session; None: it was never there."""
        return self.position if session_id == self.session_id else self._stood.get(session_id)

    def offer(self, chunk: Chunk) -> None:
        """Queue raw, if this consumer wants it and has not got it; announce what is missing before it."""
        if chunk.position != self.position or chunk.origin.session_id != self.session_id:
            self._reach(chunk, True)
            if chunk.end <= self.position:
                return
            chunk = chunk.since(self.position)
        self.position = chunk.end
        if "raw" in self.types:
            self._queue(chunk, True)
            self._bound()

    def open_sink(self, sink: Callable[[bytes], bool]) -> None:
        """Give a way past the queue for raw in JSON: it writes whole frames, or says False when they have to wait."""
        if self.format == "json" and "raw" in self.types:
            self._sink = sink
            self._clear()

    def skip(self, end: int, reason: Reason, counts: bool = True) -> None:
        """Announce that there is nothing before `end`, if the consumer stands before it."""
        if end <= self.position:
            return
        start, self.position = self.position, end
        if "gap" in self.types:
            self._say(dumps(Gap(str(self.session_id), start, end, reason)), counts)
            self._bound()

    def note(self, note: Note) -> None:
        """Queue anything else, if this consumer wants it and did not send it."""
        if note.kind in self.types and not (note.sender and note.sender == self.consumer_id):
            self.say(note.text)

    def say(self, text: str) -> None:
        """Queue an answer that is for this peer alone."""
        self._say(text)
        self._bound()

    def preload(self, events: Iterable[Chunk | Note]) -> None:
        """Queue what was buffered before, in its order. It is bounded by the buffers, and does not count."""
        for event in events:
            if isinstance(event, Chunk):
                self._preload(event)
            elif event.kind in self.types:
                self._say(event.text, False)
        if self.waits:
            self._wake()

    def encode(self, chunk: Chunk) -> list[str] | list[bytes]:
        """Make the frames of a chunk in the consumer's format, if they are not made yet."""
        if self.format == "json":
            return chunk.json_frames
        return [chunk.chunk_frame] if self.format == "chunks" else [chunk.binary_frame]

    def close(self, code: CloseCode) -> None:
        """Tell the endpoint to close the connection, after what waits."""
        if not self.closed.done():
            self.closed.set_result(code)
            self._wake()

    def stalled(self) -> bool:
        """Say whether something has waited for STALLED_SECONDS and nothing was taken."""
        return self.ready.is_set() and monotonic() - self._unread_since > STALLED_SECONDS

    def take(self) -> list[str | bytes]:
        """Take frames for about TAKE_BYTES, in order; none when nothing waits."""
        self._unread_since = monotonic()
        frames: list[str | bytes] = []
        n_bytes = 0
        while n_bytes < TAKE_BYTES and self.waits:
            taken = self._take_notes() or self._take_hole() or self._take_raw()
            frames += taken
            n_bytes += sum(map(len, taken))
        self._clear()
        return frames

    async def emptied(self) -> None:
        """Wait until all that waits was taken."""
        while self.waits:
            self._emptied = self._emptied or Flag()
            await self._emptied.wait()

    @property
    def waits(self) -> bool:
        """Whether there is something to take."""
        return bool(self._raw or self._notes or self._holes)

    def _queue(self, chunk: Chunk, counts: bool) -> None:
        """Queue raw: in JSON in small bites, else cut where one message would shift a sample's time too far."""
        if self._raw is _NONE:
            self._raw = deque()
        for part in chunk.pieces(BITE_SAMPLES) if self.format == "json" else chunk.steady():
            n_bytes = self._size(part) if counts else 0
            self._order += 1
            self._raw.append((self._order, n_bytes, part))
            self.nbytes += n_bytes

    def _size(self, chunk: Chunk) -> int:
        return sum(map(len, chunk.json_frames)) if self.format == "json" else chunk.samples.nbytes

    def _say(self, text: str, counts: bool = True) -> None:
        n_bytes = len(text) if counts else 0
        if self._notes is _NONE:
            self._notes = deque()
        self._order += 1
        self._notes.append((self._order, n_bytes, text))
        self.nbytes += n_bytes

    def _reach(self, chunk: Chunk, counts: bool) -> None:
        """Stand where a chunk begins, or behind that where the consumer was already."""
        session_id = chunk.origin.session_id
        if session_id != self.session_id:
            self.stand(session_id, self._stood.get(session_id, chunk.origin.base))
        self.skip(chunk.expected, "lost", counts)
        self.skip(chunk.position, "relay", counts)

    def _preload(self, chunk: Chunk) -> None:
        self._reach(chunk, False)
        if chunk.end > self.position:
            chunk, self.position = chunk.since(self.position), chunk.end
            if "raw" in self.types:
                self._queue(chunk, False)

    def _bound(self) -> None:
        """Keep the bound, after something was added."""
        while self.nbytes > self.max_bytes and self._raw:
            self._drop()
        if self.nbytes > self.max_bytes:
            self.close(CloseCode.TOO_SLOW)
        self._wake()

    def _clear(self) -> None:
        """Notice that nothing waits any more."""
        if not self.waits:
            self._raw = self._notes = _NONE
            if self._emptied:
                self._emptied.set()
                self._emptied = None
            if not self.closed.done():
                self.ready.clear()
                self.through = self._sink

    def _wake(self) -> None:
        self.through = None
        if not self.ready.is_set():
            self._unread_since = monotonic()
            self.ready.set()

    def _drop(self) -> None:
        order = self._raw[0][0]
        chunk = self._pop_raw()
        self.n_dropped += len(chunk)
        if "gap" not in self.types:
            return
        session_id, last = chunk.origin.session_id, self._holes[-1][1] if self._holes else None
        if last and (last.session_id, last.end) == (session_id, chunk.position):
            last.end = chunk.end
        else:
            self._holes.append((order, Gap(session_id, chunk.position, chunk.end, "slow")))

    def _take_hole(self) -> list[str]:
        """Announce dropped raw."""
        if not self._holes:
            return []
        return [dumps(self._holes.pop(0)[1])]

    def _take_notes(self) -> list[str]:
        """Take the notes that came before the oldest raw, dropped or not."""
        if not self._notes:
            return []
        texts = []
        oldest = self._holes[0][0] if self._holes else self._raw[0][0] if self._raw else self._order + 1
        while self._notes and self._notes[0][0] < oldest:
            _, n_bytes, text = self._notes.popleft()
            self.nbytes -= n_bytes
            texts.append(text)
        return texts

    def _take_raw(self) -> list[str] | list[bytes]:
        """Take the oldest raw; in chunks and binary as much as follows it before the next note."""
        if not self._raw:
            return []
        first = self._pop_raw()
        if self.format == "json":
            return first.json_frames
        chunks, n_samples = [first], len(first)
        while self._joins(first, n_samples):
            chunks.append(self._pop_raw())
            n_samples += len(chunks[-1])
        return self.encode(join(chunks))

    def _joins(self, first: Chunk, n_samples: int) -> bool:
        if not self._raw or (self._notes and self._notes[0][0] < self._raw[0][0]):
            return False
        chunk = self._raw[0][2]
        fits = (n_samples + len(chunk)) * chunk.samples[0].nbytes <= MAX_CHUNK_BYTES
        return fits and chunk.follows(first, n_samples)

    def _pop_raw(self) -> Chunk:
        _, n_bytes, chunk = self._raw.popleft()
        self.nbytes -= n_bytes
        return chunk
