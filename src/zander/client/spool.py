"""The samples of a relay that the server has not stored yet: bounded in bytes, in memory or in a folder.

In a folder they outlive the process, however it ends: a sample is in the page cache before it goes on the wire. When
the spool is full the oldest samples are dropped and counted, and `on_drop` is called; the server sees a position jump.
"""

from __future__ import annotations

import logging
import os
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from zander.errors import ZanderError
from zander.journal.log import HEADER_BYTES, Frames, Log
from zander.lock import FileLock
from zander.wire.chunk import BINARY_HEADER_BYTES, RawIn, Samples, encode_binary, read_header

SPOOL_BYTES = 64 << 20
CHUNK_OVERHEAD_BYTES = HEADER_BYTES + BINARY_HEADER_BYTES  # of each chunk in the spool, beside its values
READ_BYTES = 64 << 10  # read at once, and between two entries of the index at most
MIN_READ_BYTES = 64  # at least a frame's header; one frame comes whole all the same
BEGINS = re.compile(rb"(?=\x01\x01\x01)")  # every binary chunk: its version, kind and dtype
N_FILES = 8  # of a full spool: the oldest of them is what is dropped at once

log = logging.getLogger(__name__)


class SpoolError(ZanderError):
    """The folder cannot be this relay's spool; the message says why."""


class Piece(NamedTuple):
    """Samples from `position` to `end` (not included), the first of them at `time_us`, as a binary chunk."""

    position: int
    end: int
    time_us: int
    n_channels: int
    frame: bytes


class _IndexEntry(NamedTuple):
    """The offset in the log at which the chunk with a position begins."""

    position: int
    offset: int


class Spool:
    """The chunks of one session, by position.

    `end` is the position after the last chunk; the next one begins at `next_position` or later. Everything below
    `durable` is stored, as the server said last. A spool that is opened with what an earlier process left counts all
    of that as not durable.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        max_bytes: int = SPOOL_BYTES,
        on_drop: Callable[[int, int], None] = lambda start, end: None,
    ) -> None:
        """Open the spool in `folder`, or one in memory; SpoolError when another process has it or it is no spool."""
        self._max_bytes = max_bytes
        self._index_bytes = _index_bytes(max_bytes)
        self._on_drop = on_drop
        self._folder = _Folder(folder) if folder else _NoFolder()
        self._owner = self._folder.read_owner()
        self.n_dropped = 0
        self._is_refused = False  # by the disk
        self._log = self._folder.open_log(max_bytes)
        self._index: deque[_IndexEntry] = deque()
        self.next_position = self.end = 0
        self._first = self.durable = 0
        self._load()

    @property
    def session_id(self) -> str:
        """The session of the samples, empty until the server has named one."""
        return str(self._owner.get("session_id", ""))

    @session_id.setter
    def session_id(self, session_id: str) -> None:
        self._owner["session_id"] = session_id
        self._folder.write_owner(self._owner)

    @property
    def is_closed(self) -> bool:
        """True after `close`; a spool in memory is never closed."""
        return self._folder.is_closed

    @property
    def start(self) -> int:
        """Position of the first sample that is here and not durable."""
        return max(self._first, self.durable)

    @property
    def n_waiting(self) -> int:
        """Number of positions that are here and not durable."""
        return max(0, self.end - self.start)

    @property
    def n_bytes(self) -> int:
        """Size of the log."""
        return self._log.n_bytes

    def claim(self, user_id: str, device: Mapping[str, Any]) -> None:
        """Take the spool for a user and a device; SpoolError, and it is closed, when it has samples of another."""
        owner = {"user_id": user_id, "device": dict(device)}
        if not self._owner:
            self._owner = owner
            self._folder.write_owner(owner)
        elif {name: self._owner.get(name) for name in owner} != owner:
            whose, what = self._owner.get("user_id"), self._owner.get("device")
            self.close()
            raise SpoolError(f"{self._folder.path}: keeps samples of {whose} on {what}; take another folder")

    def add(self, position: int, time_us: int, samples: Samples) -> Piece | None:
        """Keep a chunk, which must not begin before `next_position`; None, and it is dropped, if the disk refuses."""
        assert position >= self.next_position
        frame = encode_binary(RawIn(position, time_us, samples))
        self.next_position = position + len(samples)
        offset = self._log.end
        if not self._append(frame):
            self.drop(position, self.next_position)
            return None
        if not self._index:
            self._first = position
        self._note(position, offset)
        self.end = self.next_position
        while self._log.n_bytes > self._max_bytes and self._drop_file():
            pass
        return Piece(position, self.end, time_us, samples.shape[1], frame)

    def forget(self, durable: int) -> None:
        """Note which samples are durable, and delete most of them; `since` may still return some."""
        self.durable = durable
        n_entries = len(self._index)
        while len(self._index) > 1 and self._index[1].position <= durable:
            self._index.popleft()
        if len(self._index) < n_entries:
            self._cut()

    def since(self, position: int) -> Iterator[Piece]:
        """Yield, in order, the chunks that end after `position`; those added meanwhile too."""
        offset = self._offset(position)
        while True:
            payloads, offset = self._log.read(offset, READ_BYTES)
            if not payloads:
                return
            for payload in payloads:
                piece = _piece(payload)
                if piece.end > position:
                    yield piece

    def skip(self, position: int) -> None:
        """Let the next chunk begin at a position ahead."""
        self.next_position = max(self.next_position, position)

    def drop(self, start: int, end: int) -> None:
        """Count the samples of these positions as lost, and call `on_drop`."""
        if end > start:
            self.n_dropped += end - start
            self._on_drop(start, end)

    def clear(self) -> None:
        """Delete everything, also whose it was: the session is over, and stored."""
        self._log.remove()
        self._log = self._folder.open_log(self._max_bytes)
        self._index.clear()
        self.next_position = self.end = self.durable = self._first = 0
        self._owner = {}
        self._folder.write_owner(self._owner)

    def close(self) -> None:
        """Let another process have the folder; what is in memory stays."""
        if not self.is_closed:
            self._log.close()
            self._folder.close()

    def _load(self) -> None:
        """Make the index of what an earlier process left."""
        offset = self._log.start
        while payloads := (frames := self._log.read(offset, self._index_bytes)).payloads:
            self._note(_piece(payloads[0]).position, offset)
            self.next_position = self.end = _piece(payloads[-1]).end
            offset = frames.end
        self._first = self.durable = self._index[0].position if self._index else 0

    def _note(self, position: int, offset: int) -> None:
        if not self._index or offset - self._index[-1].offset >= self._index_bytes:
            self._index.append(_IndexEntry(position, offset))

    def _offset(self, position: int) -> int:
        """Return where in the log to begin to read for a position."""
        i = bisect_right(self._index, position, key=lambda entry: entry.position) - 1
        return self._index[i].offset if i >= 0 else self._log.start

    def _append(self, frame: bytes) -> bool:
        """Write a chunk; on a full disk in the place of the oldest."""
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

    def _drop_file(self) -> bool:
        """Drop the oldest file, never the last one; False if it is the only one."""
        n_bytes, start = self._log.n_bytes, self.start
        while len(self._index) > 1 and self._log.n_bytes == n_bytes:
            self._index.popleft()
            self._cut()
        self.drop(start, self.start)
        return self._log.n_bytes < n_bytes

    def _cut(self) -> None:
        """Delete what lies before the index. The last chunk always stays: a later process goes on after it."""
        self._log.forget(self._index[0].offset)
        self._first = _piece(self._log.read(self._log.start, MIN_READ_BYTES).payloads[0]).position


def _piece(frame: bytes) -> Piece:
    n_channels, n_samples, position, time_us = read_header(frame)
    return Piece(position, position + n_samples, time_us, n_channels, frame)


def _index_bytes(max_bytes: int) -> int:
    """Return how far apart the entries of the index are: small spools need close ones, to drop little at once."""
    return max(MIN_READ_BYTES, min(READ_BYTES, max_bytes // (4 * N_FILES)))


class _Folder:
    """A folder that one process at a time has: the log, and a file that says whose samples are in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_closed = False
        self._owner_path = path / "session.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path / "lock")
        except BlockingIOError:
            raise SpoolError(f"{path}: another relay uses this spool now") from None
        except OSError as error:
            raise SpoolError(f"{path}: {error.strerror}") from None

    def open_log(self, max_bytes: int) -> Log:
        try:
            return Log(self.path, "spool", segment_bytes=max(1, max_bytes // N_FILES), begins=BEGINS)
        except OSError as error:
            self.close()
            raise SpoolError(f"{self.path}: {error.strerror}") from None

    def read_owner(self) -> dict[str, Any]:
        """Return what was written last, nothing if there is none."""
        try:
            owner: dict[str, Any] = orjson.loads(self._owner_path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, orjson.JSONDecodeError) as error:
            self.close()
            raise SpoolError(f"{self._owner_path}: expected the owner of a spool, got: {error}") from None
        return owner

    def write_owner(self, owner: Mapping[str, Any]) -> None:
        """Replace the file: a kill at any moment leaves the old one or the new one."""
        new = self._owner_path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                file.write(orjson.dumps(owner))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._owner_path)
        except OSError as error:
            log.error("%s: the session cannot be written down: %s", self.path, error.strerror)

    def close(self) -> None:
        self.is_closed = True
        self._lock.release()


class _NoFolder:
    """The stand-in for a folder when the spool is in memory."""

    path = None
    is_closed = False

    def open_log(self, max_bytes: int) -> MemoryLog:
        return MemoryLog(_index_bytes(max_bytes))

    def read_owner(self) -> dict[str, Any]:
        return {}

    def write_owner(self, owner: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class MemoryLog:
    """A log in memory with the methods of the one in `journal.log`: payloads in blocks, forgotten a block at a time.

    That one in a temporary folder would not do: it needs a disk that can be written and is not full, wears out flash
    cards, and uses positioned writes, which Windows does not have.
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._blocks: deque[tuple[int, list[bytes]]] = deque([(0, [])])  # each with the offset of its first byte
        self.end = 0

    @property
    def start(self) -> int:
        return self._blocks[0][0]

    @property
    def n_bytes(self) -> int:
        return self.end - self.start

    def append(self, payload: bytes) -> int:
        start, payloads = self._blocks[-1]
        if self.end - start + len(payload) > self._block_bytes and payloads:
            payloads = []
            self._blocks.append((self.end, payloads))
        payloads.append(payload)
        self.end += len(payload)
        return self.end

    def read(self, offset: int, max_bytes: int) -> Frames:
        """Return the rest of a block from `offset` on, whatever `max_bytes` says; nothing at the end."""
        index = bisect_right(self._blocks, offset, key=lambda block: block[0]) - 1
        at, payloads = self._blocks[max(index, 0)]
        n_before = 0
        while at < offset and n_before < len(payloads):
            at += len(payloads[n_before])
            n_before += 1
        ahead = payloads[n_before:]
        return Frames(ahead, at + sum(map(len, ahead)))

    def forget(self, offset: int) -> None:
        while len(self._blocks) > 1 and self._blocks[1][0] <= offset:
            self._blocks.popleft()

    def close(self) -> None:
        pass

    def remove(self) -> None:
        pass
