from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from support.clock import Clock
from support.samples import PREDICTION, SESSION, gap
from zander.journal import writer as intake_module
from zander.journal.log import Log
from zander.journal.records import Record, decode, encode
from zander.journal.writer import FREE_SHARE, PAUSE_SECONDS, Intake

N_BYTES = len(encode(PREDICTION)) + 8


class Disk:
    """The disk under a journal: full when it is said to be, and asked `n_asked` times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self.n_asked = 0
        self._pwrite = os.pwrite
        monkeypatch.setattr("zander.journal.log.os.pwrite", self._write)

    def _write(self, fd: int, data: bytes, offset: int) -> int:
        self.n_asked += 1
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._pwrite(fd, data, offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(intake_module, "monotonic", clock)
    return clock


@pytest.fixture
def segments(tmp_path: Path) -> Log:
    return Log(tmp_path, "journal", segment_bytes=1000)


def written(segments: Log) -> list[Record]:
    found, offset = [], 0
    while (frames := segments.read(offset, 1 << 20)).payloads:
        found += [decode(payload) for payload in frames.payloads]
        offset = frames.end
    return found


def fill(intake: Intake) -> int:
    """Add predictions until there is no room; return how many found some."""
    n = 0
    while intake.add(PREDICTION):
        n += 1
    return n


def test_what_is_added_is_in_the_journal_at_once(segments: Log) -> None:
    intake = Intake(segments, 1 << 20)
    assert intake.add(PREDICTION)
    intake.insist(SESSION)
    assert written(segments) == [PREDICTION, SESSION]


def test_beyond_the_bound_only_what_must_not_be_missed_is_taken(
    segments: Log, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    intake = Intake(segments, 10 * N_BYTES)
    assert fill(intake) == 11  # the last may go beyond
    assert not intake.takes
    assert not intake.add(PREDICTION, 5)
    intake.insist(SESSION)
    assert written(segments)[-1] == SESSION
    assert (intake.n_refused, intake.n_waiting) == (6, 0)
    assert caplog.messages == [f"the journal takes no more, relays are refused: it has {11 * N_BYTES} bytes, its bound"]


def test_it_takes_more_when_enough_is_free_again(segments: Log, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    intake = Intake(segments, 20 * N_BYTES)
    fill(intake)
    clock.now_s += PAUSE_SECONDS
    intake.retry()
    assert not intake.takes
    segments.forget(segments.end)
    intake.bound(0)
    intake.retry()
    assert not intake.takes  # it was asked just now
    clock.now_s += PAUSE_SECONDS
    assert intake.add(PREDICTION)
    assert intake.takes
    assert caplog.messages[1:] == ["the journal takes records again after 2.0 s, 1 were refused"]


def test_a_little_room_is_not_enough(segments: Log, clock: Clock) -> None:
    intake = Intake(segments, 20 * N_BYTES)
    fill(intake)
    clock.now_s += PAUSE_SECONDS
    intake.bound(-round(FREE_SHARE * 20 * N_BYTES))
    intake.retry()
    assert not intake.takes
    clock.now_s += PAUSE_SECONDS
    intake.bound(-round(FREE_SHARE * 20 * N_BYTES) - N_BYTES)
    intake.retry()
    assert intake.takes


def test_what_other_journals_take_counts(segments: Log, clock: Clock) -> None:
    intake = Intake(segments, 20 * N_BYTES)
    intake.bound(15 * N_BYTES)
    assert fill(intake) == 6


def test_a_full_disk_is_not_asked_for_each_record(segments: Log, disk: Disk, clock: Clock) -> None:
    intake = Intake(segments, 1 << 20)
    disk.is_full = True
    for _ in range(100):
        assert not intake.add(PREDICTION)
    assert disk.n_asked == 1
    clock.now_s += PAUSE_SECONDS
    for _ in range(100):
        assert not intake.add(PREDICTION)
    assert disk.n_asked == 2
    assert intake.n_refused == 200


def test_what_must_not_be_missed_waits_in_memory_and_keeps_its_place(
    segments: Log, disk: Disk, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    intake = Intake(segments, 1 << 20)
    intake.add(PREDICTION)
    disk.is_full = True
    assert not intake.add(PREDICTION)
    intake.insist(gap(0, 5, "lost"))
    intake.insist(SESSION)
    assert intake.n_waiting == 2
    disk.is_full = False
    intake.insist(gap(5, 6, "lost"))  # not before the others
    assert written(segments) == [PREDICTION]
    clock.now_s += PAUSE_SECONDS
    assert intake.add(PREDICTION)
    assert written(segments) == [PREDICTION, gap(0, 5, "lost"), SESSION, gap(5, 6, "lost"), PREDICTION]
    assert intake.n_waiting == 0
    assert [message.split(":")[0] for message in caplog.messages] == [
        "the journal takes no more, relays are refused",
        "the journal takes records again after 1.0 s, 1 were refused",
    ]


def test_a_disk_that_fills_up_again_while_catching_up_loses_nothing(
    segments: Log, disk: Disk, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = Intake(segments, 1 << 20)
    disk.is_full = True
    intake.insist(gap(0, 5))
    intake.insist(gap(5, 9))
    disk.is_full = False
    append, n_left = Log.append, 1

    def one_more(log: Log, payload: bytes) -> int:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return append(log, payload)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "append", one_more)
        clock.now_s += PAUSE_SECONDS
        intake.retry()
        assert (intake.takes, intake.n_waiting) == (False, 1)
    clock.now_s += PAUSE_SECONDS
    intake.retry()
    assert intake.takes
    assert written(segments) == [gap(0, 5), gap(5, 9)]


def test_a_disk_with_room_for_what_waited_and_no_more_stays_full(
    segments: Log, disk: Disk, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake = Intake(segments, 1 << 20)
    disk.is_full = True
    intake.insist(SESSION)
    disk.is_full = False

    def no_more(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Log, "probe", no_more)
    clock.now_s += PAUSE_SECONDS
    intake.retry()
    assert not intake.takes
    assert written(segments) == [SESSION]
