"""Handshake of a WebSocket on our server: the request, the app that accepts or refuses it, and the response."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from zander.errors import CloseCode
from zander.wire.app import App, scope
from zander.wire.connection import Disconnected

if TYPE_CHECKING:
    from zander.wire.websocket import WebSocketConnection

HANDSHAKE = "zander.handshake"  # in a scope's extensions, where the server is ours

log = logging.getLogger(__name__)


class Handshake:
    """One handshake. `connection` is the WebSocket once the app has accepted it."""

    def __init__(self, connection: WebSocketConnection, client: tuple[str, int] | None) -> None:
        self.connection = connection
        self._client = client
        self._protocol = ServerProtocol(logger=log)
        self._response: Response | None = None
        self._is_answered = False
        self._rest: Coroutine[Any, Any, None] | None = None

    def _judge(self, head: bytes) -> dict[str, Any] | None:
        """Return the scope of a request that is a handshake; any other is answered."""
        self._protocol.receive_data(head)
        request = next(iter(self._protocol.events_received()), None)
        if not isinstance(request, Request):
            self._answer(self._protocol.reject(400, "expected a WebSocket handshake\n"))
            return None
        response = self._protocol.accept(request)
        if response.status_code != 101:
            self._answer(response)
            return None
        self._response = response
        return self._scope(request)

    async def run(self, app: App, head: bytes) -> None:
        """Run the app for a request that is a handshake, and then what it has left for after its end."""
        connection = self.connection
        try:
            if told := self._judge(head):
                await app(told, self._receive, self._send)
            rest, self._rest = self._rest, None
            if rest:
                del self._protocol, self._response, app, head, told, self  # 10 KB that only the handshake needed
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
            self._answer(self._response)
        elif not self._is_answered:
            self._answer(self._protocol.reject(403, ""))

    def _answer(self, response: Response) -> None:
        self._is_answered = True
        self._protocol.send_response(response)
        self.connection.answer(b"".join(self._protocol.data_to_send()), is_open=response.status_code == 101)

    def _scope(self, request: Request) -> dict[str, Any]:
        raw = request.headers.raw_items()
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in raw]
        told = scope("websocket", request.path.encode("latin-1"), headers, self._client, "1.1")
        return told | {"subprotocols": [], "extensions": {HANDSHAKE: self}}
