"""Attacks of somebody who has a key and sends, rightly, as fast as the server takes it; and a storm of consumers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import count, repeat
from time import monotonic
from typing import Any

from attack.crowd import Crowd
from attack.line import BLOCK_BYTES, KEY, TURN_SECONDS, Line, Order, Report, any_user, block, handshake, text
from support.relay_bytes import BINARY, TEXT, chunk, floats, fragmented, masked

SAMPLE = (1.25, -2.5, 3.75, -4.0, 5.5, -6.25, 7.0, -8.5)
CHUNK = chunk(floats(*SAMPLE), len(SAMPLE))
UNMASKED = bytes(4)  # a mask that changes nothing: positions are written into the frame
RAW = {"type": "raw", "channels": SAMPLE}
FEATURES = {"type": "features", "workload": 0.65, "confidence": 0.89}
PREDICTION = {"type": "prediction", "prediction_type": "workload", "classifier_name": "attack", "data": {"p": 0.5}}
N_A_BLOCK = 4096
MESSAGE_BYTES = 1 << 20


def raw(order: Order) -> Report:
    """Be a relay that sends samples as JSON."""
    return _of_relay(order, repeat(block(text(RAW))))


def binary(order: Order) -> Report:
    """Be a relay that sends binary chunks of one sample."""
    return _of_relay(order, repeat(block(masked(CHUNK, BINARY))))


def gaps(order: Order) -> Report:
    """Be a relay that leaves out every other position."""
    return _of_relay(order, _with_gaps())


def fragments(order: Order) -> Report:
    """Be a relay that sends each sample in two fragments."""
    return _of_relay(order, repeat(block(b"".join(fragmented(json.dumps(RAW).encode(), TEXT, 20)))))


def features(order: Order) -> Report:
    """Be a relay that sends small features."""
    return _of_relay(order, repeat(block(text(FEATURES))))


def features_of_64_kib(order: Order) -> Report:
    """Be a relay that sends features of nearly 64 KiB."""
    return _of_relay(order, repeat(block(text(_large(60 << 10)))))


def features_of_1_mib(order: Order) -> Report:
    """Be a relay that sends features of nearly 1 MiB."""
    return _of_relay(order, repeat(block(text(_large(MESSAGE_BYTES - 1024)))))


def probes(order: Order) -> Report:
    """Be a relay that sends clock probes, and reads the answers."""
    return _of_relay(order, repeat(block(text({"type": "ping", "t0": 1764000000.123}))))


def predictions(order: Order) -> Report:
    """Be a consumer that sends small predictions to a relay that reads them."""
    user = any_user()
    with Line(order.port).open_relay(user) as relay, Line(order.port).open_consumer(user) as consumer:
        until_s = order.ends_s()
        while not consumer.ending and consumer.n_sent < order.n_bytes and monotonic() < until_s:
            consumer.pour(repeat(block(text(PREDICTION))), monotonic() + TURN_SECONDS, BLOCK_BYTES)
            relay.hold(monotonic())
        return consumer.report()


def storm(order: Order) -> Report:
    """Come back as thousands of consumers at once, and stay."""
    return Crowd(order).run(handshake(f"/subscribe/{any_user()}", KEY), wanted=b'"status"')


def _of_relay(order: Order, blocks: Iterable[bytes]) -> Report:
    with Line(order.port).open_relay(any_user()) as line:
        line.pour(blocks, order.ends_s(), order.n_bytes)
        return line.report()


def _with_gaps() -> Iterator[bytes]:
    one = masked(chunk(floats(*SAMPLE), len(SAMPLE), position=0), BINARY, UNMASKED)
    at = len(one) - len(CHUNK) + 8  # of the position
    many = bytearray(one * N_A_BLOCK)
    for first in count(0, 2 * N_A_BLOCK):
        for i in range(N_A_BLOCK):
            start = i * len(one) + at
            many[start : start + 8] = (first + 2 * i).to_bytes(8, "little")
        yield bytes(many)


def _large(n_bytes: int) -> dict[str, Any]:
    return FEATURES | {"metrics": {"x": "a" * n_bytes}}
