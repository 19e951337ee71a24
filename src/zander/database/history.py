"""What the database holds of a user from a time to another, in order, read piece by piece.

It is read in windows of time: where the server keeps rows in columns it has to sort what it finds, and without an end
it might find years.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from zander.database import rows
from zander.database.connection import Pool, Row
from zander.wire.chunk import MAX_POSITION, Chunk, Origin
from zander.wire.messages import Note

RAW_STEP_US = 10_000  # a row, as a guess: 100 Hz
NOTE_STEP_US = 1_000_000
MAX_TIME_US = 10**18  # in the year 33658; a timestamptz goes further

OF_USER = "FROM raw_eeg WHERE user_id = $1 AND timestamp >= $2 AND timestamp < $3"
FIRST_RAW = f"SELECT timestamp {OF_USER} ORDER BY timestamp LIMIT 1"
RAW = f"""
SELECT {rows.RAW_FIELDS} {OF_USER} AND (timestamp, session_id, position) > ($4, $5, $6)
ORDER BY timestamp, session_id, position LIMIT $7
"""

# Features are stored as predictions of the relay.
NOTES_OF_USER = """
FROM predictions WHERE user_id = $1 AND timestamp >= $2 AND timestamp < $3
AND (prediction_type = 'workload_edge' AND classifier_name = 'edge_relay') = $4
"""
FIRST_NOTE = f"SELECT timestamp {NOTES_OF_USER} ORDER BY timestamp LIMIT 1"
NOTES = f"""
SELECT {rows.NOTE_FIELDS} {NOTES_OF_USER}
ORDER BY timestamp, session_id, prediction_type, classifier_name, classifier_version, data LIMIT $5 OFFSET $6
"""
KNOWN = "SELECT 1 FROM sessions WHERE user_id = $1 LIMIT 1"

TimeUs = Annotated[int, Meta(ge=0, le=MAX_TIME_US)]


class RawMark(Struct, array_like=True, frozen=True):
    """Behind which sample a reading goes on."""

    time_us: TimeUs
    session_id: UUID = UUID(int=0)
    position: Annotated[int, Meta(ge=-1, le=MAX_POSITION)] = -1


class NoteMark(Struct, array_like=True, frozen=True):
    """Behind how many of those at a time a reading goes on: neither features nor predictions have a number."""

    time_us: TimeUs
    n: Annotated[int, Meta(ge=0, le=1 << 32)] = 0

    def behind(self, notes: list[Note]) -> NoteMark:
        """Return the mark behind notes that were read from this one on."""
        if not notes:
            return self
        time_us = notes[-1].time_us
        n = sum(note.time_us == time_us for note in notes)
        return NoteMark(time_us, n + (self.n if time_us == self.time_us else 0))


class Past:
    """The raw, features and predictions of users; everything raises Unavailable when the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def knows(self, user_id: str) -> bool:
        """Say whether the user ever had a session."""
        return bool(await self._pool.fetch(KNOWN, user_id))

    async def raw(self, user_id: str, mark: RawMark, end_us: int, n: int) -> list[Chunk]:
        """Return the `n` samples behind the mark, by time, session and position; all have times below `end_us`."""

        async def first(start_us: int, end_us: int) -> int | None:
            return _time(await self._pool.fetch(FIRST_RAW, user_id, start_us, end_us))

        async def read(start_us: int, end_us: int, n: int) -> list[Row]:
            behind = (mark.time_us, mark.session_id, mark.position)
            return await self._pool.fetch(RAW, user_id, start_us, end_us, *behind, n)

        found = await in_windows(first, read, mark.time_us, end_us, step_us=n * RAW_STEP_US, n=n)
        return rows.chunks(found, cache(lambda session_id: Origin(user_id, session_id, 0.0)))

    async def notes(
        self, user_id: str, kind: Literal["features", "prediction"], mark: NoteMark, end_us: int, n: int
    ) -> list[Note]:
        """Return the `n` features or predictions behind the mark, by time; all have times below `end_us`."""
        is_features = kind == "features"

        async def first(start_us: int, end_us: int) -> int | None:
            return _time(await self._pool.fetch(FIRST_NOTE, user_id, start_us, end_us, is_features))

        async def read(start_us: int, end_us: int, n: int) -> list[Row]:
            n_read = mark.n if start_us == mark.time_us else 0
            return await self._pool.fetch(NOTES, user_id, start_us, end_us, is_features, n, n_read)

        found = await in_windows(first, read, mark.time_us, end_us, step_us=n * NOTE_STEP_US, n=n)
        return [rows.features(row) if is_features else rows.prediction(row) for row in found]


async def in_windows(
    first: Callable[[int, int], Awaitable[int | None]],
    read: Callable[[int, int, int], Awaitable[list[Row]]],
    start_us: int,
    end_us: int,
    *,
    step_us: int,
    n: int,
) -> list[Row]:
    """Read `n` rows, or all there are, in windows that double in length; each begins at the `first` row left."""
    found: list[Row] = []
    while len(found) < n and (at_us := await first(start_us, end_us)) is not None:
        start_us = min(at_us + step_us, end_us)
        found += await read(at_us, start_us, n - len(found))
        step_us *= 2
    return found


def _time(found: list[Row]) -> int | None:
    return found[0][0] if found else None
