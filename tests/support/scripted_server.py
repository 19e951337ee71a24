"""A server of the test's own, for what a node never does or not when the test wants it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

from zander.wire.chunk import decode_binary

Behaviour = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def served(*behaviours: Behaviour, port: int = 0) -> AsyncIterator[str]:
    """Serve each connection in its own way, in order, the last for all that follow; at a free port if 0."""
    waiting = list(behaviours)

    async def behave(socket: ServerConnection) -> None:
        await (waiting.pop(0) if len(waiting) > 1 else waiting[0])(socket)

    async with serve(behave, "127.0.0.1", port) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


def closing(code: int, *messages: str) -> Behaviour:
    """Take the first message, say something, close."""

    async def behave(socket: ServerConnection) -> None:
        await socket.recv()
        for message in messages:
            await socket.send(message)
        await socket.close(code)

    return behave


def auth_ok(next_position: int = 0, session_id: str = "s") -> str:
    answer = {"type": "auth_ok", "session_id": session_id, "user_id": "u", "next_position": next_position}
    return json.dumps(answer | {"server_time": 0.0})


async def greet(socket: ServerConnection, next_position: int = 0, session_id: str = "s") -> dict[str, Any]:
    """Let a relay in; return its auth."""
    auth: dict[str, Any] = json.loads(await socket.recv())
    await socket.send(auth_ok(next_position, session_id))
    return auth


async def storing(socket: ServerConnection) -> None:
    """Let a relay in, and say of everything that it is stored."""
    await greet(socket)
    async for frame in socket:
        await socket.send(ack(span(frame)[1]))


def ack(durable: int, session_id: str = "s") -> str:
    return json.dumps({"type": "ack", "session_id": session_id, "durable": durable})


def span(frame: str | bytes) -> tuple[int, int]:
    """Return position and end of a relay's raw message."""
    if isinstance(frame, bytes):
        raw = decode_binary(frame)
        return raw.position or 0, (raw.position or 0) + len(raw.samples)
    message = json.loads(frame)
    return message["position"], message["position"] + len(message.get("samples", [0]))
