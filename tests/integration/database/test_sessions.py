"""Sessions as the database has them: one, many, what they lack, and the resume."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import pytest

from support.databases import connected
from support.stored_sessions import DEVICE, T0_US, PastSession, opened_sessions, prepare, stored
from zander.database.sessions import DatabaseSessions
from zander.errors import CloseCode, Forbidden, Unavailable
from zander.streams.session import StoredSession

Begin = Callable[..., Awaitable[PastSession]]


class TestSessions:
    async def test_one_by_its_id(self, store: DatabaseSessions, begin: Begin) -> None:
        session = await begin()
        await session.write({0: T0_US, 1: T0_US + 5})
        expected = StoredSession(session.session_id, "me", T0_US, None, DEVICE, 2, T0_US + 5, 0)
        assert await store.session(session.session_id) == expected
        assert await store.session(session.session_id.upper()) == expected
        assert await store.session(str(uuid.uuid4())) is None

    async def test_those_after_one(self, store: DatabaseSessions, begin: Begin) -> None:
        sessions = [await begin("me", T0_US + i) for i in (0, 1, 1, 2)]
        await begin("you", T0_US + 1)
        by_start = sorted((it.start_us, it.session_id) for it in sessions)
        later = await store.later_sessions("me", by_start[1][1])
        assert [(it.start_us, it.session_id) for it in later] == by_start[2:]
        assert await store.later_sessions("me", str(uuid.uuid4())) == []

    async def test_pages_of_the_newest(self, store: DatabaseSessions, begin: Begin) -> None:
        sessions = [await begin("me" if i % 2 else "you", T0_US + i // 3) for i in range(9)]
        newest = sorted(((it.start_us, it.session_id) for it in sessions), reverse=True)
        found, before = [], None
        while page := await store.sessions(None, before, 2):
            found += [(it.start_us, it.session_id) for it in page]
            before = page[-1].session_id
        assert found == newest
        assert len(await store.sessions("me", None, 99)) == 4

    async def test_gaps_are_those_of_the_session(self, store: DatabaseSessions, begin: Begin) -> None:
        session, other = await begin(), await begin()
        await session.gap(10, 20, "relay")
        await session.gap(30, 40, "lost")
        await other.gap(0, 99)
        of = session.session_id
        assert await store.gaps(of, 20, 30) == []
        assert (await store.gaps(of, 0, 99))[1] == (30, 40, "lost", T0_US)
        missing = await store.missing([of, other.session_id, str(uuid.uuid4())])
        assert missing == {of: (2, 20), other.session_id: (1, 99)}


class TestResume:
    async def test_it_raises_the_fence_and_opens_the_session_again(
        self, store: DatabaseSessions, begin: Begin, any_database_url: str
    ) -> None:
        session = await begin()
        await session.write({0: T0_US, 1: T0_US + 5})
        async with connected(any_database_url) as connection:
            await connection.execute("UPDATE sessions SET end_time = now()")
        for fence in (1, 2):
            found = await store.resume("me", session.session_id, T0_US + 99, '{"other": 1}')
            assert found == StoredSession(session.session_id, "me", T0_US, None, DEVICE, 2, T0_US + 5, fence)
        assert await store.session(session.session_id) == found

    async def test_an_unknown_session_begins(self, store: DatabaseSessions) -> None:
        session_id = str(uuid.uuid4())
        found = await store.resume("me", session_id, T0_US, '{"sampling_rate": 250}')
        assert found == StoredSession(session_id, "me", T0_US, None, {"sampling_rate": 250}, 0, None, 1)

    async def test_somebody_elses_session_is_refused_and_stays_as_it_is(
        self, store: DatabaseSessions, begin: Begin
    ) -> None:
        session = await begin("you")
        with pytest.raises(Forbidden) as refusal:
            await store.resume("me", session.session_id, T0_US, "{}")
        assert (refusal.value.code, refusal.value.status, refusal.value.close) == (
            "forbidden",
            403,
            CloseCode.FORBIDDEN,
        )
        assert (await stored(store, session)).fence == 0

    async def test_of_many_at_once_each_gets_a_fence_of_its_own(self, store: DatabaseSessions) -> None:
        session_id = str(uuid.uuid4())
        found = await asyncio.gather(*(store.resume("me", session_id, T0_US, "{}") for _ in range(20)))
        assert sorted(it.fence for it in found) == list(range(1, 21))


async def test_a_relay_that_resumes_does_not_wait_for_those_who_read(database_url: str) -> None:
    await prepare(database_url)
    session = await PastSession(database_url, "me").begin()
    await session.write({0: T0_US})
    async with opened_sessions(database_url) as store:
        found = await stored(store, session)
        async with connected(database_url) as connection, connection.transaction():
            await connection.execute("LOCK TABLE raw_eeg")
            readers = [asyncio.create_task(store.samples(found, 0, 1)) for _ in range(9)]
            assert (await store.resume("me", session.session_id, T0_US, "{}")).fence == 1
        assert all(map(len, await asyncio.gather(*readers)))


async def test_without_a_database_it_is_unavailable() -> None:
    async with opened_sessions("postgresql://zander:geheim@127.0.0.1:1/zander") as store:
        with pytest.raises(Unavailable) as away:
            await store.session(str(uuid.uuid4()))
        assert "geheim" not in str(away.value)
