"""WebSocket connection on another ASGI server than ours: a carrier of Starlette's messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import WebSocketException

from zander.wire.connection import Disconnected, Message, Take

GONE = (OSError, RuntimeError, WebSocketDisconnect, WebSocketException)  # servers raise any of them after the end


class AsgiConnection:
    """A `Connection` over Starlette's WebSocket."""

    socket = None
    reader = None

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._reader: asyncio.Task[None] | None = None
        self._is_gone = False
        self._n_received = 0
        self._max_bytes = 0.0

    def limit(self, bytes_per_second: float) -> None:
        """Count only: ASGI has no way to read less."""
        self._max_bytes = bytes_per_second

    def take_throttled(self) -> bool:
        """Return whether the peer has sent more since the last time."""
        n_received, self._n_received = self._n_received, 0
        return n_received > self._max_bytes

    async def receive(self) -> Message:
        """Return the next message; Disconnected when there is none any more."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            self._is_gone = True
            raise Disconnected
        text: str | None = message.get("text")
        received: Message = message["bytes"] if text is None else text
        self._n_received += len(received)
        return received

    def when_lost(self, call: Callable[[], None]) -> None:
        """Do nothing: ASGI tells it only to who receives."""

    def admit(self) -> None:
        """Do nothing: the server bounds who has not authenticated."""

    def listen(self, take: Take, ended: Callable[[], None]) -> None:
        """Give `take` every message, one after the other; once the peer has gone, call `ended`."""
        self._reader = asyncio.create_task(self._read(take, ended))

    async def _read(self, take: Take, ended: Callable[[], None]) -> None:
        with suppress(*GONE):
            while True:
                taking = take(await self.receive())
                if taking is not None:
                    await taking
        ended()

    async def send_all(self, waiting: Callable[[], list[Message]]) -> None:
        """Send what waits; Disconnected when the peer has gone."""
        for message in waiting():
            kind = "text" if isinstance(message, str) else "bytes"
            await self._send({"type": "websocket.send", kind: message})

    async def close(self, code: int) -> None:
        """Close, behind what was sent; nothing happens when the peer has gone."""
        if not self._is_gone:
            with suppress(Disconnected):
                await self._send({"type": "websocket.close", "code": code, "reason": ""})

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self._socket.send(message)
        except GONE:
            self._is_gone = True
            raise Disconnected from None

    def release(self) -> None:
        """Read no more."""
        if self._reader:
            self._reader.cancel()
