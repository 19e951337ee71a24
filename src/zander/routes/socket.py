"""What both WebSocket endpoints share: the first message, reading and writing side by side, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from zander.errors import BadMessage, ClientError, CloseCode, TooMany, Unauthorized
from zander.messages import Error
from zander.outbox import Outbox
from zander.routes.context import Service, refuse_strangers, service
from zander.wire import dumps, message_type

AUTH_SECONDS = 10.0
FLUSH_SECONDS = 2.0  # that a connection has, once it is to be closed, for what still waits and for the close itself
MAX_BAD_MESSAGES = 100

Message = str | bytes


@asynccontextmanager
async def connection(socket: WebSocket) -> AsyncIterator[Service]:
    """Accept a peer and hold its place; one that is refused is told why before the close code.

    A peer may vanish at any moment: that ends the block quietly.
    """
    context = service(socket)
    n_connections = context.hub.enter()
    try:
        await socket.accept()
        if n_connections > context.settings.max_connections:
            raise TooMany(f"expected at most {context.settings.max_connections} connections")
        refuse_strangers(socket)
        yield context
    except ClientError as error:
        with suppress(WebSocketDisconnect):
            await socket.send_text(dumps(Error(error.code, error.message)))
            await socket.close(error.close)
    except WebSocketDisconnect:
        pass
    finally:
        context.hub.leave()


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


async def converse(
    socket: WebSocket,
    outbox: Outbox,
    take: Callable[[Message], Awaitable[None]],
    count_bad: Callable[[], int],
) -> None:
    """Give what comes to `take` and send what the outbox holds, until the peer goes or the outbox is closed.

    A ClientError of `take` is answered; a bad message is counted too, and `count_bad` says how many there were.
    """
    reader = asyncio.create_task(_read(socket, outbox, take, count_bad))
    writer = asyncio.create_task(_write(socket, outbox))
    try:
        await _first(reader, writer, outbox.closed)
        if outbox.closed.done():
            await asyncio.wait({writer}, timeout=FLUSH_SECONDS)
            with suppress(TimeoutError, WebSocketDisconnect):
                await asyncio.wait_for(socket.close(outbox.closed.result()), FLUSH_SECONDS)
    finally:
        tasks = [task for task in (reader, writer) if not task.cancel()]
        await asyncio.wait({reader, writer})
    for task in tasks:
        task.result()  # raises what went wrong here


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _read(
    socket: WebSocket, outbox: Outbox, take: Callable[[Message], Awaitable[None]], count_bad: Callable[[], int]
) -> None:
    while not outbox.closed.done():
        try:
            await take(await _receive(socket))
        except WebSocketDisconnect:
            return
        except ClientError as error:
            outbox.say(dumps(Error(error.code, error.message)))
            if isinstance(error, BadMessage) and count_bad() >= MAX_BAD_MESSAGES:
                outbox.close(CloseCode.BAD_MESSAGES)


async def _write(socket: WebSocket, outbox: Outbox) -> None:
    try:
        while outbox.waits or not outbox.closed.done():
            await outbox.ready.wait()
            for frame in outbox.take():
                await socket.send({"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame})
    except WebSocketDisconnect:
        pass


async def _receive(socket: WebSocket) -> Message:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text: str | None = message.get("text")
    return message["bytes"] if text is None else text
