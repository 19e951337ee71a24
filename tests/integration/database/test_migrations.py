"""Migrations: an empty or older database gets what it lacks, once; a newer one is refused."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from support.databases import connected
from zander.database import migrations as migrations_module
from zander.database.migrations import Migration, migrate, migrations
from zander.database.timescale import is_hypertable, tune
from zander.errors import StorageError


async def columns(connection: Any, table: str) -> list[tuple[str, str]]:
    rows = await connection.fetch(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = $1::text::regclass AND attnum > 0 ORDER BY attnum",
        table,
    )
    return [tuple(row) for row in rows]


def test_the_migrations_are_numbered_without_a_gap() -> None:
    assert [migration.version for migration in migrations()] == list(range(1, len(migrations()) + 1))


async def test_an_empty_database_gets_all_migrations_and_a_second_run_none(any_database_url: str) -> None:
    async with connected(any_database_url) as connection:
        assert await migrate(connection) == [migration.name for migration in migrations()]
        assert await migrate(connection) == []


async def test_the_tables_have_the_columns_of_the_original(any_database_url: str) -> None:
    async with connected(any_database_url) as connection:
        await migrate(connection)
        assert await columns(connection, "sessions") == [
            ("session_id", "uuid"),
            ("user_id", "character varying(100)"),
            ("start_time", "timestamp with time zone"),
            ("end_time", "timestamp with time zone"),
            ("device_info", "jsonb"),
            ("durable_position", "bigint"),  # from here on ours
            ("durable_time", "timestamp with time zone"),
            ("fence", "bigint"),
            ("writer_id", "uuid"),
        ]
        assert await columns(connection, "predictions") == [
            ("timestamp", "timestamp with time zone"),
            ("session_id", "uuid"),
            ("user_id", "character varying(100)"),
            ("prediction_type", "character varying(50)"),
            ("classifier_name", "character varying(100)"),
            ("data", "jsonb"),
            ("confidence", "double precision"),
            ("classifier_version", "character varying(50)"),
            ("serial", "bigint"),  # ours
        ]
        assert await columns(connection, "raw_samples") == [
            ("timestamp", "timestamp with time zone"),
            ("session_id", "uuid"),
            ("user_id", "character varying(100)"),
            ("data", "jsonb"),
        ]


async def test_sessions_of_version_1_are_durable_as_far_as_they_are_there(any_database_url: str) -> None:
    """Also where the rows are in a hypertable, in columns already."""
    async with connected(any_database_url) as connection:
        await _migrate_to(1, connection)
        await tune(connection, None, 24.0)
        await connection.execute(OF_VERSION_1)
        if await is_hypertable(connection, "raw_eeg"):
            await connection.execute("SELECT compress_chunk(c) FROM show_chunks('raw_eeg') AS c")
        assert await migrate(connection) == [migration.name for migration in migrations()[1:]]
        rows = await connection.fetch(
            "SELECT user_id, durable_position, durable_time = timestamptz '2025-11-24 00:00:05', fence"
            " FROM sessions ORDER BY user_id"
        )
        assert [tuple(row) for row in rows] == [("empty", 0, None, 0), ("with samples", 6, True, 0)]
        assert await connection.fetchval("SELECT count(*) FROM raw_eeg") == 5
        assert await connection.fetchval("SELECT count(*) FROM writers") == 0


async def test_predictions_of_version_2_have_no_serial_and_those_that_follow_have_one(any_database_url: str) -> None:
    """Also where the rows are in a hypertable, in columns already."""
    async with connected(any_database_url) as connection:
        await _migrate_to(2, connection)
        await tune(connection, None, 24.0)
        await connection.execute(PREDICTIONS)
        if await is_hypertable(connection, "predictions"):
            await connection.execute("SELECT compress_chunk(c) FROM show_chunks('predictions') AS c")
        assert await migrate(connection) == [migration.name for migration in migrations()[2:]]
        await tune(connection, None, 24.0)
        await connection.execute(PREDICTIONS)
        rows = await connection.fetch("SELECT serial FROM predictions ORDER BY serial")
        assert [row[0] for row in rows[:5]] == [0] * 5
        assert 0 < rows[5][0] < rows[9][0]
        assert len({row[0] for row in rows}) == 6


async def test_a_migration_does_not_wait_for_ever_for_a_lock_while_others_wait_for_it(database_url: str) -> None:
    async with connected(database_url) as connection, connected(database_url) as reader:
        await _migrate_to(2, connection)
        async with reader.transaction():
            await reader.execute("SELECT FROM predictions")
            with pytest.raises(asyncpg.LockNotAvailableError):
                await migrate(connection)
    async with connected(database_url) as connection:
        assert await migrate(connection) == [migration.name for migration in migrations()[2:]]


PREDICTIONS = """
INSERT INTO predictions (timestamp, session_id, user_id, prediction_type, classifier_name, data)
SELECT timestamptz '2025-11-24', gen_random_uuid(), 'me', 'workload_edge', 'edge_relay', '{}' FROM generate_series(1, 5)
"""

OF_VERSION_1 = """
INSERT INTO sessions VALUES (gen_random_uuid(), 'with samples', '2025-11-24', null, '{}');
INSERT INTO sessions VALUES (gen_random_uuid(), 'empty', '2025-11-24', '2025-11-25', '{}');
INSERT INTO raw_eeg
SELECT timestamptz '2025-11-24' + n * interval '1 s', session_id, user_id, n, ARRAY[n]::real[]
FROM sessions, generate_series(0, 5) AS n WHERE user_id = 'with samples' AND n <> 3;
INSERT INTO writers VALUES (gen_random_uuid(), 7, now());
"""


async def _migrate_to(version: int, connection: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations_module, "migrations", lambda: migrations()[:version])
        assert await migrate(connection) == [migration.name for migration in migrations()[:version]]


async def test_a_former_version_does_not_write_to_what_this_one_has_migrated(database_url: str) -> None:
    async with connected(database_url) as connection:
        await migrate(connection)
        with pytest.raises(StorageError, match=f"schema version {len(migrations())}, this Zander knows 1: update it"):
            await _migrate_to(1, connection)


async def test_what_was_added_is_as_it_is_used(any_database_url: str) -> None:
    async with connected(any_database_url) as connection:
        await migrate(connection)
        assert await columns(connection, "gaps") == [
            ("session_id", "uuid"),
            ("from_position", "bigint"),
            ("to_position", "bigint"),
            ("reason", "text"),
            ("noticed_at", "timestamp with time zone"),
        ]
        assert await columns(connection, "dead_letters") == [
            ("refused_at", "timestamp with time zone"),
            ("table_name", "text"),
            ("session_id", "uuid"),
            ("position", "bigint"),
            ("error", "text"),
            ("record", "bytea"),
        ]
        assert await columns(connection, "writers") == [
            ("writer_id", "uuid"),
            ("position", "bigint"),
            ("written_at", "timestamp with time zone"),
        ]


async def test_nodes_that_start_at_once_migrate_and_tune_one_after_the_other(any_database_url: str) -> None:
    async def start(connection: Any) -> list[str]:
        applied = await migrate(connection)
        await tune(connection, 30.0, 24.0)
        return applied

    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(connected(any_database_url)) for _ in range(4)]
        applied = await asyncio.gather(*map(start, nodes))
    assert sorted(map(len, applied)) == [0, 0, 0, len(migrations())]


async def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    async with connected(database_url) as connection:
        await migrate(connection)
        await connection.execute("INSERT INTO schema_migrations VALUES (999, 'future')")
    async with connected(database_url) as connection:
        with pytest.raises(StorageError, match="schema version 999, this Zander knows"):
            await migrate(connection)
    async with connected(database_url) as connection:
        assert await connection.fetchval("SELECT pg_try_advisory_lock($1)", migrations_module.LOCK)


async def test_a_migration_that_fails_leaves_nothing_behind(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = migrations()
    broken = Migration(len(known) + 1, "broken", "CREATE TABLE half (); SELECT 1 / 0")
    monkeypatch.setattr(migrations_module, "migrations", lambda: [*known, broken])
    async with connected(database_url) as connection:
        with pytest.raises(Exception, match="division by zero"):
            await migrate(connection)
    monkeypatch.undo()
    async with connected(database_url) as connection:
        assert await migrate(connection) == []
        assert await connection.fetchval("SELECT to_regclass('half')") is None
