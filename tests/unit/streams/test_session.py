"""The promises: one position and one time for every sample, neither running backwards."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zander.errors import BadMessage
from zander.streams.session import MAX_AGE_US, MAX_AHEAD_US, Accepted, Session
from zander.wire.chunk import MAX_POSITION, RawIn
from zander.wire.messages import DeviceInfo, Gap

NOW_US = 1_764_000_000_000_000
RATE_HZ = 128.0
PERIOD_US = 7812.5
ANY_AGE_US = 1 << 62


def session(n_channels: int | None = 2, sampling_rate: float | None = RATE_HZ, max_age_us: int = ANY_AGE_US) -> Session:
    device = DeviceInfo(sampling_rate=sampling_rate, channel_count=n_channels)
    return Session("me", "s", NOW_US, device, {}, max_age_us=max_age_us)


def raw(
    n: int, position: int | None = None, time_us: int | None = None, *, first: int = 0, n_channels: int = 2
) -> RawIn:
    """`n` samples; the first channel counts from `first`, or from their position."""
    samples = np.zeros((n, n_channels), np.float32)
    samples[:, 0] = np.arange(n) + (first if position is None else position)
    return RawIn(position, time_us, samples)


def positions(accepted: Accepted) -> list[int]:
    """Positions of the samples accepted; the first channel says the same."""
    if accepted.chunk is None:
        return []
    found = list(range(accepted.chunk.position, accepted.chunk.end))
    assert accepted.chunk.samples[:, 0].tolist() == found
    return found


def times_us(accepted: Accepted) -> list[int]:
    assert accepted.chunk
    assert accepted.chunk.times_us.dtype == np.int64
    found: list[int] = accepted.chunk.times_us.tolist()
    return found


def state(of: Session) -> dict[str, object]:
    return {
        name: getattr(of, name) for name in (*Session.__slots__, "next_position", "count", "last_time_us", "n_clamped")
    }


def refusal(of: Session, sent: RawIn, now_us: int = NOW_US) -> BadMessage:
    """The error with which a session refuses; it must not change by that."""
    before = state(of)
    with pytest.raises(BadMessage) as refused:
        of.accept(sent, now_us)
    assert state(of) == before
    return refused.value


# 1. The channel count never changes within a session.


def test_the_device_says_how_many_channels_there_are() -> None:
    of = session(n_channels=2)
    error = refusal(of, raw(1, n_channels=3))
    assert (error.code, error.message) == ("bad_channels", "expected 2 channels, got 3")
    assert positions(of.accept(raw(1), NOW_US)) == [0]


def test_if_it_does_not_the_first_sample_says_it() -> None:
    of = session(n_channels=None)
    of.accept(raw(1, n_channels=3), NOW_US)
    assert of.n_channels == 3
    assert refusal(of, raw(1, 1, n_channels=2)).code == "bad_channels"


def test_a_sample_that_is_refused_says_nothing_about_the_channels() -> None:
    of = session(n_channels=None)
    refusal(of, raw(1, time_us=-1, n_channels=3))
    refusal(of, raw(1, MAX_POSITION, n_channels=3))
    of.accept(raw(1, n_channels=2), NOW_US)
    assert of.n_channels == 2


def test_more_channels_than_the_protocol_has_are_refused() -> None:
    of = session(n_channels=None)
    assert refusal(of, raw(1, n_channels=1025)).code == "bad_channels"
    of.accept(raw(1, n_channels=1024), NOW_US)


# 2. No position: the server counts.


def test_without_positions_the_server_counts() -> None:
    of = session()
    assert positions(of.accept(raw(2), NOW_US)) == [0, 1]
    assert positions(of.accept(raw(1, first=2), NOW_US)) == [2]
    assert of.next_position == 3


def test_the_server_counts_on_after_a_position() -> None:
    of = session()
    of.accept(raw(2, 5), NOW_US)
    assert positions(of.accept(raw(1, first=7), NOW_US)) == [7]


# 3. A position ahead: a gap.


def test_a_position_ahead_leaves_a_gap() -> None:
    of = session()
    of.accept(raw(2, 0), NOW_US)
    accepted = of.accept(raw(2, 5), NOW_US)
    assert accepted.gap == Gap("s", 2, 5, "relay")
    assert accepted.chunk
    assert positions(accepted) == [5, 6]
    assert of.n_gaps == 1


def test_a_session_may_begin_with_a_gap() -> None:
    assert session().accept(raw(1, 3), NOW_US).gap == Gap("s", 0, 3, "relay")


@pytest.mark.parametrize(("sampling_rate", "a_day"), [(RATE_HZ, 11_059_200), (0.001, 86), (None, 86_400_000)])
def test_a_relay_may_skip_a_day_of_samples_and_no_more(sampling_rate: float | None, a_day: int) -> None:
    of = session(sampling_rate=sampling_rate)
    of.accept(raw(1, 0), NOW_US)
    assert refusal(of, raw(1, a_day + 2)).code == "bad_position"
    assert refusal(of, raw(1, MAX_POSITION - 1)).code == "bad_position"
    assert positions(of.accept(raw(1, first=1), NOW_US)) == [1]  # the session goes on
    assert of.accept(raw(1, a_day + 2), NOW_US).gap == Gap("s", 2, a_day + 2, "relay")


def test_positions_end_where_json_readers_become_inexact() -> None:
    of = Session("me", "s", NOW_US, DeviceInfo(sampling_rate=RATE_HZ), {}, next_position=MAX_POSITION - 2)
    assert refusal(of, raw(2, MAX_POSITION - 1)).code == "bad_position"
    of.accept(raw(1, MAX_POSITION - 1), NOW_US)
    assert refusal(of, raw(1, None)).code == "bad_position"


# 4. A position behind: duplicates.


def test_what_is_already_there_is_dropped_and_counted() -> None:
    of = session()
    of.accept(raw(4, 0), NOW_US)
    assert of.accept(raw(4, 0), NOW_US) == Accepted(None, None)
    assert of.accept(raw(2, 1), NOW_US) == Accepted(None, None)
    assert (of.n_duplicates, of.next_position, of.n_gaps) == (6, 4, 0)


def test_of_a_chunk_that_is_half_there_the_rest_is_taken() -> None:
    of = session()
    of.accept(raw(4, 0), NOW_US)
    accepted = of.accept(raw(4, 2, NOW_US), NOW_US)
    assert positions(accepted) == [4, 5]
    assert times_us(accepted) == [NOW_US + 15_625, NOW_US + 23_438]  # of the third and the fourth sample
    assert (of.n_duplicates, of.next_position) == (2, 6)


# 5. No timestamp: a chunk that arrives now ends now.


def test_a_sample_without_a_time_is_of_now() -> None:
    assert times_us(session().accept(raw(1), NOW_US)) == [NOW_US]


def test_a_chunk_without_a_time_ends_now_and_is_spaced_by_the_sampling_rate() -> None:
    assert times_us(session().accept(raw(3), NOW_US)) == [NOW_US - 15_625, NOW_US - 7_813, NOW_US]


def test_a_chunk_with_a_time_begins_then() -> None:
    assert times_us(session().accept(raw(3, None, 1000), NOW_US)) == [1000, 8_812, 16_625]


def test_a_chunk_needs_a_sampling_rate_and_a_sample_does_not() -> None:
    of = session(sampling_rate=None)
    assert refusal(of, raw(2)).code == "no_sampling_rate"
    assert positions(of.accept(raw(1), NOW_US)) == [0]


def test_no_sample_is_of_before_1970() -> None:
    of = session(sampling_rate=0.01)
    with suppress(BadMessage):  # which may be refused
        assert times_us(of.accept(raw(3), 150_000_000)) == [0, 50_000_000, 150_000_000]
    assert of.last_time_us in (0, 150_000_000)


@pytest.mark.parametrize("time_us", [-1, NOW_US + MAX_AHEAD_US + 1, 1000 * NOW_US, -(1 << 63) + 1, (1 << 63) - 1])
def test_a_time_that_cannot_be_is_refused(time_us: int) -> None:
    assert refusal(session(), raw(1, None, time_us)).code == "bad_timestamp"


@pytest.mark.parametrize("n", [1, 3])
def test_a_time_of_long_ago_is_refused_and_the_error_names_the_setting(n: int) -> None:
    of, oldest_us = session(max_age_us=MAX_AGE_US), NOW_US - MAX_AGE_US
    error = refusal(of, raw(n, None, oldest_us - 1))
    assert error.code == "bad_timestamp"
    assert "expected 30 days ago (MAX_AGE_DAYS) to" in error.message
    assert f"got {(oldest_us - 1) / 1e6} s" in error.message
    assert times_us(of.accept(raw(n, None, oldest_us), NOW_US))[0] == oldest_us
    with pytest.raises(BadMessage, match="MAX_AGE_DAYS"):
        of.check_time(oldest_us - 1, NOW_US)


def test_a_clock_may_be_a_minute_ahead() -> None:
    assert MAX_AHEAD_US == 60_000_000
    latest = NOW_US + MAX_AHEAD_US
    assert times_us(session().accept(raw(1, None, latest), NOW_US)) == [latest]


def test_the_last_sample_of_a_chunk_must_not_be_more_than_a_minute_ahead_either() -> None:
    of = session(sampling_rate=0.001)
    assert refusal(of, raw(100, None, NOW_US)).code == "bad_timestamp"


@pytest.mark.parametrize("sampling_rate", [1e-12, 1e-300, 5e-324])
def test_no_sampling_rate_makes_times_that_do_not_fit(sampling_rate: float) -> None:
    """A device with such a rate is refused in its auth, or its chunks are; none becomes nonsense."""
    try:
        device = msgspec.convert({"sampling_rate": sampling_rate, "channel_count": 2}, DeviceInfo)
    except msgspec.ValidationError:
        return
    of = Session("me", "s", NOW_US, device, {})
    refusal(of, raw(2, None, NOW_US))


# 6. Times never run backwards.


def test_a_sample_that_would_run_backwards_gets_the_time_before_it() -> None:
    of = session()
    of.accept(raw(1, None, NOW_US), NOW_US)
    assert times_us(of.accept(raw(1, 1, NOW_US - 5), NOW_US)) == [NOW_US]
    assert times_us(of.accept(raw(3, 2, NOW_US - 10_000), NOW_US)) == [NOW_US, NOW_US, NOW_US + 5_625]
    assert of.last_time_us == NOW_US + 5_625


def test_the_servers_clock_may_be_set_back() -> None:
    of = session()
    of.accept(raw(1), NOW_US)
    assert times_us(of.accept(raw(1, 1), NOW_US - 60_000_000)) == [NOW_US]


def test_what_comes_after_a_time_in_the_future_is_spaced_by_the_rate_and_meets_now_again() -> None:
    of = session()
    of.accept(raw(1, None, NOW_US + MAX_AHEAD_US), NOW_US)
    found: list[int] = []
    for i in range(1, 128 * 600):
        found += times_us(of.accept(raw(1, first=i), NOW_US + int(i * PERIOD_US)))
    steps = np.diff(found)
    assert steps.min() > 0  # not one at the time of another
    assert np.count_nonzero(steps < 0.87 * PERIOD_US) == 1  # where they meet
    assert steps.max() <= 1.01 * PERIOD_US
    assert found[-1] == NOW_US + int(76_799 * PERIOD_US)
    assert of.n_clamped == pytest.approx(8 * 60 * 128, abs=8)  # an eighth of a second in every second


def test_a_chunk_that_would_run_backwards_is_moved_until_it_meets_its_own_times() -> None:
    of = session()
    of.accept(raw(1, None, NOW_US), NOW_US)
    assert times_us(of.accept(raw(4, 1, NOW_US - 1000), NOW_US + 20_000)) == [
        NOW_US + 6_836,  # moved: by 7/8 of a period
        NOW_US + 13_672,
        NOW_US + 20_000,  # not beyond now
        NOW_US + 22_438,  # its own
    ]
    assert of.n_clamped == 3


def test_a_backlog_without_times_is_no_clock_that_was_set_back() -> None:
    of = session()
    of.accept(raw(1), NOW_US)
    accepted = of.accept(raw(1000, first=1), NOW_US)
    assert times_us(accepted) == [NOW_US] * 1000
    assert (accepted.back_us, of.n_clamped) == (0, 999)


def test_what_is_moved_does_not_go_beyond_now() -> None:
    of = session()
    of.accept(raw(1, None, NOW_US), NOW_US)
    accepted = of.accept(raw(3, 1, NOW_US - 3_600_000_000), NOW_US + 10_000)
    assert times_us(accepted) == [NOW_US + 6_836, NOW_US + 10_000, NOW_US + 10_000]
    assert (accepted.back_us, of.n_clamped) == (3_600_000_000, 3)


def test_what_is_moved_never_goes_further_ahead_than_a_time_that_is_accepted() -> None:
    of = session(sampling_rate=0.001)
    of.accept(raw(1, None, NOW_US + 1), NOW_US)
    for _ in range(10):
        of.accept(raw(1, None, 0, first=of.next_position), NOW_US)
    assert of.last_time_us == NOW_US + MAX_AHEAD_US


def test_duplicates_are_not_counted_as_clamped() -> None:
    of = session()
    of.accept(raw(4, 0, NOW_US), NOW_US)
    assert of.accept(raw(4, 0, NOW_US - 50_000), NOW_US) == Accepted(None, None)
    assert of.n_clamped == 0


# All of it.


class Sent(NamedTuple):
    """A message: where it begins, seen from the next position, and when, seen from now; None: it does not say."""

    step: int | None
    n: int
    offset_us: int | None
    n_channels: int
    elapsed_us: int


SENT = st.builds(
    Sent,
    step=st.none() | st.sampled_from([0, 0, 0, -1, 1, 2]) | st.integers(-8, 8),
    n=st.integers(1, 6),
    offset_us=st.none() | st.sampled_from([0, -50_000, 50_000, -(10**15), MAX_AHEAD_US, MAX_AHEAD_US + 1, -(10**16)]),
    n_channels=st.sampled_from([2, 2, 2, 2, 3]),
    elapsed_us=st.sampled_from([0, 1, 40_000, -1_000]),
)


@given(st.sampled_from([None, 2]), st.lists(SENT, max_size=20))
def test_whatever_a_relay_sends_the_promises_hold(n_channels: int | None, messages: list[Sent]) -> None:
    of = session(n_channels)
    now_us, next_position, last_us, n_duplicates, n_gaps, n_clamped = NOW_US, 0, 0, 0, 0, 0
    covered: list[int] = []
    for step, n, offset_us, width, elapsed_us in messages:
        now_us += elapsed_us
        position = None if step is None else max(0, next_position + step)
        time_us = None if offset_us is None else now_us + offset_us
        sent = raw(n, position, time_us, first=next_position, n_channels=width)
        span_us = round((n - 1) * PERIOD_US)
        first_us = now_us - span_us if time_us is None else time_us
        is_of_another_time = time_us is not None and not 0 <= time_us <= now_us + MAX_AHEAD_US - span_us
        if width != (n_channels or width) or is_of_another_time:
            refusal(of, sent, now_us)
            continue
        n_channels = width
        accepted = of.accept(sent, now_us)

        start = next_position if position is None else position
        new = [index for index in range(start, start + n) if index >= next_position]
        assert positions(accepted) == new
        n_duplicates += n - len(new)
        gap = (next_position, start) if start > next_position else None
        assert accepted.gap == (Gap("s", *gap, "relay") if gap else None)
        n_gaps += gap is not None
        if new:
            given_us = [first_us + round(i * PERIOD_US) for i in range(n)][-len(new) :]
            if given_us[0] < last_us:
                latest_us = now_us if last_us <= now_us else max(last_us, now_us + MAX_AHEAD_US)
                moved_us = [min(last_us + round((i + 1) * 0.875 * PERIOD_US), latest_us) for i in range(len(new))]
                expected_us = list(map(max, given_us, moved_us))
            else:
                expected_us = given_us
            n_clamped += sum(map(int.__ne__, expected_us, given_us))
            assert times_us(accepted) == expected_us
            covered += [*range(*(gap or (0, 0))), *new]
            next_position, last_us = new[-1] + 1, times_us(accepted)[-1]
        assert (of.next_position, of.last_time_us) == (next_position, last_us)
        assert (of.n_duplicates, of.n_gaps, of.n_clamped) == (n_duplicates, n_gaps, n_clamped)
    assert covered == list(range(next_position))  # every position is a sample or in a gap, once, in order


# A resumed session.


def test_a_resumed_session_goes_on_where_it_was() -> None:
    device = DeviceInfo(sampling_rate=RATE_HZ, channel_count=2)
    of = Session("me", "s", NOW_US - 1000, device, {}, fence=3, next_position=100, last_time_us=NOW_US)
    assert (of.fence, of.base) == (3, 100)
    accepted = of.accept(raw(2, 99, NOW_US - 500), NOW_US)
    assert positions(accepted) == [100]
    assert times_us(accepted) == [NOW_US + 7_312]
    assert accepted.gap is None
    assert of.accept(raw(1, 103), NOW_US).gap == Gap("s", 101, 103, "relay")


# The rest.


def test_the_time_of_another_message_is_now_or_what_it_says() -> None:
    of = session()
    assert of.check_time(None, NOW_US) == NOW_US
    assert of.check_time(5, NOW_US) == 5
    for time_us in (-1, NOW_US + MAX_AHEAD_US + 1):
        with pytest.raises(BadMessage):
            of.check_time(time_us, NOW_US)


def test_bad_messages_are_counted() -> None:
    of = session()
    assert [of.count_bad(), of.count_bad(), of.n_bad] == [1, 2, 2]
