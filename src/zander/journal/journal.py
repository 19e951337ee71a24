"""The records that this process has taken in and the database does not have yet, on the local disk.

A record is in its file before anybody is told of it, so it survives the death of this process; with `sync` now and
then, the machine's too. Memory stays flat: the recorder reads back what it writes to the database. A journal belongs to
one process and is locked by it. The journal of a dead process is an orphan, adopted by the next process that starts in
the folder. Some of what is committed stays for a while: a database may go back, as in a failover to a standby that was
behind.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic, time
from typing import Self
from uuid import UUID

from zander.journal.arrivals import Arrivals
from zander.journal.batch import Batch
from zander.journal.log import SUFFIX, Log, is_in_use
from zander.journal.pgcopy import decode_rows
from zander.journal.reader import split_records
from zander.journal.records import BEGINS, GapRecord, RawRecord, Record
from zander.lock import FileLock
from zander.native import IS_NATIVE
from zander.wire.chunk import Chunk, Origin
from zander.wire.messages import Gap

FOLDER = "journal"  # in DATA_DIR
LOCK = ".lock"
SEGMENT_BYTES = 16 << 20  # of one file; it is deleted when all of it is committed, and so much more after it
BATCH_BYTES = 32 << 20  # a backlog is written in pieces of this size: a commit and a position of each session a piece
DUE_BYTES = 8 << 20  # that are written at once, and read while others are written
GROWTH = 1.25  # of batches that were made smaller, with each that is written: one in four may be too large again
# Sorted in 2 ms, if they are records of one sample; then the event loop runs other tasks.
READ_BYTES = (2 << 20) if IS_NATIVE else (256 << 10)

_DELETING = ThreadPoolExecutor(1, "zander-deleting")  # of files: 4 ms were seen, which nobody should wait for

log = logging.getLogger(__name__)


def _in_a_thread(delete: Callable[[], None]) -> None:
    _DELETING.submit(delete).add_done_callback(_tell)


def _tell(deleted: Future[None]) -> None:
    if error := deleted.exception():
        log.error("a finished file of the journal cannot be deleted: %s", error)


class Journal:
    """The records of one process. `offset`: everything before it is committed; None: only the database knows.

    Of that, up to `keep_bytes` stay in whole files.
    """

    def __init__(
        self,
        folder: Path,
        lock: FileLock,
        offset: int | None,
        segment_bytes: int = SEGMENT_BYTES,
        *,
        keep_bytes: int = 0,
        ahead: bool = False,
    ) -> None:
        self.writer_id = writer_id = uuid.UUID(lock.path.stem)
        self.offset = offset
        self.is_open = True
        self.arrivals = Arrivals()
        self._lock = lock
        self._keep_bytes = keep_bytes
        self.log = Log(folder, str(writer_id), segment_bytes=segment_bytes, ahead=ahead, begins=BEGINS)

    @classmethod
    def create(cls, folder: Path, max_bytes: int, keep_bytes: int = 0) -> Self:
        """Begin a journal that will be bounded by `max_bytes`; OSError when the folder cannot be had."""
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # of another account: what is in it is closed to others all the same
            folder.chmod(0o700)  # whatever an earlier version, or the umask, made of it
        path = folder / f"{uuid.uuid4()}{LOCK}"
        lock = FileLock(path.with_suffix(".new")).rename(path)
        return cls(folder, lock, 0, min(SEGMENT_BYTES, max_bytes // 8), keep_bytes=keep_bytes, ahead=True)

    @property
    def n_pending_bytes(self) -> int:
        """Bytes that are not committed yet."""
        return self.log.end - max(self.offset or 0, self.log.start)

    def commit(self, offset: int) -> None:
        """Set what is in the database: everything before `offset`. Delete the files it was in, but those to keep."""
        self.offset = offset
        self.arrivals.commit(offset, self.log.end, monotonic())
        self.log.forget(offset, _in_a_thread, keep_bytes=self._keep_bytes)

    def give_back(self) -> bool:
        """Delete all files that are committed, however small, since room is missing; False when there is none."""
        n_bytes = self.log.n_bytes
        if self.offset is not None:
            self.log.forget(self.offset, roll_bytes=1)
        return self.log.n_bytes < n_bytes

    @property
    def oldest_s(self) -> float:
        """When the oldest pending record came, on the monotonic clock; infinite when there is none."""
        return self.arrivals.oldest_s if self.n_pending_bytes else math.inf

    def keep_oldest(self) -> None:
        """Note in the lock file's time since when something is pending, for whoever finds this journal an orphan."""
        age_s = max(0.0, monotonic() - self.oldest_s)  # 0 when nothing is
        with suppress(OSError):
            os.utime(self._lock.path, (time() - age_s,) * 2)

    def close(self) -> None:
        """Close the files. Pending records stay for the next process; without any, the files are deleted."""
        self.is_open = False
        is_done = self.offset is not None and self.offset >= self.log.end
        if is_done:
            self.log.remove()
        else:
            self.log.close()
        self._lock.release(remove=is_done)

    async def read(self, offset: int, piece_bytes: int | None = None) -> AsyncIterator[tuple[list[Record], int]]:
        """Yield the records from `offset` on in pieces, and the offset after each, up to where the journal ends now.

        A piece is about `piece_bytes`, READ_BYTES at most, and one record at the least.

        Not in a thread: every write of the hot path would wait for it to give the interpreter back, up to 5 ms. What
        was written lately is in memory, and the rest is read ahead by the system.
        """
        if not self.is_open:  # it was closed while another journal was read
            return
        end = self.log.end  # on a busy machine the end would move as fast as the reading
        while offset < end and self.is_open:
            records, behind = self.log.read_by(split_records, offset, min(READ_BYTES, piece_bytes or READ_BYTES))
            if behind == offset:
                return
            offset = behind  # beyond what is damaged, if there are none
            yield records, offset
            await asyncio.sleep(0)


def orphans(folder: Path, keep_bytes: int = 0) -> list[Journal]:
    """Adopt the journals whose processes are dead, oldest first; also those that have lost their lock file."""
    names = {path.stem for path in folder.glob(f"*{LOCK}")}
    if foreign := sorted(name for name in names if not _is_writer(name)):
        log.warning("%s: %s%s is of no journal, it is left alone", folder, f"{LOCK}, ".join(foreign), LOCK)
    names |= {path.name.partition(".")[0] for path in folder.glob(f"*{SUFFIX}")}
    paths = sorted((folder / f"{name}{LOCK}" for name in names if _is_writer(name)), key=_age)
    return [journal for path in paths if (journal := _adopt(folder, path, keep_bytes))]


def _is_writer(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _age(path: Path) -> float:
    """Return since when something is pending in the journal of a lock file, seconds since 1970."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its process ended just now, or another adopted it, or somebody deleted it
        return 0.0


def _adopt(folder: Path, path: Path, keep_bytes: int) -> Journal | None:
    lock = None
    try:
        if not path.exists() and is_in_use(folder, path.stem):
            log.error("journal %s has no %s file any more, but its process lives: it is left to it", path.stem, LOCK)
            return None
        lock = FileLock(path)
        journal = Journal(folder, lock, None, keep_bytes=keep_bytes)
    except BlockingIOError:  # its process lives
        return None
    except OSError as error:
        log.error("journal %s cannot be opened, it is left as it is: %s", path.stem, error)
        if lock:
            lock.release()
        return None
    if journal.log.end == 0:
        journal.commit(0)
        journal.close()
        return None
    journal.arrivals.note(0, monotonic() - max(0.0, time() - _age(path)))
    n_bytes = journal.log.n_bytes
    log.warning("%d bytes in the journal of a process that died: the database gets what it lacks of them", n_bytes)
    return journal


class Journals:
    """This process's own journal, which records are added to, and the orphans, which are only read, and first."""

    def __init__(self, folder: Path, max_bytes: int, keep_bytes: int = 0) -> None:
        """Open the folder; OSError when it cannot be had."""
        self.own = Journal.create(folder, max_bytes, keep_bytes)
        self.orphans = deque(orphans(folder, keep_bytes))
        self._limit_bytes: int | None = None  # of a batch, while the database does not take large ones
        self._ahead: asyncio.Task[Batch] | None = None
        self._ahead_of: tuple[UUID, int] | None = None  # the journal it reads, and from where

    @property
    def n_bytes(self) -> int:
        """Bytes on disk, of all journals."""
        return self.own.log.n_bytes + self.n_orphan_bytes

    @property
    def n_orphan_bytes(self) -> int:
        """Bytes on disk of the orphans."""
        return sum(orphan.log.n_bytes for orphan in self.orphans)

    @property
    def n_pending_bytes(self) -> int:
        """Bytes that are not in the database yet, of all journals."""
        return sum(journal.n_pending_bytes for journal in (*self.orphans, self.own))

    @property
    def oldest_s(self) -> float:
        """When the oldest record came that is not in the database; infinite when there is none."""
        return min(journal.oldest_s for journal in (*self.orphans, self.own))

    @property
    def batch_bytes(self) -> int:
        """Bytes that the next batch is to have."""
        return BATCH_BYTES if self._limit_bytes is None else min(BATCH_BYTES, self._limit_bytes)

    def give_back(self) -> bool:
        """Delete what is committed and kept all the same; False when there is nothing like that."""
        given = [journal.give_back() for journal in (*self.orphans, self.own)]
        return any(given)

    def is_own(self, batch: Batch) -> bool:
        """Return whether a batch is of this process's records."""
        return batch.writer_id == self.own.writer_id

    def of(self, batch: Batch) -> Journal:
        """Return the journal that a batch was read from: our own, or the first of the orphans."""
        return self.own if self.is_own(batch) else self.orphans[0]

    async def read(self, journal: Journal) -> Batch:
        """Return the next records of a journal, about `batch_bytes`; none at its end."""
        start = journal.offset or 0
        ahead, is_next = self._ahead, self._ahead_of == (journal.writer_id, start)
        self._ahead = self._ahead_of = None
        if ahead and is_next:
            return await ahead
        if ahead:
            ahead.cancel()
        return await self._read(journal, start)

    async def read_smaller(self, batch: Batch) -> Batch:
        """Return the first half of a batch that could not be written; of a single record, the same.

        The batches that follow are as small.
        """
        self._limit_bytes = max(1, (batch.end - batch.start) // 2)
        if self._ahead:
            self._ahead.cancel()
        self._ahead = self._ahead_of = None
        return await self._read(self.of(batch), batch.start)

    def grow(self) -> None:
        """Let batches that were made smaller be larger again, since one was written."""
        if self._limit_bytes is not None:
            limit_bytes = int(self._limit_bytes * GROWTH) + 1
            self._limit_bytes = limit_bytes if limit_bytes < BATCH_BYTES else None

    def read_ahead(self, batch: Batch) -> None:
        """Begin to read the records after a batch that is being written, if there are enough for another."""
        journal = self.of(batch)
        if not self._ahead and journal.log.end - batch.end >= min(DUE_BYTES, self.batch_bytes):
            self._ahead_of = (journal.writer_id, batch.end)
            self._ahead = asyncio.create_task(self._read(journal, batch.end))

    async def _read(self, journal: Journal, start: int) -> Batch:
        batch, limit_bytes, n_bytes = Batch(journal.writer_id, start), self._limit_bytes, self.batch_bytes
        async for records, offset in journal.read(start, limit_bytes):
            if limit_bytes is not None and start < batch.end and offset - start > limit_bytes:
                break  # it must not be as large again as the one that failed
            for record in records:
                batch.add(record)
            batch.end = offset
            if offset - start >= n_bytes:
                break
        return batch

    async def pending(self, origin: Origin, start: int, end: int) -> list[Chunk | Gap]:
        """Return what is not in the database yet of a session from position `start` to `end`, in order."""
        items: list[Chunk | Gap] = []
        for journal in (*self.orphans, self.own):
            async for records, _ in journal.read(journal.offset or 0):
                items += _items(records, origin, start, end)
        return items

    async def keep_synced(self, seconds: float | None) -> None:
        """Force the own journal to the disk at this interval; None: never. A failure is logged once."""
        failed = False
        while seconds is not None:
            await asyncio.sleep(seconds)
            try:
                await asyncio.to_thread(self.own.log.sync)
            except OSError as error:
                if not failed:
                    log.error("the journal cannot be forced to the disk: %s", error.strerror)
                failed = True
            else:
                failed = False

    def close(self) -> None:
        """Close all journals; pending records stay for the next process."""
        if self._ahead:
            self._ahead.cancel()
        for journal in (*self.orphans, self.own):
            journal.close()


def _items(records: list[Record], origin: Origin, start: int, end: int) -> Iterator[Chunk | Gap]:
    """Yield the samples of a session from position `start` to `end`, and what its relay skipped there."""
    for record in records:
        if record.session_id != origin.session_id:
            continue
        if isinstance(record, RawRecord) and record.position < end and record.end > start:
            yield Chunk(origin, record.position, *decode_rows(record.rows, record.end - record.position))
        elif isinstance(record, GapRecord) and record.reason == "relay" and record.start < end and record.end > start:
            yield Gap(origin.session_id, record.start, record.end, "relay")
