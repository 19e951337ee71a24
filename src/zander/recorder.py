"""Writing what waits into a Storage: when a batch is due, its number, retries.

Recording is one call without an await. A loop writes one batch at a time, and what comes meanwhile waits
together for the next. Whatever fits the bound is written once, however often the database goes away; what
does not, the newest, is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from contextlib import suppress
from time import monotonic
from typing import NamedTuple, Protocol

from msgspec import Struct, structs

from zander.backlog import Backlog
from zander.chunk import Chunk
from zander.errors import Refused, StorageError
from zander.pile import Pile, PredictionRecord, SessionRecord

__all__ = ["Batch", "PredictionRecord", "Recorder", "RecorderStats", "SessionRecord", "Storage"]

PING_SECONDS = 1.0
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0
MAX_NAMED_SESSIONS = 1024

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What one transaction writes; `n` counts this writer's batches from 1, and a retry has the same one."""

    n: int
    sessions: list[SessionRecord]
    chunks: list[Chunk]
    predictions: list[PredictionRecord]


class Storage(Protocol):
    """Where batches go. After any error but Refused, `open` is called before anything else."""

    async def open(self) -> None:
        """Connect and prepare the tables; StorageError when that is not possible now."""

    async def write(self, batch: Batch) -> None:
        """Write all of the batch or nothing, once per `batch.n`.

        StorageError: it is to be tried again. Refused: it never will be taken.
        """

    async def ping(self) -> None:
        """Ask for a sign of life; StorageError when there is none."""

    async def close(self) -> None:
        """Let go of the database."""


class RecorderStats(Struct):
    """Counts since the start; a record is a sample, a prediction, or the start or end of a session."""

    online: bool = False
    pending_records: int = 0
    pending_bytes: int = 0
    oldest_pending_seconds: float = 0.0
    written_records: int = 0
    written_batches: int = 0
    dropped_records: int = 0  # found no room
    refused_records: int = 0  # the database would never take them
    last_batch_records: int = 0
    last_batch_seconds: float = 0.0
    last_error: str | None = None


class Recorder:
    """Everything that is to be kept, on its way into a Storage. `online`: the Storage can be written to."""

    def __init__(
        self,
        storage: Storage,
        *,
        max_records: int,
        max_seconds: float,
        linger_seconds: float,
        backlog_max_bytes: int,
    ) -> None:
        self.online = False
        self._storage = storage
        self._backlog = Backlog(max_records, backlog_max_bytes)
        self._max_records = max_records
        self._max_seconds = max_seconds
        self._linger_seconds = linger_seconds
        self._n = 0  # the last batch number given
        self._opened = False
        self._running = False
        self._draining = asyncio.Event()
        self._away_since_s: float | None = None
        self._backoff_seconds = BACKOFF_FIRST_SECONDS
        self._started_s = -math.inf  # when the last batch started
        self._pinged_s = -math.inf
        self._counts = RecorderStats()
        self._named: set[str] = set()  # sessions whose refused data was logged

    # The hot path: 0.3 µs per one-sample chunk. No await, and nothing is raised.

    def record_session(self, record: SessionRecord) -> None:
        """Keep a session's start, or with `end_us` its end; never dropped."""
        self._backlog.add_session(record)

    def record_chunk(self, chunk: Chunk) -> bool:
        """Keep raw samples; False when there is no room and they are dropped."""
        return self._backlog.add_chunk(chunk)

    def record_prediction(self, record: PredictionRecord) -> bool:
        """Keep a prediction or features; False when there is no room and it is dropped."""
        return self._backlog.add_prediction(record)

    def stats(self) -> RecorderStats:
        """Return the counts as of now."""
        return structs.replace(
            self._counts,
            online=self.online,
            pending_records=self._backlog.n_records,
            pending_bytes=self._backlog.n_bytes,
            oldest_pending_seconds=self._backlog.age_seconds,
            dropped_records=self._backlog.n_dropped,
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
        self._backlog.woken.set()
        own_run = None if self._running else asyncio.create_task(self.run())
        try:
            async with asyncio.timeout(seconds):
                await self._backlog.settled.wait()
        except TimeoutError:
            log.error("%d records are not written after %.1f s", self._backlog.n_records, seconds)
            return False
        finally:
            self._draining.clear()
            if own_run:
                own_run.cancel()
                await asyncio.wait([own_run])
        return True

    async def _turn(self) -> None:
        if not self._opened:
            await self._storage.open()
            self._opened = True
            if not self._backlog.queue:  # else only writing what failed before proves that it is back
                self._advance()
        if not self._backlog.queue:
            await self._until_due()
        await self._write(self._backlog.first())

    async def _until_due(self) -> None:
        """Wait for the next batch; StorageError when the database goes away meanwhile."""
        while True:
            if monotonic() >= self._pinged_s + PING_SECONDS:
                self._pinged_s = monotonic()
                await self._storage.ping()
            seconds = self._seconds_until_due()
            if seconds <= 0:
                return
            self._backlog.woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, PING_SECONDS)):
                    await self._backlog.woken.wait()

    def _seconds_until_due(self) -> float:
        if self._backlog.queue or (self._draining.is_set() and self._backlog.n_records):
            return 0.0
        n_records, now_s = self._backlog.n_records, monotonic()
        if not n_records:
            return math.inf
        age_due_s = now_s if n_records >= self._max_records else self._backlog.open.oldest_s + self._max_seconds
        return max(age_due_s, self._started_s + self._linger_seconds) - now_s

    async def _write(self, pile: Pile) -> None:
        """Write the first pile.

        It gets its number when its turn comes, and none behind it has one: so its number is higher than all
        that were committed before, by which the storage tells a repeat. After a StorageError nobody knows
        whether it was committed: it stays first, unchanged and under its number. After Refused it was not:
        the number is skipped, which the storage does not mind, and the halves get new ones.
        """
        if not pile.n:
            self._n += 1
            pile.n = self._n
        self._started_s = monotonic()
        try:
            await self._storage.write(Batch(pile.n, list(pile.sessions.values()), pile.chunks, pile.predictions))
        except Refused as error:
            self._divide(pile, error)
        else:
            self._finish(pile)
        self._advance()

    def _finish(self, pile: Pile) -> None:
        counts = self._counts
        counts.written_records += pile.n_records
        counts.written_batches += 1
        counts.last_batch_records = pile.n_records
        counts.last_batch_seconds = monotonic() - self._started_s
        self._backlog.forget()

    def _divide(self, pile: Pile, error: Refused) -> None:
        """Halve a refused batch; a record that stands alone in it is dropped, and logged once per session."""
        self._counts.last_error = str(error)
        if self._backlog.halve():
            return
        self._counts.refused_records += pile.n_records
        session_id, which = pile.name()
        if session_id not in self._named and len(self._named) < MAX_NAMED_SESSIONS:
            self._named.add(session_id)
            log.error("the database refuses session %s, %s; dropped: %s", session_id, which, error)
        self._backlog.forget()

    # The database goes away and comes back.

    async def _retreat(self, error: Exception) -> None:
        """Log once that the database is away, and wait before the next attempt."""
        self._opened = self.online = False
        self._counts.last_error = str(error) or type(error).__name__
        if self._away_since_s is None:
            self._away_since_s = monotonic()
            mistake = None if isinstance(error, StorageError) else error
            log.warning("the database is away: %s", self._counts.last_error, exc_info=mistake)
        seconds = self._backoff_seconds * random.uniform(0.5, 1.0)
        self._backoff_seconds = min(2 * self._backoff_seconds, BACKOFF_MAX_SECONDS)
        if self._draining.is_set():
            await asyncio.sleep(min(seconds, 2 * BACKOFF_FIRST_SECONDS))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._draining.wait()

    def _advance(self) -> None:
        """Log once that the database is back."""
        self.online = True
        self._backoff_seconds = BACKOFF_FIRST_SECONDS
        if self._away_since_s is not None:
            seconds = monotonic() - self._away_since_s
            self._away_since_s = None
            log.warning("the database is back after %.1f s, %d records waited", seconds, self._backlog.n_records)
