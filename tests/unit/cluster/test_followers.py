"""Followers: nodes that follow a user get what happens to it, whatever goes wrong with another user."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from zander.cluster import messages
from zander.cluster.followers import Followers
from zander.delivery.outbox import Outbox
from zander.delivery.subscribers import Subscribers
from zander.wire.messages import Note


class Calls:
    """What is sent, and what cannot be: the first message for a user in `failing`."""

    def __init__(self, *failing: str) -> None:
        self.link = SimpleNamespace(node_id="here")
        self.sent: list[tuple[str, str, int]] = []
        self._failing = set(failing)

    def send(self, message: Any, node_id: str) -> None:
        assert isinstance(message, messages.Events)
        if message.user_id in self._failing:
            self._failing.remove(message.user_id)
            raise MemoryError("injected")
        self.sent.append((node_id, message.user_id, len(message.events)))


def followers(calls: Calls, subscribers: Subscribers) -> Followers:
    """Followers of two users who have a session each."""
    streams: Any = {user_id: SimpleNamespace(session=SimpleNamespace(session_id="s")) for user_id in ("one", "two")}
    return Followers(calls, streams, subscribers)  # type: ignore[arg-type]


def features(time_us: int) -> Note:
    return Note("features", time_us, "{}")


async def test_what_happens_in_one_iteration_goes_in_one_message_to_each_node() -> None:
    calls, subscribers = Calls(), Subscribers()
    of = followers(calls, subscribers)
    of.follow("one", "there")
    of.follow("one", "elsewhere")
    for time_us in range(3):
        subscribers.deliver("one", features(time_us))
        subscribers.deliver("two", features(time_us))
    subscribers.deliver("one", Note("status", 0, "{}"))
    await asyncio.sleep(0)
    assert sorted(calls.sent) == [("elsewhere", "one", 3), ("there", "one", 3)]


async def test_what_cannot_be_sent_for_one_user_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    calls, subscribers = Calls("one"), Subscribers()
    of = followers(calls, subscribers)
    for user_id in ("one", "two"):
        of.follow(user_id, "there")
    for time_us in range(2):
        for user_id in ("one", "two"):
            subscribers.deliver(user_id, features(time_us))
        await asyncio.sleep(0)
    assert calls.sent == [("there", "two", 1), ("there", "one", 1), ("there", "two", 1)]
    assert "other nodes did not get what happened to one" in caplog.text


async def test_a_consumer_that_fails_takes_nothing_from_other_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, subscribers = Calls(), Subscribers()
    followers(calls, subscribers).follow("one", "there")
    outbox = Outbox("one")
    monkeypatch.setattr(outbox, "offer", lambda item: 1 / 0)
    subscribers.live["one"] = {outbox}
    with pytest.raises(ZeroDivisionError):
        subscribers.deliver("one", features(0))
    await asyncio.sleep(0)
    assert calls.sent == [("there", "one", 1)]


async def test_a_node_that_follows_no_more_gets_nothing_more() -> None:
    calls, subscribers = Calls(), Subscribers()
    of = followers(calls, subscribers)
    of.follow("one", "there")
    of.unfollow("one", "there")
    subscribers.deliver("one", features(0))
    await asyncio.sleep(0)
    assert calls.sent == []
    assert not subscribers.of("one")
