"""Pending connections: how many there may be, what they may send, and who goes when it is too much."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from zander.wire.pending import MAX_PENDING_BYTES, REQUEST_SECONDS, SPARED_SECONDS, Pending, PendingConnections


class Line(asyncio.Transport):
    """A transport that only knows where it comes from, and whether it was cut."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host
        self.is_cut = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.host, 1) if name == "peername" else default

    def abort(self) -> None:
        self.is_cut = True


@pytest.fixture
def three() -> PendingConnections:
    return PendingConnections(3)


def come(connections: PendingConnections, host: str) -> Pending:
    pending = Pending(Line(host))
    connections.add(pending)
    return pending


def is_cut(pending: Pending) -> bool:
    assert isinstance(pending.transport, Line)
    return pending.transport.is_cut


def test_where_there_are_too_many_the_oldest_of_the_busiest_address_goes(three: PendingConnections) -> None:
    honest, one, two, three_ = (come(three, host) for host in ("good", "bad", "bad", "bad"))
    assert [is_cut(each) for each in (honest, one, two, three_)] == [False, True, False, False]
    assert (three.n, three.n_cut) == (3, 1)


def test_who_has_asked_already_does_not_go_for_those_who_say_nothing(three: PendingConnections) -> None:
    honest = Pending(Line("same"))
    honest.is_answered = True
    three.add(honest)
    silent = [come(three, "same") for _ in range(10)]
    assert not is_cut(honest)
    assert [is_cut(each) for each in silent] == [True] * 8 + [False] * 2


def test_nobody_should_come_before_the_one_that_would_go_has_had_its_time(
    three: PendingConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = come(three, "one")
    come(three, "one")
    assert three.wait_s() == 0.0
    come(three, "one")
    assert 0.0 < three.wait_s() <= SPARED_SECONDS
    monkeypatch.setattr("zander.wire.pending.monotonic", lambda: first.since_s + SPARED_SECONDS)
    assert three.wait_s() == 0.0


def test_who_is_known_makes_room(three: PendingConnections) -> None:
    first, *_ = [come(three, "one") for _ in range(3)]
    three.remove(first)
    three.remove(first)
    come(three, "one")
    assert (three.n, three.n_cut) == (3, 0)


def test_of_too_many_bytes_in_all_the_greatest_sender_goes(three: PendingConnections) -> None:
    small, large = come(three, "one"), come(three, "two")
    three.receive(small, 1000)
    three.receive(large, MAX_PENDING_BYTES)
    assert (is_cut(small), is_cut(large)) == (False, True)
    three.receive(small, MAX_PENDING_BYTES - 1000)
    assert not is_cut(small)


def test_what_a_client_sends_that_is_known_does_not_count(three: PendingConnections) -> None:
    known = come(three, "one")
    three.remove(known)
    three.receive(known, 2 * MAX_PENDING_BYTES)
    assert not is_cut(known)


def test_who_lets_its_time_pass_is_found_unless_somebody_else_keeps_it(
    three: PendingConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, other = come(three, "one"), Pending(Line("one"))
    other.is_answered = True
    three.add(other)
    assert three.expired() == []
    monkeypatch.setattr("zander.wire.pending.monotonic", lambda: late.since_s + REQUEST_SECONDS + 0.001)
    assert three.expired() == [late]
