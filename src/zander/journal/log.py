"""An append-only log of checksummed frames in files of bounded size, for the journal and for a relay's spool.

A frame is its payload's length and CRC-32, both uint32 little-endian, and the payload. An offset counts the bytes of
all frames before it, so it only grows; a file is named after the offset of its first byte. A frame that was written
only in part, by a crash or on a full disk, is recognised by its checksum and cut off. Behind a frame that is damaged
reading goes on at the next whole one of its file; what it passes over is kept in a file beside it, which nothing reads.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import NamedTuple, TypeVar
from zlib import crc32

SUFFIX = ".v1"  # of this layout
NEXT = ".next"  # of a file that is empty yet
DAMAGED = ".damaged"  # of what was passed over or cut off
MAX_FRAME_BYTES = 64 << 20  # a frame that says it is larger is damaged, not unfinished

_HEADER = Struct("<II")
HEADER_BYTES = _HEADER.size

log = logging.getLogger(__name__)

T = TypeVar("T")
Split = Callable[[bytes], tuple[list[T], int]]  # `split_payloads`, or a function that decodes the payloads too


class Frames(NamedTuple):
    """Payloads that follow each other, and the offset after the last of them."""

    payloads: list[bytes]
    end: int


class _Segment:
    """One file: `start` is the offset of its first byte, `n_bytes` the size of what is valid in it."""

    def __init__(self, path: Path, start: int, fd: int | None = None) -> None:
        self.path = path
        self.start = start
        self.fd = _open(path) if fd is None else fd
        self.n_bytes = os.fstat(self.fd).st_size
        self.damaged: dict[int, int] = {}  # by the offset where it begins, the one where the next whole frame does

    @property
    def end(self) -> int:
        return self.start + self.n_bytes

    def read(self, offset: int, n_bytes: int) -> bytes:
        return os.pread(self.fd, min(n_bytes, self.end - offset), offset - self.start)

    def find(self, offset: int, begins: re.Pattern[bytes] | None) -> int:
        """Return the offset of the first whole frame from `offset` on, the end if there is none."""
        data = memoryview(self.read(offset, self.end - offset))
        starts: Iterable[int] = range(len(data))
        if begins:
            # Matches may overlap: a checksum may end as payloads begin.
            overlapping = re.compile(b"(?=" + begins.pattern + b")", begins.flags)
            starts = (match.start() - HEADER_BYTES for match in overlapping.finditer(data, HEADER_BYTES))
        return next((offset + at for at in starts if _is_whole(data, at)), self.end)

    def keep_damaged(self, start: int, end: int) -> str:
        """Copy what lies between two offsets into a file beside this one; say where, or why not."""
        path = self.path.with_name(f"{self.path.name}.{start:x}{DAMAGED}")
        try:
            path.write_bytes(self.read(start, end - start))
        except OSError as error:
            return f"not kept: {error.strerror}"
        return f"kept in {path.name}"

    def remove(self) -> None:
        os.close(self.fd)
        self.path.unlink(missing_ok=True)


def _open(path: Path) -> int:
    """Open a file, and mark it as in use for `is_in_use`."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(ImportError, OSError):
        import fcntl  # noqa: PLC0415 - so that the client can be imported on Windows

        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return fd


def is_in_use(folder: Path, name: str) -> bool:
    """Return whether a process has a file of a log open."""
    import fcntl  # noqa: PLC0415

    for _, path in files(folder, name):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _now(call: Callable[[], None]) -> None:
    call()


class Log:
    """The log `name` in a folder. Nothing is buffered in memory; `append` is one write to the page cache.

    For one writer at a time, which the caller has to ensure. Opening cuts a torn tail off. With `ahead` the next file
    is open before it is needed: when this process has no descriptor left, another is full before that is felt.
    `begins` matches how every payload begins, so that after damage not every byte has to be tried as a frame's first.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        segment_bytes: int = 16 << 20,
        ahead: bool = False,
        begins: re.Pattern[bytes] | None = None,
    ) -> None:
        self._folder = folder
        self._name = name
        self._segment_bytes = segment_bytes
        self._begins = begins
        self._next_path = folder / f"{name}{NEXT}"
        self._next_fd: int | None = None
        self._ahead = ahead
        self._segments = [_Segment(path, start) for start, path in files(folder, name)]
        for segment, following in pairwise(self._segments):  # a torn frame that could not be cut off may come between
            segment.n_bytes = min(segment.n_bytes, following.start - segment.start)
            if n_missing := following.start - segment.end:
                log.error("%s: %d bytes before it are missing", following.path.name, n_missing)
        if self._segments:
            self._cut_torn_tail(self._segments[-1])
        else:
            self._roll(0)
        self._open_next()

    @property
    def start(self) -> int:
        """Offset of the first frame kept."""
        return self._segments[0].start

    @property
    def end(self) -> int:
        """Offset after the last frame."""
        return self._segments[-1].end

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return self.end - self.start

    def needed_from(self, offset: int) -> int:
        """Return the offset at which the first file begins that does not lie wholly before `offset`."""
        return next((segment.start for segment in self._segments if segment.end > offset), self.end)

    @property
    def paths(self) -> list[Path]:
        """The files, in order; the last one is written to."""
        return [segment.path for segment in self._segments]

    def append(self, payload: bytes) -> int:
        """Write a frame, and return the offset after it; after an OSError the log is as it was before."""
        return self.write(frame(payload))

    def write(self, frames: bytes) -> int:
        """Write whole frames, with the result and the errors of `append`."""
        segment = self._segments[-1]
        if segment.n_bytes and segment.n_bytes + len(frames) > self._segment_bytes:
            segment = self._roll(segment.end)
        n_written = os.pwrite(segment.fd, frames, segment.n_bytes)
        if n_written != len(frames):
            with suppress(OSError):
                os.ftruncate(segment.fd, segment.n_bytes)
            raise _no_space()
        segment.n_bytes += n_written
        return segment.start + segment.n_bytes

    def read(self, offset: int, max_bytes: int) -> Frames:
        """Return the frames from `offset` on, about `max_bytes` of them and at least one; none at the end.

        All of them come from one file.
        """
        return Frames(*self.read_by(split_payloads, offset, max_bytes))

    def read_by(self, split: Split[T], offset: int, max_bytes: int) -> tuple[list[T], int]:
        """Return the result of `split` for the frames that `read` would return, and the offset after them."""
        for segment in self._segments:
            offset = max(offset, segment.start)
            while offset < segment.end:
                found, n_bytes = _read(segment, split, offset, max_bytes)
                if n_bytes:
                    return found, offset + n_bytes
                offset = self._pass_over(segment, offset)
        return [], offset

    def forget(
        self,
        offset: int,
        run: Callable[[Callable[[], None]], object] = _now,
        *,
        keep_bytes: int = 0,
        roll_bytes: int | None = None,
    ) -> None:
        """Delete the files that lie wholly before `offset`, but the last that together have up to `keep_bytes`.

        Also the last file, if that has at least `roll_bytes`; None: if it is half full. `run` is given what deletes
        one, which takes milliseconds, and may run it in a thread.
        """
        last = self._segments[-1]
        if roll_bytes is None:
            roll_bytes = max(1, self._segment_bytes // 2)
        if offset >= last.end and last.n_bytes >= roll_bytes and offset - last.start > keep_bytes:
            with suppress(OSError):  # no room for another file: this one goes later
                self._roll(self.end)
        while len(self._segments) > 1 and self._segments[0].end <= offset and offset - self.start > keep_bytes:
            run(self._segments.pop(0).remove)

    def probe(self, n_bytes: int = 1 << 16) -> None:
        """Check that the disk has room for `n_bytes` more; OSError when it has not."""
        segment = self._segments[-1]
        n_written = os.pwrite(segment.fd, bytes(n_bytes), segment.n_bytes)
        os.ftruncate(segment.fd, segment.n_bytes)
        if n_written != n_bytes:
            raise _no_space()

    def sync(self) -> None:
        """Force everything written to the disk, so that it survives a crash of the machine too.

        May run in a thread while the log is written to.
        """
        for segment in list(self._segments):
            try:
                os.fsync(segment.fd)
            except OSError:
                if segment in self._segments:  # else it was deleted meanwhile
                    raise
        folder = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)  # a new file's name is in it
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Close the files."""
        for segment in self._segments:
            os.close(segment.fd)
        self._segments.clear()
        self._remove_next()

    def remove(self) -> None:
        """Close and delete the files."""
        for segment in self._segments:
            segment.remove()
        self._segments.clear()
        self._remove_next()

    def _roll(self, start: int) -> _Segment:
        path = self._folder / f"{self._name}.{start:016x}{SUFFIX}"
        if self._next_fd is not None:
            self._next_path.rename(path)
        segment = _Segment(path, start, self._next_fd)
        self._next_fd = None
        self._segments.append(segment)
        self._open_next()
        return segment

    def _open_next(self) -> None:
        if self._ahead and self._next_fd is None:
            with suppress(OSError):  # it is tried again with the next file
                self._next_fd = _open(self._next_path)

    def _remove_next(self) -> None:
        if self._next_fd is not None:
            os.close(self._next_fd)
            self._next_fd = None
        self._next_path.unlink(missing_ok=True)

    def _pass_over(self, segment: _Segment, offset: int) -> int:
        """Return where the first whole frame behind a damaged one begins; said once, however often it is read."""
        if offset not in segment.damaged:
            end = segment.damaged[offset] = segment.find(offset + 1, self._begins)
            kept = segment.keep_damaged(offset, end)
            log.error("%s: %d bytes at %d are damaged and lost, %s", segment.path.name, end - offset, offset, kept)
        return segment.damaged[offset]

    def _cut_torn_tail(self, segment: _Segment) -> None:
        """Cut off what is behind the last whole frame of a file."""
        end = segment.start
        while end < segment.end:
            if n_bytes := _read(segment, split_payloads, end, 1 << 20)[1]:
                end += n_bytes
            elif (following := segment.find(end + 1, self._begins)) < segment.end:
                end = following
            else:
                break
        if not (torn := segment.end - end):
            return
        if _is_unfinished(segment.read(end, torn)):
            log.warning("%s: the last %d bytes were not written to their end, cut off", segment.path.name, torn)
        else:
            kept = segment.keep_damaged(end, segment.end)
            log.error("%s: the last %d bytes are damaged, cut off, %s", segment.path.name, torn, kept)
        segment.n_bytes = end - segment.start
        os.ftruncate(segment.fd, segment.n_bytes)


def files(folder: Path, name: str) -> list[tuple[int, Path]]:
    """Return the files of a log, each with the offset of its first byte, in order."""
    found = folder.glob(f"{name}.{'[0-9a-f]' * 16}{SUFFIX}")
    return sorted((int(path.name.removesuffix(SUFFIX)[-16:], 16), path) for path in found)


def frame(payload: bytes) -> bytes:
    """Put a payload into a frame."""
    return _HEADER.pack(len(payload), crc32(payload)) + payload


def _is_whole(data: memoryview, at: int) -> bool:
    """Return whether a whole frame begins at a byte."""
    if at + HEADER_BYTES >= len(data):
        return False
    length, checksum = _HEADER.unpack_from(data, at)
    payload = data[at + HEADER_BYTES : at + HEADER_BYTES + length]
    return bool(0 < length == len(payload) and crc32(payload) == checksum)


def _is_unfinished(data: bytes) -> bool:
    """Return whether this is what a crash leaves of the last frame: its beginning, or zeros."""
    if len(data) < HEADER_BYTES or not any(data):
        return True
    length: int = _HEADER.unpack_from(data)[0]
    return len(data) - HEADER_BYTES < length <= MAX_FRAME_BYTES


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(segment: _Segment, split: Split[T], offset: int, max_bytes: int) -> tuple[list[T], int]:
    data = segment.read(offset, max_bytes)
    found, n_read = split(data)
    if not n_read and len(data) >= HEADER_BYTES:  # a frame larger than `max_bytes`, or a torn one
        n_bytes, _ = _HEADER.unpack_from(data)
        found, n_read = split(segment.read(offset, HEADER_BYTES + n_bytes))
    return found, n_read


def split_payloads(data: bytes) -> tuple[list[bytes], int]:
    """Return the payloads of the whole frames at the front, and how many bytes they take."""
    payloads: list[bytes] = []
    at, n_bytes = 0, len(data)
    while at + HEADER_BYTES <= n_bytes:
        length, checksum = _HEADER.unpack_from(data, at)
        payload = data[at + HEADER_BYTES : at + HEADER_BYTES + length]
        if not length or len(payload) < length or crc32(payload) != checksum:
            break
        payloads.append(payload)
        at += HEADER_BYTES + length
    return payloads, at
