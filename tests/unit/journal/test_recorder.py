from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from time import monotonic

import pytest
from msgspec import structs

from support.databases import until
from support.files import damage
from support.memory_database import Database, MemoryStorage
from support.samples import ORIGIN, OTHER, PREDICTION, SESSION, T0_US, chunk, gap
from zander.errors import StorageError
from zander.journal import journal as journal_module
from zander.journal import recorder as recorder_module
from zander.journal import writer as writer_module
from zander.journal.batch import Batch, Written
from zander.journal.journal import Journals
from zander.journal.log import HEADER_BYTES, files, split_payloads
from zander.journal.recorder import Recorder, trim_heap
from zander.journal.records import GapRecord, RawRecord, decode
from zander.journal.shares import SHARES
from zander.journal.writer import JournalWriter


def sizes(storage: MemoryStorage) -> list[int]:
    return [batch.n_records for batch in storage.batches]


def of_session(storage: MemoryStorage) -> list[int]:
    return storage.positions(ORIGIN.session_id)


Record = Callable[..., Recorder]


@pytest.fixture
def recorder(storage: MemoryStorage, tmp_path: Path) -> Iterator[Record]:
    """Make recorders, each with a journal of its own unless it is given one."""
    opened: list[Journals] = []

    def make(
        *,
        max_records: int = 10,
        max_seconds: float = 60.0,
        linger_seconds: float = 0.0,
        journal_max_bytes: int = 1 << 30,
        journal_keep_bytes: int = 0,
        journals: Journals | None = None,
        on_written: Callable[[Written], None] = lambda written: None,
    ) -> Recorder:
        if not journals:
            journals = Journals(tmp_path, journal_max_bytes, journal_keep_bytes)
            opened.append(journals)
        writer = JournalWriter(journals, max_bytes=journal_max_bytes, batch_records=max_records)
        return Recorder(
            storage,
            journals,
            writer,
            max_seconds=max_seconds,
            linger_seconds=linger_seconds,
            on_written=on_written,
        )

    yield make
    for journals in opened:
        journals.close()


def there(folder: Path) -> Journals:
    """Start in a folder with what others left."""
    return Journals(folder / "there", 1 << 30)


@asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(recorder.run())
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        assert not task.done() or task.cancelled(), "the loop ended by itself"
        task.cancel()
        await asyncio.wait([task])


async def drained(recorder: Recorder, seconds: float = 5) -> bool:
    """Let a recorder run until it has written everything."""
    async with running(recorder):
        return await recorder.drain(seconds)


@pytest.fixture
async def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "PING_SECONDS", 0.01)
    monkeypatch.setattr(recorder_module, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(recorder_module, "MAX_SECONDS", 0.01)
    monkeypatch.setattr(writer_module, "PAUSE_SECONDS", 0.001)


def messages(caplog: pytest.LogCaptureFixture, start: str) -> list[str]:
    return [message for message in caplog.messages if message.startswith(start)]


def die(journals: Journals) -> None:
    """Leave a journal as a killed process does: the system closes its files, nobody tidies up."""
    for journal in (journals.own, *journals.orphans):
        journal.log.close()
        os.close(journal._lock._fd)


# When a batch goes.


async def test_a_batch_goes_when_max_records_wait(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder(max_records=10)
    async with running(kept):
        for position in range(10):
            assert kept.writer.record_chunk(chunk(position), 0)
        await until(lambda: storage.batches)
    assert of_session(storage) == list(range(10))
    assert len(storage.batches) == 1


async def test_a_chunk_counts_its_samples(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder(max_records=10)
    async with running(kept):
        kept.writer.record_chunk(chunk(0, 10), 0)
        await until(lambda: storage.batches)
    assert kept.stats().written_records == 10


async def test_a_smaller_batch_waits_until_it_is_old_enough(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder(max_records=10, max_seconds=0.05)
    async with running(kept):
        await until(lambda: kept.online)
        recorded_s = monotonic()
        kept.writer.record_prediction(PREDICTION)
        kept.writer.record_chunk(chunk(0), 0)
        await until(lambda: storage.batches)
    assert storage.starts_s[0] >= recorded_s + 0.05
    assert sizes(storage) == [2]
    assert storage.database.predictions == [PREDICTION]


async def test_the_start_or_end_of_a_session_does_not_wait(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder(max_records=1_000, max_seconds=60)
    async with running(kept):
        await until(lambda: kept.online)
        kept.writer.record_chunk(chunk(0), 0)
        kept.writer.record(SESSION)
        await until(lambda: storage.batches)
    assert sizes(storage) == [2]
    assert storage.database.sessions[ORIGIN.session_id].record == SESSION


async def test_what_comes_while_a_write_is_under_way_waits_together(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder(max_records=1)
    storage.gate.clear()
    async with running(kept):
        kept.writer.record_chunk(chunk(0), 0)
        await until(lambda: storage.tried)
        for position in range(1, 1000):
            kept.writer.record_chunk(chunk(position), 0)
        assert kept.stats().pending_records == 1000
        storage.gate.set()
        await until(lambda: kept.stats().pending_records == 0)
    assert sizes(storage) == [1, 999]


async def test_two_batches_start_at_least_the_linger_apart(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder(max_records=1, linger_seconds=0.05)
    async with running(kept):
        position = 0
        while len(storage.batches) < 4:
            kept.writer.record_chunk(chunk(position), 0)
            position += 1
            await asyncio.sleep(0.001)
    assert min(later - earlier for earlier, later in pairwise(storage.starts_s)) >= 0.05
    written = of_session(storage)
    assert written == list(range(len(written)))


async def test_batches_follow_each_other_without_a_hole_in_the_journal(
    storage: MemoryStorage, recorder: Record
) -> None:
    kept = recorder(max_records=7, max_seconds=0.001)
    async with running(kept):
        for position in range(300):
            kept.writer.record_chunk(chunk(position), 0)
            if position % 3 == 0:
                await asyncio.sleep(0)
        assert await kept.drain(5)
    assert all(earlier.end == later.start for earlier, later in pairwise(storage.batches))
    own = kept.journals.own
    assert storage.batches[-1].end == own.log.end == storage.database.writers[own.writer_id]
    assert kept.stats().written_records == 300
    assert kept.stats().written_batches == len(storage.batches)


async def test_who_asks_is_told_what_is_durable(storage: MemoryStorage, recorder: Record) -> None:
    told: list[Written] = []
    kept = recorder(max_records=1, on_written=told.append)
    kept.writer.record(SESSION)
    kept.writer.record_chunk(chunk(0, 10), 0)
    kept.writer.record(gap(10, 15))
    assert await drained(kept, 5)
    assert [written.durable for written in told] == [{ORIGIN.session_id: 15}]


# A large backlog.


async def test_a_large_backlog_is_written_in_pieces_in_order(
    storage: MemoryStorage, recorder: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "BATCH_BYTES", 1 << 20)
    monkeypatch.setattr(journal_module, "READ_BYTES", 1 << 18)
    kept = recorder()
    for position in range(0, 40_000, 500):
        kept.writer.record_chunk(chunk(position, 500), 0)
    async with running(kept):
        assert await kept.drain(10)
    assert of_session(storage) == list(range(40_000))
    largest = max(batch.end - batch.start for batch in storage.batches)
    assert (1 << 20) <= largest < (1 << 20) + journal_module.READ_BYTES + 500 * 100
    assert len(storage.batches) == 4


async def test_what_a_backlog_took_is_given_back_once_all_of_it_is_written(
    storage: MemoryStorage, recorder: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_batches: list[int] = []
    monkeypatch.setattr(recorder_module, "LARGE_BATCH_BYTES", 200)
    monkeypatch.setattr(recorder_module, "trim_heap", lambda: n_batches.append(len(storage.batches)))
    one = recorder()
    for positions in ([0], range(1, 11), [11]):
        for position in positions:
            one.writer.record_chunk(chunk(position), 0)
        assert await drained(one, 5)
    assert n_batches == [2]
    trim_heap()


async def test_much_to_write_goes_even_if_max_records_is_larger(
    storage: MemoryStorage, recorder: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "DUE_BYTES", 1 << 18)
    kept = recorder(max_records=1_000_000)
    async with running(kept):
        await until(lambda: kept.online)
        for position in range(0, 3000, 500):
            kept.writer.record_chunk(chunk(position, 500), 0)
        await until(lambda: storage.batches)
    assert of_session(storage) == list(range(3000))


async def test_beyond_the_bound_the_newest_is_refused_and_counted(
    storage: MemoryStorage, recorder: Record, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("samples", "notes"):
        monkeypatch.setitem(SHARES, kind, 1e9)  # as if there were many users
    kept = recorder(journal_max_bytes=100_000)
    results = [kept.writer.record_chunk(chunk(position), 0) for position in range(1000)]
    n_kept = results.index(False)
    assert not any(results[n_kept:])
    assert not kept.writer.takes
    assert not kept.writer.record_prediction(PREDICTION)
    kept.writer.record(SESSION)
    assert kept.stats().pending_bytes <= 100_000 + 300
    assert kept.stats().pending_records == n_kept + 1
    assert kept.stats().dropped_records == 1001 - n_kept
    assert len(messages(caplog, "the journal takes no more")) == 1
    async with running(kept):
        assert await kept.drain(5)
        await until(lambda: kept.writer.takes)
    assert of_session(storage) == list(range(n_kept))
    assert storage.database.sessions[ORIGIN.session_id].record == SESSION
    assert len(messages(caplog, "the journal takes records again after")) == 1
    assert f"{1001 - n_kept} were refused" in caplog.text
    assert kept.writer.record_chunk(chunk(2000), 0)


@pytest.mark.parametrize("journal_max_bytes", [1 << 16, 1 << 20])
async def test_a_small_journal_gives_back_what_is_written(
    storage: MemoryStorage, recorder: Record, journal_max_bytes: int
) -> None:
    kept = recorder(max_records=50, journal_max_bytes=journal_max_bytes)
    n_bytes = position = 0
    async with running(kept):
        while n_bytes < 3 * journal_max_bytes:
            assert kept.writer.record_chunk(chunk(position, 20), 0), "full for good"
            position += 20
            n_bytes += 2000
            if position % 100 == 0:
                await until(lambda: kept.stats().pending_records == 0)
            assert kept.stats().journal_bytes <= journal_max_bytes + 2100
        assert await kept.drain(5)
    assert of_session(storage) == list(range(position))


async def test_what_dead_processes_left_counts_toward_the_bound(
    storage: MemoryStorage, recorder: Record, tmp_path: Path
) -> None:
    before = there(tmp_path)
    left = recorder(journals=before)
    for position in range(0, 1000, 100):
        left.writer.record_chunk(chunk(position, 100), 0)
    die(before)
    after = there(tmp_path)
    kept = recorder(journals=after, journal_max_bytes=after.n_bytes)
    assert kept.writer.record_chunk(chunk(1000), 0)
    assert not kept.writer.record_chunk(chunk(1001), 0)
    async with running(kept):
        assert await kept.drain(5)
        await until(lambda: kept.writer.takes)
    assert of_session(storage) == list(range(1001))
    after.close()


# The database goes away.


async def test_an_outage_loses_nothing_and_is_logged_once(
    storage: MemoryStorage, recorder: Record, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(max_records=1)
    async with running(kept):
        kept.writer.record_chunk(chunk(0), 0)
        await until(lambda: storage.batches)
        assert kept.online
        storage.go_away()
        began_s = monotonic()
        for position in range(1, 100):
            kept.writer.record_chunk(chunk(position), 0)
        await until(lambda: storage.n_opened > 5)
        assert not kept.online
        assert kept.stats().last_error == "no route to host"
        assert 0 < kept.stats().oldest_pending_seconds < monotonic() - began_s
        storage.come_back()
        await until(lambda: kept.stats().pending_records == 0)
        assert kept.online
        assert kept.stats().oldest_pending_seconds == 0
    assert of_session(storage) == list(range(100))
    assert len(messages(caplog, "the database is away: no route to host")) == 1
    assert len(messages(caplog, "the database is back after")) == 1
    assert len(caplog.messages) == 2


async def test_an_outage_is_noticed_while_nothing_is_written(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder()
    async with running(kept):
        await until(lambda: kept.online)
        storage.go_away()
        await until(lambda: not kept.online)
        storage.come_back()
        await until(lambda: kept.online)
    assert not storage.tried


async def test_a_database_that_opens_but_takes_no_batch_is_not_online(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder(max_records=1)
    async with running(kept):
        await until(lambda: kept.online)

        def full() -> None:
            if storage.tried:
                storage.tried.clear()
                raise StorageError("disk full")

        storage.fail = full
        kept.writer.record_chunk(chunk(0), 0)
        await until(lambda: not kept.online)
        n_opened = storage.n_opened
        await until(lambda: storage.n_opened > n_opened + 3)
        assert not kept.online


async def test_a_batch_whose_answer_was_lost_is_not_written_again_and_told_as_durable(
    storage: MemoryStorage, recorder: Record
) -> None:
    told: list[Written] = []
    kept = recorder(max_records=1, on_written=told.append)

    def lose() -> None:
        storage.lose = lambda: None
        kept.writer.record_chunk(chunk(1), 0)
        raise StorageError("connection reset")

    storage.lose = lose
    kept.writer.record(SESSION)
    kept.writer.record_chunk(chunk(0), 0)
    async with running(kept):
        await until(lambda: kept.stats().pending_records == 0)
    first, following = storage.tried
    assert following[0] == first[1]
    assert of_session(storage) == [0, 1]
    assert [written.durable for written in told] == [{ORIGIN.session_id: 1}, {ORIGIN.session_id: 2}]


async def test_a_mistake_of_ours_does_not_end_the_recording(
    storage: MemoryStorage, recorder: Record, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(max_records=1)
    storage.go_away(RuntimeError("a mistake"))
    async with running(kept):
        kept.writer.record_chunk(chunk(0), 0)
        await until(lambda: storage.n_opened > 2)
        storage.come_back()
        await until(lambda: storage.batches)
    assert len(messages(caplog, "the database is away: a mistake")) == 1
    assert caplog.records[0].exc_info


async def test_a_run_that_was_cancelled_in_a_write_is_gone_on_with(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder(max_records=1)
    storage.gate.clear()
    async with running(kept):
        kept.writer.record_chunk(chunk(0), 0)
        await until(lambda: storage.tried)
    kept.writer.record_chunk(chunk(1), 0)
    storage.gate.set()
    assert await drained(kept, 5)
    assert storage.tried[0] == storage.tried[1]
    assert of_session(storage) == [0, 1]


def go_back(storage: MemoryStorage, to: Database) -> None:
    """Give the database the state that it had; as a restored backup does, or a standby that was behind."""
    storage.database = deepcopy(to)


@pytest.mark.parametrize("n_kept", [0, 1 << 20])
@pytest.mark.parametrize("is_noticed_by_a_batch", [True, False])
async def test_a_database_that_went_back_gets_again_what_is_still_here(
    storage: MemoryStorage, recorder: Record, n_kept: int, is_noticed_by_a_batch: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What was in a file that is deleted is a gap."""
    kept = recorder(max_records=10, max_seconds=0.01, journal_max_bytes=100_000, journal_keep_bytes=n_kept)
    kept.writer.record(SESSION)
    async with running(kept):
        for position in range(0, 600, 10):
            kept.writer.record_chunk(chunk(position, 10), 0)
            await until(lambda: kept.stats().pending_records == 0)
            if position == 50:
                before = deepcopy(storage.database)
        assert (kept.journals.own.log.start > 0) == (not n_kept)
        go_back(storage, before)
        if is_noticed_by_a_batch:
            kept.writer.record_chunk(chunk(600, 10), 0)
        else:
            storage.go_away()
            await until(lambda: not kept.online)
            storage.come_back()
        await until(lambda: kept.online and of_session(storage)[-1:] == [609 if is_noticed_by_a_batch else 599])
        assert await kept.drain(5)
    written, lost = of_session(storage), storage.database.in_gaps(ORIGIN.session_id, "lost")
    assert sorted([*written, *lost]) == list(range(610 if is_noticed_by_a_batch else 600))
    assert bool(lost) == (not n_kept)
    assert len(messages(caplog, f"the database has gone back: it has journal {kept.journals.own.writer_id} up to")) == 1
    assert kept.stats().pending_records == kept.stats().pending_bytes == 0
    assert kept.stats().oldest_pending_seconds == 0


async def test_a_database_that_forgot_the_journal_gets_again_what_is_still_here(
    storage: MemoryStorage, recorder: Record
) -> None:
    """As one restored from before the start of this process."""
    kept = recorder(max_records=10, max_seconds=0.01)
    kept.writer.record(SESSION)
    async with running(kept):
        for position in range(0, 50, 10):
            kept.writer.record_chunk(chunk(position, 10), 0)
            await until(lambda: kept.stats().pending_records == 0)
        go_back(storage, Database())
        kept.writer.record_chunk(chunk(50, 10), 0)
        await until(lambda: of_session(storage)[-1:] == [59])
    assert of_session(storage) == list(range(60))
    assert storage.database.sessions[ORIGIN.session_id].record == SESSION


async def test_a_damaged_piece_of_the_journal_costs_no_more_than_itself(
    storage: MemoryStorage, recorder: Record
) -> None:
    kept = recorder(max_records=10)
    for position in range(10):
        kept.writer.record_chunk(chunk(position), 0)
    (path,) = kept.journals.own.log.paths
    damage(path, path.stat().st_size // 2)
    async with running(kept):
        await until(lambda: storage.tried)
        for position in range(10, 20):
            kept.writer.record_chunk(chunk(position), 0)
        assert await kept.drain(5)
        assert kept.stats().pending_bytes == 0
    assert of_session(storage) == [0, 1, 2, 3, 4, *range(6, 20)]
    assert storage.database.in_gaps(ORIGIN.session_id, "lost") == {5}


async def test_a_batch_that_waits_in_the_database_is_an_outage_before_it_is_given_up(
    storage: MemoryStorage, recorder: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a lock that somebody holds."""
    kept = recorder(max_records=1)
    async with running(kept):
        await until(lambda: kept.online)
        monkeypatch.setattr(recorder_module, "STALLED_SECONDS", 0.05)
        storage.gate.clear()
        began_s = monotonic()
        kept.writer.record_chunk(chunk(0), 0)
        await until(lambda: storage.tried)
        kept.writer.record_chunk(chunk(1), 0)
        await until(lambda: not kept.online)
        assert 0.05 <= kept.stats().oldest_pending_seconds <= monotonic() - began_s
        storage.gate.set()
        await until(lambda: kept.stats().pending_records == 0)
        assert kept.online
        assert kept.stats().oldest_pending_seconds == 0


# A batch that cannot be done.


def refuse_beyond(n_records: int, storage: MemoryStorage) -> None:
    def refuse(batch: Batch) -> None:
        if batch.n_records > n_records:
            raise StorageError("out of shared memory")

    storage.refuse = refuse


async def test_a_batch_that_is_too_much_is_done_in_smaller_ones_which_grow_again(
    storage: MemoryStorage, recorder: Record
) -> None:
    kept = recorder(max_records=1)
    refuse_beyond(10, storage)
    for position in range(1000):
        kept.writer.record_chunk(chunk(position), 0)
    async with running(kept):
        await until(lambda: of_session(storage)[-1:] >= [500])
        assert max(sizes(storage)) <= 10
        assert not any(first == again for first, again in pairwise(storage.tried))
        storage.refuse = lambda batch: None
        assert await kept.drain(5)
        assert of_session(storage) == list(range(1000))
        assert max(sizes(storage)) > 20
        while kept.journals.batch_bytes < journal_module.BATCH_BYTES:
            position += 1
            kept.writer.record_chunk(chunk(position), 0)
            assert await kept.drain(5)
    assert kept.stats().dead_letters == 0


@pytest.mark.parametrize("n_samples", [1, 200])
async def test_a_record_that_fails_by_itself_is_asked_about_and_waits_for_as_long_as_it_has_to(
    storage: MemoryStorage, recorder: Record, n_samples: int
) -> None:
    kept = recorder(max_records=1)
    refuse_beyond(0, storage)
    for position in range(0, 10 * n_samples, n_samples):
        kept.writer.record_chunk(chunk(position, n_samples), 0)
    async with running(kept):
        await until(lambda: storage.is_alone)
        n_tried = len(storage.tried)
        await until(lambda: len(storage.tried) > n_tried + 5)
        assert len(set(storage.tried[n_tried:])) == 1, "the record behind it was tried"
        assert not kept.online
        storage.refuse = lambda batch: None
        assert await kept.drain(5)
        assert not storage.is_alone
    assert of_session(storage) == list(range(10 * n_samples))


async def test_records_of_any_size_are_divided_down_to_the_one_that_fails(
    storage: MemoryStorage, recorder: Record
) -> None:
    kept = recorder(max_records=1)
    sessions = [structs.replace(SESSION, device_info=f'"{"x" * 7**n}"') for n in range(6)]

    def refuse(batch: Batch) -> None:
        if sessions[3].session_id in batch.sessions and batch.n_records > 1:
            raise StorageError("no")

    storage.refuse = refuse
    for session in sessions:
        kept.writer.record(session)
    async with running(kept):
        assert await kept.drain(5)
    assert set(sizes(storage)) == {1}
    assert [batch.sessions[ORIGIN.session_id] for batch in storage.batches] == sessions


# What dead processes left.


async def test_what_a_dead_process_left_is_written_first_and_once(
    storage: MemoryStorage, recorder: Record, tmp_path: Path
) -> None:
    dead = [there(tmp_path) for _ in range(3)]
    for n, journals in enumerate(dead):
        left = recorder(journals=journals)
        left.writer.record_chunk(chunk(100 * n, 100), 0)
    for journals in dead:
        die(journals)
    after = there(tmp_path)
    kept = recorder(journals=after, max_records=1)
    kept.writer.record_chunk(chunk(300), 0)
    assert kept.stats().pending_records == 1
    assert kept.stats().pending_bytes > 300 * 90
    async with running(kept):
        await until(lambda: kept.stats().pending_bytes == 0)
        assert not after.orphans
    assert of_session(storage) == list(range(301))
    assert [batch.writer_id for batch in storage.batches][-1] == after.own.writer_id
    after.close()
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("is_asked_before", [True, False])
async def test_a_dead_process_whose_last_word_arrives_late_is_believed(
    storage: MemoryStorage, recorder: Record, tmp_path: Path, is_asked_before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    dead = there(tmp_path)
    left = recorder(journals=dead, max_records=1)
    left.writer.record_chunk(chunk(0, 10), 0)
    last_word = await dead.read(dead.own)
    left.writer.record_chunk(chunk(10, 10), 0)
    die(dead)
    after = there(tmp_path)
    kept = recorder(journals=after)
    if is_asked_before:
        storage.gate.clear()
    else:
        storage.database.commit(last_word)
    async with running(kept):
        if is_asked_before:
            await until(lambda: storage.tried)
            storage.database.commit(last_word)
            storage.gate.set()
        await until(lambda: kept.stats().pending_bytes == 0)
    assert of_session(storage) == list(range(20))
    assert not messages(caplog, "the database is")
    after.close()


@pytest.mark.parametrize("waited_s", [0, 1000])
async def test_what_a_dead_process_left_is_as_old_as_it_is(
    storage: MemoryStorage, recorder: Record, tmp_path: Path, waited_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are not: it wrote to them until it died."""
    dead = there(tmp_path)
    left = recorder(journals=dead, max_records=1)
    now_s = monotonic()
    storage.go_away()
    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "monotonic", lambda: now_s - waited_s)
        left.writer.record_chunk(chunk(0, 10), 0)
    left.writer.record_chunk(chunk(10, 10), 0)
    async with running(left):
        n_opened = storage.n_opened
        await until(lambda: storage.n_opened > n_opened + 2)
    die(dead)
    after = there(tmp_path)
    kept = recorder(journals=after)
    assert waited_s <= kept.stats().oldest_pending_seconds <= monotonic() - now_s + waited_s + 0.1
    storage.come_back()
    async with running(kept):
        await until(lambda: kept.stats().pending_bytes == 0)
        assert kept.stats().oldest_pending_seconds == 0
    after.close()


async def test_an_orphan_that_cannot_be_read_is_left_as_it_is_and_nothing_waits_for_it(
    storage: MemoryStorage, recorder: Record, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = there(tmp_path)
    dead.own.log.append(b"of another version")
    die(dead)
    after = there(tmp_path)
    kept = recorder(journals=after)
    kept.writer.record_chunk(chunk(0, 10), 0)
    assert await drained(kept, 5)
    assert of_session(storage) == list(range(10))
    assert len(messages(caplog, f"journal {dead.own.writer_id} cannot be read, it is left as it is")) == 1
    after.close()
    again = there(tmp_path)
    assert [orphan.writer_id for orphan in again.orphans] == [dead.own.writer_id]
    again.close()


async def test_what_is_recorded_while_orphans_are_written_is_in_the_journal(
    storage: MemoryStorage, recorder: Record, tmp_path: Path
) -> None:
    dead = there(tmp_path)
    recorder(journals=dead).writer.record_chunk(chunk(0, 10), 0)
    die(dead)
    after = there(tmp_path)
    kept = recorder(journals=after, max_records=1)
    storage.gate.clear()
    async with running(kept):
        await until(lambda: storage.tried)
        kept.writer.record_chunk(chunk(10, 5), 0)
        assert kept.stats().pending_records == 5
        storage.gate.set()
        assert await kept.drain(5)
    assert of_session(storage) == list(range(15))
    assert kept.stats().pending_records == kept.stats().pending_bytes == 0
    after.close()


# Draining.


async def test_a_drain_writes_what_is_not_due_yet(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder(linger_seconds=60.0)
    async with running(kept):
        await until(lambda: kept.online)
        kept.writer.record_chunk(chunk(0), 0)
        assert await kept.drain(5)
    assert of_session(storage) == [0]


async def test_a_drain_of_nothing_is_done_at_once(storage: MemoryStorage, recorder: Record) -> None:
    assert await recorder().drain(0.0001)


async def test_a_drain_gives_up_and_says_how_much_stays(
    storage: MemoryStorage, recorder: Record, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder()
    storage.go_away()
    kept.writer.record_chunk(chunk(0, 7), 0)
    assert not await drained(kept, 0.05)
    kept.log_remaining()
    assert messages(caplog, f"{kept.stats().pending_bytes} bytes stay in the journal for the next start")


async def test_a_drain_does_not_wait_out_a_pause(
    storage: MemoryStorage, recorder: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "FIRST_SECONDS", 1000.0)
    monkeypatch.setattr(recorder_module, "MAX_SECONDS", 1000.0)
    kept = recorder(max_records=1)
    storage.go_away()
    async with running(kept):
        kept.writer.record_chunk(chunk(0), 0)
        await until(lambda: storage.n_opened)
        storage.come_back()
        assert await kept.drain(5)
    assert of_session(storage) == [0]


async def test_what_comes_during_a_drain_is_drained_too(storage: MemoryStorage, recorder: Record) -> None:
    kept = recorder(linger_seconds=60.0)
    storage.gate.clear()
    async with running(kept):
        kept.writer.record_chunk(chunk(0), 0)
        draining = asyncio.create_task(kept.drain(5))
        await until(lambda: storage.tried)
        kept.writer.record_chunk(chunk(1), 0)
        storage.gate.set()
        assert await draining
    assert of_session(storage) == [0, 1]


# The disk is full.


class FullDisk:
    """Stands in for a full disk at `os.pwrite`, as the files of this process see it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self._pwrite = os.pwrite
        monkeypatch.setattr("zander.journal.log.os.pwrite", self._write)

    def _write(self, fd: int, data: bytes, offset: int) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._pwrite(fd, data, offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


async def test_a_full_disk_refuses_samples_and_keeps_the_end_of_a_session_in_memory(
    storage: MemoryStorage, recorder: Record, disk: FullDisk, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(max_records=1)
    async with running(kept):
        kept.writer.record_chunk(chunk(0), 0)
        await until(lambda: storage.batches)
        disk.is_full = True
        assert not kept.writer.record_chunk(chunk(1), 0)
        kept.writer.record(gap(1, 2, "lost"))
        kept.writer.record(SESSION)
        assert not kept.stats().taking
        disk.is_full = False
        await until(lambda: storage.database.sessions.get(ORIGIN.session_id))
        await until(lambda: kept.stats().pending_records == 0)
        assert kept.writer.takes
        assert kept.writer.record_chunk(chunk(2), 0)
        assert await kept.drain(5)
    assert of_session(storage) == [0, 2]
    assert storage.database.in_gaps(ORIGIN.session_id, "lost") == {1}
    assert messages(caplog, "the journal takes no more, relays are refused: No space left on device")
    assert len(messages(caplog, "the journal takes records again")) == 1


async def test_a_drain_waits_for_what_the_disk_did_not_take(
    storage: MemoryStorage, recorder: Record, disk: FullDisk, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(max_records=1)
    async with running(kept):
        kept.writer.record_chunk(chunk(0), 0)
        storage.gate.clear()
        await until(lambda: storage.tried)
        disk.is_full = True
        kept.writer.record(SESSION)
        storage.gate.set()
        await until(lambda: storage.batches)
        assert kept.stats().pending_records == 1
        assert not await kept.drain(0.05)
        kept.log_remaining()
        assert messages(caplog, "1 records for which there was no room on the disk are lost")
        disk.is_full = False
        assert await kept.drain(5)
        assert kept.stats().pending_records == 0
    assert storage.database.sessions[ORIGIN.session_id].record == SESSION


async def test_after_a_full_disk_batches_are_due_as_ever(
    storage: MemoryStorage, recorder: Record, disk: FullDisk
) -> None:
    kept = recorder(max_records=10)
    async with running(kept):
        await until(lambda: kept.online)
        disk.is_full = True
        for _ in range(25):
            kept.writer.record(SESSION)
        disk.is_full = False
        await until(lambda: storage.batches and kept.stats().pending_records == 0)
        assert kept.stats().oldest_pending_seconds == 0
        n_batches = len(storage.batches)
        for position in range(9):
            kept.writer.record_chunk(chunk(position), 0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(storage.batches) == n_batches
        kept.writer.record_chunk(chunk(9), 0)
        await until(lambda: len(storage.batches) > n_batches)
    assert sizes(storage)[-1] == 10


# Damage.


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_is_damaged_no_more_than_that_is_lost_and_all_of_it_is_a_gap(
    storage: MemoryStorage, recorder: Record, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(journal_module, "BATCH_BYTES", 3000)
    monkeypatch.setattr(journal_module, "READ_BYTES", 1000)
    dead = Journals(tmp_path / "there", 20_000, rng.choice([0, 1 << 20]))
    left = recorder(journals=dead)
    ends = {ORIGIN: 0, OTHER: 0}
    for origin in ends:
        left.writer.record(structs.replace(SESSION, session_id=origin.session_id, user_id=origin.user_id))
    for n in range(200):
        origin, n_samples = rng.choice([ORIGIN, OTHER]), rng.randint(1, 4)
        if rng.random() < 0.1:
            left.writer.record(gap(ends[origin], ends[origin] + 1, origin=origin))
            ends[origin] += 1
        assert left.writer.record_chunk(chunk(ends[origin], n_samples, origin), 0) or n > 100
        ends[origin] += n_samples if left.writer.takes else 0
        if n == 30:
            assert await drained(left)
    for origin, end in ends.items():
        ended = structs.replace(SESSION, session_id=origin.session_id, user_id=origin.user_id, end_us=T0_US)
        left.writer.record(structs.replace(ended, next_position=end))
    before = {origin: set(storage.positions(origin.session_id)) for origin in ends}
    die(dead)
    damaged: dict[str, set[int]] = {origin.session_id: set() for origin in ends}
    for _, path in files(tmp_path / "there", str(dead.own.writer_id)):
        _damage(path, {rng.randrange(path.stat().st_size or 1) for _ in range(rng.randint(0, 6))}, damaged)
    after = Journals(tmp_path / "there", 1 << 30)
    async with running(recorder(journals=after)):
        await until(lambda: not after.orphans)
    for origin, end in ends.items():
        there, lost = storage.positions(origin.session_id), storage.database.in_gaps(origin.session_id, "lost")
        assert len(there) == len(set(there))
        assert before[origin] <= set(there)
        assert lost <= damaged[origin.session_id] - set(there)
        row = storage.database.sessions[origin.session_id]
        assert set(there) | storage.database.in_gaps(origin.session_id) == set(range(row.durable))
        assert row.durable == end or not set(range(row.durable, end)) - damaged[origin.session_id]
    after.close()


def _damage(path: Path, at: set[int], damaged: dict[str, set[int]]) -> None:
    """Flip bits of a file, and note whose positions were there."""
    data = bytearray(path.read_bytes())
    end = 0
    for payload in split_payloads(bytes(data))[0]:
        start, end = end, end + HEADER_BYTES + len(payload)
        if at & set(range(start, end)):
            record = decode(payload)
            if isinstance(record, RawRecord):
                damaged[record.session_id] |= set(range(record.position, record.end))
            elif isinstance(record, GapRecord):
                damaged[record.session_id] |= set(range(record.start, record.end))
    for i in at if data else ():
        data[i] ^= 1 << (i % 8)
    path.write_bytes(data)


# All of it together.


@pytest.mark.parametrize("seed", range(5))
async def test_every_sample_is_written_once_whatever_happens(
    storage: MemoryStorage, recorder: Record, disk: FullDisk, seed: int
) -> None:
    rng = random.Random(seed)
    kept = recorder()
    taken: list[int] = []

    def maybe() -> None:
        if rng.random() < 0.2:
            raise StorageError("by chance")

    storage.fail = storage.lose = maybe
    async with running(kept):
        position = 0
        while position < 20_000:
            n_samples = rng.randrange(1, 200)
            disk.is_full = rng.random() < (0.5 if disk.is_full else 0.05)
            if kept.writer.record_chunk(chunk(position, n_samples), 0):
                taken += range(position, position + n_samples)
            kept.writer.record_chunk(chunk(position, n_samples, OTHER), 0)
            position += n_samples
            if rng.random() < 0.1:
                await asyncio.sleep(0)
        disk.is_full = False
        assert await kept.drain(20)
    assert of_session(storage) == taken
    others = storage.positions(OTHER.session_id)
    assert len(others) == len(set(others))
    assert kept.stats().pending_records == kept.stats().pending_bytes == 0
    starts = [start for start, _ in storage.tried]
    assert starts == sorted(starts)
