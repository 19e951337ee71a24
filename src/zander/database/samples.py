"""Reader by position: the samples of a session, and the gaps between them.

`raw_eeg` has no index on positions, so the time of a position is searched for. Within a session times never run
backwards: what lies before a time lies before its position too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from zander.database import rows
from zander.database.connection import Pool, Row
from zander.database.history import read_in_windows
from zander.database.late import of_both
from zander.streams.session import StoredSession
from zander.wire.chunk import MAX_POSITION, Chunk, Origin
from zander.wire.messages import Gap

NEAR_SAMPLES = 512  # that are read over rather than searched any closer: less than a probe costs
OLDEST_US = 0  # no sample is older than 1970: see session.py
MAX_REMEMBERED = 4096
MAX_GAPS = 1 << 31
MAX_GAPS_SKIPPED = 64  # in a row; after more of them a reading begins too early, and reads over them
STEP_US = 10_000  # a sample, where the device does not say: 100 Hz
MARGIN_US = 100_000  # for a clock that jitters

GAPS = """
SELECT from_position, to_position, reason, noticed_at FROM gaps
WHERE session_id = $1 AND to_position > $2 AND from_position < $3 ORDER BY from_position LIMIT $4
"""

OF_SESSION = "user_id = $1 AND session_id = $2 AND timestamp >= $3 AND timestamp < $4"
FIRST = f"{of_both('timestamp', 'raw_eeg', OF_SESSION, 'timestamp', '1')} ORDER BY timestamp LIMIT 1"
LOWEST = f"{of_both('position', 'raw_eeg', OF_SESSION, 'position', '1')} ORDER BY position LIMIT 1"
OF_POSITION = f"{OF_SESSION} AND position >= $5"
RAW = f"""
{of_both(rows.RAW_FIELDS, "raw_eeg", OF_POSITION, "timestamp, position", "$6")} ORDER BY timestamp, position LIMIT $6
"""


class StoredGap(NamedTuple):
    """Positions from `start` to `end` (not included) that are not in `raw_eeg`; `reason` as in `gaps`."""

    start: int
    end: int
    reason: str
    noticed_us: int


class Probe(NamedTuple):
    """A sample that a search came upon: of those with its time, the one with the lowest position."""

    time_us: int
    position: int


# Finds the first sample from a time (included) to a time (not included), None when there is none.
FindFirst = Callable[[int, int], Awaitable[Probe | None]]


class SampleReader:
    """The samples and gaps of sessions, by position; all methods raise Unavailable without the database."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._read_until_us: dict[tuple[str, int], int] = {}  # by session and position: where a reading ended

    async def gaps(self, session_id: str, start: int, end: int, n: int = MAX_GAPS) -> list[StoredGap]:
        """Return the first `n` gaps between two positions, as they are stored."""
        return [StoredGap(*row) for row in await self._pool.fetch(GAPS, session_id, start, end, n)]

    async def read(self, stored: StoredSession, position: int, n: int) -> list[Chunk | Gap]:
        """Return the first `n` durable samples at or after `position`, and what the relay skipped there."""
        if stored.durable_us is None or position >= stored.durable_position:
            return []
        origin = stored.origin
        key = (origin.user_id, origin.session_id)

        async def read(start_us: int, end_us: int, n: int) -> list[Row]:
            return await self._pool.fetch(RAW, *key, start_us, end_us, position, n)

        start_us = self._read_until_us.get((origin.session_id, position)) or await self._seek(stored, position)
        step_us = round(n * (origin.period_us or STEP_US)) + MARGIN_US
        found = await read_in_windows(self._first(origin), read, start_us, stored.durable_us + 1, step_us=step_us, n=n)
        chunks = rows.chunks(found, lambda _: origin)
        if chunks:
            self._remember(chunks[-1])
        end = chunks[-1].end if len(found) == n else stored.durable_position
        return await self._with_gaps(chunks, origin.session_id, position, end)

    async def _with_gaps(self, chunks: list[Chunk], session_id: str, start: int, end: int) -> list[Chunk | Gap]:
        """Put what the relay skipped from `start` to `end` between the chunks; the rest of a hole was lost."""
        starts, ends = [*(chunk.position for chunk in chunks), end], [start, *(chunk.end for chunk in chunks)]
        if all(following <= before for before, following in zip(ends, starts, strict=True)):
            return [*chunks]
        gaps = [gap for gap in await self.gaps(session_id, start, end) if gap.reason == "relay"]
        skipped = (Gap(session_id, max(start, gap.start), min(gap.end, end), "relay") for gap in gaps)
        return sorted([*chunks, *skipped], key=lambda item: item.end)

    async def _seek(self, stored: StoredSession, position: int) -> int:
        """Return a time at which a reading comes upon a position soon."""
        first, key = self._first(stored.origin), (stored.user_id, stored.session_id)

        async def find_first(start_us: int, end_us: int) -> Probe | None:
            at_us = await first(start_us, end_us)
            if at_us is None:
                return None
            return Probe(at_us, (await self._pool.fetch(LOWEST, *key, at_us, at_us + 1))[0][0])

        for gap in await self.gaps(stored.session_id, position, MAX_POSITION, MAX_GAPS_SKIPPED):
            if gap.start <= position:  # what is not there cannot be found: search for what follows
                position = max(position, gap.end)
        n_later = max(0, stored.durable_position - position)
        step_us = round(n_later * stored.origin.period_us) + MARGIN_US
        return await seek(find_first, position, stored.durable_us or 0, step_us)

    def _first(self, origin: Origin) -> Callable[[int, int], Awaitable[int | None]]:
        """Return a function that finds the time of a session's first sample between two times."""

        async def first(start_us: int, end_us: int) -> int | None:
            found = await self._pool.fetch(FIRST, origin.user_id, origin.session_id, start_us, end_us)
            return found[0][0] if found else None

        return first

    def _remember(self, chunk: Chunk) -> None:
        """Remember where a reading ended, for the one that goes on there."""
        self._read_until_us[chunk.origin.session_id, chunk.end] = int(chunk.times_us[-1])
        if len(self._read_until_us) > MAX_REMEMBERED:
            del self._read_until_us[next(iter(self._read_until_us))]


async def seek(find_first: FindFirst, position: int, last_us: int, step_us: int) -> int:
    """Return a time close to the sample at `position`, and not later than any sample at or after that position.

    `last_us` is the time of the session's last sample; `step_us`, how long before it the position is expected.
    """
    high_us, earliest_us = last_us + 1, last_us
    while True:  # in steps that double, so that no more than twice the way is searched
        at_us = max(OLDEST_US, high_us - step_us)
        found = await find_first(at_us, high_us)
        if found and found.position <= position:
            return await _narrow(find_first, position, found, high_us)
        earliest_us = found.time_us if found else earliest_us
        if at_us == OLDEST_US:  # the position is not there, and nothing before it
            return earliest_us
        high_us, step_us = at_us, 2 * step_us


async def _narrow(find_first: FindFirst, position: int, low: Probe, high_us: int) -> int:
    """Halve the time between a sample at or before the position and a time after it."""
    while position - low.position > NEAR_SAMPLES and high_us - low.time_us > 1:
        middle_us = (low.time_us + high_us) // 2
        found = await find_first(middle_us, high_us)
        if found and found.position <= position:
            low = found
        else:
            high_us = middle_us
    return low.time_us
