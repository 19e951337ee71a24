"""A user's past, page after page: each row once, in order, whether the server keeps it in rows or in columns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from time import thread_time
from uuid import UUID

import pytest

from support.stored_sessions import T0_US, PastSession, compress, every, prepare
from zander.database.connection import Pool
from zander.database.history import MAX_TIME_US, NoteMark, Past, RawMark
from zander.database.pages import frames, notes_page, raw_page
from zander.wire.messages import Note

Key = tuple[int, UUID, int]
Begin = Callable[[], Awaitable[PastSession]]


@pytest.fixture
async def past(any_database_url: str) -> AsyncIterator[Past]:
    await prepare(any_database_url)
    pool = Pool(any_database_url, 2)
    yield Past(pool)
    await pool.close()


@pytest.fixture
def begin(any_database_url: str, past: Past) -> Begin:
    async def begin() -> PastSession:
        return await PastSession(any_database_url, "me").begin()

    return begin


async def raw_keys(past: Past, limit: int, start_us: int = 0, end_us: int = MAX_TIME_US) -> list[Key]:
    """Read all pages; return the time, session and position of every sample."""
    found: list[Key] = []
    mark: RawMark | None = RawMark(start_us)
    while mark:
        chunks, mark = await raw_page(past, "me", mark, end_us, limit=limit)
        for chunk in chunks:
            assert chunk.samples[:, 0].tolist() == list(range(chunk.position, chunk.end))
            session = UUID(chunk.origin.session_id)
            found += [(int(at), session, chunk.position + i) for i, at in enumerate(chunk.times_us)]
    return found


async def all_notes(past: Past, limit: int) -> list[Note]:
    found: list[Note] = []
    mark: NoteMark | None = NoteMark(0)
    while mark:
        notes, mark = await notes_page(past, "me", "features", mark, MAX_TIME_US, limit=limit)
        found += notes
    return found


def keys(session: PastSession, times_us: dict[int, int]) -> set[Key]:
    return {(time_us, UUID(session.session_id), position) for position, time_us in times_us.items()}


@pytest.mark.parametrize("in_columns", [False, True])
async def test_samples_of_sessions_that_overlap(
    past: Past, begin: Begin, any_database_url: str, in_columns: bool
) -> None:
    first, second, late = [await begin() for _ in range(3)]
    times_us = every(30_000_000, range(400))  # over three hours, and a midnight
    tied = {i: T0_US + 30_000_000 * (i // 100) for i in range(400)}
    await first.write(times_us)
    await second.write(tied)
    if in_columns:
        await compress(any_database_url)
    await late.write(every(86_400_000_000, range(3)))  # some of them into chunks that are columns already
    expected = keys(first, times_us) | keys(second, tied) | keys(late, every(86_400_000_000, range(3)))
    for limit in (37, 400, 5000):
        assert await raw_keys(past, limit) == sorted(expected)
    start_us, end_us = T0_US + 30_000_000, T0_US + 90_000_000
    assert await raw_keys(past, 50, start_us, end_us) == sorted(it for it in expected if start_us <= it[0] < end_us)


@pytest.mark.parametrize("in_columns", [False, True])
async def test_features_at_one_time(past: Past, begin: Begin, any_database_url: str, in_columns: bool) -> None:
    session, other = await begin(), await begin()
    for i in range(12):
        await session.note(T0_US + 3_600_000_000 * (i // 6), {"i": i})
        await other.note(T0_US + 3_600_000_000 * (i // 6), {"same": 1})
    if in_columns:
        await compress(any_database_url)
    whole = await all_notes(past, 10_000)
    assert len(whole) == 24
    for limit in (1, 5, 7):
        assert await all_notes(past, limit) == whole


async def test_a_large_page_leaves_the_event_loop_to_others(past: Past, begin: Begin) -> None:
    session = await begin()
    await session.write(every(10_000, range(4000)), n_channels=32)
    longest_s, reading = 0.0, True

    async def watch() -> None:
        nonlocal longest_s
        while reading:
            before = thread_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, thread_time() - before)

    watching = asyncio.create_task(watch())
    chunks, _ = await raw_page(past, "me", RawMark(0), MAX_TIME_US, limit=4000)
    texts = await frames(chunks)
    reading = False
    await watching
    assert len(texts) == 4000
    assert longest_s < 0.1  # about 3 ms of this thread alone, however busy the machine: not the whole page
