"""A journal belongs to one process; what a dead one left is adopted by exactly one other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zander.journal import journal as journal_module
from zander.journal.journal import Journal, orphans
from zander.lock import FileLock

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
    assert caplog.messages == ["48 bytes in the journal of a process that died are written to the database"]
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
