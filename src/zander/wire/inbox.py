"""Inbox of a connection: what the peer sent, until the session task takes it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from zander.wire.connection import Disconnected, Message, Take

MAX_MESSAGES = 64  # from which on the peer has to wait
MAX_BYTES = 256 << 10

_NONE: deque[Message] = deque(maxlen=0)  # stands for every inbox that is empty: a deque takes 760 bytes


class Inbox:
    """Messages in their order. They wait for `receive`; from `listen` on they are given, one after the other.

    `emptied` is called when the inbox is empty again.
    """

    __slots__ = ("_busy", "_came", "_emptied", "_ended", "_is_over", "_n_bytes", "_take", "_waiting")

    def __init__(self, emptied: Callable[[], None]) -> None:
        self._emptied: Callable[[], None] | None = emptied
        self._waiting: deque[Message] = _NONE
        self._n_bytes = 0
        self._is_over = False
        self._came: asyncio.Future[None] | None = None  # while `receive` waits
        self._take: Take | None = None
        self._busy: asyncio.Future[None] | None = None  # while a message is being taken
        self._ended: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether nothing more should come."""
        return len(self._waiting) >= MAX_MESSAGES or self._n_bytes >= MAX_BYTES

    def put(self, message: Message) -> None:
        """Add a message."""
        if self._take and not self._waiting and not self._busy:
            self._give(message)
            return
        if self._waiting is _NONE:
            self._waiting = deque()
        self._waiting.append(message)
        self._n_bytes += len(message)
        self._wake()

    async def receive(self) -> Message:
        """Return the next message; Disconnected when there is none any more."""
        while not self._waiting:
            if self._is_over:
                raise Disconnected
            self._came = asyncio.get_running_loop().create_future()
            await self._came
        return self._next()

    def listen(self, take: Take, ended: Callable[[], None]) -> None:
        """Give every message to `take`, which may return what the next has to wait for; at last call `ended`."""
        self._take, self._ended = take, ended
        self._give_waiting()

    def end(self) -> None:
        """Let nothing more come."""
        self._is_over = True
        self._emptied = None
        self._wake()
        self._give_waiting()

    def close(self) -> None:
        """Drop everything, and hold nothing of those who took it."""
        if self._busy:
            self._busy.cancel()
        self._take, self._ended = _drop, None
        self._waiting, self._n_bytes = _NONE, 0

    def _next(self) -> Message:
        message = self._waiting.popleft()
        self._n_bytes -= len(message)
        if not self._waiting:
            self._waiting = _NONE
            if self._emptied:
                self._emptied()
        return message

    def _give(self, message: Message) -> None:
        assert self._take
        taking = self._take(message)
        if taking is not None:
            self._busy = asyncio.ensure_future(taking)
            self._busy.add_done_callback(self._give_waiting)

    def _give_waiting(self, _: object = None) -> None:
        if self._busy and not self._busy.done():
            return
        self._busy = None
        while self._waiting and self._take and not self._busy:
            self._give(self._next())
        if self._is_over and self._ended and not self._busy:
            ended, self._ended = self._ended, None
            ended()

    def _wake(self) -> None:
        if self._came and not self._came.done():
            self._came.set_result(None)
        self._came = None


def _drop(_: Message) -> None:
    pass
