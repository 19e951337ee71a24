"""The end of a journal, in memory too while it is short: so that what was just written need not be read back."""

from __future__ import annotations

from zander.journal.records import RawRecord, Record
from zander.native import IS_NATIVE

if IS_NATIVE:
    from zander._native import join_frames

TAIL_BYTES = 8 << 20  # of the journal: half a second of 500 relays. To read a record back would cost 1.3 µs
TAIL_RECORDS = 5_000  # one by one, sorted in 2 ms; frames of the native path are joined in a fifth of the time


class Tail:
    """The records from an offset to the end of the journal; nothing once they are more than there is room for."""

    def __init__(self) -> None:
        self._records: list[Record | bytes] = []
        self._n_single = 0  # those that are no frames
        self._start: int | None = 0  # offset of the first of them; None: they are to be read from the disk
        self._end = 0

    def append(self, record: Record | bytes, end: int) -> None:
        """Add the record, or the native path's frames of several, that now end the journal, at `end`."""
        if self._start is not None:
            self._records.append(record)
            self._end = end
            self._n_single += not isinstance(record, bytes)
            if end - self._start > TAIL_BYTES or self._n_single > TAIL_RECORDS:
                self._records = []
                self._start = None

    def take(self, start: int, end: int) -> list[Record] | None:
        """Take all from `start` to `end`, where the journal ends; None when they have to be read from the disk."""
        if (start, end) != (self._start, self._end):
            return None
        records: list[Record] = []
        frames: list[bytes] = []
        for record in self._records:
            if isinstance(record, bytes):
                frames.append(record)
                continue
            if isinstance(record, RawRecord):  # which keeps its place among the raw of its session
                records += _joined(frames)
                frames = []
            records.append(record)
        records += _joined(frames)
        self.begin(end)
        return records

    def begin(self, end: int) -> None:
        """Begin again at the end of the journal, once everything before was read from the disk."""
        self._records, self._n_single, self._start, self._end = [], 0, end, end


def _joined(frames: list[bytes]) -> list[Record]:
    """Read the native path's frames: one record for samples that follow each other, not one for each."""
    return [RawRecord(*fields) for fields in join_frames(b"".join(frames))] if frames else []
