"""The connection that writes: batches, each once however often it is tried, and the hourly deletes."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, time

from zander.database.connection import CLOSE_SECONDS, FAILURES, Connection, connect, plain_dsn, reason
from zander.database.late import ARE_THERE, LateRows
from zander.database.migrations import migrate
from zander.database.timescale import Tuning, delete_expired, tune
from zander.database.transaction import END_SESSIONS, POSITION, outcome, write
from zander.errors import Moved, StorageError
from zander.journal.batch import Batch, Written

COMMAND_SECONDS = 30.0
PING_SECONDS = 5.0
EXPIRE_EVERY_SECONDS = 3600.0

# A server that lost its client must not keep the row of `writers` locked for the two hours of a usual TCP keepalive.
SETTINGS = """
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 4
"""

log = logging.getLogger(__name__)


class DatabaseWriter:
    """The one connection to PostgreSQL that writes batches (`journal.batch.BatchStore`)."""

    def __init__(self, database_url: str, *, retention_days: float | None, columnstore_after_hours: float) -> None:
        self._dsn = plain_dsn(database_url)
        self._retention_days = retention_days
        self._columnstore_after_hours = columnstore_after_hours
        self._connection: Connection = None
        self._tuning: Tuning | None = None
        self._late = LateRows(self._dsn)
        self._expiry: asyncio.Task[None] | None = None
        self._expire_s = 0.0  # when the next deletes are due

    async def open(self) -> None:
        """Connect, migrate, tune; StorageError when that is not possible now."""
        self._drop()
        with self._dropping_on_error():
            self._connection = connection = await connect(self._dsn, SETTINGS, COMMAND_SECONDS)
            await migrate(connection)
            tuning = await tune(connection, self._retention_days, self._columnstore_after_hours)
            if await connection.fetchval(ARE_THERE):
                self._late.move()
        if tuning != self._tuning:
            log.log(logging.INFO if tuning.complete else logging.WARNING, tuning.sentence)
        self._tuning = tuning

    async def position(self, writer_id: uuid.UUID) -> int:
        """Return the offset up to which a journal is committed; 0 for an unknown one."""
        with self._dropping_on_error():
            return await self._connected().fetchval(POSITION, writer_id) or 0

    async def finish(self, writer_id: uuid.UUID) -> None:
        """End the sessions that a dead process had open, with its last sample."""
        with self._dropping_on_error():
            await self._connected().execute(END_SESSIONS, writer_id)

    async def write(self, batch: Batch, *, is_alone: bool = False) -> Written:
        """Write all of the batch or nothing, once; StorageError, of which Moved is one."""
        with self._dropping_on_error():
            written = await write(self._connected(), batch, is_alone=is_alone, late_us=self._late_us)
        if written.has_late_rows:
            self._late.move()
        return written

    async def outcome(self, batch: Batch) -> Written | None:
        """Return what a batch made durable whose write failed; None when it is not committed. StorageError."""
        with self._dropping_on_error():
            return await outcome(self._connected(), batch)

    async def ping(self) -> None:
        """Check the connection, and start the hourly deletes when due; StorageError when there is no answer."""
        with self._dropping_on_error():
            await self._connected().execute("SELECT 1", timeout=PING_SECONDS)
        self._expire_when_due()

    async def close(self) -> None:
        """Close the connection; safe at any time."""
        await self._late.close()
        if self._expiry:
            self._expiry.cancel()
            await asyncio.wait([self._expiry])
        connection, self._connection = self._connection, None
        if connection:
            with suppress(*FAILURES):
                await connection.close(timeout=CLOSE_SECONDS)

    @property
    def _late_us(self) -> int | None:
        """The time before which a row's chunk may be turned into columns just now; None: nothing ever is."""
        if self._tuning is None or not self._tuning.converts:
            return None
        return int((time() - self._columnstore_after_hours * 3600) * 1e6)

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            raise StorageError("the connection is closed")
        return self._connection

    @contextmanager
    def _dropping_on_error(self) -> Iterator[None]:
        """Drop the connection after any error.

        A connection in doubt is never used again. Dropping it makes the server roll back, unless it had the COMMIT
        already: the retry finds out.
        """
        try:
            yield
        except Moved:  # all is rolled back, and well
            raise
        except BaseException as error:
            self._drop()
            if isinstance(error, FAILURES):
                raise StorageError(reason(error)) from None
            raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.terminate()

    def _expire_when_due(self) -> None:
        if self._retention_days is None or self._tuning is None or self._tuning.expires:
            return
        if monotonic() >= self._expire_s and (self._expiry is None or self._expiry.done()):
            self._expire_s = monotonic() + EXPIRE_EVERY_SECONDS
            self._expiry = asyncio.create_task(self._expire(self._retention_days))

    async def _expire(self, retention_days: float) -> None:
        """Delete what is too old, on a connection of its own: no batch waits for it."""
        connection = None
        try:
            connection = await connect(self._dsn, SETTINGS, COMMAND_SECONDS)
            if n_deleted := await delete_expired(connection, retention_days):
                log.info("retention: %d rows or chunks older than %g days deleted", n_deleted, retention_days)
        except (StorageError, *FAILURES) as error:
            log.warning("retention: not everything older than %g days is deleted: %s", retention_days, reason(error))
        finally:
            if connection:
                connection.terminate()
