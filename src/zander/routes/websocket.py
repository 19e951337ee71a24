"""Session tasks of both WebSocket endpoints: the handshake, reading and writing side by side, and the end."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial, wraps

from starlette.websockets import WebSocket

from zander.delivery.outbox import Outbox
from zander.errors import BadMessage, ClientError, CloseCode, TooMany, Unauthorized
from zander.routes.asgi import AsgiConnection
from zander.routes.context import Service, check_origin, service
from zander.wire.codec import dumps, message_type
from zander.wire.connection import Connection, Disconnected, Message
from zander.wire.handshake import HANDSHAKE, Handshake
from zander.wire.messages import Error

AUTH_SECONDS = 10.0
FLUSH_SECONDS = 2.0  # that a connection has, once it is to be closed, for what still waits and for the close itself
MAX_BAD_MESSAGES = 100

log = logging.getLogger(__name__)


class Opening:
    """A WebSocket that is accepted, whose client has to authenticate; `request` is gone once it has."""

    __slots__ = ("connection", "is_admitted", "request", "service")

    def __init__(self, request: WebSocket, connection: Connection) -> None:
        self.request = request
        self.connection = connection
        self.service: Service = service(request)
        self.is_admitted = False

    async def first_message(self) -> str:
        """Return the peer's first message, an auth; Unauthorized for anything else or nothing in AUTH_SECONDS."""
        try:
            async with asyncio.timeout(AUTH_SECONDS):
                message = await self.connection.receive()
        except TimeoutError:
            raise Unauthorized(f"expected an auth within {AUTH_SECONDS:g} s", CloseCode.AUTH_TIMEOUT) from None
        if isinstance(message, bytes) or message_type(message) != "auth":
            raise Unauthorized("expected a first message of type auth")
        return message

    def admit(self) -> None:
        """Let the client stay, which has authenticated; TooMany when this node serves enough."""
        hub, most = self.service.hub, self.service.settings.max_connections
        if hub.n_connections >= most:
            raise TooMany(f"expected at most {most} connections")
        hub.enter()
        self.is_admitted = True
        self.connection.admit()


Authenticate = Callable[[Opening], Coroutine[None, None, "SessionTask"]]


def endpoint(authenticate: Authenticate) -> Callable[[WebSocket], Coroutine[None, None, None]]:
    """Make an endpoint: accept, check the origin, authenticate, and run the session task that comes of it.

    A client that is refused is told why before the close code; one that vanishes ends the endpoint quietly. On our
    server the app returns at once, and all of this happens after it: what the app keeps for a request takes 10 KB.
    """

    @wraps(authenticate)
    async def opened(socket: WebSocket) -> None:
        await socket.accept()
        ours: Handshake | None = socket.scope.get("extensions", {}).get(HANDSHAKE)
        connection = ours.connection if ours else AsgiConnection(socket)
        run = _run(authenticate, Opening(socket, connection))
        if ours:
            ours.run_after(run)
        else:
            await run

    return opened


async def _run(authenticate: Authenticate, opening: Opening) -> None:
    connection = opening.connection
    try:
        check_origin(opening.request)
        session_task = await authenticate(opening)
        del opening.request
        await session_task.run(connection)
    except ClientError as error:
        message = dumps(Error(error.code, error.message))
        with suppress(OSError):
            await connection.send_all(lambda: [message])
            await connection.close(error.close)
    except Disconnected:
        pass
    finally:
        if opening.is_admitted:
            opening.service.hub.leave()


class SessionTask(ABC):
    """Gives what comes to `take` and sends what the outbox holds, until the peer goes or the outbox is closed.

    A ClientError of `take` is answered; a bad message is counted too, and `count_bad` says how many there were. What
    the outbox holds is sent `delay_s` after the first of it came.
    """

    def __init__(self, outbox: Outbox, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self._outbox = outbox
        self._limit = asyncio.timeout(None)  # of writing: there is one once the outbox is closed

    @abstractmethod
    def take(self, message: Message) -> Awaitable[None] | None:
        """Take in what the peer sent; the next message waits for what is returned."""

    @abstractmethod
    def count_bad(self) -> int:
        """Count a bad message, and return how many there were."""

    @abstractmethod
    async def begin(self) -> None:
        """Do what comes first; a ClientError ends the session."""

    @abstractmethod
    def end(self) -> None:
        """Do what comes last, however it ends."""

    @abstractmethod
    def begin_direct(self, connection: Connection) -> None:
        """Use what the connection has beside messages: the native path, and a limit."""

    @abstractmethod
    def end_direct(self) -> None:
        """Use it no more."""

    async def run(self, connection: Connection) -> None:
        """Run to the end, and close with the outbox's code if the end was ours."""
        try:
            await self.begin()
            await self._serve(connection)
        finally:
            self.end()

    async def _serve(self, connection: Connection) -> None:
        closed = self._outbox.closed
        connection.listen(self._take, partial(self._outbox.close, CloseCode.TRY_LATER))  # nobody is left to be told
        try:
            self.begin_direct(connection)
            closed.add_done_callback(self._hurry)
            with suppress(OSError):
                async with self._limit:
                    await self._write(connection)
            if not closed.done():  # the peer has gone: what it sent before is still to be taken
                await asyncio.wait({closed}, timeout=FLUSH_SECONDS)
            if closed.done():
                with suppress(OSError):
                    await asyncio.wait_for(connection.close(closed.result()), FLUSH_SECONDS)
        finally:
            self.end_direct()
            connection.release()

    def _hurry(self, _: object) -> None:
        with suppress(RuntimeError):  # it may have written to the end meanwhile
            self._limit.reschedule(asyncio.get_running_loop().time() + FLUSH_SECONDS)

    def _take(self, message: Message) -> Awaitable[None] | None:
        if self._outbox.closed.done():
            return None
        try:
            taking = self.take(message)
        except Exception as error:
            self._complain(error)
            return None
        return self._finish(taking) if taking is not None else None

    async def _finish(self, taking: Awaitable[None]) -> None:
        try:
            await taking
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        """Answer a client's mistake; close on one of ours."""
        if not isinstance(error, ClientError):
            log.error("a message ended a session with an error", exc_info=error)
            self._outbox.close(CloseCode.INTERNAL_ERROR)
            return
        self._outbox.say(dumps(Error(error.code, error.message)))
        if isinstance(error, BadMessage) and self.count_bad() >= MAX_BAD_MESSAGES:
            self._outbox.close(CloseCode.BAD_MESSAGES)

    async def _write(self, connection: Connection) -> None:
        outbox = self._outbox
        while outbox.waits or not outbox.closed.done():
            await outbox.ready.wait()
            if self.delay_s and not outbox.closed.done():
                await asyncio.sleep(self.delay_s)
            await connection.send_all(outbox.take)
            if outbox.waits:  # a hundred that come back at once would hold up everybody
                await asyncio.sleep(0)
