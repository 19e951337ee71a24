"""A database with the tables, its sessions, and a way to begin one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from support.stored_sessions import T0_US, PastSession, opened_sessions, prepare
from zander.database.sessions import DatabaseSessions

Begin = Callable[..., Awaitable[PastSession]]


@pytest.fixture
async def store(any_database_url: str) -> AsyncIterator[DatabaseSessions]:
    """The sessions of either database."""
    await prepare(any_database_url)
    async with opened_sessions(any_database_url) as store:
        yield store


@pytest.fixture
def begin(any_database_url: str) -> Begin:
    """Begin a session; all are of the user `me` unless said otherwise."""

    async def begin(user_id: str = "me", start_us: int = T0_US) -> PastSession:
        return await PastSession(any_database_url, user_id, start_us).begin()

    return begin
