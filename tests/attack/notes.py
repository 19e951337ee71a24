"""Attacks with predictions, for the relay and the consumers of a user: the neighbour, or somebody who reads none."""

from __future__ import annotations

import json
from itertools import cycle, repeat

from attack.floods import PREDICTION
from attack.line import Line, Order, Report, any_user, block, text
from support.relay_bytes import TEXT, masked

N_NUMBERS = 60_000


def _numbers(number: str) -> bytes:
    """Write a prediction with a number again and again, in the form in which it is given."""
    written = json.dumps(PREDICTION | {"data": {"x": []}}).replace("[]", f"[{','.join([number] * N_NUMBERS)}]")
    return masked(written.encode(), TEXT)


GROWING = (
    _numbers("1e15"),  # is 1000000000000000.0 on its way out
    _numbers("-9e15"),
    _numbers("1e-4"),
    text(PREDICTION | {"data": {"x": "a" * ((1 << 20) - 1024)}}),
    masked(json.dumps(PREDICTION | {"x": "\N{GRINNING FACE}" * 250_000}, ensure_ascii=False).encode(), TEXT),
)
LARGE = text(PREDICTION | {"data": {"x": "a" * (60 << 10)}})


def growing(order: Order) -> Report:
    """Send predictions that are larger than an outbox, or that are on their way out."""
    return _to_neighbour(order, GROWING)


def large(order: Order) -> Report:
    """Send predictions of 60 KiB as fast as they are taken."""
    return _to_neighbour(order, (block(LARGE),))


def small(order: Order) -> Report:
    """Send small predictions as fast as they are taken."""
    return _to_neighbour(order, (block(text(PREDICTION)),))


def unread(order: Order) -> Report:
    """Send predictions of 60 KiB as fast as they are taken, to a relay and a consumer that read nothing."""
    user = any_user()
    with (
        Line(order.port, reads=False).open_relay(user),
        Line(order.port, reads=False).open_consumer(user),
        Line(order.port).open_consumer(user, "?types=status") as sender,
    ):
        sender.pour(repeat(block(LARGE)), order.ends_s(), order.n_bytes)
        return sender.report()


def _to_neighbour(order: Order, frames: tuple[bytes, ...]) -> Report:
    with Line(order.port).open_consumer(order.neighbour, "?types=status") as line:
        line.pour(cycle(frames), order.ends_s(), order.n_bytes)
        return line.report()
