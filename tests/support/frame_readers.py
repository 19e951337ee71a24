"""A frame reader without a connection, and what its twin makes of the same samples."""

from __future__ import annotations

import numpy as np

from support.relay_bytes import binary, chunk
from support.samples import ORIGIN, T0_US
from zander._native import FrameReader
from zander.streams.session import Session
from zander.streams.stream import Stream
from zander.wire.chunk import Chunk, Samples
from zander.wire.frames import frame
from zander.wire.messages import DeviceInfo


class Alone:
    """A frame reader of a stream that is nowhere else, and its twin."""

    def __init__(self, user_id: str = "me", n_channels: int = 16, position: int = 0, fence: int = 0) -> None:
        device = DeviceInfo(sampling_rate=128.0, channel_count=n_channels)
        who = (user_id, ORIGIN.session_id, 0)
        self.session = Session(*who, device, {}, fence=fence, next_position=position, max_age_us=1 << 62)  # of any time
        stream = Stream(self.session, None, 10_000)  # type: ignore[arg-type]
        stream.ring.allocate(n_channels)
        stream.ring.next_position = position
        self.reader = FrameReader(lambda: T0_US)
        self.reader.intercept(stream)

    def take(self, samples: Samples, time_us: int | None) -> Chunk:
        """Take samples in one message, and return what the twin makes of it."""
        position = self.session.next_position
        data = chunk(samples.tobytes(), samples.shape[1], time_us=T0_US if time_us is None else time_us)
        assert self.reader.feed(binary(data)) is None
        assert self.reader.samples()[1] == samples.tobytes()
        return Chunk(self.session.origin, position, np.frombuffer(self.reader.samples()[0], np.int64), samples)


def any_values(random: np.random.Generator, n_samples: int, n_channels: int) -> Samples:
    """Float32 of random bits, and some of usual size."""
    bits = random.integers(0, 1 << 32, (n_samples, n_channels), dtype=np.uint32)
    usual = random.random((n_samples, n_channels)) * 10.0 ** random.integers(-9, 20, (n_samples, n_channels))
    values = np.where(random.random((n_samples, n_channels)) < 0.5, bits.view(np.float32), usual.astype(np.float32))
    return np.where(np.isinf(values), np.float32(1.5), values)


def json_differs(random: np.random.Generator) -> str:
    """Write samples as JSON in both ways; return how that differs."""
    alone = Alone(position=int(random.integers(0, (1 << 53) - 100)))
    taken = alone.take(any_values(random, 16, 16), int(10 ** random.uniform(3, 15.24)))
    native, twin = alone.reader.json(), b"".join(map(frame, taken.json_frames))
    return "" if native == twin else f"native {native!r}\ntwin {twin!r}"
