"""Questions between nodes and their answers, over a RedisLink."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar

from zander.cluster import messages
from zander.cluster.link import RedisLink
from zander.errors import ClientError, Unavailable

CALL_SECONDS = 2.0

T = TypeVar("T")


class Calls:
    """Questions to other nodes that are not answered yet."""

    def __init__(self, link: RedisLink) -> None:
        self.link = link
        self._numbers = count(1)
        self._open: dict[int, Callable[[messages.Reply], None]] = {}

    def send(self, message: messages.Message, node_id: str | None = None) -> None:
        """Send to one node, or to all."""
        self.link.send(messages.encode(message), node_id)

    async def ask(self, node_id: str, question: messages.Call, then: Callable[[Any], T]) -> T:
        """Ask, and return what `then` makes of the reply in the very turn in which it comes.

        `then` gets a Followed for a Follow, a HasFound for an Ask, else an Answered.

        Unavailable when Redis is away or no reply comes in CALL_SECONDS; else what error the other node had.
        """
        if self.link.state == "down":
            raise Unavailable("Redis is away, so the node that has this user cannot be asked")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def resolve(reply: messages.Reply) -> None:
            if future.done():  # it came in the very turn in which we stopped waiting
                return
            if isinstance(reply, messages.Failed):
                future.set_exception(reply.error())
                return
            result = then(reply)
            if not future.done():  # what was done may have ended the asking
                future.set_result(result)

        question.call = next(self._numbers)
        self._open[question.call] = resolve
        self.send(question, node_id)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await future
        except TimeoutError:
            raise Unavailable("the node that has this user does not answer") from None
        finally:
            self._open.pop(question.call, None)

    def resolve(self, reply: messages.Reply) -> None:
        """Take a reply; one that comes too late is nobody's any more."""
        if resolve := self._open.pop(reply.call, None):
            resolve(reply)

    def answer(self, question: messages.Call, give: Callable[[], messages.Reply]) -> None:
        """Reply to another node's question with what `give` returns, or with its ClientError."""
        try:
            reply = give()
        except ClientError as error:
            reply = messages.Failed(self.link.node_id, error.status, error.code, error.message)
        reply.call = question.call
        self.send(reply, question.node_id)
