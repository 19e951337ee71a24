"""Times at which records came, by their offsets in a journal: how long the oldest has waited for the database."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

MARK_SECONDS = 0.1
MAX_MARKS = 1000


class Mark(NamedTuple):
    """The record at `offset` came at `time_s`, on the monotonic clock, and those behind it later."""

    offset: int
    time_s: float


class Arrivals:
    """Marks of what is not committed, at most one in MARK_SECONDS.

    Where there are MAX_MARKS of them, half go: a long outage takes no more memory, and a time may be too early by some
    500th of it.
    """

    def __init__(self) -> None:
        self._marks: deque[Mark] = deque()
        self._step_s = MARK_SECONDS
        self._next_s = -math.inf  # when the next mark is due

    @property
    def oldest_s(self) -> float:
        """When the oldest record came that is not committed; infinite when there is none."""
        return self._marks[0].time_s if self._marks else math.inf

    def note(self, offset: int, now_s: float) -> None:
        """Note that what is behind `offset` comes now."""
        if now_s < self._next_s:
            return
        self._marks.append(Mark(offset, now_s))
        if len(self._marks) > MAX_MARKS:
            self._thin()
        self._next_s = now_s + self._step_s

    def divide(self) -> None:
        """Mark the next record exactly: a batch ends before it."""
        self._next_s = -math.inf
        if not self._marks:
            self._step_s = MARK_SECONDS

    def commit(self, offset: int, end: int, now_s: float) -> None:
        """Forget what is before `offset`; `end` is that of the journal.

        Where the database went back, what it has no more counts from now on.
        """
        while self._marks and (self._marks[1].offset if len(self._marks) > 1 else end) <= offset:
            self._marks.popleft()
        if offset < end and (not self._marks or offset < self._marks[0].offset):
            self._marks.appendleft(Mark(offset, self._marks[0].time_s if self._marks else now_s))
        if not self._marks:
            self.divide()

    def _thin(self) -> None:
        self._step_s = (self._marks[-1].time_s - self._marks[0].time_s) / (MAX_MARKS // 2)
        kept = deque([self._marks.popleft()])
        for mark in self._marks:
            if mark.time_s >= kept[-1].time_s + self._step_s:
                kept.append(mark)
        self._marks = kept
