"""A stream's buffers, and what a dashboard is told of them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from support.clock import Clock
from zander.delivery.outbox import Outbox
from zander.errors import Conflict, NotFound
from zander.streams.notes import MAX_BYTES, note_bytes
from zander.streams.query import MAX_FOUND_BYTES, Query, answer, find
from zander.streams.ring import RUN_BYTES
from zander.streams.session import Session
from zander.streams.stream import RECENT_NOTES, Rates, Stream
from zander.wire.bodies import Answer
from zander.wire.chunk import RawIn, decode_binary
from zander.wire.codec import dumps
from zander.wire.messages import DeviceInfo, Item, Kind, Note, Status

NOW_US = 1_764_000_000_000_000
DEVICE = DeviceInfo(sampling_rate=100, channel_names=["C3", "Zö\n"])


@pytest.fixture
async def stream() -> Stream:
    return make_stream(DEVICE)


def make_stream(device: DeviceInfo, buffer_samples: int = 10) -> Stream:
    session = Session("me", "s", NOW_US, device, {"sampling_rate": 100, "firmware": "7"})
    return Stream(session, Outbox("me", types=()), buffer_samples)


def write(stream: Stream, position: int, n: int = 1, *, n_channels: int = 2) -> None:
    """Write samples whose first channel is their position, 10 ms apart."""
    samples = np.full((n, n_channels), 0.5, np.float32)
    samples[:, 0] = np.arange(position, position + n)
    time_us = NOW_US + 10_000 * position
    accepted = stream.session.accept(RawIn(position, time_us, samples), time_us + 10_000 * n).chunk
    assert accepted
    stream.write(accepted)


def note(name: str, kind: Kind = "features", time_us: int = NOW_US) -> Note:
    return Note(kind, time_us, dumps({"type": kind, "name": name}))


def ask(stream: Stream, **fields: Any) -> Any:
    query = Query("me", **fields)
    found = answer(query, find(stream, query))
    assert (found.content_type, found.headers) == ("application/json", {})
    return json.loads(b"".join(found.pieces))


def ask_npy(stream: Stream, **fields: Any) -> tuple[Any, Answer]:
    query = Query("me", sample_type="raw", format="npy", **fields)
    found = answer(query, find(stream, query))
    assert found.content_type == "application/octet-stream"
    return np.load(io.BytesIO(b"".join(found.pieces)), allow_pickle=False), found


def names(texts: list[dict[str, Any]]) -> list[str]:
    return [text["name"] for text in texts]


def names_of(notes: Sequence[Item]) -> list[str]:
    """The names of events that are notes, all of them."""
    found = [note for note in notes if isinstance(note, Note)]
    assert found == [*notes]
    return names([json.loads(note.text) for note in found])


# The stream.


def test_rates_are_those_of_the_last_five_seconds(clock: Clock) -> None:
    rates, n = Rates(2), 0
    assert rates.per_second(0, 0) == [0.0, 0.0]
    for per_second in [1000] * 10 + [128] * 5:
        clock.now_s += 1
        n += per_second
        rates.tick(n, 7)
    assert rates.per_second(n, 7) == [128.0, 0.0]
    clock.now_s += 5
    assert rates.per_second(n, 7) == [64.0, 0.0]


async def test_a_stream_is_online_while_it_has_a_relay(stream: Stream) -> None:
    assert stream.online
    stream.relay = None
    assert not stream.online


async def test_without_a_device_the_first_sample_says_how_many_channels_are_buffered() -> None:
    stream = make_stream(DeviceInfo(sampling_rate=100))
    write(stream, 0, 2, n_channels=5)
    write(stream, 2, 1, n_channels=5)
    [run] = stream.ring.last(10)
    assert run.samples.shape == (3, 5)
    assert stream.ring.capacity == 10


async def test_notes_are_buffered_by_kind(stream: Stream) -> None:
    for kind in ("features", "prediction", "gap", "status"):
        stream.note(note(kind, kind))
    assert (len(stream.features), len(stream.predictions), stream.n_notes) == (1, 1, 4)


async def test_what_was_noted_lately_can_be_asked_for_by_number(stream: Stream) -> None:
    for i in range(3):
        stream.note(note(str(i)))
    assert [names_of(stream.items_since(0, n)) for n in range(5)] == [
        ["0", "1", "2"],
        ["1", "2"],
        ["2"],
        [],
        [],
    ]
    for i in range(3, RECENT_NOTES + 10):
        stream.note(note(str(i)))
    assert len(stream.items_since(0, 0)) == RECENT_NOTES
    assert len(stream.items_since(0, RECENT_NOTES)) == 10


async def test_recent_notes_are_bounded_in_bytes_and_everything_kept_is_counted() -> None:
    for buffer_samples in (10, 1000):
        stream = make_stream(DEVICE, buffer_samples)
        at_first = stream.nbytes
        assert at_first > sum(buffer.nbytes for buffer in stream.buffers)
        for i in range(RECENT_NOTES):
            stream.note(note("x" * 60_000, "prediction" if i % 2 else "features"))
        assert stream.recent.nbytes <= MAX_BYTES
        assert len(stream.items_since(0, 0)) == MAX_BYTES // 60_000
        kept = {id(it): it for notes in (stream.features, stream.predictions, stream.recent) for it in notes.last(999)}
        assert stream.nbytes - at_first >= sum(map(note_bytes, kept.values()))
        assert stream.stats().bytes == stream.nbytes < 4 * MAX_BYTES


async def test_what_the_ring_holds_becomes_chunks_of_the_session(stream: Stream) -> None:
    write(stream, 0, 3)
    write(stream, 5, 2)
    chunks = stream.chunks(stream.ring.last(10))
    assert [(chunk.position, len(chunk)) for chunk in chunks] == [(0, 3), (5, 2)]
    assert all(chunk.origin is stream.session.origin for chunk in chunks)


async def test_a_large_ring_is_read_in_pieces_that_fit_a_message() -> None:
    stream = make_stream(DeviceInfo(sampling_rate=100, channel_count=64), buffer_samples=5000)
    write(stream, 0, 5000, n_channels=64)
    chunks = stream.chunks(stream.ring.last(5000))
    assert len(chunks) > 1
    positions = [position for chunk in chunks for position in range(chunk.position, chunk.end)]
    assert positions == list(range(5000))
    assert all(decode_binary(chunk.binary_frame).position == chunk.position for chunk in chunks)


async def test_the_last_notes_are_features_and_predictions_by_time(stream: Stream) -> None:
    for i in range(4):
        stream.note(note(f"f{i}", "features", NOW_US + 2 * i))
        stream.note(note(f"p{i}", "prediction", NOW_US + 2 * i + 1))
    assert names_of(stream.last_items(2)) == ["f2", "p2", "f3", "p3"]
    assert stream.last_items(0) == []


async def test_its_status_says_what_the_relay_said_of_its_device(stream: Stream) -> None:
    assert stream.status() == Status("me", True, "s", {"sampling_rate": 100, "firmware": "7"})
    stream.relay = None
    assert stream.status().online is False


async def test_its_summary_is_a_line_of_those_online(clock: Clock) -> None:
    stream = make_stream(DEVICE)
    write(stream, 3, 5)
    clock.now_s += 0.5
    assert json.loads(dumps(stream.summary())) == {
        "user_id": "me",
        "session_id": "s",
        "start_time": 1764000000.0,
        "rate": 10.0,
        "next_position": 8,
        "device_info": {"sampling_rate": 100, "firmware": "7"},
    }


async def test_a_tick_takes_all_three_rates(clock: Clock) -> None:
    stream = make_stream(DEVICE)
    for second in range(10):
        clock.now_s += 1
        write(stream, 5 * second, 5)
        stream.note(note("f"))
        stream.tick()
    stats = stream.stats()
    assert (stats.raw.rate, stats.features.rate, stats.prediction.rate) == (5.0, 1.0, 0.0)


# What a dashboard asks.


async def test_stats_tell_everything_about_the_buffers(clock: Clock) -> None:
    stream = make_stream(DEVICE)
    write(stream, 2, 8)
    write(stream, 0, 12)
    write(stream, 13, 1)
    stream.note(note("f"))
    stream.session.count_bad()
    clock.now_s += 10
    assert ask(stream, what="stats") == {
        "user_id": "me",
        "session_id": "s",
        "online": True,
        "next_position": 14,
        "bad_messages": 1,
        "bytes": stream.nbytes,
        "raw": {
            "held": 10,
            "capacity": 10,
            "rate": 1.1,
            "first_time": 1764000000.03,
            "last_time": 1764000000.13,
            "bytes": 160,
            "gaps": 2,
            "duplicates": 10,
            "clamped": 0,
        },
        "features": {
            "held": 1,
            "capacity": 10,
            "rate": 0.1,
            "first_time": 1764000000.0,
            "last_time": 1764000000.0,
            "bytes": note_bytes(note("f")),
            "gaps": 0,
            "duplicates": 0,
            "clamped": 0,
        },
        "prediction": {
            "held": 0,
            "capacity": 10,
            "rate": 0.0,
            "first_time": None,
            "last_time": None,
            "bytes": 0,
            "gaps": 0,
            "duplicates": 0,
            "clamped": 0,
        },
    }


async def test_a_sample_of_1970_has_a_time(stream: Stream) -> None:
    stream.note(note("f", time_us=0))
    assert ask(stream, what="stats")["features"]["first_time"] == 0


async def test_the_latest_is_the_message_itself(stream: Stream) -> None:
    write(stream, 0, 3)
    stream.note(note("f0"))
    stream.note(note("f1"))
    stream.note(note("p0", "prediction"))
    assert ask(stream, what="latest") == {"type": "features", "name": "f1"}
    assert ask(stream, what="latest", sample_type="prediction") == {"type": "prediction", "name": "p0"}
    assert ask(stream, what="latest", sample_type="raw") == {
        "type": "raw",
        "user_id": "me",
        "session_id": "s",
        "position": 2,
        "timestamp": 1764000000.02,
        "channels": [2.0, 0.5],
    }


async def test_the_last_n_are_a_list_oldest_first(stream: Stream) -> None:
    for i in range(4):
        stream.note(note(str(i)))
    found = ask(stream, what="last", n=3)
    assert names(found.pop("samples")) == ["1", "2", "3"]
    assert found == {"user_id": "me", "sample_type": "features", "n": 3}
    assert ask(stream, what="last", n=9)["n"] == 4


async def test_the_last_n_raw_go_over_holes(stream: Stream) -> None:
    write(stream, 0, 3)
    write(stream, 5, 2)
    found = ask(stream, what="last", n=4, sample_type="raw")
    assert found["n"] == 4
    assert [sample["position"] for sample in found["samples"]] == [1, 2, 5, 6]
    assert [sample["channels"][0] for sample in found["samples"]] == [1, 2, 5, 6]


async def test_a_range_holds_its_start_and_not_its_end(stream: Stream) -> None:
    write(stream, 0, 8)
    found = ask(stream, what="range", sample_type="raw", start_us=NOW_US + 20_000, end_us=NOW_US + 40_000)
    assert [sample["position"] for sample in found["samples"]] == [2, 3]
    for i in range(4):
        stream.note(note(str(i), time_us=NOW_US + i))
    found = ask(stream, what="range", start_us=NOW_US + 1, end_us=NOW_US + 3)
    assert names(found["samples"]) == ["1", "2"]


async def test_a_range_without_samples_is_an_empty_list(stream: Stream) -> None:
    write(stream, 0, 3)
    stream.note(note("f"))
    for sample_type in ("raw", "features"):
        assert ask(stream, what="range", sample_type=sample_type, start_us=0, end_us=5) == {
            "user_id": "me",
            "sample_type": sample_type,
            "n": 0,
            "samples": [],
        }


@pytest.mark.parametrize("sample_type", ["raw", "features", "prediction"])
@pytest.mark.parametrize("what", ["latest", "last", "range"])
async def test_an_empty_buffer_is_not_found(stream: Stream, what: str, sample_type: str) -> None:
    with pytest.raises(NotFound, match=f"no {sample_type} of user me"):
        ask(stream, what=what, sample_type=sample_type)


async def test_raw_as_npy_is_what_numpy_loads(stream: Stream) -> None:
    write(stream, 0, 3)
    write(stream, 5, 2)
    samples, found = ask_npy(stream, what="last", n=4)
    assert samples.dtype == np.float32
    assert samples.tolist() == [[1, 0.5], [2, 0.5], [5, 0.5], [6, 0.5]]
    assert found.headers == {
        "X-Session-Id": "s",
        "X-Positions": "[[1, 3], [5, 7]]",
        "X-Channel-Names": '["C3", "Z\\u00f6\\n"]',
        "X-Position": "1",
        "X-Time": "1764000000.01",
        "X-Time-Last": "1764000000.06",
    }


async def test_headers_are_of_ascii_and_one_line(stream: Stream) -> None:
    write(stream, 0, 3)
    _, found = ask_npy(stream, what="latest")
    for value in found.headers.values():
        assert value.isascii()
        assert value.isprintable()


async def test_samples_that_were_cut_in_pieces_are_one_run() -> None:
    stream = make_stream(DeviceInfo(sampling_rate=100, channel_count=64), buffer_samples=5000)
    write(stream, 0, 5000, n_channels=64)
    samples, found = ask_npy(stream, what="last", n=5000)
    assert samples[:, 0].tolist() == list(range(5000))
    assert found.headers["X-Positions"] == "[[0, 5000]]"


async def test_a_missing_value_is_null_in_json_and_nan_in_npy(stream: Stream) -> None:
    samples = np.array([[np.nan, 1.0]], np.float32)
    accepted = stream.session.accept(RawIn(0, NOW_US, samples), NOW_US).chunk
    assert accepted
    stream.write(accepted)
    assert ask(stream, what="latest", sample_type="raw")["channels"] == [None, 1.0]
    assert ask_npy(stream, what="latest")[0].tobytes() == samples.tobytes()


async def test_an_empty_range_as_npy_has_the_right_shape(stream: Stream) -> None:
    write(stream, 0, 3)
    samples, found = ask_npy(stream, what="range", start_us=0, end_us=5)
    assert samples.shape == (0, 2)
    assert found.headers["X-Positions"] == "[]"
    assert "X-Position" not in found.headers


@pytest.mark.parametrize("sample_type", ["features", "prediction"])
async def test_only_raw_is_npy(stream: Stream, sample_type: str) -> None:
    stream.note(note("f", sample_type))  # type: ignore[arg-type]
    with pytest.raises(Conflict):
        find(stream, Query("me", "last", sample_type, 1, format="npy"))  # type: ignore[arg-type]


async def test_headers_that_a_proxy_would_refuse_are_left_out_and_named() -> None:
    names = [f"a long name of channel {i}" for i in range(64)]
    stream = make_stream(DeviceInfo(sampling_rate=100, channel_names=names), buffer_samples=1000)
    for position in range(0, 400, 2):
        write(stream, position, n_channels=64)
    samples, found = ask_npy(stream, what="last", n=1000)
    assert len(samples) == 200
    assert set(found.headers.pop("X-Omitted").split(", ")) == {"X-Positions", "X-Channel-Names"}
    assert sum(map(len, found.headers.values())) < 1024


async def test_more_than_one_answer_may_take_is_refused() -> None:
    stream = make_stream(DeviceInfo(sampling_rate=100, channel_count=1024), buffer_samples=9000)
    write(stream, 0, 9000, n_channels=1024)
    n_most = MAX_FOUND_BYTES // (4 * 1024 + 8)
    query = Query("me", "last", "raw", n_most)
    assert sum(map(len, find(stream, query).items)) == n_most
    for too_much in (
        Query("me", "last", "raw", n_most + 1),
        Query("me", "range", "raw", start_us=0, end_us=1 << 60, format="npy"),
    ):
        with pytest.raises(Conflict, match=f"at most {n_most} samples"):
            find(stream, too_much)


async def test_what_is_found_goes_free_sample_by_sample() -> None:
    """A long answer must not hold all its samples until the last one is sent."""
    stream = make_stream(DeviceInfo(sampling_rate=100, channel_count=1024), buffer_samples=100)
    write(stream, 0, 150, n_channels=1024)
    for chunk in stream.chunks(stream.ring.last(100)):
        base = chunk.samples if chunk.samples.base is None else chunk.samples.base
        assert base.nbytes <= RUN_BYTES
