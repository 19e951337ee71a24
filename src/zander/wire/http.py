"""Plain HTTP of the server: one request after the other, by the rules of `h11`, for an ASGI app.

A request is small and waits for its answer: the app gets it whole, and its answer in pieces waits for the peer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11

from zander.event import Event
from zander.wire.app import scope
from zander.wire.pending import Pending, abort

if TYPE_CHECKING:
    from zander.wire.listener import Listener

MAX_HEAD_BYTES = 32 << 10  # of a request: its line and headers
MAX_REQUEST_BYTES = 64 << 10  # with its body, and all that is around it
MAX_REQUESTS = 1000  # of one connection; nobody stays for ever who does not read
WRITE_BYTES = 64 << 10  # of an answer that are written at once
REFUSED_SECONDS = 0.5  # that a refused peer has to read why
MAX_DROPPED_BYTES = 256 << 10  # that it may send meanwhile
UNREAD_SECONDS = 5.0  # that a peer may read nothing of its answer

log = logging.getLogger(__name__)


class HttpConnection(asyncio.Protocol):
    """The requests on one connection. It is pending but while a request is answered."""

    def __init__(self, listener: Listener, pending: Pending) -> None:
        self._listener = listener
        self._pending = pending
        self._transport = pending.transport
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._n_received = 0  # of the request
        self._n_requests = 0
        self._is_answering = False
        self._is_refused = False
        self._gone = Event()  # set once the peer has gone
        self._writable = Event()
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Read requests. What comes while one is answered waits, and more is not read."""
        self._listener.pending.receive(self._pending, len(data))
        self._n_received += len(data)
        if self._is_refused:
            if self._n_received > MAX_DROPPED_BYTES:
                self._end()
            return
        self._http.receive_data(data)
        if self._is_answering:
            self._transport.pause_reading()
        else:
            self._read()

    def _read(self) -> None:
        try:
            while not self._is_answering:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    self._begin(event)
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if self._n_received > MAX_REQUEST_BYTES:
                        self.refuse(413)
                        return
                elif isinstance(event, h11.EndOfMessage):
                    self._listener.pending.remove(self._pending)
                    self._is_answering = True
                    self._n_requests += 1
                    self._listener.run(self._answer())
                else:  # more has to come
                    self._transport.resume_reading()
                    return
        except h11.RemoteProtocolError as error:
            self.refuse(error.error_status_hint)

    def _begin(self, request: h11.Request) -> None:
        self._request = request
        self._body.clear()
        if self._http.they_are_waiting_for_100_continue:
            self._transport.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")

    def refuse(self, status: int) -> None:
        """Answer a request that is wrong, too large or too late, and close."""
        if self._http.our_state is h11.IDLE or self._http.our_state is h11.SEND_RESPONSE:
            response = _response(status, [(b"connection", b"close"), (b"content-length", b"0")])
            self._transport.write(b"".join(self._http.send(event) or b"" for event in (response, h11.EndOfMessage())))
        # Closed at once, with something unread, the kernel would take the answer back.
        self._is_refused = True
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(REFUSED_SECONDS, self._end)

    def expire(self) -> None:
        """Close, since no request has come in time; one that has begun is answered."""
        if self._http.trailing_data[0] or self._request:
            self.refuse(408)
        else:
            self._transport.close()

    async def _answer(self) -> None:
        assert self._request
        answer = _Answer(self, self._http, self._request, bytes(self._body))
        try:
            await self._listener.app(self._scope(self._request), answer.receive, answer.send)
        except OSError:
            pass  # the peer has gone, or reads nothing
        except Exception:
            log.exception("a request ended with an error")
        self._request = None
        self._go_on()

    def _scope(self, request: h11.Request) -> dict[str, Any]:
        version, method = request.http_version.decode(), request.method.decode()
        return scope("http", request.target, request.headers, self._pending.address, version) | {"method": method}

    def _go_on(self) -> None:
        """Wait for the next request, where both ends can go on."""
        self._is_answering = False
        if self._gone.is_set():
            return
        is_done = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        if is_done and self._n_requests < MAX_REQUESTS:
            self._http.start_next_cycle()
            self._n_received = len(self._http.trailing_data[0])
            self._listener.pending.add(self._pending)
            self._read()
        else:
            self._end()

    async def write(self, data: bytes) -> None:
        """Write in pieces, once the peer takes more; OSError when it reads nothing for a while, or has gone."""
        for at in range(0, len(data), WRITE_BYTES):
            try:
                async with asyncio.timeout(UNREAD_SECONDS):
                    await self._writable.wait()
            except TimeoutError:
                abort(self._transport)
            if self._gone.is_set() or self._transport.is_closing():
                raise OSError("the peer has gone")
            self._transport.write(data[at : at + WRITE_BYTES])

    async def gone(self) -> None:
        """Wait until the peer has gone."""
        await self._gone.wait()

    def pause_writing(self) -> None:
        """Wait: the peer reads too slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the transport has closed."""
        self._listener.lost(self._pending)
        self._gone.set()
        self._writable.set()

    def _end(self) -> None:
        self._transport.close()
        asyncio.get_running_loop().call_later(UNREAD_SECONDS, abort, self._transport)


class _Answer:
    """ASGI's messages of one request."""

    def __init__(self, connection: HttpConnection, http: h11.Connection, request: h11.Request, body: bytes) -> None:
        self._connection = connection
        self._http = http
        self._is_head = request.method == b"HEAD"
        self._body: bytes | None = body
        self._start: dict[str, Any] = {}

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._connection.gone()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        events: list[h11.Event] = []
        if self._start:
            events.append(_response(self._start["status"], self._start["headers"]))
            self._start = {}
        if (body := message.get("body", b"")) and not self._is_head:
            events.append(h11.Data(data=body))
        if not message.get("more_body", False):
            events.append(h11.EndOfMessage())
        await self._connection.write(b"".join([self._http.send(event) or b"" for event in events]))


def _response(status: int, headers: Iterable[tuple[bytes, bytes]]) -> h11.Response:
    date = formatdate(usegmt=True).encode()
    return h11.Response(status_code=status, headers=[*headers, (b"date", date)], reason=HTTPStatus(status).phrase)
