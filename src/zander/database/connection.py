"""A connection to PostgreSQL, whoever it is for: how it is opened, what can go wrong with it, how that is said."""

from __future__ import annotations

import re
from typing import Any

import asyncpg

from zander.errors import StorageError
from zander.journal.pgcopy import EPOCH_US

CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 1.0  # a stop may take 15 s in all

Connection = Any  # asyncpg has no types of its own
FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

# What we call durable has to be, whatever the database is set to.
DURABLE_COMMITS = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)

# What the data itself is to blame for: wrong values, broken constraints, limits such as the depth of JSON.
BLAMES_DATA = ("22", "23", "54")


async def connect(dsn: str, settings: str, command_seconds: float) -> Connection:
    """Connect, and apply settings; times come and go as µs since 1970. StorageError when the URL is none."""
    try:
        connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_SECONDS,
            command_timeout=command_seconds,
            server_settings={"application_name": "zander"},
        )
    except ValueError:  # its message may hold a piece of the password
        raise StorageError("DATABASE_URL cannot be read: special characters need %-encoding") from None
    try:
        await connection.execute(f"{settings};{DURABLE_COMMITS}")
        await connection.set_type_codec(
            "timestamptz", schema="pg_catalog", format="tuple", encoder=_since_2000, decoder=_since_1970
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


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
