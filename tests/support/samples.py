"""Samples that say where they belong, and the records and batches that carry them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np

from zander.journal.batch import Batch
from zander.journal.records import GapRecord, PredictionRecord, Record, SessionRecord, raw_record
from zander.wire.chunk import Chunk, Origin

T0_US = 1_764_000_000_123_457
PERIOD_US = 7812
WRITER_ID = uuid.UUID(int=7)
ORIGIN = Origin("user", "00000000-0000-4000-8000-000000000001", 7812.5)
OTHER = Origin("other", "00000000-0000-4000-8000-000000000002", 7812.5)
SESSION = SessionRecord(ORIGIN.session_id, "user", T0_US, None, '{"sampling_rate": 128}')
PREDICTION = PredictionRecord(
    ORIGIN.session_id, T0_US, "user", "workload_edge", "edge_relay", '{"workload": 0.5}', 0.9, "v2"
)


def chunk(position: int, n_samples: int = 1, origin: Origin = ORIGIN, n_channels: int = 2) -> Chunk:
    """Samples that carry their position in the first channel, and in their times."""
    positions = np.arange(position, position + n_samples)
    samples = np.zeros((n_samples, n_channels), np.float32)
    samples[:, 0] = positions
    return Chunk(origin, position, T0_US + PERIOD_US * positions, samples)


def gap(start: int, end: int, reason: str = "relay", fence: int = 0, origin: Origin = ORIGIN) -> GapRecord:
    return GapRecord(origin.session_id, fence, start, end, reason, T0_US)


def batch(start: int, end: int, *what: Record | Chunk, fence: int = 0, writer_id: uuid.UUID = WRITER_ID) -> Batch:
    """What one journal says from offset `start` to `end`."""
    made = Batch(writer_id, start)
    for record in records(what, fence):
        made.add(record)
    made.end = end
    return made


def records(what: Sequence[Record | Chunk], fence: int = 0) -> list[Record]:
    return [raw_record(each, fence) if isinstance(each, Chunk) else each for each in what]
