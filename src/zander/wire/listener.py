"""Listener of the server: it accepts connections, few at once, and sees to those whose client is not known yet."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import resource
import socket
from collections import deque
from collections.abc import Coroutine
from typing import Any, cast

from zander.native import IS_NATIVE
from zander.wire.app import App
from zander.wire.http import MAX_HEAD_BYTES, HttpConnection
from zander.wire.pending import Pending, PendingConnections
from zander.wire.websocket import WebSocketConnection

BACKLOG = 4096  # of connections that the kernel keeps until their turn
ACCEPTS = 8  # in one iteration of the loop: a handshake takes 0.2 ms, and samples go first
STARTS = 8  # of tasks: a handshake's or a request's
MAX_WAITING = 64  # tasks, from which on nobody is accepted
PING_SECONDS = 20  # between two pings; a peer that says nothing until the next is closed
TELL_SECONDS = 60  # between two lines in the log about connections that were cut
RESERVED_FILES = 128  # for the journal, the database and Redis
MAX_CONNECTIONS = 1 << 20  # where files are not limited
MAX_PENDING = 16_384  # where there are files enough: half of these are for them
IS_WEBSOCKET = re.compile(rb"\r\nupgrade:[ \t]*websocket[ \t]*\r\n", re.IGNORECASE)

if IS_NATIVE:
    from zander._native import Reactor

log = logging.getLogger(__name__)


class Listener:
    """Accepts connections for an ASGI app. `open` are its WebSockets, `tasks` answer requests and run sessions."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.open: dict[WebSocketConnection, int] = {}  # and in which second they came
        self.tasks: set[asyncio.Task[Any]] = set()
        self._max_connections = _max_connections()
        self.pending = PendingConnections(min(MAX_PENDING, self._max_connections // 2))
        self.n_connections = 0
        self._n_refused = 0  # since that was told
        self._waiting: deque[Coroutine[Any, Any, None]] = deque()
        self._sockets: list[socket.socket] = []
        self._holds: set[str] = set()  # why nobody is accepted
        self._reactor = Reactor(asyncio.get_running_loop()) if IS_NATIVE else None
        self._second = 0
        self._ticking: asyncio.TimerHandle | None = None

    def begin(self, sockets: list[socket.socket]) -> None:
        """Accept from now on."""
        self._sockets = sockets
        for listener in sockets:
            listener.listen(BACKLOG)
        self._watch()
        if self._reactor:
            asyncio.get_running_loop().add_reader(self._reactor.fileno(), self._reactor.turn)
        self._tick()

    def end(self) -> None:
        """Accept nobody any more."""
        self._hold("ended")
        for listener in self._sockets:
            listener.close()
        self._sockets = []

    async def close(self) -> None:
        """Cut all that is left."""
        self.end()
        if self._ticking:
            self._ticking.cancel()
        for pending in list(self.pending):
            pending.transport.abort()
        for connection in list(self.open):
            connection.transport.abort()
        while self._waiting:
            self._waiting.popleft().close()
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=1.0)
        if self._reactor:
            asyncio.get_running_loop().remove_reader(self._reactor.fileno())

    def opened(self, connection: WebSocketConnection) -> None:
        """Ping a WebSocket from now on."""
        self.open[connection] = self._second % PING_SECONDS

    def lost(self, pending: Pending | None, websocket: WebSocketConnection | None = None) -> None:
        """Forget a connection that has ended."""
        self.n_connections -= 1
        if pending:
            self.pending.remove(pending)
        if websocket:
            self.open.pop(websocket, None)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task, when it is its turn, and hold it until it ends."""
        self._waiting.append(work)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._start)
        if len(self._waiting) == MAX_WAITING:
            self._hold("busy")

    def _start(self) -> None:
        """Start some of the tasks that wait; samples go first, and a thousand that come at once would hold them up."""
        for _ in range(min(len(self._waiting), STARTS)):
            task = asyncio.create_task(self._waiting.popleft())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        if len(self._waiting) < MAX_WAITING:
            self._go_on("busy")
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._start)

    def _hold(self, reason: str) -> None:
        """Let those who come wait in the kernel."""
        if not self._holds:
            for listener in self._sockets:
                asyncio.get_running_loop().remove_reader(listener)
        self._holds.add(reason)

    def _go_on(self, reason: str) -> None:
        """Accept again, if there is no other reason not to."""
        if reason in self._holds:
            self._holds.remove(reason)
            if not self._holds:
                self._watch()

    def _watch(self) -> None:
        for listener in self._sockets:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            if wait_s := self.pending.wait_s():
                self._hold("full")
                asyncio.get_running_loop().call_later(wait_s, self._go_on, "full")
                return
            try:
                accepted, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                if not self.pending.cut():
                    log.error("a connection cannot be accepted: %s", error.strerror)
                return
            if self.n_connections >= self._max_connections and not self.pending.cut():
                accepted.close()
                self._n_refused += 1
                continue
            self.n_connections += 1
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._reactor:
                self._reactor.add(accepted.detach(), address, FirstRequest(self))
            else:
                self.run(self._connect(accepted))

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: FirstRequest(self), accepted)
        except OSError:  # it has gone already
            accepted.close()
            self.n_connections -= 1

    def _tick(self) -> None:
        """See every second to those who are late, and ping a part of the WebSockets."""
        loop = asyncio.get_running_loop()
        self._ticking = loop.call_later(1.0, self._tick)
        for pending in self.pending.expired():
            cast(Any, pending.transport.get_protocol()).expire()
        self._second += 1
        if self._second % TELL_SECONDS == 0:
            self._tell()
        due = self._second % PING_SECONDS
        for connection in [connection for connection, second in self.open.items() if second == due]:
            connection.ping()

    def _tell(self) -> None:
        """Log who found no place, in a line."""
        if n := self._n_refused + self.pending.n_cut:
            self._n_refused = self.pending.n_cut = 0
            log.warning("%d connections were cut before it was known whose they are: there were too many", n)


def _max_connections() -> int:
    """Return how many connections there may be, so that journal and database find their files."""
    n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_CONNECTIONS if n_files == resource.RLIM_INFINITY else max(32, n_files - RESERVED_FILES)


class FirstRequest(asyncio.Protocol):
    """A connection until its first request is whole, which tells whether it is a WebSocket."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._head = b""
        self._pending: Pending | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for a request."""
        self._pending = Pending(transport)
        self._listener.pending.add(self._pending)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._listener.lost(self._pending)

    def data_received(self, data: bytes) -> None:
        """Wait for the end of the head, then hand over."""
        pending = self._pending
        assert pending
        self._listener.pending.receive(pending, len(data))
        self._head += data
        end = self._head.find(b"\r\n\r\n") + 4
        if end < 4 and len(self._head) <= MAX_HEAD_BYTES:
            return
        if 4 <= end <= MAX_HEAD_BYTES and IS_WEBSOCKET.search(self._head, 0, end):
            websocket = WebSocketConnection(self._listener, pending)
            self._listener.pending.remove(pending)  # while it waits for us
            pending.transport.set_protocol(websocket)
            websocket.begin(self._head[:end], self._head[end:])
        else:
            self._go_on_as_http(pending)

    def expire(self) -> None:
        """Close: no request has come in time."""
        assert self._pending
        self._go_on_as_http(self._pending).expire()

    def _go_on_as_http(self, pending: Pending) -> HttpConnection:
        http = HttpConnection(self._listener, pending)
        pending.transport.set_protocol(http)
        http.data_received(self._head)
        return http
