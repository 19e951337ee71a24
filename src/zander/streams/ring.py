"""The last samples of one session, in memory that is allocated once, with the first of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zander.positions import RingPosition

RUN_BYTES = 64 << 10

_NO_SAMPLES = np.zeros((0, 0), np.float32)  # of all rings without a sample
_NO_TIMES = np.zeros(0, np.int64)


class Run(NamedTuple):
    """Samples that follow each other: a copy, float32 `(n, n_channels)`, with their times, int64 µs `(n,)`.

    It is of RUN_BYTES at most, or one sample: what is done with some goes free before the rest.
    """

    position: int
    times_us: NDArray[np.int64]
    samples: NDArray[np.float32]


class Ring(RingPosition):
    """The last `capacity` samples, each with as many channels as the first.

    A write is at most two slices; reads are copies, as Runs.

    Positions are not stored per sample: `_starts` holds (index, position) for every place where they jump, an index
    being the count of samples written before. `base` is the position before the first write, `next_position` the one
    after the last. Where samples follow, the native path writes to `samples` and `times_us`, and the stream moves on.
    """

    __slots__ = (
        "_end_before",
        "_starts",
        "capacity",
        "samples",
        "times_us",
    )

    def __init__(self, capacity: int, base: int = 0) -> None:
        self.capacity = capacity
        self.n_written = 0
        self.next_position = None
        self._end_before = base  # where the samples before the first of `_starts` ended
        self.samples = _NO_SAMPLES
        self.times_us = _NO_TIMES
        self._starts: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return min(self.n_written, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes allocated: none before the first sample."""
        return self.samples.nbytes + self.times_us.nbytes

    @property
    def span_us(self) -> tuple[int, int] | None:
        """Times of the oldest and the newest sample, None when empty."""
        if not self.n_written:
            return None
        oldest, newest = self._oldest % self.capacity, (self.n_written - 1) % self.capacity
        return int(self.times_us[oldest]), int(self.times_us[newest])

    @property
    def first_position(self) -> int:
        """Position from which on nothing was overwritten: every later one is held, or was never written."""
        self._forget_starts()
        if not self._starts or self._oldest == self._starts[0][0]:
            return self._end_before
        return self._starts[0][1] + self._oldest - self._starts[0][0]

    @property
    def _oldest(self) -> int:
        return self.n_written - len(self)

    def allocate(self, n_channels: int) -> None:
        """Take the memory for the samples, which the first write does."""
        self.samples = np.zeros((self.capacity, n_channels), np.float32)
        self.times_us = np.zeros(self.capacity, np.int64)

    def write(self, position: int, times_us: NDArray[np.int64], samples: NDArray[np.float32]) -> None:
        """Append samples that follow each other from `position`, which lies behind everything written before."""
        if not len(self.times_us):
            self.allocate(samples.shape[1])
        if position != self.next_position:
            self._starts.append((self.n_written, position))
        skip = max(0, len(samples) - self.capacity)  # what would be overwritten at once
        index, end = self.n_written + skip, self.n_written + len(samples)
        at = index % self.capacity
        n_first = min(end - index, self.capacity - at)
        self.samples[at : at + n_first] = samples[skip : skip + n_first]
        self.times_us[at : at + n_first] = times_us[skip : skip + n_first]
        if n_rest := end - index - n_first:
            self.samples[:n_rest] = samples[skip + n_first :]
            self.times_us[:n_rest] = times_us[skip + n_first :]
        self.n_written = end
        self.next_position = position + len(samples)
        self._forget_starts()

    def last(self, n: int) -> list[Run]:
        """Return the last `n` samples, or as many as there are."""
        return self._runs(max(self._oldest, self.n_written - n), self.n_written)

    def since(self, position: int) -> list[Run]:
        """Return the samples at `position` and after it that are still held."""
        self._forget_starts()
        index = self._oldest
        for start, first in reversed(self._starts):
            if first <= position:
                index = start + position - first
                break
        following = next((start for start, first in self._starts if first > position), self.n_written)
        return self._runs(max(self._oldest, min(index, following)), self.n_written)

    def between(self, start_us: int, end_us: int) -> list[Run]:
        """Return the samples with `start_us` <= time < `end_us`."""
        return self._runs(*self._indices(start_us, end_us))

    def n_between(self, start_us: int, end_us: int) -> int:
        """Return how many samples `between` returns."""
        first, end = self._indices(start_us, end_us)
        return max(0, end - first)

    def _indices(self, start_us: int, end_us: int) -> tuple[int, int]:
        """Return the indices of the first samples that are not before `start_us`, and not before `end_us`."""
        times_us = self._cut(self.times_us, self._oldest, self.n_written)
        first, last = np.searchsorted(times_us, [start_us, end_us], side="left")
        return self._oldest + int(first), self._oldest + int(last)

    def _forget_starts(self) -> None:
        """Forget the jumps that were overwritten."""
        if len(self._starts) > 1 and self._starts[1][0] <= self._oldest:
            n = bisect_right(self._starts, self._oldest, key=lambda start: start[0]) - 1
            start, position = self._starts[n - 1]
            self._end_before = position + self._starts[n][0] - start
            del self._starts[:n]

    def _runs(self, index: int, end: int) -> list[Run]:
        self._forget_starts()
        return list(self._split(index, end)) if index < end else []

    def _split(self, index: int, end: int) -> Iterator[Run]:
        starts = [start for start, _ in self._starts]
        n_max = max(1, RUN_BYTES // (self.samples.shape[1] * self.samples.itemsize))
        for i in range(bisect_right(starts, index) - 1, len(starts)):
            start, position = self._starts[i]
            stop = min(end, starts[i + 1]) if i + 1 < len(starts) else end
            if index >= stop:
                break
            while index < stop:
                end_of_run = min(index + n_max, stop)
                times_us = self._cut(self.times_us, index, end_of_run)
                yield Run(position + index - start, times_us, self._cut(self.samples, index, end_of_run))
                index = end_of_run

    def _cut(self, array: NDArray, index: int, end: int) -> NDArray:  # type: ignore[type-arg]
        """Copy the rows of indices `index` to `end`."""
        at, stop = index % self.capacity, (end - 1) % self.capacity + 1
        if index == end or at < stop:
            return array[at : at + end - index].copy()
        return np.concatenate([array[at:], array[:stop]])
