"""Indexes: new tables have them at once, others get them beside a running service, and what reads goes along them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import time
from typing import Any

import asyncpg
import pytest

from support.databases import connected, opened
from support.stored_sessions import PastSession, every, prepare, stored
from zander.database import migrations as migrations_module
from zander.database.connection import READ_SETTINGS, Connection, Pool, Row, connect
from zander.database.history import MAX_TIME_US, History, NotePageToken, RawPageToken
from zander.database.indexes import INDEXES, build_missing, missing
from zander.database.migrations import migrate, migrations
from zander.database.sessions import DatabaseSessions
from zander.database.timescale import tune

Begin = Callable[..., Awaitable[PastSession]]

OLD = ["predictions_by_user", "raw_eeg_by_user"]
NEW = [index.name for index in INDEXES]
ROWS = """
INSERT INTO raw_eeg
SELECT now() - n * interval '1 hour', gen_random_uuid(), 'user-' || n % 7, n, ARRAY[n]::real[]
FROM generate_series(0, 99) AS n
"""


@asynccontextmanager
async def upkeep(url: str) -> AsyncIterator[Connection]:
    """Connect as a node does for its maintenance."""
    connection = await connect(url, {}, 10)
    try:
        yield connection
    finally:
        connection.terminate()


async def indexes(connection: Any) -> dict[str, bool]:
    """The names of the indexes in question, and whether each is whole."""
    rows = await connection.fetch(
        "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid"
        " WHERE relname = ANY($1) AND relnamespace = current_schema()::regnamespace",
        [*OLD, *NEW],
    )
    return dict(rows)


async def of_former_version(url: str) -> None:
    """Make the tables as they were, with rows."""
    async with connected(url) as connection:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(migrations_module, "migrations", lambda: migrations()[:2])
            await migrate(connection)
        await tune(connection, None, 24.0)
        await connection.execute(ROWS)
        await connection.execute(
            "INSERT INTO predictions SELECT timestamp, session_id, user_id, '', '', '{}' FROM raw_eeg"
        )
        await connection.execute("INSERT INTO sessions SELECT DISTINCT session_id, user_id, now() FROM raw_eeg")
        await migrate(connection)  # as a node does at its start


def require_chunk_by_chunk(version: str) -> None:
    if "emcc" in version:
        pytest.skip("in WebAssembly no index can be built CONCURRENTLY on a chunk: `tuple concurrently updated`")


async def test_new_tables_have_them_from_the_start(any_database_url: str) -> None:
    async with opened(any_database_url), connected(any_database_url) as connection:
        assert await indexes(connection) == dict.fromkeys(NEW, True)
        assert await missing(connection) == []


async def test_tables_with_rows_get_them_and_lose_the_old_ones(any_database_url: str) -> None:
    await of_former_version(any_database_url)
    async with opened(any_database_url), upkeep(any_database_url) as connection:
        require_chunk_by_chunk(await connection.fetchval("SELECT version()"))
        assert set(await indexes(connection)) == set(OLD)  # nobody waited for them at the start
        assert await build_missing(connection) == NEW
        assert await indexes(connection) == dict.fromkeys(NEW, True)
        assert await build_missing(connection) == []


async def test_every_chunk_gets_its_part(timescale_url: str) -> None:
    await of_former_version(timescale_url)
    async with upkeep(timescale_url) as connection:
        require_chunk_by_chunk(await connection.fetchval("SELECT version()"))
        await connection.fetch("SELECT compress_chunk(c) FROM (SELECT show_chunks('raw_eeg') AS c LIMIT 2) AS chunks")
        await build_missing(connection)
        await connection.execute(ROWS.replace("now()", "now() + interval '9 days'"))
        n_chunks = await connection.fetchval("SELECT count(*) FROM show_chunks('raw_eeg')")
        of_chunks = "SELECT count(*) FROM pg_indexes WHERE tablename LIKE '\\_hyper\\_%' AND indexname LIKE '%' || $1"
        by_hypertable = " AND schemaname || '.' || tablename = ANY(SELECT show_chunks('raw_eeg')::text)"
        assert await connection.fetchval(of_chunks + by_hypertable, "raw_eeg_by_user_time") == n_chunks
        assert await connection.fetchval(of_chunks + by_hypertable, "raw_eeg_by_user") == 0


async def test_who_writes_to_a_chunk_does_not_wait_for_a_build(timescale_url: str) -> None:
    await of_former_version(timescale_url)
    async with (
        connected(timescale_url) as writer,
        connected(timescale_url) as other,
        upkeep(timescale_url) as connection,
    ):
        require_chunk_by_chunk(await connection.fetchval("SELECT version()"))
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(ROWS)
        with pytest.raises(asyncpg.LockNotAvailableError):  # of the hypertable itself, and only for a moment
            await build_missing(connection)
        await transaction.commit()
        await other.execute("CREATE INDEX raw_eeg_by_user_time ON ONLY raw_eeg (user_id, timestamp)")
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(ROWS)
        building = asyncio.create_task(build_missing(connection))
        while not await other.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid"):
            pass
        await other.execute(ROWS)
        await other.execute("SELECT pg_cancel_backend($1)", connection.get_server_pid())  # which leaves half an index
        with pytest.raises(asyncpg.QueryCanceledError):
            await building
        await transaction.commit()
        assert await build_missing(connection) == NEW
        assert await indexes(connection) == dict.fromkeys(NEW, True)
        assert await other.fetchval("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0
        assert await other.fetchval("SELECT count(*) FROM raw_eeg") == 400


async def test_who_writes_does_not_wait_for_a_build(database_url: str) -> None:
    await of_former_version(database_url)
    async with connected(database_url) as writer, connected(database_url) as other, upkeep(database_url) as connection:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(ROWS)
        building = asyncio.create_task(build_missing(connection))
        await _half_built(other)
        await other.execute(ROWS)
        async with opened(database_url):  # nor who starts
            pass
        await transaction.commit()
        assert await building == NEW
        assert await other.fetchval("SELECT count(*) FROM raw_eeg") == 300


async def test_what_an_interrupted_build_leaves_is_built_again(database_url: str) -> None:
    await of_former_version(database_url)
    async with connected(database_url) as writer, connected(database_url) as other:
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(ROWS)
        async with upkeep(database_url) as connection:
            building = asyncio.create_task(build_missing(connection))
            await _half_built(other)
            await other.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
            with pytest.raises((OSError, asyncpg.PostgresError)):
                await building
        await transaction.commit()
        assert (await indexes(other))["raw_eeg_by_user_time"] is False
        async with upkeep(database_url) as connection:
            assert await build_missing(connection) == NEW
        assert await indexes(other) == dict.fromkeys(NEW, True)


async def test_of_several_nodes_one_builds(database_url: str) -> None:
    await of_former_version(database_url)
    async with upkeep(database_url) as one, upkeep(database_url) as two, connected(database_url) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(ROWS)
        building = asyncio.create_task(build_missing(one))
        async with connected(database_url) as looking:
            await _half_built(looking)
        assert await build_missing(two) == []
        await transaction.commit()
        assert await building == NEW


async def _half_built(connection: Any) -> None:
    """Wait until the first index is there, and not whole."""
    async with asyncio.timeout(10):
        while (await indexes(connection)).get(NEW[0]) is not False:
            pass


class RecordingPool(Pool):
    """A pool that keeps what it was asked."""

    def __init__(self, database_url: str, size: int) -> None:
        super().__init__(database_url, size)
        self.asked: list[tuple[str, tuple[object, ...]]] = []

    async def fetch(self, statement: str, *values: object) -> list[Row]:
        self.asked.append((statement, values))
        return await super().fetch(statement, *values)


async def plans(url: str, pool: RecordingPool, table: str) -> list[str]:
    """Explain what the pool was asked about a table."""
    connection = await connect(url, READ_SETTINGS, 10)
    asked, pool.asked = pool.asked, []
    try:
        rows = [
            await connection.fetch(f"EXPLAIN {statement}", *values)
            for statement, values in asked
            if f"FROM {table} " in statement.replace("\n", " ")
        ]
    finally:
        await connection.close()
    return ["\n".join(row[0] for row in plan) for plan in rows]


async def test_what_reads_goes_along_them(any_database_url: str, begin: Begin) -> None:
    await prepare(any_database_url)
    start_us = int((time() - 3600) * 1e6)  # not in columns yet
    past = [await begin(f"user-{i}", start_us + i) for i in range(40)]
    for session in past[:4]:
        await session.write(every(10_000, range(2000), start_us))
        await session.note(start_us, {"workload": 0.5})
    async with connected(any_database_url) as connection:
        await connection.execute(
            "INSERT INTO sessions SELECT gen_random_uuid(), 'other', now() - n * interval '1 min'"
            " FROM generate_series(1, 3000) AS n"
        )
        await connection.execute(
            "INSERT INTO predictions SELECT timestamp, session_id, user_id, '', '', '{}' FROM raw_eeg"
        )
        await connection.execute("ANALYZE")
    pool = RecordingPool(any_database_url, 2)
    history, sessions = History(pool), DatabaseSessions(pool, pool)
    try:
        await history.raw_page("user-1", RawPageToken(start_us), MAX_TIME_US, limit=300)
        await sessions.samples(await stored(sessions, past[2]), 1500, 256)
        found = await plans(any_database_url, pool, "raw_eeg")
        assert len(found) >= 6  # first and next rows by time, a search by position, rows by position
        assert [plan for plan in found if "raw_eeg_by_user_time" not in plan] == []

        await history.notes_page("user-1", "prediction", NotePageToken(start_us), MAX_TIME_US, limit=64)
        found = await plans(any_database_url, pool, "predictions")
        assert len(found) >= 2
        assert [plan for plan in found if "predictions_by_user_time" not in plan] == []

        newest = await sessions.sessions(None, None, 50)
        await sessions.sessions(None, newest[-1].session_id, 50)
        found = await plans(any_database_url, pool, "sessions")
        assert [plan for plan in found if "sessions_by_start" not in plan or "Sort" in plan] == []
    finally:
        await pool.close()
