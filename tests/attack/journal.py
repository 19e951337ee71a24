"""Attacks on the journal while the database takes nothing: it holds so many bytes, for all."""

from __future__ import annotations

from attack import floods, kept
from attack.line import Line, Order, Report, any_user, hold_all, pour_all, text, told
from support.relay_bytes import BINARY, masked

JOURNAL_BYTES = 4 << 20  # of the server
CHUNK = masked(b"".join((floods.CHUNK[:6], b"\xe8\x03", floods.CHUNK[8:24], floods.CHUNK[24:] * 1000)), BINARY)


def features(order: Order) -> Report:
    """Be a relay that sends features of 60 KiB."""
    return _looked_at(order, floods.features_of_64_kib(order))


def raw(order: Order) -> Report:
    """Be a relay that sends chunks of 1,000 samples."""
    with Line(order.port).open_relay(any_user()) as line:
        pour_all([line], CHUNK, order.ends_s(), order.n_bytes)
        return _looked_at(order, line.report())


def gaps(order: Order) -> Report:
    """Be a relay that leaves out every other position."""
    return _looked_at(order, floods.gaps(order))


def predictions(order: Order) -> Report:
    """Be a consumer that sends predictions of 60 KiB."""
    user, large = any_user(), text(floods.PREDICTION | {"data": {"x": "a" * (60 << 10)}})
    with Line(order.port).open_relay(user) as relay, Line(order.port).open_consumer(user, "?types=status") as consumer:
        until_s = order.ends_s()
        pour_all([consumer], large, until_s, order.n_bytes)
        relay.hold(0)
        return _looked_at(order, consumer.report())


def features_of_many(order: Order) -> Report:
    """Be many relays that send features of 60 KiB."""
    return _of_many(order, text(floods.FEATURES | {"metrics": {"x": "a" * (60 << 10)}}))


def raw_of_many(order: Order) -> Report:
    """Be many relays that send chunks of 1,000 samples."""
    return _of_many(order, CHUNK)


def sessions(order: Order) -> Report:
    """Be one relay after the other that sends nothing, but describes its device in 60 kB."""
    return _looked_at(order, kept.relays(order, kept.MANY, kept.LARGE))


def _of_many(order: Order, what: bytes) -> Report:
    until_s = order.ends_s()
    lines = [Line(order.port).open_relay(any_user()) for _ in range(order.n_connections)]
    pour_all(lines, what, until_s, order.n_bytes)
    return _looked_at(order, hold_all(lines, 0))


def _looked_at(order: Order, report: Report) -> Report:
    """Look how large the journal is after all that."""
    n_bytes = told(order.port, "/stats")["database"]["pending_bytes"]
    if n_bytes > 2 * JOURNAL_BYTES:
        return report._replace(harm=f"the journal has {n_bytes / 2**20:.0f} MiB, its bound is {JOURNAL_BYTES >> 20}")
    return report
