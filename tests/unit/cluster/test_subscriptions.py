"""Subscriptions on other nodes: whoever comes while the owner does not answer misses nothing."""

from __future__ import annotations

import asyncio
import json
from time import monotonic, time
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np

from zander.cluster import messages
from zander.cluster.directory import Directory, Holding, Peer
from zander.cluster.subscriptions import Subscriptions
from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscribers
from zander.errors import Unavailable
from zander.streams.stream import Streams
from zander.wire.chunk import Chunk, Origin

S = str(UUID(int=1))
ORIGIN = Origin("me", S, 10_000.0)


def chunk(start: int, end: int) -> messages.Event:
    """Samples that say their position."""
    samples = np.arange(start, end, dtype=np.float32).reshape(-1, 1)
    return messages.to_event(Chunk(ORIGIN, start, np.arange(start, end) * 10_000 + 1_000_000, samples))


def followed(end: int) -> messages.Followed:
    """The owner's answer: all samples so far."""
    return messages.Followed(
        "there",
        session_id=S,
        period_us=10_000.0,
        first_position=0,
        next_position=end,
        n_notes=0,
        events=[chunk(0, end)],
    )


class Calls:
    """An owner who answers as the test says."""

    def __init__(self, *answers: messages.Followed | Unavailable) -> None:
        self.link = SimpleNamespace(node_id="here")
        self.answers = [*answers]

    async def ask(self, node_id: str, question: Any, then: Any) -> Any:
        await asyncio.sleep(0)
        answer = self.answers.pop(0)
        if isinstance(answer, Unavailable):
            raise answer
        return then(answer)

    def send(self, message: Any, node_id: str) -> None:
        pass


def positions(outbox: Outbox) -> list[int]:
    """The positions of the samples that wait; there must be no gap."""
    found = [json.loads(frame) for frame in outbox.take()]
    assert "gap" not in {message["type"] for message in found}
    return [message["position"] for message in found if message["type"] == "raw"]


async def test_a_consumer_whose_owner_does_not_answer_catches_up_with_those_who_are_live() -> None:
    directory, subscribers = Directory(), Subscribers()
    holding = Holding("me", S, int(time() * 1e6), 0, True, {})
    directory.replace("there", Peer(1, 0, [holding], monotonic()))
    calls: Any = Calls(followed(3), Unavailable("it does not answer"), followed(5))
    subscriptions = Subscriptions(calls, directory, Streams(), subscribers)
    first, second = Outbox("me"), Outbox("me")
    await subscriptions.subscribe(first, 3)
    subscriptions.take(messages.Events("there", "me", S, [chunk(3, 5)]))
    await subscriptions.subscribe(second, 0)
    for _ in range(5):
        await asyncio.sleep(0)
    subscriptions.take(messages.Events("there", "me", S, [chunk(5, 7)]))
    assert calls.answers == []
    assert positions(first) == list(range(7))
    assert positions(second) == list(range(7))
