"""Attacks with wrong keys, as fast as the server refuses them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from time import monotonic

from attack.line import OPEN_SECONDS, Order, Report, auth, handshake, request, text, told

N_AT_ONCE = 50
REFUSED = b"HTTP/1.1 401 "
CLOSED = b"\x88\x02\x11\x95"  # 4501
QUESTION = request("/sessions", "a-key-that-is-wrong")


def over_rest(order: Order) -> Report:
    """Ask over one connection with wrong keys."""
    return _counted(order, _asked(order))


def as_relay(order: Order) -> Report:
    """Come as one relay after the other with a wrong key."""
    opening = handshake("/stream") + text(auth("attacker", "a-key-that-is-wrong"))
    return _counted(order, _came(order, opening, CLOSED))


def as_consumer(order: Order) -> Report:
    """Come as one consumer after the other with a wrong key."""
    return _counted(order, _came(order, handshake("/subscribe/attacker", "a-key-that-is-wrong"), CLOSED))


def from_everywhere(order: Order) -> Report:
    """Ask once with a wrong key, from each of many addresses."""
    return _counted(order, _came(order, QUESTION, REFUSED, order.n_connections))


def _counted(order: Order, refused: Iterator[int]) -> Report:
    """Try until it is time, and look whether the server has counted that."""
    n_before, began_s = _n_counted(order.port), monotonic()
    n = sum(refused)
    n_counted = _n_counted(order.port) - n_before
    harm = f"of {n:,} wrong keys {n_counted:,} are counted" if n_counted < n else ""
    return Report(n * len(QUESTION), {"refused": n}, monotonic() - began_s, harm=harm)


def _n_counted(port: int) -> int:
    return int(told(port, "/stats").get("wrong_keys", 0))


def _asked(order: Order) -> Iterator[int]:
    until_s = order.ends_s()
    while monotonic() < until_s:
        with socket.create_connection(("127.0.0.1", order.port), OPEN_SECONDS) as connection, suppress(OSError):
            while monotonic() < until_s:
                connection.sendall(N_AT_ONCE * QUESTION)
                yield _n_answers(connection, REFUSED, N_AT_ONCE)


def _came(order: Order, opening: bytes, refusal: bytes, n_addresses: int = 1) -> Iterator[int]:
    until_s = order.ends_s()
    for number in count():
        if monotonic() > until_s:
            return
        host, low = divmod(number % n_addresses, 250)
        address = f"127.1.{host}.{low + 1}" if n_addresses > 1 else "127.0.0.1"
        with socket.create_connection(("127.0.0.1", order.port), OPEN_SECONDS, (address, 0)) as connection:
            connection.sendall(opening)
            yield _n_answers(connection, refusal, 1)


def _n_answers(connection: socket.socket, answer: bytes, n: int) -> int:
    said = b""
    with suppress(OSError):
        while said.count(answer) < n and (data := connection.recv(65536)):
            said += data
    return said.count(answer)
