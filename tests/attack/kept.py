"""Attacks on what is kept for a user, also when the relay has gone: notes, samples, the description of a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import repeat
from time import monotonic
from typing import Any

from attack.floods import FEATURES, PREDICTION
from attack.line import DEVICE, Line, Order, Report, any_user, block, hold_all, joined, pour_all, text
from attack.unread import PROBE
from support.relay_bytes import BINARY, chunk, floats, masked

SIZES = ((1 << 20) - 1024, 250 << 10, 60 << 10)  # of a note, as bytes on the wire
FILLER = "\N{GRINNING FACE}"  # with it a text takes four bytes a character
FEW, MANY = 2, 40  # users at once
NOTE_BYTES = 2 << 20  # that each user is sent; of each kind 1 MiB is kept
SMALL_BYTES = 150 << 10  # of small features: more than the 1,000 that are kept
LAST = text(PREDICTION | {"id": "last"})
N_CHANNELS, N_SAMPLES = 1024, 1000
WIDE = {"device_type": "attack", "sampling_rate": 256, "channel_count": N_CHANNELS}
NESTED = DEVICE | {"parts": [[]] * 21_000}  # 63 kB of JSON, 1.3 MB once it is read
LARGE = DEVICE | {"notes": "a" * 60_000}


def features(order: Order) -> Report:
    """Be relays that send features as large as are taken, and stay."""
    until_s = order.ends_s()
    largest = _largest_features(order)
    lines = [Line(order.port).open_relay(any_user()) for _ in range(order.n_connections)]
    pour_all(lines, largest, until_s, order.n_bytes)
    for line in lines:
        _wait_for(line, PROBE, b'"pong"')
    return hold_all(lines, 0)


def features_of_many(order: Order) -> Report:
    """Be one relay after the other, send features as large as are taken, and go."""
    return relays(order, FEW, what=_largest_features(order), n_bytes=NOTE_BYTES)


def small_features_of_many(order: Order) -> Report:
    """Be one relay after the other, send small features, and go."""
    return relays(order, FEW, what=block(text(FEATURES)), n_bytes=SMALL_BYTES)


def predictions_of_many(order: Order) -> Report:
    """Be a consumer of one user after the other whose relay has gone, and send predictions as large as are taken."""
    until_s, reports = order.ends_s(), list[Report]()
    largest = b""
    while monotonic() < until_s and sum(report.n_sent for report in reports) < order.n_bytes:
        user = any_user()
        with Line(order.port).open_relay(user):
            pass
        with Line(order.port).open_consumer(user) as consumer:
            largest = largest or _largest(consumer, _prediction_of, LAST, b'"prediction_ack"')
            consumer.pour(repeat(largest), until_s, NOTE_BYTES)
            _wait_for(consumer, LAST, b'"prediction_ack"')
            reports.append(consumer.report())
    return joined(reports)


def samples_of_many(order: Order) -> Report:
    """Be one relay of 1,024 channels after the other, fill the buffer, and go."""
    return relays(order, FEW, WIDE, filling(), N_SAMPLES * N_CHANNELS * 4)


def sessions(order: Order) -> Report:
    """Be one relay after the other that sends nothing."""
    return relays(order, MANY)


def devices(order: Order) -> Report:
    """Be one relay after the other that sends nothing, but describes its device in 63 kB of empty lists."""
    return relays(order, FEW, NESTED)


def filling() -> bytes:
    """Write the quarter of what a buffer of 1,024 channels holds."""
    return masked(chunk(floats(*range(N_CHANNELS)) * (N_SAMPLES // 4), N_CHANNELS), BINARY)


def relays(
    order: Order, n_at_once: int, device: Mapping[str, Any] = DEVICE, what: bytes = b"", n_bytes: int = 0
) -> Report:
    """Be some relays at once, send about so many bytes each, go, and be others; one may well be refused."""
    until_s, reports = order.ends_s(), list[Report]()
    while monotonic() < until_s and sum(report.n_sent for report in reports) < order.n_bytes:
        lines = [Line(order.port) for _ in range(n_at_once)]
        for line in lines:
            line.come_as_relay(any_user(), device)
        for line in lines:
            with suppress(ConnectionError):
                line.listen_for(b'"auth_ok"')
        if what:
            pour_all(lines, what, until_s, n_at_once * n_bytes)
            for line in lines:
                _wait_for(line, PROBE, b'"pong"')
        reports.append(hold_all(lines, 0))
    return joined(reports)


def _largest_features(order: Order) -> bytes:
    with Line(order.port).open_relay(any_user()) as line:
        return _largest(line, _features_of, PROBE, b'"pong"')


def _largest(line: Line, write: Callable[[int], dict[str, Any]], question: bytes, answer: bytes) -> bytes:
    """Return the largest note that is taken, of several."""
    for n_bytes in SIZES:
        note = text(write(n_bytes))
        line.said = b""
        line.ask(note + question, answer)
        if b'"error"' not in line.said:
            return note
    raise ConnectionError(f"not even {SIZES[-1]} bytes are taken: {line.said!r}")


def _features_of(n_bytes: int) -> dict[str, Any]:
    return FEATURES | {"metrics": {"x": "a" * n_bytes + FILLER}}


def _prediction_of(n_bytes: int) -> dict[str, Any]:
    return PREDICTION | {"data": {"x": "a" * n_bytes + FILLER}}


def _wait_for(line: Line, question: bytes, answer: bytes) -> None:
    """Wait until the server has taken what it was sent; nothing where it has ended the connection."""
    with suppress(ConnectionError):
        if not line.ending:
            line.said = b""
            line.ask(question, answer)
