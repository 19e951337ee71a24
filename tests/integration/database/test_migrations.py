from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from support.databases import connected
from support.services import PostgresServer
from zander.database import migrations as migrations_module
from zander.database.migrations import TABLES, Migration, delete_expired, migrate, migrations, tune
from zander.errors import StorageError

INSERT_RAW = """
INSERT INTO raw_eeg
SELECT now() - n * interval '1 day', gen_random_uuid(), 'user', n, ARRAY[n, 'NaN']::real[]
FROM generate_series(0, 9) AS n
"""
INSERT_PREDICTIONS = """
INSERT INTO predictions
SELECT now() - n * interval '1 day', gen_random_uuid(), 'user', 'type', 'classifier', '{}', null, null
FROM generate_series(0, 9) AS n
"""


async def policies(connection: Any) -> dict[str, dict[str, str]]:
    """What TimescaleDB does with each table, as {table: {setting: interval}}."""
    rows = await connection.fetch(
        "SELECT hypertable_name AS table, key, value FROM timescaledb_information.jobs, jsonb_each_text(config)"
        " WHERE hypertable_schema = current_schema() AND key IN ('compress_after', 'drop_after')"
    )
    found: dict[str, dict[str, str]] = {table: {} for table in TABLES}
    for row in rows:
        found[row["table"]][row["key"]] = row["value"]
    return found


async def jobs(connection: Any) -> list[int]:
    rows = await connection.fetch(
        "SELECT job_id FROM timescaledb_information.jobs WHERE hypertable_schema = current_schema() ORDER BY 1"
    )
    return [row["job_id"] for row in rows]


async def columns(connection: Any, table: str) -> list[tuple[str, str]]:
    rows = await connection.fetch(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = $1::text::regclass AND attnum > 0 ORDER BY attnum",
        table,
    )
    return [tuple(row) for row in rows]


# Migrations.


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
        await _migrate_to_1(connection)
        await tune(connection, None, 24.0)
        await connection.execute(OF_VERSION_1)
        if await connection.fetchval("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"):
            await connection.execute("SELECT compress_chunk(c) FROM show_chunks('raw_eeg') AS c")
        assert await migrate(connection) == [migration.name for migration in migrations()[1:]]
        rows = await connection.fetch(
            "SELECT user_id, durable_position, durable_time = timestamptz '2025-11-24 00:00:05', fence"
            " FROM sessions ORDER BY user_id"
        )
        assert [tuple(row) for row in rows] == [("empty", 0, None, 0), ("with samples", 6, True, 0)]
        assert await connection.fetchval("SELECT count(*) FROM raw_eeg") == 5
        assert await connection.fetchval("SELECT count(*) FROM writers") == 0


OF_VERSION_1 = """
INSERT INTO sessions VALUES (gen_random_uuid(), 'with samples', '2025-11-24', null, '{}');
INSERT INTO sessions VALUES (gen_random_uuid(), 'empty', '2025-11-24', '2025-11-25', '{}');
INSERT INTO raw_eeg
SELECT timestamptz '2025-11-24' + n * interval '1 s', session_id, user_id, n, ARRAY[n]::real[]
FROM sessions, generate_series(0, 5) AS n WHERE user_id = 'with samples' AND n <> 3;
INSERT INTO writers VALUES (gen_random_uuid(), 7, now());
"""


async def _migrate_to_1(connection: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations_module, "migrations", lambda: migrations()[:1])
        assert await migrate(connection) == [migrations()[0].name]


async def test_a_former_version_does_not_write_to_what_this_one_has_migrated(database_url: str) -> None:
    async with connected(database_url) as connection:
        await migrate(connection)
        with pytest.raises(StorageError, match="schema version 2, this Zander knows 1: update it"):
            await _migrate_to_1(connection)


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


# Plain PostgreSQL.


async def test_plain_postgresql_is_named_as_such_and_gets_its_index(database_url: str) -> None:
    async with connected(database_url) as connection:
        await migrate(connection)
        for _ in range(2):
            tuning = await tune(connection, 30.0, 24.0)
            assert tuning.sentence == "plain PostgreSQL: no hypertables or columnstore; retention by delete"
            assert not tuning.complete
            assert not tuning.expires
        assert await connection.fetchval("SELECT count(*) FROM pg_indexes WHERE indexname LIKE '%_by_time'") == 2


async def test_a_missing_privilege_is_named_and_stops_nothing(postgres: PostgresServer, database_url: str) -> None:
    async with connected(database_url) as connection:
        await migrate(connection)
        await connection.execute(
            "DROP ROLE IF EXISTS writer; CREATE ROLE writer; GRANT SELECT ON schema_migrations TO writer"
        )
        await connection.execute("SET ROLE writer")
        assert await migrate(connection) == []
        tuning = await tune(connection, 30.0, 24.0)
        assert "must be owner of table raw_eeg" in tuning.sentence
        await connection.execute("RESET ROLE; DROP OWNED BY writer; DROP ROLE writer")


async def test_deleting_takes_only_what_is_too_old(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations_module, "ROWS_PER_DELETE", 2)
    async with connected(database_url) as connection:
        await migrate(connection)
        await connection.execute(INSERT_RAW)
        await connection.execute(INSERT_PREDICTIONS)
        assert await delete_expired(connection, 4.5) == 10
        assert await delete_expired(connection, 4.5) == 0
        for table in TABLES:
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 5


async def test_only_one_node_deletes_at_a_time(database_url: str) -> None:
    async with connected(database_url) as connection, connected(database_url) as other:
        await migrate(connection)
        await connection.execute(INSERT_RAW)
        await other.execute("SELECT pg_advisory_lock($1)", migrations_module.EXPIRY_LOCK)
        assert await delete_expired(connection, 4.5) == 0
        await other.execute("SELECT pg_advisory_unlock($1)", migrations_module.EXPIRY_LOCK)
        assert await delete_expired(connection, 4.5) == 5


# TimescaleDB.


async def test_timescaledb_gets_hypertables_a_columnstore_and_policies(timescale_url: str) -> None:
    async with connected(timescale_url) as connection:
        await migrate(connection)
        tuning = await tune(connection, 30.0, 24.0)
        assert tuning.complete
        assert tuning.expires
        assert "columnstore after 24 h, kept 30 days" in tuning.sentence
        hypertables = await connection.fetch(
            "SELECT hypertable_name, compression_enabled, num_dimensions FROM timescaledb_information.hypertables"
            " WHERE hypertable_schema = current_schema() ORDER BY 1"
        )
        assert [tuple(row) for row in hypertables] == [("predictions", True, 1), ("raw_eeg", True, 1)]
        by = await connection.fetchrow(
            "SELECT segmentby, orderby FROM timescaledb_information.hypertable_columnstore_settings"
            " WHERE hypertable::text LIKE '%raw_eeg'"
        )
        assert tuple(by) == ("user_id,session_id", '"timestamp"')
        assert await policies(connection) == {
            table: {"compress_after": "24:00:00", "drop_after": "720:00:00"} for table in TABLES
        }
        # Nothing that would switch off compression of a COPY on its way in.
        assert (
            await connection.fetchval(
                "SELECT count(*) FROM pg_index JOIN pg_class ON oid = indrelid"
                " WHERE relnamespace = current_schema()::regnamespace AND relname = ANY($1) AND indisunique",
                list(TABLES),
            )
            == 0
        )


async def test_changed_settings_change_the_policies_and_the_same_ones_nothing(timescale_url: str) -> None:
    async with connected(timescale_url) as connection:
        await migrate(connection)
        await tune(connection, None, 24.0)
        assert await policies(connection) == {table: {"compress_after": "24:00:00"} for table in TABLES}
        before = await jobs(connection)
        assert (await tune(connection, None, 24.0)).sentence.endswith("kept for ever")
        assert await jobs(connection) == before
        await tune(connection, 7.0, 1.5)
        assert await policies(connection) == {
            table: {"compress_after": "01:30:00", "drop_after": "168:00:00"} for table in TABLES
        }
        before = await jobs(connection)
        await tune(connection, 7.0, 1.5)
        assert await jobs(connection) == before
        await tune(connection, 0.5, 1.5)
        assert (await policies(connection))["raw_eeg"]["drop_after"] == "12:00:00"
        await tune(connection, None, 1.5)
        assert await policies(connection) == {table: {"compress_after": "01:30:00"} for table in TABLES}


async def test_rows_of_a_plain_table_move_into_the_hypertable(timescale_url: str) -> None:
    async with connected(timescale_url) as connection:
        await migrate(connection)
        await connection.execute(INSERT_RAW)
        assert (await tune(connection, None, 24.0)).complete
        assert await connection.fetchval("SELECT count(*) FROM raw_eeg") == 10
        assert await connection.fetchval("SELECT count(*) FROM show_chunks('raw_eeg')") >= 9


async def test_the_policies_do_what_they_say(timescale_url: str) -> None:
    async with connected(timescale_url) as connection:
        await migrate(connection)
        await tune(connection, 5.5, 48.0)
        await connection.execute(INSERT_RAW)
        before = await connection.fetch("SELECT * FROM raw_samples ORDER BY timestamp DESC LIMIT 5")
        for job in await jobs(connection):
            await connection.execute(f"CALL run_job({job})")
        after = await connection.fetch("SELECT * FROM raw_samples ORDER BY timestamp DESC")
        assert after[:5] == before
        assert len(after) in (6, 7)  # whole chunks, of a day each, are dropped
        assert (
            await connection.fetchval(
                "SELECT count(*) FROM timescaledb_information.chunks"
                " WHERE hypertable_schema = current_schema() AND is_compressed"
            )
            >= 2
        )


async def test_what_timescaledb_refuses_is_named_and_done_without(timescale_url: str) -> None:
    async with connected(timescale_url) as connection:
        await migrate(connection)
        await connection.execute("ALTER TABLE raw_eeg ADD CONSTRAINT by_hand UNIQUE (session_id, position)")
        tuning = await tune(connection, 4.5, 24.0)
        assert 'but cannot create a unique index without the column "timestamp"' in tuning.sentence
        assert not tuning.complete
        assert not tuning.expires
        assert (await policies(connection))["predictions"] == {
            "compress_after": "24:00:00",
            "drop_after": "108:00:00",
        }
        await connection.execute(INSERT_RAW)
        assert await delete_expired(connection, 4.5) == 5
        await connection.execute("ALTER TABLE raw_eeg DROP CONSTRAINT by_hand")
        assert (await tune(connection, 4.5, 24.0)).complete


async def test_without_a_columnstore_there_are_hypertables_and_chunks_are_dropped(
    timescale_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations_module._Timescale, "has_columnstore", False)
    async with connected(timescale_url) as connection:
        await migrate(connection)
        tuning = await tune(connection, 4.5, 24.0)
        assert "no columnstore with this version and licence" in tuning.sentence
        assert not tuning.expires
        assert await policies(connection) == {table: {} for table in TABLES}
        await connection.execute(INSERT_RAW)
        await connection.execute(INSERT_PREDICTIONS)
        assert await delete_expired(connection, 4.5) >= 8  # chunks
        assert await connection.fetchval("SELECT count(*) FROM raw_eeg") in (5, 6)


@pytest.mark.parametrize(
    ("version", "licence", "has"),
    [
        ("2.18.0", "timescale", True),
        ("2.17.2", "timescale", False),
        ("2.23.0-dev", "apache", False),
        ("3.0", "timescale", True),
    ],
)
def test_the_columnstore_comes_with_version_and_licence(version: str, licence: str, has: bool) -> None:
    assert migrations_module._Timescale(version, licence).has_columnstore is has
