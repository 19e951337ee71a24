"""Plain tables with many rows made hypertables, by `zander migrate` and by nothing else: it may take hours.

That is the case of a database that got the extension later. Each table is one transaction: interrupted, nothing has
changed. Nobody reads or writes the table meanwhile, and what relays send waits in the journals of the nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic

from zander.database.connection import FAILURES, Connection, connect
from zander.database.timescale import TABLES, create_hypertable, is_hypertable, tune
from zander.errors import StorageError

PROGRESS_SECONDS = 5.0
TIMESCALE = "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"
DATABASE_BYTES = "SELECT pg_database_size(current_database())"  # also what others have not committed yet
TABLE_BYTES = "SELECT pg_total_relation_size($1::text::regclass)"

Say = Callable[[str], None]


async def convert_at(
    dsn: str, retention_days: float | None, columnstore_after_hours: float, chunk_hours: float | None, say: Say
) -> None:
    """Connect, make hypertables of the plain tables where TimescaleDB is there, and set them up; `say` tells how far.

    StorageError when the database cannot be reached or refuses.
    """
    try:
        connection = await connect(dsn, {}, None)
        try:
            if await connection.fetchval(TIMESCALE):
                for table in TABLES:
                    if not await is_hypertable(connection, table):
                        await _convert(connection, dsn, table, chunk_hours, say)
                say((await tune(connection, retention_days, columnstore_after_hours, chunk_hours)).sentence)
        finally:
            connection.terminate()  # in the middle of a statement it would wait for its end
    except FAILURES as error:
        raise StorageError(f"the database cannot be migrated: {error or type(error).__name__}") from None


async def _convert(connection: Connection, dsn: str, table: str, chunk_hours: float | None, say: Say) -> None:
    n_bytes, began_s = await connection.fetchval(TABLE_BYTES, table), monotonic()
    say(
        f"{table}: {n_bytes >> 20} MiB become a hypertable. It takes as much room on the disk again. Until it is done,"
        " nobody reads or writes the table, and what relays send waits in the journals, up to JOURNAL_MAX_BYTES."
        " Ctrl-C: nothing has changed then"
    )
    async with _progress(dsn, table, n_bytes, say), connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        try:
            await connection.execute(create_hypertable(table, chunk_hours))
        except asyncio.CancelledError:
            say(f"{table}: interrupted, nothing has changed")
            raise
    say(f"{table}: done in {monotonic() - began_s:.0f} s")


@asynccontextmanager
async def _progress(dsn: str, table: str, n_bytes: int, say: Say) -> AsyncIterator[None]:
    task = asyncio.create_task(_tell(dsn, table, n_bytes, say))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _tell(dsn: str, table: str, n_bytes: int, say: Say) -> None:
    """Say how far it is, by what the database has grown; not where that cannot be asked."""
    with suppress(*FAILURES):
        connection = await connect(dsn, {}, None)
        try:
            began_s, before = monotonic(), await connection.fetchval(DATABASE_BYTES)
            while True:
                await asyncio.sleep(PROGRESS_SECONDS)
                share = min(0.99, (await connection.fetchval(DATABASE_BYTES) - before) / max(1, n_bytes))
                say(f"{table}: about {share:.0%} after {monotonic() - began_s:.0f} s")
        finally:
            connection.terminate()
