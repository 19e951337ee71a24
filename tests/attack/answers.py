"""Attacks that ask for much, and read it or do not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep, time

from attack.crowd import Crowd
from attack.floods import FEATURES
from attack.kept import FEW, NESTED, WIDE, filling, relays
from attack.line import (
    KEY,
    OPEN_SECONDS,
    Line,
    Order,
    Report,
    any_user,
    handshake,
    hold_all,
    joined,
    request,
    text,
    told,
)
from attack.unread import PROBE

IN_A_ROW = 10
N_SESSIONS = 48
LOOK_SECONDS = 0.02
SIP_BYTES, SIP_SECONDS = 32 << 10, 0.05
EVER = "start=0&end=4000000000"


def buffer(order: Order) -> Report:
    """Ask for a buffer of 1,024 channels as JSON, ten times in a row."""
    with wide(order) as user:
        question = f"/buffer/{user}/last/1000?sample_type=raw"
        row = request(question, KEY) * (IN_A_ROW - 1) + request(question, KEY, is_last=True)
        until_s, reports = order.ends_s(), list[Report]()
        while monotonic() < until_s:
            with Line(order.port) as line:
                line.pour([row], until_s)
                line.hold(until_s)
                reports.append(line.report())
        return joined(reports)


def buffer_at_once(order: Order) -> Report:
    """Ask for a buffer of 1,024 channels as JSON, over many connections at once."""
    with wide(order) as user:
        return _at_once(order, request(f"/buffer/{user}/last/1000?sample_type=raw", KEY, is_last=True))


def history(order: Order) -> Report:
    """Ask the database for samples of 1,024 channels as JSON, over many connections at once."""
    with wide(order) as user:
        settled(order.port)
        return _at_once(order, request(f"/history/{user}?{EVER}&sample_type=raw&limit=10000", KEY, is_last=True))


def history_of_ties(order: Order) -> Report:
    """Ask the database for features that all have one time, over many connections at once."""
    user = any_user()
    with Line(order.port).open_relay(user) as relay:
        same = text(FEATURES | {"timestamp": round(time())})
        relay.ask(same * (order.n_bytes // len(same)) + PROBE, b'"pong"')
        settled(order.port)
        return _at_once(order, request(f"/history/{user}?{EVER}&limit=10000", KEY, is_last=True))


def sessions(order: Order) -> Report:
    """Ask for sessions whose devices are described in 63 kB of empty lists, over many connections at once."""
    relays(order._replace(n_bytes=N_SESSIONS * 63_000), FEW, NESTED)
    settled(order.port)
    return _at_once(order, request("/sessions?limit=100", KEY, is_last=True))


def replays(order: Order) -> Report:
    """Come back as many consumers at once, from the last 1,000 samples of 1,024 channels on."""
    with wide(order) as user:
        return _at_once(order, handshake(f"/subscribe/{user}?last=1000", KEY))


def buffer_unread(order: Order) -> Report:
    """Ask for a buffer of 1,024 channels as JSON, over many connections, and read none of it."""
    with wide(order) as user:
        return _unread(order, request(f"/buffer/{user}/last/1000?sample_type=raw", KEY))


def buffer_slow(order: Order) -> Report:
    """Ask for a buffer of 1,024 channels as JSON, over many connections, and read all of them slowly."""
    with wide(order) as user:
        until_s, lines = order.ends_s(), _asked(order, request(f"/buffer/{user}/last/1000?sample_type=raw", KEY))
        for line in lines:
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * SIP_BYTES)
        while monotonic() < until_s:
            for line in lines:
                with suppress(OSError):  # it has nothing now, or was cut
                    line.socket.recv(SIP_BYTES)
            sleep(SIP_SECONDS)
        return hold_all(lines, until_s)


def history_unread(order: Order) -> Report:
    """Ask the database for samples of 1,024 channels as JSON, over many connections, and read none of it."""
    with wide(order) as user:
        settled(order.port)
        return _unread(order, request(f"/history/{user}?{EVER}&sample_type=raw&limit=10000", KEY))


def sessions_unread(order: Order) -> Report:
    """Ask for sessions whose devices are described in 63 kB of empty lists, over many connections; read none of it."""
    relays(order._replace(n_bytes=N_SESSIONS * 63_000), FEW, NESTED)
    settled(order.port)
    return _unread(order, request("/sessions?limit=100", KEY))


def replays_unread(order: Order) -> Report:
    """Come as many consumers, from the last 1,000 samples of 1,024 channels on, and read none of them."""
    with wide(order) as user:
        return _unread(order, handshake(f"/subscribe/{user}?last=1000", KEY))


@contextmanager
def wide(order: Order) -> Iterator[str]:
    """Be a relay of 1,024 channels while the block runs, whose buffer is full; its user."""
    user = any_user()
    with Line(order.port).open_relay(user, WIDE) as relay:
        relay.ask(filling() * 4 + PROBE, b'"pong"')
        yield user


def settled(port: int) -> None:
    """Wait until all that was sent before is in the database."""
    asked = told(port, "/stats")["database"]
    n_wanted = asked["written_records"] + asked["pending_records"]
    while told(port, "/stats")["database"]["written_records"] < n_wanted:
        sleep(LOOK_SECONDS)


def _at_once(order: Order, opening: bytes) -> Report:
    until_s, reports = order.ends_s(), list[Report]()
    while (left_s := until_s - monotonic()) > 0:
        reports.append(Crowd(order._replace(seconds=left_s)).run(opening))
    return joined(reports)


def _unread(order: Order, opening: bytes) -> Report:
    until_s = order.ends_s()
    return hold_all(_asked(order, opening), until_s)


def _asked(order: Order, opening: bytes) -> list[Line]:
    lines = [Line(order.port, reads=False) for _ in range(order.n_connections)]
    for line in lines:
        line.pour([opening], monotonic() + OPEN_SECONDS)
    return lines
