"""The last features or predictions of one session."""

from __future__ import annotations

from collections import deque

from zander.wire.messages import Note

MAX_BYTES = 1 << 20  # per session and kind: a prediction may be as long as a message, a count alone bounds nothing

NO_NOTES: deque[Note] = deque(maxlen=0)  # stands for all that are empty: one of its own takes 760 bytes


class History:
    """The last `capacity` Notes of one kind, bounded in bytes too."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.n_written = 0
        self.nbytes = 0
        self._notes = NO_NOTES

    def __len__(self) -> int:
        return len(self._notes)

    @property
    def span_us(self) -> tuple[int, int] | None:
        """Times of the oldest and the newest note, None when empty."""
        return (self._notes[0].time_us, self._notes[-1].time_us) if self._notes else None

    def write(self, note: Note) -> None:
        """Append a note; the oldest make room for it."""
        if not self.n_written:
            self._notes = deque()
        self._notes.append(note)
        self.n_written += 1
        self.nbytes += len(note.text)
        while len(self._notes) > 1 and (len(self._notes) > self.capacity or self.nbytes > MAX_BYTES):
            self.nbytes -= len(self._notes.popleft().text)

    def last(self, n: int) -> list[Note]:
        """Return the last `n`, oldest first, or as many as there are."""
        return list(self._notes)[-n:] if n else []

    def between(self, start_us: int, end_us: int) -> list[Note]:
        """Return those with `start_us` <= time < `end_us`."""
        return [note for note in self._notes if start_us <= note.time_us < end_us]
