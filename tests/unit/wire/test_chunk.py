"""Samples on their way, and the binary chunk byte by byte."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zander.errors import BadMessage
from zander.wire.chunk import (
    BINARY_HEADER_BYTES,
    BINARY_LAYOUT,
    MAX_CHUNK_BYTES,
    MAX_DRIFT_US,
    MAX_POSITION,
    Chunk,
    Origin,
    RawIn,
    decode_binary,
    encode_binary,
    join,
    join_binary,
    period_us,
    read_header,
)

ORIGIN = Origin("me", "s", 7812.5)
NAN = float("nan")


def chunk(position: int, n: int, *, n_channels: int = 2, start_us: int = 0, origin: Origin = ORIGIN) -> Chunk:
    """Samples whose first channel is their position."""
    samples = np.full((n, n_channels), 0.5, np.float32)
    samples[:, 0] = np.arange(position, position + n)
    times_us = start_us + np.round(np.arange(position, position + n) * origin.period_us).astype(np.int64)
    return Chunk(origin, position, times_us, samples)


def same(got: Chunk, expected: Chunk) -> bool:
    return (
        got.origin is expected.origin
        and got.position == expected.position
        and got.times_us.tolist() == expected.times_us.tolist()
        and got.samples.tobytes() == expected.samples.tobytes()
        and got.samples.shape == expected.samples.shape
    )


# Origin.


def test_a_frame_is_the_original_message_with_where_it_comes_from() -> None:
    assert ORIGIN.frame(7, 1_764_000_000_123_456, "channels", np.array([0.1, -2.5], np.float32)) == (
        '{"type":"raw","user_id":"me","session_id":"s","position":7,"timestamp":1764000000.123456,"channels":[0.1,-2.5]}'
    )


def test_a_frame_is_json_whatever_the_user_is_called_and_whatever_the_time_is() -> None:
    for user_id in ('"', "\\", "Zoë", "😀", "</script>"):
        for time_us in (0, 1, 999_999, 10**18):
            message = json.loads(
                Origin(user_id, "s", 0.0).frame(0, time_us, "channels", np.array([NAN, -0.0], np.float32))
            )
            assert message == {
                "type": "raw",
                "user_id": user_id,
                "session_id": "s",
                "position": 0,
                "timestamp": time_us / 1e6,
                "channels": [None, 0.0],
            }


# Chunk.


def test_a_chunk_ends_after_its_last_sample() -> None:
    assert (len(chunk(5, 3)), chunk(5, 3).end) == (3, 8)


def test_in_json_every_sample_is_a_message() -> None:
    assert chunk(5, 2).json_frames == [
        '{"type":"raw","user_id":"me","session_id":"s","position":5,"timestamp":0.039062,"channels":[5.0,0.5]}',
        '{"type":"raw","user_id":"me","session_id":"s","position":6,"timestamp":0.046875,"channels":[6.0,0.5]}',
    ]


def test_in_chunks_all_samples_are_one_message() -> None:
    assert chunk(5, 2).chunk_frame == (
        '{"type":"raw","user_id":"me","session_id":"s","position":5,"timestamp":0.039062,"samples":[[5.0,0.5],[6.0,0.5]]}'
    )


def test_in_binary_position_and_time_are_always_set() -> None:
    assert chunk(5, 1).binary_frame == bytes.fromhex(
        "01 01 01 00  0200 0100  0500000000000000  9698000000000000  0000a040 0000003f"
    )


def test_each_encoding_is_made_once() -> None:
    one = chunk(0, 3)
    assert one.json_frames is one.json_frames
    assert one.chunk_frame is one.chunk_frame
    assert one.binary_frame is one.binary_frame


def test_a_piece_has_the_messages_that_were_made_before_it_was_cut() -> None:
    whole = chunk(5, 7)
    frames = whole.json_frames
    pieces = whole.pieces(3)
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    assert [id(frame) for piece in pieces for frame in piece.json_frames] == [id(frame) for frame in frames]


@given(n=st.integers(1, 40_000), n_channels=st.sampled_from([1, 2, 8, 64, 1024]))
def test_pieces_are_small_and_miss_nothing(n: int, n_channels: int) -> None:
    n = max(1, n // n_channels)
    whole = chunk(3, n, n_channels=n_channels)
    pieces = whole.pieces()
    assert all(piece.samples.nbytes <= MAX_CHUNK_BYTES for piece in pieces)
    assert len(pieces) == -(-whole.samples.nbytes // MAX_CHUNK_BYTES)
    assert same(join(pieces), whole)
    for before, after in pairwise(pieces):
        assert before.end == after.position
    for piece in pieces:
        assert decode_binary(piece.binary_frame).position == piece.position
    assert max(map(len, whole.pieces(256))) <= 256
    assert same(join(whole.pieces(256)), whole)


def test_a_sample_that_is_larger_than_a_piece_is_a_piece() -> None:
    n_channels = MAX_CHUNK_BYTES // 4 + 1
    assert [len(piece) for piece in chunk(0, 3, n_channels=n_channels).pieces()] == [1, 1, 1]


def test_a_chunk_cannot_be_written_to() -> None:
    whole = chunk(5, 4)
    for array in (whole.samples, whole.times_us):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_since_a_position_the_earlier_samples_are_cut_off() -> None:
    whole = chunk(5, 4)
    assert whole.since(0) is whole
    assert whole.since(5) is whole
    assert same(whole.since(7), chunk(7, 2))
    assert len(whole.since(9)) == 0


def test_it_is_cut_where_its_times_are_not_those_of_its_places() -> None:
    times_us = np.array([0, 7812, 15_625, 90_000, 97_812, 50_000_000, 50_060_000])
    whole = Chunk(ORIGIN, 5, times_us, np.zeros((7, 2), np.float32))
    parts = whole.steady()
    assert [(part.position, part.end) for part in parts] == [(5, 8), (8, 10), (10, 11), (11, 12)]
    assert np.concatenate([part.times_us for part in parts]).tolist() == times_us.tolist()
    [steady] = chunk(5, 1000).steady()
    assert same(steady, chunk(5, 1000))


def test_a_chunk_follows_another_in_position_and_in_time() -> None:
    first = chunk(5, 4)
    assert chunk(9, 1).follows(first, 4)
    assert not chunk(10, 1).follows(first, 4)
    assert not chunk(8, 1).follows(first, 4)
    assert chunk(9, 1, start_us=MAX_DRIFT_US).follows(first, 4)
    assert chunk(9, 1, start_us=-MAX_DRIFT_US).follows(first, 4)
    assert not chunk(9, 1, start_us=MAX_DRIFT_US + 1).follows(first, 4)
    assert not chunk(9, 1, start_us=-MAX_DRIFT_US - 1).follows(first, 4)
    clamped = Chunk(ORIGIN, 9, np.full(10, chunk(9, 1).times_us[0]), np.zeros((10, 2), np.float32))
    assert not clamped.follows(first, 4)  # its first sample is in time, its last is not


def test_a_chunk_does_not_follow_one_of_another_session() -> None:
    assert not chunk(9, 1, origin=Origin("me", "t", 7812.5)).follows(chunk(5, 4), 4)


def test_chunks_that_follow_each_other_are_joined_to_one() -> None:
    one = chunk(5, 2)
    assert join([one]) is one
    assert same(join([one, chunk(7, 1), chunk(8, 3)]), chunk(5, 6))


# The binary chunk, written by hand from the protocol's table.

VECTORS = {
    "one sample of two channels": (
        "01 01 01 00  0200 0100  0500000000000000  0100000000000000  0000803f 000020c0",
        RawIn(5, 1, np.array([[1.0, -2.5]], np.float32)),
    ),
    "the server counts and stamps": (
        "01 01 01 00  0100 0100  ffffffffffffffff  0000000000000080  00000000",
        RawIn(None, None, np.array([[0.0]], np.float32)),
    ),
    "two samples of three channels, sample by sample": (
        "01 01 01 00  0300 0200  0000000000000000  0000000000000000"
        "00000000 0000803f 00000040  0000803f 00004040 00008040",
        RawIn(0, 0, np.array([[0, 1, 2], [1, 3, 4]], np.float32)),
    ),
    "a missing value, minus zero, the smallest and the largest": (
        "01 01 01 00  0400 0100  0100000000000000  0000000000000000  0000c07f 00000080 01000000 ffff7f7f",
        RawIn(1, 0, np.array([[NAN, -0.0, 1e-45, 3.4028235e38]], np.float32)),
    ),
    "the last position, and a time in 2025": (
        "01 01 01 00  0100 0100  ffffffffffff1f00  4022644159440600  000000bf",
        RawIn((1 << 53) - 1, 1_764_000_000_123_456, np.array([[-0.5]], np.float32)),
    ),
    "a time before 1970, which is for the session to refuse": (
        "01 01 01 00  0100 0100  0000000000000000  ffffffffffffffff  00000000",
        RawIn(0, -1, np.array([[0.0]], np.float32)),
    ),
}


@pytest.mark.parametrize(("text", "raw"), VECTORS.values(), ids=VECTORS)
def test_a_binary_chunk_has_these_bytes(text: str, raw: RawIn) -> None:
    data = bytes.fromhex(text)
    assert encode_binary(raw) == data
    got = decode_binary(data)
    assert (got.position, got.time_us) == (raw.position, raw.time_us)
    assert got.samples.shape == raw.samples.shape
    assert got.samples.dtype == np.float32
    assert got.samples.tobytes() == raw.samples.tobytes()


def test_the_largest_counts_fit() -> None:
    for shape in ((65_535, 1), (1, 65_535)):
        assert decode_binary(encode_binary(RawIn(None, None, np.zeros(shape, np.float32)))).samples.shape == shape


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "bad_length"),
        ("01", "bad_length"),
        ("01 01 01 00  0100 0100  0000000000000000  00000000000000", "bad_length"),
        ("00 01 01 00  0100 0100  0000000000000000  0000000000000000  00000000", "bad_header"),
        ("02 01 01 00  0100 0100  0000000000000000  0000000000000000  00000000", "bad_header"),
        ("01 02 01 00  0100 0100  0000000000000000  0000000000000000  00000000", "bad_header"),
        ("01 01 02 00  0100 0100  0000000000000000  0000000000000000  00000000", "bad_header"),
        ("01 01 01 01  0100 0100  0000000000000000  0000000000000000  00000000", "bad_header"),
        ("01 01 01 00  0000 0100  0000000000000000  0000000000000000", "bad_length"),
        ("01 01 01 00  0100 0000  0000000000000000  0000000000000000", "bad_length"),
        ("01 01 01 00  0100 0100  0000000000000000  0000000000000000", "bad_length"),
        ("01 01 01 00  0100 0100  0000000000000000  0000000000000000  000000", "bad_length"),
        ("01 01 01 00  0100 0100  0000000000000000  0000000000000000  0000000000", "bad_length"),
        ("01 01 01 00  0001 0001  0000000000000000  0000000000000000  00000000", "bad_length"),
        ("01 01 01 00  0100 0100  feffffffffffffff  0000000000000000  00000000", "bad_position"),
        ("01 01 01 00  0100 0100  0000000000002000  0000000000000000  00000000", "bad_position"),
        ("01 01 01 00  0100 0100  ffffffffffffff7f  0000000000000000  00000000", "bad_position"),
        ("01 01 01 00  0100 0100  0000000000000000  0000000000000000  0000807f", "bad_value"),
        ("01 01 01 00  0100 0100  0000000000000000  0000000000000000  000080ff", "bad_value"),
        ("01 01 01 00  0300 0100  0000000000000000  0000000000000000  0000803f 0000807f 0000c07f", "bad_value"),
    ],
)
def test_bytes_that_are_no_binary_chunk_are_refused(text: str, code: str) -> None:
    with pytest.raises(BadMessage) as refused:
        decode_binary(bytes.fromhex(text))
    assert refused.value.code == code
    assert "expected" in refused.value.message
    assert "got" in refused.value.message


FLOAT32 = st.floats(width=32, allow_infinity=False) | st.sampled_from(
    [NAN, -0.0, 1e-45, -1e-45, float(np.finfo("f4").max)]
)


@st.composite
def raws(draw: st.DrawFn) -> RawIn:
    n_samples, n_channels = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    values = draw(st.lists(FLOAT32, min_size=n_samples * n_channels, max_size=n_samples * n_channels))
    position = draw(st.none() | st.integers(0, MAX_POSITION))
    time_us = draw(st.none() | st.integers(-(1 << 63) + 1, (1 << 63) - 1))
    return RawIn(position, time_us, np.array(values, np.float32).reshape(n_samples, n_channels))


@given(raws())
def test_what_is_encoded_is_decoded_to_the_bit(raw: RawIn) -> None:
    got = decode_binary(encode_binary(raw))
    assert (got.position, got.time_us) == (raw.position, raw.time_us)
    assert got.samples.shape == raw.samples.shape
    assert got.samples.tobytes() == raw.samples.tobytes()


@given(st.binary(max_size=64) | st.binary(max_size=40).map(lambda rest: b"\1\1\1\0" + rest))
def test_any_bytes_are_a_binary_chunk_or_refused(data: bytes) -> None:
    read_or_refused(data)


@given(raws(), st.data())
def test_a_binary_chunk_with_a_few_wrong_bytes_is_another_one_or_refused(raw: RawIn, data: Any) -> None:
    damaged = bytearray(encode_binary(raw))
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    at = data.draw(st.integers(0, len(damaged)))
    read_or_refused(bytes(damaged[:at] + data.draw(st.binary(max_size=2)) + damaged[at:]))
    read_or_refused(bytes(damaged[:at]))


def test_joined_binary_chunks_are_the_binary_chunk_of_all_their_samples() -> None:
    samples = np.arange(12, dtype=np.float32).reshape(6, 2)
    frames = [encode_binary(RawIn(7 + i, 1000 * i, samples[i : i + 2])) for i in (0, 2, 4)]
    assert join_binary(frames) == encode_binary(RawIn(7, 0, samples))
    assert join_binary(frames[1:2]) == frames[1]


def test_the_header_of_a_binary_chunk_is_read_without_its_samples() -> None:
    frame = encode_binary(RawIn(7, -5, np.zeros((3, 2), np.float32)))
    assert read_header(frame) == read_header(frame[:BINARY_HEADER_BYTES]) == (2, 3, 7, -5)
    assert [name for _, name, _ in BINARY_LAYOUT[4:8]] == ["n_channels", "n_samples", "position", "time_us"]


@pytest.mark.parametrize(
    ("sampling_rate", "expected_us"), [(128, 7812.5), (0.5, 2e6), (0, 0.0), (-1, 0.0), (None, 0.0), ("128", 0.0)]
)
def test_the_period_is_that_of_the_sampling_rate_or_unknown(sampling_rate: object, expected_us: float) -> None:
    assert period_us(sampling_rate) == expected_us


@given(n_channels=st.integers(0, 65_535), n_samples=st.integers(0, 65_535), n_values=st.integers(0, 8))
def test_counts_are_never_believed_beyond_the_bytes_that_came(n_channels: int, n_samples: int, n_values: int) -> None:
    read_or_refused(struct.pack("<BBBBHHqq", 1, 1, 1, 0, n_channels, n_samples, 0, 0) + bytes(4 * n_values))


def read_or_refused(data: bytes) -> None:
    """Every frame that is read is the only one that says the same."""
    try:
        raw = decode_binary(data)
    except BadMessage:
        return
    assert encode_binary(raw) == data
