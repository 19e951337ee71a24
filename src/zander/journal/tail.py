"""The end of a journal, in memory too while it is short: so that what was just written need not be read back."""

from __future__ import annotations

from zander.journal.records import Record

TAIL_BYTES = 1 << 20  # of the journal: half a second of 100 relays. To read a record back would cost 1.3 µs


class Tail:
    """The records from an offset to the end of the journal; nothing once they are more than TAIL_BYTES."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._start: int | None = 0  # offset of the first of them; None: they are to be read from the disk
        self._end = 0

    def append(self, record: Record, end: int) -> None:
        """Add the record that now ends the journal, at `end`."""
        if self._start is not None:
            self._records.append(record)
            self._end = end
            if end - self._start > TAIL_BYTES:
                self._records = []
                self._start = None

    def take(self, start: int, end: int) -> list[Record] | None:
        """Take all from `start` to `end`, where the journal ends; None when they have to be read from the disk."""
        if (start, end) != (self._start, self._end):
            return None
        records = self._records
        self.begin(end)
        return records

    def begin(self, end: int) -> None:
        """Begin again at the end of the journal, once everything before was read from the disk."""
        self._records, self._start, self._end = [], end, end
