"""The last features or predictions of one session."""

from __future__ import annotations

import sys
from collections import deque
from itertools import islice

from zander.wire.messages import Note

MAX_BYTES = 1 << 20  # per session and kind: a count alone bounds nothing
NOTE_BYTES = 160  # of a note beside its text: measured on CPython 3.11, with its place and its size here

_EMPTY: deque[tuple[Note, int]] = deque(maxlen=0)  # stands for all that are empty: one of its own takes 760 bytes


def note_bytes(note: Note) -> int:
    """Return the memory that a note takes: one emoji makes every character of a text take four bytes."""
    return sys.getsizeof(note.text) + NOTE_BYTES


class History:
    """The last `capacity` Notes, bounded in the bytes of memory that they take, too."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.n_written = 0
        self.nbytes = 0
        self._notes = _EMPTY  # with the bytes of each

    def __len__(self) -> int:
        return len(self._notes)

    @property
    def span_us(self) -> tuple[int, int] | None:
        """Times of the oldest and the newest note, None when empty."""
        return (self._notes[0][0].time_us, self._notes[-1][0].time_us) if self._notes else None

    def write(self, note: Note) -> None:
        """Append a note; the oldest make room for it."""
        if self._notes is _EMPTY:
            self._notes = deque()
        n_bytes = note_bytes(note)
        self._notes.append((note, n_bytes))
        self.n_written += 1
        self.nbytes += n_bytes
        while len(self._notes) > 1 and (len(self._notes) > self.capacity or self.nbytes > MAX_BYTES):
            self.nbytes -= self._notes.popleft()[1]

    def clear(self) -> None:
        """Forget the notes, but not how many there were."""
        self.nbytes = 0
        self._notes = _EMPTY

    def last(self, n: int) -> list[Note]:
        """Return the last `n`, oldest first, or as many as there are."""
        return [note for note, _ in islice(self._notes, max(0, len(self._notes) - n), None)]

    def between(self, start_us: int, end_us: int) -> list[Note]:
        """Return those with `start_us` <= time < `end_us`."""
        return [note for note, _ in self._notes if start_us <= note.time_us < end_us]
