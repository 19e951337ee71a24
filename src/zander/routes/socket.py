"""What both WebSocket endpoints share: the first message, reading and writing side by side, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from zander.errors import BadMessage, ClientError, CloseCode, TooMany, Unauthorized
from zander.messages import Error
from zander.outbox import Outbox
from zander.protocol import DIRECT, Message, Peel, WebSocketProtocol
from zander.routes.context import Service, refuse_strangers, service
from zander.wire import dumps, message_type

AUTH_SECONDS = 10.0
FLUSH_SECONDS = 2.0  # that a connection has, once it is to be closed, for what still waits and for the close itself
MAX_BAD_MESSAGES = 100
GONE = (WebSocketDisconnect, OSError, RuntimeError)  # the last is uvicorn's for a socket it has closed meanwhile


def door(
    endpoint: Callable[[WebSocket, Service], Coroutine[Any, Any, None]],
) -> Callable[[WebSocket], Coroutine[Any, Any, None]]:
    """Accept a peer and hold its place; one that is refused is told why before the close code.

    A peer may vanish at any moment: that ends the endpoint quietly.
    """

    @wraps(endpoint)
    async def opened(socket: WebSocket) -> None:
        context = service(socket)
        n_connections = context.hub.enter()
        try:
            await socket.accept()
            if n_connections > context.settings.max_connections:
                raise TooMany(f"expected at most {context.settings.max_connections} connections")
            refuse_strangers(socket)
            await endpoint(socket, context)
        except ClientError as error:
            with suppress(*GONE):
                await socket.send_text(dumps(Error(error.code, error.message)))
                await socket.close(error.close)
        except WebSocketDisconnect:
            pass
        finally:
            context.hub.leave()

    return opened


async def first_message(socket: WebSocket) -> str:
    """Return a peer's first message, an auth; Unauthorized for anything else or nothing in AUTH_SECONDS."""
    try:
        async with asyncio.timeout(AUTH_SECONDS):
            message = await _receive(socket)
    except TimeoutError:
        raise Unauthorized(f"expected an auth within {AUTH_SECONDS:g} s", CloseCode.AUTH_TIMEOUT) from None
    if isinstance(message, bytes) or message_type(message) != "auth":
        raise Unauthorized("expected a first message of type auth")
    return message


class Conversation:
    """Gives what comes to `take` and sends what the outbox holds, until the peer goes or the outbox is closed.

    A ClientError of `take` is answered; a bad message is counted too, and `count_bad` says how many there were. A
    `take` that never waits is called in the very turn in which its message is read, where the server can do that, and
    `peel` gets the bytes before.
    """

    def __init__(
        self,
        socket: WebSocket,
        outbox: Outbox,
        take: Callable[[Message], Awaitable[None] | None],
        count_bad: Callable[[], int],
        peel: Peel | None = None,
    ) -> None:
        self._socket = socket
        self._outbox = outbox
        self._take = take
        self._count_bad = count_bad
        self._peel = peel
        self._direct: WebSocketProtocol | None = socket.scope.get("extensions", {}).get(DIRECT)

    async def run(self) -> None:
        """Talk to the end, and close with the outbox's code if it was ours."""
        if self._direct and not iscoroutinefunction(self._take):
            self._direct.divert(self._take_now, self._peel)
        if self._direct:
            self._outbox.open_sink(self._direct.push)
        closed = self._outbox.closed
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        try:
            await _first(reader, writer, closed)
            if closed.done():
                await asyncio.wait({writer}, timeout=FLUSH_SECONDS)
                with suppress(TimeoutError, *GONE):
                    await asyncio.wait_for(self._socket.close(closed.result()), FLUSH_SECONDS)
        finally:
            if self._peel:
                self._peel.end()
            ended = [task for task in (reader, writer) if not task.cancel()]
            await asyncio.wait({reader, writer})
        for task in ended:
            task.result()  # raises what went wrong here

    def _take_now(self, message: Message) -> None:
        if not self._outbox.closed.done():
            try:
                self._take(message)
            except ClientError as error:
                self._complain(error)

    def _complain(self, error: ClientError) -> None:
        self._outbox.say(dumps(Error(error.code, error.message)))
        if isinstance(error, BadMessage) and self._count_bad() >= MAX_BAD_MESSAGES:
            self._outbox.close(CloseCode.BAD_MESSAGES)

    async def _read(self) -> None:
        while not self._outbox.closed.done():
            try:
                taken = self._take(await _receive(self._socket))
                if taken is not None:
                    await taken
            except WebSocketDisconnect:
                return
            except ClientError as error:
                self._complain(error)

    async def _write(self) -> None:
        send_all = self._direct.send_all if self._direct else self._send_each
        with suppress(*GONE):
            while self._outbox.waits or not self._outbox.closed.done():
                await self._outbox.ready.wait()
                await send_all(self._outbox.take)
                if self._outbox.waits:  # a hundred that come back at once would hold up everybody
                    await asyncio.sleep(0)

    async def _send_each(self, waiting: Callable[[], list[Message]]) -> None:
        for message in waiting():
            await self._socket.send(
                {"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message}
            )


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _receive(socket: WebSocket) -> Message:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text: str | None = message.get("text")
    return message["bytes"] if text is None else text
