"""Sessions: the rows of `sessions`, what they lack, and the resume that raises a fence."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from zander.database.connection import Pool, Row
from zander.database.samples import MAX_GAPS, SampleReader, StoredGap
from zander.errors import Forbidden, Unavailable
from zander.streams.session import StoredSession
from zander.wire.chunk import Chunk
from zander.wire.messages import Gap

MAX_DEVICE_BYTES = 1 << 20  # of device_info, read at once: decoded it takes up to twenty times as much
MAX_LATER = 8  # read at once, for the same reason

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
ORDER BY start_time, session_id LIMIT {MAX_LATER}
"""
NEWEST = f"""
SELECT {SESSION} FROM (
    SELECT *, sum(coalesce(octet_length(device_info::text), 0)) OVER (
        ORDER BY start_time DESC, session_id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS n_before FROM sessions
    WHERE ($1::text IS NULL OR user_id = $1)
    AND ($2::uuid IS NULL OR (start_time, session_id)
        < (SELECT start_time, session_id FROM sessions WHERE session_id = $2))
    ORDER BY start_time DESC, session_id DESC LIMIT $3
) AS newest
WHERE n_before IS NULL OR n_before < {MAX_DEVICE_BYTES}
ORDER BY start_time DESC, session_id DESC
"""

MISSING = """
SELECT session_id, count(*), sum(to_position - from_position)::bigint FROM gaps WHERE session_id = ANY($1) GROUP BY 1
"""


class Missing(NamedTuple):
    """The number of a session's gaps, and of the samples missing in them."""

    n_gaps: int
    n_samples: int


class DatabaseSessions:
    """The sessions of the database, with their samples by position (`hub.interfaces.SessionStore`).

    All methods raise Unavailable without the database; session ids must be UUIDs. Resumes have a pool of their own: no
    relay waits for somebody's history. Samples come from a replica, where there is one and as far as it is.
    """

    def __init__(self, pool: Pool, resume_pool: Pool, replica_pool: Pool | None = None) -> None:
        self._pool = pool
        self._resume_pool = resume_pool
        self._samples = SampleReader(pool)
        self._replica = DatabaseSessions(replica_pool, resume_pool) if replica_pool else None

    async def resume(self, user_id: str, session_id: str, now_us: int, device_info: str) -> StoredSession:
        """Raise the session's fence, so that only the caller writes to it; begin it where it is unknown.

        `device_info` (JSON text) is used for a new one only. Forbidden where the session is another user's.
        """
        found = await self._resume_pool.fetch(RESUME, session_id, user_id, now_us, device_info)
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
        """Return the `n` newest sessions, of a user or of all, that began before the session `before`.

        They may be fewer, but one at least if there is one: until their `device_info` has MAX_DEVICE_BYTES.
        """
        return [_session(row) for row in await self._pool.fetch(NEWEST, user_id, before, n)]

    async def samples(self, session: StoredSession, position: int, n: int) -> list[Chunk | Gap]:
        """Return the first `n` durable samples at or after `position`, and what the relay skipped there."""
        if self._replica and (found := await self._replica._whole_samples(session, position, n)):
            return found
        stored = await self.session(session.session_id)  # more of it may be durable by now
        return await self._samples.read(stored, position, n) if stored else []

    async def _whole_samples(self, session: StoredSession, position: int, n: int) -> list[Chunk | Gap]:
        """Return `samples` of a replica up to the first hole, none where it is away.

        What it lacks may only be late, and is the database's to give or to miss. Its answers may come from several
        servers, each of which is somewhere else: that it has got as far as it says is not enough.
        """
        with suppress(Unavailable):
            return _without_hole(await self.samples(session, position, n), position)
        return []

    async def gaps(self, session_id: str, start: int, end: int, n: int = MAX_GAPS) -> list[StoredGap]:
        """Return the first `n` gaps between two positions, as they are stored."""
        return await self._samples.gaps(session_id, start, end, n)

    async def missing(self, session_ids: Iterable[str]) -> dict[str, Missing]:
        """Return what is missing of each session that has gaps."""
        return {str(row[0]): Missing(row[1], row[2]) for row in await self._pool.fetch(MISSING, list(session_ids))}


def _without_hole(items: list[Chunk | Gap], position: int) -> list[Chunk | Gap]:
    """Return the items that follow each other from a position on."""
    found = []
    for item in items:
        if (item.start if isinstance(item, Gap) else item.position) > position:
            break
        found.append(item)
        position = max(position, item.end)
    return found


def _session(row: Row) -> StoredSession:
    session_id, user_id, start_us, end_us, device_info, *durable = row
    device: dict[str, Any] = msgspec.json.decode(device_info) if device_info else {}
    return StoredSession(str(session_id), user_id, start_us, end_us, device, *durable)
