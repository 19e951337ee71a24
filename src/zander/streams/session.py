"""Rules of a session: every sample has one position and one time, and neither runs backwards.

Rules, in the order they are applied to what a relay sends:

1. The channel count never changes within a session.
2. No position: the server counts on from `next_position`.
3. A position ahead of `next_position`: the hole is a gap, announced and never filled. A hole of more than a day of
   samples is refused.
4. A position behind it: what is already there is dropped and counted as duplicate, the rest is taken.
5. No timestamp: a chunk that arrives now ends now. Samples of a chunk are spaced by the sampling rate.
6. Times never run backwards: samples that would are moved behind the one before, spaced by the sampling rate, and
   counted as clamped. They are an eighth closer, so that they meet the times they were given in the end, and never
   beyond now; behind a sample that is itself in the future, not beyond MAX_AHEAD_US.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct, convert

from zander.errors import BadMessage
from zander.positions import SessionPosition
from zander.wire.chunk import MAX_POSITION, Chunk, Origin, RawIn, Times, period_us
from zander.wire.messages import MAX_CHANNELS, DeviceInfo, Gap

MAX_AHEAD_US = 60_000_000  # a clock may be wrong; but what comes after such a time cannot be before it
CATCH_UP = 0.875  # of a period, between samples that are moved
JUMP_US = 1_000_000  # backwards: a clock was set; less is a network that delays
DAY_US = 86_400_000_000
MAX_AGE_US = 30 * DAY_US  # a chunk of the hypertable for each day: a relay must not make thousands of them
IRREGULAR_PERIOD_US = 1000.0  # taken for the positions in a day where a device has no sampling rate


class Accepted(NamedTuple):
    """The result of accepting raw: the hole before it, if any, and the samples that are new, if any."""

    gap: Gap | None
    chunk: Chunk | None
    back_us: int = 0  # how far before the last one the first says it is, or the server's clock where it says nothing


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
        self.n_clamped = 0
        self.n_bad = 0
        self.base = next_position
        self.origin = Origin(user_id, session_id, period_us(device.sampling_rate))

    @property
    def session_id(self) -> str:
        """The UUID, as text."""
        return self.origin.session_id

    @property
    def user_id(self) -> str:
        """The user whose session it is."""
        return self.origin.user_id

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
        given_us = times_us[skip:]
        back_us = max(0, self.last_time_us - int(now_us if raw.time_us is None else given_us[0]))
        times_us = self._clamped(given_us, now_us) if given_us[0] < self.last_time_us else given_us
        self.next_position = position + n
        self.last_time_us = int(times_us[-1])
        return Accepted(gap, Chunk(self.origin, position + skip, times_us, raw.samples[skip:]), back_us)

    def check_time(self, time_us: int | None, now_us: int) -> int:
        """Return the time of a message, `now_us` if it has none; BadMessage when it is out of range."""
        if time_us is None:
            return now_us
        if not max(0, now_us - self.max_age_us) <= time_us <= now_us + MAX_AHEAD_US:
            oldest = f"{self.max_age_us / DAY_US:g} days ago (MAX_AGE_DAYS)"
            raise BadMessage("bad_timestamp", f"expected {oldest} to a minute from now, got {time_us / 1e6} s")
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
            return np.array([self.check_time(time_us, now_us)])
        spaced_us = _spaced_us(0, n, self.origin.period_us)
        length_us = int(spaced_us[-1])
        first_us = self.check_time(now_us - length_us if time_us is None else time_us, now_us)
        self.check_time(first_us + length_us, now_us)
        return first_us + spaced_us

    def _clamped(self, given_us: Times, now_us: int) -> Times:
        """Move the times that would run backwards (rule 6), and count them; the first of them would."""
        last_us = self.last_time_us
        latest_us = now_us if last_us <= now_us else max(last_us, now_us + MAX_AHEAD_US)
        moved_us = last_us + _spaced_us(1, len(given_us), CATCH_UP * self.origin.period_us)
        times_us = np.maximum(given_us, np.minimum(moved_us, latest_us))
        self.n_clamped += int(np.count_nonzero(times_us != given_us))
        return times_us


def _spaced_us(first: int, n: int, period_us: float) -> Times:
    return np.round(np.arange(first, first + n) * period_us).astype(np.int64)


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
