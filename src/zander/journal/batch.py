"""A piece of a journal for one transaction, sorted by table and session, and the interface of the database."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple, Protocol
from uuid import UUID

from msgspec import Struct, structs

from zander.journal.records import GapRecord, PredictionRecord, RawRecord, Record, SessionRecord

Lease = tuple[str, int]  # session ID and fence, a number that is raised each time the relay resumes elsewhere


class Watermark(NamedTuple):
    """The span of a lease in a batch: from the position of its first sample or gap to the one after its last.

    `last_us` is the last sample's time, if there is one. `is_whole`: every position in between is there, once.
    """

    start: int
    end: int
    last_us: int | None
    is_whole: bool = True


class Settled(NamedTuple):
    """The records of a session that its durable position has not passed yet, and the spans that none of them has."""

    raw: list[RawRecord]
    gaps: list[GapRecord]
    lost: list[tuple[int, int]]


class Batch:
    """The records of the journal `writer_id` from offset `start` to `end`."""

    def __init__(self, writer_id: UUID, start: int) -> None:
        self.writer_id = writer_id
        self.start = start
        self.end = start
        self.n_records = 0  # a sample counts as one
        self.sessions: dict[str, SessionRecord] = {}  # the last record of a session has all that is known of it
        self.raw: dict[Lease, list[RawRecord]] = {}
        self.gaps: list[GapRecord] = []
        self.predictions: list[PredictionRecord] = []

    def add(self, record: Record) -> None:
        """Add a record that follows those before."""
        if isinstance(record, RawRecord):
            self.n_records += record.end - record.position
            self.raw.setdefault((record.session_id, record.fence), []).append(record)
            return
        self.n_records += 1
        if isinstance(record, PredictionRecord):
            self.predictions.append(record)
        elif isinstance(record, GapRecord):
            self.gaps.append(record)
        elif record.fence >= self.sessions.get(record.session_id, record).fence:
            self.sessions[record.session_id] = record

    def leases(self) -> dict[Lease, list[RawRecord | GapRecord]]:
        """Return the samples and gaps of each lease, by position.

        The start or end of a session counts as an empty gap, at the position where the session is by then.
        """
        found: dict[Lease, list[RawRecord | GapRecord]] = {lease: [*records] for lease, records in self.raw.items()}
        points = [_point(record) for record in self.sessions.values() if record.next_position]
        for gap in (*self.gaps, *points):
            found.setdefault((gap.session_id, gap.fence), []).append(gap)
        for records in found.values():
            records.sort(key=_span)
        return found

    def watermarks(self) -> dict[Lease, Watermark]:
        """Return how far this batch makes each session durable, and from where."""
        return {lease: _watermark(records) for lease, records in self.leases().items()}


def settle(records: Iterable[RawRecord | GapRecord], durable: int) -> Settled:
    """Sort out what the records of one session, in order, bring beyond a durable position.

    What lies before that is written already, or given up: a journal is read again where the database went back. What
    is missing behind it will never come.
    """
    settled = Settled([], [], [])
    for record in records:
        if (start := _start(record)) > durable:
            settled.lost.append((durable, start))
            durable = start
        if record.end > durable:
            if isinstance(record, RawRecord):
                settled.raw.append(_raw_from(record, durable))
            elif start < durable and settled.gaps and settled.gaps[-1].end == durable:
                settled.gaps[-1] = structs.replace(settled.gaps[-1], end=record.end)  # the same, told once more
            else:
                settled.gaps.append(structs.replace(record, start=durable))
            durable = record.end
    return settled


def _start(record: RawRecord | GapRecord) -> int:
    return record.position if isinstance(record, RawRecord) else record.start


def _span(record: RawRecord | GapRecord) -> tuple[int, int]:
    return _start(record), record.end


def _point(record: SessionRecord) -> GapRecord:
    return GapRecord(record.session_id, record.fence, record.next_position, record.next_position, "lost", 0)


def _watermark(records: list[RawRecord | GapRecord]) -> Watermark:
    is_whole = all(before.end == _start(after) for before, after in pairwise(records))
    last_us = max((record.last_us for record in records if isinstance(record, RawRecord)), default=None)
    return Watermark(_start(records[0]), max(record.end for record in records), last_us, is_whole)


def _raw_from(record: RawRecord, position: int) -> RawRecord:
    """Return the part of a record from a position on."""
    if record.position == position:
        return record
    row_bytes = len(record.rows) // (record.end - record.position)
    rows = record.rows[(position - record.position) * row_bytes :]
    return structs.replace(record, position=position, rows=rows)


class Written(Struct):
    """The result of writing a batch."""

    durable: dict[str, int] = {}  # by session: every sample below is in the database, or in a gap
    restored: set[str] = set()  # sessions that the database had no more: their rows are there again, without a device
    fenced: set[Lease] = set()  # another node has them by now: nothing of them was written
    n_dead_letters: int = 0
    has_late_rows: bool = False  # which are to be moved to their tables


class BatchStore(Protocol):
    """The database, as the recorder needs it. After a StorageError, `open` is called before anything else."""

    async def open(self) -> None:
        """Connect and prepare the tables; StorageError when that is not possible now."""

    async def position(self, writer_id: UUID) -> int:
        """Return the offset up to which a journal is committed; 0 for an unknown one."""

    async def write(self, batch: Batch, *, is_alone: bool = False) -> Written:
        """Write all of the batch or nothing, once; StorageError when it has to be tried again.

        Moved when the journal is committed up to another offset than the batch starts from. `is_alone`: a single record
        that has failed before. It goes to the dead letters, whatever the reason, if the database takes others.
        """

    async def outcome(self, batch: Batch) -> Written | None:
        """Return the result of a batch whose write failed; None: it is not committed, and never will be.

        Moved when the journal is committed up to another offset than the batch's start and end; StorageError.
        """

    async def finish(self, writer_id: UUID) -> None:
        """End the sessions that a dead process had open; StorageError."""

    async def ping(self) -> None:
        """Check the connection; StorageError when it is broken."""

    async def close(self) -> None:
        """Close the connection."""
