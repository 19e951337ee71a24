"""Samples on their way: a `Chunk` and where it comes from, its three encodings, and the binary layout both ways.

A chunk encodes itself at most once per format, however many consumers it goes to.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from zander.errors import BadMessage
from zander.native import IS_NATIVE

if IS_NATIVE:
    from zander._native import chunk_text, sample_texts

Samples = NDArray[np.float32]
Times = NDArray[np.int64]

MAX_POSITION = (1 << 53) - 1  # the largest that every JSON reader keeps exactly
MAX_CHUNK_BYTES = 64 << 10  # of float32; as JSON text it stays well below the 1 MiB a WebSocket client takes

MAX_DRIFT_US = 50_000  # samples of one message lose their own times; beyond this a new one starts

BINARY_LAYOUT = (  # of a binary chunk: type, name and meaning of each field; little-endian, without padding
    ("u8", "version", "1"),
    ("u8", "kind", "1 = raw"),
    ("u8", "dtype", "1 = float32"),
    ("u8", "flags", "0"),
    ("u16", "n_channels", "at least 1"),
    ("u16", "n_samples", "at least 1"),
    ("i64", "position", "of the first sample; -1 = the server counts"),
    ("i64", "time_us", "of the first sample, µs since 1970; -2⁶³ = the server's clock"),
    ("f32 × n_samples × n_channels", "samples", "µV, sample after sample; NaN is a missing value"),
)
_HEADER = struct.Struct("<" + "".join({"u8": "B", "u16": "H", "i64": "q"}[kind] for kind, *_ in BINARY_LAYOUT[:-1]))
BINARY_HEADER_BYTES = _HEADER.size
_KIND = (1, 1, 1, 0)  # version, kind, dtype, flags
_SERVER_COUNTS = -1
_SERVER_CLOCK = -(1 << 63)


class RawIn(NamedTuple):
    """Raw as a relay sent it: float32 `(n_samples, n_channels)` in µV; None where the server counts or stamps."""

    position: int | None
    time_us: int | None
    samples: Samples


class Origin:
    """The origin of samples: the user, the session, and the sampling period that spaces a chunk (0: unknown).

    `prefix` is the JSON text of a raw message up to its position.
    """

    __slots__ = ("__weakref__", "period_us", "prefix", "session_id", "user_id")

    def __init__(self, user_id: str, session_id: str, period_us: float) -> None:
        self.user_id = user_id
        self.session_id = session_id
        self.period_us = period_us
        names = orjson.dumps({"type": "raw", "user_id": user_id, "session_id": session_id}).decode()
        self.prefix = f'{names[:-1]},"position":'

    def frame(self, position: int, time_us: int, field: str, values: Samples) -> str:
        """Write one raw message; `field` is `channels` for one sample, `samples` for a chunk."""
        text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        return f'{self.prefix}{position},"timestamp":{time_us / 1e6},"{field}":{text}}}'


class Chunk:
    """Consecutive samples of one session: `samples` float32 `(n, n_channels)` C order in µV, `times_us` int64 `(n,)`.

    `end` is the position after the last sample. A chunk is shared by every outbox and the recorder, so it is immutable:
    its arrays are read-only. Each encoding is made on first use.
    """

    def __init__(self, origin: Origin, position: int, times_us: Times, samples: Samples) -> None:
        self.origin: Final = origin
        self.position: Final = position
        self.end: Final = position + len(samples)
        self.times_us: Final = times_us
        self.samples: Final = samples
        times_us.flags.writeable = samples.flags.writeable = False

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def json_frames(self) -> list[str]:
        """A message per sample, in the original form."""
        if IS_NATIVE and (texts := sample_texts(self.origin.prefix, self.position, self.times_us, self.samples)):
            return texts
        frame, position = self.origin.frame, self.position
        times_us = self.times_us.tolist()
        if len(times_us) == 1:  # the usual case, and a microsecond less
            return [frame(position, times_us[0], "channels", self.samples[0])]
        return [frame(position + i, times_us[i], "channels", self.samples[i]) for i in range(len(times_us))]

    @cached_property
    def chunk_frame(self) -> str:
        """One JSON message for all samples."""
        if IS_NATIVE and (text := chunk_text(self.origin.prefix, self.position, self.times_us, self.samples)):
            return text
        return self.origin.frame(self.position, int(self.times_us[0]), "samples", self.samples)

    @cached_property
    def binary_frame(self) -> bytes:
        """The protocol's binary chunk."""
        return encode_binary(RawIn(self.position, int(self.times_us[0]), self.samples))

    def pieces(self, n_max: int | None = None) -> list[Chunk]:
        """Cut into chunks of at most MAX_CHUNK_BYTES and `n_max` samples, and at least one sample."""
        if self.samples.nbytes <= MAX_CHUNK_BYTES and (n_max is None or len(self) <= n_max):
            return [self]
        n = max(1, MAX_CHUNK_BYTES // self.samples[0].nbytes)
        n = min(n, n_max or n)
        pieces = [
            Chunk(self.origin, self.position + i, self.times_us[i : i + n], self.samples[i : i + n])
            for i in range(0, len(self), n)
        ]
        if frames := self.__dict__.get("json_frames"):  # made already: they need not be made again
            for i, piece in enumerate(pieces):
                piece.__dict__["json_frames"] = frames[i * n : (i + 1) * n]
        return pieces

    def split(self, n: int) -> tuple[Chunk, Chunk]:
        """Cut behind the first `n` samples."""
        first, rest = (
            Chunk(self.origin, self.position + part.start, self.times_us[part], self.samples[part])
            for part in (slice(0, n), slice(n, len(self)))
        )
        if frames := self.__dict__.get("json_frames"):  # made already: they need not be made again
            first.__dict__["json_frames"], rest.__dict__["json_frames"] = frames[:n], frames[n:]
        return first, rest

    @cached_property
    def _is_late(self) -> NDArray[np.bool_]:
        """Which samples are further than MAX_DRIFT_US from where their place after the first one says."""
        spaced_us = self.times_us[0] + np.arange(len(self)) * self.origin.period_us
        late: NDArray[np.bool_] = np.abs(self.times_us - spaced_us) > MAX_DRIFT_US
        return late

    def steady(self) -> list[Chunk]:
        """Cut where one message would shift a sample's time by more than MAX_DRIFT_US."""
        if len(self) == 1:
            return [self]
        rest, parts = self, list[Chunk]()
        while n := int(rest._is_late.argmax()):
            parts.append(Chunk(rest.origin, rest.position, rest.times_us[:n], rest.samples[:n]))
            rest = rest.since(rest.position + n)
        return [*parts, rest]

    def since(self, position: int) -> Chunk:
        """Cut off what lies before `position`, which must not lie past the end."""
        n = position - self.position
        return Chunk(self.origin, position, self.times_us[n:], self.samples[n:]) if n > 0 else self

    def follows(self, first: Chunk, n_samples: int) -> bool:
        """Return whether this comes `n_samples` after the start of `first`, in position and, nearly, in time."""
        if self.origin is not first.origin or self.position != first.position + n_samples:
            return False
        spaced_us = int(first.times_us[0]) + n_samples * first.origin.period_us
        if len(self) == 1:  # the usual case, and 5 µs less
            return abs(int(self.times_us[0]) - spaced_us) <= MAX_DRIFT_US
        late_us = self.times_us - (spaced_us + np.arange(len(self)) * first.origin.period_us)
        return bool((np.abs(late_us) <= MAX_DRIFT_US).all())


def join(chunks: list[Chunk]) -> Chunk:
    """Make one chunk of several that follow each other."""
    if len(chunks) == 1:
        return chunks[0]
    times_us = np.concatenate([chunk.times_us for chunk in chunks])
    samples = np.concatenate([chunk.samples for chunk in chunks])
    return Chunk(chunks[0].origin, chunks[0].position, times_us, samples)


def encode_binary(raw: RawIn) -> bytes:
    """Write the protocol's binary chunk: a 24-byte header and the samples, little-endian."""
    n_samples, n_channels = raw.samples.shape
    position = _SERVER_COUNTS if raw.position is None else raw.position
    time_us = _SERVER_CLOCK if raw.time_us is None else raw.time_us
    header = _HEADER.pack(*_KIND, n_channels, n_samples, position, time_us)
    return header + raw.samples.astype("<f4", copy=False).tobytes()


def decode_binary(data: bytes) -> RawIn:
    """Read a binary chunk; BadMessage says which field is wrong. The samples are a view of `data`."""
    if len(data) < _HEADER.size:
        raise BadMessage("bad_length", f"expected a header of {_HEADER.size} bytes, got {len(data)} bytes")
    *kind, n_channels, n_samples, position, time_us = _HEADER.unpack_from(data)
    if tuple(kind) != _KIND:
        raise BadMessage("bad_header", f"expected version 1, kind 1, dtype 1, flags 0, got {kind}")
    if not n_channels or not n_samples:
        raise BadMessage("bad_length", f"expected at least 1 sample and 1 channel, got {n_samples} and {n_channels}")
    expected = _HEADER.size + 4 * n_samples * n_channels
    if len(data) != expected:
        raise BadMessage("bad_length", f"expected {expected} bytes for {n_samples} × {n_channels}, got {len(data)}")
    if not _SERVER_COUNTS <= position <= MAX_POSITION:
        raise BadMessage("bad_position", f"expected -1 to {MAX_POSITION}, got {position}")
    samples = np.frombuffer(data, "<f4", offset=_HEADER.size).reshape(n_samples, n_channels)
    if np.isinf(samples).any():
        raise BadMessage("bad_value", "expected finite values or NaN, got infinity")
    return RawIn(
        None if position == _SERVER_COUNTS else position,
        None if time_us == _SERVER_CLOCK else time_us,
        samples,
    )


def read_header(data: bytes) -> tuple[int, int, int, int]:
    """Return n_channels, n_samples, position and time_us of a chunk that `encode_binary` wrote; nothing is checked."""
    _, _, _, _, n_channels, n_samples, position, time_us = _HEADER.unpack_from(data)
    return n_channels, n_samples, position, time_us


def join_binary(frames: list[bytes]) -> bytes:
    """Make one binary chunk of several that follow each other and have the same channels."""
    n_channels, _, position, time_us = read_header(frames[0])
    data = b"".join(frame[BINARY_HEADER_BYTES:] for frame in frames)
    return _HEADER.pack(*_KIND, n_channels, len(data) // (4 * n_channels), position, time_us) + data


def period_us(sampling_rate: object) -> float:
    """Return the time between two samples at a rate in Hz; 0, unknown, when it is not a number above 0."""
    return 1e6 / sampling_rate if isinstance(sampling_rate, int | float) and sampling_rate > 0 else 0.0
