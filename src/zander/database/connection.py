"""Connections to PostgreSQL: one, the small pool of those that read, and the reasons of their failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from time import monotonic
from typing import Any

import asyncpg

from zander.database.address import Address, parse, refusal
from zander.errors import StorageError, Unavailable
from zander.journal.pgcopy import EPOCH_US

CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 1.0  # a stop may take 15 s in all
ACQUIRE_SECONDS = 10.0  # until a connection of a pool is free
QUERY_SECONDS = 10.0
IDLE_SECONDS = 60.0  # a connection that rested for longer may have been cut on its way without a word

Connection = Any  # asyncpg has no types of its own
Row = Any
FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

# A page has to be found by going along the index until it is full. A plan made for any values, or for a chunk without
# statistics yet, might gather a whole session first: 100 ms instead of 0.1.
READ_SETTINGS = {"plan_cache_mode": "force_custom_plan", "enable_bitmapscan": "off", "statement_timeout": "15s"}

# What we call durable has to be, whatever the database is set to.
DURABLE_COMMITS = (
    "SELECT set_config('synchronous_commit', 'on', {is_local}) WHERE current_setting('synchronous_commit') = 'off'"
)

# What the data itself is to blame for: wrong values, broken constraints, limits such as the depth of JSON.
BLAMES_DATA = ("22", "23", "54")

log = logging.getLogger(__name__)


_pooled: set[str] = set()  # addresses of connection poolers


class _Connection(asyncpg.Connection):  # type: ignore[misc] # asyncpg has no types
    """A connection to the server itself, or to a pooler before it; `begin` is the SQL that begins a transaction.

    A pooler (PgBouncer in transaction mode) gives each transaction to any of its connections to the server: what one of
    them keeps would be somebody else's. So the settings are part of `begin` there, and no statement has a name.
    """

    __slots__ = ("begin",)

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler is before the server."""
        return bool(self.begin != "BEGIN")


async def connect(
    database_url: str, settings: Mapping[str, str], command_seconds: float | None, variable: str = "DATABASE_URL"
) -> Connection:
    """Connect, and apply settings; times come and go as µs since 1970. StorageError when the URL is to blame."""
    address = parse(database_url, CONNECT_SECONDS, variable)
    if address.dropped:
        _log_dropped(variable, address.dropped)
    connection = await _open(address, command_seconds)
    try:
        if address.dsn not in _pooled and await _is_pooler(connection):
            _pooled.add(address.dsn)
            log.info(
                "a connection pooler is before the database: nothing is kept there from one transaction to the next"
            )
            connection.terminate()
            connection = await _open(address, command_seconds)
        await _apply(connection, settings, is_local=address.dsn in _pooled)
        await connection.set_type_codec(
            "timestamptz", schema="pg_catalog", format="tuple", encoder=_since_2000, decoder=_since_1970
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _open(address: Address, command_seconds: float | None) -> Connection:
    # Without its cache asyncpg sends a statement and its values together, without a name.
    cache_size = {"statement_cache_size": 0} if address.dsn in _pooled else {}
    arguments = {"command_timeout": command_seconds, "connection_class": _Connection, **cache_size}
    try:
        return await asyncpg.connect(address.dsn, **address.options, **arguments)
    except (OSError, ValueError, asyncpg.PostgresError) as error:
        if why := refusal(error, address):
            raise StorageError(why) from None
        raise


async def _is_pooler(connection: Connection) -> bool:
    """Return whether the process at the other end is not the one that executes."""
    # As text, since the answer to a statement with values would come through a prepared one.
    status = await connection.execute(f"SELECT 1 WHERE pg_backend_pid() = {connection.get_server_pid():d}")
    return bool(status == "SELECT 0")


async def _apply(connection: Connection, settings: Mapping[str, str], *, is_local: bool) -> None:
    """Apply the settings once, or (`is_local`) in every transaction."""
    scope = "SET LOCAL" if is_local else "SET"
    statements = [f"{scope} {name} = '{value}'" for name, value in settings.items()]
    statements.append(DURABLE_COMMITS.format(is_local=str(is_local).lower()))
    connection.begin = "; ".join(["BEGIN", *statements]) if is_local else "BEGIN"
    if not is_local:
        await connection.execute("; ".join(statements))


@cache
def _log_dropped(variable: str, names: tuple[str, ...]) -> None:
    """Log once what a URL asks for in vain."""
    log.warning("%s: %s: not supported here, the connection is made without", variable, ", ".join(names))


class Pool:
    """Up to `size` connections that read, opened when needed. Times come and go as µs since 1970.

    `variable` is the setting that has the URL, `name` what it leads to.
    A connection whose statement failed or was cancelled is never used again. asyncpg's own pool hands it out again, and
    once closed cannot be opened any more.
    """

    def __init__(
        self, database_url: str, size: int, variable: str = "DATABASE_URL", name: str = "the database"
    ) -> None:
        self._database_url = database_url
        self._variable = variable
        self._name = name
        self._free = asyncio.Semaphore(size)
        self._idle: list[tuple[float, Connection]] = []  # since when (s); the last to come back is the first to be used
        self._used: set[Connection] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_failing = False

    async def fetch(self, statement: str, *values: object) -> list[Row]:
        """Execute one statement and return its rows; Unavailable when the database is away or refuses."""
        try:
            async with self._connection() as connection:
                rows = await _fetch(connection, statement, *values)
        except (StorageError, *FAILURES) as error:
            self._log_change(reason(error))
            raise Unavailable(f"{self._name} does not answer") from None
        self._log_change(None)
        return rows

    async def close(self) -> None:
        """Close all connections, whatever they do; a later `fetch` opens new ones."""
        idle, self._idle = self._idle, []
        for connection in (*self._used, *(connection for _, connection in idle)):
            self._retire(connection)
        if self._retiring:
            await asyncio.wait(self._retiring)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with asyncio.timeout(ACQUIRE_SECONDS):
            await self._free.acquire()
        try:
            connection = self._take_idle() or await self._connect()
            self._used.add(connection)
            try:
                yield connection
            except BaseException:
                self._retire(connection)
                raise
            finally:
                self._used.discard(connection)
            self._idle.append((monotonic(), connection))
        finally:
            self._free.release()

    async def _connect(self) -> Connection:
        return await connect(self._database_url, READ_SETTINGS, QUERY_SECONDS, self._variable)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            since_s, connection = self._idle.pop()
            if not connection.is_closed() and monotonic() - since_s < IDLE_SECONDS:
                return connection
            self._retire(connection)
        return None

    def _retire(self, connection: Connection) -> None:
        """Close a connection, and let nobody wait for it."""
        task = asyncio.create_task(close(connection))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _log_change(self, failure: str | None) -> None:
        """Log a change from answers to failures, or back."""
        if failure and not self._is_failing:
            log.warning("%s cannot be read: %s", self._name, failure)
        elif self._is_failing and not failure:
            log.info("%s can be read again", self._name)
        self._is_failing = failure is not None


async def _fetch(connection: Connection, statement: str, *values: object) -> list[Row]:
    """Execute a statement with the connection's settings, which through a pooler are those of its transaction."""
    if connection.is_pooled:
        await connection.execute(connection.begin)
    rows: list[Row] = await connection.fetch(statement, *values)
    if connection.is_pooled:
        await connection.execute("COMMIT")
    return rows


async def close(connection: Connection) -> None:
    """Close a connection; a statement that nobody waits for any more is cancelled first, if the server answers."""
    with suppress(*FAILURES):
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await connection.close(timeout=CLOSE_SECONDS)
        finally:
            connection.terminate()


def reason(error: BaseException) -> str:
    """Return the reason, without a word of the data: the messages of data errors quote it."""
    if isinstance(error, StorageError):
        return str(error)
    if isinstance(error, TimeoutError) and not error.args:
        return "no answer in time"
    sqlstate = getattr(error, "sqlstate", None)
    name = type(error).__name__ + (f" ({sqlstate})" if sqlstate else "")
    return name if blames_data(error) else f"{name}: {error.args[0] if sqlstate else error}"


def blames_data(error: BaseException) -> bool:
    """Return whether the data is the cause: the server says so, or it could not even be encoded."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(BLAMES_DATA)
    return isinstance(error, ValueError | OverflowError)


def _since_2000(time_us: int) -> tuple[int]:
    return (time_us - EPOCH_US,)


def _since_1970(time_us: tuple[int]) -> int:
    return time_us[0] + EPOCH_US
