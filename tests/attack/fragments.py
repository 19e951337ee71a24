"""Attacks with messages in fragments that do not end."""

from __future__ import annotations

from itertools import chain, repeat

from attack.line import Line, Order, Report, any_user, block
from support.relay_bytes import CONTINUATION, TEXT, masked

FIRST = masked(b"{", TEXT, first=0)
EMPTY = masked(b"", CONTINUATION, first=0)
TINY = masked(b" ", CONTINUATION, first=0)


def empty(order: Order) -> Report:
    """Open a WebSocket, and without a key send a message in empty fragments."""
    return _poured(order, Line(order.port).open_websocket("/stream"), EMPTY)


def tiny(order: Order) -> Report:
    """Open a WebSocket, and without a key send a message in fragments of a byte."""
    return _poured(order, Line(order.port).open_websocket("/stream"), TINY)


def empty_of_relay(order: Order) -> Report:
    """Be a relay that sends a message in empty fragments."""
    return _poured(order, Line(order.port).open_relay(any_user()), EMPTY)


def tiny_of_relay(order: Order) -> Report:
    """Be a relay that sends a message in fragments of a byte."""
    return _poured(order, Line(order.port).open_relay(any_user()), TINY)


def empty_of_consumer(order: Order) -> Report:
    """Be a consumer that sends a message in empty fragments."""
    return _poured(order, Line(order.port).open_consumer(any_user()), EMPTY)


def tiny_of_consumer(order: Order) -> Report:
    """Be a consumer that sends a message in fragments of a byte."""
    return _poured(order, Line(order.port).open_consumer(any_user()), TINY)


def _poured(order: Order, line: Line, what: bytes) -> Report:
    until_s = order.ends_s()
    with line:
        line.pour(chain([FIRST], repeat(block(what))), until_s, order.n_bytes)
        line.hold(until_s)
        return line.report()
