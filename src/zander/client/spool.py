"""What a relay has measured and the server has not yet called durable: bounded in bytes, in memory or in a folder.

In a folder it outlives its process, however that ends: a sample is in the page cache before it goes on the wire. When
it is full the oldest goes, is counted, and `on_drop` hears of it; on the wire that shows as a jump of the position.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zander.client.blocks import Blocks, Log
from zander.client.card import Card, SpoolError
from zander.journal.log import Segments
from zander.wire.chunk import RawIn, Samples, encode_binary, read_header

__all__ = ["SPOOL_BYTES", "Piece", "Spool", "SpoolError"]

SPOOL_BYTES = 64 << 20
MARK_BYTES = 64 << 10  # between two marks, and what is read at once
MIN_READ_BYTES = 64  # at least a frame's header; one frame comes whole all the same
N_FILES = 8  # of a full spool: the oldest of them is what is dropped at once

log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """Samples from `position` to `end` (not included), the first of them at `time_us`, as a binary chunk."""

    position: int
    end: int
    time_us: int
    frame: bytes


class _Mark(NamedTuple):
    """Where in the log a chunk begins."""

    position: int
    offset: int


class Spool:
    """Chunks of one session, by position. `durable` is what the server said last; `end` is that of the last chunk kept.

    `next_position` is where the next chunk begins at the earliest. In a folder all of it is found again, but
    `durable`: then everything found counts as not durable.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        max_bytes: int = SPOOL_BYTES,
        on_drop: Callable[[int, int], None] = lambda start, end: None,
    ) -> None:
        self._max_bytes = max_bytes
        self._mark_bytes = max(MIN_READ_BYTES, min(MARK_BYTES, max_bytes // (4 * N_FILES)))
        self._on_drop = on_drop
        self._card = Card(folder) if folder else None
        self._owner: dict[str, Any] = self._card.read() if self._card else {}
        self.n_dropped = 0
        self._is_refused = False  # by the disk
        self.is_closed = False
        self._log: Log = self._open_log()
        self._marks: deque[_Mark] = deque()
        self.next_position = self.end = 0
        self._first = self.durable = 0
        self._find()

    @property
    def session_id(self) -> str:
        """The session the samples are of, empty until the server has named one."""
        return str(self._owner.get("session_id", ""))

    @session_id.setter
    def session_id(self, session_id: str) -> None:
        self._owner["session_id"] = session_id
        self._write_card()

    @property
    def start(self) -> int:
        """Position of the first sample that is here and not durable."""
        return max(self._first, self.durable)

    @property
    def n_waiting(self) -> int:
        """How many positions are here and not durable."""
        return max(0, self.end - self.start)

    @property
    def n_bytes(self) -> int:
        """What all of it takes."""
        return self._log.n_bytes

    def claim(self, user_id: str, device: Mapping[str, Any]) -> None:
        """Say whose it is; SpoolError when it already is that of another user or device."""
        owner = {"user_id": user_id, "device": dict(device)}
        if not self._owner:
            self._owner = owner
            self._write_card()
        elif {name: self._owner.get(name) for name in owner} != owner:
            folder, whose = self._card and self._card.folder, self._owner.get("user_id")
            self.close()
            raise SpoolError(f"{folder}: keeps samples of {whose} on {self._owner.get('device')}; take another folder")

    def add(self, position: int, time_us: int, samples: Samples) -> Piece | None:
        """Keep a chunk, which must not begin before `next_position`; None, and it is dropped, if the disk refuses."""
        assert position >= self.next_position
        frame = encode_binary(RawIn(position, time_us, samples))
        self.next_position = position + len(samples)
        offset = self._log.end
        if not self._append(frame):
            self.drop(position, self.next_position)
            return None
        if not self._marks:
            self._first = position
        self._mark(position, offset)
        self.end = self.next_position
        if self._log.n_bytes > self._max_bytes:
            self._shrink()
        return Piece(position, self.end, time_us, frame)

    def forget(self, durable: int) -> None:
        """Note what is durable, and let go of it; what is still here below it can be had again all the same."""
        self.durable = durable
        n_marks = len(self._marks)
        while len(self._marks) > 1 and self._marks[1].position <= durable:
            self._marks.popleft()
        if len(self._marks) < n_marks:
            self._cut()

    def since(self, position: int) -> Iterator[Piece]:
        """Return, in order, the chunks that end after `position`; those added meanwhile are among them."""
        offset = self._offset(position)
        while True:
            payloads, offset = self._log.read(offset, MARK_BYTES)
            if not payloads:
                return
            for payload in payloads:
                piece = _piece(payload)
                if piece.end > position:
                    yield piece

    def skip(self, position: int) -> None:
        """Go on at a position that lies ahead."""
        self.next_position = max(self.next_position, position)

    def drop(self, start: int, end: int) -> None:
        """Note that positions were given away for nothing, and say so."""
        if end > start:
            self.n_dropped += end - start
            self._on_drop(start, end)

    def clear(self) -> None:
        """Forget everything, the session too: it is over, and stored."""
        if isinstance(self._log, Segments):
            self._log.remove()
        self._log = self._open_log()
        self._marks.clear()
        self.next_position = self.end = self.durable = self._first = 0
        self._owner = {}
        self._write_card()

    def close(self) -> None:
        """Let go of the folder."""
        if not self.is_closed:
            self._log.close()
            if self._card:
                self._card.close()
        self.is_closed = self._card is not None  # what is in memory stays

    def _open_log(self) -> Log:
        if not self._card:
            return Blocks(self._mark_bytes)
        try:
            return Segments(self._card.folder, "spool", segment_bytes=max(1, self._max_bytes // N_FILES))
        except OSError as error:
            self._card.close()
            raise SpoolError(f"{self._card.folder}: {error.strerror}") from None

    def _find(self) -> None:
        """Look through what is there from before."""
        at = self._log.start
        while payloads := (frames := self._log.read(at, self._mark_bytes)).payloads:
            self._mark(_piece(payloads[0]).position, at)
            self.next_position = self.end = _piece(payloads[-1]).end
            at = frames.end
        self._first = self.durable = self._marks[0].position if self._marks else 0

    def _mark(self, position: int, offset: int) -> None:
        if not self._marks or offset - self._marks[-1].offset >= self._mark_bytes:
            self._marks.append(_Mark(position, offset))

    def _offset(self, position: int) -> int:
        """Return where to begin to read for a position."""
        index = bisect_right(self._marks, position, key=lambda mark: mark.position) - 1
        return self._marks[index].offset if index >= 0 else self._log.start

    def _append(self, frame: bytes) -> bool:
        """Write; on a full disk in the place of the oldest."""
        for _ in range(N_FILES):
            try:
                self._log.append(frame)
            except OSError as error:
                if not self._is_refused:
                    log.error("the spool cannot be written: %s", error.strerror)
                self._is_refused = True
                if not self._drop_file():
                    return False
            else:
                self._is_refused = False
                return True
        return False

    def _shrink(self) -> None:
        while self._log.n_bytes > self._max_bytes and self._drop_file():
            pass

    def _drop_file(self) -> bool:
        """Drop the oldest file, never the last one; False if it is the only one."""
        n_bytes, start = self._log.n_bytes, self.start
        while len(self._marks) > 1 and self._log.n_bytes == n_bytes:
            self._marks.popleft()
            self._cut()
        self.drop(start, self.start)
        return self._log.n_bytes < n_bytes

    def _cut(self) -> None:
        """Let the log go up to the first mark. What a mark points at stays: so does the last chunk, which counts on."""
        self._log.forget(self._marks[0].offset)
        self._first = _piece(self._log.read(self._log.start, MIN_READ_BYTES).payloads[0]).position

    def _write_card(self) -> None:
        if self._card:
            try:
                self._card.write(self._owner)
            except OSError as error:
                log.error("%s: the session cannot be written down: %s", self._card.folder, error.strerror)


def _piece(frame: bytes) -> Piece:
    _, n_samples, position, time_us = read_header(frame)
    return Piece(position, position + n_samples, time_us, frame)
