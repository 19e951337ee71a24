"""What was counted or measured over the last seconds."""

from __future__ import annotations

from collections import deque
from statistics import median
from time import monotonic

WINDOW_S = 5.0


class Meter:
    """Numbers with the moment they came, forgotten after WINDOW_S."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._numbers: deque[tuple[float, float]] = deque()

    def add(self, number: float) -> None:
        """Note a number, now."""
        self._numbers.append((monotonic(), number))
        self._forget()

    def per_second(self) -> float:
        """Return the sum per second."""
        self._forget()
        elapsed_s = min(WINDOW_S, monotonic() - self._began)
        return sum(number for _, number in self._numbers) / elapsed_s if elapsed_s > 0 else 0.0

    def median(self) -> float | None:
        """Return the median, None without numbers."""
        self._forget()
        return median(number for _, number in self._numbers) if self._numbers else None

    def max(self) -> float | None:
        """Return the largest, None without numbers."""
        self._forget()
        return max((number for _, number in self._numbers), default=None)

    def _forget(self) -> None:
        oldest = monotonic() - WINDOW_S
        while self._numbers and self._numbers[0][0] < oldest:
            self._numbers.popleft()
