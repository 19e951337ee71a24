"""The search for the time of a position, in few probes."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from zander.database.samples import NEAR_SAMPLES, Probe, seek

HOUR_US = 3_600_000_000


class Session:
    """Samples (time, position), and the number of probes."""

    def __init__(self, samples: list[tuple[int, int]]) -> None:
        self.samples = samples
        self.n_probes = 0

    async def find_first(self, start_us: int, end_us: int) -> Probe | None:
        self.n_probes += 1
        assert start_us < end_us
        i = bisect_left(self.samples, (start_us, -1))
        return Probe(*self.samples[i]) if i < len(self.samples) and self.samples[i][0] < end_us else None

    async def seek(self, position: int, step_us: int) -> int:
        return await seek(self.find_first, position, self.samples[-1][0], step_us)

    def n_read_over(self, time_us: int, position: int) -> int:
        """How many samples lie between a time and a position."""
        return sum(time_us <= at and it < position for at, it in self.samples)


async def test_seek_in_a_regular_session_takes_one_probe() -> None:
    session = Session([(HOUR_US + 7812 * i, i) for i in range(100_000)])
    for position in (0, 50_000, 99_999):
        session.n_probes = 0
        found = await session.seek(position, 7812 * (100_000 - position) + 100_000)
        assert found <= HOUR_US + 7812 * position
        assert session.n_read_over(found, position) <= NEAR_SAMPLES
        assert session.n_probes == 1


async def test_seek_in_a_session_that_paused_for_a_day_takes_some_dozens_of_probes() -> None:
    session = Session([(HOUR_US + 7812 * i + 24 * HOUR_US * (i > 60_000), i) for i in range(100_000)])
    found = await session.seek(30_000, 7812 * 70_000)
    assert session.n_read_over(found, 30_000) <= NEAR_SAMPLES
    assert session.n_probes < 40


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    """Any session: with holes, pauses, and many samples at one time."""
    steps = draw(st.lists(st.tuples(st.sampled_from([0, 0, 1, 10_000, HOUR_US]), st.integers(1, 3)), min_size=1))
    n_each = draw(st.sampled_from([1, 100, 2000]))
    samples, time_us, position = [], draw(st.integers(0, HOUR_US)), draw(st.integers(0, 5))
    for step_us, skip in steps:
        time_us, position = time_us + step_us, position + skip
        samples += [(time_us, position + i) for i in range(n_each)]
        position += n_each
    return Session(samples)


@given(sessions(), st.data())
async def test_seek_finds_a_time_before_which_nothing_at_or_after_the_position_lies(
    session: Session, data: st.DataObject
) -> None:
    last = session.samples[-1][1]
    position, step_us = data.draw(st.integers(0, last + 5)), data.draw(st.integers(1, HOUR_US))
    found = await session.seek(position, step_us)
    assert all(at >= found for at, it in session.samples if it >= position)
    if position in {it for _, it in session.samples}:  # and of those before it few are not, but for those of one time
        later = [(at, it) for at, it in session.samples if at > found and it < position]
        assert len(later) <= NEAR_SAMPLES
    assert session.n_probes < 120
