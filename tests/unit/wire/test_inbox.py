"""The inbox of a connection: messages in their order, one after the other, and the end behind them."""

from __future__ import annotations

import asyncio

import pytest

from zander.wire.connection import Disconnected, Message
from zander.wire.inbox import MAX_BYTES, MAX_MESSAGES, Inbox


class Box:
    """An inbox, what was taken from it, and how often it was emptied."""

    def __init__(self) -> None:
        self.inbox = Inbox(self._empty)
        self.taken: list[Message | str] = []
        self.n_emptied = 0

    def take(self, message: Message) -> None:
        self.taken.append(message)

    def end(self) -> None:
        self.taken.append("the end")

    def _empty(self) -> None:
        self.n_emptied += 1


@pytest.fixture
def box() -> Box:
    return Box()


async def test_messages_wait_for_the_one_that_receives(box: Box) -> None:
    for message in ("a", b"b"):
        box.inbox.put(message)
    assert [await box.inbox.receive() for _ in range(2)] == ["a", b"b"]
    assert box.n_emptied == 1


async def test_who_receives_waits_for_a_message_or_the_end(box: Box) -> None:
    first = asyncio.ensure_future(box.inbox.receive())
    await asyncio.sleep(0)
    box.inbox.put("a")
    assert await first == "a"
    second = asyncio.ensure_future(box.inbox.receive())
    await asyncio.sleep(0)
    box.inbox.end()
    with pytest.raises(Disconnected):
        await second


async def test_what_waits_is_given_to_the_one_that_listens_and_the_end_behind_it(box: Box) -> None:
    box.inbox.put("a")
    box.inbox.put("b")
    box.inbox.end()
    box.inbox.listen(box.take, box.end)
    assert box.taken == ["a", "b", "the end"]


async def test_a_message_waits_until_the_one_before_is_taken(box: Box) -> None:
    gate = asyncio.Event()

    async def slowly(message: Message) -> None:
        await gate.wait()
        box.take(message)

    box.inbox.listen(slowly, box.end)
    for message in ("a", "b"):
        box.inbox.put(message)
    box.inbox.end()
    await asyncio.sleep(0)
    assert (box.taken, len(box.inbox)) == ([], 1)
    gate.set()
    while box.taken[-1:] != ["the end"]:  # noqa: ASYNC110 - a few iterations
        await asyncio.sleep(0)
    assert box.taken == ["a", "b", "the end"]


async def test_it_is_full_of_many_messages_or_of_large_ones(box: Box) -> None:
    for _ in range(MAX_MESSAGES):
        assert not box.inbox.is_full
        box.inbox.put("")
    assert box.inbox.is_full
    large = Box().inbox
    large.put(bytes(MAX_BYTES))
    assert large.is_full


async def test_what_comes_after_the_close_is_dropped(box: Box) -> None:
    box.inbox.listen(box.take, box.end)
    box.inbox.close()
    box.inbox.put("a")
    box.inbox.end()
    assert box.taken == []
