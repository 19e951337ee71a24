"""A journal's frames as records: the same from the native path and from its twin, whatever the frames hold."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import DecodeError

from support.files import damage
from support.samples import ORIGIN, OTHER, PREDICTION, SESSION, chunk, gap
from zander.journal import journal as journal_module
from zander.journal import reader as reader_module
from zander.journal.batch import Batch
from zander.journal.journal import Journals
from zander.journal.log import frame
from zander.journal.reader import split_records, split_records_as_twin
from zander.journal.records import RawRecord, Record, encode, raw_record

WAYS = pytest.mark.parametrize(
    "way", [split_records, split_records_as_twin]
)  # without the native path both are the twin
Way = Callable[[bytes], tuple[list[Record], int]]
IDS = st.sampled_from(["", "a", ORIGIN.session_id, "ü" * 20, "x" * 300])
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-40, 300)


@st.composite
def raw_records(draw: st.DrawFn) -> RawRecord:
    """Few sessions and short spans, so that many follow each other."""
    start, n = draw(st.integers(0, 5)), draw(st.integers(1, 3))
    rows = bytes([start]) * n * draw(st.sampled_from([3, 3, 3, 200, 70_000]))
    return RawRecord(draw(IDS), draw(st.integers(0, 1) | NUMBERS), start, start + n, draw(NUMBERS), rows)


RECORDS = raw_records() | st.sampled_from([SESSION, PREDICTION, gap(1, 2)])


def framed(*records: Record) -> bytes:
    return b"".join(frame(encode(record)) for record in records)


@WAYS
def test_what_follows_in_its_session_is_one_record_where_the_first_was(way: Way) -> None:
    other = raw_record(chunk(7, 1, OTHER), 0)
    data = framed(
        raw_record(chunk(0), 0), SESSION, other, raw_record(chunk(1, 2), 0), gap(3, 5), raw_record(chunk(5), 0)
    )
    whole = raw_record(chunk(0, 3), 0)
    assert way(data) == ([whole, SESSION, other, gap(3, 5), raw_record(chunk(5), 0)], len(data))


@WAYS
def test_what_has_another_fence_or_other_channels_is_not_joined(way: Way) -> None:
    records = [raw_record(chunk(0), 0), raw_record(chunk(1), 1), raw_record(chunk(2, n_channels=3), 1)]
    assert way(framed(*records)) == (records, len(framed(*records)))


@WAYS
def test_behind_so_many_that_are_not_raw_nothing_more_is_read(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_OTHERS", 2)
    records: list[Record] = [
        raw_record(chunk(0), 0),
        SESSION,
        raw_record(chunk(1), 0),
        PREDICTION,
        raw_record(chunk(2), 0),
    ]
    found = [raw_record(chunk(0, 2), 0), SESSION, PREDICTION]
    assert way(framed(*records)) == (found, len(framed(*records[:-1])))


@given(records=st.lists(RECORDS, max_size=12))
def test_records_of_every_kind_are_read_as_by_the_twin(records: list[Record]) -> None:
    data = framed(*records)
    found = split_records(data)
    assert found == split_records_as_twin(data)
    assert found[1] == len(data)


@given(records=st.lists(RECORDS, min_size=1, max_size=5), data=st.data())
def test_what_is_torn_or_damaged_is_read_as_by_the_twin(records: list[Record], data: st.DataObject) -> None:
    frames = bytearray(framed(*records))
    at = data.draw(st.integers(0, len(frames) - 1))
    torn = bytes(frames[:at])
    frames[at] ^= data.draw(st.integers(1, 255))
    for bad in (torn, bytes(frames)):
        found = split_records(bad)
        assert found == split_records_as_twin(bad)
        assert found[1] <= at


@given(payload=st.binary(min_size=1, max_size=40) | st.binary(max_size=40).map(lambda rest: b"\x97\xa1r" + rest))
def test_what_is_no_record_is_an_error_on_both_paths(payload: bytes) -> None:
    for way in (split_records, split_records_as_twin):
        with pytest.raises((DecodeError, UnicodeDecodeError)):
            way(frame(payload))


async def read_all(folder: Path, writer: str) -> list[Batch]:
    journals = Journals(folder, 1 << 30)
    (orphan,) = journals.orphans
    assert str(orphan.writer_id) == writer
    found = []
    orphan.commit(0)
    while (batch := await journals.read(orphan)).n_records:
        found.append(batch)
        journals.read_ahead(batch)
        orphan.commit(batch.end)
    assert batch.end == orphan.log.end
    journals.close()
    return found


async def test_a_backlog_with_damage_gives_the_same_batches_on_both_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "BATCH_BYTES", 1 << 18)
    monkeypatch.setattr(journal_module, "READ_BYTES", 1 << 15)
    monkeypatch.setattr("zander.journal.journal.SEGMENT_BYTES", 1 << 18)
    found, said = [], []
    for way in (split_records, split_records_as_twin):
        monkeypatch.setattr(journal_module, "split_records", way)
        folder = tmp_path / way.__name__
        with monkeypatch.context() as patch:
            patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=99))
            dead = Journals(folder, 1 << 30)
        for position in range(5000):
            dead.own.log.write(framed(raw_record(chunk(position), 0), raw_record(chunk(position, 1, OTHER), 0)))
            if position % 97 == 0:
                dead.own.log.write(framed(SESSION, gap(position, position), PREDICTION))
        paths = dead.own.log.paths
        damage(paths[1], paths[1].stat().st_size // 2)
        os.truncate(paths[-1], paths[-1].stat().st_size - 3)
        dead.close()
        batches = await read_all(folder, str(uuid.UUID(int=99)))
        found.append([vars(batch) for batch in batches])
        said.append(caplog.messages[:])
        caplog.clear()
    assert found[0] == found[1]
    assert said[0] == said[1]
    assert sum("damaged and lost" in line for line in said[0]) == 1
    assert sum("cut off" in line for line in said[0]) == 1
    assert len(found[0]) > 3
