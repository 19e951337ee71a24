"""The JSON of samples is to the byte the same, whether the native path writes it or its twin."""

from __future__ import annotations

import os
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zander.native import IS_NATIVE, WHY_NOT

if not IS_NATIVE and os.environ.get("ZANDER_REQUIRE_NATIVE") != "1":
    pytest.skip(f"the native path is not there: {WHY_NOT}", allow_module_level=True)

from support.samples import T0_US
from zander._native import chunk_text, sample_texts
from zander.wire.chunk import MAX_POSITION, Chunk, Origin, Samples, Times

Number = TypeVar("Number", bound=np.generic)
ORIGIN = Origin("Zoë", "s", 7812.5)
TIMES = np.array([T0_US, T0_US + 7812, T0_US + 15625])
SAMPLES = np.array([[0.1, -2.5], [np.nan, -0.0], [1e16, 1e-7]], np.float32)
PLAIN_TIME_US = 100  # from here on the native path writes it
MAX_INT = (1 << 63) - 1


def sample_twins(chunk: Chunk) -> list[str]:
    frame, times_us = chunk.origin.frame, chunk.times_us.tolist()
    return [frame(chunk.position + i, times_us[i], "channels", chunk.samples[i]) for i in range(len(chunk))]


def chunk_twin(chunk: Chunk) -> str:
    return chunk.origin.frame(chunk.position, int(chunk.times_us[0]), "samples", chunk.samples)


def native(chunk: Chunk) -> tuple[list[str] | None, str | None]:
    of = (chunk.origin.prefix, chunk.position, chunk.times_us, chunk.samples)
    return sample_texts(*of), chunk_text(*of)


def any_time_us() -> st.SearchStrategy[int]:
    edges = [0, *(10**n + d for n in range(2, 19) for d in (-1, 0, 1)), (1 << 53) - 1, 1 << 53, (1 << 53) + 1, MAX_INT]
    return st.sampled_from(edges) | st.integers(0, MAX_INT) | st.integers(T0_US, 2 * T0_US)


@given(
    user_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=100),
    position=st.integers(0, MAX_POSITION - 40) | st.just(MAX_POSITION - 40),
    times_us=st.lists(any_time_us() | any_time_us().map(int.__neg__), min_size=1, max_size=40),
    n_channels=st.integers(1, 40),
    data=st.data(),
)
def test_any_sample_at_any_time_is_written_the_same(
    *, user_id: str, position: int, times_us: list[int], n_channels: int, data: st.DataObject
) -> None:
    n = len(times_us) * n_channels
    bits = np.frombuffer(data.draw(st.binary(min_size=4 * n, max_size=4 * n)), np.float32)
    chunk = Chunk(Origin(user_id, "s", 0.0), position, np.array(times_us, np.int64), bits.reshape(-1, n_channels))
    texts, text = sample_twins(chunk), chunk_twin(chunk)
    assert (chunk.json_frames, chunk.chunk_frame) == (texts, text)
    assert native(chunk) == (
        texts if all(is_plain(time_us) for time_us in times_us) else None,
        text if is_plain(times_us[0]) else None,
    )


def is_plain(time_us: int) -> bool:
    return time_us == 0 or abs(time_us) >= PLAIN_TIME_US


@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_any_value_of_usual_size_is_written_the_same(values: list[float]) -> None:
    chunk = Chunk(ORIGIN, 0, TIMES[:1], np.array([values], np.float32))
    assert native(chunk) == (sample_twins(chunk), chunk_twin(chunk))


def test_every_exponent_is_written_the_same() -> None:
    bits = np.arange(1 << 9, dtype=np.uint32)[:, None] << 23 | np.array([0, 1, 0x400000, 0x7FFFFF], np.uint32)
    chunk = Chunk(ORIGIN, 0, np.full(len(bits), T0_US), bits.view(np.float32))
    assert native(chunk) == (sample_twins(chunk), chunk_twin(chunk))


def unaligned(array: NDArray[Number]) -> NDArray[Number]:
    """The same in memory that begins at an odd address."""
    return np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


@pytest.mark.parametrize(
    ("times_us", "samples"),
    [
        (TIMES[1:], SAMPLES[1:]),
        (TIMES[::2], SAMPLES[:2]),
        (TIMES, np.frombuffer(SAMPLES.tobytes(), "<f4").reshape(3, 2)),
        (TIMES, SAMPLES[:, :1].copy()),
        (TIMES, np.asfortranarray(SAMPLES[:, :1])),
    ],
    ids=["views", "every second time", "read-only", "one channel", "one channel in Fortran order"],
)
def test_arrays_are_read_as_they_lie_there(times_us: Times, samples: Samples) -> None:
    chunk = Chunk(ORIGIN, 7, times_us, samples)
    assert native(chunk) == (sample_twins(chunk), chunk_twin(chunk))


@pytest.mark.parametrize(
    ("times_us", "samples"),
    [
        (TIMES.astype(">i8"), SAMPLES),
        (TIMES.astype(np.float64), SAMPLES),
        (unaligned(TIMES), SAMPLES),
        (TIMES, unaligned(SAMPLES)),
        (TIMES, SAMPLES.astype(np.float64)),
        (TIMES, SAMPLES[:, :0]),
    ],
    ids=["big-endian times", "float times", "unaligned times", "unaligned", "float64", "no channel"],
)
def test_other_arrays_are_left_to_the_twin(times_us: Times, samples: Samples) -> None:
    chunk = Chunk(ORIGIN, 7, times_us, samples)
    assert native(chunk) == (None, None)
    assert (chunk.json_frames, chunk.chunk_frame) == (sample_twins(chunk), chunk_twin(chunk))


def test_what_the_twin_refuses_is_refused() -> None:
    for samples in (SAMPLES.astype(">f4"), SAMPLES[:, ::2].repeat(2, 1)[:, ::2], SAMPLES[0]):
        assert native(Chunk(ORIGIN, 7, TIMES, samples)) == (None, None)
    empty = Chunk(ORIGIN, 7, TIMES[:0], SAMPLES[:0])
    assert native(empty) == (None, None)
    assert empty.json_frames == []
