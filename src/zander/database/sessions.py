"""What the database holds, read when somebody asks for it: sessions, what they lack, and their samples."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from zander.database import rows
from zander.database.connection import Pool, Row
from zander.database.history import Past, in_windows
from zander.database.seek import Sight, seek
from zander.errors import Forbidden
from zander.streams.stored import StoredSession
from zander.wire.chunk import MAX_POSITION, Chunk, Origin
from zander.wire.messages import Gap

N_READING = 4
N_RESUMING = 2  # apart, so that no relay waits for somebody's history
MAX_MARKS = 4096
MAX_GAPS = 1 << 31
MAX_GAPS_SKIPPED = 64  # one after the other; behind more a reading begins too early, and reads over them
STEP_US = 10_000  # a sample, where the device does not say: 100 Hz
MARGIN_US = 100_000  # for a clock that jitters

SESSION = "session_id, user_id, start_time, end_time, device_info, durable_position, durable_time, fence"
RESUME = f"""
INSERT INTO sessions (session_id, user_id, start_time, device_info, fence) VALUES ($1, $2, $3, $4, 1)
ON CONFLICT (session_id) DO UPDATE SET fence = sessions.fence + 1, end_time = NULL, writer_id = NULL
WHERE sessions.user_id = excluded.user_id
RETURNING {SESSION}
"""
BY_ID = f"SELECT {SESSION} FROM sessions WHERE session_id = $1"
LATER = f"""
SELECT {SESSION} FROM sessions
WHERE user_id = $1 AND (start_time, session_id) > (SELECT start_time, session_id FROM sessions WHERE session_id = $2)
ORDER BY start_time, session_id LIMIT 100
"""
NEWEST = f"""
SELECT {SESSION} FROM sessions
WHERE ($1::text IS NULL OR user_id = $1)
AND ($2::uuid IS NULL OR (start_time, session_id) < (SELECT start_time, session_id FROM sessions WHERE session_id = $2))
ORDER BY start_time DESC, session_id DESC LIMIT $3
"""

GAPS = """
SELECT from_position, to_position, reason, noticed_at FROM gaps
WHERE session_id = $1 AND to_position > $2 AND from_position < $3 ORDER BY from_position LIMIT $4
"""
LACKS = """
SELECT session_id, count(*), sum(to_position - from_position)::bigint FROM gaps WHERE session_id = ANY($1) GROUP BY 1
"""

OF_SESSION = "FROM raw_eeg WHERE user_id = $1 AND session_id = $2 AND timestamp >= $3 AND timestamp < $4"
FIRST = f"SELECT timestamp {OF_SESSION} ORDER BY timestamp LIMIT 1"
LOWEST = f"SELECT min(position) {OF_SESSION}"
RAW = f"SELECT {rows.RAW_FIELDS} {OF_SESSION} AND position >= $5 ORDER BY timestamp, position LIMIT $6"


class StoredGap(NamedTuple):
    """Positions from `start` to `end` (not included) that are not there."""

    start: int
    end: int
    reason: str
    noticed_us: int


class Lack(NamedTuple):
    """How many gaps a session has, and how many samples are missing in them."""

    n_gaps: int
    n_missing: int


class Archive:
    """The database, for questions; each method raises Unavailable when it is away. Session ids must be UUIDs."""

    def __init__(self, database_url: str) -> None:
        self._pool = Pool(database_url, N_READING)
        self._resuming = Pool(database_url, N_RESUMING)
        self._marks: dict[tuple[str, int], int] = {}  # the time up to which a session was read to a position
        self.past = Past(self._pool)

    async def close(self) -> None:
        """Close the connections, whatever waits for them."""
        await self._pool.close()
        await self._resuming.close()

    # Sessions.

    async def resume(self, user_id: str, session_id: str, now_us: int, device_info: str) -> StoredSession:
        """Raise the session's fence, so that only the caller writes to it; begin it where it is unknown.

        `device_info` (JSON) counts for a new one only. Forbidden where the session is another user's.
        """
        found = await self._resuming.fetch(RESUME, session_id, user_id, now_us, device_info)
        if not found:
            raise Forbidden(f"expected a session of user {user_id}, got {session_id}")
        return _session(found[0])

    async def session(self, session_id: str) -> StoredSession | None:
        """Return a session; None where it is unknown."""
        found = await self._pool.fetch(BY_ID, session_id)
        return _session(found[0]) if found else None

    async def later_sessions(self, user_id: str, session_id: str) -> list[StoredSession]:
        """Return the first of the user's sessions that began after that one, oldest first."""
        return [_session(row) for row in await self._pool.fetch(LATER, user_id, session_id)]

    async def sessions(self, user_id: str | None, before: str | None, n: int) -> list[StoredSession]:
        """Return the `n` newest sessions, of a user or of all, that began before the session `before`."""
        return [_session(row) for row in await self._pool.fetch(NEWEST, user_id, before, n)]

    # What they lack.

    async def stored_gaps(self, session_id: str, start: int, end: int, n: int = MAX_GAPS) -> list[StoredGap]:
        """Return the first `n` gaps between two positions, as they are stored."""
        return [StoredGap(*row) for row in await self._pool.fetch(GAPS, session_id, start, end, n)]

    async def lacks(self, session_ids: Iterable[str]) -> dict[str, Lack]:
        """Say for each session that has gaps what it lacks."""
        return {str(row[0]): Lack(row[1], row[2]) for row in await self._pool.fetch(LACKS, list(session_ids))}

    # Samples.

    async def samples(self, session: StoredSession, position: int, n: int) -> list[Chunk | Gap]:
        """Return the first `n` durable samples at `position` or behind it, and what the relay skipped before them."""
        stored = await self.session(session.session_id)
        if stored is None or stored.durable_us is None or position >= stored.durable_position:
            return []
        origin = session.origin
        key = (origin.user_id, origin.session_id)

        async def read(start_us: int, end_us: int, n: int) -> list[Row]:
            return await self._pool.fetch(RAW, *key, start_us, end_us, position, n)

        start_us = self._marks.get((origin.session_id, position)) or await self._seek(stored, position)
        step_us = round(n * (origin.period_us or STEP_US)) + MARGIN_US
        found = await in_windows(self._first(origin), read, start_us, stored.durable_us + 1, step_us=step_us, n=n)
        chunks = rows.chunks(found, lambda _: origin)
        if chunks:
            self._mark(chunks[-1])
        return await self._with_gaps(position, chunks)

    async def _with_gaps(self, position: int, chunks: list[Chunk]) -> list[Chunk | Gap]:
        """Put what the relay skipped before the chunk behind it; the rest of a hole was lost."""
        ends = [position, *(chunk.end for chunk in chunks[:-1])]
        if all(end >= chunk.position for end, chunk in zip(ends, chunks, strict=False)):
            return [*chunks]
        session_id = chunks[0].origin.session_id
        gaps = await self.stored_gaps(session_id, position, chunks[-1].position)
        items: list[Chunk | Gap] = []
        for end, chunk in zip(ends, chunks, strict=True):
            items += [
                Gap(session_id, max(end, gap.start), gap.end, "relay")
                for gap in gaps
                if gap.reason == "relay" and end < gap.end <= chunk.position
            ]
            items.append(chunk)
        return items

    async def _seek(self, stored: StoredSession, position: int) -> int:
        """Return a time from which to read to come upon a position soon."""
        first, key = self._first(stored.origin), (stored.user_id, stored.session_id)

        async def look(start_us: int, end_us: int) -> Sight | None:
            at_us = await first(start_us, end_us)
            if at_us is None:
                return None
            return Sight(at_us, (await self._pool.fetch(LOWEST, *key, at_us, at_us + 1))[0][0])

        for gap in await self.stored_gaps(stored.session_id, position, MAX_POSITION, MAX_GAPS_SKIPPED):
            if gap.start <= position:  # what is not there cannot be found: look for what follows
                position = max(position, gap.end)
        n_behind = max(0, stored.durable_position - position)
        return await seek(look, position, stored.durable_us or 0, round(n_behind * stored.origin.period_us) + MARGIN_US)

    def _first(self, origin: Origin) -> Callable[[int, int], Awaitable[int | None]]:
        """Return what finds the time of a session's first sample between two times."""

        async def first(start_us: int, end_us: int) -> int | None:
            found = await self._pool.fetch(FIRST, origin.user_id, origin.session_id, start_us, end_us)
            return found[0][0] if found else None

        return first

    def _mark(self, chunk: Chunk) -> None:
        """Remember where a reading ended, for the one that goes on there."""
        self._marks[chunk.origin.session_id, chunk.end] = int(chunk.times_us[-1])
        if len(self._marks) > MAX_MARKS:
            del self._marks[next(iter(self._marks))]


def _session(row: Row) -> StoredSession:
    session_id, user_id, start_us, end_us, device_info, *durable = row
    device: dict[str, Any] = msgspec.json.decode(device_info) if device_info else {}
    return StoredSession(str(session_id), user_id, start_us, end_us, device, *durable)
