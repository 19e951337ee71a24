"""From the journal into a Storage: when a batch is due, retries, and who is told.

Recording is one call without an await: an append to the journal. A loop reads back what is there and writes it, one
batch at a time; what comes meanwhile waits together for the next. What dead processes left goes first.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from msgspec import DecodeError, structs

from zander.errors import Moved
from zander.journal.batch import Batch, BatchStore, Written
from zander.journal.counts import RecorderStats
from zander.journal.heap import give_back
from zander.journal.journals import BATCH_BYTES, Journals, raw_record
from zander.journal.outage import Outage, error_text
from zander.journal.records import GapRecord, PredictionRecord, SessionRecord
from zander.journal.writer import Intake
from zander.wire.chunk import Chunk, Origin
from zander.wire.messages import Gap

PING_SECONDS = 1.0
SWOLLEN_BYTES = BATCH_BYTES // 2  # of a batch, that take so much memory several times over
DRAINING_PAUSE_SECONDS = 0.2

log = logging.getLogger(__name__)


class Recorder:
    """Everything that is to be kept, on its way into a Storage. `online`: the Storage can be written to."""

    def __init__(
        self,
        storage: BatchStore,
        journals: Journals,
        *,
        max_records: int,
        max_seconds: float,
        linger_seconds: float,
        journal_max_bytes: int,
    ) -> None:
        self.online = False
        self.on_written: Callable[[Written], None] = lambda written: None
        self._storage = storage
        self._journals = journals
        self._intake = Intake(journals.own.log, journal_max_bytes)
        self._max_records = max_records
        self._max_seconds = max_seconds
        self._linger_seconds = linger_seconds
        self._n_waiting = 0  # records in the journal that are in no batch yet
        self._since_s = self._batch_since_s = 0.0  # when the first of them came, and the first of those in the batch
        self._wake_at: float = 1  # how many of them mean something to the loop
        self._is_urgent = False
        self._is_swollen = False  # there was a large batch
        self._batch: Batch | None = None
        self._woken = asyncio.Event()
        self._settled = asyncio.Event()  # set while nothing of this process waits
        self._settled.set()
        self._opened = False
        self._running = False
        self._draining = asyncio.Event()
        self._outage = Outage()
        self._started_s = -math.inf  # when the last batch started
        self._pinged_s = -math.inf
        self._counts = RecorderStats()
        self._bound()

    # The hot path: no await, and nothing is raised.

    @property
    def takes(self) -> bool:
        """Whether the journal has room."""
        return self._intake.takes

    def record_chunk(self, chunk: Chunk, fence: int) -> bool:
        """Keep raw samples; False when there is no room."""
        return self._intake.add(raw_record(chunk, fence), len(chunk)) and self._count(len(chunk))

    def record_frames(self, frames: bytes, n_samples: int) -> bool:
        """Keep samples that are frames of the journal already; False when there is no room."""
        return self._intake.add_frames(frames) and self._count(n_samples)

    def drop(self, n_records: int) -> None:
        """Count what was not even offered, since there is no room."""
        self._intake.n_refused += n_records

    def record_prediction(self, record: PredictionRecord) -> bool:
        """Keep a prediction or features; False when there is no room and it is dropped."""
        return self._intake.add(record) and self._count(1)

    def record(self, record: SessionRecord | GapRecord) -> None:
        """Keep a session's start or end, or a gap; never dropped, since it is small and rare."""
        self._intake.insist(record)
        self._count(1)
        self._is_urgent = True  # somebody may wait for the end of a session
        self._woken.set()

    async def pending(self, origin: Origin, start: int, end: int) -> list[Chunk | Gap]:
        """Return what is kept of a session from position `start` to `end`, and not in the database yet, in order."""
        return await self._journals.pending(origin, start, end)

    def stats(self) -> RecorderStats:
        """Return the counts as of now."""
        batch = self._batch if self._batch and self._batch.writer_id == self._journals.own.writer_id else None
        return structs.replace(
            self._counts,
            online=self.online,
            taking=self.takes,
            pending_records=self._n_waiting + (batch.n_records if batch else 0),
            pending_bytes=self._journals.n_pending_bytes,
            oldest_pending_seconds=self._age_seconds(batch),
            journal_bytes=self._journals.n_bytes,
            dropped_records=self._intake.n_refused,
        )

    # The loop.

    async def run(self) -> None:
        """Write batches until cancelled; the next run or drain goes on with a batch that was under way."""
        self._running = True
        try:
            while True:
                try:
                    await self._turn()
                except Exception as error:  # not StorageError alone: no mistake of ours may end the recording
                    await self._retreat(error)
        finally:
            self._running = False

    async def drain(self, seconds: float) -> bool:
        """Write all that waits; False when some of it still does after `seconds`."""
        self._draining.set()
        self._woken.set()
        own_run = None if self._running else asyncio.create_task(self.run())
        try:
            async with asyncio.timeout(seconds):
                await self._settled.wait()
        except TimeoutError:
            return False
        finally:
            self._draining.clear()
            if own_run:
                own_run.cancel()
                await asyncio.wait([own_run])
        return True

    def take_leave(self) -> None:
        """Say what the last drain has left."""
        if n_bytes := self._journals.own.n_pending_bytes:
            log.warning("%d bytes stay in the journal for the next start", n_bytes)
        if n_waiting := self._intake.n_waiting:
            log.error("%d records for which there was no room on the disk are lost", n_waiting)

    async def _turn(self) -> None:
        if not self._opened:
            await self._storage.open()
            self._opened = True
            if not self._batch:  # else only writing what failed before proves that it is back
                self._advance()
        if not self._batch:
            self._batch = await self._next()
        await self._write(self._batch)

    async def _next(self) -> Batch:
        """Wait for what is due, and read it; StorageError when the database goes away meanwhile."""
        orphans = self._journals.orphans
        while orphans:
            if orphans[0].offset is None:
                orphans[0].commit(await self._storage.position(orphans[0].writer_id))
            try:
                if (batch := await self._journals.read(orphans[0])).n_records:
                    return batch
            except (OSError, DecodeError) as error:
                log.error("journal %s cannot be read, it is left as it is: %s", orphans[0].writer_id, error)
                orphans.popleft().close()
                continue
            await self._storage.finish(orphans[0].writer_id)
            orphans[0].commit(orphans[0].log.end)  # what is left, if anything, is damaged
            orphans.popleft().close()
            self._bound()
        await self._until_due()
        self._is_urgent = False
        batch = await self._journals.read(self._journals.own)
        self._n_waiting = max(0, self._n_waiting - batch.n_records)
        self._batch_since_s, self._since_s = self._since_s, monotonic()
        self._wake_at = self._max_records if self._n_waiting else 1
        return batch

    async def _until_due(self) -> None:
        """Wait for the next batch; StorageError when the database goes away meanwhile."""
        while True:
            if monotonic() >= self._pinged_s + PING_SECONDS:
                self._pinged_s = monotonic()
                self._intake.retry()
                await self._storage.ping()
            seconds = self._seconds_until_due()
            if seconds <= 0:
                return
            self._woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, PING_SECONDS)):
                    await self._woken.wait()

    def _seconds_until_due(self) -> float:
        n_bytes = self._journals.own.n_pending_bytes
        if not n_bytes:
            return math.inf
        if n_bytes >= BATCH_BYTES or self._draining.is_set():
            return 0.0
        now_s = monotonic()
        is_due = self._is_urgent or self._n_waiting >= self._max_records
        due_s = now_s if is_due else self._since_s + self._max_seconds
        return max(due_s, self._started_s + self._linger_seconds) - now_s

    def _count(self, n_records: int) -> bool:
        self._n_waiting += n_records
        if self._n_waiting >= self._wake_at:
            self._wake()
        return True

    def _wake(self) -> None:
        """Wake the loop for the first record and for a batch."""
        if self._wake_at == 1:
            self._since_s = monotonic()
            self._settled.clear()
        self._wake_at = self._max_records if self._n_waiting < self._max_records else math.inf
        self._woken.set()

    async def _write(self, batch: Batch) -> None:
        """Write a batch. After a StorageError nobody knows whether it was committed: the same one goes again."""
        self._started_s = monotonic()
        journal = self._journals.of(batch)
        self._journals.read_ahead(batch)
        try:
            written = await self._storage.write(batch)
        except Moved as moved:  # the last word of the process that died was on its way when we asked
            self._batch = None
            journal.commit(moved.position)
            return
        self._batch = None
        journal.commit(batch.end)
        self._finish(batch, written)
        self._advance()

    def _finish(self, batch: Batch, written: Written) -> None:
        counts = self._counts
        counts.written_records += batch.n_records
        counts.written_batches += 1
        self._is_swollen |= batch.end - batch.start >= SWOLLEN_BYTES
        if written.n_dead_letters and not counts.dead_letters:
            log.error("the database refuses records for themselves: they are kept in its table dead_letters")
        counts.dead_letters += written.n_dead_letters
        counts.last_error = None
        counts.last_batch_records = batch.n_records
        counts.last_batch_seconds = monotonic() - self._started_s
        self._bound()
        if not self._journals.own.n_pending_bytes:
            self._n_waiting, self._wake_at = self._intake.n_waiting, 1
            if not self._n_waiting:
                self._settled.set()
                if self._is_swollen:
                    self._is_swollen = False
                    give_back()
        self.on_written(written)

    def _bound(self) -> None:
        self._intake.bound(self._journals.n_orphan_bytes)

    def _age_seconds(self, batch: Batch | None) -> float:
        since_s = self._batch_since_s if batch else self._since_s
        return monotonic() - since_s if batch or self._n_waiting else 0.0

    async def _retreat(self, error: Exception) -> None:
        """Wait before the next attempt; less long when we are about to stop."""
        self._opened = self.online = False
        self._counts.last_error = error_text(error)
        self._intake.retry()
        seconds = self._outage.note(error)
        if self._draining.is_set():
            await asyncio.sleep(min(seconds, DRAINING_PAUSE_SECONDS))
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._draining.wait()

    def _advance(self) -> None:
        self.online = True
        self._outage.over(self._journals.own.n_pending_bytes)
