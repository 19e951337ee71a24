"""Numbered SQL files that bring a database up to the schema of this version.

They run at every start, under one lock for all nodes, and change nothing that is already so. After any error the
connection has to be closed: it may hold the lock.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import NamedTuple

import asyncpg

from zander.database.connection import Connection
from zander.errors import StorageError

CONNECT_SECONDS = 10.0
LOCK = 0x5A616E64  # "Zand": any number that nobody else is likely to take
MAX_SECONDS = 3600.0  # moving the rows of a large plain table into a hypertable takes its time
SCHEMA_MIGRATIONS = """
CREATE TABLE schema_migrations (
    version int PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""

log = logging.getLogger(__name__)


class Migration(NamedTuple):
    """A file of `schema/`: `0001_tables.sql` is version 1, `tables`."""

    version: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """Read all migrations, in order."""
    found = []
    for file in (files("zander.database") / "schema").iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(found)


async def migrate_at(dsn: str) -> list[str]:
    """Connect, and apply the missing migrations; StorageError when the database cannot be reached or refuses."""
    try:
        connection = await asyncpg.connect(dsn, timeout=CONNECT_SECONDS)
        try:
            return await migrate(connection)
        finally:
            await connection.close()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StorageError(f"the database cannot be migrated: {error or type(error).__name__}") from None


async def migrate(connection: Connection) -> list[str]:
    """Apply the migrations that the database does not have, and return their names.

    StorageError when the database has some that we do not know: an older version must not write to it.
    """
    async with exclusive(connection):
        if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
            await connection.execute(SCHEMA_MIGRATIONS)  # IF NOT EXISTS would ask for the privilege each time
        applied = await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_migrations")
        known = migrations()
        if applied > known[-1].version:
            raise StorageError(
                f"the database has schema version {applied}, this Zander knows {known[-1].version}: update it"
            )
        missing = [migration for migration in known if migration.version > applied]
        for migration in missing:
            await _apply(connection, migration)
    return [migration.name for migration in missing]


async def _apply(connection: Connection, migration: Migration) -> None:
    async with connection.transaction():
        await connection.execute(migration.sql, timeout=MAX_SECONDS)
        await connection.execute(
            "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", migration.version, migration.name
        )
    log.info("database migrated to version %d, %s", migration.version, migration.name)


@asynccontextmanager
async def exclusive(connection: Connection) -> AsyncIterator[None]:
    """Keep other nodes out, by a lock of the database session: there are several transactions to come.

    After an error the lock is not released, it ends with the connection: a server that does not answer would cost
    another timeout, and the statement could swallow a cancellation.
    """
    await connection.execute("SELECT pg_advisory_lock($1)", LOCK, timeout=MAX_SECONDS)
    yield
    await connection.execute("SELECT pg_advisory_unlock($1)", LOCK)
