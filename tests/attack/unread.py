"""Attacks with answers that nobody reads."""

from __future__ import annotations

from itertools import repeat
from time import monotonic

from attack.line import (
    KEY,
    TURN_SECONDS,
    Line,
    Order,
    Report,
    any_user,
    auth,
    block,
    hold_all,
    pour_all,
    request,
    text,
)
from support.relay_bytes import BINARY, PING, chunk, floats, masked

LONG_PING = masked(bytes(range(125)), PING)
STRANGE = text({"type": "what is this", "why": "nobody knows"})
PROBE = text({"type": "ping", "t0": 1764000000.123})
WRONG = text(auth("attacker", "wrong"))
N_CHANNELS, N_SAMPLES = 8, 1000


def pings(order: Order) -> Report:
    """Open a WebSocket, without a key send pings, and read none of the pongs."""
    return _poured(order, Line(order.port, reads=False).open_websocket("/stream"), LONG_PING)


def pings_of_relay(order: Order) -> Report:
    """Be a relay that sends pings, and reads none of the pongs."""
    return _poured(order, Line(order.port, reads=False).open_relay(any_user()), LONG_PING)


def pings_of_consumer(order: Order) -> Report:
    """Be a consumer that sends pings, and reads none of the pongs."""
    return _poured(order, Line(order.port, reads=False).open_consumer(any_user()), LONG_PING)


def texts(order: Order) -> Report:
    """Open a WebSocket, and instead of an auth send messages without an end."""
    return _poured(order, Line(order.port, reads=False).open_websocket("/stream"), STRANGE)


def errors_of_relay(order: Order) -> Report:
    """Be a relay that sends bad messages, and reads none of the errors."""
    return _poured(order, Line(order.port, reads=False).open_relay(any_user()), STRANGE)


def errors_of_consumer(order: Order) -> Report:
    """Be a consumer that sends bad messages, and reads none of the errors."""
    return _poured(order, Line(order.port, reads=False).open_consumer(any_user()), STRANGE)


def probes_unread(order: Order) -> Report:
    """Be a relay that sends clock probes, and reads none of the answers."""
    return _poured(order, Line(order.port, reads=False).open_relay(any_user()), PROBE)


def refused(order: Order) -> Report:
    """Open WebSockets, be refused for a wrong key, and neither read that nor close; go on with pings."""
    until_s, lines = order.ends_s(), _websockets(order)
    for line in lines:
        line.pour([WRONG], until_s)
    pour_all(lines, block(LONG_PING), until_s, order.n_bytes)
    return hold_all(lines, until_s)


def refused_late(order: Order) -> Report:
    """Open WebSockets, send pings, and behind them a wrong key; read nothing of it."""
    until_s, lines = order.ends_s(), _websockets(order)
    pour_all(lines, block(LONG_PING), until_s - order.seconds / 2, order.n_bytes)
    for line in lines:
        line.pour([WRONG], monotonic() + TURN_SECONDS)
    return hold_all(lines, until_s)


def health_unread(order: Order) -> Report:
    """Ask for /health again and again, and read no answer."""
    return _asked(order, request("/health"))


def buffer_unread(order: Order) -> Report:
    """Ask for the last 1,000 samples again and again, and read no answer."""
    user = any_user()
    with Line(order.port).open_relay(user) as relay:
        samples = floats(*range(N_SAMPLES * N_CHANNELS))
        full = masked(chunk(samples, N_CHANNELS), BINARY) + PROBE
        relay.ask(full, b'"pong"')  # then the samples are in the buffer
        return _asked(order, request(f"/buffer/{user}/last/{N_SAMPLES}?sample_type=raw", KEY))


def _asked(order: Order, question: bytes) -> Report:
    until_s = order.ends_s()
    lines = [Line(order.port, reads=False) for _ in range(order.n_connections)]
    pour_all(lines, block(question), until_s, order.n_bytes)
    return hold_all(lines, until_s)


def _poured(order: Order, line: Line, what: bytes) -> Report:
    until_s = order.ends_s()
    with line:
        line.pour(repeat(block(what)), until_s, order.n_bytes)
        return hold_all([line], until_s)


def _websockets(order: Order) -> list[Line]:
    return [Line(order.port, reads=False).open_websocket("/stream") for _ in range(order.n_connections)]
