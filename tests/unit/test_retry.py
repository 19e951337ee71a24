"""Pauses between attempts grow, are random, and become short again."""

from __future__ import annotations

from zander.retry import Backoff


def test_pauses_double_up_to_the_longest_and_are_shortened_by_a_half_at_most() -> None:
    backoff = Backoff(0.5, 30.0)
    for n in range(12):
        longest_s = min(0.5 * 2**n, 30.0)
        assert longest_s / 2 <= backoff.next_s() <= longest_s


def test_pauses_are_random() -> None:
    assert len({Backoff(1.0, 2.0).next_s() for _ in range(10)}) > 1


def test_after_a_reset_the_first_pause_is_next() -> None:
    backoff = Backoff(1.0, 100.0)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() <= 1.0
