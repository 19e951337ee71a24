"""Handshake of a WebSocket on our server: the request, the app that accepts or refuses it, and the response."""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from collections.abc import Coroutine
from hashlib import sha1
from typing import TYPE_CHECKING, Any, NamedTuple

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from zander.errors import CloseCode
from zander.wire.app import App, scope
from zander.wire.connection import Disconnected

if TYPE_CHECKING:
    from zander.wire.websocket import WebSocketConnection

HANDSHAKE = "zander.handshake"  # in a scope's extensions, where the server is ours
MAX_USUAL_BYTES = 4096  # well below what `websockets` allows of a line, and of headers in all
USUAL = re.compile(rb"GET (/[!-~]*+) HTTP/1\.1\r\n((?:[-!#$%&'*+.^_`|~0-9a-zA-Z]++:[ -~]*+\r\n){1,64})\r\n")
USUAL_HEADERS = {
    b"upgrade": re.compile(rb"websocket", re.IGNORECASE),
    b"connection": re.compile(rb"(?:keep-alive, ?)?upgrade", re.IGNORECASE),
    b"sec-websocket-version": re.compile(rb"13"),
    b"sec-websocket-key": re.compile(rb"[0-9A-Za-z+/]{21}[AQgw]=="),
}
BODY_HEADERS = {b"content-length", b"transfer-encoding"}
ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "

log = logging.getLogger(__name__)


class Usual(NamedTuple):
    """A handshake in its usual form, the response that accepts it included; names of headers are lower-case."""

    target: bytes
    headers: list[tuple[bytes, bytes]]
    response: bytes

    @classmethod
    def read(cls, head: bytes) -> Usual | None:
        """Read a request that `ServerProtocol` accepts, in a tenth of its time; None: that has to judge."""
        found = USUAL.fullmatch(head) if len(head) <= MAX_USUAL_BYTES else None
        if not found:
            return None
        lines = [line.partition(b":") for line in found[2].split(b"\r\n")[:-1]]
        headers = [(name.lower(), value.strip()) for name, _, value in lines]
        given = dict(headers)
        is_usual = all(form.fullmatch(given.get(name, b"")) for name, form in USUAL_HEADERS.items())
        if not is_usual or len(given) < len(headers) or given.keys() & BODY_HEADERS:
            return None
        accept = b64encode(sha1(given[b"sec-websocket-key"] + ACCEPT_GUID, usedforsecurity=False).digest())
        return cls(found[1], headers, SWITCHING + accept + b"\r\n\r\n")


class Handshake:
    """One handshake. `connection` is the WebSocket once the app has accepted it."""

    def __init__(self, connection: WebSocketConnection, client: tuple[str, int] | None) -> None:
        self.connection = connection
        self._client = client
        self._response = b""  # that accepts it
        self._is_answered = False
        self._rest: Coroutine[Any, Any, None] | None = None

    def _judge(self, head: bytes) -> dict[str, Any] | None:
        """Return the scope of a request that is a handshake; any other is answered."""
        if usual := Usual.read(head):
            self._response = usual.response
            return self._scope(usual.target, usual.headers)
        protocol = ServerProtocol(logger=log)
        protocol.receive_data(head)
        request = next(iter(protocol.events_received()), None)
        if not isinstance(request, Request):
            self._refuse(protocol.reject(400, "expected a WebSocket handshake\n"))
            return None
        response = protocol.accept(request)
        if response.status_code != 101:
            self._refuse(response)
            return None
        self._response = response.serialize()
        raw = request.headers.raw_items()
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in raw]
        return self._scope(request.path.encode("latin-1"), headers)

    async def run(self, app: App, head: bytes) -> None:
        """Run the app for a request that is a handshake, and then what it has left for after its end."""
        connection = self.connection
        try:
            if told := self._judge(head):
                await app(told, self._receive, self._send)
            rest, self._rest = self._rest, None
            if rest:
                del self._response, app, head, told, self  # 10 KB that only the handshake needed
                await rest
        except Disconnected:
            pass
        except Exception:
            log.exception("a WebSocket ended with an error")
        finally:
            await connection.close(CloseCode.INTERNAL_ERROR)
            connection.release()

    def run_after(self, rest: Coroutine[Any, Any, None]) -> None:
        """Run this once the app has returned, as a part of it, but without all that it keeps for a request."""
        self._rest = rest

    async def _receive(self) -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.accept" and self._response:
            self._answer(self._response, is_open=True)
        elif not self._is_answered:
            self._refuse(ServerProtocol(logger=log).reject(403, ""))

    def _refuse(self, response: Response) -> None:
        self._answer(response.serialize(), is_open=False)

    def _answer(self, response: bytes, *, is_open: bool) -> None:
        self._is_answered = True
        self.connection.answer(response, is_open=is_open)

    def _scope(self, target: bytes, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
        told = scope("websocket", target, headers, self._client, "1.1")
        return told | {"subprotocols": [], "extensions": {HANDSHAKE: self}}
