"""The pool: a connection whose statement ends badly is not used again, and keeps nobody else waiting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from support.clock import Clock
from support.databases import connected, until
from support.services import PostgresServer
from zander.database import connection as connection_module
from zander.database.connection import Pool
from zander.errors import Unavailable

BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'zander'"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    pool = Pool(database_url, 2)
    yield pool
    await pool.close()


@pytest.fixture(scope="module")
def fragile() -> Iterator[PostgresServer]:
    """A PostgreSQL to stop: the one of the whole run has other users."""
    with PostgresServer() as server:
        yield server


async def backend(pool: Pool) -> int:
    found: int = (await pool.fetch("SELECT pg_backend_pid()"))[0][0]
    return found


async def n_backends(url: str) -> int:
    async with connected(url) as connection:
        found: int = await connection.fetchval(BACKENDS)
        return found


async def reach(url: str, n: int) -> None:
    """Wait until there are so many connections."""
    async with asyncio.timeout(10):
        while await n_backends(url) != n:
            pass


async def test_it_opens_no_connection_before_the_first_question(pool: Pool, database_url: str) -> None:
    assert await n_backends(database_url) == 0
    assert (await pool.fetch("SELECT 1"))[0][0] == 1
    assert await n_backends(database_url) == 1


async def test_a_connection_is_used_again(pool: Pool) -> None:
    assert await backend(pool) == await backend(pool)


async def test_never_more_than_its_size(pool: Pool) -> None:
    found = await asyncio.gather(*(backend(pool) for _ in range(50)))
    assert len(set(found)) <= 2


async def test_times_are_microseconds_since_1970(pool: Pool) -> None:
    for time_us in (0, 1_764_000_000_123_457, 10**18):
        (row,) = await pool.fetch("SELECT $1::timestamptz, extract(epoch FROM $1::timestamptz)", time_us)
        assert (row[0], int(row[1] * 1_000_000)) == (time_us, time_us)


async def test_who_gives_up_leaves_no_broken_connection(pool: Pool, database_url: str) -> None:
    for _ in range(5):
        waiting = [asyncio.create_task(pool.fetch("SELECT pg_sleep(60)")) for _ in range(2)]
        await reach(database_url, 2)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert all(task.cancelled() for task in waiting)
        assert (await pool.fetch("SELECT 7"))[0][0] == 7


async def test_who_gives_up_while_it_waits_for_its_turn_takes_none(pool: Pool) -> None:
    async with pool._connection(), pool._connection():
        waiting = [asyncio.create_task(backend(pool)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in waiting[:4]:
            task.cancel()
        await asyncio.wait(waiting[:4])
    assert await waiting[4]


async def test_an_answer_that_takes_too_long_is_given_up(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "QUERY_SECONDS", 0.05)
    with pytest.raises(Unavailable):
        await pool.fetch("SELECT pg_sleep(60)")
    assert (await pool.fetch("SELECT 7"))[0][0] == 7


async def test_nobody_waits_for_ever_for_a_connection(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "ACQUIRE_SECONDS", 0.05)
    async with pool._connection(), pool._connection():
        with pytest.raises(Unavailable):
            await backend(pool)
    assert await backend(pool)


async def test_one_that_the_server_has_closed_is_replaced(pool: Pool, database_url: str) -> None:
    first = await backend(pool)
    async with connected(database_url) as connection:
        await connection.execute("SELECT pg_terminate_backend($1)", first)
    await until(pool._idle[0][1].is_closed)
    assert await backend(pool) != first


async def test_one_that_has_rested_for_long_is_replaced(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(connection_module, "monotonic", clock)
    first = await backend(pool)
    clock.now_s += 59
    assert await backend(pool) == first
    clock.now_s += 61
    assert await backend(pool) != first


async def test_an_outage_is_told_once_and_its_end_too(
    fragile: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(fragile.create_database(), 2)
    await backend(pool)
    fragile.stop()
    with caplog.at_level(logging.INFO, "zander.database.connection"):
        for _ in range(3):
            with pytest.raises(Unavailable, match="the database does not answer"):
                await backend(pool)
        fragile.start()
        for _ in range(3):
            await backend(pool)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    await pool.close()


async def test_what_the_database_refuses_is_unavailable_and_the_next_question_is_not(pool: Pool) -> None:
    with pytest.raises(Unavailable):
        await pool.fetch("SELECT * FROM not_there")
    assert await backend(pool)


async def test_an_answer_is_on_the_disk_even_where_the_database_is_careless(pool: Pool, database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute(f"ALTER DATABASE {database_url.rpartition('/')[2]} SET synchronous_commit = off")
    assert (await pool.fetch("SHOW synchronous_commit"))[0][0] == "on"


async def test_close_does_not_wait_for_a_question(pool: Pool, database_url: str) -> None:
    asking = asyncio.create_task(pool.fetch("SELECT pg_sleep(60)"))
    await reach(database_url, 1)
    await pool.close()
    with pytest.raises(Unavailable):
        await asking
    await reach(database_url, 0)
