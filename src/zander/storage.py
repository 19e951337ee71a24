"""PostgreSQL or TimescaleDB: the one connection that writes, and all SQL of the data path.

Every batch is one transaction, and is written once however often it is tried: see CLAIM.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

import asyncpg

from zander.chunk import Chunk
from zander.errors import Refused, StorageError
from zander.migrations import Connection, Tuning, delete_expired, migrate, tune
from zander.pgcopy import COPY_END, COPY_HEAD, EPOCH_US, RAW_COLUMNS, encode_raw
from zander.pile import SessionRecord
from zander.recorder import Batch

CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 30.0
CLOSE_SECONDS = 1.0  # a stop may take 15 s in all
PING_SECONDS = 5.0
EXPIRE_EVERY_SECONDS = 3600.0

COPY_BYTES = 1 << 20  # encoded or sent in one go; then the event loop gets its turn

# A server that lost us must not keep our row of `writers` locked for the two hours of a usual TCP keepalive.
LET_GO = """
SET idle_in_transaction_session_timeout = '60s';
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 4;
"""

# The first statement of every transaction. A row comes back: the batch is ours to write. No row: this very
# batch was committed, and only the answer was lost. It takes the lock of the row, so it waits for an older
# backend that is still inside the COMMIT of the same batch; one that lost its client earlier never commits.
CLAIM = """
INSERT INTO writers (writer_id, batch, written_at) VALUES ($1, $2, now())
ON CONFLICT (writer_id) DO UPDATE SET batch = excluded.batch, written_at = excluded.written_at
WHERE writers.batch < excluded.batch
RETURNING batch
"""

# A start or an end, or both at once. A resumed session keeps its start and is open again.
UPSERT_SESSIONS = """
INSERT INTO sessions (session_id, user_id, start_time, end_time, device_info)
SELECT s, u, timestamptz 'epoch' + t0 * interval '1 us', timestamptz 'epoch' + t1 * interval '1 us', d
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::jsonb[]) AS given (s, u, t0, t1, d)
ON CONFLICT (session_id) DO UPDATE SET
    start_time = least(sessions.start_time, excluded.start_time),
    end_time = excluded.end_time,
    device_info = excluded.device_info
"""

FORGET_WRITERS = "DELETE FROM writers WHERE written_at < now() - interval '30 days'"

PREDICTION_COLUMNS = (
    "timestamp",
    "session_id",
    "user_id",
    "prediction_type",
    "classifier_name",
    "data",
    "confidence",
    "classifier_version",
)

# What the data itself is to blame for: wrong values, broken constraints, limits such as the depth of JSON.
BLAMES_DATA = ("22", "23", "54")
FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

log = logging.getLogger(__name__)


class Postgres:
    """A Storage in PostgreSQL, with what TimescaleDB adds where it is there."""

    def __init__(self, database_url: str, *, retention_days: float | None, columnstore_after_hours: float) -> None:
        self._dsn = plain_dsn(database_url)
        self._retention_days = retention_days
        self._columnstore_after_hours = columnstore_after_hours
        self._writer_id = uuid.uuid4()
        self._connection: Connection = None
        self._tuning: Tuning | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._expire_s = 0.0  # when it is due

    async def open(self) -> None:
        """Connect, migrate, tune; StorageError when that is not possible now."""
        self._let_go()
        with self._letting_go():
            self._connection = connection = await self._connect()
            await migrate(connection)
            tuning = await tune(connection, self._retention_days, self._columnstore_after_hours)
            with suppress(asyncpg.InsufficientPrivilegeError):
                await connection.execute(FORGET_WRITERS)
        if tuning != self._tuning:
            log.log(logging.INFO if tuning.complete else logging.WARNING, tuning.sentence)
        self._tuning = tuning

    async def write(self, batch: Batch) -> None:
        """Write all of the batch or nothing, once per `batch.n`; StorageError or Refused."""
        with self._letting_go():
            try:
                await self._write(batch)
            except (asyncpg.PostgresError, ValueError, OverflowError) as error:
                if not blames_data(error):
                    raise
                if not self._connection.is_closed():
                    await self._connection.execute("ROLLBACK")
                raise Refused(reason(error)) from None

    async def ping(self) -> None:
        """Ask for a sign of life; StorageError when there is none. Starts the hourly deletes when due."""
        with self._letting_go():
            await self._connected().execute("SELECT 1", timeout=PING_SECONDS)
        self._expire_when_due()

    async def close(self) -> None:
        """Close the connection; safe at any time."""
        if self._expiry:
            self._expiry.cancel()
            await asyncio.wait([self._expiry])
        connection, self._connection = self._connection, None
        if connection:
            with suppress(*FAILURES):
                await connection.close(timeout=CLOSE_SECONDS)

    async def _connect(self) -> Connection:
        try:
            connection = await asyncpg.connect(
                self._dsn,
                timeout=CONNECT_SECONDS,
                command_timeout=COMMAND_SECONDS,
                server_settings={"application_name": "zander"},
            )
        except ValueError:  # its message may hold a piece of the password
            raise StorageError("DATABASE_URL cannot be read: special characters need %-encoding") from None
        try:
            await connection.execute(LET_GO)
            await connection.set_type_codec(
                "timestamptz", schema="pg_catalog", format="tuple", encoder=_since_2000, decoder=_since_1970
            )
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            raise StorageError("the connection is closed")
        return self._connection

    @contextmanager
    def _letting_go(self) -> Iterator[None]:
        """Give the connection up after any error but Refused, whose transaction is rolled back.

        A connection in doubt is never used again. Dropping it makes the server roll back, unless it had the
        COMMIT: the retry will tell.
        """
        try:
            yield
        except Refused:
            raise
        except BaseException as error:
            self._let_go()
            if isinstance(error, FAILURES):
                raise StorageError(reason(error)) from None
            raise

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.terminate()

    async def _write(self, batch: Batch) -> None:
        connection = self._connected()
        raw = await _encoded(batch.chunks)  # first: an error here has touched nothing
        await connection.execute("BEGIN")
        if await connection.fetchval(CLAIM, self._writer_id, batch.n) is None:
            await connection.execute("ROLLBACK")
            return
        if batch.sessions:
            await _upsert_sessions(connection, batch.sessions)
        if batch.chunks:
            await _copy_raw(connection, raw)
        if batch.predictions:
            await connection.copy_records_to_table("predictions", records=batch.predictions, columns=PREDICTION_COLUMNS)
        if await connection.execute("COMMIT") != "COMMIT":
            raise StorageError("the transaction was rolled back")

    def _expire_when_due(self) -> None:
        if self._retention_days is None or self._tuning is None or self._tuning.expires:
            return
        if monotonic() >= self._expire_s and (self._expiry is None or self._expiry.done()):
            self._expire_s = monotonic() + EXPIRE_EVERY_SECONDS
            self._expiry = asyncio.create_task(self._expire(self._retention_days))

    async def _expire(self, retention_days: float) -> None:
        """Delete what is too old, on a connection of its own, so that no batch waits for it."""
        connection = None
        try:
            connection = await self._connect()
            if n_deleted := await delete_expired(connection, retention_days):
                log.info("retention: %d rows or chunks older than %g days deleted", n_deleted, retention_days)
        except (StorageError, *FAILURES) as error:
            log.warning("retention: not everything older than %g days is deleted: %s", retention_days, reason(error))
        finally:
            if connection:
                connection.terminate()


def plain_dsn(database_url: str) -> str:
    """Turn SQLAlchemy's form of a URL into PostgreSQL's."""
    scheme, _, rest = database_url.partition("://")
    if scheme.endswith("+asyncpg"):
        rest = re.sub(r"([?&])ssl=", r"\1sslmode=", rest)
    return f"postgresql://{rest}"


def reason(error: BaseException) -> str:
    """Say why, without a word of the data: the messages of data errors quote it."""
    if isinstance(error, StorageError):
        return str(error)
    if isinstance(error, TimeoutError) and not error.args:
        return "no answer in time"
    sqlstate = getattr(error, "sqlstate", None)
    name = type(error).__name__ + (f" ({sqlstate})" if sqlstate else "")
    return name if blames_data(error) else f"{name}: {error.args[0] if sqlstate else error}"


def blames_data(error: BaseException) -> bool:
    """Say whether the data is the cause: the server says so, or it could not even be encoded."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(BLAMES_DATA)
    return isinstance(error, ValueError | OverflowError)


def _since_2000(time_us: int) -> tuple[int]:
    return (time_us - EPOCH_US,)


def _since_1970(time_us: tuple[int]) -> int:
    return time_us[0] + EPOCH_US


async def _upsert_sessions(connection: Connection, sessions: list[SessionRecord]) -> None:
    session_ids, user_ids, starts_us, ends_us, device_infos = zip(*sessions, strict=True)
    await connection.execute(UPSERT_SESSIONS, session_ids, user_ids, starts_us, ends_us, device_infos)


async def _encoded(chunks: list[Chunk]) -> list[bytearray]:
    """Encode the COPY in pieces of about COPY_BYTES."""
    pieces = [bytearray(COPY_HEAD)]
    for rows in encode_raw(chunks):
        if len(pieces[-1]) >= COPY_BYTES:
            pieces.append(bytearray())
            await asyncio.sleep(0)
        pieces[-1] += rows
    pieces[-1] += COPY_END
    return pieces


async def _copy_raw(connection: Connection, pieces: list[bytearray]) -> None:
    # One piece goes as it is; asyncpg makes a task for each of several.
    source = pieces[0] if len(pieces) == 1 else _each(pieces)
    await connection.copy_to_table("raw_eeg", source=source, format="binary", columns=RAW_COLUMNS)


async def _each(pieces: list[bytearray]) -> AsyncIterator[bytearray]:
    for piece in pieces:
        yield piece
