"""Indexes that replace those of the first schema, made beside a running service.

In ascending order each user's rows grow at the right end of their part of the index. Where a key has up to 24 bytes,
which is a user id of up to 7, PostgreSQL notices and leaves full pages behind: 31.7 bytes a row instead of 56.0, and
11 % less in its log. Longer ids cost 72 in either order. A backward scan serves the other direction as well.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import NamedTuple

import asyncpg

from zander.database.connection import Connection
from zander.database.migrations import LOCK, MAX_SECONDS, exclusive
from zander.database.timescale import is_hypertable
from zander.errors import StorageError

BUILD_LOCK = LOCK + 2
LOCK_SECONDS = 2  # for the lock of a hypertable: meanwhile everybody waits behind us

CHUNKS = """
SELECT quote_ident(chunk_schema), quote_ident(chunk_name) FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema() AND hypertable_name = $1 ORDER BY range_start DESC
"""

log = logging.getLogger(__name__)


class Index(NamedTuple):
    """An index, and the one that it makes needless."""

    table: str
    name: str
    columns: str
    replaces: str | None = None


INDEXES = (
    Index("raw_eeg", "raw_eeg_by_user_time", "user_id, timestamp", "raw_eeg_by_user"),
    Index("predictions", "predictions_by_user_time", "user_id, timestamp, serial", "predictions_by_user"),
    Index("sessions", "sessions_by_start", "start_time DESC, session_id DESC"),
)


async def index_empty_tables(connection: Connection) -> None:
    """Create what is missing on tables without rows, at once; a missing privilege is for `build_missing` to tell."""
    if not await missing(connection):
        return
    with suppress(asyncpg.InsufficientPrivilegeError):
        async with exclusive(connection):
            for index in await missing(connection):
                if not await connection.fetchval(f"SELECT EXISTS (SELECT FROM {index.table})"):
                    await connection.execute(f"DROP INDEX IF EXISTS {index.name}, {index.replaces or index.name}")
                    await connection.execute(f"CREATE INDEX {index.name} ON {index.table} ({index.columns})")


async def missing(connection: Connection) -> list[Index]:
    """Return the indexes that are not there, not whole, or beside the one that they replace."""
    return [index for index in INDEXES if not await _is_done(connection, index)]


async def build_missing(connection: Connection) -> list[str]:
    """Create what is missing while others write, drop what is replaced, and return the names.

    It takes minutes where there are many rows. StorageError through a pooler, which keeps no lock for us; a
    LockNotAvailableError when a hypertable was in use: try again later. Nothing where another node builds.
    """
    if not (found := await missing(connection)):
        return []
    if connection.is_pooled:
        names = ", ".join(index.name for index in found)
        raise StorageError(f"{names}: not built through a pooler; run `zander migrate` with the address of the server")
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", BUILD_LOCK):
        return []
    for index in await missing(connection):
        log.info("index %s is being built", index.name)
        await _build(connection, index)
        log.info("index %s is built", index.name)
    await connection.execute("SELECT pg_advisory_unlock($1)", BUILD_LOCK)
    return [index.name for index in found]


async def _is_done(connection: Connection, index: Index) -> bool:
    is_valid = await _is_valid(connection, index.name)
    return bool(is_valid) and (index.replaces is None or await _is_valid(connection, index.replaces) is None)


async def _is_valid(connection: Connection, name: str) -> bool | None:
    """Return whether an index is whole, None where there is none; a build that was interrupted leaves half of one."""
    valid: bool | None = await connection.fetchval(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)", name
    )
    return valid


async def _build(connection: Connection, index: Index) -> None:
    if await is_hypertable(connection, index.table):
        await _build_on_chunks(connection, index)
        return
    await _build_concurrently(connection, index.name, index.table, index.columns)
    if index.replaces:
        await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index.replaces}", timeout=MAX_SECONDS)


async def _build_on_chunks(connection: Connection, index: Index) -> None:
    """Create an index for the chunks to come, then on each that is there: CONCURRENTLY is not for hypertables."""
    if not await _is_valid(connection, index.name):
        create = f"CREATE INDEX {index.name} ON ONLY {index.table} ({index.columns})"
        await _in_a_moment(connection, f"DROP INDEX IF EXISTS {index.name}; {create}")
    for schema, chunk in await connection.fetch(CHUNKS, index.table):
        name = f"{chunk}_{index.name}"  # as TimescaleDB would call it
        await _build_concurrently(connection, name, f"{schema}.{chunk}", index.columns, schema)
    if index.replaces:
        await _in_a_moment(connection, f"DROP INDEX IF EXISTS {index.replaces}")


async def _build_concurrently(connection: Connection, name: str, table: str, columns: str, schema: str = "") -> None:
    """Create an index unless it is there; what an interrupted build has left is dropped first."""
    path = f"{schema}.{name}" if schema else name
    is_valid = await _is_valid(connection, path)
    if is_valid is False:
        await connection.execute(f"DROP INDEX CONCURRENTLY {path}", timeout=MAX_SECONDS)
    if not is_valid:
        await connection.execute(f"CREATE INDEX CONCURRENTLY {name} ON {table} ({columns})", timeout=MAX_SECONDS)


async def _in_a_moment(connection: Connection, statements: str) -> None:
    """Execute what is short but locks a hypertable and its chunks; LockNotAvailableError where it is in use."""
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
        await connection.execute(statements, timeout=MAX_SECONDS)
