"""Bounded queue of what waits for one client: samples, notes and gaps, in the order in which they came."""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

from msgspec.structs import replace

from zander.wire.chunk import MAX_CHUNK_BYTES, Chunk, join
from zander.wire.codec import dumps
from zander.wire.messages import Gap

Format = Literal["json", "chunks", "binary"]
FORMATS: tuple[Format, ...] = ("json", "chunks", "binary")

TAKE_BYTES = 8 << 10  # what is taken at once: 0.1 ms of JSON, and then all others have their turn
PART_SAMPLES = 32  # about that as JSON, of a few channels
PART_BYTES = 3 << 10  # the same, of many
CHUNK_BYTES = 700  # that a chunk takes beside its samples

_EMPTY: deque[Any] = deque(maxlen=0)  # stands for every queue that is empty: one of its own takes 760 bytes


class SendQueue:
    """Frames in the format of one client. When samples are dropped, the hole is a gap `slow` in their place.

    `nbytes` is of what counts, and `preloaded_bytes` of what does not; both are left to whoever pushes to bound.
    """

    __slots__ = (
        "_announces_gaps",
        "_dropped",
        "_notes",
        "_order",
        "_raw",
        "format",
        "n_dropped",
        "nbytes",
        "preloaded_bytes",
    )

    def __init__(self, format: Format, *, announces_gaps: bool) -> None:
        self.format = format
        self.nbytes = 0
        self.preloaded_bytes = 0
        self.n_dropped = 0
        self._announces_gaps = announces_gaps
        self._raw: deque[tuple[int, int, bool, Chunk]] = _EMPTY  # order of arrival, bytes, whether they count, it
        self._notes: deque[tuple[int, int, bool, str]] = _EMPTY
        self._dropped: list[tuple[int, Gap]] = []  # before all raw that is left, and not announced yet
        self._order = 0  # over all three

    def __bool__(self) -> bool:
        return bool(self._raw or self._notes or self._dropped)

    def push_chunk(self, chunk: Chunk, *, counts: bool = True) -> None:
        """Append raw: in JSON in parts where it counts, else cut where one message would shift a time too far."""
        if self._raw is _EMPTY:
            self._raw = deque()
        for part in self._parts(chunk, counts=counts):
            n_bytes = self._size(part) if counts else _memory_bytes(part)
            self._order += 1
            self._raw.append((self._order, n_bytes, counts, part))
            self._count(n_bytes, counts=counts)

    def push_text(self, text: str, *, counts: bool = True) -> None:
        """Append a JSON message."""
        if self._notes is _EMPTY:
            self._notes = deque()
        self._order += 1
        self._notes.append((self._order, len(text), counts, text))
        self._count(len(text), counts=counts)

    def count_preloaded(self) -> None:
        """Let everything count."""
        self._raw = deque((order, n_bytes, True, chunk) for order, n_bytes, _, chunk in self._raw)
        self._notes = deque((order, n_bytes, True, text) for order, n_bytes, _, text in self._notes)
        self.nbytes, self.preloaded_bytes = self.nbytes + self.preloaded_bytes, 0

    def drop_preloaded(self) -> int:
        """Drop the oldest raw, if it does not count; return how many bytes it took, or 0."""
        n_bytes = self.preloaded_bytes
        if self._raw and not self._raw[0][2]:
            self._drop()
        return n_bytes - self.preloaded_bytes

    def shrink(self, max_bytes: int) -> bool:
        """Drop the oldest raw until `max_bytes` are left; False when everything else alone is more.

        A last note that is larger than the bound by itself does not count: its client was slow at nothing.
        """
        while self.nbytes > max_bytes and self._raw:
            self._drop()
        newest_bytes = self._notes[-1][1] if self._notes and self._notes[-1][2] else 0
        return self.nbytes - (newest_bytes if newest_bytes > max_bytes else 0) <= max_bytes

    def take(self) -> list[str | bytes]:
        """Take frames for about TAKE_BYTES, in order; none when nothing waits."""
        frames: list[str | bytes] = []
        n_bytes = 0
        while n_bytes < TAKE_BYTES and self:
            taken = self._take_notes() or self._take_gap() or self._take_raw()
            frames += taken
            n_bytes += sum(map(len, taken))
        if not self:
            self._raw = self._notes = _EMPTY
        return frames

    def encode(self, chunk: Chunk) -> list[str] | list[bytes]:
        """Return the frames of a chunk; the chunk keeps them."""
        if self.format == "json":
            return chunk.json_frames
        return [chunk.chunk_frame] if self.format == "chunks" else [chunk.binary_frame]

    def _parts(self, chunk: Chunk, *, counts: bool) -> list[Chunk]:
        if self.format != "json":
            return chunk.steady()
        return chunk.pieces(PART_SAMPLES) if counts else [chunk]

    def _count(self, n_bytes: int, *, counts: bool) -> None:
        if counts:
            self.nbytes += n_bytes
        else:
            self.preloaded_bytes += n_bytes

    def _size(self, chunk: Chunk) -> int:
        return sum(map(len, chunk.json_frames)) if self.format == "json" else chunk.samples.nbytes

    def _drop(self) -> None:
        order = self._raw[0][0]
        chunk = self._pop_raw()
        self.n_dropped += len(chunk)
        if not self._announces_gaps:
            return
        gap = Gap(chunk.origin.session_id, chunk.position, chunk.end, "slow")
        last_order, last = self._dropped[-1] if self._dropped else (0, None)
        if last and (last.session_id, last.end) == (gap.session_id, gap.start):
            self._dropped[-1] = (last_order, replace(last, end=gap.end))
        else:
            self._dropped.append((order, gap))

    def _take_gap(self) -> list[str]:
        """Announce dropped raw."""
        return [dumps(self._dropped.pop(0)[1])] if self._dropped else []

    def _take_notes(self) -> list[str]:
        """Take the notes that came before the oldest raw, dropped or not."""
        if not self._notes:
            return []
        texts = []
        oldest = self._dropped[0][0] if self._dropped else self._raw[0][0] if self._raw else self._order + 1
        while self._notes and self._notes[0][0] < oldest:
            _, n_bytes, counts, text = self._notes.popleft()
            self._count(-n_bytes, counts=counts)
            texts.append(text)
        return texts

    def _take_raw(self) -> list[str] | list[bytes]:
        """Take the oldest raw: in JSON a part, in chunks and binary as much as follows it before the next note."""
        if not self._raw:
            return []
        if self.format == "json":
            return self._pop_part().json_frames
        first = self._pop_raw()
        chunks, n_samples = [first], len(first)
        while self._joins(first, n_samples):
            chunks.append(self._pop_raw())
            n_samples += len(chunks[-1])
        return self.encode(join(chunks))

    def _joins(self, first: Chunk, n_samples: int) -> bool:
        if not self._raw or (self._notes and self._notes[0][0] < self._raw[0][0]):
            return False
        chunk = self._raw[0][3]
        fits = (n_samples + len(chunk)) * chunk.samples[0].nbytes <= MAX_CHUNK_BYTES
        return fits and chunk.follows(first, n_samples)

    def _pop_raw(self) -> Chunk:
        _, n_bytes, counts, chunk = self._raw.popleft()
        self._count(-n_bytes, counts=counts)
        return chunk

    def _pop_part(self) -> Chunk:
        order, n_bytes, counts, chunk = self._raw[0]
        n = max(1, min(PART_SAMPLES, PART_BYTES // chunk.samples[0].nbytes))
        if len(chunk) <= (PART_SAMPLES if "json_frames" in chunk.__dict__ else n):  # as is what is live, for everybody
            return self._pop_raw()
        part, rest = chunk.split(n)
        n_left = n_bytes * len(rest) // len(chunk)
        self._raw[0] = (order, n_left, counts, rest)
        self._count(n_left - n_bytes, counts=counts)
        return part


def _memory_bytes(chunk: Chunk) -> int:
    n_bytes = chunk.samples.nbytes + chunk.times_us.nbytes + CHUNK_BYTES
    return n_bytes + sum(map(len, chunk.__dict__.get("json_frames", ())))
