"""What the storage tests rely on when they run against `timescale_server`."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import numpy as np
import pytest

from support.timescale_server import TimescaleUnavailable, fresh_schema, timescale_server

WAIT_S = 10
SAMPLE_DTYPE = np.dtype(
    [
        ("n_fields", ">i2"),
        ("time_size", ">i4"),
        ("time", ">i8"),
        ("position_size", ">i4"),
        ("position", ">i8"),
    ]
)


@pytest.fixture(scope="module")
def server_dsn() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TEST_TIMESCALE_URL", raising=False)
        try:
            with timescale_server() as dsn:
                yield dsn
        except TimescaleUnavailable as problem:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(problem))


@pytest.fixture
async def dsn(server_dsn: str) -> AsyncIterator[str]:
    async with fresh_schema(server_dsn) as dsn:
        yield dsn


@pytest.fixture
async def first(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, timeout=WAIT_S)
    yield connection
    connection.terminate()


@pytest.fixture
async def second(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, timeout=WAIT_S)
    yield connection
    connection.terminate()


async def make_samples(connection: asyncpg.Connection) -> None:
    await connection.execute("""
        CREATE TABLE samples (timestamp timestamptz NOT NULL, position bigint NOT NULL);
        SELECT create_hypertable('samples', by_range('timestamp', INTERVAL '1 hour'));
        ALTER TABLE samples SET (timescaledb.enable_columnstore, timescaledb.orderby = 'timestamp');
        SELECT add_retention_policy('samples', INTERVAL '30 days');
        CALL add_columnstore_policy('samples', after => INTERVAL '1 day');
    """)


def binary_copy(start: datetime, n_samples: int) -> bytes:
    """Return rows of `samples`, one second apart, as PostgreSQL's binary COPY wants them."""
    rows = np.zeros(n_samples, SAMPLE_DTYPE)
    rows["n_fields"], rows["time_size"], rows["position_size"] = 2, 8, 8
    start_us = round((start - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
    rows["position"] = np.arange(n_samples)
    rows["time"] = start_us + rows["position"] * 1_000_000
    return b"PGCOPY\n\xff\r\n\0" + bytes(8) + rows.tobytes() + b"\xff\xff"


async def chunks(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def dsn_address(dsn: str) -> tuple[str, int]:
    host, port = dsn.partition("@")[2].partition("/")[0].split(":")
    return host, int(port)


def framed(kind: bytes, body: bytes) -> bytes:
    """Return a message of PostgreSQL's wire protocol. The startup packet is the one without a kind."""
    return kind + (len(body) + 4).to_bytes(4, "big") + body


async def test_a_hypertable_takes_binary_copy_and_its_policies_run_when_called(
    first: asyncpg.Connection,
) -> None:
    await make_samples(first)
    source = chunks(binary_copy(datetime(2026, 1, 1, tzinfo=UTC), 10_000))
    assert await first.copy_to_table("samples", source=source, format="binary") == "COPY 10000"
    jobs = dict(
        await first.fetch("""
            SELECT proc_name, job_id FROM timescaledb_information.jobs
            WHERE hypertable_schema = current_schema AND hypertable_name = 'samples'
        """)
    )
    await first.execute(f"CALL run_job({jobs['policy_compression']})")
    in_columnstore = """
        SELECT count(*) FILTER (WHERE is_compressed) = count(*) FROM timescaledb_information.chunks
        WHERE hypertable_schema = current_schema
    """
    assert await first.fetchval(in_columnstore)
    assert await first.fetchval("SELECT sum(position) FROM samples") == sum(range(10_000))
    await first.execute(f"CALL run_job({jobs['policy_retention']})")
    assert await first.fetchval("SELECT count(*) FROM samples") == 0


async def test_records_and_many_executions_arrive(first: asyncpg.Connection) -> None:
    await first.execute("CREATE TABLE numbers (n int)")
    await first.copy_records_to_table("numbers", records=[(n,) for n in range(1000)])
    await first.executemany("INSERT INTO numbers VALUES ($1)", [(n,) for n in range(1000, 9000)])
    assert await first.fetchval("SELECT sum(n) FROM numbers") == sum(range(9000))


async def test_connections_of_a_pool_do_not_share_prepared_statements(dsn: str) -> None:
    async def add(pool: asyncpg.Pool, n: int) -> int:
        async with pool.acquire() as connection, connection.transaction():
            total: int = await connection.fetchval(f"SELECT $1::int + {n}", n)
            return total

    async with asyncpg.create_pool(dsn, min_size=3, max_size=3) as pool:
        assert await asyncio.gather(*(add(pool, n) for n in range(30))) == [2 * n for n in range(30)]


async def test_a_statement_that_is_prepared_but_not_run_leaves_others_their_turn(
    first: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    statement = await first.prepare("SELECT $1::int")
    assert await second.fetchval("SELECT $1::text", "b", timeout=WAIT_S) == "b"
    assert await statement.fetchval(1) == 1


async def test_statements_without_names_do_not_mix(dsn: str) -> None:
    async with asyncpg.create_pool(dsn, min_size=2, max_size=2, statement_cache_size=0) as pool:
        queries = (pool.fetchval(f"SELECT $1::int + {n}", n) for n in range(20))
        assert await asyncio.gather(*queries) == [2 * n for n in range(20)]


async def test_a_transaction_excludes_the_others_until_it_ends(
    first: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    await first.execute("CREATE TABLE log (who text)")
    async with first.transaction():
        await first.execute("INSERT INTO log VALUES ('first')")
        waiting = asyncio.create_task(second.fetchval("SELECT count(*) FROM log"))
        await first.execute("INSERT INTO log VALUES ('first')")
        assert not waiting.done()
    assert await waiting == 2


async def test_a_client_killed_in_a_transaction_is_rolled_back(
    first: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    await first.execute("CREATE TABLE numbers (n int)")
    await first.execute("BEGIN; INSERT INTO numbers VALUES (1); SELECT pg_advisory_lock(7)")
    waiting = asyncio.create_task(second.fetchval("SELECT count(*) FROM numbers"))
    first.terminate()
    assert await asyncio.wait_for(waiting, WAIT_S) == 0
    assert await second.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_a_client_killed_while_it_waits_has_done_nothing(
    first: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    await first.execute("CREATE TABLE numbers (n int)")
    async with first.transaction():
        waiting = asyncio.create_task(second.execute("INSERT INTO numbers VALUES (1)"))
        await first.fetchval("SELECT 1")
        second.terminate()
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await waiting
        await first.fetchval("SELECT 1")
    assert await first.fetchval("SELECT count(*) FROM numbers") == 0


async def test_a_client_killed_in_a_copy_leaves_no_rows(dsn: str, first: asyncpg.Connection) -> None:
    await make_samples(first)

    schema = await first.fetchval("SELECT current_schema")
    reader, writer = await asyncio.open_connection(*dsn_address(dsn))
    writer.write(framed(b"", b"\0\3\0\0user\0postgres\0database\0postgres\0\0"))
    writer.write(framed(b"Q", f"BEGIN; INSERT INTO {schema}.samples VALUES (now(), 0)\0".encode()))
    writer.write(framed(b"Q", f"COPY {schema}.samples FROM STDIN (FORMAT binary)\0".encode()))
    await asyncio.wait_for(reader.readuntil(b"G\0\0\0\7"), WAIT_S)  # CopyInResponse
    writer.write(framed(b"d", binary_copy(datetime(2026, 1, 1, tzinfo=UTC), 1000)))
    writer.close()
    assert await first.fetchval("SELECT count(*) FROM samples", timeout=WAIT_S) == 0


async def test_a_failed_copy_is_reported_and_the_connection_goes_on(first: asyncpg.Connection) -> None:
    await make_samples(first)
    good = binary_copy(datetime(2026, 1, 1, tzinfo=UTC), 50_000)
    with pytest.raises(asyncpg.UndefinedTableError):
        await first.copy_to_table("nowhere", source=chunks(good), format="binary")
    with pytest.raises(asyncpg.BadCopyFileFormatError):
        await first.copy_to_table("samples", source=chunks(good[:-2] + b"\0\7"), format="binary")

    async def broken() -> AsyncIterator[bytes]:
        yield good[:1000]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await first.copy_to_table("samples", source=broken(), format="binary")
    assert await first.fetchval("SELECT count(*) FROM samples") == 0


async def test_copy_in_a_failed_or_open_transaction_belongs_to_it(first: asyncpg.Connection) -> None:
    await first.execute("CREATE TABLE numbers (n int)")
    transaction = first.transaction()
    await transaction.start()
    await first.copy_records_to_table("numbers", records=[(1,)])
    await transaction.rollback()
    assert await first.fetchval("SELECT count(*) FROM numbers") == 0
    async with first.transaction():
        await first.copy_records_to_table("numbers", records=[(1,)])
    assert await first.fetchval("SELECT count(*) FROM numbers") == 1


async def test_copy_in_a_script_or_with_parameters_is_refused(first: asyncpg.Connection) -> None:
    await first.execute("CREATE TABLE numbers (n int)")
    with pytest.raises(asyncpg.FeatureNotSupportedError):
        await first.execute("SELECT 1; COPY numbers FROM STDIN")
    with pytest.raises(asyncpg.FeatureNotSupportedError):
        await first.fetch("COPY numbers FROM STDIN")
    assert await first.fetchval("SELECT 1") == 1


async def test_an_error_ends_neither_the_script_s_client_nor_others(
    first: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        await first.execute("CREATE TABLE gone (n int); SELECT 1 / 0")
    assert await second.fetchval("SELECT to_regclass('gone')") is None
    with pytest.raises(asyncpg.DivisionByZeroError):
        await first.fetchval("SELECT 1 / $1::int", 0)
    assert await first.fetchval("SELECT 1 / $1::int", 1) == 1


async def test_an_advisory_lock_excludes_others_until_it_is_let_go(
    first: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    for let_go in (first.execute("SELECT pg_advisory_unlock(7)"), first.reset(), first.close()):
        await first.execute("SELECT pg_advisory_lock(7)")
        waiting = asyncio.create_task(second.execute("SELECT pg_advisory_lock(7)"))
        await first.execute("SELECT 1")
        assert not waiting.done()
        await let_go
        await asyncio.wait_for(waiting, WAIT_S)
        await second.execute("SELECT pg_advisory_unlock(7)")


async def test_parameters_stay_with_their_client(dsn: str) -> None:
    first = await asyncpg.connect(dsn, server_settings={"timezone": "Asia/Tokyo"})
    second = await asyncpg.connect(dsn)
    await first.execute("SET work_mem = '5MB'")
    assert await second.fetchrow("SELECT current_setting('timezone'), current_setting('work_mem')") == (
        "GMT",
        "4MB",
    )
    assert await first.fetchrow("SELECT current_setting('timezone'), current_setting('work_mem')") == (
        "Asia/Tokyo",
        "5MB",
    )
    schema = await first.fetchval("SELECT current_schema")
    await first.reset()
    settings = "SELECT current_setting('timezone'), current_setting('work_mem'), current_schema"
    assert await first.fetchrow(settings) == ("Asia/Tokyo", "4MB", schema)
    assert schema.startswith("test_")
    assert await first.fetchval("SELECT time_bucket('1 hour', now()) IS NOT NULL")
    await first.close()
    await second.close()


async def test_a_parameter_that_does_not_exist_is_refused(dsn: str) -> None:
    connection = await asyncpg.connect(dsn, server_settings={"no_such_parameter": "1"})
    with pytest.raises(asyncpg.UndefinedObjectError):
        await connection.fetchval("SELECT 1")
    await connection.close()


async def test_a_wait_for_another_s_transaction_can_time_out(
    first: asyncpg.Connection, second: asyncpg.Connection
) -> None:
    async with first.transaction():
        await first.fetchval("SELECT 1")
        with pytest.raises(TimeoutError):
            await second.fetchval("SELECT 1", timeout=0.1)
    assert await second.fetchval("SELECT 2") == 2


async def test_schemas_are_apart_and_leave_nothing_behind(server_dsn: str, first: asyncpg.Connection) -> None:
    async with fresh_schema(server_dsn) as other_dsn:
        other = await asyncpg.connect(other_dsn)
        schema = await other.fetchval("SELECT current_schema")
        await make_samples(first)
        await make_samples(other)
        await other.copy_to_table(
            "samples", source=chunks(binary_copy(datetime(2026, 1, 1, tzinfo=UTC), 10)), format="binary"
        )
        assert await first.fetchval("SELECT count(*) FROM samples") == 0
        await other.close()
    jobs = "SELECT count(*) FROM timescaledb_information.jobs WHERE hypertable_schema = $1"
    chunk = "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_schema = $1"
    assert (await first.fetchval(jobs, schema), await first.fetchval(chunk, schema)) == (0, 0)


async def test_only_the_role_and_database_that_exist_are_let_in(server_dsn: str) -> None:
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(server_dsn, database="other")
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(server_dsn, user="other")


@pytest.mark.parametrize(
    "nonsense", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0\0\0\0\0", b"\0\0\0\x09\0\x03\0\0\0" + b"!!!!!"]
)
async def test_nonsense_ends_only_its_own_connection(dsn: str, nonsense: bytes) -> None:
    reader, writer = await asyncio.open_connection(*dsn_address(dsn))
    writer.write(nonsense)
    writer.write_eof()
    await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_an_aborted_backend_closes_every_connection() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TEST_TIMESCALE_URL", raising=False)
        with timescale_server() as dsn:
            first, second = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
            await first.execute("""
                CREATE FUNCTION deeper(n int) RETURNS int LANGUAGE plpgsql
                AS 'BEGIN RETURN deeper(n + 1); END'
            """)
            for connection in (first, second):
                with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                    await connection.fetchval("SELECT deeper(1)", timeout=WAIT_S)


def test_the_server_ends_with_a_parent_that_is_killed() -> None:
    code = "from support.timescale_server import *\nwith timescale_server() as dsn: print(dsn, flush=True); input()"
    environ = {name: value for name, value in os.environ.items() if name != "TEST_TIMESCALE_URL"}
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent, socket.create_connection(dsn_address(parent.stdout.readline().strip()), WAIT_S) as watch:
        parent.send_signal(signal.SIGKILL)
        with suppress(ConnectionResetError):  # if it had not been accepted yet
            assert watch.recv(1) == b""


def test_without_node_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_TIMESCALE_URL", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TimescaleUnavailable, match="not installed"), timescale_server():
        pass


def test_a_server_of_your_own_is_used_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_TIMESCALE_URL", "postgresql://db/eeg")
    with timescale_server() as dsn:
        assert dsn == "postgresql://db/eeg"
