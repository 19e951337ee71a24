"""TimescaleDB, as far as the server has it: hypertables, columnstore and retention by the settings.

A plain PostgreSQL gets an index for retention by DELETE. `tune` runs at every start, after the migrations and under the
same lock, and changes nothing that is already so.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import asyncpg

from zander.database.connection import Connection
from zander.database.migrations import LOCK, MAX_SECONDS, exclusive

EXPIRY_LOCK = LOCK + 1
ROWS_PER_DELETE = 20_000  # in one transaction: 0.1 s
TABLES = ("raw_eeg", "predictions")  # they grow with time
MAX_MOVED_BYTES = 64 << 20  # 300,000 samples, which a reconnect moves in 2 s; more is for `zander migrate`
NEW_CHUNK_HOURS = 24.0
COMPRESS_COPIES = "timescaledb.enable_direct_compress_copy"

# The newest chunk: its table, its size, what the server has for all of them together, and the hours that it spans.
NEWEST_CHUNK = """
SELECT hypertable_name, pg_total_relation_size(format('%I.%I', chunk_schema, chunk_name)::regclass),
    pg_size_bytes(current_setting('shared_buffers')), extract(epoch FROM range_end - range_start)::float8 / 3600
FROM timescaledb_information.chunks WHERE hypertable_schema = current_schema() AND hypertable_name = $1
ORDER BY range_start DESC LIMIT 1
"""


class Tuning(NamedTuple):
    """The outcome of `tune`, as a sentence for the log; `expires`: the database deletes what is too old by itself.

    `converts`: it turns what is older into columns.
    """

    sentence: str
    complete: bool
    expires: bool
    converts: bool = False
    compresses_copies: bool = False  # rows can be turned into columns on their way in


class _Timescale(NamedTuple):
    """The extension as it is installed in this database."""

    version: str
    licence: str

    @property
    def has_columnstore(self) -> bool:
        """Whether the columnstore and the policies are there."""
        major, minor = re.findall(r"\d+", self.version)[:2]
        return self.licence != "apache" and (int(major), int(minor)) >= (2, 18)


async def tune(
    connection: Connection,
    retention_days: float | None,
    columnstore_after_hours: float,
    chunk_hours: float | None = None,
) -> Tuning:
    """Set up hypertables, columnstore and policies by the settings, as far as the server allows.

    Without `chunk_hours` new tables get NEW_CHUNK_HOURS, and others keep the chunks that somebody chose. The sentence
    names what the server does not allow: nothing of this is needed to write.
    """
    async with exclusive(connection):
        tuner = _Tuner(connection)
        timescale = await tuner.timescale()
        if isinstance(timescale, str):
            await tuner.index_by_time()
            lacks = f"{timescale}: no hypertables or columnstore; retention by delete"
            return Tuning("; ".join([lacks, *tuner.failures]), complete=False, expires=False)
        after = (retention_days, columnstore_after_hours)
        expires = [await tuner.tune(table, timescale, chunk_hours, *after) for table in TABLES]
        hours = await chunk_span_hours(connection, "raw_eeg")
        compresses_copies = timescale.has_columnstore and await tuner.has_setting(COMPRESS_COPIES)
    name = f"TimescaleDB {timescale.version} ({timescale.licence})"
    if tuner.failures:
        lacks = f"{name}, but {'; '.join(dict.fromkeys(tuner.failures))}"
        return Tuning(
            lacks,
            complete=False,
            expires=all(expires),
            converts=timescale.has_columnstore,
            compresses_copies=compresses_copies,
        )
    kept = "for ever" if retention_days is None else f"{retention_days:g} days"
    has = f"{name}: chunks of {hours:g} h, columnstore after {columnstore_after_hours:g} h, kept {kept}"
    return Tuning(has, complete=True, expires=True, converts=True, compresses_copies=compresses_copies)


class _Tuner:
    """Statements that the server may refuse; `failures` keeps what it said."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.failures: list[str] = []

    async def attempt(self, statement: str) -> bool:
        """Execute a statement; False when the server refuses it, for want of a privilege or of a feature."""
        try:
            async with self.connection.transaction():
                await self.connection.execute(statement, timeout=MAX_SECONDS)
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
        """Index plain tables by time, for the deletes; a BRIN costs next to nothing to keep."""
        for table in TABLES:  # IF NOT EXISTS would lock the table each time: who writes, and who builds another index
            if await self.connection.fetchval("SELECT to_regclass($1)", f"{table}_by_time") is None:
                await self.attempt(f"CREATE INDEX {table}_by_time ON {table} USING brin (timestamp)")

    async def has_setting(self, name: str) -> bool:
        """Return whether the server has a setting."""
        return bool(await self.connection.fetchval("SELECT count(*) FROM pg_settings WHERE name = $1", name))

    async def tune(
        self,
        table: str,
        timescale: _Timescale,
        chunk_hours: float | None,
        retention_days: float | None,
        after_hours: float,
    ) -> bool:
        """Tune one table; False when Zander has to delete what is too old."""
        if await self._is_large(table):
            self.failures.append(f"{table} is a large plain table: run `zander migrate`, which makes it a hypertable")
            return False
        if not await self.attempt(create_hypertable(table, chunk_hours)):
            return False
        if chunk_hours and await chunk_span_hours(self.connection, table) != chunk_hours:  # of those to come
            await self.attempt(f"SELECT set_chunk_time_interval('{table}', {_interval(chunk_hours)})")
        if not timescale.has_columnstore:
            self.failures.append("no columnstore with this version and licence; retention by dropping chunks")
            return False
        await self._keep_columnstore(table, after_hours)
        return await self._keep_retention(table, retention_days)

    async def _is_large(self, table: str) -> bool:
        """Return whether a table is plain, and has too many rows to be moved while the nodes wait."""
        if await is_hypertable(self.connection, table):
            return False
        n_bytes = await self.connection.fetchval("SELECT pg_total_relation_size($1::text::regclass)", table)
        return bool(n_bytes > MAX_MOVED_BYTES)

    async def _keep_columnstore(self, table: str, after_hours: float) -> None:
        """Convert chunks older than `after_hours` to the columnstore."""
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
        """Return the interval of a table's policy, None without one."""
        seconds = await self.connection.fetchval(
            "SELECT extract(epoch FROM (config->>$2::text)::interval)::float8"
            " FROM timescaledb_information.jobs"
            " WHERE hypertable_schema = current_schema() AND hypertable_name = $1 AND config ? $2::text",
            table,
            field,
        )
        return None if seconds is None else float(seconds)


async def chunk_span_hours(connection: Connection, table: str) -> float:
    """Return the span that chunks to come of a hypertable have; 0 where the table is none."""
    seconds = await connection.fetchval(
        "SELECT extract(epoch FROM time_interval)::float8 FROM timescaledb_information.dimensions"
        " WHERE hypertable_schema = current_schema() AND hypertable_name = $1 AND dimension_number = 1",
        table,
    )
    return (seconds or 0.0) / 3600


async def large_chunks(connection: Connection) -> dict[str, str]:
    """Return a sentence for each table whose newest chunk is larger than the server's shared_buffers."""
    if await connection.fetchval("SELECT to_regclass('timescaledb_information.chunks')") is None:
        return {}
    rows = [row for table in TABLES for row in await connection.fetch(NEWEST_CHUNK, table)]
    return {
        table: f"the newest chunk of {table} spans {hours:g} h and has {size >> 20} MiB, more than shared_buffers"
        f" ({memory >> 20} MiB): set CHUNK_HOURS to less"
        for table, size, memory, hours in rows
        if size > memory
    }


async def delete_expired(connection: Connection, retention_days: float) -> int:
    """Delete rows older than `retention_days`, where the database has no policy for it.

    Return the number of rows (of a hypertable: chunks) deleted; while another node deletes, we do not. The transactions
    are small, and the connection has to be one of its own: ingest goes on meanwhile.
    """
    return sum([await _delete_expired(connection, table, retention_days * 86400) for table in TABLES])


async def _delete_expired(connection: Connection, table: str, seconds: float) -> int:
    if await is_hypertable(connection, table):
        drop = f"SELECT drop_chunks('{table}', older_than => interval '{seconds} seconds')"
        async with connection.transaction():
            return len(await connection.fetch(drop, timeout=MAX_SECONDS)) if await _may_delete(connection) else 0
    delete = (
        f"DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table}"
        f" WHERE timestamp < now() - interval '{seconds} seconds' LIMIT {ROWS_PER_DELETE}))"
    )
    n_deleted = 0
    while True:
        async with connection.transaction():
            n = int((await connection.execute(delete)).removeprefix("DELETE ")) if await _may_delete(connection) else 0
        if not n:
            return n_deleted
        n_deleted += n


async def _may_delete(connection: Connection) -> bool:
    """Keep other nodes from deleting until the end of the transaction; False where one does."""
    return bool(await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", EXPIRY_LOCK))


async def is_hypertable(connection: Connection, table: str) -> bool:
    """Return whether a table is a hypertable; False where there is no TimescaleDB."""
    if await connection.fetchval("SELECT to_regclass('timescaledb_information.hypertables')") is None:
        return False
    count = await connection.fetchval(
        "SELECT count(*) FROM timescaledb_information.hypertables"
        " WHERE hypertable_schema = current_schema() AND hypertable_name = $1",
        table,
    )
    return bool(count)


def create_hypertable(table: str, chunk_hours: float | None) -> str:
    """Return the statement that makes a table a hypertable, unless it is one."""
    return (
        f"SELECT create_hypertable('{table}', 'timestamp',"
        f" chunk_time_interval => {_interval(chunk_hours or NEW_CHUNK_HOURS)},"
        " create_default_indexes => false, if_not_exists => true, migrate_data => true)"
    )


def _interval(hours: float) -> str:
    return f"interval '{hours * 3600} seconds'"
