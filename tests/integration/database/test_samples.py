"""Reading the samples of a session by position."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from support.databases import connected
from support.stored_sessions import T0_US, PastSession, compress, every, opened_sessions, stored
from zander.database.sessions import DatabaseSessions
from zander.wire.chunk import Chunk
from zander.wire.messages import Gap

Begin = Callable[..., Awaitable[PastSession]]


async def read(store: DatabaseSessions, session: PastSession, position: int, n: int) -> list[Chunk | Gap]:
    """Read samples and gaps; fails where a sample is not that of its position, or of its session."""
    items = await store.samples(await stored(store, session), position, n)
    for item in items:
        if isinstance(item, Chunk):
            assert item.samples[:, 0].tolist() == list(range(item.position, item.end))
            assert item.origin.session_id == session.session_id
        else:
            assert (item.session_id, item.reason) == (session.session_id, "relay")
    return items


def spans(items: list[Chunk | Gap]) -> list[tuple[int, int] | tuple[int, int, str]]:
    """Put samples and gaps in short."""
    return [(it.position, it.end) if isinstance(it, Chunk) else (it.start, it.end, it.reason) for it in items]


async def positions(store: DatabaseSessions, session: PastSession, position: int, n: int) -> list[int]:
    chunks = [it for it in await read(store, session, position, n) if isinstance(it, Chunk)]
    return [at for chunk in chunks for at in range(chunk.position, chunk.end)]


async def everything(store: DatabaseSessions, session: PastSession, position: int = 0, n: int = 256) -> list[int]:
    """Read to the end in pages of `n`."""
    found: list[int] = []
    while page := await positions(store, session, position, n):
        assert len(page) <= n
        found += page
        position = page[-1] + 1
    return found


class TestRead:
    async def test_they_come_back_as_they_were_to_the_bit(self, store: DatabaseSessions, begin: Begin) -> None:
        session = await begin()
        await session.write(every(10_000, range(100)), n_channels=3)
        (chunk,) = await read(store, session, 40, 20)
        assert isinstance(chunk, Chunk)
        assert (chunk.position, chunk.end) == (40, 60)
        assert chunk.times_us.tolist() == [T0_US + 10_000 * i for i in range(40, 60)]
        assert (chunk.samples.dtype, chunk.samples.shape) == (np.dtype(np.float32), (20, 3))
        assert np.isnan(chunk.samples[:, 1:]).all()
        assert (chunk.origin.user_id, chunk.origin.period_us) == ("me", 10_000)
        assert json.loads(chunk.json_frames[0])["channels"] == [40, None, None]

    async def test_all_values_of_a_float32_survive(
        self, store: DatabaseSessions, begin: Begin, any_database_url: str
    ) -> None:
        session = await begin()
        await session.write({0: T0_US})
        values = [0.1, -0.0, 1e-45, 3.4028235e38, 16777217.0]
        async with connected(any_database_url) as connection:
            await connection.execute("UPDATE raw_eeg SET channels = $1", values)
        (chunk,) = await store.samples(await stored(store, session), 0, 1)
        assert isinstance(chunk, Chunk)
        assert chunk.samples.tobytes() == np.array([values], np.float32).tobytes()

    async def test_a_null_that_somebody_else_wrote_is_a_missing_value(
        self, store: DatabaseSessions, begin: Begin, any_database_url: str
    ) -> None:
        session = await begin()
        await session.write({0: T0_US, 1: T0_US})
        async with connected(any_database_url) as connection:
            await connection.execute("UPDATE raw_eeg SET channels = '{1,NULL}' WHERE position = 1")
        (chunk,) = await store.samples(await stored(store, session), 0, 9)
        assert isinstance(chunk, Chunk)
        assert json.loads(chunk.chunk_frame)["samples"] == [[0, None], [1, None]]

    @pytest.mark.parametrize("n", [1, 7, 256, 5000])
    async def test_pages_of_any_size_miss_nothing(self, store: DatabaseSessions, begin: Begin, n: int) -> None:
        session = await begin()
        await session.write(every(7812, range(50 if n == 1 else 2000)))
        assert await everything(store, session, 0, n) == list(range(50 if n == 1 else 2000))

    async def test_any_position_is_found_without_having_read_up_to_it(
        self, store: DatabaseSessions, any_database_url: str, begin: Begin
    ) -> None:
        session = await begin()
        await session.write(every(7812, range(5000)))
        for position in (0, 1, 511, 512, 513, 2500, 4998, 4999):
            async with opened_sessions(any_database_url) as fresh:
                assert (await positions(fresh, session, position, 3)) == list(range(position, min(5000, position + 3)))

    async def test_a_recording_with_long_breaks(self, store: DatabaseSessions, begin: Begin) -> None:
        session = await begin()
        day_us = 86_400_000_000
        await session.write({i: T0_US + 10_000 * i + day_us * (i // 300) for i in range(1500)})
        assert await positions(store, session, 0, 1) == [0]
        assert await positions(store, session, 1234, 2) == [1234, 1235]
        assert await positions(store, session, 299, 3) == [299, 300, 301]
        assert await everything(store, session) == list(range(1500))

    async def test_thousands_at_one_time(self, store: DatabaseSessions, begin: Begin) -> None:
        session, other = await begin(), await begin()
        times_us = {i: T0_US + (0 if i < 3000 else 1) for i in range(4000)}
        await session.write(times_us)
        await other.write(times_us)
        assert await positions(store, session, 2998, 4) == [2998, 2999, 3000, 3001]
        assert await positions(store, session, 3500, 1) == [3500]
        assert await everything(store, session, 0, 700) == list(range(4000))

    async def test_all_at_one_time(self, store: DatabaseSessions, begin: Begin) -> None:
        session = await begin()
        await session.write(dict.fromkeys(range(2000), T0_US))
        assert await positions(store, session, 1999, 4) == [1999]
        assert await everything(store, session, 0, 900) == list(range(2000))

    async def test_other_sessions_and_users_at_the_same_time(self, store: DatabaseSessions, begin: Begin) -> None:
        sessions = [await begin(), await begin(), await begin("you")]
        for session in sessions:
            await session.write(every(10_000, range(300)))
        for session in sessions:
            assert await everything(store, session, 0, 100) == list(range(300))

    async def test_a_session_between_others_of_its_user(self, store: DatabaseSessions, begin: Begin) -> None:
        hour_us = 3_600_000_000
        sessions = [await begin("me", T0_US + i * hour_us) for i in range(3)]
        for session in sessions:
            await session.write(every(10_000, range(600), session.start_us))
        for session in sessions:
            assert await everything(store, session) == list(range(600))
            assert await positions(store, session, 590, 100) == list(range(590, 600))

    async def test_in_columns_as_in_rows(self, store: DatabaseSessions, begin: Begin, any_database_url: str) -> None:
        sessions = [await begin(), await begin(), await begin("you")]
        for session in sessions:
            await session.write(every(40_000_000, range(3000)))  # over a day and a half
        await compress(any_database_url)
        for session in sessions:
            await session.write(every(40_000_000, range(3000, 3100)))
            assert await positions(store, session, 1700, 3) == [1700, 1701, 1702]
            assert await everything(store, session, 0, 1000) == list(range(3100))

    async def test_nothing_at_the_end_of_a_session_or_before_its_first_sample(
        self, store: DatabaseSessions, begin: Begin
    ) -> None:
        session = await begin()
        assert await positions(store, session, 0, 9) == []
        await session.write(every(10_000, range(5)))
        assert await positions(store, session, 5, 9) == []
        assert await positions(store, session, 1 << 52, 9) == []

    async def test_a_session_that_was_read_before_it_grew(self, store: DatabaseSessions, begin: Begin) -> None:
        session = await begin()
        await session.write(every(10_000, range(5)))
        old = await stored(store, session)
        await session.write(every(10_000, range(5, 9)))
        assert spans(await store.samples(old, 3, 99)) == [(3, 9)]

    async def test_what_is_older_than_the_retention_is_not_there(
        self, store: DatabaseSessions, begin: Begin, any_database_url: str
    ) -> None:
        session = await begin()
        await session.write(every(10_000, range(2000)))
        async with connected(any_database_url) as connection:
            await connection.execute("DELETE FROM raw_eeg WHERE position < 1500")
        assert spans(await read(store, session, 10, 20)) == [(1500, 1520)]


class TestHoles:
    async def test_a_chunk_begins_behind_each_and_tells_what_its_relay_skipped(
        self, store: DatabaseSessions, begin: Begin
    ) -> None:
        session = await begin()
        there = [*range(100), *range(150, 200), *range(260, 300), *range(310, 320)]
        await session.write(every(10_000, there))
        await session.gap(100, 150, "relay")
        await session.gap(200, 230, "lost")
        await session.gap(230, 250, "relay")
        await session.gap(250, 260, "relay")
        await session.gap(300, 310, "lost")
        assert spans(await read(store, session, 50, 999)) == [
            (50, 100),
            (100, 150, "relay"),
            (150, 200),
            (230, 250, "relay"),
            (250, 260, "relay"),
            (260, 300),
            (310, 320),
        ]

    async def test_what_the_relay_skipped_after_the_last_sample_is_told_too(
        self, store: DatabaseSessions, begin: Begin
    ) -> None:
        session = await begin()
        await session.write(every(10_000, range(100)))
        await session.gap(100, 150, "relay")
        await session.reach(150, T0_US + 10_000 * 99)
        assert spans(await read(store, session, 90, 5)) == [(90, 95)]
        assert spans(await read(store, session, 90, 999)) == [(90, 100), (100, 150, "relay")]
        assert spans(await read(store, session, 120, 999)) == [(120, 150, "relay")]

    async def test_a_reading_may_begin_in_one(self, store: DatabaseSessions, begin: Begin) -> None:
        session = await begin()
        await session.write(every(10_000, [*range(100, 200), *range(10_000, 10_100)]))
        await session.gap(0, 60, "lost")
        await session.gap(60, 100, "relay")
        await session.gap(200, 10_000, "relay")
        found = [spans(await read(store, session, at, 5)) for at in (0, 70, 150, 5000)]
        assert found == [
            [(60, 100, "relay"), (100, 105)],
            [(70, 100, "relay"), (100, 105)],
            [(150, 155)],
            [(5000, 10_000, "relay"), (10_000, 10_005)],
        ]

    async def test_holes_that_nobody_noted_are_found_too(self, store: DatabaseSessions, begin: Begin) -> None:
        session = await begin()
        await session.write(every(10_000, range(3000, 9000, 3)))
        assert await positions(store, session, 0, 2) == [3000, 3003]
        assert await positions(store, session, 6001, 2) == [6003, 6006]
        assert await everything(store, session, 0, 500) == list(range(3000, 9000, 3))

    async def test_hundreds_one_after_the_other(self, store: DatabaseSessions, begin: Begin) -> None:
        session = await begin()
        for start in range(200):
            await session.gap(start, start + 1)
        await session.write(every(10_000, range(200, 210)))
        gaps = [(start, start + 1, "relay") for start in range(3, 200)]
        assert spans(await read(store, session, 3, 5)) == [*gaps, (200, 205)]
