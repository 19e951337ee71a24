"""Rows of the database in the forms in which they once came: raw as Chunks, features and predictions as Notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw

from zander.database.connection import Row
from zander.wire.chunk import Chunk, Origin, Samples
from zander.wire.codec import dumps
from zander.wire.messages import Note

# `array_send` gives an array as it is stored: its bytes are cut faster than a list of floats is made, and no bit of
# them changes on the way. Zander writes no NULL into an array; another program might.
RAW_FIELDS = "timestamp, session_id, position, array_send(array_replace(channels, NULL, 'NaN')) AS channels"
NOTE_FIELDS = "timestamp, serial, session_id, user_id, prediction_type, classifier_name, classifier_version, data"

_fields = msgspec.json.Decoder(dict[str, Raw])  # values stay as they are written, so none can be out of range


def chunks(rows: list[Row], origin: Callable[[str], Origin]) -> list[Chunk]:
    """Make a chunk of all rows of RAW_FIELDS that follow each other in one session."""
    if not rows:
        return []
    times, session_ids, positions, arrays = zip(*rows, strict=True)
    times_us = np.array(times, np.int64)
    edges = [0, *_breaks(session_ids, positions, arrays), len(rows)]
    return [
        Chunk(origin(str(session_ids[i])), positions[i], times_us[i:j], _samples(arrays[i:j]))
        for i, j in pairwise(edges)
    ]


def _breaks(session_ids: tuple[Any, ...], positions: tuple[int, ...], arrays: tuple[bytes, ...]) -> list[int]:
    """Return where a row does not follow the one before it."""
    numbers: dict[Any, int] = {}
    sessions = np.array([numbers.setdefault(session_id, len(numbers)) for session_id in session_ids])
    sizes = np.array([len(array) for array in arrays])
    breaks = (np.diff(np.array(positions)) != 1) | (np.diff(sessions) != 0) | (np.diff(sizes) != 0)
    found: list[int] = (np.flatnonzero(breaks) + 1).tolist()
    return found


def _samples(arrays: tuple[bytes, ...]) -> Samples:
    """Read arrays of one length: 20 bytes that say what it is, then every value behind its size, all big-endian."""
    n_channels = (len(arrays[0]) - 20) // 8
    row = np.dtype([("head", "V20"), ("channels", [("size", ">i4"), ("value", ">f4")], n_channels)])
    return np.frombuffer(b"".join(arrays), row)["channels"]["value"].astype(np.float32)


def features(row: Row) -> Note:
    """Make the message that the relay sent, and whose it is, of a row of NOTE_FIELDS."""
    who = {"user_id": row["user_id"], "session_id": str(row["session_id"]), "timestamp": row["timestamp"] / 1e6}
    return Note("features", row["timestamp"], dumps({"type": "features"} | _fields.decode(row["data"]) | who))


def prediction(row: Row) -> Note:
    """Make the message that the consumer sent, without its `id`, and whom it is about, of a row of NOTE_FIELDS."""
    message = {
        "type": "prediction",
        "prediction_type": row["prediction_type"],
        "classifier_name": row["classifier_name"],
        "data": Raw(row["data"].encode()),
        **({} if row["classifier_version"] is None else {"version": row["classifier_version"]}),
        "user_id": row["user_id"],
        "session_id": str(row["session_id"]),
        "timestamp": row["timestamp"] / 1e6,
    }
    return Note("prediction", row["timestamp"], dumps(message))


def columns(rows: Sequence[Sequence[object]], n_columns: int) -> list[list[object]]:
    """Turn rows into columns, as `unnest` takes them; also of no rows."""
    return [[row[i] for row in rows] for i in range(n_columns)]
