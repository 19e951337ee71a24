"""Numbered SQL files that bring a database up to the schema of this version.

They run at every start, in one transaction under a lock for all nodes, and change nothing that is already so.
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


async def migrate(connection: Connection) -> list[str]:
    """Apply the migrations that the database does not have, and return their names.

    One that fails leaves nothing behind, and those before it stay. StorageError when the database has some that we do
    not know: an older version must not write to it.
    """
    names: list[str] = []
    failure: Exception | None = None
    async with exclusive(connection):
        for migration in await _missing(connection):
            try:
                await _apply(connection, migration)
            except asyncpg.PostgresError as error:
                failure = error
                break
            names.append(migration.name)
    for name in names:
        log.info("database migrated: %s", name)
    if failure:
        raise failure
    return names


async def _missing(connection: Connection) -> list[Migration]:
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        await connection.execute(SCHEMA_MIGRATIONS)  # IF NOT EXISTS would ask for the privilege each time
    applied = await connection.fetchval("SELECT coalesce(max(version), 0) FROM schema_migrations")
    known = migrations()
    if applied > known[-1].version:
        raise StorageError(
            f"the database has schema version {applied}, this Zander knows {known[-1].version}: update it"
        )
    return [migration for migration in known if migration.version > applied]


async def _apply(connection: Connection, migration: Migration) -> None:
    async with connection.transaction():  # a savepoint
        await connection.execute(migration.sql, timeout=MAX_SECONDS)
        await connection.execute(
            "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", migration.version, migration.name
        )


@asynccontextmanager
async def exclusive(connection: Connection) -> AsyncIterator[None]:
    """Keep other nodes out during a transaction, which has all the time it needs.

    The lock is the transaction's: one of the session would stay with a pooler. Who waits for it has a snapshot, and a
    CREATE INDEX CONCURRENTLY waits for that: nothing under this lock may wait for one.
    """
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK, timeout=MAX_SECONDS)
        yield
