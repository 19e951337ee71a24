"""Finding the time of a position by looking at times: `raw_eeg` has no index on positions.

Within a session times never run backwards, so what lies before a time lies before its position too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

NEAR_SAMPLES = 512  # that are read over rather than looked for any closer: less than a look costs
OLDEST_US = 0  # no sample is older than 1970: see session.py


class Sight(NamedTuple):
    """A sample: of those with its time, the one with the lowest position."""

    time_us: int
    position: int


# Finds the first sample from a time (included) to a time (not included), None when there is none.
Look = Callable[[int, int], Awaitable[Sight | None]]


async def seek(look: Look, position: int, last_us: int, step_us: int) -> int:
    """Return a time that is not after that of any sample at or behind `position`, and close to it.

    `last_us` is the time of the session's last sample; `step_us`, how long before it the position is expected.
    """
    high_us, earliest_us = last_us + 1, last_us
    while True:  # in steps that double, so that no more than twice the way is looked at
        at_us = max(OLDEST_US, high_us - step_us)
        found = await look(at_us, high_us)
        if found and found.position <= position:
            return await _narrow(look, position, found, high_us)
        earliest_us = found.time_us if found else earliest_us
        if at_us == OLDEST_US:  # the position is not there, and nothing before it
            return earliest_us
        high_us, step_us = at_us, 2 * step_us


async def _narrow(look: Look, position: int, low: Sight, high_us: int) -> int:
    """Halve the time between a sample not behind the position and a time behind it."""
    while position - low.position > NEAR_SAMPLES and high_us - low.time_us > 1:
        middle_us = (low.time_us + high_us) // 2
        found = await look(middle_us, high_us)
        if found and found.position <= position:
            low = found
        else:
            high_us = middle_us
    return low.time_us
