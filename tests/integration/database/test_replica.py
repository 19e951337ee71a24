"""A read replica that is late, wrong or away: history shows what it has, and a replay loses nothing by it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from support.clients import consumer, relay
from support.databases import connected
from support.nodes import Node
from support.services import PostgresServer, StandbyServer, eventually
from support.stored_sessions import PastSession, every, prepare, stored
from zander.database.connection import Pool
from zander.database.sessions import DatabaseSessions
from zander.wire.chunk import Chunk
from zander.wire.messages import Gap

StartNode = Callable[..., Node]


def ranges(items: list[Chunk | Gap]) -> list[tuple[str, int, int]]:
    """What items hold, joined where they follow each other."""
    found: list[tuple[str, int, int]] = []
    for item in items:
        kind, start = ("gap", item.start) if isinstance(item, Gap) else ("raw", item.position)
        if found and found[-1][::2] == (kind, start):
            start = found.pop()[1]
        found.append((kind, start, item.end))
    return found


# Two databases, of which one is behind.


@asynccontextmanager
async def replicated(url: str, replica_url: str) -> AsyncIterator[DatabaseSessions]:
    pools = Pool(url, 2), Pool(url, 2), Pool(replica_url, 2, "READ_DATABASE_URL", "the read replica")
    yield DatabaseSessions(*pools)
    for pool in pools:
        await pool.close()


async def copies(postgres: PostgresServer, database_url: str) -> tuple[PastSession, PastSession, str]:
    """Make a session in two databases."""
    replica_url = postgres.create_database()
    for url in (database_url, replica_url):
        await prepare(url)
    session, late = PastSession(database_url, "me"), PastSession(replica_url, "me")
    late.session_id = session.session_id
    return await session.begin(), await late.begin(), replica_url


async def everything(store: DatabaseSessions, session: PastSession) -> list[tuple[str, int, int]]:
    """Read a session to its durable end, in pages."""
    found = await stored(store, session)
    items: list[Chunk | Gap] = []
    position = 0
    while page := await store.samples(found, position, 30):
        items += page
        position = page[-1].end
    return ranges(items)


async def test_what_a_late_replica_lacks_comes_from_the_database(postgres: PostgresServer, database_url: str) -> None:
    session, late, replica_url = await copies(postgres, database_url)
    await session.write(every(10_000, [*range(200), *range(210, 300)]))
    await session.gap(200, 210)
    await late.write(every(10_000, range(70)))
    async with replicated(database_url, replica_url) as store:
        whole = [("raw", 0, 200), ("gap", 200, 210), ("raw", 210, 300)]
        assert await everything(store, session) == whole
        async with connected(database_url) as connection:
            await connection.execute("DELETE FROM raw_eeg WHERE position < 60")  # so it shows who has answered
        assert await everything(store, session) == whole


async def test_a_replica_that_says_more_than_it_has_opens_no_hole(postgres: PostgresServer, database_url: str) -> None:
    """As several behind one address do, of which one has the session's row, and another the samples."""
    session, late, replica_url = await copies(postgres, database_url)
    await session.write(every(10_000, range(300)))
    await late.write(every(10_000, [*range(40), *range(100, 150), *range(280, 300)]))
    async with replicated(database_url, replica_url) as store:
        assert await everything(store, session) == [("raw", 0, 300)]


async def test_a_replica_that_is_away_or_knows_nothing_is_done_without(
    postgres: PostgresServer, database_url: str
) -> None:
    session, _, _ = await copies(postgres, database_url)
    await session.write(every(10_000, range(100)))
    for replica_url in ("postgresql://u:p@127.0.0.1:1/d", postgres.create_database()):
        async with replicated(database_url, replica_url) as store:
            assert await everything(store, session) == [("raw", 0, 100)]


# A real one.


@pytest.fixture(scope="module")
def primary() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def standby(primary: PostgresServer) -> Iterator[StandbyServer]:
    with StandbyServer(primary) as server:
        yield server


@asynccontextmanager
async def paused(standby: StandbyServer) -> AsyncIterator[None]:
    """Let a standby fall behind."""
    async with connected(standby.dsn) as connection:
        await connection.execute("SELECT pg_wal_replay_pause()")
        try:
            yield
        finally:
            await connection.execute("SELECT pg_wal_replay_resume()")


async def replicate(url: str) -> None:
    """Wait until a new database is at the standby."""
    async with asyncio.timeout(10):
        while True:
            with suppress(asyncpg.InvalidCatalogNameError):
                async with connected(url):
                    return


async def send(node: Node, user: str, positions: range, **fields: Any) -> str:
    """Send samples that carry their position until they are durable, and return their session."""
    async with relay(node.ws, user, ack=True, **fields) as edge:
        samples = [[position, 0] for position in positions]
        await edge.send({"type": "raw", "samples": samples, "position": positions.start})
        while (await edge.until("ack"))["durable"] < positions.stop:
            pass
        return edge.session_id


async def test_a_replay_loses_nothing_to_a_standby_that_is_behind(
    primary: PostgresServer, standby: StandbyServer, start_node: StartNode, user: str
) -> None:
    url = primary.create_database()
    await replicate(standby.of(url))
    node = start_node(database_url=url, read_database_url=standby.of(url), buffer_samples=10, buffer_keep_seconds=0)
    eventually(node.ready)
    session_id = await send(node, user, range(300))

    def at_standby() -> Any:
        return node.get(f"/sessions/{session_id}")[1].get("next_position")

    eventually(lambda: at_standby() == 300)
    async with paused(standby):
        await send(node, user, range(300, 700), session_id=session_id)
        later_id = await send(node, user, range(50))
        assert at_standby() == 300  # as REST shows it
        history = f"/history/{user}?start=0&end=9000000000&sample_type=raw&limit=1000"
        assert node.get(history)[1]["n"] == 300
        query = f"?types=raw,gap,status&format=chunks&session_id={session_id}&from=0"
        async with consumer(node.ws, user, query) as azure:
            found: dict[str, list[int]] = {session_id: [], later_id: []}
            while len(found[later_id]) < 50:
                message = await azure.receive()
                assert message["type"] != "gap", message
                if message["type"] == "raw":
                    found[message["session_id"]] += [int(sample[0]) for sample in message["samples"]]
        assert found == {session_id: list(range(700)), later_id: list(range(50))}
    eventually(lambda: at_standby() == 700)


async def test_a_standby_as_the_database_is_not_ready_and_says_why(
    primary: PostgresServer, standby: StandbyServer, start_node: StartNode, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    node = start_node(database_url=standby.dsn)
    eventually(lambda: "the database is away: it takes read-only transactions alone: a standby" in caplog.text)
    assert node.get("/health/ready") == (
        503,
        {"status": "degraded", "database": "down", "redis": "off", "journal": "up", "reason": None},
    )
