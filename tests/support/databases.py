"""The databases of the tests as fixtures: a real PostgreSQL, a real TimescaleDB."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from support.services import PostgresServer
from support.timescale_server import TimescaleUnavailable, fresh_schema, timescale_server
from zander.database.writer import DatabaseWriter


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for all tests; one that stops it starts it again."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database_url(postgres: PostgresServer) -> str:
    """An empty database on it."""
    return postgres.create_database()


_TIMESCALE = pytest.StashKey[str | TimescaleUnavailable]()


def _timescale(config: pytest.Config) -> str:
    """Start a TimescaleDB for the whole run. Without Node tests are skipped, unless ZANDER_REQUIRE_TIMESCALE is 1."""
    if _TIMESCALE not in config.stash:
        server = ExitStack()
        try:
            config.stash[_TIMESCALE] = server.enter_context(timescale_server())
        except TimescaleUnavailable as why:
            config.stash[_TIMESCALE] = why
        config.add_cleanup(server.close)
    found = config.stash[_TIMESCALE]
    if isinstance(found, str):
        return found
    if os.environ.get("ZANDER_REQUIRE_TIMESCALE") == "1":
        raise found
    pytest.skip(f"no TimescaleDB: {found}")


@pytest.fixture
async def timescale_url(pytestconfig: pytest.Config) -> AsyncIterator[str]:
    """An empty schema on a TimescaleDB."""
    async with fresh_schema(_timescale(pytestconfig)) as dsn:
        yield dsn


@pytest.fixture(params=["database_url", "timescale_url"])
def any_database_url(request: pytest.FixtureRequest) -> str:
    """An empty place on either."""
    return str(request.getfixturevalue(request.param))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Connect to look at what was written."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def opened(
    url: str, retention_days: float | None = None, columnstore_after_hours: float = 1e5
) -> AsyncIterator[DatabaseWriter]:
    """Open a storage, and close it at the end. No row is late, of whatever year."""
    storage = DatabaseWriter(url, retention_days=retention_days, columnstore_after_hours=columnstore_after_hours)
    try:
        await storage.open()
        yield storage
    finally:
        await storage.close()


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until a condition holds; TimeoutError when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (a condition on the database sets no event)
            await asyncio.sleep(0.001)
