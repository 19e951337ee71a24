"""The WebSocket frames of the load: built before the run, and read back with as little work as will do.

Channel 0 of every sample is its index, channel 1 the number of its relay: so a loss, a repeat and a stranger show.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

FORMATS = {"json": "json", "chunk": "chunks", "binary": "binary"}  # how relays send: how their consumers ask

TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
HEADER = struct.Struct("<BBBBHHqq")
HEADER_AND_INDEX = struct.Struct("<4xHHq8xff")
SAMPLE_START = {"json": b'"channels":[', "chunk": b'"samples":[['}
N_TAILS = 997  # different samples but for their first two channels


class Load(NamedTuple):
    """What is asked of the load generator; a message holds `n_chunk` samples.

    The first `listened` relays have the consumers, and those that `stall`, one after another.
    """

    port: int
    relays: int
    consumers: int  # in all
    listened: int
    rate_hz: float
    n_channels: int
    format: str
    n_chunk: int
    features_hz: float
    duration_s: float
    warmup_s: float
    seed: int
    acks: bool = False
    replays: int = 0
    stalled: int = 0  # consumers that never read
    dialect: str = "zander"  # what the generator in Rust speaks

    @property
    def n_messages(self) -> int:
        """Raw messages that each relay sends, warm-up included."""
        return round((self.warmup_s + self.duration_s) * self.rate_hz / self.n_chunk)

    @property
    def n_samples(self) -> int:
        """Samples that each relay sends."""
        return self.n_messages * self.n_chunk

    @property
    def n_features(self) -> int:
        """Features that each relay sends."""
        return int((self.warmup_s + self.duration_s) * self.features_hz)


def frame(opcode: int, payload: bytes) -> bytes:
    """Frame a client's message; masked, as it must be, with zeros, so that nothing changes."""
    n = len(payload)
    if n < 126:
        return struct.pack("!BBI", opcode, 0x80 | n, 0) + payload
    if n < 1 << 16:
        return struct.pack("!BBHI", opcode, 0x80 | 126, n, 0) + payload
    return struct.pack("!BBQI", opcode, 0x80 | 127, n, 0) + payload


def raw_frames(load: Load, relay: int) -> Iterator[bytes]:
    """Build all raw messages of a relay; float32 holds the index exactly up to 2^24."""
    microvolts = np.random.default_rng(load.seed).normal(0, 20, (N_TAILS, load.n_channels)).round(2)
    if load.format == "binary":
        return _binary_frames(load, relay, microvolts)
    tails = [json.dumps(row[2:].tolist())[1:] for row in microvolts]
    tails = [f", {tail}" if load.n_channels > 2 else tail for tail in tails]
    who = f".0, {relay}.0" if load.n_channels > 1 else ".0"
    return _text_frames(load, [who + tail for tail in tails])


def _text_frames(load: Load, tails: list[str]) -> Iterator[bytes]:
    for first in range(0, load.n_samples, load.n_chunk):
        samples = [f"[{i}{tails[i % N_TAILS]}" for i in range(first, first + load.n_chunk)]
        field = f'"channels":{samples[0]}' if load.format == "json" else f'"samples":[{",".join(samples)}]'
        yield frame(TEXT, b'{"type":"raw",%b}' % field.encode())


def _binary_frames(load: Load, relay: int, microvolts: np.ndarray[Any, Any]) -> Iterator[bytes]:
    for first in range(0, load.n_samples, load.n_chunk):
        index = np.arange(first, first + load.n_chunk)
        samples = microvolts[index % N_TAILS].astype("<f4")
        samples[:, 1:2], samples[:, 0] = relay, index
        header = HEADER.pack(1, 1, 1, 0, load.n_channels, load.n_chunk, first, -(1 << 63))
        yield frame(BINARY, header + samples.tobytes())


def feature_frames(load: Load) -> list[bytes]:
    """Build the features that every relay sends; they are numbered."""
    bands = {"delta": 0.12, "theta": 0.25, "alpha": 0.35, "beta": 0.2, "gamma": 0.08}
    features = {"type": "features", "workload": 0.65, "confidence": 0.89, "band_powers": bands}
    messages = [features | {"metrics": {"n": n, "theta_beta_ratio": 1.38}} for n in range(load.n_features)]
    return [frame(TEXT, json.dumps(message).encode()) for message in messages]


class Inbox:
    """What one consumer got: first index, number of samples and time of arrival of every raw message."""

    def __init__(self, load: Load, relay: int) -> None:
        self.relay = relay
        self.first, self.n, self.arrived = array("q"), array("q"), array("d")
        self.n_samples = 0
        self.n_features = 0
        self.acked, self.acked_at = array("q"), array("d")
        self.strange: list[str] = []  # what should not have come
        self._rest = b""
        self._start = SAMPLE_START.get(load.format, b"")
        self._who = b".0,%d.0" % relay if load.n_channels > 1 else b".0"
        self._n_channels = load.n_channels

    def take(self, data: bytes, now: float) -> bytes:
        """Read what the socket gave; return the pongs that are due."""
        if self._rest:
            data = self._rest + data
        at, end, pongs = 0, len(data), b""
        while end - at >= 2:
            body = at + 2
            size = data[at + 1]
            if size == 126:
                body = at + 4
                size = int.from_bytes(data[at + 2 : body], "big")
            elif size == 127:
                body = at + 10
                size = int.from_bytes(data[at + 2 : body], "big")
            stop = body + size
            if stop > end or body > end:
                break
            opcode = data[at]
            if opcode == TEXT and self._start:
                self._take_text(data, body, stop, now)
            elif opcode == BINARY:
                self._take_binary(data, body, now)
            elif opcode == PING:
                pongs += frame(PONG, data[body:stop])
            else:
                self._take_other(data[body:stop], opcode, now)
            at = stop
        self._rest = data[at:]
        return pongs

    def _take_text(self, data: bytes, body: int, stop: int, now: float) -> None:
        start = data.find(self._start, body, stop)
        if start < 0:
            self._take_other(data[body:stop], TEXT, now)
            return
        start += 12
        dot = data.find(b".", start, stop)
        n = 1 if self._start == b'"channels":[' else data.count(b"],[", start, stop) + 1
        self._add(int(data[start:dot]), n, now, mine=data.startswith(self._who, dot))

    def _take_binary(self, data: bytes, body: int, now: float) -> None:
        n_channels, n, position, index, relay = HEADER_AND_INDEX.unpack_from(data, body)
        is_mine = (n_channels, index) == (self._n_channels, position) and (n_channels == 1 or relay == self.relay)
        self._add(position, n, now, mine=is_mine)

    def _add(self, first: int, n: int, now: float, *, mine: bool) -> None:
        self.first.append(first)
        self.n.append(n)
        self.arrived.append(now)
        self.n_samples += n
        if not mine:
            self.strange.append(f"a sample {first} of another relay")

    def _take_other(self, payload: bytes, opcode: int, now: float) -> None:
        if payload.startswith(b'{"type":"features"'):
            self.n_features += 1
        elif payload.startswith(b'{"type":"ack"'):
            self.acked.append(json.loads(payload)["durable"])
            self.acked_at.append(now)
        elif not payload.startswith((b'{"type":"status"', b'{"type":"auth_ok"')):
            self.strange.append(f"{opcode:#x} {payload[:200]!r}")


def lost_samples(inbox: Inbox, expected: int) -> int:
    """Count the indices that did not come exactly once, were never sent, or came out of order."""
    first, n = np.array(inbox.first), np.array(inbox.n)
    index = np.repeat(first - np.cumsum(n) + n, n) + np.arange(n.sum())
    once = np.bincount(index[(index >= 0) & (index < expected)], minlength=expected) == 1
    n_unsent = np.count_nonzero((index < 0) | (index >= expected))
    n_misplaced = np.count_nonzero(np.diff(index) < 0)
    return int(expected - np.count_nonzero(once) + n_unsent + n_misplaced)
