"""Maintenance of the database: what is due at the start or every hour, and no batch waits for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic

import asyncpg

from zander.database.connection import FAILURES, Connection, close, connect, reason
from zander.database.indexes import build_missing, index_empty_tables, missing
from zander.database.migrations import migrate
from zander.database.timescale import Tuning, delete_expired, large_chunks
from zander.errors import StorageError

EVERY_SECONDS = 3600.0
RETRY_SECONDS = 60.0  # where a table was in use
COMMAND_SECONDS = 30.0
SETTINGS = {"statement_timeout": "0", "lock_timeout": "0"}

log = logging.getLogger(__name__)


async def migrate_at(database_url: str) -> list[str]:
    """Connect, and apply the missing migrations; StorageError when the database cannot be reached or refuses."""
    async with _connected(database_url) as connection:
        names = await migrate(connection)
        await index_empty_tables(connection)
    return names


async def index_at(database_url: str, say: Callable[[str], None]) -> None:
    """Connect, and build the missing indexes; `say` tells which. StorageError as for `migrate_at`."""
    async with _connected(database_url) as connection:
        if names := [index.name for index in await missing(connection)]:
            say(f"indexes: {', '.join(names)} are being built; who reads and writes goes on")
        for name in await build_missing(connection):
            say(f"index {name} is built")


@asynccontextmanager
async def _connected(database_url: str) -> AsyncIterator[Connection]:
    try:
        connection = await connect(database_url, SETTINGS, COMMAND_SECONDS)
        try:
            yield connection
        finally:
            connection.terminate()  # in the middle of a statement it would wait for its end
    except FAILURES as error:
        raise StorageError(f"the database cannot be migrated: {error or type(error).__name__}") from None


class Maintenance:
    """Indexes built, expired rows deleted and chunks measured, on a connection of its own."""

    def __init__(self, database_url: str, retention_days: float | None) -> None:
        self._database_url = database_url
        self._retention_days = retention_days
        self._task: asyncio.Task[None] | None = None
        self._due_s = 0.0
        self._told: set[str] = set()

    def start_when_due(self, tuning: Tuning) -> None:
        """Start, unless it runs or is not due; `tuning` says what the database does by itself."""
        if monotonic() >= self._due_s and (self._task is None or self._task.done()):
            self._due_s = monotonic() + EVERY_SECONDS
            self._task = asyncio.create_task(self._run(tuning))

    async def close(self) -> None:
        """End it, also in the middle; what is half done is done again."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, tuning: Tuning) -> None:
        try:
            connection = await connect(self._database_url, SETTINGS, COMMAND_SECONDS)
        except (StorageError, *FAILURES) as error:
            self._tell("connection", f"maintenance: {reason(error)}")
            return
        try:
            await self._attempt("indexes", build_missing(connection))
            await self._attempt("chunks", self._measure(connection))
            if self._retention_days is not None and not tuning.expires:
                await self._attempt("retention", self._expire(connection, self._retention_days))
        finally:
            await close(connection)

    async def _attempt(self, name: str, work: Awaitable[object]) -> None:
        """Do one thing; what the server refuses is told, and tried again with the next maintenance."""
        try:
            await work
        except (StorageError, *FAILURES) as error:
            if isinstance(error, asyncpg.LockNotAvailableError):
                self._due_s = monotonic() + RETRY_SECONDS
            self._tell(name, f"{name}: {reason(error)}")

    async def _measure(self, connection: Connection) -> None:
        for table, sentence in (await large_chunks(connection)).items():
            self._tell(table, sentence)

    async def _expire(self, connection: Connection, days: float) -> None:
        if n_deleted := await delete_expired(connection, days):
            log.info("retention: %d rows or chunks older than %g days deleted", n_deleted, days)

    def _tell(self, what: str, sentence: str) -> None:
        """Log a warning of something once."""
        if what not in self._told:
            log.warning(sentence)
        self._told.add(what)
