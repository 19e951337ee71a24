"""What is recorded: one record for each thing taken in, in the form in which the journal keeps it.

Raw is already the rows of PostgreSQL's binary COPY (`pgcopy.py`): they go from the journal to the database as they are.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

# Features are recorded as predictions of the relay.
EDGE_PREDICTION_TYPE = "workload_edge"
EDGE_CLASSIFIER = "edge_relay"


class _Record(Struct, tag=True, array_like=True, gc=False):  # nothing in it that could lead back to it
    session_id: str


class SessionRecord(_Record, tag="s"):
    """A session's start and, once `end_us` is known, its end; `device_info` is JSON text."""

    user_id: str
    start_us: int
    end_us: int | None
    device_info: str
    fence: int = 0


class RawRecord(_Record, tag="r"):
    """The samples from `position` to `end` (not included), the last of them at `last_us`; `rows` all have one size."""

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

encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Record)


def decode(data: bytes) -> Record:
    """Read a record; msgspec.DecodeError when it is none."""
    record: Record = _decoder.decode(data)
    return record
