"""What one consumer still has to get, bounded in bytes.

When it is full, the oldest raw makes room and the hole is announced in its place; everything else is kept, until it
alone is more than the bound: then the consumer is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from time import monotonic
from typing import Literal

from zander.chunk import MAX_CHUNK_BYTES, Chunk, join
from zander.errors import CloseCode
from zander.wire import KINDS, Gap, Kind, Note, dumps

Format = Literal["json", "chunks", "binary"]
FORMATS: tuple[Format, ...] = ("json", "chunks", "binary")

TAKE_BYTES = 64 << 10  # what leaves the outbox at once: about what a transport buffers before it says stop
MAX_DRIFT_US = 50_000  # coalesced samples lose their own times; beyond this a new message starts
STALLED_SECONDS = 60.0


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
        self.taken_at = monotonic()
        self._raw: deque[tuple[int, int, Chunk]] = deque()  # order of arrival, bytes counted, what waits
        self._notes: deque[tuple[int, int, str]] = deque()
        self._order = 0  # over both queues
        self._hole: tuple[str, int, int] | None = None  # dropped raw that is not announced yet

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

    def preload(self, notes: list[Note], chunks: list[Chunk]) -> None:
        """Queue what was buffered before the consumer came. It is bounded by the buffers, and does not count."""
        self._notes.extend((self._next(), 0, note.text) for note in notes if note.kind in self.types)
        if "raw" in self.types:
            self._raw.extend((self._next(), 0, chunk) for chunk in chunks)
        self.ready.set()

    def close(self, code: CloseCode) -> None:
        """Tell the endpoint to close the connection, after what waits."""
        if not self.closed.done():
            self.closed.set_result(code)
            self.ready.set()

    def stalled(self) -> bool:
        """Say whether something has waited for STALLED_SECONDS and nothing was taken."""
        return self.ready.is_set() and monotonic() - self.taken_at > STALLED_SECONDS

    def take(self) -> list[str | bytes]:
        """Take frames for about TAKE_BYTES, in order; none when nothing waits."""
        self.taken_at = monotonic()
        frames: list[str | bytes] = []
        n_bytes = 0
        while n_bytes < TAKE_BYTES and self.waits:
            taken = self._take_notes() or self._take_hole() or self._take_raw()
            frames += taken
            n_bytes += sum(map(len, taken))
        if not self.waits and not self.closed.done():
            self.ready.clear()
        return frames

    @property
    def waits(self) -> bool:
        """Whether there is something to take."""
        return bool(self._raw or self._notes or self._hole)

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
        self.ready.set()

    def _drop(self) -> None:
        chunk = self._pop_raw()
        self.n_dropped += len(chunk)
        session_id, start = chunk.origin.session_id, chunk.position
        if self._hole and self._hole[0] == session_id:
            start = self._hole[1]
        else:
            for text in self._take_hole():
                self._say(text)
        self._hole = (session_id, start, chunk.end)

    def _take_hole(self) -> list[str]:
        """Announce dropped raw; it goes before the raw that is left, and after older notes."""
        if self._hole is None:
            return []
        text = dumps(Gap(*self._hole, "slow"))
        self._hole = None
        return [text] if "gap" in self.types else []

    def _take_notes(self) -> list[str]:
        """Take the notes that came before the oldest raw."""
        texts = []
        while self._notes and not (self._raw and self._raw[0][0] < self._notes[0][0]):
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
