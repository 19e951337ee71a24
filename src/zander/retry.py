"""Pauses between attempts to connect, shared by the database, Redis and the clients."""

from __future__ import annotations

import random


class Backoff:
    """Pauses in seconds that double from `first_s` up to `max_s`.

    Each is shortened at random, to a half at the least, so that a thousand clients do not come back at once.
    """

    def __init__(self, first_s: float, max_s: float) -> None:
        self._first_s = self._longest_s = first_s
        self._max_s = max_s

    def next_s(self) -> float:
        """Return the pause before the next attempt."""
        longest_s = self._longest_s
        self._longest_s = min(2 * longest_s, self._max_s)
        return longest_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin with the first pause again: an attempt was successful."""
        self._longest_s = self._first_s
