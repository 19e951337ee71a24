"""Late rows: those whose chunk of a hypertable may be turned into columns just now.

That takes minutes to hours, and a COPY into the chunk waits for it: one relay that comes back with a spool of days
would stall everybody. So late rows are written to plain tables, `late_…`, in the transaction of their batch, and moved
from there in transactions of their own, for which nobody waits. A reader looks into both, in one statement: so it sees
each row once, whenever that moves.
"""

from __future__ import annotations

import asyncio
import logging

from zander.database.connection import FAILURES, Connection, connect, reason
from zander.errors import StorageError
from zander.retry import Backoff

MOVED_ROWS = 20_000  # in one transaction
FIRST_SECONDS = 1.0  # of the pauses after a failure
MAX_SECONDS = 60.0
COMMAND_SECONDS = 30.0
MOVE_SECONDS = 7 * 86_400.0  # a chunk may be large
SETTINGS = {"tcp_keepalives_idle": "10"}
LIMITS = """
SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '60s'
"""

TABLES = ("raw_eeg", "predictions")
ARE_THERE = "SELECT EXISTS (SELECT FROM late_raw_eeg) OR EXISTS (SELECT FROM late_predictions)"
# Of several nodes each takes rows that no other has.
MOVE = """
WITH moved AS (
    DELETE FROM late_{table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM late_{table} LIMIT {n} FOR UPDATE SKIP LOCKED))
    RETURNING *
)
INSERT INTO {table} SELECT * FROM moved
"""

log = logging.getLogger(__name__)


def of_both(select: str, table: str, where: str, order: str, limit: str) -> str:
    """Write a query of a table and of the late rows that belong to it, `limit` of them in an order.

    Each is ordered by itself: a plain UNION ALL would read every chunk instead of the first that has enough.
    """
    of_each = (
        f"(SELECT {select} FROM {each} WHERE {where} ORDER BY {order} LIMIT {limit})"
        for each in (table, f"late_{table}")
    )
    return " UNION ALL ".join(of_each)


class LateRows:
    """The late rows of the database, moved to their tables by a task on a connection of its own."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._task: asyncio.Task[None] | None = None
        self._has_more = False
        self._backoff = Backoff(FIRST_SECONDS, MAX_SECONDS)

    def move(self) -> None:
        """Move what is there, and let nobody wait for it."""
        self._has_more = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Move no more; the next node goes on."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        failed = False
        while self._has_more:
            self._has_more = False
            try:
                await self._move_all()
            except (StorageError, *FAILURES) as error:
                if not failed:
                    log.warning("late rows are not in their tables yet: %s", reason(error))
                failed = self._has_more = True
                await asyncio.sleep(self._backoff.next_s())
            else:
                self._backoff.reset()

    async def _move_all(self) -> None:
        connection = await connect(self._database_url, SETTINGS, COMMAND_SECONDS)
        try:
            for table in TABLES:
                while await move(connection, table):
                    pass
        finally:
            connection.terminate()


async def move(connection: Connection, table: str) -> int:
    """Move some late rows to their table in one transaction; return how many. It may wait for hours."""
    await connection.execute(f"{connection.begin}; {LIMITS}")
    moved: str = await connection.execute(MOVE.format(table=table, n=MOVED_ROWS), timeout=MOVE_SECONDS)
    await connection.execute("COMMIT")
    return int(moved.removeprefix("INSERT 0 "))
