from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from support.clock import Clock
from support.samples import ORIGIN, PREDICTION, SESSION, chunk, gap
from zander.journal import writer as writer_module
from zander.journal.journal import Journals
from zander.journal.log import Log, frame
from zander.journal.records import Record, decode, encode, raw_record
from zander.journal.writer import FREE_SHARE, PAUSE_SECONDS, JournalWriter
from zander.wire.chunk import Chunk, Origin
from zander.wire.connection import Client

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
    monkeypatch.setattr(writer_module, "monotonic", clock)
    return clock


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[Journals]:
    """Journals in files of 1000 bytes."""
    found = Journals(tmp_path, 8000)
    yield found
    found.close()


def lab_of(user_id: str) -> Client:
    """Return the client of a user whose name begins with it."""
    return Client("a key", user_id.partition("-")[0])


def within(journals: Journals, max_bytes: int) -> JournalWriter:
    return JournalWriter(journals, max_bytes=max_bytes, batch_records=50, client_of=lab_of)


def written(journals: Journals) -> list[Record]:
    found, offset = [], 0
    while (frames := journals.own.log.read(offset, 1 << 20)).payloads:
        found += [decode(payload) for payload in frames.payloads]
        offset = frames.end
    return found


def fill(writer: JournalWriter) -> int:
    """Add predictions, each of another user, until there is no room; return how many found some."""
    n = 0
    while writer.record_prediction(replace(PREDICTION, user_id=f"{n:04}")):
        n += 1
    return n


def encode_frames(samples: Chunk) -> bytes:
    return frame(encode(raw_record(samples, 0)))


def test_what_is_added_is_in_the_journal_at_once(journals: Journals) -> None:
    writer = within(journals, 1 << 20)
    assert writer.record_prediction(PREDICTION)
    writer.record(SESSION)
    assert written(journals) == [PREDICTION, SESSION]


def test_beyond_the_bound_only_what_must_not_be_missed_is_taken(
    journals: Journals, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    writer = within(journals, 10 * N_BYTES)
    assert fill(writer) == 11  # the last may go beyond
    assert not writer.takes
    assert not writer.record_chunk(chunk(0, 5), 0)
    writer.record(SESSION)
    assert written(journals)[-1] == SESSION
    assert (writer.n_refused, len(writer.in_memory)) == (6, 0)
    assert caplog.messages == [f"the journal takes no more, relays are refused: it has {11 * N_BYTES} bytes, its bound"]


def test_it_takes_more_when_enough_is_free_again(
    journals: Journals, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    writer = within(journals, 20 * N_BYTES)
    fill(writer)
    clock.now_s += PAUSE_SECONDS
    writer.retry()
    assert not writer.takes
    journals.own.commit(journals.own.log.end)
    writer.set_limit(0)
    writer.retry()
    assert not writer.takes  # it was asked just now
    clock.now_s += PAUSE_SECONDS
    assert writer.record_prediction(PREDICTION)
    assert writer.takes
    assert caplog.messages[1:] == ["the journal takes records again after 2.0 s, 1 were refused"]


def test_a_little_room_is_not_enough(journals: Journals, clock: Clock) -> None:
    writer = within(journals, 20 * N_BYTES)
    fill(writer)
    clock.now_s += PAUSE_SECONDS
    writer.set_limit(-round(FREE_SHARE * 20 * N_BYTES))
    writer.retry()
    assert not writer.takes
    clock.now_s += PAUSE_SECONDS
    writer.set_limit(-round(FREE_SHARE * 20 * N_BYTES) - N_BYTES)
    writer.retry()
    assert writer.takes


def test_what_other_journals_take_counts(journals: Journals, clock: Clock) -> None:
    writer = within(journals, 20 * N_BYTES)
    writer.set_limit(15 * N_BYTES)
    assert fill(writer) == 6


def test_a_full_disk_is_not_asked_for_each_record(journals: Journals, disk: Disk, clock: Clock) -> None:
    writer = within(journals, 1 << 20)
    disk.is_full = True
    for _ in range(100):
        assert not writer.record_prediction(PREDICTION)
    assert disk.n_asked == 1
    clock.now_s += PAUSE_SECONDS
    for _ in range(100):
        assert not writer.record_prediction(PREDICTION)
    assert disk.n_asked == 2
    assert writer.n_refused == 200


def test_what_must_not_be_missed_waits_in_memory_and_keeps_its_place(
    journals: Journals, disk: Disk, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    writer = within(journals, 1 << 20)
    writer.record_prediction(PREDICTION)
    disk.is_full = True
    assert not writer.record_prediction(PREDICTION)
    writer.record(gap(0, 5, "lost"))
    writer.record(SESSION)
    assert len(writer.in_memory) == 2
    disk.is_full = False
    writer.record(gap(5, 6, "lost"))  # not before the others
    assert written(journals) == [PREDICTION]
    clock.now_s += PAUSE_SECONDS
    assert writer.record_prediction(PREDICTION)
    assert written(journals) == [PREDICTION, gap(0, 5, "lost"), SESSION, gap(5, 6, "lost"), PREDICTION]
    assert len(writer.in_memory) == 0
    assert [message.split(":")[0] for message in caplog.messages] == [
        "the journal takes no more, relays are refused",
        "the journal takes records again after 1.0 s, 1 were refused",
    ]


def test_a_disk_that_fills_up_again_while_catching_up_loses_nothing(
    journals: Journals, disk: Disk, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = within(journals, 1 << 20)
    disk.is_full = True
    writer.record(gap(0, 5))
    writer.record(gap(5, 9))
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
        writer.retry()
        assert (writer.takes, len(writer.in_memory)) == (False, 1)
    clock.now_s += PAUSE_SECONDS
    writer.retry()
    assert writer.takes
    assert written(journals) == [gap(0, 5), gap(5, 9)]


def test_a_disk_with_room_for_what_waited_and_no_more_stays_full(
    journals: Journals, disk: Disk, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = within(journals, 1 << 20)
    disk.is_full = True
    writer.record(SESSION)
    disk.is_full = False

    def no_more(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Log, "probe", no_more)
    clock.now_s += PAUSE_SECONDS
    writer.retry()
    assert not writer.takes
    assert written(journals) == [SESSION]


def refusal(writer: JournalWriter) -> str | None:
    """Say why the journal takes nothing."""
    assert writer.takes == (writer.full is None)
    return writer.full and writer.full.reason


def woken(writer: JournalWriter) -> bool:
    """Say whether the recorder was woken since this was asked last."""
    was_set = writer.wake.is_set()
    writer.wake.clear()
    return was_set


def test_the_recorder_is_woken_by_the_first_record_and_by_a_full_batch_and_no_other(journals: Journals) -> None:
    writer = JournalWriter(journals, max_bytes=1 << 20, batch_records=10)
    assert not woken(writer)
    writer.record_chunk(chunk(0, 2), 0)
    assert woken(writer)
    writer.record_chunk(chunk(2, 7), 0)
    assert (woken(writer), writer.is_batch_due) == (False, False)
    writer.record_prediction(PREDICTION)
    assert (woken(writer), writer.is_batch_due) == (True, True)
    writer.record_chunk(chunk(9, 20), 0)
    assert (woken(writer), writer.n_pending) == (False, 30)


def test_a_batch_is_due_from_an_urgent_record_until_that_is_committed(journals: Journals) -> None:
    writer = within(journals, 1 << 20)
    writer.record_chunk(chunk(0), 0)
    assert woken(writer)
    writer.record(SESSION)
    assert (woken(writer), writer.is_batch_due) == (True, True)
    end = journals.own.log.end
    writer.record_chunk(chunk(1), 0)
    journals.own.commit(end)
    assert not writer.is_batch_due


def test_what_a_batch_leaves_of_a_backlog_is_as_old_as_it_is(journals: Journals, clock: Clock) -> None:
    writer = within(journals, 1 << 20)
    began_s, ends = clock.now_s, list[int]()
    for position in range(60):  # a minute
        writer.record_chunk(chunk(position), 0)
        ends.append(journals.own.log.end)
        clock.now_s += 1
    for n in (1, 20, 21, 59):
        writer.begin_batch(n)
        journals.own.commit(ends[n - 1])
        writer.commit_batch()
        assert writer.oldest_s == began_s + n
    journals.own.commit(ends[9])  # the database was set back
    assert writer.oldest_s == began_s + 59  # it is not known any more
    journals.own.commit(ends[-1])
    assert writer.oldest_s == math.inf


def test_what_waits_in_memory_for_room_on_the_disk_is_as_old_as_it_is(
    journals: Journals, clock: Clock, disk: Disk
) -> None:
    writer = within(journals, 1 << 20)
    began_s, disk.is_full = clock.now_s, True
    for _ in range(2):
        writer.record(SESSION)
        clock.now_s += 5
    assert writer.oldest_s == began_s
    disk.is_full = False
    writer.retry()
    assert (len(writer.in_memory), writer.oldest_s) == (0, began_s)
    journals.own.commit(journals.own.log.end)
    assert writer.oldest_s == math.inf


def test_what_is_left_of_a_batch_is_as_old_as_the_first_record_that_came_after_it(
    journals: Journals, clock: Clock
) -> None:
    writer = within(journals, 1 << 20)
    writer.record_chunk(chunk(0, 5), 0)
    began_s = clock.now_s
    end = journals.own.log.end
    writer.begin_batch(5)
    clock.now_s += 3
    writer.record_chunk(chunk(5, 2), 0)
    clock.now_s += 3
    writer.record_chunk(chunk(7), 0)
    assert (writer.n_pending, writer.oldest_s) == (8, began_s)
    journals.own.commit(end)
    writer.commit_batch()
    assert (writer.n_pending, writer.oldest_s) == (3, began_s + 3)
    writer.begin_batch(1)  # the others are damaged
    journals.own.commit(journals.own.log.end)
    writer.commit_batch()
    assert writer.n_pending == 0
    clock.now_s += 1
    writer.record_chunk(chunk(8), 0)
    assert (writer.n_pending, writer.oldest_s) == (1, began_s + 7)


def test_what_is_committed_makes_room_before_anything_is_refused(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    journals = Journals(tmp_path, 8000, 1 << 20)
    writer = within(journals, 8000)
    for _ in range(500):
        assert writer.record_prediction(PREDICTION)
        journals.own.commit(journals.own.log.end)
        writer.set_limit(0)
    assert not caplog.messages
    assert journals.own.log.n_bytes <= 8000 + N_BYTES
    journals.close()


def test_a_full_disk_takes_again_once_its_only_file_is_committed(
    journals: Journals, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is less than half full, and what has no room is that there is no other."""
    writer = within(journals, 1 << 20)
    pwrite = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        on_disk = sum(path.stat().st_size for path in journals.own.log.paths)
        if on_disk + len(data) > 400:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    monkeypatch.setattr("zander.journal.log.os.pwrite", write)
    monkeypatch.setattr(Log, "probe", lambda log: write(-1, b"", log.end) if log.n_bytes > 300 else None)
    assert fill(writer) == 400 // N_BYTES
    assert refusal(writer) == "No space left on device"
    writer.record(SESSION)
    clock.now_s += PAUSE_SECONDS
    writer.retry()
    assert refusal(writer)
    journals.own.commit(journals.own.log.end)
    clock.now_s += PAUSE_SECONDS
    writer.retry()
    assert refusal(writer) is None
    assert written(journals) == [SESSION]


# One user does not fill it for all.


def offer(writer: JournalWriter, user_id: str) -> bool:
    """Offer samples of a user, as many bytes as a prediction has or more."""
    return writer.record_chunk(chunk(0, 2, Origin(user_id, ORIGIN.session_id, 7812.5)), 0)


def test_one_user_s_notes_leave_room_for_its_samples_and_these_for_everybody_else_s(
    journals: Journals, caplog: pytest.LogCaptureFixture
) -> None:
    writer = within(journals, 100 * N_BYTES)
    n_notes = n_others = 0
    while writer.record_prediction(PREDICTION):
        n_notes += 1
    assert 35 <= n_notes <= 45  # an eighth, and a third of the rest
    while offer(writer, "user"):
        pass
    n_bytes = journals.own.log.n_bytes
    assert 60 * N_BYTES <= n_bytes <= 75 * N_BYTES  # an eighth, and two thirds of the rest
    assert writer.takes
    assert not writer.takes_from("user")
    while offer(writer, f"{n_others:04}"):
        n_others += 1
    assert journals.own.log.n_bytes > 100 * N_BYTES
    assert n_others >= 10
    assert not writer.takes
    assert writer.shares.n_users_refused == 1
    assert [text for text in caplog.messages if "user user has" in text] == caplog.messages[:1]


def offer_all(writer: JournalWriter, user_ids: list[str]) -> None:
    """Offer samples of each in turn until none is taken."""
    while sum(offer(writer, user_id) for user_id in user_ids):
        pass


def test_a_client_of_many_users_leaves_room_for_others(journals: Journals, caplog: pytest.LogCaptureFixture) -> None:
    writer = within(journals, 100 * N_BYTES)
    while not writer.shares.end > writer.shares.start:
        assert offer(writer, "a-first")
    assert offer(writer, "b-one")
    offer_all(writer, [f"a-{n:03}" for n in range(200)])
    n_bytes = journals.own.log.n_bytes
    assert 75 * N_BYTES <= n_bytes <= 88 * N_BYTES  # an eighth, and four fifths of the rest
    assert writer.takes
    assert not writer.takes_from("a-new")
    assert not writer.takes_from("a-new", "sessions")
    n_others = 0
    while offer(writer, "b-one"):
        n_others += 1
    assert n_others >= 5
    assert writer.takes_from("c-one")
    assert (writer.shares.n_users_refused, writer.shares.n_clients_refused) == (1, 1)
    assert [text[:14] for text in caplog.messages] == ["a client at a ", "user b-one has"]


def test_a_client_that_is_alone_may_have_all(journals: Journals) -> None:
    writer = within(journals, 100 * N_BYTES)
    offer_all(writer, [f"a-{n:03}" for n in range(200)])
    assert journals.own.log.n_bytes > 100 * N_BYTES
    assert not writer.takes
    assert writer.shares.n_clients_refused == 0


def test_of_a_client_s_users_those_are_refused_first_who_have_most(journals: Journals) -> None:
    writer = within(journals, 100 * N_BYTES)
    while not writer.shares.end > writer.shares.start:
        assert offer(writer, "a-first")
    assert offer(writer, "b-one")
    offer_all(writer, ["a-large", "a-huge"])
    for n in range(2):
        assert offer(writer, f"a-small-{n}")


def test_who_has_filled_the_share_of_its_client_is_taken_again_once_much_of_it_is_committed(journals: Journals) -> None:
    writer = within(journals, 100 * N_BYTES)
    while not writer.shares.end > writer.shares.start:
        assert offer(writer, "a-first")
    assert offer(writer, "b-one")
    offer_all(writer, [f"a-{n:03}" for n in range(200)])
    end = journals.own.log.end
    for offset, takes in ((0, False), (end // 2, True), (end, True)):
        journals.own.commit(offset)
        writer.set_limit(0)
        assert writer.takes_from("a-000") is takes
        assert writer.takes_from("a-new", "sessions") is takes


LARGE_SESSION = replace(SESSION, device_info='{"x":"' + "x" * 1000 + '"}')
LARGE_BYTES = len(encode(LARGE_SESSION)) + 8


def begin_all(writer: JournalWriter, lab: str) -> int:
    """Begin sessions of one user after the other, and return how many may."""
    n = 0
    while writer.takes_from(f"{lab}-{n}", "sessions"):
        writer.record(replace(LARGE_SESSION, user_id=f"{lab}-{n}"))
        n += 1
    return n


def test_the_sessions_of_a_client_leave_room_to_end_them_and_for_others(
    journals: Journals, caplog: pytest.LogCaptureFixture
) -> None:
    writer = within(journals, 80 * LARGE_BYTES)
    n = begin_all(writer, "a")
    assert 15 <= n <= 20  # an eighth, and a tenth of the rest
    assert writer.takes_from("a-0")
    assert begin_all(writer, "b") >= 4
    for i in range(n):
        writer.record(replace(LARGE_SESSION, user_id=f"a-{i}", end_us=5))
    assert journals.own.log.n_bytes < 50 * LARGE_BYTES
    assert offer(writer, "a-0")
    assert offer(writer, "c-0")
    assert writer.shares.n_clients_refused == 2
    assert [text.partition(" the database has not: ")[2] for text in caplog.messages] == [
        "more sessions are refused, others go on"
    ] * 2
    journals.own.commit(journals.own.log.end)
    writer.set_limit(0)
    assert writer.takes_from("a-new", "sessions")


def test_no_session_begins_in_a_journal_that_is_full_of_sessions(journals: Journals) -> None:
    writer = within(journals, 20 * LARGE_BYTES)
    for _ in range(21):
        writer.record(replace(LARGE_SESSION, end_us=5))
    assert writer.takes
    assert not writer.takes_from("a-new", "sessions")


def test_below_an_eighth_everybody_is_taken_and_nothing_is_asked(journals: Journals) -> None:
    writer = within(journals, 1 << 16)
    frames = encode_frames(chunk(0, 5))
    assert writer.record_frames(frames, 5)
    while journals.own.log.n_bytes <= 1 << 13:
        assert writer.record_frames(frames, 5)
    assert writer.record_frames(frames, 5) is None
    assert writer.record_frames(frames, 5, [("user", len(frames))])


def test_frames_of_several_users_are_refused_where_one_is_over_its_share(journals: Journals) -> None:
    writer = within(journals, 1 << 16)
    frames = encode_frames(chunk(0, 5))
    while writer.record_frames(frames, 5, [("user", len(frames))]):
        pass
    assert not writer.record_frames(frames * 2, 10, [("other", len(frames)), ("user", len(frames))])
    assert writer.record_frames(frames, 5, [("other", len(frames))])
    assert writer.n_refused == 0


def test_who_was_over_its_share_is_taken_again_once_much_of_it_is_committed(journals: Journals) -> None:
    writer = within(journals, 100 * N_BYTES)
    while offer(writer, "user"):
        pass
    start, end = journals.own.log.start, journals.own.log.end
    for part, takes in ((0.05, False), (0.1, False), (0.4, True)):
        journals.own.commit(start + round(part * (end - start)))
        writer.set_limit(0)
        assert writer.takes_from("user") is takes
    journals.own.commit(end)
    writer.set_limit(0)
    assert writer.takes_from("user", "notes")


def test_a_session_s_device_counts_too(journals: Journals) -> None:
    writer = within(journals, 1 << 16)
    device_info = '{"x":"' + "x" * 4000 + '"}'
    for _ in range(14):
        writer.record(replace(SESSION, device_info=device_info))
    assert writer.takes
    assert not writer.takes_from(SESSION.user_id)
