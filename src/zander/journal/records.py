"""The records of the journal: sessions, samples, gaps and predictions.

Samples are already rows of PostgreSQL's binary COPY (`pgcopy.py`), which go to the database as they are.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from zander.journal.pgcopy import row_encoder
from zander.wire.chunk import Chunk

# Features are recorded as predictions of the relay.
EDGE_PREDICTION_TYPE = "workload_edge"
EDGE_CLASSIFIER = "edge_relay"

BEGINS = re.compile(rb"[\x90-\x9f]\xa1[a-z]")  # every record, as msgpack: an array, first its tag


class _Record(Struct, tag=True, array_like=True, gc=False):  # no field can lead back to it
    session_id: str


class SessionRecord(_Record, tag="s"):
    """A session's start and, once `end_us` is known, its end; `device_info` is JSON text.

    Every position before `next_position` was taken in or given up before: what is not in the journal is damaged.
    """

    user_id: str
    start_us: int
    end_us: int | None
    device_info: str
    fence: int = 0
    next_position: int = 0


class RawRecord(_Record, tag="r"):
    """The samples from `position` to `end` (not included), the last one at `last_us`; all `rows` have the same size."""

    fence: int
    position: int
    end: int
    last_us: int
    rows: bytes


class GapRecord(_Record, tag="g"):
    """Positions from `start` to `end` (not included) that will never come; `reason` is `relay` or `lost`."""

    fence: int
    start: int
    end: int
    reason: str
    time_us: int


class PredictionRecord(_Record, tag="p"):
    """A model's answer, or an edge relay's features; `data` is JSON text."""

    time_us: int
    user_id: str
    prediction_type: str
    classifier_name: str
    data: str
    confidence: float | None
    classifier_version: str | None


Record = SessionRecord | RawRecord | GapRecord | PredictionRecord
R = TypeVar("R", SessionRecord, RawRecord, GapRecord, PredictionRecord)

encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Record)


def decode(data: bytes) -> Record:
    """Read a record; msgspec.DecodeError when it is none."""
    record: Record = _decoder.decode(data)
    return record


def raw_record(chunk: Chunk, fence: int) -> RawRecord:
    """Make a record of samples."""
    origin, position, times_us = chunk.origin, chunk.position, chunk.times_us
    rows = row_encoder(origin, chunk.samples.shape[1]).encode(position, times_us, chunk.samples)
    return RawRecord(origin.session_id, fence, position, chunk.end, times_us.item(-1), rows)


def halves(records: list[R]) -> list[list[R]]:
    """Divide records in two; return none for a single sample, session, gap or prediction."""
    if len(records) > 1:
        middle = len(records) // 2
        return [records[:middle], records[middle:]]
    record = records[0]
    if isinstance(record, RawRecord) and (n := record.end - record.position) > 1:
        middle = record.position + n // 2
        cut = len(record.rows) // n * (n // 2)
        return [
            [replace(record, end=middle, rows=record.rows[:cut])],
            [replace(record, position=middle, rows=record.rows[cut:])],
        ]
    return []
