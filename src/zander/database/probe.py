"""Records without meaning, of the kind and about the size of a refused one.

Where the database takes such a record and not that one, that one is to blame; else the database takes nothing now. They
are written below a savepoint and taken back.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import Any, TypeVar

import numpy as np

from zander.journal.pgcopy import RowEncoder, decode_rows
from zander.journal.records import GapRecord, PredictionRecord, RawRecord, SessionRecord
from zander.wire.codec import dumps

R = TypeVar("R", SessionRecord, RawRecord, GapRecord, PredictionRecord)

USER = "zander"
PROBE_BYTES = 1 << 17  # more than the pages in use have room for: on a full disk it is refused too


def probe(record: R) -> list[R]:
    """Make records that a database takes which takes anything; each of samples is of a session of its own."""
    session_id, now_us = str(uuid.uuid4()), time.time_ns() // 1000
    made: list[Any]
    if isinstance(record, RawRecord):
        n_channels = decode_rows(record.rows, record.end - record.position).samples.shape[1]
        made = [_raw(n_channels, now_us) for _ in range(1 + PROBE_BYTES // (8 * n_channels + 64))]
    elif isinstance(record, PredictionRecord):
        made = [PredictionRecord(session_id, now_us, USER, "probe", USER, _json(PROBE_BYTES), None, None)]
    elif isinstance(record, GapRecord):
        made = [GapRecord(session_id, 0, 0, 1, "lost", now_us)]
    else:
        made = [SessionRecord(session_id, USER, now_us, None, _json(len(record.device_info)))]
    return made


def _raw(n_channels: int, now_us: int) -> RawRecord:
    session_id = str(uuid.uuid4())
    values = np.frombuffer(os.urandom(4 * n_channels), np.uint32).astype(np.float32)  # zeros would be compressed
    rows = RowEncoder(session_id, USER, n_channels).encode(0, np.array([now_us]), values.reshape(1, -1))
    return RawRecord(session_id, 0, 0, 1, now_us, rows)


def _json(n_bytes: int) -> str:
    return dumps({"probe": os.urandom(n_bytes // 2).hex()})
