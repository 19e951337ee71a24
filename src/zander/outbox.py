"""What one consumer still has to get, bounded in bytes.

When it is full, the oldest raw makes room and the hole is announced in its place; everything else is kept, until it
alone is more than the bound: then the consumer is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from time import monotonic
from typing import Literal, NamedTuple

from zander.chunk import MAX_CHUNK_BYTES, Chunk, join
from zander.errors import CloseCode
from zander.messages import KINDS, Gap, Kind, Note
from zander.wire import dumps

Format = Literal["json", "chunks", "binary"]
FORMATS: tuple[Format, ...] = ("json", "chunks", "binary")

TAKE_BYTES = 64 << 10  # what leaves the outbox at once: about what a transport buffers before it says stop
MAX_DRIFT_US = 50_000  # coalesced samples lose their own times; beyond this a new message starts
STALLED_SECONDS = 60.0


class _Hole(NamedTuple):
    """Dropped raw that is not announced yet: from `start` to `end`, and when the first of it had arrived."""

    order: int
    session_id: str
    start: int
    end: int


class Outbox:
    """The frames that wait for one consumer. `offer` and `note` never wait; one task takes."""

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
        self.types = frozenset(types)
        self.max_bytes = max_bytes
        self.ready = asyncio.Event()
        self.closed: asyncio.Future[CloseCode] = asyncio.get_running_loop().create_future()
        self.n_dropped = 0
        self.nbytes = 0
        self._unread_since = monotonic()  # when the consumer last took something, or something began to wait
        self._raw: deque[tuple[int, int, Chunk]] = deque()  # order of arrival, bytes counted, what waits
        self._notes: deque[tuple[int, int, str]] = deque()
        self._holes: deque[_Hole] = deque()  # before all raw that is left
        self._order = 0  # over all three

    def offer(self, chunk: Chunk) -> None:
        """Queue raw, if this consumer wants it."""
        if "raw" in self.types:
            n_bytes = self._size(chunk)
            self._raw.append((self._next(), n_bytes, chunk))
            self.nbytes += n_bytes
            self._bound()

    def note(self, note: Note) -> None:
        """Queue anything else, if this consumer wants it and did not send it."""
        if note.kind in self.types and not (note.sender and note.sender == self.consumer_id):
            self.say(note.text)

    def say(self, text: str) -> None:
        """Queue an answer that is for this peer alone."""
        self._say(text)
        self._bound()

    def preload(self, events: list[Chunk | Note]) -> None:
        """Queue what was buffered before, in its order. It is bounded by the buffers, and does not count."""
        for event in events:
            if isinstance(event, Chunk):
                if "raw" in self.types:
                    self._raw.append((self._next(), 0, event))
            elif event.kind in self.types:
                self._notes.append((self._next(), 0, event.text))
        if self.waits:
            self._wake()

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
            taken = self._take_notes() or self._take_holes() or self._take_raw()
            frames += taken
            n_bytes += sum(map(len, taken))
        if not self.waits and not self.closed.done():
            self.ready.clear()
        return frames

    @property
    def waits(self) -> bool:
        """Whether there is something to take."""
        return bool(self._raw or self._notes or self._holes)

    def _next(self) -> int:
        self._order += 1
        return self._order

    def _size(self, chunk: Chunk) -> int:
        return sum(map(len, chunk.json_frames)) if self.format == "json" else chunk.samples.nbytes

    def _say(self, text: str) -> None:
        self._notes.append((self._next(), len(text), text))
        self.nbytes += len(text)

    def _bound(self) -> None:
        """Keep the bound, after something was added."""
        while self.nbytes > self.max_bytes and self._raw:
            self._drop()
        if self.nbytes > self.max_bytes:
            self.close(CloseCode.TOO_SLOW)
        self._wake()

    def _wake(self) -> None:
        if not self.ready.is_set():
            self._unread_since = monotonic()
            self.ready.set()

    def _drop(self) -> None:
        order = self._raw[0][0]
        chunk = self._pop_raw()
        self.n_dropped += len(chunk)
        hole = _Hole(order, chunk.origin.session_id, chunk.position, chunk.end)
        if self._holes and self._holes[-1].session_id == hole.session_id:
            hole = self._holes.pop()._replace(end=chunk.end)
        self._holes.append(hole)

    def _take_holes(self) -> list[str]:
        """Announce dropped raw."""
        texts = [dumps(Gap(hole.session_id, hole.start, hole.end, "slow")) for hole in self._holes]
        self._holes.clear()
        return texts if "gap" in self.types else []

    def _take_notes(self) -> list[str]:
        """Take the notes that came before the oldest raw, dropped or not."""
        texts = []
        oldest = self._holes[0].order if self._holes else self._raw[0][0] if self._raw else self._order + 1
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
        chunk = join(chunks)
        return [chunk.chunk_frame] if self.format == "chunks" else [chunk.binary_frame]

    def _joins(self, first: Chunk, n_samples: int) -> bool:
        if not self._raw or (self._notes and self._notes[0][0] < self._raw[0][0]):
            return False
        chunk = self._raw[0][2]
        fits = (n_samples + len(chunk)) * chunk.samples[0].nbytes <= MAX_CHUNK_BYTES
        return fits and chunk.follows(first, n_samples, MAX_DRIFT_US)

    def _pop_raw(self) -> Chunk:
        _, n_bytes, chunk = self._raw.popleft()
        self.nbytes -= n_bytes
        return chunk
