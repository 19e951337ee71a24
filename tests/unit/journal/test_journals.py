from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.databases import until
from support.files import damage
from support.samples import ORIGIN, OTHER, PREDICTION, SESSION, T0_US, chunk, gap
from zander.journal import journals as journals_module
from zander.journal.batch import Batch
from zander.journal.journals import Journals, raw_record
from zander.journal.log import Log
from zander.journal.pgcopy import decode_rows
from zander.journal.records import RawRecord, Record, decode, encode
from zander.journal.writer import Intake
from zander.wire.chunk import Chunk
from zander.wire.messages import Gap


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[Journals]:
    found = Journals(tmp_path, 1 << 30)
    yield found
    found.close()


def append(journals: Journals, *records: Record) -> None:
    for record in records:
        journals.own.log.append(encode(record))


def samples(records: list[RawRecord]) -> list[float]:
    return [value for r in records for value in decode_rows(r.rows, r.end - r.position).samples[:, 0].tolist()]


async def batches(journals: Journals) -> list[Batch]:
    found = []
    while (batch := await journals.read(journals.own)).n_records:
        found.append(batch)
        journals.own.commit(batch.end)
    return found


def test_every_record_comes_back_as_it_was() -> None:
    for record in (SESSION, PREDICTION, gap(3, 7), raw_record(chunk(5, 3), 2)):
        assert decode(encode(record)) == record


def test_samples_are_recorded_with_their_span_and_last_time() -> None:
    record = raw_record(chunk(5, 3), 2)
    assert (record.session_id, record.fence, record.position, record.end) == (ORIGIN.session_id, 2, 5, 8)
    assert record.last_us == T0_US + 7 * 7812
    assert samples([record]) == [5, 6, 7]


async def test_a_batch_holds_all_there_is_sorted_by_what_it_is(journals: Journals) -> None:
    append(journals, SESSION, raw_record(chunk(0, 3), 0), gap(3, 5), PREDICTION, raw_record(chunk(5), 0))
    batch = await journals.read(journals.own)
    assert (batch.start, batch.end, batch.n_records) == (0, journals.own.log.end, 7)
    assert batch.sessions == {ORIGIN.session_id: SESSION}
    assert (batch.gaps, batch.predictions) == ([gap(3, 5)], [PREDICTION])
    assert samples(batch.raw[ORIGIN.session_id, 0]) == [0, 1, 2, 5]
    journals.own.commit(batch.end)
    assert (await journals.read(journals.own)).n_records == 0


@pytest.mark.parametrize("batch_bytes", [1, 1000, 5000])
@pytest.mark.parametrize("read_bytes", [100, 1000, 1 << 20])
async def test_batches_cut_anywhere_hold_everything_once(
    journals: Journals, monkeypatch: pytest.MonkeyPatch, batch_bytes: int, read_bytes: int
) -> None:
    monkeypatch.setattr(journals_module, "BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(journals_module, "READ_BYTES", read_bytes)
    for position in range(0, 100, 4):
        append(journals, raw_record(chunk(position, 4), 0))
    found = await batches(journals)
    assert [value for batch in found for value in samples(batch.raw[ORIGIN.session_id, 0])] == list(range(100))
    assert sum(batch.n_records for batch in found) == 100
    n_record_bytes = journals.own.log.end // 25
    assert all(batch.end - batch.start < batch_bytes + read_bytes + n_record_bytes for batch in found)
    assert all(batch.end - batch.start >= batch_bytes for batch in found[:-1])


async def test_what_is_read_ahead_is_what_comes_next(journals: Journals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals_module, "BATCH_BYTES", 1000)
    monkeypatch.setattr(journals_module, "READ_BYTES", 500)
    for position in range(100):
        append(journals, raw_record(chunk(position), 0))
    found: list[Batch] = []
    while (batch := await journals.read(journals.own)).n_records:
        journals.read_ahead(batch)
        if len(found) < 5:
            append(journals, gap(1000 + len(found), 1001 + len(found)))
        await asyncio.sleep(0)
        found.append(batch)
        journals.own.commit(batch.end)
    assert [value for batch in found for value in samples(batch.raw.get((ORIGIN.session_id, 0), []))] == [*range(100)]
    assert [batch.start for batch in found] == [0, *(batch.end for batch in found[:-1])]
    assert [gap.start for batch in found for gap in batch.gaps] == [1000, 1001, 1002, 1003, 1004]


async def test_what_was_read_ahead_counts_only_where_the_journal_stands(
    journals: Journals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals_module, "BATCH_BYTES", 1000)
    monkeypatch.setattr(journals_module, "READ_BYTES", 500)
    for position in range(100):
        append(journals, raw_record(chunk(position), 0))
    first = await journals.read(journals.own)
    journals.read_ahead(first)
    again = await journals.read(journals.own)  # as when the database was set back
    assert (again.start, samples(again.raw[ORIGIN.session_id, 0])[0]) == (0, 0)
    journals.read_ahead(again)
    journals.own.commit(again.end)
    assert (await journals.read(journals.own)).start == again.end
    journals.read_ahead(again)


async def test_a_short_rest_is_not_read_ahead(journals: Journals) -> None:
    append(journals, raw_record(chunk(0), 0))
    first = await journals.read(journals.own)
    append(journals, raw_record(chunk(1), 0))
    journals.read_ahead(first)
    append(journals, raw_record(chunk(2), 0))
    journals.own.commit(first.end)
    assert samples((await journals.read(journals.own)).raw[ORIGIN.session_id, 0]) == [1, 2]


async def test_a_database_that_is_set_back_gets_everything_again(journals: Journals) -> None:
    intake = Intake(journals.own.log, 1 << 30)
    for position in range(10):
        intake.add(raw_record(chunk(position), 0))
    await batches(journals)
    intake.add(raw_record(chunk(10), 0))
    journals.own.commit(0)
    (again,) = await batches(journals)
    assert samples(again.raw[ORIGIN.session_id, 0]) == list(range(11))
    intake.add(raw_record(chunk(11), 0))
    (last,) = await batches(journals)
    assert samples(last.raw[ORIGIN.session_id, 0]) == [11]


async def test_what_comes_during_a_reading_is_in_it_or_in_the_next(journals: Journals) -> None:
    append(journals, raw_record(chunk(0), 0))
    reading = asyncio.create_task(journals.read(journals.own))
    for position in range(1, 50):
        append(journals, raw_record(chunk(position), 0))
        await asyncio.sleep(0)
    first = await reading
    journals.own.commit(first.end)
    found = [first, *await batches(journals)]
    assert [value for batch in found for value in samples(batch.raw[ORIGIN.session_id, 0])] == list(range(50))


async def test_what_is_damaged_is_passed_over(journals: Journals) -> None:
    for position in range(5):
        append(journals, raw_record(chunk(position), 0))
    damage(journals.own.log.paths[0], -5)
    batch = await journals.read(journals.own)
    assert samples(batch.raw[ORIGIN.session_id, 0]) == [0, 1, 2, 3]
    assert batch.end == journals.own.log.end


async def test_pending_samples_of_a_session_are_found_in_order_wherever_they_are(tmp_path: Path) -> None:
    dead = Journals(tmp_path, 1 << 30)
    append(dead, raw_record(chunk(0, 10), 0), raw_record(chunk(0, 10, OTHER), 0))
    dead.close()
    journals = Journals(tmp_path, 1 << 30)
    append(journals, SESSION, raw_record(chunk(10, 10), 0), gap(20, 25), raw_record(chunk(25, 5), 0))
    found = await journals.pending(ORIGIN, 5, 27)
    assert found[2] == Gap(ORIGIN.session_id, 20, 25, "relay")
    parts = [item for item in found if isinstance(item, Chunk)]
    assert [(part.position, part.end) for part in parts] == [(0, 10), (10, 20), (25, 30)]
    for part in parts:
        assert part.origin is ORIGIN
        np.testing.assert_array_equal(part.samples, chunk(part.position, len(part)).samples)
        np.testing.assert_array_equal(part.times_us, chunk(part.position, len(part)).times_us)
    assert await journals.pending(ORIGIN, 20, 25) == [Gap(ORIGIN.session_id, 20, 25, "relay")]
    orphan = journals.orphans[0]
    orphan.commit(orphan.log.end)
    assert [item.end for item in await journals.pending(ORIGIN, 0, 100)] == [20, 25, 30]
    journals.close()


async def test_a_journal_is_forced_to_the_disk_now_and_then_and_a_failure_is_said_once(
    journals: Journals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    n_syncs = 0

    def sync(_: Log) -> None:
        nonlocal n_syncs
        n_syncs += 1
        if n_syncs in {2, 3, 5}:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Log, "sync", sync)
    syncing = asyncio.create_task(journals.keep_synced(0.001))
    await until(lambda: n_syncs > 6)
    assert not syncing.done()
    syncing.cancel()
    await asyncio.wait([syncing])
    assert caplog.messages == ["the journal cannot be forced to the disk: Input/output error"] * 2


async def test_without_the_setting_nothing_is_forced(journals: Journals) -> None:
    await journals.keep_synced(None)


def test_what_is_on_disk_is_counted_with_orphans(tmp_path: Path) -> None:
    dead = Journals(tmp_path, 1 << 30)
    append(dead, SESSION)
    n_bytes = dead.n_bytes
    dead.close()
    journals = Journals(tmp_path, 1 << 30)
    append(journals, SESSION)
    assert (journals.n_bytes, journals.n_orphan_bytes, journals.n_pending_bytes) == (2 * n_bytes, n_bytes, 2 * n_bytes)
    journals.close()
