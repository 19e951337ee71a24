"""What faults have destroyed in a round: no more than that may be lost, and all of it has to be in a gap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import orjson

from zander.journal.log import HEADER_BYTES, split_payloads
from zander.journal.records import BEGINS, GapRecord, PredictionRecord, RawRecord, Record, SessionRecord, decode

Span = tuple[int, int]  # positions, the second not included

NEAR_BYTES = 200 << 10  # of the end of a file: what lies before is mostly committed


class Damage:
    """The positions and features that a fault may have cost, by session. `went_back`: an ack may be taken back."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Span]] = {}
        self.features: dict[str, set[int]] = {}
        self.sessions: set[str] = set()  # whose start or end was destroyed
        self.went_back = False

    def note(self, record: Record) -> None:
        """Note a record that was destroyed."""
        if isinstance(record, RawRecord):
            self.note_span(record.session_id, record.position, record.end)
        elif isinstance(record, GapRecord):
            self.note_span(record.session_id, record.start, record.end)
        elif isinstance(record, SessionRecord):
            self.sessions.add(record.session_id)
        elif isinstance(record, PredictionRecord) and "n" in (metrics := orjson.loads(record.data).get("metrics", {})):
            self.features.setdefault(record.session_id, set()).add(metrics["n"])

    def note_span(self, session_id: str, start: int, end: int) -> None:
        """Note positions."""
        self.spans.setdefault(session_id, []).append((start, end))

    def flip_bits(self, path: Path, chance: Random) -> None:
        """Flip some bits of a journal's file, or write zeros."""
        data = bytearray(path.read_bytes())
        least = max(0, len(data) - NEAR_BYTES) if chance.random() < 0.8 else 0
        flipped = {chance.randrange(least, len(data)) for _ in range(chance.randint(3, 30))} if data else set()
        for start, end, payload in _frames(bytes(data)):
            if any(start <= at < end + 4 for at in flipped):  # zeros reach further
                self.note(decode(payload))
        for at in flipped:
            if chance.random() < 0.3:
                data[at : at + 4] = bytes(len(data[at : at + 4]))
            else:
                data[at] ^= 1 << chance.randrange(8)
        path.write_bytes(data)

    def delete(self, path: Path) -> None:
        """Delete a journal's file."""
        for _, _, payload in _frames(path.read_bytes()):
            self.note(decode(payload))
        path.unlink()


def _frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the whole frames, behind earlier damage too: from where, to where, and what is in them."""
    at = 0
    while at < len(data):
        for payload in split_payloads(data[at:])[0]:
            start, at = at, at + HEADER_BYTES + len(payload)
            yield start, at, payload
        following = BEGINS.search(data, at + 1 + HEADER_BYTES)
        at = following.start() - HEADER_BYTES if following else len(data)
