"""Messages that go into a hub, and what comes out of it, in short."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from support.hubs import House
from zander.delivery.outbox import Outbox
from zander.streams.stream import Stream
from zander.wire.chunk import RawIn
from zander.wire.codec import decode_fields, decode_relay
from zander.wire.messages import Features

NOW_US = 1_764_000_000_000_000
FEATURES = '{"type":"features","workload":0.65,"confidence":0.89,"band_powers":{"alpha":0.35},"model":"mine"}'
PREDICTION = (
    '{"type":"prediction","prediction_type":"workload_azure_lstm","classifier_name":"azure_ml_lstm_v2",'
    '"version":"v2.1.0","data":{"workload_prediction":0.72,"confidence":0.94},"note":"kept"}'
)


def raw(n: int = 1, position: int | None = None, *, first: int = 0, n_channels: int = 2) -> RawIn:
    """`n` samples; the first channel counts from `first`, or is their position."""
    samples = np.zeros((n, n_channels), np.float32)
    samples[:, 0] = np.arange(n) + (first if position is None else position)
    return RawIn(position, None, samples)


def take_features(house: House, stream: Stream, text: str = FEATURES) -> None:
    features = decode_relay(text)
    assert isinstance(features, Features)
    house.ingest.take_features(stream, features, decode_fields(text))


def messages(outbox: Outbox) -> list[Any]:
    """Everything that waits, read; the sample's index is its position."""
    read = []
    while outbox.waits:
        read += [json.loads(frame) for frame in outbox.take()]
    for message in read:
        if message["type"] == "raw":
            assert message["channels"][0] == message["position"]
    return read


def outline(outbox: Outbox) -> list[Any]:
    """Everything that waits, in short: a position for a sample, (from, to) for a gap, else the type."""
    short: dict[str, Callable[[Any], Any]] = {
        "raw": lambda message: message["position"],
        "gap": lambda message: (message["from"], message["to"]),
        "status": lambda message: "online" if message["online"] else "offline",
    }
    return [short.get(message["type"], lambda message: message["type"])(message) for message in messages(outbox)]


def everything(house: House, stream: Stream) -> tuple[Any, ...]:
    """All that a message may change."""
    session, buffers = stream.session, stream.buffers
    return (
        *(session.next_position, session.n_gaps, session.n_duplicates, session.n_channels, session.last_time_us),
        *(buffer.n_written for buffer in buffers),
        *(stream.n_notes, house.ingest.n_samples, house.subscribers.n_samples_out, len(house.recorder)),
        len(house.peers.said),
    )
