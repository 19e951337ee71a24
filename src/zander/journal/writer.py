"""The recording side of the journal: appends within the quota, and counts what the database does not have yet.

A record that finds no room is refused. The start or end of a session, or a gap, is small and must not be lost: it is
appended beyond the quota, and kept in memory for as long as the disk is full.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from zander.journal.journal import Journals
from zander.journal.log import frame
from zander.journal.records import GapRecord, PredictionRecord, Record, SessionRecord, encode, raw_record
from zander.journal.shares import Kind, Shares
from zander.wire.chunk import Chunk, Origin
from zander.wire.connection import NOBODY, Client
from zander.wire.messages import Gap

Sizes = Sequence[tuple[str, int]]  # users, and bytes of each

PAUSE_SECONDS = 1.0  # between two attempts while the journal is full
FREE_SHARE = 0.1  # of the quota that has to be free before a full journal takes more

log = logging.getLogger(__name__)


class Full(NamedTuple):
    """The state of a journal that takes nothing: since when, why, and how many records were refused before."""

    since_s: float
    reason: str
    n_refused: int


class JournalWriter:
    """A RecordSink that appends to this process's own journal; all journals together may take `max_bytes` on disk.

    Of what it took, `n_pending` records are not in the database yet, and those `in_memory` not on disk; `n_refused`
    found no room, and `full` says why there is none. A sample counts as one record. `wake` is set when a batch may have
    become due: by the first pending record, by `batch_records` of them, by one that is urgent, and when there is room.
    """

    def __init__(
        self,
        journals: Journals,
        *,
        max_bytes: int,
        batch_records: int,
        client_of: Callable[[str], Client] = lambda _: NOBODY,
    ) -> None:
        self.n_pending = 0
        self.n_refused = 0
        self.wake = asyncio.Event()
        self._journals = journals
        self._log = journals.own.log
        self._batch_records = batch_records
        self._n_in_batch = 0  # pending records that are being written
        self._urgent_end = 0  # offset after the last record that may not wait
        self.shares = Shares(max_bytes, client_of)
        self.in_memory: list[Record] = []  # records that the disk did not take
        self._in_memory_since_s = 0.0  # when the first of them came
        self.full: Full | None = None
        self._tried_s = 0.0
        self.set_limit(journals.n_orphan_bytes)

    # The hot path: no await, and nothing is raised.

    @property
    def takes(self) -> bool:
        """Whether there is room; looks again at most once in PAUSE_SECONDS."""
        return self.full is None or self._reopen()

    def takes_from(self, user_id: str, kind: Kind = "samples", client: Client | None = None) -> bool:
        """Return whether there is room for what comes of a user; `client`: whose relay begins a session now."""
        return self.takes and self.shares.takes(user_id, kind, self._shared_end, client)

    def record_frames(self, frames: bytes, n_samples: int, sizes: Sizes | None = None) -> bool | None:
        """Append samples that are frames of the journal already; `sizes` are the users, and how many bytes are of each.

        False when there is no room; they do not count as refused, since the caller offers them again as chunks. None
        when the journal fills: then it needs `sizes`.
        """
        shares = self.shares
        is_shared = shares.end > shares.start
        if is_shared and sizes is None:
            return None
        if is_shared and not all(self.takes_from(user_id) for user_id, _ in sizes or ()):
            return False
        if (self.full is None or self._reopen()) and self._append(frames, is_bounded=True):
            if is_shared:
                shares.add(sizes or ())
            self._count(n_samples)
            return True
        return False

    def record_chunk(self, chunk: Chunk, fence: int) -> bool:
        """Append samples; False when there is no room."""
        return self._add(raw_record(chunk, fence), len(chunk), chunk.origin.user_id, "samples")

    def record_prediction(self, record: PredictionRecord) -> bool:
        """Append a prediction or features; False when there is no room."""
        return self._add(record, 1, record.user_id, "notes")

    def record(self, record: SessionRecord | GapRecord) -> None:
        """Append a session's start or end, or a gap: even beyond the quota, and as soon as the disk takes it."""
        frames = frame(encode(record))
        if self.in_memory or not self._append(frames, is_bounded=False):
            self._in_memory_since_s = self._in_memory_since_s if self.in_memory else monotonic()
            self.in_memory.append(record)
        else:
            if isinstance(record, SessionRecord) and self.shares.end > self.shares.start:
                self.shares.add_session(record.user_id, len(frames), begins=record.end_us is None)
            self._urgent_end = self._log.end  # somebody may wait for the end of a session
        self._count(1)
        self.wake.set()

    def drop(self, n_records: int) -> None:
        """Count records as refused that were not even offered, since there is no room."""
        self.n_refused += n_records

    async def pending(self, origin: Origin, start: int, end: int) -> list[Chunk | Gap]:
        """Return what is not in the database yet of a session from position `start` to `end`, in order."""
        return await self._journals.pending(origin, start, end)

    # For the recorder.

    @property
    def oldest_s(self) -> float:
        """When the oldest record came that is not in the database, on the monotonic clock; infinite without any."""
        return min(self._journals.own.oldest_s, self._in_memory_since_s if self.in_memory else math.inf)

    @property
    def is_batch_due(self) -> bool:
        """Whether a batch is due whatever its age: it is full, or one of its records is urgent."""
        return self.n_pending >= self._batch_records or self._urgent_end > (self._journals.own.offset or 0)

    def begin_batch(self, n_records: int) -> None:
        """Note that the oldest records are being written."""
        self._n_in_batch = min(n_records, self.n_pending)
        self._journals.own.arrivals.divide()

    def commit_batch(self) -> None:
        """Count the batch of the own journal as written."""
        is_written = not self._journals.own.n_pending_bytes  # to the end, of which some may have been damaged
        self.n_pending = len(self.in_memory) if is_written else self.n_pending - self._n_in_batch
        self._n_in_batch = 0

    def set_limit(self, n_other_bytes: int) -> None:
        """Adjust to what was committed and deleted, and to the bytes that other journals take."""
        offset, max_bytes = self._journals.own.offset or 0, self.shares.max_bytes - n_other_bytes
        self._limit = self._log.start + max_bytes
        self._shared_end = (
            self._log.needed_from(offset) + max_bytes
        )  # what is kept is given back before all are refused
        self.shares.commit(offset, max_bytes)

    def retry(self) -> None:
        """Look whether there is room again; to be called about once a second."""
        if self.full:
            self._reopen()

    def _add(self, record: Record, n_records: int, user_id: str, kind: Kind) -> bool:
        frames = frame(encode(record))
        if self.takes_from(user_id, kind) and self.record_frames(frames, n_records, ((user_id, len(frames)),)):
            return True
        self.n_refused += n_records
        return False

    def _count(self, n_records: int) -> None:
        n_before = self.n_pending
        self.n_pending = n_before + n_records
        if not n_before or n_before < self._batch_records <= self.n_pending:
            self.wake.set()

    def _append(self, frames: bytes, *, is_bounded: bool) -> bool:
        while True:
            try:
                if is_bounded and self._log.end > self._limit:
                    raise OSError(f"it has {self._log.n_bytes} bytes, its bound")
                self.shares.end = self._log.write(frames)
                self._journals.own.arrivals.note(self.shares.end - len(frames), monotonic())
                return True
            except OSError as error:
                reason = error.strerror or str(error)
                if not self._give_back():
                    break
        if not self.full:
            self._tried_s = monotonic()
            self.full = Full(self._tried_s, reason, self.n_refused)
            log.error("the journal takes no more, relays are refused: %s", reason)
        return False

    def _give_back(self) -> bool:
        """Delete what is committed; False when there is nothing like that."""
        if is_given := self._journals.give_back():
            self.set_limit(self._journals.n_orphan_bytes)
        return is_given

    def _reopen(self) -> bool:
        """Open again if there is room; a disk is not asked for each record."""
        now_s = monotonic()
        if now_s < self._tried_s + PAUSE_SECONDS or not self.full:
            return False
        self._tried_s = now_s
        self._give_back()  # it may be what has no room
        if self._log.end > self._limit - FREE_SHARE * self.shares.max_bytes or not self._append_from_memory():
            return False
        seconds, n_refused = now_s - self.full.since_s, self.n_refused - self.full.n_refused
        log.warning("the journal takes records again after %.1f s, %d were refused", seconds, n_refused)
        self.full = None
        self.wake.set()
        return True

    def _append_from_memory(self) -> bool:
        """Append the records in memory; False when the disk does not take them, or no more than them."""
        try:
            while self.in_memory:
                self._journals.own.arrivals.note(self._log.end, self._in_memory_since_s)
                self.shares.end = self._log.append(encode(self.in_memory[0]))
                self.in_memory.pop(0)
                self._urgent_end = self._log.end
            self._log.probe()
        except OSError:
            return False
        return True
