"""A relay and a consumer for tests: thin over the `websockets` client, saying exactly what the test says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

DEVICE = {"device_type": "test", "sampling_rate": 128, "channel_names": ["C3", "C4"], "channel_count": 2}


class Peer:
    """One side of a WebSocket, in JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, message: Any) -> None:
        """Send a dict as JSON, text and bytes as they are."""
        await self.socket.send(json.dumps(message) if isinstance(message, dict) else message)

    async def receive(self) -> Any:
        """Return the next message: JSON decoded, bytes as they are."""
        message = await self.socket.recv()
        return json.loads(message) if isinstance(message, str) else message

    async def until(self, kind: str) -> Any:
        """Return the next JSON message of a type, passing over the others."""
        while True:
            message = await self.receive()
            if isinstance(message, dict) and message["type"] == kind:
                return message

    async def close_code(self) -> int:
        """Read to the end and return the close code."""
        with suppress(ConnectionClosed):
            while True:
                await self.socket.recv()
        return self.socket.close_code or 0


class RelayPeer(Peer):
    """A relay, and what the server said of its session."""

    session_id: str
    next_position: int


class ConsumerPeer(Peer):
    """A consumer, and its first status, if it asked for one."""

    status: dict[str, Any]


@asynccontextmanager
async def relay(ws: str, user: str, device: dict[str, Any] | None = None, **fields: Any) -> AsyncIterator[RelayPeer]:
    """A relay that has been let in."""
    async with connect(f"{ws}/stream") as socket:
        peer = RelayPeer(socket)
        await peer.send({"type": "auth", "user_id": user, "device_info": DEVICE if device is None else device} | fields)
        greeting = await peer.receive()
        assert greeting["type"] == "auth_ok", greeting
        peer.session_id, peer.next_position = greeting["session_id"], greeting["next_position"]
        yield peer


@asynccontextmanager
async def consumer(ws: str, user: str, query: str = "", **options: Any) -> AsyncIterator[ConsumerPeer]:
    """A consumer that has got its first status, kept as `status`."""
    async with connect(f"{ws}/subscribe/{user}{query}", **options) as socket:
        peer = ConsumerPeer(socket)
        if "types" not in query or "status" in query:
            peer.status = await peer.until("status")
        yield peer
