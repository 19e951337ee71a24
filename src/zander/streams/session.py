"""Rules of a session: every sample has one position and one time, and neither runs backwards.

Rules, in the order they are applied to what a relay sends:

1. The channel count never changes within a session.
2. No position: the server counts on from `next_position`.
3. A position ahead of `next_position`: the hole is a gap, announced and never filled. A hole of more than a day of
   samples is refused.
4. A position behind it: what is already there is dropped and counted as duplicate, the rest is taken.
5. No timestamp: a chunk that arrives now ends now. Samples of a chunk are spaced by the sampling rate.
6. Times never run backwards: a sample that would is given the time of the one before it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct, convert

from zander.errors import BadMessage
from zander.positions import SessionPosition
from zander.wire.chunk import MAX_POSITION, Chunk, Origin, RawIn, Times, period_us
from zander.wire.messages import MAX_CHANNELS, DeviceInfo, Gap

MAX_AHEAD_US = 86_400_000_000  # a day: milliseconds sent as seconds would pin every later sample to the far future
DAY_US = 86_400_000_000
MAX_AGE_US = 30 * DAY_US  # a chunk of the hypertable for each day: a relay must not make thousands of them
IRREGULAR_PERIOD_US = 1000.0  # taken for the positions in a day where a device has no sampling rate


class Accepted(NamedTuple):
    """The result of accepting raw: the hole before it, if any, and the samples that are new, if any."""

    gap: Gap | None
    chunk: Chunk | None


class Session(SessionPosition):
    """One relay's life on one device layout.

    A resumed one goes on at `next_position`, after the sample at `last_time_us`; `base` is where it began on this node.
    `fence` is how often it was resumed before: the database takes only from the greatest. Times older than `max_age_us`
    are refused.
    """

    __slots__ = (
        "base",
        "channel_names",
        "device_info",
        "fence",
        "max_age_us",
        "n_bad",
        "n_channels",
        "n_duplicates",
        "n_gaps",
        "origin",
        "start_us",
        "user_id",
    )

    def __init__(
        self,
        user_id: str,
        session_id: str,
        start_us: int,
        device: DeviceInfo,
        device_info: dict[str, Any],
        *,
        fence: int = 0,
        next_position: int = 0,
        last_time_us: int = 0,
        max_age_us: int = MAX_AGE_US,
    ) -> None:
        self.user_id = user_id
        self.start_us = start_us
        self.device_info = device_info
        self.channel_names = device.channel_names
        self.n_channels = device.n_channels
        self.fence = fence
        self.next_position = next_position
        self.count = next_position  # position of the next sample that has none
        self.last_time_us = last_time_us
        self.max_age_us = max_age_us
        self.n_gaps = 0
        self.n_duplicates = 0
        self.n_bad = 0
        self.base = next_position
        self.origin = Origin(user_id, session_id, period_us(device.sampling_rate))

    @property
    def session_id(self) -> str:
        """The UUID, as text."""
        return self.origin.session_id

    def accept(self, raw: RawIn, now_us: int) -> Accepted:
        """Give raw its positions and times; BadMessage, and nothing has changed, when it breaks a rule."""
        n = len(raw.samples)
        self._check(raw, n)
        times_us = self._times(raw.time_us, n, now_us)
        self.n_channels = raw.samples.shape[1]
        expected = self.next_position
        position = self.count if raw.position is None else raw.position
        self.count = position + n if raw.position is None else max(expected, position + n)
        skip = min(max(0, expected - position), n)
        self.n_duplicates += skip
        if skip == n:
            return Accepted(None, None)
        gap = Gap(self.session_id, expected, position, "relay") if position > expected else None
        self.n_gaps += gap is not None
        times_us = times_us[skip:]
        self.next_position = position + n
        self.last_time_us = int(times_us[-1])
        return Accepted(gap, Chunk(self.origin, position + skip, times_us, raw.samples[skip:]))

    def check_time(self, time_us: int | None, now_us: int) -> int:
        """Return the time of a message, `now_us` if it has none; BadMessage when it is out of range."""
        if time_us is None:
            return now_us
        if not max(0, now_us - self.max_age_us) <= time_us <= now_us + MAX_AHEAD_US:
            n_days = self.max_age_us / DAY_US
            raise BadMessage(
                "bad_timestamp", f"expected {n_days:g} days ago (MAX_AGE_DAYS) to a day from now, got {time_us / 1e6} s"
            )
        return time_us

    def resume(self, device: DeviceInfo, durable: int) -> None:
        """Go on with a relay that comes back: what it does not number begins at `durable`.

        BadMessage when its device has other channels or another rate by now.
        """
        if None not in (self.n_channels, device.n_channels) and self.n_channels != device.n_channels:
            raise BadMessage("bad_channels", f"expected {self.n_channels} channels as before, got {device.n_channels}")
        if device.sampling_rate and self.origin.period_us not in (0.0, period_us(device.sampling_rate)):
            rate = 1e6 / self.origin.period_us
            raise BadMessage("bad_rate", f"expected {rate:g} Hz as before, got {device.sampling_rate:g}")
        self.count = durable

    def count_bad(self) -> int:
        """Count a bad message, and return how many there were."""
        self.n_bad += 1
        return self.n_bad

    def _check(self, raw: RawIn, n: int) -> None:
        n_channels = raw.samples.shape[1]
        if self.n_channels is None:
            if n_channels > MAX_CHANNELS:
                raise BadMessage("bad_channels", f"expected at most {MAX_CHANNELS} channels, got {n_channels}")
        elif n_channels != self.n_channels:
            raise BadMessage("bad_channels", f"expected {self.n_channels} channels, got {n_channels}")
        if n > 1 and not self.origin.period_us:
            raise BadMessage("no_sampling_rate", "expected device_info.sampling_rate before a chunk of several samples")
        position = self.count if raw.position is None else raw.position
        if position + n > MAX_POSITION:
            raise BadMessage("bad_position", f"expected positions up to {MAX_POSITION}")
        if position > self.next_position + self._max_jump:
            latest = self.next_position + self._max_jump
            raise BadMessage("bad_position", f"expected a position up to {latest}, a day ahead, got {position}")

    @property
    def _max_jump(self) -> int:
        """Positions in a day, which a relay may skip at once."""
        return int(DAY_US / (self.origin.period_us or IRREGULAR_PERIOD_US))

    def _times(self, time_us: int | None, n: int, now_us: int) -> Times:
        if n == 1:
            return np.array([max(self.check_time(time_us, now_us), self.last_time_us)])
        spaced_us = np.round(np.arange(n) * self.origin.period_us).astype(np.int64)
        length_us = int(spaced_us[-1])
        first_us = self.check_time(now_us - length_us if time_us is None else time_us, now_us)
        self.check_time(first_us + length_us, now_us)
        return np.maximum(first_us + spaced_us, self.last_time_us)


class StoredSession(Struct):
    """A row of `sessions`; times in µs. `end_us` is None until its end is stored, which comes after all its samples."""

    session_id: str
    user_id: str
    start_us: int
    end_us: int | None
    device_info: dict[str, Any]
    durable_position: int
    durable_us: int | None
    fence: int

    @property
    def origin(self) -> Origin:
        """Where its samples come from."""
        return Origin(self.user_id, self.session_id, period_us(self.device_info.get("sampling_rate")))


def resumed(stored: StoredSession, device: DeviceInfo, max_age_us: int = MAX_AGE_US) -> Session:
    """Go on with a session from where the database has it; BadMessage when its device is another by now."""
    session = Session(
        stored.user_id,
        stored.session_id,
        stored.start_us,
        convert(stored.device_info, DeviceInfo),
        stored.device_info,
        fence=stored.fence,
        next_position=stored.durable_position,
        last_time_us=stored.durable_us or 0,
        max_age_us=max_age_us,
    )
    session.resume(device, stored.durable_position)
    return session
