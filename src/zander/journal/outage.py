"""The database goes away and comes back: said once each, and how long to wait before the next attempt."""

from __future__ import annotations

import logging
from time import monotonic

from zander.errors import StorageError
from zander.retry import Backoff

FIRST_SECONDS = 0.1
MAX_SECONDS = 5.0
MAX_REASONS = 5

log = logging.getLogger(__name__)


class Outage:
    """One outage after the other."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._reasons: set[str] = set()  # said in this outage: the first is often only that the connection broke
        self._backoff = Backoff(FIRST_SECONDS, MAX_SECONDS)

    def note(self, error: Exception) -> float:
        """Log each reason once per outage, with a traceback when it is a mistake of ours; return the pause."""
        reason = error_text(error)
        if reason not in self._reasons and len(self._reasons) < MAX_REASONS:
            mistake = None if isinstance(error, StorageError) else error
            still = "" if self._since_s is None else "still "
            log.warning("the database is %saway: %s", still, reason, exc_info=mistake)
            self._reasons.add(reason)
        self._since_s = self._since_s or monotonic()
        return self._backoff.next_s()

    def over(self, n_waiting_bytes: int) -> None:
        """Log the end of an outage, if there was one."""
        self._backoff.reset()
        if self._since_s is not None:
            seconds = monotonic() - self._since_s
            self._since_s = None
            self._reasons.clear()
            log.warning("the database is back after %.1f s, %d bytes waited in the journal", seconds, n_waiting_bytes)


def error_text(error: Exception) -> str:
    """Say what went wrong; never nothing."""
    return str(error) or type(error).__name__
