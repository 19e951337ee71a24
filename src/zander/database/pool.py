"""The few connections that read the database while a request waits for the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any

from zander.database.connection import CLOSE_SECONDS, FAILURES, Connection, connect, plain_dsn, reason
from zander.errors import StorageError, Unavailable

Row = Any  # asyncpg has no types of its own

WAIT_SECONDS = 10.0  # for one of the connections
COMMAND_SECONDS = 10.0
IDLE_SECONDS = 60.0  # after which a connection may have been cut on its way without a word

# A page is to be found by going along the index until it is full. A plan made for any values, or for a chunk that the
# server knows nothing of yet, might gather a whole session first: 100 ms instead of 0.1.
SETTINGS = """
SET plan_cache_mode = force_custom_plan;
SET enable_bitmapscan = off;
SET statement_timeout = '15s'
"""

log = logging.getLogger(__name__)


class Pool:
    """Up to `size` connections, opened when needed. Times come and go as µs since 1970.

    One whose statement did not end well, or was given up half-way, is never used again.
    """

    def __init__(self, database_url: str, size: int) -> None:
        self._dsn = plain_dsn(database_url)
        self._turns = asyncio.Semaphore(size)
        self._idle: list[tuple[float, Connection]] = []  # since when; the last to come back is the first to go
        self._used: set[Connection] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_failing = False

    async def fetch(self, statement: str, *values: object) -> list[Row]:
        """Execute one statement and return its rows; Unavailable when the database is away or refuses."""
        try:
            async with self._connection() as connection:
                rows: list[Row] = await connection.fetch(statement, *values)
        except (StorageError, *FAILURES) as error:
            self._tell(reason(error))
            raise Unavailable("the database does not answer") from None
        self._tell(None)
        return rows

    async def close(self) -> None:
        """Close all connections, whatever they do; a later `fetch` opens new ones."""
        idle, self._idle = self._idle, []
        for connection in (*self._used, *(connection for _, connection in idle)):
            self._retire(connection)
        if self._retiring:
            await asyncio.wait(self._retiring)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with asyncio.timeout(WAIT_SECONDS):
            await self._turns.acquire()
        try:
            connection = self._rested() or await connect(self._dsn, SETTINGS, COMMAND_SECONDS)
            self._used.add(connection)
            try:
                yield connection
            except BaseException:
                self._retire(connection)
                raise
            finally:
                self._used.discard(connection)
            self._idle.append((monotonic(), connection))
        finally:
            self._turns.release()

    def _rested(self) -> Connection | None:
        while self._idle:
            since_s, connection = self._idle.pop()
            if not connection.is_closed() and monotonic() - since_s < IDLE_SECONDS:
                return connection
            self._retire(connection)
        return None

    def _retire(self, connection: Connection) -> None:
        """Close a connection, and let nobody wait for it."""
        task = asyncio.create_task(_close(connection))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _tell(self, failure: str | None) -> None:
        """Log a change from answers to failures, or back."""
        if failure and not self._is_failing:
            log.warning("the database cannot be read: %s", failure)
        elif self._is_failing and not failure:
            log.info("the database can be read again")
        self._is_failing = failure is not None


async def _close(connection: Connection) -> None:
    """Close a connection: a statement that nobody waits for any more is called off first, where the server listens."""
    with suppress(*FAILURES):
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await connection.close(timeout=CLOSE_SECONDS)
        finally:
            connection.terminate()
