"""What a recorder counts, and `/stats` shows."""

from __future__ import annotations

from msgspec import Struct


class RecorderStats(Struct):
    """Counts since the start; a record is a sample, a prediction, a gap, or the start or end of a session."""

    online: bool = False
    taking: bool = True  # the journal has room
    pending_records: int = 0  # of this process
    pending_bytes: int = 0  # in the journal, what dead processes left included
    oldest_pending_seconds: float = 0.0
    journal_bytes: int = 0  # on disk
    written_records: int = 0
    written_batches: int = 0
    dropped_records: int = 0  # found no room
    dead_letters: int = 0  # the database would never take them
    last_batch_records: int = 0
    last_batch_seconds: float = 0.0
    last_error: str | None = None
