"""A database in memory that keeps the contract of `BatchStore`, and fails as a real one can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple
from uuid import UUID

from support.samples import PERIOD_US, T0_US
from zander.errors import Moved, StorageError
from zander.journal.batch import Batch, Written, settle
from zander.journal.pgcopy import decode_rows, first_of_rows
from zander.journal.records import PredictionRecord, RawRecord, SessionRecord


class Sample(NamedTuple):
    """A row of `raw_eeg`."""

    time_us: int
    values: tuple[float, ...]


class StoredSession:
    """A row of `sessions`."""

    def __init__(self, fence: int = 0) -> None:
        self.fence = fence
        self.durable = 0
        self.last_us: int | None = None
        self.end_us: int | None = None
        self.record: SessionRecord | None = None


class Database:
    """The tables. What is written in one transaction is there at once, or not at all."""

    def __init__(self) -> None:
        self.sessions: dict[str, StoredSession] = {}
        self.raw: dict[str, dict[int, list[Sample]]] = {}
        self.gaps: dict[tuple[str, int], tuple[int, str]] = {}
        self.predictions: list[PredictionRecord] = []
        self.writers: dict[UUID, int] = {}

    def claim(self, batch: Batch) -> Written | None:
        """None: the batch is to be written. Written: it was. Moved: neither."""
        position = self.writers.get(batch.writer_id, 0)
        if position == batch.start:
            return None
        if position != batch.end:
            raise Moved(position)
        known = [hold for hold in batch.watermarks() if hold[0] in self.sessions]
        fenced = {hold for hold in known if hold[1] < self._fence(hold[0])}
        return Written({hold[0]: self.sessions[hold[0]].durable for hold in known if hold not in fenced}, fenced=fenced)

    def commit(self, batch: Batch) -> Written:
        """Write all of it."""
        self.writers[batch.writer_id] = batch.end
        for record in batch.sessions.values():
            self._upsert(record)
        written = Written()
        reaches, leases = batch.watermarks(), batch.leases()
        for session_id in {session_id for session_id, _ in reaches}:
            mine = sorted(lease for lease in reaches if lease[0] == session_id)
            if session_id not in self.sessions and not self._restore(batch, session_id, written):
                continue
            session = self.sessions[session_id]
            written.fenced |= {lease for lease in mine if lease[1] < session.fence}
            mine = [lease for lease in mine if lease not in written.fenced]
            settled = settle((record for lease in mine for record in leases[lease]), session.durable)
            for raw in settled.raw:
                self._insert(raw)
            for gap in settled.gaps:
                self.gaps[gap.session_id, gap.start] = gap.end, gap.reason
            for start, end in settled.lost:
                self.gaps[session_id, start] = end, "lost"
            for lease in mine:
                session.durable = written.durable[session_id] = max(session.durable, reaches[lease].end)
                session.last_us = max(session.last_us or 0, reaches[lease].last_us or 0)
        self.predictions += batch.predictions
        return written

    def _restore(self, batch: Batch, session_id: str, written: Written) -> bool:
        """Write the row of a session again, whose row is gone; False when no sample says whose it was."""
        written.restored.add(session_id)
        for lease, records in sorted(batch.raw.items()):
            if lease[0] == session_id:
                user_id, start_us = first_of_rows(records[0].rows)
                self._upsert(SessionRecord(session_id, user_id, start_us, None, "{}", lease[1]))
                self.sessions[session_id].durable = max(self.raw.get(session_id, {-1: []})) + 1
        return session_id in self.sessions

    def resume(self, session_id: str) -> StoredSession:
        """Raise the fence, as `SessionStore.resume` does."""
        session = self.sessions.setdefault(session_id, StoredSession())
        session.fence += 1
        session.end_us = None
        return session

    def positions(self, session_id: str) -> list[int]:
        """All positions of a session, each as often as it is there."""
        return sorted(p for p, samples in self.raw.get(session_id, {}).items() for _ in samples)

    def in_gaps(self, session_id: str, reason: str | None = None) -> set[int]:
        """All positions in its gaps."""
        return {
            position
            for (sid, start), (end, why) in self.gaps.items()
            if sid == session_id and reason in (None, why)
            for position in range(start, end)
        }

    def _fence(self, session_id: str) -> int:
        session = self.sessions.get(session_id)
        return session.fence if session else 0

    def _upsert(self, record: SessionRecord) -> None:
        session = self.sessions.setdefault(record.session_id, StoredSession(record.fence))
        if session.fence <= record.fence:
            session.fence, session.end_us, session.record = record.fence, record.end_us, record

    def _insert(self, record: RawRecord) -> None:
        rows = decode_rows(record.rows, record.end - record.position)
        table = self.raw.setdefault(record.session_id, {})
        for i, (time_us, values) in enumerate(zip(rows.times_us.tolist(), rows.samples.tolist(), strict=True)):
            table.setdefault(record.position + i, []).append(Sample(time_us, tuple(values)))


class MemoryStorage:
    """A BatchStore on such a database, that fails when it is told to."""

    def __init__(self, database: Database | None = None) -> None:
        self.database = database or Database()
        self.batches: list[Batch] = []  # committed
        self.tried: list[tuple[int, int]] = []
        self.starts_s: list[float] = []
        self.n_opened = 0
        self.is_alone = False  # the batch that was tried last
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail: Callable[[], None] = lambda: None  # before the commit
        self.refuse: Callable[[Batch], None] = lambda batch: None  # one that is not committed yet
        self.lose: Callable[[], None] = lambda: None  # after it

    async def open(self) -> None:
        self.n_opened += 1
        self.fail()

    async def position(self, writer_id: UUID) -> int:
        self.fail()
        return self.database.writers.get(writer_id, 0)

    async def finish(self, writer_id: UUID) -> None:
        self.fail()

    async def ping(self) -> None:
        self.fail()

    async def outcome(self, batch: Batch) -> Written | None:
        self.fail()
        return self.database.claim(batch)

    async def write(self, batch: Batch, *, is_alone: bool = False) -> Written:
        self.is_alone = is_alone
        self.tried.append((batch.start, batch.end))
        self.starts_s.append(monotonic())
        await self.gate.wait()
        self.fail()
        if written := self.database.claim(batch):
            return written
        self.refuse(batch)
        written = self.database.commit(batch)
        self.batches.append(batch)
        self.lose()
        return written

    async def close(self) -> None: ...

    def go_away(self, error: Exception | None = None) -> None:
        def fail() -> None:
            raise error or StorageError("no route to host")

        self.fail = fail

    def come_back(self) -> None:
        self.fail = lambda: None

    def positions(self, session_id: str) -> list[int]:
        """The positions of a session; fails where a sample is not the one of its position."""
        for position, samples in self.database.raw.get(session_id, {}).items():
            assert all(sample.values[0] == position for sample in samples)
            assert all(sample.time_us == T0_US + PERIOD_US * position for sample in samples)
        return self.database.positions(session_id)
