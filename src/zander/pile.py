"""What is recorded, and the `Pile` of it that becomes one batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from zander.chunk import Chunk, Origin, join

MAX_RECORDS = 50_000  # a batch of so many 8-channel samples is encoded in 10 ms
MAX_BYTES = 16 << 20

# What Python's objects around the data cost: measured 384 bytes for a chunk, 730 once it has been JSON too.
CHUNK_BYTES = 800
PREDICTION_BYTES = 600


class SessionRecord(NamedTuple):
    """A session's start and, once `end_us` is known, its end; `device_info` is JSON text."""

    session_id: str
    user_id: str
    start_us: int
    end_us: int | None
    device_info: str


class PredictionRecord(NamedTuple):
    """A model's answer, or an edge relay's features; `data` is JSON text."""

    time_us: int
    session_id: str
    user_id: str
    prediction_type: str
    classifier_name: str
    data: str
    confidence: float | None
    classifier_version: str | None


Record = SessionRecord | Chunk | PredictionRecord


class Pile:
    """Records that are written together. `n` is the number of their batch, 0 until they are first written."""

    __slots__ = ("_n_tidy", "chunks", "n", "n_bytes", "n_records", "oldest_s", "predictions", "sessions")

    def __init__(self) -> None:
        self.n = 0
        self.oldest_s = 0.0  # monotonic time of the first record
        self.n_records = 0  # a chunk counts its samples
        self.n_bytes = 0
        self.sessions: dict[str, SessionRecord] = {}  # the last word on a session holds all of it
        self.chunks: list[Chunk] = []
        self.predictions: list[PredictionRecord] = []
        self._n_tidy = 0  # chunks at the front that `tidy` has been through

    @property
    def is_full(self) -> bool:
        """Whether the batch is large enough: what waits after an outage is written in pieces, memory flat."""
        return self.n_records >= MAX_RECORDS or self.n_bytes >= MAX_BYTES

    def tidy(self) -> None:
        """Join the chunks that follow each other: 8 channels take 840 bytes a sample alone, 60 in a row."""
        tail = self.chunks[self._n_tidy :]
        self.chunks[self._n_tidy :] = joined = _joined(tail)
        self._n_tidy = len(self.chunks)
        self.n_bytes -= (len(tail) - len(joined)) * CHUNK_BYTES

    def halves(self) -> list[Pile]:
        """Divide the records over two piles; none when there is but one sample, prediction or session."""
        records: list[Record] = [*self.sessions.values(), *self.chunks, *self.predictions]
        if len(records) == 1 and isinstance(chunk := records[0], Chunk) and len(chunk) > 1:
            n = len(chunk) // 2
            head = Chunk(chunk.origin, chunk.position, chunk.times_us[:n], chunk.samples[:n])
            records = [head, chunk.since(chunk.position + n)]
        middle = len(records) // 2
        return [_pile(half, self.oldest_s) for half in (records[:middle], records[middle:])] if middle else []

    def name(self) -> tuple[str, str]:
        """Name the first record for the log, without a word of what a client sent: its session, and which."""
        if self.chunks:
            return self.chunks[0].origin.session_id, f"position {self.chunks[0].position}"
        if self.predictions:
            return self.predictions[0].session_id, f"the prediction at {self.predictions[0].time_us} µs"
        return next(iter(self.sessions)), "the start or end"


def _joined(chunks: list[Chunk]) -> list[Chunk]:
    done: list[Chunk] = []
    runs: dict[Origin, list[Chunk]] = {}
    for chunk in chunks:
        run = runs.setdefault(chunk.origin, [])
        if run and run[-1].end != chunk.position:
            done.append(join(run))
            run.clear()
        run.append(chunk)
    return done + [join(run) for run in runs.values()]


def _pile(records: Iterable[Record], oldest_s: float) -> Pile:
    pile = Pile()
    pile.oldest_s = oldest_s
    for record in records:
        if isinstance(record, Chunk):
            pile.chunks.append(record)
            pile.n_records += len(record)
            pile.n_bytes += record.samples.nbytes + record.times_us.nbytes + CHUNK_BYTES
        elif isinstance(record, PredictionRecord):
            pile.predictions.append(record)
            pile.n_records += 1
            pile.n_bytes += len(record.data) + PREDICTION_BYTES
        else:
            pile.sessions[record.session_id] = record
            pile.n_records += 1
    return pile
