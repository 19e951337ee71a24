"""The connection that writes: batches, each once however often it is tried."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import time

from zander.database.claim import POSITION, outcome
from zander.database.connection import CLOSE_SECONDS, FAILURES, Connection, connect, reason
from zander.database.indexes import index_empty_tables
from zander.database.late import ARE_THERE, LateRows
from zander.database.maintenance import Maintenance
from zander.database.migrations import migrate
from zander.database.session_statements import END_SESSIONS
from zander.database.timescale import Tuning, tune
from zander.database.transaction import write
from zander.errors import Moved, StorageError
from zander.journal.batch import Batch, Written

COMMAND_SECONDS = 30.0
PING_SECONDS = 5.0

# A server that lost its client must not keep the row of `writers` locked for the two hours of a usual TCP keepalive.
SETTINGS = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
}

WRITABLE = "SELECT 1 WHERE current_setting('transaction_read_only') = 'off'"
READ_ONLY = (
    "it takes read-only transactions alone: a standby, or default_transaction_read_only is on;"
    " a DATABASE_URL of several hosts needs target_session_attrs=read-write"
)

log = logging.getLogger(__name__)


class DatabaseWriter:
    """The one connection to PostgreSQL that writes batches (`journal.batch.BatchStore`)."""

    def __init__(
        self,
        database_url: str,
        *,
        retention_days: float | None,
        columnstore_after_hours: float,
        chunk_hours: float | None = None,
    ) -> None:
        self._database_url = database_url
        self._retention_days = retention_days
        self._columnstore_after_hours = columnstore_after_hours
        self._chunk_hours = chunk_hours
        self._connection: Connection = None
        self._tuning: Tuning | None = None
        self._late = LateRows(database_url)
        self._maintenance = Maintenance(database_url, retention_days)

    async def open(self) -> None:
        """Connect, migrate, tune; StorageError when that is not possible now."""
        self._drop()
        with self._dropping_on_error():
            self._connection = connection = await connect(self._database_url, SETTINGS, COMMAND_SECONDS)
            await _require_writable(connection)
            await migrate(connection)
            tuning = await tune(connection, self._retention_days, self._columnstore_after_hours, self._chunk_hours)
            await index_empty_tables(connection)
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
            compresses = self._tuning is not None and self._tuning.compresses_copies
            written = await write(
                self._connected(), batch, self._late_us, is_alone=is_alone, compresses_copies=compresses
            )
        if written.has_late_rows:
            self._late.move()
        return written

    async def outcome(self, batch: Batch) -> Written | None:
        """Return what a batch made durable whose write failed; None when it is not committed. StorageError."""
        with self._dropping_on_error():
            return await outcome(self._connected(), batch)

    async def ping(self) -> None:
        """Check the connection, and start the maintenance when due; StorageError when nothing can be written."""
        with self._dropping_on_error():
            await _require_writable(self._connected())
        if self._tuning:
            self._maintenance.start_when_due(self._tuning)

    async def close(self) -> None:
        """Close the connection; safe at any time."""
        await self._late.close()
        await self._maintenance.close()
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


async def _require_writable(connection: Connection) -> None:
    """Check that the server answers and takes writes, also where there is nothing to write; else StorageError."""
    if await connection.execute(WRITABLE, timeout=PING_SECONDS) != "SELECT 1":
        raise StorageError(READ_ONLY)
