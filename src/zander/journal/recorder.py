"""The loop that writes the journal to the database: when a batch is due, retries and statistics.

One batch is written at a time; records that come meanwhile wait together for the next. The journals of dead processes
go first. A batch that failed is never repeated as it was: half of it is tried, down to a single record. That one waits
for as long as the database takes no other record either.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Annotated

from msgspec import DecodeError, Meta, Struct, structs

from zander.errors import Moved, StorageError
from zander.journal.batch import Batch, BatchStore, Written
from zander.journal.journal import DUE_BYTES, Journal, Journals
from zander.journal.writer import JournalWriter
from zander.retry import Backoff

PING_SECONDS = 1.0
LARGE_BATCH_BYTES = DUE_BYTES // 2  # such a batch takes its size several times over in memory
FIRST_SECONDS = 0.1  # of the pauses between two attempts
MAX_SECONDS = 5.0
DRAINING_PAUSE_SECONDS = 0.2
MAX_REASONS = 5
STALLED_SECONDS = 10.0  # a batch takes milliseconds, a large one a second: for a lock, say, it waits much longer
MAX_FAILURES = 2  # of a record in a batch of its own, before it is asked whether the record is to blame
REMIND_SECONDS = 60.0  # an outage that only a changed setting ends must not be silent for ever

log = logging.getLogger(__name__)


class RecorderStats(Struct):
    """Counts since the start; a record is a sample, a prediction, a gap, or the start or end of a session."""

    online: Annotated[bool, Meta(description="whether the database can be written to")] = False
    taking: Annotated[bool, Meta(description="whether the journal has room")] = True
    pending_records: Annotated[int, Meta(description="of this process, waiting to be written")] = 0
    pending_bytes: Annotated[
        int, Meta(description="in the journal and not yet committed, what dead processes left included")
    ] = 0
    oldest_pending_seconds: Annotated[
        float, Meta(description="how long the oldest has waited, what dead processes left included")
    ] = 0.0
    journal_bytes: Annotated[int, Meta(description="what the journal takes on the disk")] = 0
    written_records: Annotated[int, Meta(description="committed")] = 0
    written_batches: Annotated[int, Meta(description="commits")] = 0
    dropped_records: Annotated[int, Meta(description="found no room in the journal")] = 0
    users_over_share: Annotated[
        int, Meta(description="how often a user had filled its share of the journal, and was refused before others")
    ] = 0
    clients_over_share: Annotated[
        int,
        Meta(
            description="the same, of a client: the relays with one key and address, beside others, or their sessions"
        ),
    ] = 0
    dead_letters: Annotated[
        int, Meta(description="the database would never take them; they are in its table `dead_letters`")
    ] = 0
    last_batch_records: Annotated[int, Meta(description="size of the last batch")] = 0
    last_batch_seconds: Annotated[float, Meta(description="how long the last batch took")] = 0.0
    last_error: Annotated[str | None, Meta(description="why the last batch failed, null once one has succeeded")] = None


class Recorder:
    """The way from the journals to the database; `on_written` is called with the result of each batch."""

    def __init__(
        self,
        store: BatchStore,
        journals: Journals,
        writer: JournalWriter,
        *,
        max_seconds: float,
        linger_seconds: float,
        on_written: Callable[[Written], None],
    ) -> None:
        self.journals = journals
        self.writer = writer
        self._store = store
        self._max_seconds = max_seconds
        self._linger_seconds = linger_seconds
        self._on_written = on_written
        self._is_online = False
        self._attempt: Attempt | None = None  # to write a batch, until its outcome is known
        self._read_s = -math.inf  # when the last batch was read
        self._pinged_s = -math.inf
        self._draining = asyncio.Event()
        self._drained = asyncio.Event()
        self._outage = Outage()
        self._counts = RecorderStats()

    @property
    def online(self) -> bool:
        """Whether the database can be written to: it answers, and no batch has waited in it for STALLED_SECONDS."""
        return self._is_online and not (self._attempt and monotonic() >= self._attempt.began_s + STALLED_SECONDS)

    def stats(self) -> RecorderStats:
        """Return the counts as of now."""
        writer, journals = self.writer, self.journals
        return structs.replace(
            self._counts,
            online=self.online,
            taking=writer.takes,
            pending_records=writer.n_pending,
            pending_bytes=journals.n_pending_bytes,
            oldest_pending_seconds=max(0.0, monotonic() - min(writer.oldest_s, journals.oldest_s)),
            journal_bytes=journals.n_bytes,
            dropped_records=writer.n_refused,
            users_over_share=writer.shares.n_users_refused,
            clients_over_share=writer.shares.n_clients_refused,
        )

    async def run(self) -> None:
        """Write batches until cancelled; the next run goes on with a batch that was under way."""
        largest = 0  # bytes of a batch, since memory was given back
        while True:
            try:
                await self._store.open()
                await self._look_back()
                if not self._attempt:  # else only writing what failed before proves that it is back
                    self._note_online()
                while True:
                    largest = max(largest, await self._write_next())
                    if largest >= LARGE_BATCH_BYTES and not self.journals.n_pending_bytes:
                        trim_heap()
                        largest = 0
            except Exception as error:  # not StorageError alone: no mistake of ours may end the recording
                await self._pause(error)

    async def drain(self, seconds: float) -> bool:
        """Let `run` write all records of this process at once; False when some are pending after `seconds`."""
        if self._is_all_written:
            return True
        self._drained.clear()
        self._draining.set()
        self.writer.wake.set()
        try:
            async with asyncio.timeout(seconds):
                await self._drained.wait()
        except TimeoutError:
            return False
        finally:
            self._draining.clear()
        return True

    def log_remaining(self) -> None:
        """Log what the last drain has left."""
        if n_bytes := self.journals.own.n_pending_bytes:
            log.warning("%d bytes stay in the journal for the next start", n_bytes)
        if n_in_memory := len(self.writer.in_memory):
            log.error("%d records for which there was no room on the disk are lost", n_in_memory)

    @property
    def _is_all_written(self) -> bool:
        return not self.journals.own.n_pending_bytes and not len(self.writer.in_memory)

    async def _write_next(self) -> int:
        """Write the next batch, and return its bytes."""
        attempt = self._attempt or self._begin(await self._next())
        batch, journal, started_s = attempt.batch, self.journals.of(attempt.batch), monotonic()
        try:
            written = await self._store.outcome(batch) if attempt.is_in_doubt else None
            if written is None:
                attempt = await self._smaller(attempt) if attempt.has_failed else attempt
                batch, written = attempt.batch, await self._write(attempt)
        except Moved as moved:
            if moved.position < batch.start:
                self._go_back(journal, moved.position)
            else:  # the last COMMIT of the process that died was on its way when we asked
                self._commit(batch, journal, moved.position)
            return 0
        self._commit(batch, journal, batch.end)
        self.journals.grow()
        self._finish(batch, written, monotonic() - started_s)
        self._note_online()
        return batch.end - batch.start

    def _begin(self, batch: Batch, n_failures: int = 0) -> Attempt:
        self._attempt = Attempt(batch, n_failures)
        self._read_s = monotonic()
        if self.journals.is_own(batch):
            self.writer.begin_batch(batch.n_records)
        return self._attempt

    async def _smaller(self, attempt: Attempt) -> Attempt:
        """Begin with half of a batch that has failed, or again with a single record."""
        smaller = await self.journals.read_smaller(attempt.batch)
        return self._begin(smaller, attempt.n_failures + 1 if smaller.end == attempt.batch.end else 0)

    async def _write(self, attempt: Attempt) -> Written:
        self.journals.read_ahead(attempt.batch)
        attempt.is_in_doubt = True
        try:
            return await self._store.write(attempt.batch, is_alone=attempt.n_failures >= MAX_FAILURES)
        except Moved:
            raise
        except Exception:
            attempt.has_failed = True
            raise

    async def _look_back(self) -> None:
        """Ask where our journal stands in the database, which may be another by now, or an older state of it.

        A batch would find out, but there may be none to write, and what is missing may be in no other journal.
        """
        own = self.journals.own
        if own.offset and (position := await self._store.position(own.writer_id)) < own.offset:
            self._go_back(own, position)

    def _go_back(self, journal: Journal, position: int) -> None:
        """Read a journal again from where the database says that it is; what it has no more is a gap by that."""
        n_bytes, n_gone = journal.log.end - max(position, journal.log.start), max(0, journal.log.start - position)
        log.error(
            "the database has gone back: it has journal %s up to %d, was %s; %d bytes are written again, %d are gone",
            *(journal.writer_id, position, journal.offset, n_bytes, n_gone),
        )
        if self._attempt and self._attempt.batch.writer_id == journal.writer_id:
            self._attempt = None
        journal.commit(position)
        if journal is self.journals.own:
            self.writer.begin_batch(0)  # what it had counted as being written is not

    async def _next(self) -> Batch:
        """Wait until a batch is due, and read it; StorageError when the database goes away meanwhile."""
        while self.journals.orphans:
            if batch := await self._next_of_orphan(self.journals.orphans[0]):
                return batch
        await self._until_due()
        return await self.journals.read(self.journals.own)

    async def _next_of_orphan(self, orphan: Journal) -> Batch | None:
        """Return the next batch of an orphan; None once there is none, and the orphan is closed."""
        if orphan.offset is None:
            orphan.commit(await self._store.position(orphan.writer_id))
            if (n_gone := orphan.log.start - (orphan.offset or 0)) > 0:
                log.error("journal %s: %d bytes that the database does not have are gone", orphan.writer_id, n_gone)
        try:
            if (batch := await self.journals.read(orphan)).n_records:
                return batch
        except (OSError, DecodeError) as error:
            log.error("journal %s cannot be read, it is left as it is: %s", orphan.writer_id, error)
        else:
            await self._store.finish(orphan.writer_id)
            orphan.commit(orphan.log.end)  # what is left, if anything, is damaged
        self.journals.orphans.popleft().close()
        self.writer.set_limit(self.journals.n_orphan_bytes)
        return None

    async def _until_due(self) -> None:
        """Wait for the next batch; StorageError when the database goes away meanwhile."""
        while True:
            if monotonic() >= self._pinged_s + PING_SECONDS:
                self._pinged_s = monotonic()
                self.writer.retry()
                self.journals.own.keep_oldest()
                await self._store.ping()
            self.writer.wake.clear()
            seconds = self._seconds_until_due()
            if seconds <= 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, PING_SECONDS)):
                    await self.writer.wake.wait()

    def _seconds_until_due(self) -> float:
        n_bytes = self.journals.own.n_pending_bytes
        if not n_bytes:
            return math.inf
        if n_bytes >= min(DUE_BYTES, self.journals.batch_bytes) or self._draining.is_set():
            return 0.0
        now_s = monotonic()
        due_s = now_s if self.writer.is_batch_due else self.writer.oldest_s + self._max_seconds
        return max(due_s, self._read_s + self._linger_seconds) - now_s

    def _commit(self, batch: Batch, journal: Journal, offset: int) -> None:
        """Let go of a batch, and of its journal up to `offset`."""
        self._attempt = None
        journal.commit(offset)
        if self.journals.is_own(batch):
            self.writer.commit_batch()
        self.writer.set_limit(self.journals.n_orphan_bytes)
        if self._is_all_written:
            self._drained.set()

    def _finish(self, batch: Batch, written: Written, seconds: float) -> None:
        counts = self._counts
        counts.written_records += batch.n_records
        counts.written_batches += 1
        if written.n_dead_letters and not counts.dead_letters:
            log.error("the database refuses records for themselves: they are kept in its table dead_letters")
        counts.dead_letters += written.n_dead_letters
        counts.last_error = None
        counts.last_batch_records = batch.n_records
        counts.last_batch_seconds = seconds
        self._on_written(written)

    def _note_online(self) -> None:
        self._is_online = True
        self._outage.over(self.journals.own.n_pending_bytes)

    async def _pause(self, error: Exception) -> None:
        """Wait before the next attempt, a shorter time during a drain."""
        self._is_online = False
        self._counts.last_error = error_text(error)
        self.writer.retry()
        self.journals.own.keep_oldest()
        seconds = self._outage.note(error)
        if self._draining.is_set():
            await asyncio.sleep(min(seconds, DRAINING_PAUSE_SECONDS))
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._draining.wait()


class Attempt:
    """An attempt to write a batch, since `began_s`. `n_failures`: of a single record before, in a batch of its own.

    `is_in_doubt`: nobody knows whether it is committed. `has_failed`: else `run` was cancelled meanwhile.
    """

    def __init__(self, batch: Batch, n_failures: int) -> None:
        self.batch = batch
        self.n_failures = n_failures
        self.began_s = monotonic()
        self.is_in_doubt = False
        self.has_failed = False


class Outage:
    """The outages of the database, one after the other: logged once each, with the pauses between attempts."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._told_s = 0.0  # when a reason was last logged
        self._reasons: set[str] = set()  # logged in this outage: the first is often only that the connection broke
        self._backoff = Backoff(FIRST_SECONDS, MAX_SECONDS)

    def note(self, error: Exception) -> float:
        """Log each reason once per outage, with a traceback when it is a mistake of ours; return the pause.

        After that the one that holds is logged every REMIND_SECONDS.
        """
        reason, now_s = error_text(error), monotonic()
        is_new = reason not in self._reasons and len(self._reasons) < MAX_REASONS
        if is_new or now_s >= self._told_s + REMIND_SECONDS:
            mistake = None if isinstance(error, StorageError) or not is_new else error
            still = "" if self._since_s is None else "still "
            log.warning("the database is %saway: %s", still, reason, exc_info=mistake)
            self._reasons.add(reason)
            self._told_s = now_s
        self._since_s = self._since_s or now_s
        return self._backoff.next_s()

    def over(self, n_pending_bytes: int) -> None:
        """Log the end of an outage, if there was one."""
        self._backoff.reset()
        if self._since_s is not None:
            seconds = monotonic() - self._since_s
            self._since_s = None
            self._reasons.clear()
            log.warning("the database is back after %.1f s, %d bytes waited in the journal", seconds, n_pending_bytes)


def error_text(error: Exception) -> str:
    """Return the text of an error, or its type's name when it has none."""
    return str(error) or type(error).__name__


def trim_heap() -> None:
    """Give free memory back to the system, where the C library keeps it: glibc. Takes about a millisecond."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
