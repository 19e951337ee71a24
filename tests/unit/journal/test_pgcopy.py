from __future__ import annotations

import struct
import uuid

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zander.journal.pgcopy import EPOCH_US, RowEncoder, decode_rows, row_encoder
from zander.wire.chunk import Chunk, Origin

SESSION_ID = "0123456789abcdef0123456789abcdef"
ORIGIN = Origin("Zoë", str(uuid.UUID(SESSION_ID)), 7812.5)


def row(origin: Origin, time_us: int, position: int, values: list[float]) -> bytes:
    """A row as the manual of PostgreSQL describes it, field by field."""
    channels = struct.pack(">iiiii", 1, 0, 700, len(values), 1)
    channels += b"".join(struct.pack(">if", 4, value) for value in values)
    fields = [
        struct.pack(">q", time_us - 946_684_800_000_000),
        uuid.UUID(origin.session_id).bytes,
        origin.user_id.encode(),
        struct.pack(">q", position),
        channels,
    ]
    return struct.pack(">h", len(fields)) + b"".join(struct.pack(">i", len(field)) + field for field in fields)


def chunk(origin: Origin, position: int, samples: list[list[float]]) -> Chunk:
    times_us = 1_764_000_000_000_000 + np.arange(position, position + len(samples), dtype=np.int64)
    return Chunk(origin, position, times_us, np.array(samples, np.float32))


def encoded(*chunks: Chunk) -> bytes:
    encoders = ((chunk, row_encoder(chunk.origin, chunk.samples.shape[1])) for chunk in chunks)
    return b"".join(encoder.encode(chunk.position, chunk.times_us, chunk.samples) for chunk, encoder in encoders)


def expected(*chunks: Chunk) -> bytes:
    return b"".join(
        row(chunk.origin, int(chunk.times_us[i]), chunk.position + i, chunk.samples[i].tolist())
        for chunk in chunks
        for i in range(len(chunk))
    )


def test_one_sample_is_encoded_to_these_bytes() -> None:
    assert encoded(Chunk(ORIGIN, 5, np.array([946_684_800_000_001]), np.array([[1.0, -2.5]], np.float32))) == (
        bytes.fromhex("0005")
        + bytes.fromhex("00000008 0000000000000001")
        + bytes.fromhex("00000010" + SESSION_ID)
        + bytes.fromhex("00000004 5a6fc3ab")
        + bytes.fromhex("00000008 0000000000000005")
        + bytes.fromhex("00000024 00000001 00000000 000002bc 00000002 00000001")
        + bytes.fromhex("00000004 3f800000 00000004 c0200000")
    )


def test_chunks_of_one_sample_are_encoded_like_rows() -> None:
    chunks = [chunk(ORIGIN, position, [[position, 0.5]]) for position in (0, 1, 7)]
    assert encoded(*chunks) == expected(*chunks)


def test_chunks_of_different_lengths_and_with_a_gap_are_encoded_like_rows() -> None:
    chunks = [chunk(ORIGIN, position, [[position + i] for i in range(n)]) for position, n in ((3, 4), (9, 1), (10, 2))]
    assert encoded(*chunks) == expected(*chunks)


def test_sessions_do_not_mix() -> None:
    other = Origin("other", str(uuid.uuid4()), 7812.5)
    mine = [chunk(ORIGIN, position, [[position]]) for position in range(3)]
    others = [chunk(other, position, [[position, 1, 2]]) for position in range(3)]
    mixed = [chunk for pair in zip(mine, others, strict=True) for chunk in pair]
    assert encoded(*mixed) == expected(*mixed)


def test_what_was_encoded_does_not_change_with_what_comes_next() -> None:
    encoder = RowEncoder(ORIGIN.session_id, "user", 1)
    first = encoder.encode(0, np.array([0]), np.array([[1]], np.float32))
    kept = bytes(first)
    encoder.encode(1, np.array([1]), np.array([[2]], np.float32))
    assert first == kept


def test_a_missing_value_stays_nan() -> None:
    samples = chunk(ORIGIN, 0, [[float("nan"), 1.0]])
    assert encoded(samples) == expected(samples)


def test_the_largest_layouts_are_encoded_like_rows() -> None:
    for n_channels in (1, 139, 1024):
        samples = chunk(Origin("x" * 100, ORIGIN.session_id, 0.0), 1 << 52, [list(range(n_channels))] * 2)
        assert encoded(samples) == expected(samples)


# And back.


@given(
    samples=arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.floats(width=32)),
    user_id=st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20),
    position=st.integers(0, (1 << 53) - 10),
    time_us=st.integers(0, 1 << 52),
)
def test_rows_come_back_as_they_were(
    samples: np.ndarray[tuple[int, int], np.dtype[np.float32]], user_id: str, position: int, time_us: int
) -> None:
    times_us = time_us + np.arange(len(samples))
    rows = RowEncoder(ORIGIN.session_id, user_id, samples.shape[1]).encode(position, times_us, samples)
    found = decode_rows(rows, len(samples))
    np.testing.assert_array_equal(found.samples.view(np.uint32), samples.view(np.uint32))
    np.testing.assert_array_equal(found.times_us, times_us)
    assert found.samples.flags.c_contiguous
    one = decode_rows(rows[: len(rows) // len(samples)], 1)
    np.testing.assert_array_equal(one.times_us, times_us[:1])


def test_times_before_2000_come_back_too() -> None:
    rows = RowEncoder(ORIGIN.session_id, "user", 1).encode(0, np.array([0]), np.zeros((1, 1), np.float32))
    assert decode_rows(rows, 1).times_us.tolist() == [0]
    assert rows[6:14] == struct.pack(">q", -EPOCH_US)
