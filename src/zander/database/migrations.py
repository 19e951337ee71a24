"""Bringing a database up to what this version expects: numbered SQL files, then TimescaleDB by the settings.

Both run at every start, under one lock for all nodes, and change nothing that is already so. After any error
the connection has to be closed: it may hold the lock.
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
EXPIRY_LOCK = LOCK + 1
PATIENCE_S = 3600.0  # moving the rows of a large plain table into a hypertable takes its time
ROWS_PER_DELETE = 20_000  # in one transaction: 0.1 s
SCHEMA_MIGRATIONS = """
CREATE TABLE schema_migrations (
    version int PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
TABLES = ("raw_eeg", "predictions")  # that grow with time

log = logging.getLogger(__name__)


class Migration(NamedTuple):
    """A file of `schema/`: `0001_tables.sql` is version 1, `tables`."""

    version: int
    name: str
    sql: str


class Tuning(NamedTuple):
    """What came of `tune`; `expires`: the database deletes by itself what is too old."""

    sentence: str
    complete: bool
    expires: bool


class _Timescale(NamedTuple):
    """The extension, as it is in this database."""

    version: str
    licence: str

    @property
    def has_columnstore(self) -> bool:
        """Whether the columnstore and the policies are there."""
        major, minor = re.findall(r"\d+", self.version)[:2]
        return self.licence != "apache" and (int(major), int(minor)) >= (2, 18)


def migrations() -> list[Migration]:
    """Read all migrations, in order."""
    found = []
    for file in (files("zander.database") / "schema").iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(found)


async def migrate_at(dsn: str) -> list[str]:
    """Connect, and apply what is missing; StorageError when the database cannot be reached or refuses."""
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
    async with _alone(connection):
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
        await connection.execute(migration.sql, timeout=PATIENCE_S)
        await connection.execute(
            "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)", migration.version, migration.name
        )
    log.info("database migrated to version %d, %s", migration.version, migration.name)


@asynccontextmanager
async def _alone(connection: Connection) -> AsyncIterator[None]:
    """Keep other nodes out, by a session's lock: there are several transactions to come.

    After an error it is not given back, it goes with the connection: asking a server that does not answer to
    take it back would cost another timeout, and could swallow a cancellation.
    """
    await connection.execute("SELECT pg_advisory_lock($1)", LOCK, timeout=PATIENCE_S)
    yield
    await connection.execute("SELECT pg_advisory_unlock($1)", LOCK)


async def tune(connection: Connection, retention_days: float | None, columnstore_after_hours: float) -> Tuning:
    """Make of the tables what the server allows: hypertables, a columnstore, policies as in the settings.

    What it does not allow is left out and named in the sentence: nothing of this is needed to write.
    """
    async with _alone(connection):
        tuner = _Tuner(connection)
        timescale = await tuner.timescale()
        if isinstance(timescale, str):
            await tuner.index_by_time()
            lacks = f"{timescale}: no hypertables or columnstore; retention by delete"
            return Tuning("; ".join([lacks, *tuner.failures]), complete=False, expires=False)
        expires = [await tuner.tune(table, timescale, retention_days, columnstore_after_hours) for table in TABLES]
    name = f"TimescaleDB {timescale.version} ({timescale.licence})"
    if tuner.failures:
        lacks = f"{name}, but {'; '.join(dict.fromkeys(tuner.failures))}"
        return Tuning(lacks, complete=False, expires=all(expires))
    kept = "for ever" if retention_days is None else f"{retention_days:g} days"
    has = f"{name}: columnstore after {columnstore_after_hours:g} h, kept {kept}"
    return Tuning(has, complete=True, expires=True)


class _Tuner:
    """Does what the server does not refuse, and keeps what it said when it did."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.failures: list[str] = []

    async def attempt(self, statement: str) -> bool:
        """Execute what may be refused, for want of a privilege or of a feature."""
        try:
            await self.connection.execute(statement, timeout=PATIENCE_S)
        except asyncpg.PostgresError as error:
            if self.connection.is_closed():
                raise
            self.failures.append(error.args[0])
            return False
        return True

    async def timescale(self) -> _Timescale | str:
        """Create the extension if need be; a string says why it is not there."""
        fetchval = self.connection.fetchval
        if found := await self._installed():
            return found
        if not await fetchval("SELECT count(*) FROM pg_available_extensions WHERE name = 'timescaledb'"):
            return "plain PostgreSQL"
        # CREATE EXTENSION without the library ends the session with a FATAL, hence the question before.
        if not await fetchval("SELECT count(*) FROM pg_settings WHERE name LIKE 'timescaledb%'"):
            return "TimescaleDB is not in shared_preload_libraries"
        await self.attempt("CREATE EXTENSION IF NOT EXISTS timescaledb")
        return await self._installed() or "TimescaleDB is not created"

    async def _installed(self) -> _Timescale | None:
        row = await self.connection.fetchrow(
            "SELECT extversion, current_setting('timescaledb.license', true)"
            " FROM pg_extension WHERE extname = 'timescaledb'"
        )
        return _Timescale(row[0], row[1] or "apache") if row else None

    async def index_by_time(self) -> None:
        """Give the deletes a plain table's index; a BRIN is all but free to keep."""
        for table in TABLES:
            await self.attempt(f"CREATE INDEX IF NOT EXISTS {table}_by_time ON {table} USING brin (timestamp)")

    async def tune(self, table: str, timescale: _Timescale, retention_days: float | None, after_hours: float) -> bool:
        """Tune one table; False when what is too old has to be deleted by us."""
        is_hypertable = await self.attempt(
            f"SELECT create_hypertable('{table}', 'timestamp', chunk_time_interval => interval '1 day',"
            " create_default_indexes => false, if_not_exists => true, migrate_data => true)"
        )
        if not is_hypertable:
            return False
        if not timescale.has_columnstore:
            self.failures.append("no columnstore with this version and licence; retention by dropping chunks")
            return False
        await self._keep_columnstore(table, after_hours)
        return await self._keep_retention(table, retention_days)

    async def _keep_columnstore(self, table: str, after_hours: float) -> None:
        """Turn what is older than `after_hours` into columns."""
        enabled = await self.connection.fetchval(
            "SELECT compression_enabled FROM timescaledb_information.hypertables"
            " WHERE hypertable_schema = current_schema() AND hypertable_name = $1",
            table,
        )
        by = "timescaledb.segmentby = 'user_id, session_id', timescaledb.orderby = 'timestamp'"
        if not enabled and not await self.attempt(
            f"ALTER TABLE {table} SET (timescaledb.enable_columnstore = true, {by})"
        ):
            return
        seconds = after_hours * 3600
        if await self._policy_seconds(table, "compress_after") != seconds:
            await self.attempt(f"CALL remove_columnstore_policy('{table}', if_exists => true)")
            await self.attempt(f"CALL add_columnstore_policy('{table}', after => interval '{seconds} seconds')")

    async def _keep_retention(self, table: str, retention_days: float | None) -> bool:
        """Set, change or remove the policy that drops what is too old; False when that is refused."""
        seconds = None if retention_days is None else retention_days * 86400
        if await self._policy_seconds(table, "drop_after") == seconds:
            return True
        done = await self.attempt(f"SELECT remove_retention_policy('{table}', if_exists => true)")
        if seconds is not None:
            done = await self.attempt(
                f"SELECT add_retention_policy('{table}', drop_after => interval '{seconds} seconds')"
            )
        return done

    async def _policy_seconds(self, table: str, field: str) -> float | None:
        """Read what a policy is set to, None without one."""
        seconds = await self.connection.fetchval(
            "SELECT extract(epoch FROM (config->>$2::text)::interval)::float8"
            " FROM timescaledb_information.jobs"
            " WHERE hypertable_schema = current_schema() AND hypertable_name = $1 AND config ? $2::text",
            table,
            field,
        )
        return None if seconds is None else float(seconds)


async def delete_expired(connection: Connection, retention_days: float) -> int:
    """Delete what is older than `retention_days`, where the database does not by itself.

    Returns the number of rows (of a hypertable: chunks) deleted, 0 while another node is at it. Goes in small
    transactions, on a connection of its own: ingest goes on meanwhile.
    """
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", EXPIRY_LOCK):
        return 0
    n_deleted = sum([await _delete_expired(connection, table, retention_days * 86400) for table in TABLES])
    await connection.execute("SELECT pg_advisory_unlock($1)", EXPIRY_LOCK)
    return n_deleted


async def _delete_expired(connection: Connection, table: str, seconds: float) -> int:
    if await _is_hypertable(connection, table):
        drop = f"SELECT drop_chunks('{table}', older_than => interval '{seconds} seconds')"
        return len(await connection.fetch(drop, timeout=PATIENCE_S))
    delete = (
        f"DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table}"
        f" WHERE timestamp < now() - interval '{seconds} seconds' LIMIT {ROWS_PER_DELETE}))"
    )
    n_deleted = 0
    while n := int((await connection.execute(delete)).removeprefix("DELETE ")):
        n_deleted += n
    return n_deleted


async def _is_hypertable(connection: Connection, table: str) -> bool:
    if await connection.fetchval("SELECT to_regclass('timescaledb_information.hypertables')") is None:
        return False
    count = await connection.fetchval(
        "SELECT count(*) FROM timescaledb_information.hypertables"
        " WHERE hypertable_schema = current_schema() AND hypertable_name = $1",
        table,
    )
    return bool(count)
