"""Clock of the server: a steady one, which was set once by the system's.

The system's clock may be set back while samples are stamped by it; every time behind the last one would then be moved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic_ns, time_ns

from zander.native import IS_NATIVE

if IS_NATIVE:
    from zander import _native

STEP_US = 1_000_000  # that the system's clock may differ by: it is slewed, and both are read one after the other

log = logging.getLogger(__name__)


class SteadyClock:
    """Microseconds since 1970, by the monotonic clock."""

    def __init__(self) -> None:
        self._offset_us = 0
        self.set(time_ns() // 1000)

    def now_us(self) -> int:
        """Return the time."""
        return self._offset_us + monotonic_ns() // 1000

    def set(self, now_us: int) -> None:
        """Show another time from now on."""
        self._offset_us = now_us - monotonic_ns() // 1000


now_us: Callable[[], int]
set_clock: Callable[[int], None]
if IS_NATIVE:
    now_us, set_clock = _native.now_us, _native.set_clock
else:
    _clock = SteadyClock()
    now_us, set_clock = _clock.now_us, _clock.set


class Follower:
    """The system's clock, as far as the server's follows it: ahead, after a suspend or a first synchronisation."""

    def __init__(self) -> None:
        self._has_told = False

    def follow(self) -> None:
        """Go ahead with the system's clock where it was set; where it was set back, go on. Is called every second."""
        ahead_us = time_ns() // 1000 - now_us()
        if ahead_us > STEP_US:
            set_clock(time_ns() // 1000)
            log.warning("the system's clock went ahead by %.1f s: samples that carry no time follow", ahead_us / 1e6)
        elif ahead_us < -STEP_US and not self._has_told:
            self._has_told = True
            log.warning(
                "the system's clock went back by %.1f s: samples that carry no time stay ahead of it until a restart",
                -ahead_us / 1e6,
            )
