"""Reading by time, page after page: each row once, in order, whether the server keeps it in rows or in columns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import pytest

from support.stored_sessions import T0_US, PastSession, compress, every, prepare
from zander.database.connection import Pool, Row
from zander.database.history import MAX_TIME_US, PIECE_SAMPLES, History, NotePageToken, RawPageToken
from zander.wire.bodies import PIECE_BYTES, texts
from zander.wire.messages import Note

Key = tuple[int, UUID, int]
Begin = Callable[..., Awaitable[PastSession]]


class CountingPool(Pool):
    """A pool that counts the rows of each answer."""

    def __init__(self, database_url: str, size: int) -> None:
        super().__init__(database_url, size)
        self.n_rows: list[int] = []

    async def fetch(self, statement: str, *values: object) -> list[Row]:
        rows = await super().fetch(statement, *values)
        self.n_rows.append(len(rows))
        return rows


@pytest.fixture
async def pool(any_database_url: str) -> AsyncIterator[CountingPool]:
    await prepare(any_database_url)
    pool = CountingPool(any_database_url, 2)
    yield pool
    await pool.close()


@pytest.fixture
def history(pool: CountingPool) -> History:
    return History(pool)


async def raw_keys(history: History, limit: int, start_us: int = 0, end_us: int = MAX_TIME_US) -> list[Key]:
    """Read all pages; return the time, session and position of every sample."""
    found: list[Key] = []
    token: RawPageToken | None = RawPageToken(start_us)
    while token:
        chunks, token = await history.raw_page("me", token, end_us, limit=limit)
        for chunk in chunks:
            assert chunk.samples[:, 0].tolist() == list(range(chunk.position, chunk.end))
            session = UUID(chunk.origin.session_id)
            found += [(int(at), session, chunk.position + i) for i, at in enumerate(chunk.times_us)]
    return found


async def all_notes(history: History, limit: int) -> list[Note]:
    found: list[Note] = []
    token: NotePageToken | None = NotePageToken(0)
    while token:
        notes, token = await history.notes_page("me", "features", token, MAX_TIME_US, limit=limit)
        found += notes
    return found


def keys(session: PastSession, times_us: dict[int, int]) -> set[Key]:
    return {(time_us, UUID(session.session_id), position) for position, time_us in times_us.items()}


@pytest.mark.parametrize("in_columns", [False, True])
async def test_pages_give_each_sample_of_overlapping_sessions_once_in_order(
    history: History, begin: Begin, any_database_url: str, in_columns: bool
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
        assert await raw_keys(history, limit) == sorted(expected)
    start_us, end_us = T0_US + 30_000_000, T0_US + 90_000_000
    assert await raw_keys(history, 50, start_us, end_us) == sorted(it for it in expected if start_us <= it[0] < end_us)


@pytest.mark.parametrize("in_columns", [False, True])
async def test_pages_of_any_size_give_many_features_at_one_time_alike(
    history: History, begin: Begin, any_database_url: str, in_columns: bool
) -> None:
    session, other = await begin(), await begin()
    for i in range(12):
        await session.note(T0_US + 3_600_000_000 * (i // 6), {"i": i})
        await other.note(T0_US + 3_600_000_000 * (i // 6), {"same": 1})
    if in_columns:
        await compress(any_database_url)
    for i in range(8):
        await session.note(T0_US + 3_600_000_000, {"late": i})
    whole = await all_notes(history, 10_000)
    assert len(whole) == 32
    for limit in (1, 5, 7):
        assert await all_notes(history, limit) == whole


async def test_a_large_page_is_read_and_written_in_small_pieces(
    history: History, pool: CountingPool, begin: Begin
) -> None:
    """Between two that are read the event loop runs other tasks; between two that are written too: `Answers`."""
    session = await begin()
    await session.write(every(10_000, range(4000)), n_channels=32)
    chunks, _ = await history.raw_page("me", RawPageToken(0), MAX_TIME_US, limit=4000)
    assert sum(map(len, chunks)) == 4000
    assert max(pool.n_rows) == PIECE_SAMPLES
    pieces = list(texts(chunks))
    assert sum(map(len, pieces)) == 4000
    assert len(pieces) >= 4000 * 32 * 4 / PIECE_BYTES
