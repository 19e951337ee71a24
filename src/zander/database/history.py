"""Reader by time: the samples, features and predictions of a user, page by page.

A page is read in windows of time: where the server keeps rows in columns it has to sort what it finds, and without an
end it might find years. It is read in pieces, too: nothing else on the event loop has to wait for a whole page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

from zander.database import rows
from zander.database.connection import Pool, Row
from zander.database.late import of_both
from zander.journal.records import EDGE_CLASSIFIER, EDGE_PREDICTION_TYPE
from zander.wire.chunk import MAX_POSITION, Chunk, Origin
from zander.wire.messages import Note

PIECE_SAMPLES = 256
PIECE_NOTES = 512
FIRST_NOTES = 4  # are read first: how many are a piece, their length says; 1e300 takes 301 characters in a jsonb
NOTES_AT_ONCE = 64  # made of rows in one iteration of the event loop
PIECE_CHARACTERS = 256 << 10

# A page ends early rather than grow beyond this: there may be 1,024 channels, and a prediction 64 KiB.
MAX_RAW_BYTES = 1 << 20
MAX_TEXT_CHARACTERS = 4 << 20
MAX_RUNS = 256

RAW_STEP_US = 10_000  # from sample to sample, as a guess: 100 Hz
NOTE_STEP_US = 1_000_000
MAX_TIME_US = 10**18  # in the year 33658; a timestamptz goes further

OF_USER = "user_id = $1 AND timestamp >= $2 AND timestamp < $3"
FIRST_RAW = f"{of_both('timestamp', 'raw_eeg', OF_USER, 'timestamp', '1')} ORDER BY timestamp LIMIT 1"
RAW_AFTER = f"{OF_USER} AND (timestamp, session_id, position) > ($4, $5, $6)"
RAW_ORDER = "timestamp, session_id, position"
RAW = f"{of_both(rows.RAW_FIELDS, 'raw_eeg', RAW_AFTER, RAW_ORDER, '$7')} ORDER BY {RAW_ORDER} LIMIT $7"

# Features are stored as predictions of the relay.
NOTES_OF_USER = f"""
{OF_USER} AND (prediction_type = '{EDGE_PREDICTION_TYPE}' AND classifier_name = '{EDGE_CLASSIFIER}') = $4
"""
FIRST_NOTE = f"{of_both('timestamp', 'predictions', NOTES_OF_USER, 'timestamp', '1')} ORDER BY timestamp LIMIT 1"
NOTES_AFTER = f"{NOTES_OF_USER} AND (timestamp, serial) >= ($5, $6)"
NOTE_ORDER = "timestamp, serial, session_id, prediction_type, classifier_name, classifier_version, data"
NOTES = f"""
{of_both(rows.NOTE_FIELDS, "predictions", NOTES_AFTER, NOTE_ORDER, "$7::bigint + $8::bigint")}
ORDER BY {NOTE_ORDER} LIMIT $7 OFFSET $8
"""
HAS_USER = "SELECT 1 FROM sessions WHERE user_id = $1 LIMIT 1"

TimeUs = Annotated[int, Meta(ge=0, le=MAX_TIME_US)]


class RawPageToken(Struct, array_like=True, frozen=True):
    """The sample after which a page of raw begins."""

    time_us: TimeUs
    session_id: UUID = UUID(int=0)
    position: Annotated[int, Meta(ge=-1, le=MAX_POSITION)] = -1


class NotePageToken(Struct, array_like=True, frozen=True):
    """The row at which a page of notes begins, after the first `n` of its place: those of old have no serial."""

    time_us: TimeUs
    serial: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    n: Annotated[int, Meta(ge=0, le=1 << 32)] = 0

    def after(self, found: list[Row]) -> NotePageToken:
        """Return the token of what follows rows that were read from this one on."""
        if not found:
            return self
        place = found[-1]["timestamp"], found[-1]["serial"]
        n = sum((row["timestamp"], row["serial"]) == place for row in found)
        return NotePageToken(*place, n + (self.n if place == (self.time_us, self.serial) else 0))


class History:
    """The raw, features and predictions of users, by time; all methods raise Unavailable without the database."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def has_user(self, user_id: str) -> bool:
        """Return whether the user ever had a session."""
        return bool(await self._pool.fetch(HAS_USER, user_id))

    async def raw_page(
        self, user_id: str, token: RawPageToken, end_us: int, *, limit: int, max_runs: int = MAX_RUNS
    ) -> tuple[list[Chunk], RawPageToken | None]:
        """Read up to `limit` samples after the token, with times below `end_us`, by time, session and position.

        They are at most `max_runs` runs without a hole. Return them and the token of the next page, None at the end.
        """
        chunks: list[Chunk] = []
        n, nbytes = 0, 0
        while n < limit and nbytes < MAX_RAW_BYTES and len(chunks) < max_runs:
            found = await self._raw(user_id, token, end_us, min(PIECE_SAMPLES, limit - n))
            if not found:
                return chunks, None
            found = found[: max_runs - len(chunks)]
            chunks += found
            n += sum(map(len, found))
            nbytes += sum(chunk.samples.nbytes for chunk in found)
            last = found[-1]
            token = RawPageToken(int(last.times_us[-1]), UUID(last.origin.session_id), last.end - 1)
        return chunks, token if await self._raw(user_id, token, end_us, 1) else None

    async def notes_page(
        self, user_id: str, kind: Literal["features", "prediction"], token: NotePageToken, end_us: int, *, limit: int
    ) -> tuple[list[Note], NotePageToken | None]:
        """Read up to `limit` features or predictions after the token, with times below `end_us`, by time.

        Return them and the token of the next page, None at the end.
        """
        notes: list[Note] = []
        n_characters, n = 0, FIRST_NOTES
        while len(notes) < limit and n_characters < MAX_TEXT_CHARACTERS:
            found = await self._notes(user_id, kind, token, end_us, min(n, PIECE_NOTES, limit - len(notes)))
            if not found:
                return notes, None
            token = token.after(found)
            for i in range(0, len(found), NOTES_AT_ONCE):
                notes += map(rows.features if kind == "features" else rows.prediction, found[i : i + NOTES_AT_ONCE])
                await asyncio.sleep(0)
            n_characters += (n_read := sum(len(note.text) for note in notes[-len(found) :]))
            n = max(1, PIECE_CHARACTERS * len(found) // n_read)
        return notes, token if await self._notes(user_id, kind, token, end_us, 1) else None

    async def _raw(self, user_id: str, token: RawPageToken, end_us: int, n: int) -> list[Chunk]:
        async def first(start_us: int, end_us: int) -> int | None:
            return _time(await self._pool.fetch(FIRST_RAW, user_id, start_us, end_us))

        async def read(start_us: int, end_us: int, n: int) -> list[Row]:
            after = (token.time_us, token.session_id, token.position)
            return await self._pool.fetch(RAW, user_id, start_us, end_us, *after, n)

        found = await read_in_windows(first, read, token.time_us, end_us, step_us=n * RAW_STEP_US, n=n)
        return rows.chunks(found, cache(lambda session_id: Origin(user_id, session_id, 0.0)))

    async def _notes(
        self, user_id: str, kind: Literal["features", "prediction"], token: NotePageToken, end_us: int, n: int
    ) -> list[Row]:
        is_features = kind == "features"

        async def first(start_us: int, end_us: int) -> int | None:
            return _time(await self._pool.fetch(FIRST_NOTE, user_id, start_us, end_us, is_features))

        async def read(start_us: int, end_us: int, n: int) -> list[Row]:
            serial, n_read = (token.serial, token.n) if start_us == token.time_us else (0, 0)
            return await self._pool.fetch(NOTES, user_id, start_us, end_us, is_features, start_us, serial, n, n_read)

        return await read_in_windows(first, read, token.time_us, end_us, step_us=n * NOTE_STEP_US, n=n)


async def read_in_windows(
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
