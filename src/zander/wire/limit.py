"""Limit of what one peer may send: so many bytes a second in the long run, and as many at once."""

from __future__ import annotations

from time import monotonic


class Limit:
    """A bucket that fills with `rate` bytes a second, up to those of one second."""

    __slots__ = ("_allowance", "_rate", "_since_s", "_was_reached")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._allowance = rate
        self._since_s = monotonic()
        self._was_reached = False

    @property
    def is_over(self) -> bool:
        """Whether more was spent than there was."""
        self._fill()
        return self._allowance < 0

    def spend(self, n_bytes: int) -> float:
        """Take bytes out, and return how long to wait before the next."""
        self._fill()
        self._allowance -= n_bytes
        if self._allowance >= 0:
            return 0.0
        self._was_reached = True
        return -self._allowance / self._rate

    def take_reached(self) -> bool:
        """Return whether somebody had to wait since the last time."""
        was_reached, self._was_reached = self._was_reached, False
        return was_reached

    def _fill(self) -> None:
        now_s = monotonic()
        self._allowance = min(self._rate, self._allowance + (now_s - self._since_s) * self._rate)
        self._since_s = now_s
