"""The server's clock is steady, whatever is done to the system's."""

from __future__ import annotations

import time

import pytest

from zander.streams import clock
from zander.streams.clock import Follower, SteadyClock, now_us


def system_us() -> int:
    return time.time_ns() // 1000


@pytest.fixture
def ahead_us(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How far the system's clock is ahead of what it should be: one number."""
    ahead, steady = [0], SteadyClock()
    monkeypatch.setattr(clock, "time_ns", lambda: time.time_ns() + 1000 * ahead[0])
    monkeypatch.setattr(clock, "now_us", steady.now_us)
    monkeypatch.setattr(clock, "set_clock", steady.set)
    return ahead


def test_it_shows_the_time_of_the_system_and_never_runs_backwards() -> None:
    for shown in (now_us, SteadyClock().now_us):
        before_us = system_us()
        found = [shown() for _ in range(1000)]
        assert found == sorted(found)
        assert abs(found[0] - before_us) < 60_000_000


def test_it_can_be_set() -> None:
    before_us = now_us()
    clock.set_clock(before_us + 3_600_000_000)
    assert now_us() >= before_us + 3_600_000_000
    clock.set_clock(now_us() - 3_600_000_000)
    assert now_us() < before_us + 60_000_000


def test_it_goes_on_where_the_system_s_is_set_back_and_tells_it_once(
    ahead_us: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    follower, before_us = Follower(), clock.now_us()
    follower.follow()
    assert not caplog.messages
    ahead_us[0] = -3_600_000_000
    follower.follow()
    follower.follow()
    assert clock.now_us() >= before_us
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("the system's clock went back by 3600")


def test_it_goes_ahead_with_the_system_s_after_a_suspend(ahead_us: list[int], caplog: pytest.LogCaptureFixture) -> None:
    follower, before_us = Follower(), clock.now_us()
    ahead_us[0] = 3_600_000_000
    follower.follow()
    assert clock.now_us() >= before_us + 3_600_000_000
    follower.follow()
    assert len(caplog.messages) == 1
