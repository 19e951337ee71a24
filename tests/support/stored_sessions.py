"""Sessions in the database that no node has written, sample by sample as a test wants them."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from support.databases import connected
from zander.database.connection import Pool
from zander.database.indexes import index_empty_tables
from zander.database.migrations import migrate
from zander.database.sessions import DatabaseSessions
from zander.database.timescale import tune
from zander.streams.session import StoredSession

T0_US = 1_764_000_000_123_457
DEVICE = {"sampling_rate": 100, "channel_names": ["C3", "C4"]}

_TIME = "timestamptz 'epoch' + {} * interval '1 us'"


async def prepare(url: str) -> None:
    """Make the tables, as a node does at its start."""
    async with connected(url) as connection:
        await migrate(connection)
        await tune(connection, None, 24.0)
        await index_empty_tables(connection)


async def compress(url: str) -> None:
    """Turn all raw and predictions that there are into columns; a plain PostgreSQL has none."""
    async with connected(url) as connection:
        if await connection.fetchval("SELECT to_regproc('compress_chunk')") is None:
            return
        for table in ("raw_eeg", "predictions"):
            await connection.fetch(f"SELECT compress_chunk(c, true) FROM show_chunks('{table}') AS c")


@asynccontextmanager
async def opened_sessions(url: str) -> AsyncIterator[DatabaseSessions]:
    """Read sessions as a node does, with as many connections."""
    pools = Pool(url, 4), Pool(url, 2)
    yield DatabaseSessions(*pools)
    for pool in pools:
        await pool.close()


class PastSession:
    """A session of a user, and what is written of it."""

    def __init__(self, url: str, user_id: str, start_us: int = T0_US) -> None:
        self.url = url
        self.user_id = user_id
        self.session_id = str(uuid.uuid4())
        self.start_us = start_us

    async def begin(self, device: dict[str, Any] | None = None) -> PastSession:
        """Write its row."""
        await self._execute(
            f"INSERT INTO sessions (session_id, user_id, start_time, device_info)"
            f" VALUES ($1, $2, {_TIME.format('$3::bigint')}, $4)",
            *(self.session_id, self.user_id, self.start_us, json.dumps(DEVICE if device is None else device)),
        )
        return self

    async def write(self, times_us: dict[int, int], n_channels: int = 2) -> None:
        """Write samples, a time by position, and how far that is durable. The first channel holds the position."""
        positions, times = list(times_us), list(times_us.values())
        await self._execute(
            f"INSERT INTO raw_eeg SELECT {_TIME.format('t')}, $1, $2, p, ARRAY[p]::real[] || $5::real[]"
            " FROM unnest($3::bigint[], $4::bigint[]) AS given (p, t)",
            *(self.session_id, self.user_id, positions, times, [float("nan")] * (n_channels - 1)),
        )
        await self.reach(max(positions) + 1, max(times))

    async def reach(self, position: int, time_us: int) -> None:
        """Set how far it is durable."""
        await self._execute(
            f"UPDATE sessions SET durable_position = $2, durable_time = {_TIME.format('$3::bigint')}"
            " WHERE session_id = $1",
            *(self.session_id, position, time_us),
        )

    async def gap(self, start: int, end: int, reason: str = "relay") -> None:
        """Write a gap, noticed at the session's start."""
        await self._execute(
            f"INSERT INTO gaps VALUES ($1, $2, $3, $4, {_TIME.format('$5::bigint')})",
            *(self.session_id, start, end, reason, self.start_us),
        )

    async def note(
        self, time_us: int, data: dict[str, Any], kind: str = "workload_edge", by: str = "edge_relay"
    ) -> None:
        """Write features; or, of another kind and by somebody else, a prediction."""
        await self._execute(
            f"INSERT INTO predictions VALUES ({_TIME.format('$1::bigint')}, $2, $3, $4, $5, $6)",
            *(time_us, self.session_id, self.user_id, kind, by, json.dumps(data)),
        )

    async def _execute(self, statement: str, *values: object) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement, *values)
        finally:
            await connection.close()


def every(step_us: int, positions: Iterable[int], start_us: int = T0_US) -> dict[int, int]:
    """Give each position its time, of samples that come regularly."""
    return {position: start_us + step_us * position for position in positions}


async def stored(store: DatabaseSessions, session: PastSession) -> StoredSession:
    """Return what the database has of a session."""
    found = await store.session(session.session_id)
    assert found
    return found
