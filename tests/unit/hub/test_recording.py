"""Records of a stream, and their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from support.samples import T0_US
from zander.hub.recording import Recording
from zander.journal.records import GapRecord, PredictionRecord, SessionRecord
from zander.streams.session import Session
from zander.wire.chunk import Chunk, RawIn
from zander.wire.messages import DeviceInfo, Gap, Prediction


class Notebook:
    """A RecordSink that writes down what it is told; `takes`: whether it has room."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.takes = True
        self.n_dropped = 0

    def drop(self, n_records: int) -> None:
        self.n_dropped += n_records

    def record(self, record: SessionRecord | GapRecord) -> None:
        kind = "session" if isinstance(record, SessionRecord) else record.reason
        assert record.fence == 3
        self.told.append(
            (kind, record.end_us) if isinstance(record, SessionRecord) else (kind, record.start, record.end)
        )

    def record_chunk(self, chunk: Chunk, fence: int) -> bool:
        assert fence == 3
        if self.takes:
            self.told.append(("raw", chunk.position, chunk.end))
        return self.takes

    def takes_from(self, user_id: str, kind: str = "samples", client: object = None) -> bool:
        return self.takes

    def record_frames(self, frames: bytes, n_samples: int, sizes: object = None) -> bool:
        raise AssertionError("only the native path has frames")

    def record_prediction(self, record: PredictionRecord) -> bool:
        self.told.append(record)
        return True

    async def pending(self, *_: object) -> list[Chunk | Gap]:
        return []


class Stream:
    """A session, and what was lost of it."""

    def __init__(self, recording: Recording) -> None:
        device = {"sampling_rate": 128, "extra": "kept"}
        self.session = Session("user", "a-session", T0_US, DeviceInfo(sampling_rate=128), device, fence=3)
        self.lost_from: int | None = None
        self._ledger = recording

    def send(self, position: int, n: int = 1) -> bool:
        gap, chunk, _ = self.session.accept(RawIn(position, T0_US, np.zeros((n, 1), np.float32)), T0_US)
        assert chunk
        return self._ledger.raw(self, gap, chunk, T0_US)  # type: ignore[arg-type]


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
def recording(notebook: Notebook) -> Recording:
    return Recording(notebook)


@pytest.fixture
def stream(recording: Recording) -> Stream:
    return Stream(recording)


def end(recording: Recording, stream: Stream) -> None:
    recording.end(stream, T0_US + 5)  # type: ignore[arg-type]


def test_a_session_begins_and_ends(recording: Recording, notebook: Notebook, stream: Stream) -> None:
    recording.begin(stream.session)
    assert stream.send(0, 5)
    end(recording, stream)
    assert notebook.told == [("session", None), ("raw", 0, 5), ("session", T0_US + 5)]


def test_a_gap_is_recorded_before_the_samples_behind_it(notebook: Notebook, stream: Stream) -> None:
    stream.send(0)
    stream.send(5)
    assert notebook.told == [("raw", 0, 1), ("relay", 1, 5), ("raw", 5, 6)]


def test_what_found_no_room_is_one_gap_before_what_does(notebook: Notebook, stream: Stream) -> None:
    stream.send(0, 5)
    notebook.takes = False
    assert [stream.send(position) for position in (5, 6, 9)] == [False] * 3
    notebook.takes = True
    assert stream.send(12)
    stream.send(14)
    assert notebook.told == [("raw", 0, 5), ("lost", 5, 12), ("raw", 12, 13), ("relay", 13, 14), ("raw", 14, 15)]


def test_a_relays_own_gap_is_told_even_if_there_is_no_room_behind_it(notebook: Notebook, stream: Stream) -> None:
    notebook.takes = False
    assert not stream.send(4, 2)
    notebook.takes = True
    stream.send(6)
    assert notebook.told == [("relay", 0, 4), ("lost", 4, 6), ("raw", 6, 7)]


def test_what_is_lost_at_the_end_of_a_session_is_told_with_it(
    recording: Recording, notebook: Notebook, stream: Stream
) -> None:
    stream.send(0)
    notebook.takes = False
    stream.send(1, 7)
    end(recording, stream)
    end(recording, stream)
    assert notebook.told == [("raw", 0, 1), ("lost", 1, 8), ("session", T0_US + 5), ("session", T0_US + 5)]


def test_room_that_is_gone_again_begins_a_new_loss(notebook: Notebook, stream: Stream) -> None:
    notebook.takes = False
    stream.send(0)
    take = notebook.record

    def full_again(record: SessionRecord | GapRecord) -> None:
        take(record)
        notebook.takes = False

    notebook.takes = True
    notebook.record = full_again  # type: ignore[method-assign]
    assert not stream.send(3)
    notebook.takes = True
    notebook.record = take  # type: ignore[method-assign]
    stream.send(4)
    assert notebook.told == [("lost", 0, 3), ("lost", 3, 4), ("raw", 4, 5)]


def test_features_and_predictions_are_recorded_with_whose_they_are(
    recording: Recording, notebook: Notebook, stream: Stream
) -> None:
    recording.features(stream.session, {"workload": 0.5}, 0.9, T0_US)
    given = Prediction(prediction_type="type", classifier_name="name", data={"confidence": 0.5}, version="v1")
    recording.prediction(stream.session, given, T0_US)
    who = ("a-session", T0_US, "user")
    assert notebook.told == [
        PredictionRecord(*who, "workload_edge", "edge_relay", '{"workload":0.5}', 0.9, None),
        PredictionRecord(*who, "type", "name", '{"confidence":0.5}', 0.5, "v1"),
    ]
