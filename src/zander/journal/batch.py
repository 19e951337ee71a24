"""A piece of a journal for one transaction, sorted by table and session, and the interface of the database."""

from __future__ import annotations

from typing import NamedTuple, Protocol
from uuid import UUID

from msgspec import Struct

from zander.journal.records import GapRecord, PredictionRecord, RawRecord, Record, SessionRecord

Lease = tuple[str, int]  # session ID and fence, a number that is raised each time the relay resumes elsewhere


class Watermark(NamedTuple):
    """The end of a session: the position after its last sample or gap, and the last sample's time, if there is one."""

    end: int
    last_us: int | None


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

    def watermarks(self) -> dict[Lease, Watermark]:
        """Return how far this batch makes each session durable."""
        found = {lease: Watermark(records[-1].end, records[-1].last_us) for lease, records in self.raw.items()}
        for gap in self.gaps:
            lease = (gap.session_id, gap.fence)
            watermark = found.get(lease, Watermark(0, None))
            found[lease] = Watermark(max(watermark.end, gap.end), watermark.last_us)
        return found


class Written(Struct):
    """The result of writing a batch."""

    durable: dict[str, int] = {}  # by session: every sample below is in the database, or in a gap
    fenced: set[Lease] = set()  # another node has them by now: nothing of them was written
    n_dead_letters: int = 0


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
