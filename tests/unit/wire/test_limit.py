"""The limit of what a peer may send: a second's worth at once, then no more than the rate."""

from __future__ import annotations

import pytest

from zander.wire.limit import Limit


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [100.0]
    monkeypatch.setattr("zander.wire.limit.monotonic", lambda: seconds[0])
    return seconds


def test_as_much_as_a_second_gives_may_come_at_once(now: list[float]) -> None:
    limit = Limit(1000)
    assert (limit.spend(1000), limit.is_over, limit.take_reached()) == (0.0, False, False)


def test_who_sends_more_waits_until_it_is_paid(now: list[float]) -> None:
    limit = Limit(1000)
    assert limit.spend(1500) == 0.5
    assert (limit.is_over, limit.take_reached(), limit.take_reached()) == (True, True, False)
    now[0] += 0.5
    assert not limit.is_over
    assert limit.spend(100) == pytest.approx(0.1)


def test_a_rest_gives_no_more_than_a_second(now: list[float]) -> None:
    limit = Limit(1000)
    now[0] += 3600
    assert limit.spend(2000) == 1.0
