"""The way into the journal, and what happens when that is full.

What finds no room is refused. The start or end of a session, or a gap, is small and must not be missed: it goes
beyond the bound, and waits in memory while not even the disk takes it.
"""

from __future__ import annotations

import logging
from time import monotonic

from zander.journal.log import Log, frame
from zander.journal.records import Record, encode

PAUSE_SECONDS = 1.0  # between two tries while it is full
FREE_SHARE = 0.1  # of the bound that has to be free before a full journal takes more

log = logging.getLogger(__name__)


class Intake:
    """Appends to a journal's segments, within `max_bytes` on disk. `n_refused` counts records, samples each."""

    def __init__(self, segments: Log, max_bytes: int) -> None:
        self.n_refused = 0
        self._segments = segments
        self._max_bytes = max_bytes
        self._limit = 0  # offset beyond which nothing is taken
        self._waiting: list[Record] = []
        self._full_s: float | None = None  # since when
        self._tried_s = 0.0
        self._refused_before = 0
        self.bound(0)

    @property
    def takes(self) -> bool:
        """Whether there is room; looks again, at most once in PAUSE_SECONDS."""
        return self._full_s is None or self._try()

    @property
    def n_waiting(self) -> int:
        """How many records wait in memory."""
        return len(self._waiting)

    def bound(self, n_bytes_elsewhere: int) -> None:
        """Set the limit anew, after something was deleted; other journals count too."""
        self._limit = self._segments.start + self._max_bytes - n_bytes_elsewhere

    def add(self, record: Record, n_records: int = 1) -> bool:
        """Append a record that counts as `n_records`; False when there is no room."""
        if (self._full_s is None or self._try()) and self._append(record, self._limit):
            return True
        self.n_refused += n_records
        return False

    def add_frames(self, frames: bytes) -> bool:
        """Append what is in frames already; False when there is no room, which whoever asks tries once more."""
        return (self._full_s is None or self._try()) and self._append(frames, self._limit)

    def insist(self, record: Record) -> None:
        """Append a record even beyond the bound, as soon as the disk takes it."""
        if self._waiting or not self._append(record, None):
            self._waiting.append(record)

    def retry(self) -> None:
        """See whether there is room again; due about once a second."""
        if self._full_s is not None:
            self._try()

    def _append(self, record: Record | bytes, limit: int | None) -> bool:
        try:
            if limit is not None and self._segments.end > limit:
                raise OSError(f"it has {self._segments.n_bytes} bytes, its bound")
            self._segments.write(record if isinstance(record, bytes) else frame(encode(record)))
        except OSError as error:
            self._close(error)
            return False
        return True

    def _close(self, error: OSError) -> None:
        if self._full_s is None:
            self._full_s = self._tried_s = monotonic()
            self._refused_before = self.n_refused
            log.error("the journal takes no more, relays are refused: %s", error.strerror or error)

    def _try(self) -> bool:
        """Open again if there is room; a disk is not asked for each record."""
        now_s = monotonic()
        if now_s < self._tried_s + PAUSE_SECONDS or self._full_s is None:
            return False
        self._tried_s = now_s
        if self._segments.end > self._limit - FREE_SHARE * self._max_bytes or not self._catch_up():
            return False
        n_refused = self.n_refused - self._refused_before
        log.warning("the journal takes records again after %.1f s, %d were refused", now_s - self._full_s, n_refused)
        self._full_s = None
        return True

    def _catch_up(self) -> bool:
        """Append what waited; False when the disk does not take it, or no more than that."""
        try:
            while self._waiting:
                self._segments.append(encode(self._waiting[0]))
                self._waiting.pop(0)
            self._segments.probe()
        except OSError:
            return False
        return True
