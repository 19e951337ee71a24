"""WebSocket connection: uvicorn's, with a way past its queue and its send, which cost half of a message otherwise.

The way is offered as `DIRECT` in the scope's extensions. Another ASGI server does not offer it; the endpoints then go
message by message, with the same results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from struct import Struct
from typing import Any, Protocol, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import State

from zander.event import Event

DIRECT = "zander.direct"
MAX_QUEUED = 64  # messages read but not taken yet, from which on a peer has to wait; uvicorn pauses for each one

Message = str | bytes

_NO_EVENTS: deque[Any] = deque(maxlen=0)  # stands for every inbox that is empty: a deque takes 760 bytes

_LENGTH_16 = Struct("!BBH").pack
_LENGTH_64 = Struct("!BBQ").pack


class MessageInterceptor(Protocol):
    """A reader that takes messages out of the bytes before the standard parser gets the rest."""

    @property
    def is_over(self) -> bool:
        """Whether nothing counts any more, and it must not begin."""

    def begin(self, parse: Callable[[bytes], bool], stop: Callable[[], None]) -> Callable[[bytes], None]:
        """Begin between two messages; return what gets the bytes from now on.

        `parse` gets what is not taken, until it says False; then `stop` is called, and `parse` gets all the rest.
        """

    def end(self) -> None:
        """Take no more."""


class _Inbox:
    """The methods of an asyncio.Queue that are used here, without the 3 KB that it takes while it is empty."""

    __slots__ = ("_came", "_events", "_tell")

    def __init__(self) -> None:
        self._events = _NO_EVENTS
        self._came = Event()
        self._tell: Callable[[], object] | None = None

    def put_nowait(self, event: Any) -> None:
        if self._events is _NO_EVENTS:
            self._events = deque()
        self._events.append(event)
        self._came.set()
        tell, self._tell = self._tell, None
        if tell:
            tell()

    async def get(self) -> Any:
        while not self._events:
            self._came.clear()
            await self._came.wait()
        return self.get_nowait()

    def get_nowait(self) -> Any:
        event = self._events.popleft()
        if not self._events:
            self._events = _NO_EVENTS
        return event

    def qsize(self) -> int:
        return len(self._events)

    def empty(self) -> bool:
        return not self._events

    def when_something(self, call: Callable[[], object]) -> None:
        """Call once there is an event."""
        if self._events:
            call()
        else:
            self._tell = call


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Like uvicorn's, but an endpoint may take messages as they are read, and send many in one write."""

    # uvicorn's, which has more attributes than fit into a dict that shares its keys: 1.2 KB for each connection.
    __slots__ = (
        "app_state",
        "asgi_version",
        "client",
        "close_timeout",
        "config",
        "connections",
        "default_headers",
        "initial_response",
        "last_ping_rtt",
        "logger",
        "loop",
        "ping_interval",
        "ping_timeout",
        "root_path",
        "scheme",
        "server",
        "tasks",
    )

    _take: Callable[[Message], None] | None = None
    _interceptor: MessageInterceptor | None = None  # from when it is known until it stops
    _lost: Callable[[], None] | None = None
    _rest: Coroutine[Any, Any, None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self._run
        self.queue = cast(Any, _Inbox())
        self.writable = cast(Any, Event())
        self.writable.set()

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        self.app = self.config.loaded_app  # and no circle is left
        await self.app(scope, receive, send)
        del scope, receive, send
        if self._rest:
            rest, self._rest = self._rest, None
            await rest

    def run_after(self, rest: Coroutine[Any, Any, None]) -> None:
        """Run this once the app has returned, as a part of it, but without all that it keeps for a request."""
        self._rest = rest

    def forget_handshake(self) -> None:
        """Empty what only the handshake needed: the request, which the parser keeps, the response and the scope."""
        self.request.headers.clear()
        self.response.headers.clear()
        cast(Any, self.scope).clear()

    def when_something(self, call: Callable[[], object]) -> None:
        """Call once there is something to receive."""
        cast(_Inbox, self.queue).when_something(call)

    def handle_connect(self, event: Request) -> None:
        """Begin as uvicorn does; the endpoint runs in a later turn of the loop and finds the way in its scope."""
        super().handle_connect(event)
        if not self.handshake_complete:
            cast(Any, self.scope)["extensions"][DIRECT] = self

    def connection_lost(self, exc: Exception | None) -> None:
        """End as uvicorn does, and tell who wants to know at once."""
        super().connection_lost(exc)
        if self._lost:
            self._lost()

    def when_lost(self, call: Callable[[], None]) -> None:
        """Call when the connection is gone, whoever ended it; at once if it is gone already."""
        self._lost = call
        if self.disconnected:
            call()

    def data_received(self, data: bytes) -> None:
        """Read, until an interceptor does so instead."""
        super().data_received(data)
        if self._interceptor:
            self._begin_to_intercept()

    def push(self, frames: bytes) -> bool:
        """Write whole frames at once; False when they have to wait, or the connection is closing."""
        if self.conn.state is not State.OPEN or self.disconnected or not self.writable.is_set():
            return False
        self.transport.write(frames)
        return True

    def _begin_to_intercept(self) -> None:
        """Begin once the parser is between two messages: it waits for the next frame, and no fragment is open."""
        if self._interceptor and not self._interceptor.is_over and self.conn.state is State.OPEN and not self.frames:
            waits_in: Any = self.conn.parser
            while inner := waits_in.gi_yieldfrom:
                waits_in = inner
            if waits_in.__name__ == "at_eof":
                self.data_received = self._interceptor.begin(self._parse, self._stop_intercepting)  # type: ignore[method-assign,assignment]
                self.transport.set_protocol(self)  # it may keep the method that it knows

    def _parse(self, data: bytes) -> bool:
        """Read what the interceptor leaves; False when there is no use in going on with it."""
        super().data_received(data)
        return self.conn.state is State.OPEN

    def _stop_intercepting(self) -> None:
        self._interceptor = None
        del self.data_received
        if not self.transport.is_closing():
            self.transport.set_protocol(self)

    def divert(self, take: Callable[[Message], None], interceptor: MessageInterceptor | None) -> None:
        """Hand over what is queued and all that comes; the queue is left with the disconnect.

        What `interceptor` takes is not handed over.
        """
        events: list[Any] = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
        for event in events:
            if event["type"] == "websocket.receive":
                text = event.get("text")
                take(event["bytes"] if text is None else text)
            else:
                self.queue.put_nowait(event)
        self._take = take
        self._interceptor = interceptor
        self._begin_to_intercept()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def release(self) -> None:
        """Drop what still comes, and hold nothing of the session task: both would wait for a collection to be freed."""
        self._take = _drop
        self._lost = self._interceptor = None
        self.when_something(_nothing)

    async def send_all(self, waiting: Callable[[], list[Message]]) -> None:
        """Send what waits in one write, once the transport takes more; OSError when the peer is gone."""
        await self.writable.wait()
        if self.disconnected or self.conn.state is not State.OPEN:
            raise ClientDisconnected
        self.transport.write(b"".join([frame(message) for message in waiting()]))

    def handle_parser_exception(self) -> None:
        """Close as uvicorn does, after what came in the same read before the mistake."""
        if self.handshake_complete:
            self.handle_events()
        super().handle_parser_exception()

    def handle_text(self, event: Frame) -> None:
        """Take a frame, and leave nothing of it to the parser, which keeps its last one until the next."""
        super().handle_text(event)
        event.data = b""

    def handle_bytes(self, event: Frame) -> None:
        """Take a frame, as `handle_text` does."""
        super().handle_bytes(event)
        event.data = b""

    def handle_cont(self, event: Frame) -> None:
        """Take a frame, as `handle_text` does."""
        super().handle_cont(event)
        event.data = b""

    def send_receive_event_to_app(self) -> None:
        """Pass a whole message on. Text that is not UTF-8 closes with 1007, without uvicorn's traceback in the log."""
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return  # the endpoint is gone; reading goes on for the peer's close
        is_text = self.curr_msg_data_type == "text"
        try:
            message: Message = data.decode() if is_text else bytes(data)
        except UnicodeDecodeError:
            with suppress(InvalidState):  # it came with the peer's close, which is answered already
                self.conn.send_close(1007)
            self.handle_parser_exception()
            return
        if self._take:
            self._take(message)
            return
        self.queue.put_nowait(cast(Any, {"type": "websocket.receive", "text" if is_text else "bytes": message}))
        if self.queue.qsize() >= MAX_QUEUED and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()


def _drop(_: Message) -> None:
    pass


def _nothing() -> None:
    pass


def frame(message: Message) -> bytes:
    """Write a message as one frame of a server, unmasked (RFC 6455, 5.2)."""
    first, payload = (0x81, message.encode()) if isinstance(message, str) else (0x82, message)
    n_bytes = len(payload)
    if n_bytes < 126:
        return bytes((first, n_bytes)) + payload
    if n_bytes < 1 << 16:
        return _LENGTH_16(first, 126, n_bytes) + payload
    return _LENGTH_64(first, 127, n_bytes) + payload
