"""WebSocket connection of our server, once its request is there.

The rules are those of `websockets`: its `ServerProtocol`, which has no input and output of its own, judges every frame
that the native path does not take.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol

from zander.errors import CloseCode
from zander.event import Event
from zander.native import IS_NATIVE
from zander.wire.connection import Disconnected, Message, Take
from zander.wire.frames import PING, Messages, WrongMessage, frame
from zander.wire.handshake import Handshake
from zander.wire.inbox import Inbox
from zander.wire.limit import Limit
from zander.wire.messages import MAX_MESSAGE_BYTES
from zander.wire.pending import Pending, abort

if IS_NATIVE:
    from zander._native import FrameReader, Socket

if TYPE_CHECKING:
    from zander.wire.listener import Listener

CLOSE_SECONDS = 10.0  # that a peer has to read what it was sent, and to answer our close
REFUSED_SECONDS = 1.0  # that one has which is not known, or sends nonsense
REFUSED_BYTES = 64 << 10  # that one may send meanwhile
WAIT_SECONDS = 0.01  # of a peer that has sent too much, until it is looked at again
PARSE_BYTES = (16 if IS_NATIVE else 4) << 10  # that are parsed at once; then all others have their turn

log = logging.getLogger(__name__)


class WebSocketConnection(asyncio.Protocol):
    """One WebSocket of our server, on any transport; `socket` and `reader` are there where that is the native one."""

    __slots__ = (
        "_closing",
        "_inbox",
        "_is_alive",
        "_is_gone",
        "_limit",
        "_listener",
        "_lost",
        "_messages",
        "_pending",
        "_pong",
        "_protocol",
        "_unparsed",
        "_writable",
        "is_paused",
        "reader",
        "socket",
        "transport",
    )

    def __init__(self, listener: Listener, pending: Pending) -> None:
        self.transport = pending.transport
        self.socket: Socket | None = None
        self.reader: FrameReader | None = None
        self.is_paused = False  # nothing is read
        self._listener = listener
        self._pending: Pending | None = pending
        self._protocol: ServerProtocol | None = None
        self._messages = Messages()
        self._inbox = Inbox(self._go_on_soon)
        self._unparsed = b""  # what has to wait for its turn
        self._limit: Limit | None = None
        self._pong = b""  # the last one, while the peer reads nothing
        self._writable = Event()
        self._writable.set()
        self._is_alive = True  # something has come since the last ping
        self._is_gone = False  # nothing comes from the peer any more
        self._closing: asyncio.TimerHandle | None = None  # from when the connection is to end
        self._lost: Callable[[], None] | None = None

    # The start.

    def begin(self, head: bytes, rest: bytes) -> None:
        """Answer a request, when it is its turn; where it is a handshake, run the app. `rest` came behind it."""
        assert self._pending
        self._unparsed = rest
        self._pause_reading()
        self._listener.run(Handshake(self, self._pending.address).run(self._listener.app, head))

    def answer(self, response: bytes, *, is_open: bool) -> None:
        """Write the response to the handshake; a connection that is not open by that ends. Disconnected."""
        if self._is_gone:
            raise Disconnected
        native = self.transport if IS_NATIVE and isinstance(self.transport, Socket) else None
        if native:
            native.write_soon(response)
        else:
            self.transport.write(response)
        assert self._pending
        self._pending.is_answered = True
        self._listener.pending.add(self._pending)
        if not is_open:
            self._end(REFUSED_SECONDS)
            return
        self._listener.opened(self)
        if native:
            self._read_natively(native)
        self._go_on_soon()

    def _read_natively(self, socket: Socket) -> None:
        """Let the native path see every frame first, from the first."""
        self.socket, self.reader = socket, FrameReader()
        socket.read_frames(self.reader)
        passed, self._unparsed = self.reader.feed(self._unparsed), b""
        while passed is not None:
            self._unparsed += passed
            passed = self.reader.feed(b"")

    def admit(self) -> None:
        """Let the client stay: it has authenticated."""
        if self._pending:
            self._listener.pending.remove(self._pending)
            self._pending = None
        self._forget_protocol()  # most consumers never say a word

    # Reading.

    def data_received(self, data: bytes) -> None:
        """Take frames; of many those that have their turn."""
        self._is_alive = True
        if self._limit and (wait_s := self._limit.spend(len(data))):
            self._pause_reading()
            asyncio.get_running_loop().call_later(wait_s, self._go_on)
        if self._pending:
            self._listener.pending.receive(self._pending, len(data))
            if self._closing and self._pending.n_bytes > REFUSED_BYTES:
                self._pause_reading()  # for good: it is refused, and does not care
                return
        self._unparsed += data
        if not self.is_paused:
            self._parse()

    def _parse(self) -> None:
        data, self._unparsed = self._unparsed[:PARSE_BYTES], self._unparsed[PARSE_BYTES:]
        protocol = self._frames()
        protocol.receive_data(data)
        for event in protocol.events_received():
            self._take(cast(Frame, event))
        self._write_answers(protocol)
        if (self._unparsed or self._inbox.is_full) and not self._is_gone:
            self._pause_reading()
            if not self._inbox.is_full:
                self._go_on_soon()
        if self.reader and self.reader.is_intercepting:  # what comes beside samples is rare
            self._forget_protocol()

    def _frames(self) -> ServerProtocol:
        """Return what judges the frames. The one of the handshake would keep the request."""
        if self._protocol is None:
            self._protocol = ServerProtocol(state=State.OPEN, max_size=MAX_MESSAGE_BYTES, logger=log)
        return self._protocol

    def _forget_protocol(self) -> None:
        """Give 8 KB back until somebody has to judge frames again, where nothing is known that it would need."""
        protocol, reader = self._protocol, self.reader
        if reader and reader.is_between_messages and not self._unparsed and not self._closing and not self._is_gone:
            self._protocol = None if protocol and protocol.state is State.OPEN else protocol

    def _take(self, received: Frame) -> None:
        if received.opcode is Opcode.CLOSE:
            self._go()
        elif received.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT) and not self._closing and not self._is_gone:
            try:
                message = self._messages.add(received)
            except WrongMessage as error:
                self._fail(error.code, str(error))
            else:
                if message is not None:
                    self._inbox.put(message)
        received.data = b""  # the parser keeps its last frame until the next

    def _pause_reading(self) -> None:
        if not self.is_paused:
            self.is_paused = True
            self.transport.pause_reading()

    def _go_on_soon(self) -> None:
        if self.is_paused:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Read on, and take what had to wait."""
        if self._limit and self._limit.is_over:
            asyncio.get_running_loop().call_later(WAIT_SECONDS, self._go_on)  # a timer may be early
        elif self.is_paused and not self._inbox.is_full and not self._is_gone:
            self.is_paused = False
            self.transport.resume_reading()
            if self._unparsed:
                self._parse()

    def limit(self, bytes_per_second: float) -> None:
        """Read no more than so much in the long run, and no more than that at once."""
        if self.socket:
            self.socket.limit(bytes_per_second)
        else:
            self._limit = Limit(bytes_per_second)

    def take_throttled(self) -> bool:
        """Return whether the peer has sent more since the last time."""
        if self.socket:
            return self.socket.take_throttled()
        return self._limit is not None and self._limit.take_reached()

    async def receive(self) -> Message:
        """Return the next message; Disconnected when there is none any more. Not after `listen`."""
        return await self._inbox.receive()

    def listen(self, take: Take, ended: Callable[[], None]) -> None:
        """Give `take` every message, one after the other; once the peer has gone, call `ended`. Neither may raise."""
        self._inbox.listen(take, ended)

    # Writing.

    def pause_writing(self) -> None:
        """Wait: the peer reads too slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()
        if self._pong:
            self.transport.write(self._pong)
            self._pong = b""

    async def send_all(self, waiting: Callable[[], list[Message]]) -> None:
        """Send what waits in one write, once the transport takes more; Disconnected when the peer has gone."""
        await self._writable.wait()
        if self._closing or self._is_gone:
            raise Disconnected
        self.transport.write(b"".join([frame(message) for message in waiting()]))

    def _write_answers(self, protocol: ServerProtocol) -> None:
        """Write pongs and closes. While the peer reads nothing, only the last pong is kept (RFC 6455, 5.5.3)."""
        for data in protocol.data_to_send():
            if data == SEND_EOF:
                self._end(CLOSE_SECONDS)
            elif data[0] == 0x80 | Opcode.PONG and not self._writable.is_set():
                self._pong = data
            else:
                self.transport.write(data)

    def ping(self) -> None:
        """Ask whether the peer is there; close when nothing has come since the last time."""
        if self._closing or self._is_gone:
            return
        if self._is_alive or (self.socket and self.socket.take_heard()):
            self._is_alive = False
            self.transport.write(PING)
        else:
            self._fail(CloseCode.INTERNAL_ERROR, "expected an answer to a ping")

    # The end.

    def when_lost(self, call: Callable[[], None]) -> None:
        """Call when the peer has gone; at once if it has already."""
        self._lost = call
        if self._is_gone:
            call()

    async def close(self, code: int) -> None:
        """Close, behind what was sent; nothing happens when the peer has gone."""
        if not self._closing and not self._is_gone:
            protocol = self._frames()
            protocol.send_close(code)
            self._write_answers(protocol)
            is_refused = self._pending or code == CloseCode.BAD_MESSAGES
            self._cut_after(REFUSED_SECONDS if is_refused else CLOSE_SECONDS)
            self._go_on_soon()  # for the peer's close

    def release(self) -> None:
        """Drop what still comes, and hold nothing of the session task."""
        self._inbox.close()
        self._lost = None
        self._go_on_soon()

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Close at once, for what the peer did."""
        protocol = self._frames()
        protocol.fail(code, reason)
        self._write_answers(protocol)

    def _end(self, seconds: float) -> None:
        """Close the transport, which has some time to write what it holds."""
        self._go()
        self._cut_after(seconds)
        self.transport.close()

    def _cut_after(self, seconds: float) -> None:
        if self._closing:
            self._closing.cancel()
        self._closing = asyncio.get_running_loop().call_later(seconds, abort, self.transport)

    def _go(self) -> None:
        """Note that nothing comes any more, and tell those who wait."""
        if not self._is_gone:
            self._is_gone = True
            self._inbox.end()
            if self._lost:
                self._lost()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the transport has closed."""
        self._listener.lost(self._pending, self)
        self._unparsed = b""
        self._go()
        self.socket = self.reader = None
        self._writable.set()
        if self._closing:
            self._closing.cancel()
