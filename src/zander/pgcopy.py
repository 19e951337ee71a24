"""Raw samples as the rows of PostgreSQL's binary COPY, encoded by column.

The rows of one session have one size, so a numpy structured array over their bytes takes each column in one
assignment. A COPY is COPY_HEAD, rows, COPY_END: see COPY, "Binary Format", in PostgreSQL's manual.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zander.chunk import Chunk, Origin

RAW_COLUMNS = ("timestamp", "session_id", "user_id", "position", "channels")

COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
COPY_END = b"\xff\xff"
EPOCH_US = 946_684_800_000_000  # 2000-01-01, from which PostgreSQL counts
FLOAT4_OID = 700


def encode_raw(chunks: list[Chunk]) -> Iterator[bytearray]:
    """Encode the rows of a binary COPY into RAW_COLUMNS, session by session."""
    by_origin: dict[Origin, list[Chunk]] = {}
    for chunk in chunks:
        by_origin.setdefault(chunk.origin, []).append(chunk)
    for origin, of_session in by_origin.items():
        yield _encode_session(origin, of_session)


def _encode_session(origin: Origin, chunks: list[Chunk]) -> bytearray:
    """Encode the rows of one session: they have one size, so each column is one assignment."""
    samples = np.concatenate([chunk.samples for chunk in chunks])
    n_samples, n_channels = samples.shape
    buffer: bytearray = bytearray(_row(origin.session_id, origin.user_id, n_channels)) * n_samples
    rows = np.frombuffer(buffer, _row_dtype(len(origin.user_id.encode()), n_channels))
    rows["timestamp"] = np.concatenate([chunk.times_us for chunk in chunks]) - EPOCH_US
    rows["position"] = _positions(chunks, n_samples)
    rows["channels"]["value"] = samples
    return buffer


def _positions(chunks: list[Chunk], n_samples: int) -> NDArray[np.int64]:
    sizes = [len(chunk.samples) for chunk in chunks]
    if len(sizes) == n_samples:  # one sample each, the common case
        return np.array([chunk.position for chunk in chunks])
    # Every chunk's first position less the samples before it, so that one running count serves all chunks.
    starts = np.array([chunk.position for chunk in chunks]) - np.cumsum([0, *sizes[:-1]])
    positions: NDArray[np.int64] = np.repeat(starts, sizes) + np.arange(n_samples)
    return positions


@lru_cache(maxsize=4096)
def _row(session_id: str, user_id: str, n_channels: int) -> bytes:
    """One row with everything that is the same in all rows of a session."""
    user = user_id.encode()
    row = np.zeros((), _row_dtype(len(user), n_channels))
    for field, value in (("n_fields", 5), ("timestamp_size", 8), ("session_size", 16), ("position_size", 8)):
        row[field] = value
    row["session"] = uuid.UUID(session_id).bytes
    row["user_size"], row["user"] = len(user), user
    row["channels_size"] = 20 + 8 * n_channels
    row["array"] = (1, 0, FLOAT4_OID, n_channels, 1)
    row["channels"]["size"] = 4
    return row.tobytes()


@lru_cache(maxsize=1024)
def _row_dtype(user_size: int, n_channels: int) -> np.dtype[Any]:
    """The layout of a row: n_fields, then every field as its size in bytes and its value; all big-endian."""
    return np.dtype(
        [
            ("n_fields", ">i2"),
            ("timestamp_size", ">i4"),
            ("timestamp", ">i8"),  # µs since 2000
            ("session_size", ">i4"),
            ("session", "V16"),
            ("user_size", ">i4"),
            ("user", f"V{user_size}"),
            ("position_size", ">i4"),
            ("position", ">i8"),
            ("channels_size", ">i4"),
            ("array", ">i4", 5),  # dimensions, may hold NULL, element type, length, lower bound
            ("channels", [("size", ">i4"), ("value", ">f4")], n_channels),
        ]
    )
