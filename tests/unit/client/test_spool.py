"""`Spool` against a simple model, through kills at any byte; and what its folder promises."""

from __future__ import annotations

import errno
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.files import damage
from zander.client.spool import Piece, Spool, SpoolError
from zander.journal.log import Log
from zander.wire.chunk import decode_binary

ONE = np.zeros((1, 1), np.float32)


def chunk(position: int, n: int = 1, n_channels: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Samples that say where they are."""
    samples = np.zeros((n, n_channels), np.float32)
    samples[:, 0] = np.arange(position, position + n)
    return samples


def spans(spool: Spool, position: int = 0) -> list[tuple[int, int]]:
    return [(piece.position, piece.end) for piece in spool.since(position)]


def check(piece: Piece) -> None:
    """A piece is the very chunk that was added."""
    raw = decode_binary(piece.frame)
    assert (raw.position, raw.time_us) == (piece.position, piece.time_us) == (piece.position, piece.position * 1000)
    np.testing.assert_array_equal(raw.samples, chunk(piece.position, piece.end - piece.position, 2))


class SpoolAgainstAModel(RuleBasedStateMachine):
    """The model is the list of all chunks added and not torn off: the spool holds its end, whole."""

    @initialize(on_disk=st.booleans(), max_bytes=st.sampled_from([400, 2000, 1 << 20]))
    def begin(self, on_disk: bool, max_bytes: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.where = Path(self.folder.name) if on_disk else None
        self.max_bytes = max_bytes
        self.model: list[tuple[int, int]] = []
        self.dropped: list[tuple[int, int]] = []
        self.durable = 0
        self.next_position = 0
        self.open()

    def open(self) -> None:
        self.spool = Spool(self.where, max_bytes=self.max_bytes, on_drop=lambda *span: self.dropped.append(span))

    @rule(n=st.integers(1, 20), n_skipped=st.sampled_from([0, 0, 0, 1, 7]))
    def add(self, n: int, n_skipped: int) -> None:
        position = self.next_position + n_skipped
        piece = self.spool.add(position, position * 1000, chunk(position, n, 2))
        assert piece is not None
        check(piece)
        self.model.append((position, position + n))
        self.next_position = position + n

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        self.durable = data.draw(st.integers(self.durable, max(self.durable, self.next_position)))
        self.spool.forget(self.durable)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(self.spool.start, max(self.spool.start, self.next_position)))
        found = list(self.spool.since(position))
        for piece in found:
            check(piece)
        assert [(piece.position, piece.end) for piece in found] == [span for span in self.model if span[1] > position]

    @rule(n=st.integers(0, 30))
    def skip(self, n: int) -> None:
        self.next_position += n
        self.spool.skip(self.next_position)
        if not n:
            self.next_position = self.spool.next_position

    @precondition(lambda self: self.where)
    @rule(n_torn=st.integers(0, 700))
    def kill(self, n_torn: int) -> None:
        """Also the last bytes of the last file may be gone; never more than what was appended last can be torn."""
        assert self.where
        kept = spans(self.spool)
        self.spool.close()
        last = max(self.where.glob("spool.*"))
        size = last.stat().st_size
        os.truncate(last, max(0, size - n_torn))
        self.open()
        left = max(0, size - n_torn)
        n_lost = 0
        while size > left and n_lost < len(kept):
            position, end = kept[-1 - n_lost]
            size -= 8 + 24 + 8 * (end - position)
            n_lost += 1
        self.model = kept[: len(kept) - n_lost]
        self.next_position = self.model[-1][1] if self.model else 0
        self.durable = self.model[0][0] if self.model else 0
        self.dropped.clear()

    @invariant()
    def what_is_not_durable_is_here_or_said_to_be_dropped(self) -> None:
        if not hasattr(self, "spool"):
            return
        assert self.spool.next_position == self.next_position
        start = self.spool.start
        assert spans(self.spool, start) == [span for span in self.model if span[1] > start]
        for (_, before), (after, _) in pairwise(self.dropped):
            assert before <= after
        missing = [p for first, end in self.model if end <= start for p in range(max(first, self.durable), end)]
        said = {p for first, end in self.dropped for p in range(first, end)}
        assert set(missing) <= said
        assert self.spool.n_bytes <= self.max_bytes + 8 + 24 + 8 * 20

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            self.folder.cleanup()


TestSpoolAgainstAModel = SpoolAgainstAModel.TestCase


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_full_spool_drops_its_oldest_and_says_so(tmp_path: Path, on_disk: bool) -> None:
    dropped: list[tuple[int, int]] = []
    spool = Spool(tmp_path if on_disk else None, max_bytes=10_000, on_drop=lambda *span: dropped.append(span))
    for position in range(1000):
        spool.add(position, 0, ONE)
    assert spool.n_bytes <= 10_000
    assert spool.n_dropped == spool.start > 0
    assert dropped[0][0] == 0
    assert all(before == after for (_, before), (after, _) in pairwise(dropped))
    assert spans(spool)[0][0] == dropped[-1][1] == spool.start
    assert spans(spool)[-1] == (999, 1000)
    assert spool.n_waiting == 1000 - spool.n_dropped > 100


def test_what_is_durable_is_not_dropped_but_gone(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=10_000, on_drop=lambda *span: pytest.fail(f"dropped {span}"))
    for position in range(10_000):
        spool.add(position, 0, ONE)
        spool.forget(position)
    assert spool.n_dropped == 0
    assert sum(file.stat().st_size for file in tmp_path.glob("spool.*")) <= 10_000


def test_all_durable_still_knows_where_to_go_on(tmp_path: Path) -> None:
    with_samples = Spool(tmp_path, max_bytes=1000)
    for position in range(100):
        with_samples.add(position, 0, ONE)
        with_samples.forget(position + 1)
    with_samples.close()
    assert Spool(tmp_path).next_position == 100


def test_a_spool_of_a_million_samples_is_read_from_anywhere_without_reading_it_all(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1 << 20)
    for position in range(0, 10_000, 10):
        spool.add(position, 0, chunk(position, 10))
    assert next(spool.since(9_995)).position == 9_990
    assert [span[0] for span in spans(spool, 9_980)] == [9_980, 9_990]


def test_what_is_added_while_it_is_read_is_read_too() -> None:
    spool = Spool()
    spool.add(0, 0, ONE)
    reading = spool.since(0)
    assert next(reading).position == 0
    spool.add(1, 0, ONE)
    assert next(reading).position == 1
    assert next(reading, None) is None


def test_the_session_is_found_again_and_is_of_one_user_and_device(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    first.claim("me", {"channel_count": 2})
    first.session_id = "a-session"
    first.close()
    second = Spool(tmp_path)
    second.claim("me", {"channel_count": 2})
    assert second.session_id == "a-session"
    with pytest.raises(SpoolError, match=r"keeps samples of me on .*take another folder"):
        second.claim("me", {"channel_count": 3})
    with pytest.raises(SpoolError, match="keeps samples of me"):
        Spool(tmp_path).claim("you", {"channel_count": 2})


def test_a_cleared_spool_is_anybodys(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    first.claim("me", {})
    first.session_id = "a-session"
    first.add(7, 0, ONE)
    first.clear()
    first.close()
    second = Spool(tmp_path)
    second.claim("you", {})
    assert (second.session_id, second.next_position, spans(second)) == ("", 0, [])


def test_a_folder_is_one_relays_at_a_time(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    with pytest.raises(SpoolError, match="another relay uses this spool now"):
        Spool(tmp_path)
    first.close()
    Spool(tmp_path).close()


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="file: File exists"):
        Spool(tmp_path / "file")
    (tmp_path / "session.json").write_text("{")
    with pytest.raises(SpoolError, match=r"session\.json: expected the owner of a spool"):
        Spool(tmp_path)
    (tmp_path / "session.json").unlink()
    Spool(tmp_path).close()


def test_a_full_disk_costs_the_oldest_then_the_newest_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dropped: list[tuple[int, int]] = []
    spool = Spool(tmp_path, max_bytes=2000, on_drop=lambda *span: dropped.append(span))
    for position in range(10):
        spool.add(position, 0, ONE)
    n_files = len(list(tmp_path.glob("spool.*")))
    append = Log.append

    def refuse(log: Log, payload: bytes) -> int:
        if len(list(tmp_path.glob("spool.*"))) < n_files:
            return append(log, payload)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Log, "append", refuse)
    assert spool.add(10, 0, ONE) is not None
    assert dropped == [(0, spool.start)]
    assert spool.start > 0

    n_files = 0
    while spool.add(spool.next_position, 0, ONE) is not None:
        pass
    lost = spool.next_position - 1
    assert dropped[-1] == (lost, lost + 1)
    assert spool.end == lost
    monkeypatch.undo()
    assert spool.add(lost + 1, 0, ONE) is not None
    assert spans(spool)[-1] == (lost + 1, lost + 2)
    assert [record.getMessage() for record in caplog.records].count(
        "the spool cannot be written: No space left on device"
    ) == 2
    spool.close()


def test_damage_to_a_spool_costs_no_chunk_but_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path, max_bytes=1 << 20)
    for position in range(0, 400, 4):
        spool.add(position, position * 1000, chunk(position, 4, 2))
    spool.close()
    (path,) = tmp_path.glob("spool.*.v1")
    chunk_bytes = path.stat().st_size // 100
    for n in (0, 40, 41, 99):
        damage(path, n * chunk_bytes + 30)
    spool = Spool(tmp_path, max_bytes=1 << 20)
    kept = [n for n in range(100) if n not in {0, 40, 41, 99}]
    assert spans(spool) == [(4 * n, 4 * n + 4) for n in kept]
    assert (spool.start, spool.end) == (4, 396)
    for piece in spool.since(0):
        check(piece)
    spool.forget(396)
    spool.add(396, 0, ONE)
    assert spans(spool)[-1] == (396, 397)
    spool.close()
    assert len([message for message in caplog.messages if "damaged and lost" in message]) == 2
    assert len(list(tmp_path.glob("*.damaged"))) == 3
