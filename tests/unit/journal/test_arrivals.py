from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zander.journal.arrivals import MARK_SECONDS, MAX_MARKS, Arrivals


def test_nothing_that_waits_has_waited_for_no_time() -> None:
    assert Arrivals().oldest_s == math.inf


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=50), st.lists(st.tuples(st.integers(0, 50), st.booleans())))
def test_the_oldest_is_never_too_young_and_at_most_one_mark_too_old(
    pauses_s: list[float], commits: list[tuple[int, bool]]
) -> None:
    arrivals, now_s, committed = Arrivals(), 100.0, 0
    came_s: list[float] = []
    for pause_s in pauses_s:
        now_s += pause_s
        arrivals.note(len(came_s), now_s)
        came_s.append(now_s)
    for offset, divides in commits:
        committed = max(committed, min(offset, len(came_s)))
        arrivals.commit(committed, len(came_s), now_s)
        if divides:
            arrivals.divide()
        if committed == len(came_s):
            assert arrivals.oldest_s == math.inf
            return
        assert came_s[committed] - MARK_SECONDS <= arrivals.oldest_s <= came_s[committed]


def test_a_long_outage_takes_no_more_memory_and_is_told_almost_as_exactly() -> None:
    arrivals, n = Arrivals(), 1_000_000
    for second in range(0, n, 10):
        arrivals.note(second, float(second))
    assert len(arrivals._marks) <= MAX_MARKS
    assert arrivals.oldest_s == 0
    for second in range(0, n, 9_999):
        arrivals.commit(second, n, n)
        assert second - n / 400 <= arrivals.oldest_s <= second
    arrivals.commit(n, n, n)
    arrivals.note(n, n)
    arrivals.note(n + 1, n + 2 * MARK_SECONDS)
    arrivals.commit(n + 1, n + 2, n + 1)
    assert arrivals.oldest_s == pytest.approx(n + 2 * MARK_SECONDS)  # exact again
