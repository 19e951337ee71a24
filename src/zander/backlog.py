"""What waits for the database, bounded in bytes. All of it synchronous.

add_* ──▶ the open pile ──▶ queue of closed piles ──▶ first()
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import monotonic

from zander.chunk import Chunk
from zander.pile import CHUNK_BYTES, PREDICTION_BYTES, Pile, PredictionRecord, SessionRecord

TIDY_RECORDS = 4096  # to join so many one-sample chunks of 100 sessions takes 3 ms of the event loop's time

log = logging.getLogger(__name__)


class Backlog:
    """Piles in the order they came. `woken` is set when a batch may be due, `settled` while nothing waits.

    What is being written stays first in the queue, and counts, until it is forgotten.
    """

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self.n_dropped = 0
        self.woken = asyncio.Event()
        self.settled = asyncio.Event()
        self.settled.set()
        self.open = Pile()  # takes what comes
        self.queue: deque[Pile] = deque()
        self._queue_bytes = 0
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._milestone = 1  # n_records of the open pile at which adding is more than appending
        self._dropping_s: float | None = None  # since when records find no room
        self._dropped_before = 0

    @property
    def n_records(self) -> int:
        """Number of samples, predictions and sessions that wait."""
        return sum(pile.n_records for pile in self.queue) + self.open.n_records

    @property
    def n_bytes(self) -> int:
        """Memory that they take."""
        return self._queue_bytes + self.open.n_bytes

    @property
    def age_seconds(self) -> float:
        """How long the oldest of them has waited."""
        pile = self.queue[0] if self.queue else self.open
        return monotonic() - pile.oldest_s if pile.n_records else 0.0

    def add_session(self, session: SessionRecord) -> None:
        """Keep a session's start or end; never dropped, since it is small and rare."""
        self.open.sessions[session.session_id] = session
        self._count(1, 0)

    def add_chunk(self, chunk: Chunk) -> bool:
        """Keep samples; False when there is no room."""
        samples = chunk.samples
        n_samples = len(samples)
        n_bytes = samples.nbytes + 8 * n_samples + CHUNK_BYTES
        pile = self.open
        if self._queue_bytes + pile.n_bytes + n_bytes > self._max_bytes:
            return self._drop(n_samples)
        pile.chunks.append(chunk)
        pile.n_bytes += n_bytes
        pile.n_records += n_samples
        if pile.n_records >= self._milestone:
            self._reach()
        return True

    def add_prediction(self, prediction: PredictionRecord) -> bool:
        """Keep a prediction or features; False when there is no room."""
        n_bytes = len(prediction.data) + PREDICTION_BYTES
        if self.n_bytes + n_bytes > self._max_bytes:
            return self._drop(1)
        self.open.predictions.append(prediction)
        self._count(1, n_bytes)
        return True

    def first(self) -> Pile:
        """Return the pile to write; without a closed one, the open one is closed."""
        if not self.queue:
            self._close()
        return self.queue[0]

    def forget(self) -> None:
        """Take the first pile away: it is written, or never will be."""
        self._queue_bytes -= self.queue.popleft().n_bytes
        if not self.queue and not self.open.n_records:
            self.settled.set()
        if self._dropping_s is not None and 2 * self.n_bytes < self._max_bytes:
            n_dropped = self.n_dropped - self._dropped_before
            seconds = monotonic() - self._dropping_s
            log.warning("room again: %d records were dropped in %.1f s", n_dropped, seconds)
            self._dropping_s = None

    def halve(self) -> bool:
        """Replace the first pile by its halves; False when it holds but one record."""
        halves = self.queue[0].halves()
        if not halves:
            return False
        self._queue_bytes += sum(half.n_bytes for half in halves) - self.queue.popleft().n_bytes
        self.queue.extendleft(reversed(halves))
        return True

    def _count(self, n_records: int, n_bytes: int) -> None:
        self.open.n_bytes += n_bytes
        self.open.n_records += n_records
        if self.open.n_records >= self._milestone:
            self._reach()

    def _reach(self) -> None:
        """Wake the loop for the first record and for a batch, keep memory small while it cannot write."""
        pile = self.open
        if self._milestone == 1:
            pile.oldest_s = monotonic()
            self.settled.clear()
        elif pile.n_records >= TIDY_RECORDS:
            pile.tidy()
        self.woken.set()
        if pile.is_full:
            self._close()
            return
        self._milestone = pile.n_records + TIDY_RECORDS
        if pile.n_records < self._max_records:
            self._milestone = min(self._milestone, self._max_records)

    def _close(self) -> None:
        self.queue.append(self.open)
        self._queue_bytes += self.open.n_bytes
        self.open = Pile()
        self._milestone = 1

    def _drop(self, n_records: int) -> bool:
        if self._dropping_s is None:
            self._dropping_s = monotonic()
            self._dropped_before = self.n_dropped
            log.warning("no room for what waits for the database: the newest records are dropped")
        self.n_dropped += n_records
        return False
