"""What this process has taken in and the database does not have yet, on the local disk.

A record is in its file before anybody is told of it, so it survives the death of this process; with `sync` now and
then, the machine's too. Memory stays flat: the recorder reads back what it writes to the database. A journal belongs to
one process and is locked by it. What a dead process left is an orphan, adopted by the next that starts in the folder.
"""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Self

from zander.journal.log import Log
from zander.lock import FileLock

FOLDER = "journal"  # in DATA_DIR
LOCK = ".lock"
SEGMENT_BYTES = 16 << 20  # of one file; it is deleted when all of it is committed

log = logging.getLogger(__name__)


class Journal:
    """The records of one process. `offset`: everything before it is committed; None: only the database knows."""

    def __init__(self, folder: Path, lock: FileLock, offset: int | None, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.writer_id = writer_id = uuid.UUID(lock.path.stem)
        self.offset = offset
        self.is_open = True
        self._lock = lock
        self.log = Log(folder, str(writer_id), segment_bytes=segment_bytes)

    @classmethod
    def create(cls, folder: Path, max_bytes: int) -> Self:
        """Begin a journal that will be bounded by `max_bytes`; OSError when the folder cannot be had."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{uuid.uuid4()}{LOCK}"
        return cls(folder, FileLock(path.with_suffix(".new")).rename(path), 0, min(SEGMENT_BYTES, max_bytes // 8))

    @property
    def n_pending_bytes(self) -> int:
        """What is not committed yet."""
        return self.log.end - max(self.offset or 0, self.log.start)

    def commit(self, offset: int) -> None:
        """Everything before `offset` is in the database: delete what can be."""
        self.offset = offset
        self.log.forget(offset)

    def close(self) -> None:
        """Let go; what is not committed stays for the next process, else nothing does."""
        self.is_open = False
        is_done = self.offset is not None and self.offset >= self.log.end
        if is_done:
            self.log.remove()
        else:
            self.log.close()
        self._lock.release(remove=is_done)


def orphans(folder: Path) -> list[Journal]:
    """Adopt the journals whose processes are dead, oldest first."""
    paths = sorted(folder.glob(f"*{LOCK}"), key=_age)
    return [journal for path in paths if (journal := _adopt(folder, path))]


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its process ended just now, or another adopted it
        return 0.0


def _adopt(folder: Path, path: Path) -> Journal | None:
    try:
        journal = Journal(folder, FileLock(path), None)
    except BlockingIOError:  # its process lives
        return None
    if journal.log.end == 0:
        journal.commit(0)
        journal.close()
        return None
    log.warning("%d bytes in the journal of a process that died are written to the database", journal.log.n_bytes)
    return journal
