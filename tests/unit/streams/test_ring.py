"""The ring against a plain list."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zander.streams.ring import Ring, Run


class Sample(NamedTuple):
    """One sample as the model keeps it; its value is its position, so that a loss shows."""

    position: int
    time_us: int


class Write(NamedTuple):
    """A chunk that begins `jump` positions after the one before; `steps_us` leads from sample to sample."""

    jump: int
    steps_us: list[int]


WRITES = st.lists(
    st.builds(
        Write, st.sampled_from([0, 0, 0, 1, 2, 5]), st.lists(st.sampled_from([0, 1, 1, 3]), min_size=1, max_size=11)
    ),
    max_size=10,
)


def write(ring: Ring, samples: list[Sample], n_channels: int = 2) -> None:
    values = np.full((len(samples), n_channels), 0.5, np.float32)
    values[:, 0] = [sample.position for sample in samples]
    ring.write(samples[0].position, np.array([sample.time_us for sample in samples]), values)


def filled(capacity: int, *positions: range) -> Ring:
    """A ring into which these positions were written, one chunk each; the time of a sample is 10 × its position."""
    ring = Ring(capacity)
    for chunk in positions:
        write(ring, [Sample(position, 10 * position) for position in chunk])
    return ring


def unpacked(runs: list[Run]) -> list[Sample]:
    """The samples of runs, which are as long as they can be; each sample is where its value says."""
    samples: list[Sample] = []
    for run in runs:
        positions = list(range(run.position, run.position + len(run.samples)))
        assert positions
        assert not samples or positions[0] > samples[-1].position + 1
        assert run.samples[:, 0].tolist() == positions
        assert (run.samples[:, 1:] == 0.5).all()
        samples += map(Sample, positions, run.times_us.tolist())
    return samples


@given(base=st.sampled_from([0, 7]), capacity=st.integers(1, 8), writes=WRITES)
def test_it_answers_like_a_list_of_the_last_samples(base: int, capacity: int, writes: list[Write]) -> None:
    ring, model, n_written = Ring(capacity, base), list[Sample](), 0
    position, time_us, lost_to = base, 100, base
    agree(ring, model, n_written, lost_to)
    for jump, steps_us in writes:
        position += jump
        chunk = []
        for step_us in steps_us:
            time_us += step_us
            chunk.append(Sample(position, time_us))
            position += 1
        write(ring, chunk)
        n_written += len(chunk)
        if lost := (model + chunk)[:-capacity]:
            lost_to = lost[-1].position + 1
        model = (model + chunk)[-capacity:]
        agree(ring, model, n_written, lost_to)


def agree(ring: Ring, model: list[Sample], n_written: int, lost_to: int) -> None:
    """Ask the ring everything that can be asked."""
    assert (len(ring), ring.n_written) == (len(model), n_written)
    assert ring.span_us == ((model[0].time_us, model[-1].time_us) if model else None)
    assert ring.first_position == lost_to
    for n in range(ring.capacity + 2):
        assert unpacked(ring.last(n)) == (model[-n:] if n else [])
    positions = [sample.position for sample in model] or [0]
    for position in range(max(0, positions[0] - 3), positions[-1] + 4):
        assert unpacked(ring.since(position)) == [sample for sample in model if sample.position >= position]
    times_us = sorted({sample.time_us + step for sample in model for step in (0, 1)} | {0})
    for i, start_us in enumerate(times_us):
        for end_us in times_us[i:]:
            assert unpacked(ring.between(start_us, end_us)) == [
                sample for sample in model if start_us <= sample.time_us < end_us
            ]


def test_what_was_before_its_base_is_not_there() -> None:
    ring = Ring(4, 100)
    assert ring.first_position == 100
    write(ring, [Sample(103, 0)])
    assert ring.first_position == 100


def test_an_empty_ring_has_nothing() -> None:
    ring = Ring(4)
    assert (len(ring), ring.span_us, ring.first_position) == (0, None, 0)
    assert ring.last(1) == ring.since(0) == ring.between(0, 1 << 62) == []


def test_it_takes_no_memory_before_its_first_sample_and_all_with_it() -> None:
    ring = Ring(1000)
    assert ring.nbytes == 0
    write(ring, [Sample(0, 0)], n_channels=8)
    assert ring.nbytes == 1000 * (8 * 4 + 8)
    write(ring, [Sample(position, 0) for position in range(1, 5000)], n_channels=8)
    assert ring.nbytes == 1000 * (8 * 4 + 8)


def test_a_chunk_longer_than_the_ring_leaves_its_end() -> None:
    ring = filled(4, range(3), range(3, 14))
    assert unpacked(ring.last(9)) == [Sample(position, 10 * position) for position in range(10, 14)]
    assert ring.first_position == 10


def test_a_hole_parts_the_runs() -> None:
    ring = filled(10, range(3), range(5, 7), range(7, 8), range(9, 10))
    assert [(run.position, len(run.samples)) for run in ring.last(10)] == [(0, 3), (5, 3), (9, 1)]
    assert [(run.position, len(run.samples)) for run in ring.since(3)] == [(5, 3), (9, 1)]
    assert [(run.position, len(run.samples)) for run in ring.between(10, 60)] == [(1, 2), (5, 1)]


def test_a_hole_is_forgotten_with_the_samples_before_it() -> None:
    ring = filled(4, range(3), range(5, 9))
    assert ring.first_position == 3  # from there on it knows all: nothing was written before 5
    assert len(ring.last(4)) == 1
    for position in range(10, 10_000, 2):
        write(ring, [Sample(position, 0)])
    assert len(ring._starts) <= 5


@pytest.mark.parametrize("n", [1, 3, 4])
def test_what_was_read_stays_as_it_was(n: int) -> None:
    ring = filled(4, range(6))
    runs = [*ring.last(n), *ring.since(0), *ring.between(0, 1000)]
    before = [(run.times_us.tolist(), run.samples.tolist()) for run in runs]
    write(ring, [Sample(position, 500) for position in range(6, 10)])
    assert [(run.times_us.tolist(), run.samples.tolist()) for run in runs] == before


def test_a_missing_value_stays_missing_and_every_bit_is_kept() -> None:
    ring = Ring(2)
    samples = np.array([[np.nan, -0.0, 1e-45]], np.float32)
    ring.write(0, np.array([1]), samples)
    assert ring.last(1)[0].samples.tobytes() == samples.tobytes()
    assert ring.last(1)[0].samples.dtype == np.float32
    assert ring.last(1)[0].times_us.dtype == np.int64
