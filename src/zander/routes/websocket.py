"""Session tasks of both WebSocket endpoints: the handshake, reading and writing side by side, and the end."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any, Protocol, cast

from starlette.websockets import WebSocket, WebSocketDisconnect

from zander.delivery.outbox import Outbox
from zander.errors import BadMessage, ClientError, CloseCode, TooMany, Unauthorized
from zander.routes.context import Service, check_origin, service
from zander.wire.codec import dumps, message_type
from zander.wire.messages import Error
from zander.wire.websocket import DIRECT, Message, MessageInterceptor, WebSocketProtocol

AUTH_SECONDS = 10.0
FLUSH_SECONDS = 2.0  # that a connection has, once it is to be closed, for what still waits and for the close itself
MAX_BAD_MESSAGES = 100
GONE = (WebSocketDisconnect, OSError, RuntimeError)  # the last is uvicorn's for a socket it has closed meanwhile


class Connection(Protocol):
    """A carrier of ASGI's messages: Starlette's WebSocket, or our server's protocol itself."""

    async def receive(self) -> Any: ...

    async def send(self, message: Any) -> None: ...


def endpoint(
    handshake: Callable[[WebSocket, Service], Coroutine[Any, Any, SessionTask]],
) -> Callable[[WebSocket], Coroutine[Any, Any, None]]:
    """Make an endpoint of a handshake: accept, count, check, and run the session task that it returns.

    A client that is refused is told why before the close code; one that vanishes ends the endpoint quietly. Where the
    server can do that, the app returns at once, and all of this happens after it: what the app keeps for a request
    takes 10 KB.
    """

    @wraps(handshake)
    async def opened(socket: WebSocket) -> None:
        direct = find_direct(socket)
        run = _run(handshake, socket, direct)
        if direct:
            direct.run_after(run)
        else:
            await run

    return opened


def find_direct(socket: WebSocket) -> WebSocketProtocol | None:
    """Return the way past the server's queue, if it has one."""
    found: WebSocketProtocol | None = socket.scope.get("extensions", {}).get(DIRECT)
    return found


async def _run(
    handshake: Callable[[WebSocket, Service], Coroutine[Any, Any, SessionTask]],
    socket: WebSocket,
    direct: WebSocketProtocol | None,
) -> None:
    context, connection = service(socket), direct or cast(Connection, socket)
    n_connections = context.hub.enter()
    try:
        await socket.accept()
        if n_connections > context.settings.max_connections:
            raise TooMany(f"expected at most {context.settings.max_connections} connections")
        check_origin(socket)
        session_task = await handshake(socket, context)
        if direct:
            del socket
            direct.forget_handshake()
        await session_task.run(connection)
    except ClientError as error:
        with suppress(*GONE):
            await connection.send({"type": "websocket.send", "text": dumps(Error(error.code, error.message))})
            await _close(connection, error.close)
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


class SessionTask(ABC):
    """Gives what comes to `take` and sends what the outbox holds, until the peer goes or the outbox is closed.

    A ClientError of `take` is answered; a bad message is counted too, and `count_bad` says how many there were. A
    `take` that never waits is called in the very turn in which its message is read, where the server can do that, and
    `interceptor` gets the bytes before.
    """

    def __init__(self, outbox: Outbox, interceptor: MessageInterceptor | None = None) -> None:
        self._outbox = outbox
        self._interceptor = interceptor
        self._reader: asyncio.Task[None] | None = None
        self._limit = asyncio.timeout(None)  # of writing: there is one once the outbox is closed

    @abstractmethod
    def take(self, message: Message) -> Awaitable[None] | None:
        """Take in what the peer sent."""

    @abstractmethod
    def count_bad(self) -> int:
        """Count a bad message, and return how many there were."""

    @abstractmethod
    async def begin(self) -> None:
        """Do what comes first; a ClientError ends the session."""

    @abstractmethod
    def end(self) -> None:
        """Do what comes last, however it ends."""

    async def run(self, connection: Connection) -> None:
        """Run to the end, and close with the outbox's code if the end was ours."""
        try:
            await self.begin()
            await self._serve(connection, connection if isinstance(connection, WebSocketProtocol) else None)
        finally:
            self.end()

    async def _serve(self, connection: Connection, direct: WebSocketProtocol | None) -> None:
        closed = self._outbox.closed
        try:
            if direct:
                self._divert(direct)
            else:
                self._begin_to_read(connection)
            closed.add_done_callback(self._hurry)
            with suppress(*GONE):
                async with self._limit:
                    await self._write(direct.send_all if direct else partial(_send_each, connection))
            if self._reader and not closed.done():  # the peer has gone: what it sent before is still to be taken
                await asyncio.wait({self._reader}, timeout=FLUSH_SECONDS)
            if closed.done() and not (self._reader and self._reader.done()):
                with suppress(*GONE):
                    await asyncio.wait_for(_close(connection, closed.result()), FLUSH_SECONDS)
        finally:
            if self._interceptor:
                self._interceptor.end()
            self._outbox.close_sink()
            if direct:
                direct.release()
            await self._end_reading()

    def _divert(self, direct: WebSocketProtocol) -> None:
        if not iscoroutinefunction(self.take):
            direct.divert(self._take_now, self._interceptor)
        direct.when_something(partial(self._begin_to_read, direct))  # most consumers never say a word
        self._outbox.open_sink(direct.push)

    def _hurry(self, _: object) -> None:
        with suppress(RuntimeError):  # it may have written to the end meanwhile
            self._limit.reschedule(asyncio.get_running_loop().time() + FLUSH_SECONDS)

    def _take_now(self, message: Message) -> None:
        if not self._outbox.closed.done():
            try:
                self.take(message)
            except ClientError as error:
                self._complain(error)

    def _complain(self, error: ClientError) -> None:
        self._outbox.say(dumps(Error(error.code, error.message)))
        if isinstance(error, BadMessage) and self.count_bad() >= MAX_BAD_MESSAGES:
            self._outbox.close(CloseCode.BAD_MESSAGES)

    def _begin_to_read(self, connection: Connection) -> None:
        self._reader = asyncio.create_task(self._read(connection))

    async def _read(self, connection: Connection) -> None:
        """Read until the peer has gone."""
        try:
            while True:
                message = await _receive(connection)
                if self._outbox.closed.done():
                    continue
                try:
                    taken = self.take(message)
                    if taken is not None:
                        await taken
                except ClientError as error:
                    self._complain(error)
        except WebSocketDisconnect:
            pass
        finally:
            self._outbox.close(CloseCode.TRY_LATER)  # nobody is left to be told

    async def _end_reading(self) -> None:
        """Read no more; raise what went wrong there."""
        if reader := self._reader:
            was_over = not reader.cancel()
            await asyncio.wait({reader})
            if was_over:
                reader.result()

    async def _write(self, send_all: Callable[[Callable[[], list[Message]]], Awaitable[None]]) -> None:
        outbox = self._outbox
        while outbox.waits or not outbox.closed.done():
            await outbox.ready.wait()
            await send_all(outbox.take)
            if outbox.waits:  # a hundred that come back at once would hold up everybody
                await asyncio.sleep(0)


async def _send_each(connection: Connection, waiting: Callable[[], list[Message]]) -> None:
    for message in waiting():
        await connection.send({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})


async def _close(connection: Connection, code: CloseCode) -> None:
    await connection.send({"type": "websocket.close", "code": code, "reason": ""})


async def _receive(connection: Connection) -> Message:
    message = await connection.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text: str | None = message.get("text")
    return message["bytes"] if text is None else text
