from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from time import monotonic

import numpy as np
import pytest

from databases import until
from zander import recorder as recorder_module
from zander.chunk import Chunk, Origin
from zander.errors import Refused, StorageError
from zander.pile import MAX_RECORDS
from zander.recorder import Batch, PredictionRecord, Recorder, SessionRecord

T0_US = 1_764_000_000_000_000
ORIGIN = Origin("user", "00000000-0000-0000-0000-000000000001", 7812.5)
OTHER = Origin("other", "00000000-0000-0000-0000-000000000002", 7812.5)
SESSION = SessionRecord(ORIGIN.session_id, "user", T0_US, None, "{}")
PREDICTION = PredictionRecord(T0_US, ORIGIN.session_id, "user", "type", "classifier", "{}", None, None)


def chunk(position: int, n_samples: int = 1, origin: Origin = ORIGIN, n_channels: int = 2) -> Chunk:
    """Samples that carry their position in the first channel."""
    samples = np.zeros((n_samples, n_channels), np.float32)
    positions = np.arange(position, position + n_samples)
    samples[:, 0] = positions
    return Chunk(origin, position, T0_US + 7812 * positions, samples)


def positions(batches: list[Batch], origin: Origin = ORIGIN) -> list[int]:
    """The positions of a session as written; fails where a sample is not the one of its position."""
    found: list[int] = []
    for part in (part for batch in batches for part in batch.chunks if part.origin is origin):
        here = list(range(part.position, part.end))
        assert part.samples[:, 0].tolist() == here
        assert part.times_us.tolist() == [T0_US + 7812 * position for position in here]
        found += here
    return found


class MemoryStorage:
    """A Storage in memory that keeps the contract, and fails when it is told to."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.tried: list[int] = []
        self.starts_s: list[float] = []
        self.n_opened = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail: Callable[[], None] = lambda: None  # before the commit
        self.lose: Callable[[], None] = lambda: None  # after it
        self.poison: Callable[[Batch], bool] = lambda batch: False

    async def open(self) -> None:
        self.n_opened += 1
        self.fail()

    async def ping(self) -> None:
        self.fail()

    async def write(self, batch: Batch) -> None:
        self.tried.append(batch.n)
        self.starts_s.append(monotonic())
        await self.gate.wait()
        self.fail()
        if self.batches and batch.n <= self.batches[-1].n:
            return
        if self.poison(batch):
            raise Refused("DataError (22008)")
        self.batches.append(batch)
        self.lose()

    async def close(self) -> None: ...

    def go_away(self, error: Exception | None = None) -> None:
        def fail() -> None:
            raise error or StorageError("no route to host")

        self.fail = fail

    def come_back(self) -> None:
        self.fail = lambda: None


def recorder(
    storage: MemoryStorage,
    *,
    max_records: int = 10,
    max_seconds: float = 60.0,
    linger_seconds: float = 0.0,
    backlog_max_bytes: int = 1 << 30,
) -> Recorder:
    return Recorder(
        storage,
        max_records=max_records,
        max_seconds=max_seconds,
        linger_seconds=linger_seconds,
        backlog_max_bytes=backlog_max_bytes,
    )


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


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "PING_SECONDS", 0.01)
    monkeypatch.setattr(recorder_module, "BACKOFF_FIRST_SECONDS", 0.001)
    monkeypatch.setattr(recorder_module, "BACKOFF_MAX_SECONDS", 0.01)


def messages(caplog: pytest.LogCaptureFixture, start: str) -> list[str]:
    return [message for message in caplog.messages if message.startswith(start)]


# When a batch goes.


async def test_a_batch_goes_when_max_records_wait(storage: MemoryStorage) -> None:
    kept = recorder(storage, max_records=10)
    async with running(kept):
        for position in range(10):
            assert kept.record_chunk(chunk(position))
        await until(lambda: storage.batches)
    assert positions(storage.batches) == list(range(10))
    assert len(storage.batches) == 1


async def test_a_chunk_counts_its_samples(storage: MemoryStorage) -> None:
    kept = recorder(storage, max_records=10)
    async with running(kept):
        kept.record_chunk(chunk(0, 10))
        await until(lambda: storage.batches)
    assert kept.stats().written_records == 10


async def test_a_smaller_batch_waits_until_it_is_old_enough(storage: MemoryStorage) -> None:
    kept = recorder(storage, max_records=10, max_seconds=0.05)
    async with running(kept):
        await until(lambda: kept.online)
        recorded_s = monotonic()
        kept.record_session(SESSION)
        kept.record_prediction(PREDICTION)
        kept.record_chunk(chunk(0))
        await until(lambda: storage.batches)
    assert storage.starts_s[0] >= recorded_s + 0.05
    assert storage.batches == [Batch(1, [SESSION], storage.batches[0].chunks, [PREDICTION])]


async def test_what_comes_while_a_write_is_under_way_waits_together(storage: MemoryStorage) -> None:
    kept = recorder(storage, max_records=1)
    storage.gate.clear()
    async with running(kept):
        kept.record_chunk(chunk(0))
        await until(lambda: storage.tried)
        for position in range(1, 1000):
            kept.record_chunk(chunk(position))
        storage.gate.set()
        await until(lambda: kept.stats().pending_records == 0)
    assert [len(positions([batch])) for batch in storage.batches] == [1, 999]


async def test_two_batches_start_at_least_the_linger_apart(storage: MemoryStorage) -> None:
    kept = recorder(storage, max_records=1, linger_seconds=0.05)
    async with running(kept):
        position = 0
        while len(storage.batches) < 4:
            kept.record_chunk(chunk(position))
            position += 1
            await asyncio.sleep(0.001)
    starts_s = storage.starts_s
    assert min(later - earlier for earlier, later in pairwise(starts_s)) >= 0.05
    written = positions(storage.batches)
    assert written == list(range(len(written)))


async def test_a_session_that_starts_and_ends_in_one_batch_is_written_once(storage: MemoryStorage) -> None:
    kept = recorder(storage)
    ended = SESSION._replace(end_us=T0_US + 1)
    kept.record_session(SESSION)
    kept.record_session(ended)
    assert await kept.drain(5)
    assert storage.batches[0].sessions == [ended]


# The backlog.


async def test_a_large_backlog_is_written_in_pieces_in_order(storage: MemoryStorage) -> None:
    kept = recorder(storage)
    for position in range(0, 170_000, 500):
        kept.record_chunk(chunk(position, 500))
    async with running(kept):
        await until(lambda: kept.stats().pending_records == 0 or kept.stats().pending_records < 10)
    sizes = [len(positions([batch])) for batch in storage.batches]
    assert positions(storage.batches) == list(range(170_000))
    assert len(sizes) == 4
    assert max(sizes) < MAX_RECORDS + 5000


async def test_a_full_pile_goes_even_if_max_records_is_larger(storage: MemoryStorage) -> None:
    kept = recorder(storage, max_records=1_000_000)
    async with running(kept):
        await until(lambda: kept.online)
        for position in range(0, MAX_RECORDS + 5000, 500):
            kept.record_chunk(chunk(position, 500))
        await until(lambda: storage.batches)
    assert len(positions(storage.batches)) >= MAX_RECORDS


async def test_samples_that_wait_long_are_joined_and_take_little_memory(storage: MemoryStorage) -> None:
    kept = recorder(storage)
    for position in range(20_000):
        kept.record_chunk(chunk(position))
        kept.record_chunk(chunk(position, origin=OTHER))
    assert kept.stats().pending_bytes < 40_000 * 100 + 4096 * 900
    assert await kept.drain(5)
    assert positions(storage.batches) == positions(storage.batches, OTHER) == list(range(20_000))
    assert kept.stats().pending_bytes == 0


async def test_a_gap_in_what_is_joined_stays_a_gap(storage: MemoryStorage) -> None:
    kept = recorder(storage)
    kept_positions = [position for position in range(10_000) if position % 1000]
    for position in kept_positions:
        kept.record_chunk(chunk(position))
    assert await kept.drain(5)
    assert positions(storage.batches) == kept_positions


async def test_beyond_the_bound_the_newest_is_dropped_and_counted(
    storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(storage, backlog_max_bytes=100_000)
    results = [kept.record_chunk(chunk(position)) for position in range(1000)]
    n_kept = results.index(False)
    assert not any(results[n_kept:])
    assert not kept.record_prediction(PREDICTION)
    kept.record_session(SESSION)
    assert kept.stats().pending_bytes <= 100_000
    assert kept.stats().dropped_records == 1001 - n_kept
    assert len(messages(caplog, "no room")) == 1
    assert await kept.drain(5)
    assert positions(storage.batches) == list(range(n_kept))
    assert storage.batches[-1].sessions == [SESSION]
    assert len(messages(caplog, f"room again: {1001 - n_kept} records")) == 1
    assert kept.record_chunk(chunk(2000))


async def test_what_is_being_written_counts_toward_the_bound(storage: MemoryStorage) -> None:
    kept = recorder(storage, max_records=100, backlog_max_bytes=100_000)
    storage.gate.clear()
    async with running(kept):
        kept.record_chunk(chunk(0, 100, n_channels=200))  # 80,000 bytes
        await until(lambda: storage.tried)
        assert not kept.record_chunk(chunk(100, 100, n_channels=200))
        assert kept.stats().pending_records == 100
        storage.gate.set()
        await until(lambda: kept.stats().pending_records == 0)
        assert kept.record_chunk(chunk(200, 100, n_channels=200))


# The database goes away.


async def test_an_outage_loses_nothing_and_is_logged_once(
    storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(storage, max_records=1)
    async with running(kept):
        kept.record_chunk(chunk(0))
        await until(lambda: storage.batches)
        assert kept.online
        storage.go_away()
        for position in range(1, 100):
            kept.record_chunk(chunk(position))
        await until(lambda: storage.n_opened > 5)
        assert not kept.online
        assert kept.stats().last_error == "no route to host"
        assert kept.stats().oldest_pending_seconds > 0
        storage.come_back()
        await until(lambda: kept.stats().pending_records == 0)
        assert kept.online
    assert positions(storage.batches) == list(range(100))
    assert len(messages(caplog, "the database is away: no route to host")) == 1
    assert len(messages(caplog, "the database is back after")) == 1
    assert len(caplog.messages) == 2


async def test_an_outage_is_noticed_while_nothing_is_written(storage: MemoryStorage) -> None:
    kept = recorder(storage)
    async with running(kept):
        await until(lambda: kept.online)
        storage.go_away()
        await until(lambda: not kept.online)
        storage.come_back()
        await until(lambda: kept.online)
    assert not storage.tried


async def test_a_database_that_opens_but_takes_no_batch_is_not_online(storage: MemoryStorage) -> None:
    kept = recorder(storage, max_records=1)
    async with running(kept):
        await until(lambda: kept.online)

        def full() -> None:
            if storage.tried:
                storage.tried.clear()
                raise StorageError("disk full")

        storage.fail = full
        kept.record_chunk(chunk(0))
        await until(lambda: not kept.online)
        n_opened = storage.n_opened
        await until(lambda: storage.n_opened > n_opened + 3)
        assert not kept.online


async def test_a_batch_whose_answer_was_lost_is_written_once_under_its_number(storage: MemoryStorage) -> None:
    kept = recorder(storage, max_records=1)

    def lose() -> None:
        storage.lose = lambda: None
        kept.record_chunk(chunk(1))
        raise StorageError("connection reset")

    storage.lose = lose
    async with running(kept):
        kept.record_chunk(chunk(0))
        await until(lambda: kept.stats().pending_records == 0)
    assert storage.tried == [1, 1, 2]
    assert positions(storage.batches) == [0, 1]


async def test_a_mistake_of_ours_does_not_end_the_recording(
    storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(storage, max_records=1)
    storage.go_away(RuntimeError("a mistake"))
    async with running(kept):
        kept.record_chunk(chunk(0))
        await until(lambda: storage.n_opened > 2)
        storage.come_back()
        await until(lambda: storage.batches)
    assert len(messages(caplog, "the database is away: a mistake")) == 1
    assert caplog.records[0].exc_info


async def test_a_run_that_was_cancelled_in_a_write_is_gone_on_with(storage: MemoryStorage) -> None:
    kept = recorder(storage, max_records=1)
    storage.gate.clear()
    async with running(kept):
        kept.record_chunk(chunk(0))
        await until(lambda: storage.tried)
    kept.record_chunk(chunk(1))
    storage.gate.set()
    assert await kept.drain(5)
    assert storage.tried == [1, 1, 2]
    assert positions(storage.batches) == [0, 1]


# Draining.


async def test_a_drain_writes_what_is_not_due_yet(storage: MemoryStorage) -> None:
    kept = recorder(storage, linger_seconds=60.0)
    async with running(kept):
        await until(lambda: kept.online)
        kept.record_chunk(chunk(0))
        assert await kept.drain(5)
    assert positions(storage.batches) == [0]


async def test_a_drain_of_nothing_is_done_at_once(storage: MemoryStorage) -> None:
    assert await recorder(storage).drain(0.0001)


async def test_a_drain_gives_up_and_says_how_much_is_lost(
    storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(storage)
    storage.go_away()
    kept.record_chunk(chunk(0, 7))
    assert not await kept.drain(0.05)
    assert len(messages(caplog, "7 records are not written")) == 1


async def test_a_drain_does_not_wait_out_a_backoff(storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "BACKOFF_MAX_SECONDS", 1000.0)
    kept = recorder(storage, max_records=1)
    kept._backoff_seconds = 1000.0
    storage.go_away()
    async with running(kept):
        kept.record_chunk(chunk(0))
        await until(lambda: storage.n_opened)
        storage.come_back()
        assert await kept.drain(5)
    assert positions(storage.batches) == [0]


# Poison.


def holds(position: int) -> Callable[[Batch], bool]:
    return lambda batch: any(part.position <= position < part.end for part in batch.chunks)


async def test_a_refused_sample_alone_is_dropped_and_named(
    storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(storage, max_records=1)
    storage.poison = holds(333)
    kept.record_session(SESSION)
    kept.record_prediction(PREDICTION)
    for position in range(0, 1000, 100):
        kept.record_chunk(chunk(position, 100))
    assert await kept.drain(5)
    assert positions(storage.batches) == [position for position in range(1000) if position != 333]
    assert [record for batch in storage.batches for record in batch.predictions] == [PREDICTION]
    assert [record for batch in storage.batches for record in batch.sessions] == [SESSION]
    assert storage.tried == sorted(set(storage.tried))
    assert kept.stats().refused_records == 1
    assert kept.stats().pending_bytes == 0
    assert messages(caplog, "the database refuses") == [
        f"the database refuses session {ORIGIN.session_id}, position 333; dropped: DataError (22008)"
    ]
    assert kept.online


async def test_a_session_is_named_once_however_much_of_it_is_refused(
    storage: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(storage)
    storage.poison = lambda batch: any(part.origin is OTHER for part in batch.chunks)
    for position in range(20):
        kept.record_chunk(chunk(position))
        kept.record_chunk(chunk(position, origin=OTHER))
    assert await kept.drain(5)
    assert positions(storage.batches) == list(range(20))
    assert kept.stats().refused_records == 20
    assert len(messages(caplog, "the database refuses")) == 1


@pytest.mark.parametrize("record", [SESSION, PREDICTION])
async def test_a_refused_session_or_prediction_is_dropped(
    storage: MemoryStorage, record: SessionRecord | PredictionRecord, caplog: pytest.LogCaptureFixture
) -> None:
    kept = recorder(storage)
    storage.poison = lambda batch: record in [*batch.sessions, *batch.predictions]
    kept.record_session(SESSION)
    kept.record_prediction(PREDICTION)
    kept.record_chunk(chunk(0))
    assert await kept.drain(5)
    assert positions(storage.batches) == [0]
    assert kept.stats().written_records == 2
    assert len(messages(caplog, f"the database refuses session {ORIGIN.session_id}, the ")) == 1


# All of it together.


@pytest.mark.parametrize("seed", range(5))
async def test_every_good_sample_is_written_once_whatever_happens(storage: MemoryStorage, seed: int) -> None:
    rng = random.Random(seed)
    poison = {rng.randrange(20_000) for _ in range(5)}
    kept = recorder(storage)

    def maybe() -> None:
        if rng.random() < 0.2:
            raise StorageError("by chance")

    storage.fail = storage.lose = maybe
    storage.poison = lambda batch: any(holds(position)(batch) for position in poison)
    async with running(kept):
        position = 0
        while position < 20_000:
            n_samples = rng.randrange(1, 200)
            kept.record_chunk(chunk(position, n_samples))
            position += n_samples
            if rng.random() < 0.1:
                await asyncio.sleep(0)
        assert await kept.drain(10)
    assert positions(storage.batches) == [p for p in range(position) if p not in poison]
    assert kept.stats().refused_records == len(poison)
    assert storage.tried == sorted(storage.tried)
