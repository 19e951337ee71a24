"""TimescaleDB by the settings, and what a plain PostgreSQL gets instead: policies, indexes, deletes."""

from __future__ import annotations

from typing import Any

import pytest

from support.databases import connected
from support.services import PostgresServer
from zander.database import timescale as timescale_module
from zander.database.hypertables import convert_at
from zander.database.migrations import migrate
from zander.database.timescale import (
    EXPIRY_LOCK,
    TABLES,
    chunk_span_hours,
    delete_expired,
    is_hypertable,
    large_chunks,
    tune,
)

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
    monkeypatch.setattr(timescale_module, "ROWS_PER_DELETE", 2)
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
        await other.execute("SELECT pg_advisory_lock($1)", EXPIRY_LOCK)
        assert await delete_expired(connection, 4.5) == 0
        await other.execute("SELECT pg_advisory_unlock($1)", EXPIRY_LOCK)
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


async def spans(connection: Any) -> set[float]:
    """The hours of the chunks to come, of both tables."""
    return {await chunk_span_hours(connection, table) for table in TABLES}


async def test_chunks_span_a_day_unless_a_setting_or_somebody_else_says_otherwise(timescale_url: str) -> None:
    async with connected(timescale_url) as connection:
        await migrate(connection)
        assert "chunks of 24 h, columnstore after" in (await tune(connection, None, 24.0)).sentence
        assert await spans(connection) == {24.0}
        for table in TABLES:
            await connection.execute(f"SELECT set_chunk_time_interval('{table}', interval '6 hours')")
        assert "chunks of 6 h, columnstore after" in (await tune(connection, None, 24.0)).sentence
        assert await spans(connection) == {6.0}
        assert "chunks of 0.5 h, columnstore after" in (await tune(connection, None, 24.0, 0.5)).sentence
        assert await spans(connection) == {0.5}


async def test_a_new_table_has_the_chunks_of_the_setting(timescale_url: str) -> None:
    async with connected(timescale_url) as connection:
        await migrate(connection)
        await tune(connection, None, 24.0, 4.0)
        assert await spans(connection) == {4.0}
        await connection.execute(INSERT_RAW)
        assert await connection.fetchval("SELECT count(*) FROM show_chunks('raw_eeg')") == 10


async def test_a_chunk_that_outgrows_the_memory_is_told(timescale_url: str) -> None:
    newest = timescale_module.NEWEST_CHUNK
    async with connected(timescale_url) as connection:
        await migrate(connection)
        assert await large_chunks(connection) == {}
        await tune(connection, None, 24.0)
        await connection.execute(INSERT_RAW)
        assert await large_chunks(connection) == {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                timescale_module, "NEWEST_CHUNK", newest.replace("current_setting('shared_buffers')", "'8kB'")
            )
            told = await large_chunks(connection)
        assert list(told) == ["raw_eeg"]
        assert "the newest chunk of raw_eeg spans 24 h and has" in told["raw_eeg"]


async def test_a_plain_postgresql_has_no_chunks(database_url: str) -> None:
    async with connected(database_url) as connection:
        await migrate(connection)
        assert await large_chunks(connection) == {}


async def test_rows_of_a_plain_table_move_into_the_hypertable(timescale_url: str) -> None:
    async with connected(timescale_url) as connection:
        await migrate(connection)
        await connection.execute(INSERT_RAW)
        assert (await tune(connection, None, 24.0)).complete
        assert await connection.fetchval("SELECT count(*) FROM raw_eeg") == 10
        assert await connection.fetchval("SELECT count(*) FROM show_chunks('raw_eeg')") >= 9


async def test_a_large_plain_table_is_left_to_the_command_which_makes_it_a_hypertable(
    timescale_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timescale_module, "MAX_MOVED_BYTES", 100_000)
    said: list[str] = []
    async with connected(timescale_url) as connection:
        await migrate(connection)
        many = INSERT_RAW.replace(
            "FROM generate_series(0, 9) AS n", "FROM (SELECT i % 10 FROM generate_series(1, 10000) i) AS of (n)"
        )
        await connection.execute(many)
        tuning = await tune(connection, 30.0, 24.0)
        assert "raw_eeg is a large plain table: run `zander migrate`" in tuning.sentence
        assert not tuning.complete
        assert not tuning.expires
        assert not await is_hypertable(connection, "raw_eeg")
        assert await is_hypertable(connection, "predictions")
        assert await tune(connection, 30.0, 24.0) == tuning  # logged once
    await convert_at(timescale_url, 30.0, 24.0, None, said.append)
    async with connected(timescale_url) as connection:
        assert await is_hypertable(connection, "raw_eeg")
        assert await connection.fetchval("SELECT count(*) FROM raw_eeg") == 10_000
        assert (await policies(connection))["raw_eeg"] == {"compress_after": "24:00:00", "drop_after": "720:00:00"}
        assert (await tune(connection, 30.0, 24.0)).sentence == said[-1]
    assert [sentence.partition(" ")[0] for sentence in said] == ["raw_eeg:", "raw_eeg:", "TimescaleDB"]
    assert "nobody reads or writes the table" in said[0]
    await convert_at(timescale_url, 30.0, 24.0, None, said.append)
    assert said[-1] == said[-2], "it is done"


async def test_the_command_finds_nothing_to_do_on_a_plain_server(database_url: str) -> None:
    async with connected(database_url) as connection:
        await migrate(connection)
    said: list[str] = []
    await convert_at(database_url, 30.0, 24.0, None, said.append)
    assert said == []


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
    monkeypatch.setattr(timescale_module._Timescale, "has_columnstore", False)
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
    assert timescale_module._Timescale(version, licence).has_columnstore is has
