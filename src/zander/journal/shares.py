"""Shares of the journal: what each user has in it while it fills, so that one alone cannot fill it for all."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable
from typing import Literal

Kind = Literal["samples", "notes"]

COUNTED_FROM = 0.125  # of the bound that waits for the database: below it everybody is taken and nothing is counted
# A user is refused who has more than so many times what is free. One alone can take two thirds of the journal with
# samples, and a third with notes; n of them leave the others one part in 2n + 1. Notes are refused before samples.
SHARES: dict[Kind, float] = {"samples": 2.0, "notes": 0.5}
AGAIN = 0.5  # of a share, at which who was over it is taken again: not record by record, with a gap between them
EPOCHS = 32  # in which the bound is counted: what is committed is taken off so many bytes at a time

log = logging.getLogger(__name__)


class Shares:
    """Bytes of each user in a journal of at most `max_bytes`, since it began to fill, that are not committed yet.

    Nothing is counted before the offset `start`; `end` is where the journal ends. `n_refused` is how many users were
    refused for their share; each is logged once, until all is committed.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.start = self.end = 0
        self.n_refused = 0
        self._epoch_bytes = max(1, max_bytes // EPOCHS)
        self._epochs: deque[tuple[int, Counter[str]]] = deque()  # where the first of each ends, and its bytes
        self._n_bytes: Counter[str] = Counter()  # of all epochs
        self._over: set[tuple[str, Kind]] = set()
        self._logged: set[str] = set()

    def takes(self, user_id: str, kind: Kind, limit: int) -> bool:
        """Return whether a user may append more to a journal that may end at `limit`; beyond it that refuses all."""
        n_free = limit - self.end
        if n_free <= 0 or self.end <= self.start:
            return True
        share = SHARES[kind] * n_free
        is_over = (user_id, kind) in self._over
        if self._n_bytes[user_id] <= share * (AGAIN if is_over else 1.0):
            self._over.discard((user_id, kind))
            return True
        if not is_over:
            self._over.add((user_id, kind))
            self._tell(user_id, kind)
        return False

    def add(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Count bytes of users that were appended just now."""
        if not self._epochs or self.end >= self._epochs[-1][0] + self._epoch_bytes:
            self._epochs.append((self.end, Counter()))
        for user_id, n_bytes in sizes:
            self._epochs[-1][1][user_id] += n_bytes
            self._n_bytes[user_id] += n_bytes

    def commit(self, offset: int, max_bytes: int) -> None:
        """Take off what lies before an offset, in a journal that may have `max_bytes`."""
        self.start = offset + int(COUNTED_FROM * max_bytes)
        while self._epochs and offset >= (self._epochs[1][0] if len(self._epochs) > 1 else self.end):
            self._n_bytes -= self._epochs.popleft()[1]
        if not self._epochs:
            self._over.clear()
            self._logged.clear()

    def _tell(self, user_id: str, kind: Kind) -> None:
        if user_id not in self._logged:
            self._logged.add(user_id)
            self.n_refused += 1
            log.warning(
                "user %s has %d bytes in the journal that the database has not: more %s are refused, others go on",
                user_id,
                self._n_bytes[user_id],
                kind,
            )
