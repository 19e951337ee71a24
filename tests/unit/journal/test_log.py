"""`Log` on a real disk: what was appended is read, whatever happens to the files in between."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.files import damage
from zander.journal.log import DAMAGED, Log, files, is_in_use

HEADER_BYTES = 8


def payload(n: int, n_bytes: int = 20) -> bytes:
    """Bytes that say which one they are."""
    return n.to_bytes(4, "big") + bytes([n % 251 + 1]) * (n_bytes - 4)


def read_all(log: Log, max_bytes: int = 64) -> list[bytes]:
    found, offset = [], 0
    while (frames := log.read(offset, max_bytes)).payloads:
        assert frames.end > offset
        found += frames.payloads
        offset = frames.end
    assert frames.end == max(offset, log.end)
    return found


def on_disk(folder: Path) -> list[Path]:
    return [path for _, path in files(folder, "log")]


class LogAgainstAList(RuleBasedStateMachine):
    """The model is the list of what was appended, each with the offset after it."""

    @initialize(segment_bytes=st.sampled_from([1, 100, 1000, 1 << 20]))
    def begin(self, segment_bytes: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.segment_bytes = segment_bytes
        self.model: list[tuple[int, bytes]] = []
        self.end = self.forgotten = 0
        self.open()

    def open(self) -> None:
        self.log = Log(Path(self.folder.name), "log", segment_bytes=self.segment_bytes)

    @rule(data=st.binary(min_size=1, max_size=300))
    def append(self, data: bytes) -> None:
        self.end += HEADER_BYTES + len(data)
        assert self.log.append(data) == self.end
        self.model.append((self.end, data))

    @rule(data=st.data(), max_bytes=st.sampled_from([8, 50, 1 << 16]))
    def read_from_anywhere(self, data: st.DataObject, max_bytes: int) -> None:
        offset = data.draw(st.sampled_from([0, *(end for end, _ in self.model)]))
        expected = [payload for end, payload in self.model if end > max(offset, self.log.start)]
        found: list[bytes] = []
        while (frames := self.log.read(offset, max_bytes)).payloads:
            found += frames.payloads
            offset = frames.end
        assert found == expected

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        self.forgotten = data.draw(st.sampled_from([self.forgotten, self.end]))
        self.log.forget(self.forgotten)

    @rule()
    def close_and_open(self) -> None:
        self.log.close()
        self.open()

    @rule(n_torn=st.integers(1, 400))
    def die_in_an_append(self, n_torn: int) -> None:
        """What is in no file to its end was never accepted."""
        last = self.log.paths[-1]
        with last.open("ab") as file:
            file.write((b"\x10\0\0\0" + b"x" * 400)[:n_torn])
        self.close_and_open()

    @invariant()
    def nothing_is_forgotten_too_early_and_the_disk_is_given_back(self) -> None:
        if not hasattr(self, "log"):
            return
        assert self.log.end == self.end
        assert self.log.start <= max(self.forgotten, 0)
        sizes = [path.stat().st_size for path in on_disk(Path(self.folder.name))]
        assert sum(sizes) == self.log.n_bytes
        assert max(sizes) <= max(self.segment_bytes, HEADER_BYTES + 300)

    def teardown(self) -> None:
        if hasattr(self, "log"):
            assert [data for end, data in self.model if end > self.log.start] == read_all(self.log)
            self.log.remove()
            assert all(name.endswith(DAMAGED) for name in os.listdir(self.folder.name))
            self.folder.cleanup()


TestLogAgainstAList = LogAgainstAList.TestCase


def test_a_frame_larger_than_a_file_and_than_a_reading_is_whole(tmp_path: Path) -> None:
    log = Log(tmp_path, "log", segment_bytes=100)
    large = os.urandom(3 << 20)
    log.append(b"before")
    log.append(large)
    log.append(b"after")
    log.close()
    assert read_all(Log(tmp_path, "log", segment_bytes=100)) == [b"before", large, b"after"]


def test_a_reading_is_of_one_file_and_about_as_large_as_it_may_be(tmp_path: Path) -> None:
    log = Log(tmp_path, "log", segment_bytes=1000)
    for n in range(100):
        log.append(payload(n, 92))
    assert [len(log.read(offset, 350).payloads) for offset in (0, 100, 900)] == [3, 3, 1]
    assert len(log.read(0, 1 << 20).payloads) == 10


def test_a_file_is_deleted_when_it_is_full_and_read_to_its_end(tmp_path: Path) -> None:
    log = Log(tmp_path, "log", segment_bytes=1000)
    for n in range(4):
        log.append(payload(n, 92))
        log.forget(log.end)
    assert log.start == 0  # a small file stays: else there would be one for each batch
    log.append(payload(4, 92))
    log.forget(log.end)
    assert (log.start, log.end, log.n_bytes) == (500, 500, 0)
    assert read_all(log) == []
    log.append(b"more")
    assert read_all(log) == [b"more"]


def test_what_is_forgotten_half_stays_whole(tmp_path: Path) -> None:
    log = Log(tmp_path, "log", segment_bytes=1000)
    for n in range(30):
        log.append(payload(n, 92))
    log.forget(1999)
    assert log.start == 1000
    log.forget(2000)
    assert log.start == 2000


def test_two_logs_in_a_folder_know_their_own_files(tmp_path: Path) -> None:
    one, other = Log(tmp_path, "log"), Log(tmp_path, "log2")
    one.append(b"one")
    other.append(b"other")
    one.remove()
    other.close()
    assert read_all(Log(tmp_path, "log2")) == [b"other"]


# Torn and damaged.


@given(n_left=st.integers(0, 3 * 28))
def test_a_file_cut_anywhere_keeps_its_whole_frames(n_left: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder), "log")
        for n in range(3):
            log.append(payload(n))
        log.close()
        os.truncate(on_disk(Path(folder))[0], n_left)
        again = Log(Path(folder), "log")
        assert read_all(again) == [payload(n) for n in range(n_left // 28)]
        assert again.end == n_left // 28 * 28
        again.append(payload(9))
        assert read_all(again)[-1] == payload(9)
        again.close()


def test_a_torn_tail_is_cut_off_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = Log(tmp_path, "log")
    log.append(payload(0))
    log.append(payload(1))
    log.close()
    os.truncate(on_disk(tmp_path)[0], 28 + 13)
    log = Log(tmp_path, "log")
    assert caplog.messages == ["log.0000000000000000.v1: the last 13 bytes were not written to their end, cut off"]
    assert on_disk(tmp_path)[0].stat().st_size == log.n_bytes == 28
    Log(tmp_path, "log")
    assert len(caplog.messages) == 1


def test_zeros_that_a_dying_machine_leaves_are_a_torn_tail(tmp_path: Path) -> None:
    log = Log(tmp_path, "log")
    log.append(payload(0))
    os.truncate(on_disk(tmp_path)[0], 1 << 16)
    log.close()
    assert read_all(Log(tmp_path, "log")) == [payload(0)]


@pytest.mark.parametrize("damage", ["a byte", "cut", "zeros", "emptied", "grown"])
def test_a_damaged_file_in_the_middle_costs_no_other(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log(tmp_path, "log", segment_bytes=280)
    for n in range(50):
        log.append(payload(n))
    log.close()
    second = on_disk(tmp_path)[1]
    data = bytearray(second.read_bytes())
    match damage:
        case "a byte":
            data[5 * 28 + 17] ^= 1
        case "cut":
            del data[5 * 28 + 17 :]
        case "zeros":
            data[5 * 28 :] = bytes(5 * 28)
        case "emptied":
            data.clear()
        case "grown":
            data += payload(99)
    second.write_bytes(data)
    kept = {"a byte": [*range(15), *range(16, 20)], "emptied": range(10), "grown": range(20)}.get(damage, range(15))
    log = Log(tmp_path, "log", segment_bytes=280)
    assert read_all(log) == [payload(n) for n in (*kept, *range(20, 50))]
    assert log.append(payload(50)) == 51 * 28
    n_damaged = len([message for message in caplog.messages if "damaged and lost" in message])
    assert n_damaged == (damage in {"a byte", "cut", "zeros"})
    n_missing = len([message for message in caplog.messages if "bytes before it are missing" in message])
    assert n_missing == (damage in {"cut", "emptied"})


def test_a_damaged_file_that_is_written_to_costs_only_what_is_damaged(tmp_path: Path) -> None:
    log = Log(tmp_path, "log")
    for n in range(3):
        log.append(payload(n))
    with on_disk(tmp_path)[0].open("r+b") as file:
        file.seek(28 + 20)
        file.write(b"!")
    first = log.read(0, 1000)
    assert first.payloads == [payload(0)]
    rest = log.read(first.end, 1000)
    assert (rest.payloads, rest.end) == ([payload(2)], log.end)
    log.append(payload(3))
    assert log.read(rest.end, 1000).payloads == [payload(3)]


@pytest.mark.parametrize("begins", [None, re.compile(rb"\0\0\0")])
@given(data=st.data())
def test_whatever_bits_flip_every_frame_without_one_is_read(
    begins: re.Pattern[bytes] | None, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(4, 60), min_size=1, max_size=12))
    payloads = [payload(n, size) for n, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder), "log", segment_bytes=200)
        ends = [log.append(each) for each in payloads]
        log.close()
        flipped = data.draw(st.sets(st.integers(0, ends[-1] - 1), max_size=3))
        for start, path in files(Path(folder), "log"):
            content = bytearray(path.read_bytes())
            for at in flipped & set(range(start, start + len(content))):
                content[at - start] ^= data.draw(st.integers(1, 255))
            path.write_bytes(content)
        starts = [0, *ends]
        spared = [n for n in range(len(sizes)) if not flipped & set(range(starts[n], ends[n]))]
        log = Log(Path(folder), "log", segment_bytes=200, begins=begins)
        assert read_all(log, data.draw(st.sampled_from([8, 64, 1000]))) == [payloads[n] for n in spared]
        log.close()


def test_a_frame_whose_checksum_ends_as_payloads_begin_is_found_behind_damage(tmp_path: Path) -> None:
    log = Log(tmp_path, "log")
    log.append(payload(3, 4))
    log.append(payload(4, 27))
    log.close()
    data = on_disk(tmp_path)[0].read_bytes()
    assert data[12 + 7 : 12 + 10] == bytes(3), "the last byte of the checksum, and the first two of the payload"
    damage(on_disk(tmp_path)[0], 0)
    log = Log(tmp_path, "log", begins=re.compile(rb"\0\0\0"))
    assert read_all(log) == [payload(4, 27)]
    log.close()


def test_what_is_damaged_is_kept_beside_the_file_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log(tmp_path, "log")
    for n in range(4):
        log.append(payload(n))
    log.close()
    path = on_disk(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[28] ^= 0x80  # in the length of the second
    data[3 * 28 + 9] ^= 1  # in the last
    path.write_bytes(data)
    log = Log(tmp_path, "log")
    for _ in range(3):
        assert read_all(log) == [payload(0), payload(2)]
    log.remove()
    assert caplog.messages == [
        f"{path.name}: the last 28 bytes are damaged, cut off, kept in {path.name}.54.damaged",
        f"{path.name}: 28 bytes at 28 are damaged and lost, kept in {path.name}.1c.damaged",
    ]
    assert (tmp_path / f"{path.name}.54.damaged").read_bytes() == data[3 * 28 :]
    assert (tmp_path / f"{path.name}.1c.damaged").read_bytes() == data[28 : 2 * 28]
    assert len(os.listdir(tmp_path)) == 2


def test_the_search_behind_damage_is_bounded(tmp_path: Path) -> None:
    """Noise has a plausible length in each 256th byte; only what begins like a payload is looked at."""
    log = Log(tmp_path, "log", begins=re.compile(b"#!"))
    log.append(b"#!" + os.urandom(12 << 20))
    log.append(b"#!behind")
    with on_disk(tmp_path)[0].open("r+b") as file:
        file.write(b"!")
    began_s = process_time()
    assert log.read(0, 1 << 20).payloads == [b"#!behind"]
    assert process_time() - began_s < 60  # else it is hours


def test_a_file_says_whether_a_process_has_it(tmp_path: Path) -> None:
    log = Log(tmp_path, "log")
    assert is_in_use(tmp_path, "log")
    log.close()
    assert not is_in_use(tmp_path, "log")


def test_so_many_bytes_stay_when_they_are_forgotten(tmp_path: Path) -> None:
    log = Log(tmp_path, "log", segment_bytes=1000)
    for n in range(95):
        log.append(payload(n, 92))
        log.forget(log.end, keep_bytes=3000)
        assert log.n_bytes <= 3000
    assert (log.start, log.end) == (7000, 9500)
    log.forget(log.end, keep_bytes=3000)
    assert log.start == 7000
    assert read_all(log) == [payload(n, 92) for n in range(70, 95)]
    log.append(payload(95, 92))
    log.forget(log.end, roll_bytes=1)
    assert (log.start, log.end, len(log.paths)) == (9600, 9600, 1)


# A full disk.


def test_a_real_write_that_stops_half_way_changes_nothing(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel write what fits and no more, as a full disk does."""
    child = """
import resource, sys
from pathlib import Path
from zander.journal.log import Log
log = Log(Path(sys.argv[1]), "log")
log.append(b"a" * 92)
resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY))
for payload in (b"b" * 92, b"c" * 200):
    try:
        log.append(payload)
    except OSError as error:
        print(error.errno, log.end, Path(sys.argv[1], "log.0000000000000000.v1").stat().st_size)
try:
    log.probe()
except OSError as error:
    print(error.errno, log.end)
log.append(b"d" * 42)
try:
    log.append(b"e")
except OSError as error:
    print(error.errno, log.end)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.probe()
log.append(b"f")
print([len(payload) for payload in log.read(0, 1 << 20).payloads])
"""
    done = subprocess.run([sys.executable, "-c", child, tmp_path], capture_output=True, text=True, check=True)
    full = errno.ENOSPC
    assert done.stdout.splitlines() == [
        f"{full} 100 100",
        f"{full} 100 100",
        f"{full} 100",
        f"{errno.EFBIG} 150",
        "[92, 42, 1]",
    ]
    assert [len(found) for found in read_all(Log(tmp_path, "log"))] == [92, 42, 1]


def test_what_could_not_be_written_nor_cut_off_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path, "log", segment_bytes=100)
    log.append(payload(0))
    pwrite = os.pwrite

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:60], at))
        patch.setattr(os, "ftruncate", broken)
        with pytest.raises(OSError, match="No space left"):
            log.append(payload(1, 70))
    for n in range(1, 6):
        log.append(payload(n, 10))
    log.close()
    assert [found[3] for found in read_all(Log(tmp_path, "log", segment_bytes=100))] == list(range(6))


def test_a_file_that_cannot_be_made_changes_nothing_either(tmp_path: Path) -> None:
    folder, away = tmp_path / "folder", tmp_path / "away"
    folder.mkdir()
    log = Log(folder, "log", segment_bytes=100)
    log.append(payload(0, 92))
    folder.rename(away)
    with pytest.raises(FileNotFoundError):
        log.append(payload(1))
    log.forget(100)  # all of it, but where to go on?
    assert (log.start, log.end) == (0, 100)
    away.rename(folder)
    log.forget(100)
    assert (log.start, log.end) == (100, 100)
    log.append(payload(1))
    assert read_all(log) == [payload(1)]


def test_a_probe_leaves_nothing_behind_even_if_it_is_killed(tmp_path: Path) -> None:
    log = Log(tmp_path, "log")
    log.append(payload(0))
    log.probe()
    assert on_disk(tmp_path)[0].stat().st_size == 28
    child = """
import os, signal, sys
from pathlib import Path
from zander.journal.log import Log
log = Log(Path(sys.argv[1]), "log")
os.ftruncate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
log.probe()
"""
    log.close()
    done = subprocess.run([sys.executable, "-c", child, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert on_disk(tmp_path)[0].stat().st_size > 28
    assert read_all(Log(tmp_path, "log")) == [payload(0)]


def test_a_killed_process_loses_nothing_it_had_appended(tmp_path: Path) -> None:
    child = """
import sys
from pathlib import Path
from zander.journal.log import Log
log = Log(Path(sys.argv[1]), "log", segment_bytes=10_000)
n = 0
while True:
    log.append(n.to_bytes(4, "big") * 20)
    n += 1
    if n % 100 == 0:
        print(n, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", child, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    said = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    said += [int(line) for line in process.stdout.read().split()]
    process.wait()
    process.stdout.close()
    found = [int.from_bytes(data[:4], "big") for data in read_all(Log(tmp_path, "log", segment_bytes=10_000), 5000)]
    assert found == list(range(len(found)))
    assert len(found) >= said[-1]


def descriptor(path: Path) -> int:
    """Find the descriptor under which this process has a file open."""
    for fd in range(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        with suppress(OSError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
    raise AssertionError(f"{path} is not open")


def test_files_are_private_and_not_inherited(tmp_path: Path) -> None:
    log = Log(tmp_path, "log")
    assert on_disk(tmp_path)[0].stat().st_mode & 0o077 == 0
    assert not os.get_inheritable(descriptor(log.paths[0]))
    log.sync()
    log.close()


def test_as_many_files_as_wait_may_be_open(tmp_path: Path) -> None:
    """One descriptor for each file: a full journal of the default size has 64."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft > (1 << 30) // (16 << 20) * 4
    log = Log(tmp_path, "log", segment_bytes=28)
    for n in range(200):
        log.append(payload(n))
    assert len(on_disk(tmp_path)) == 200
    log.remove()
    assert on_disk(tmp_path) == []


def test_the_next_file_is_open_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path, "log", segment_bytes=100, ahead=True)
    monkeypatch.setattr("zander.journal.log._open", _no_descriptor)
    for i in range(10):
        log.append(payload(i))
        if len(log.paths) == 2:
            break
    assert len(log.paths) == 2
    assert read_all(log) == [payload(n) for n in range(i + 1)]
    with pytest.raises(OSError, match="Too many open files"):
        _fill(log)
    monkeypatch.undo()
    log.append(payload(0))
    log.close()
    assert not list(tmp_path.glob("*.next"))


def _fill(log: Log) -> None:
    for _ in range(10):
        log.append(payload(0))


def _no_descriptor(_: Path) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
