"""Late rows: written at once whatever is done to their chunks, moved later, and read as if they were there already."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from support.databases import connected, opened, until
from support.samples import ORIGIN, OTHER, PREDICTION, SESSION, T0_US, batch, chunk
from support.stored_sessions import opened_sessions
from zander.database import late as late_module
from zander.database import transaction
from zander.database.connection import Pool, connect
from zander.database.history import MAX_TIME_US, History, NotePageToken, RawPageToken
from zander.database.late import COMMAND_SECONDS, move
from zander.database.writer import DatabaseWriter
from zander.wire.chunk import Chunk, Origin

LATE_US = T0_US + 7812 * 50  # of 100 samples
DAY_US = 86_400_000_000


async def count(connection: Any, table: str) -> int:
    return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))


async def moved(storage: DatabaseWriter) -> None:
    await until(lambda: storage._late._task and storage._late._task.done())


async def all_that_is_read(url: str) -> tuple[list[int], list[int], list[float]]:
    """The positions by session and by time, and the times of the features; page by page."""
    by_session: list[int] = []
    async with opened_sessions(url) as store:
        stored = await store.session(ORIGIN.session_id)
        assert stored
        while chunks := await store.samples(stored, by_session[-1] + 1 if by_session else 0, 7):
            by_session += [p for it in chunks if isinstance(it, Chunk) for p in it.samples[:, 0].astype(int).tolist()]
    pool = Pool(url, 1)
    history = History(pool)
    by_time: list[int] = []
    token: RawPageToken | None = RawPageToken(0)
    while token:
        page, token = await history.raw_page("user", token, MAX_TIME_US, limit=9)
        by_time += [position for it in page for position in it.samples[:, 0].astype(int).tolist()]
    notes: list[float] = []
    at: NotePageToken | None = NotePageToken(0)
    while at:
        found, at = await history.notes_page("user", "features", at, MAX_TIME_US, limit=2)
        notes += [note.time_us for note in found]
    await pool.close()
    return by_session, by_time, notes


async def test_late_rows_are_read_like_the_others_wherever_they_are(
    any_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_module, "MOVED_ROWS", 20)
    notes = [structs.replace(PREDICTION, time_us=T0_US + 7812 * (n // 2)) for n in range(0, 200, 10)]
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        samples = [chunk(0, 30), chunk(30, 40), chunk(70, 30)]  # the second begins late
        await transaction.write(storage._connection, batch(0, 9, SESSION, *samples, *notes), late_us=LATE_US)
        assert [await count(connection, table) for table in ("late_raw_eeg", "raw_eeg")] == [70, 30]
        assert [await count(connection, table) for table in ("late_predictions", "predictions")] == [10, 10]
        expected = (list(range(100)), list(range(100)), [note.time_us for note in notes])
        assert await all_that_is_read(any_database_url) == expected
        for n_left in (50, 30, 10, 0):
            await move(storage._connection, "raw_eeg")
            assert await count(connection, "late_raw_eeg") == n_left
            assert await all_that_is_read(any_database_url) == expected
        assert [await move(storage._connection, table) for table in ("raw_eeg", "predictions", "predictions")] == [
            0,
            10,
            0,
        ]
        assert [await count(connection, table) for table in ("raw_eeg", "predictions")] == [100, 20]
        assert await all_that_is_read(any_database_url) == expected


async def test_late_rows_are_in_their_tables_soon(timescale_url: str) -> None:
    now_us = time.time_ns() // 1000
    live = Chunk(OTHER, 0, np.full(5, now_us), np.zeros((5, 2), np.float32))
    async with opened(timescale_url, columnstore_after_hours=24.0) as storage, connected(timescale_url) as connection:
        assert storage._late_us is not None
        assert abs(storage._late_us - (now_us - DAY_US)) < 60_000_000
        written = await storage.write(batch(0, 9, SESSION, chunk(0, 10), live, PREDICTION))
        assert written.durable[ORIGIN.session_id] == 10
        assert written.has_late_rows
        await moved(storage)
        assert [await count(connection, table) for table in ("raw_eeg", "predictions")] == [15, 1]
        assert [await count(connection, f"late_{table}") for table in ("raw_eeg", "predictions")] == [0, 0]
        assert not (await storage.write(batch(9, 20, live))).has_late_rows


async def test_nothing_is_late_where_nothing_is_converted(database_url: str) -> None:
    async with opened(database_url, columnstore_after_hours=24.0) as storage:
        assert not (await storage.write(batch(0, 9, SESSION, chunk(0)))).has_late_rows


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a plain server have late rows: its tables can be locked while others write."""
    monkeypatch.setattr(DatabaseWriter, "_late_us", LATE_US)


@pytest.mark.usefixtures("late")
async def test_nobody_waits_for_late_rows_whose_table_is_locked_and_none_is_lost(database_url: str) -> None:
    """As the chunk is that is being turned into columns."""
    async with opened(database_url) as storage, connected(database_url) as connection:
        async with connected(database_url) as other, other.transaction():
            await other.execute("LOCK TABLE raw_eeg IN EXCLUSIVE MODE")
            for n in range(5):
                samples = chunk(10 * n, 10)
                written = await storage.write(batch(9 * n, 9 * n + 9, SESSION, samples))
                assert written.durable == {ORIGIN.session_id: 10 * n + 10}
            assert await count(connection, "raw_eeg") == 0
            assert (await all_that_is_read(database_url))[0] == list(range(50))
        await moved(storage)
        assert [await count(connection, table) for table in ("late_raw_eeg", "raw_eeg")] == [0, 50]
        assert (await all_that_is_read(database_url))[0] == list(range(50))


@pytest.mark.usefixtures("late")
async def test_what_a_dead_node_left_is_moved_by_the_next(database_url: str) -> None:
    async with connected(database_url) as connection:
        async with connected(database_url) as other, opened(database_url) as storage, other.transaction():
            await other.execute("LOCK TABLE raw_eeg IN EXCLUSIVE MODE")
            await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
            await storage.close()
        assert await count(connection, "late_raw_eeg") == 10
        async with opened(database_url) as storage:
            await moved(storage)
        assert [await count(connection, table) for table in ("late_raw_eeg", "raw_eeg")] == [0, 10]


async def test_several_nodes_move_each_row_once(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_module, "MOVED_ROWS", 30)

    async def move_all() -> int:
        n = 0
        connection = await connect(database_url, {}, COMMAND_SECONDS)
        while moved := await move(connection, "raw_eeg"):
            n += moved
        await connection.close()
        return n

    async with opened(database_url) as storage, connected(database_url) as connection:
        first = batch(0, 9, SESSION, chunk(0, 1000))
        await transaction.write(storage._connection, first, late_us=MAX_TIME_US)
        assert sum(await asyncio.gather(*(move_all() for _ in range(4)))) == 1000
        positions = await connection.fetch("SELECT position FROM raw_eeg ORDER BY 1")
        assert [row[0] for row in positions] == list(range(1000))


@pytest.mark.usefixtures("late")
async def test_a_late_row_that_is_refused_is_dead_lettered(database_url: str) -> None:
    async with opened(database_url) as storage, connected(database_url) as connection:
        bad = Origin("u" * 101, OTHER.session_id, 0.0)
        written = await storage.write(batch(0, 9, SESSION, chunk(0, 10), chunk(0, 1, bad)))
        assert (written.n_dead_letters, written.durable[ORIGIN.session_id]) == (1, 10)
        assert await connection.fetchval("SELECT table_name FROM dead_letters") == "raw_eeg"


async def test_a_failure_to_move_is_logged_once_and_tried_again(
    database_url: str, late: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(late_module, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(late_module, "MAX_SECONDS", 0.001)
    async with opened(database_url) as storage, connected(database_url) as connection:
        await connection.execute("ALTER TABLE raw_eeg RENAME TO elsewhere; CREATE VIEW raw_eeg AS TABLE elsewhere")
        await connection.execute("CREATE RULE no AS ON INSERT TO raw_eeg DO INSTEAD SELECT 1 / 0")
        await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
        await until(lambda: any("late rows are not in their tables yet" in message for message in caplog.messages))
        await connection.execute("DROP VIEW raw_eeg; ALTER TABLE elsewhere RENAME TO raw_eeg")
        await moved(storage)
        assert await count(connection, "raw_eeg") == 10
    assert sum("late rows" in message for message in caplog.messages) == 1
