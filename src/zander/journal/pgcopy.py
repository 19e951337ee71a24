"""Raw samples as the rows of PostgreSQL's binary COPY, and back.

A COPY is COPY_HEAD, rows, COPY_END: see COPY, "Binary Format", in PostgreSQL's manual. The rows of one session all
have the same size, and differ in time, position and values only.
"""

from __future__ import annotations

import uuid
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from zander.wire.chunk import Origin

RAW_COLUMNS = ("timestamp", "session_id", "user_id", "position", "channels")

COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
COPY_END = b"\xff\xff"
EPOCH_US = 946_684_800_000_000  # 2000-01-01, from which PostgreSQL counts
FLOAT4_OID = 700

_TIME_AT = 6  # after n_fields and the field's size
_USER_SIZE_AT = 34
_put_int64 = Struct(">q").pack_into
_get_int32 = Struct(">i").unpack_from
_get_int64 = Struct(">q").unpack_from


class Rows(NamedTuple):
    """The contents of rows: `times_us` int64 `(n,)`, `samples` float32 `(n, n_channels)`."""

    times_us: NDArray[np.int64]
    samples: NDArray[np.float32]


class RowEncoder:
    """An encoder of one session's rows; a sample takes 0.7 µs, since only what differs is written into a template."""

    def __init__(self, session_id: str, user_id: str, n_channels: int) -> None:
        user = user_id.encode()
        self.n_channels = n_channels
        self._dtype = _row_dtype(len(user), n_channels)
        self._row = bytearray(_template(self._dtype, uuid.UUID(session_id).bytes, user, n_channels))
        (row,) = np.frombuffer(self._row, self._dtype)
        self._values = row["channels"]["value"]
        self._position_at = int(self._dtype.fields["position"][1])  # type: ignore[index]

    def encode(self, position: int, times_us: NDArray[np.int64], samples: NDArray[np.float32]) -> bytes:
        """Write consecutive samples, float32 `(n, n_channels)`, the first at `position`."""
        if len(samples) == 1:
            _put_int64(self._row, _TIME_AT, times_us.item() - EPOCH_US)
            _put_int64(self._row, self._position_at, position)
            self._values[:] = samples[0]
            return bytes(self._row)
        buffer = self._row * len(samples)
        rows = np.frombuffer(buffer, self._dtype)
        rows["timestamp"] = times_us - EPOCH_US
        rows["position"] = np.arange(position, position + len(samples))
        rows["channels"]["value"] = samples
        return bytes(buffer)


_encoders: WeakKeyDictionary[Origin, RowEncoder] = WeakKeyDictionary()  # as long as there is a session


def row_encoder(origin: Origin, n_channels: int) -> RowEncoder:
    """Return the encoder of a session."""
    encoder = _encoders.get(origin)
    if encoder is None or encoder.n_channels != n_channels:
        encoder = _encoders[origin] = RowEncoder(origin.session_id, origin.user_id, n_channels)
    return encoder


def decode_rows(rows: bytes, n_rows: int) -> Rows:
    """Read the rows of one session."""
    (user_size,) = _get_int32(rows, _USER_SIZE_AT)
    n_channels = (len(rows) // n_rows - _row_dtype(user_size, 0).itemsize) // 8
    fields = np.frombuffer(rows, _row_dtype(user_size, n_channels))
    return Rows(
        fields["timestamp"].astype(np.int64) + EPOCH_US, np.ascontiguousarray(fields["channels"]["value"], np.float32)
    )


def first_us(rows: bytes) -> int:
    """Return the time of the first row."""
    time_us: int = _get_int64(rows, _TIME_AT)[0] + EPOCH_US
    return time_us


def first_of_rows(rows: bytes) -> tuple[str, int]:
    """Return the user of rows, and the time of the first of them in µs."""
    return rows_user(rows), first_us(rows)


def rows_user(rows: bytes) -> str:
    """Return the user in rows of one session."""
    (user_size,) = _get_int32(rows, _USER_SIZE_AT)
    return rows[_USER_SIZE_AT + 4 :][:user_size].decode()


def _template(dtype: np.dtype[Any], session: bytes, user: bytes, n_channels: int) -> bytes:
    """Write one row with everything that is the same in all rows of a session."""
    row = np.zeros((), dtype)
    for field, value in (("n_fields", 5), ("timestamp_size", 8), ("session_size", 16), ("position_size", 8)):
        row[field] = value
    row["session"] = session
    row["user_size"], row["user"] = len(user), user
    row["channels_size"] = 20 + 8 * n_channels
    row["array"] = (1, 0, FLOAT4_OID, n_channels, 1)
    row["channels"]["size"] = 4
    return row.tobytes()


@lru_cache(maxsize=1024)
def _row_dtype(user_size: int, n_channels: int) -> np.dtype[Any]:
    """Return the layout of a row: n_fields, then every field as its size in bytes and its value; all big-endian."""
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
            ("channels", [("size", ">i4"), ("value", ">f4")], (n_channels,)),
        ]
    )
