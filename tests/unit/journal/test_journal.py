"""A journal belongs to one process; what a dead one left is adopted by exactly one other; what is read is whole."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from support.databases import until
from support.files import damage
from support.samples import ORIGIN, OTHER, PREDICTION, SESSION, T0_US, chunk, gap
from zander.journal import journal as journal_module
from zander.journal import log as log_module
from zander.journal.batch import Batch
from zander.journal.journal import Journal, Journals, orphans
from zander.journal.log import Log
from zander.journal.pgcopy import decode_rows
from zander.journal.records import RawRecord, Record, decode, encode, raw_record
from zander.journal.writer import JournalWriter
from zander.lock import FileLock
from zander.wire.chunk import Chunk
from zander.wire.messages import Gap

MAX_BYTES = 1 << 20

LIVE = """
import sys
from pathlib import Path
from zander.journal.journal import Journal
journal = Journal.create(Path(sys.argv[1]), 1 << 20)
for n in range(int(sys.argv[2])):
    journal.log.append(b"record %d" % n)
print(journal.writer_id, flush=True)
sys.stdin.read()
"""

ADOPTING = """
import sys
from pathlib import Path
from zander.journal.journal import orphans
sys.stdin.read(1)
found = orphans(Path(sys.argv[1]))
print(*[journal.writer_id for journal in found], flush=True)
for journal in found[::2]:  # some are written to the database at once, of the others the process dies
    journal.commit(journal.log.end)
    journal.close()
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def living(folder: Path, n_records: int = 3) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with a journal; killed at the end."""
    with python(LIVE, folder, n_records) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def dead(folder: Path, n_records: int = 3) -> str:
    """Let a process leave a journal; return its name."""
    with living(folder, n_records) as (_, writer_id):
        return writer_id


def payloads(journal: Journal) -> list[bytes]:
    return journal.log.read(0, 1 << 20).payloads


def test_a_journal_that_is_written_to_its_end_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "new" / "folder", MAX_BYTES)
    journal.commit(journal.log.append(b"record"))
    assert journal.n_pending_bytes == 0
    journal.close()
    assert os.listdir(tmp_path / "new" / "folder") == []


def test_what_is_not_written_stays_for_the_next(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, MAX_BYTES)
    journal.commit(journal.log.append(b"committed"))
    journal.log.append(b"pending")
    assert journal.n_pending_bytes == 8 + len(b"pending")
    journal.close()
    (found,) = orphans(tmp_path)
    assert found.writer_id == journal.writer_id
    assert found.offset is None  # only the database knows
    assert payloads(found) == [b"committed", b"pending"]
    found.commit(found.log.end)
    found.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("is_there", [False, True])
def test_the_folder_is_for_its_owner_alone(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "journal"
    if is_there:
        folder.mkdir(mode=0o755)  # as an earlier version left it
    Journal.create(folder, 1 << 20).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Journal.create(tmp_path / "file", MAX_BYTES)


def test_a_small_bound_makes_small_files(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, 8000)
    for _ in range(100):
        journal.log.append(bytes(92))
    assert len(list(tmp_path.glob("*.v1"))) == 10
    journal.commit(5000)
    assert journal.log.n_bytes == 5000
    journal.close()


async def test_a_finished_file_that_cannot_be_deleted_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    journal = Journal.create(tmp_path, MAX_BYTES)
    journal.log.append(bytes(MAX_BYTES // 8))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", fail)
        journal.commit(journal.log.end)
        await until(lambda: "cannot be deleted: [Errno 30]" in caplog.text)
    journal.close()


# What others left.


def test_the_journal_of_a_process_that_lives_is_not_touched(tmp_path: Path) -> None:
    with living(tmp_path) as (_, writer_id):
        own = Journal.create(tmp_path, MAX_BYTES)
        assert orphans(tmp_path) == []
        assert (tmp_path / f"{writer_id}.lock").exists()
        own.commit(own.log.end)
        own.close()
    (found,) = orphans(tmp_path)
    assert str(found.writer_id) == writer_id
    assert payloads(found) == [b"record 0", b"record 1", b"record 2"]
    found.close()


def test_a_process_that_is_killed_leaves_an_orphan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer_id = dead(tmp_path)
    (found,) = orphans(tmp_path)
    assert str(found.writer_id) == writer_id
    assert found.n_pending_bytes == 3 * 16
    assert caplog.messages == [
        "48 bytes in the journal of a process that died: the database gets what it lacks of them"
    ]
    found.close()


def test_an_orphan_whose_last_frame_is_torn_is_adopted_without_it(tmp_path: Path) -> None:
    dead(tmp_path)
    (file,) = tmp_path.glob("*.v1")
    os.truncate(file, 3 * 16 - 1)
    (found,) = orphans(tmp_path)
    assert payloads(found) == [b"record 0", b"record 1"]
    assert found.n_pending_bytes == 2 * 16
    found.close()


@pytest.mark.parametrize("n_bytes", [0, 10])
def test_an_orphan_with_nothing_in_it_is_swept_away(tmp_path: Path, n_bytes: int) -> None:
    dead(tmp_path, n_records=1)
    (file,) = tmp_path.glob("*.v1")
    os.truncate(file, n_bytes)
    assert orphans(tmp_path) == []
    assert os.listdir(tmp_path) == []


def test_a_process_that_dies_before_its_first_file_leaves_nothing_to_adopt(tmp_path: Path) -> None:
    FileLock(tmp_path / "00000000-0000-4000-8000-000000000001.lock")
    FileLock(tmp_path / "00000000-0000-4000-8000-000000000002.new")
    child = (
        "import sys; from pathlib import Path; from zander.journal.journal import *\nprint(orphans(Path(sys.argv[1])))"
    )
    with python(child, tmp_path) as process:
        assert process.communicate()[0] == "[]\n"  # it is held here


def test_orphans_come_oldest_first(tmp_path: Path) -> None:
    writers = [dead(tmp_path) for _ in range(3)]
    for n, writer_id in enumerate(writers):
        os.utime(tmp_path / f"{writer_id}.lock", (1000 - n, 1000 - n))
    found = orphans(tmp_path)
    assert [str(journal.writer_id) for journal in found] == writers[::-1]
    for journal in found:
        journal.close()


def test_processes_that_start_at_once_adopt_each_orphan_once(tmp_path: Path) -> None:
    writers = sorted(str(_left(tmp_path)) for _ in range(40))
    starting = [python(ADOPTING, tmp_path) for _ in range(4)]
    for process in starting:
        assert process.stdin
        process.stdin.write("x")
        process.stdin.flush()
    adopted = []
    for process in starting:
        out, err = process.communicate()
        assert (process.returncode, err.count("Traceback")) == (0, 0), err
        adopted.append(out.split())
    # An orphan that its adopter wrote is gone. Of one that it did not, it may be the next that adopts it.
    once = [writer for found in adopted for writer in found[::2]]
    assert len(once) == len(set(once))
    left = {path.stem for path in tmp_path.glob("*.lock")}
    assert set(once) | left == set(writers)
    assert not set(once) & left
    assert {str(journal.writer_id) for journal in _closed(orphans(tmp_path))} == left


def _left(folder: Path) -> object:
    journal = Journal.create(folder, MAX_BYTES)
    journal.log.append(b"record")
    journal.close()
    return journal.writer_id


def _closed(found: list[Journal]) -> list[Journal]:
    for journal in found:
        journal.close()
    return found


def test_an_orphan_that_another_process_finishes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _left(tmp_path)
    age = journal_module._age

    def finished(path: Path) -> float:
        path.unlink()
        for file in tmp_path.glob("*.v1"):
            file.unlink()
        return age(path)

    monkeypatch.setattr(journal_module, "_age", finished)
    assert orphans(tmp_path) == []
    assert os.listdir(tmp_path) == []


def test_an_orphan_without_its_lock_file_is_adopted(tmp_path: Path) -> None:
    writer_id = dead(tmp_path)
    (tmp_path / f"{writer_id}.lock").unlink()
    (found,) = orphans(tmp_path)
    assert str(found.writer_id) == writer_id
    assert payloads(found) == [b"record 0", b"record 1", b"record 2"]
    found.commit(found.log.end)
    found.close()
    assert os.listdir(tmp_path) == []


def test_a_journal_without_its_lock_file_whose_process_lives_is_not_touched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with living(tmp_path) as (_, writer_id):
        (tmp_path / f"{writer_id}.lock").unlink()
        assert orphans(tmp_path) == []
        assert not (tmp_path / f"{writer_id}.lock").exists()
    assert caplog.messages == [
        f"journal {writer_id} has no .lock file any more, but its process lives: it is left to it"
    ]
    assert len(_closed(orphans(tmp_path))) == 1


def test_a_lock_file_of_no_journal_is_left_alone_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    strays = ["foo.lock", "{00000000-0000-4000-8000-000000000001}.lock", ".lock"]
    for name in strays:
        (tmp_path / name).touch()
    (tmp_path / "not a journal.0000000000000000.v1").touch()
    writer_id = dead(tmp_path)
    (found,) = _closed(orphans(tmp_path))
    assert str(found.writer_id) == writer_id
    (said,) = [message for message in caplog.messages if "left alone" in message]
    assert all(name in said for name in strays[:2])
    assert all((tmp_path / name).exists() for name in strays)


def test_an_orphan_that_cannot_be_opened_is_left_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = dead(tmp_path), dead(tmp_path)
    open_file = log_module._open

    def refuse(path: Path) -> int:
        if path.name.startswith(first):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(log_module, "_open", refuse)
        (found,) = _closed(orphans(tmp_path))
    assert str(found.writer_id) == second
    assert f"journal {first} cannot be opened, it is left as it is: [Errno 13] Permission denied" in caplog.messages
    assert {str(journal.writer_id) for journal in _closed(orphans(tmp_path))} == {first, second}


def test_a_folder_for_a_lock_file_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / f"{uuid.uuid4()}.lock").mkdir()
    dead(tmp_path)
    assert len(_closed(orphans(tmp_path))) == 1
    assert "cannot be opened, it is left as it is: [Errno 21] Is a directory" in caplog.text


def test_a_file_that_is_missing_between_two_is_said_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal.create(tmp_path, 8000)
    for n in range(30):
        journal.log.append(bytes([n + 1] * 92))
    journal.close()
    missing = sorted(tmp_path.glob("*.v1"))[1]
    missing.unlink()
    (found,) = orphans(tmp_path)
    assert [payload[0] for payload in payloads(found)] == [*range(1, 11)]
    assert [payload[0] for payload in found.log.read(1000, 1 << 20).payloads] == [*range(21, 31)]
    assert [message for message in caplog.messages if message.endswith("1000 bytes before it are missing")]
    found.close()


# What is committed stays for a while.


def test_what_is_committed_stays_up_to_so_many_bytes_and_does_not_count_as_pending(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, 8000, keep_bytes=2500)
    for _ in range(100):
        journal.commit(journal.log.append(bytes(92)))
        assert journal.n_pending_bytes == 0
        assert journal.log.n_bytes <= 2500 + 100
    assert journal.log.n_bytes == 2000
    journal.commit(8500)  # the database went back
    assert journal.n_pending_bytes == 1500
    journal.commit(10_000)
    journal.close()
    journal_module._DELETING.submit(int).result()  # after all that it was given
    assert os.listdir(tmp_path) == []


def test_what_stays_is_given_back_where_room_is_missing(tmp_path: Path) -> None:
    left = Journal.create(tmp_path, 8000, keep_bytes=1 << 20)
    for _ in range(25):
        left.log.append(bytes(92))
    left.close()
    journals = Journals(tmp_path, 8000, 1 << 20)
    (orphan,) = journals.orphans
    for _ in range(25):
        journals.own.log.append(bytes(92))
    assert not journals.give_back()  # of the orphan nobody knows what is committed
    orphan.commit(2100)
    journals.own.commit(2100)
    assert journals.n_bytes == 5000
    assert journals.give_back()
    assert (orphan.log.n_bytes, journals.own.log.n_bytes) == (500, 500)
    assert not journals.give_back()
    journals.own.commit(2500)
    assert journals.give_back()
    assert journals.own.log.n_bytes == 0
    journals.close()


# All journals of a folder: what is written to the database, and what a replay reads.


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
    monkeypatch.setattr(journal_module, "BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(journal_module, "READ_BYTES", read_bytes)
    for position in range(0, 100, 4):
        append(journals, raw_record(chunk(position, 4), 0))
    found = await batches(journals)
    assert [value for batch in found for value in samples(batch.raw[ORIGIN.session_id, 0])] == list(range(100))
    assert sum(batch.n_records for batch in found) == 100
    n_record_bytes = journals.own.log.end // 25
    assert all(batch.end - batch.start < batch_bytes + read_bytes + n_record_bytes for batch in found)
    assert all(batch.end - batch.start >= batch_bytes for batch in found[:-1])


async def test_what_is_read_ahead_is_what_comes_next(journals: Journals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BATCH_BYTES", 1000)
    monkeypatch.setattr(journal_module, "READ_BYTES", 500)
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
    monkeypatch.setattr(journal_module, "BATCH_BYTES", 1000)
    monkeypatch.setattr(journal_module, "READ_BYTES", 500)
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
    writer = JournalWriter(journals, max_bytes=1 << 30, batch_records=50)
    for position in range(10):
        writer.record_chunk(chunk(position), 0)
    await batches(journals)
    writer.record_chunk(chunk(10), 0)
    journals.own.commit(0)
    (again,) = await batches(journals)
    assert samples(again.raw[ORIGIN.session_id, 0]) == list(range(11))
    writer.record_chunk(chunk(11), 0)
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
    left = Journals(tmp_path, 1 << 30)
    append(left, raw_record(chunk(0, 10), 0), raw_record(chunk(0, 10, OTHER), 0))
    left.close()
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
    left = Journals(tmp_path, 1 << 30)
    append(left, SESSION)
    n_bytes = left.n_bytes
    left.close()
    journals = Journals(tmp_path, 1 << 30)
    append(journals, SESSION)
    assert (journals.n_bytes, journals.n_orphan_bytes, journals.n_pending_bytes) == (2 * n_bytes, n_bytes, 2 * n_bytes)
    journals.close()
