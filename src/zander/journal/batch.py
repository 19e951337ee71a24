"""What one transaction writes, a piece of a journal sorted by table and session, and where it goes."""

from __future__ import annotations

from typing import NamedTuple, Protocol
from uuid import UUID

from msgspec import Struct

from zander.journal.records import GapRecord, PredictionRecord, RawRecord, Record, SessionRecord

Hold = tuple[str, int]  # a session, and the fence of who holds it: raised each time its relay resumes elsewhere


class Reach(NamedTuple):
    """How far a session comes: the position after its last sample, and the time of that, if there is one."""

    end: int
    last_us: int | None


class Batch:
    """The records of the journal `writer_id` from offset `start` to `end`."""

    def __init__(self, writer_id: UUID, start: int) -> None:
        self.writer_id = writer_id
        self.start = start
        self.end = start
        self.n_records = 0  # a sample counts as one
        self.sessions: dict[str, SessionRecord] = {}  # the last word on a session holds all of it
        self.raw: dict[Hold, list[RawRecord]] = {}
        self.gaps: list[GapRecord] = []
        self.predictions: list[PredictionRecord] = []

    def add(self, record: Record) -> None:
        """Sort a record in."""
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

    def reaches(self) -> dict[Hold, Reach]:
        """Return how far each session comes with this batch."""
        found = {hold: Reach(records[-1].end, records[-1].last_us) for hold, records in self.raw.items()}
        for gap in self.gaps:
            hold = (gap.session_id, gap.fence)
            reach = found.get(hold, Reach(0, None))
            found[hold] = Reach(max(reach.end, gap.end), reach.last_us)
        return found


class Written(Struct):
    """What became of a batch."""

    durable: dict[str, int] = {}  # by session: every sample below is in the database, or in a gap
    fenced: set[Hold] = set()  # sessions that somebody else holds by now: nothing of them was written
    n_dead_letters: int = 0


class Storage(Protocol):
    """Where batches go. After a StorageError, `open` is called before anything else."""

    async def open(self) -> None:
        """Connect and prepare the tables; StorageError when that is not possible now."""

    async def position(self, writer_id: UUID) -> int:
        """Return the offset up to which a journal is committed; 0 for an unknown one."""

    async def write(self, batch: Batch) -> Written:
        """Write all of the batch or nothing, once; StorageError when it is to be tried again.

        Moved: the journal is committed up to another offset than the batch starts from.
        """

    async def finish(self, writer_id: UUID) -> None:
        """End the sessions that a dead process had open; StorageError."""

    async def ping(self) -> None:
        """Ask for a sign of life; StorageError when there is none."""

    async def close(self) -> None:
        """Let go of the database."""
