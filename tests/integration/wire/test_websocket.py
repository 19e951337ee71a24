"""The connection of our server, beside that of another, and what it leaves in memory."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from support.clients import consumer, relay
from support.nodes import Node
from zander.server import Server
from zander.wire.listener import Listener
from zander.wire.websocket import WebSocketConnection


async def test_on_another_server_everything_works_as_on_ours(start_node: Callable[..., Node], user: str) -> None:
    node = start_node(on_another_server=True)
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=raw,features,prediction,status") as azure:
        await edge.send({"type": "raw", "samples": [[0, None], [1, 2.5]]})
        await edge.send("junk")
        await edge.send({"type": "features", "workload": 0.5})
        assert [(await azure.until("raw"))["channels"] for _ in range(2)] == [[0, None], [1, 2.5]]
        assert (await azure.receive())["workload"] == 0.5
        assert (await edge.receive())["code"] == "bad_json"
        await azure.send({"type": "prediction", "prediction_type": "a", "classifier_name": "b", "data": {}, "id": 1})
        assert (await azure.receive())["delivered"] is True
        assert (await edge.receive())["prediction_type"] == "a"
        for _ in range(99):
            await edge.send(b"junk")
        assert await edge.close_code() == 4500


async def test_messages_sent_before_the_answer_to_auth_are_not_lost(node: Node, user: str) -> None:
    async with consumer(node.ws, user) as azure, connect(f"{node.ws}/stream") as socket:
        await socket.send(f'{{"type":"auth","user_id":"{user}"}}')
        for i in range(200):
            await socket.send(f'{{"type":"raw","channels":[{i}]}}')
        assert [(await azure.until("raw"))["channels"] for _ in range(200)] == [[i] for i in range(200)]


# What a connection keeps in memory.


async def connection_of(node: Node, socket: ClientConnection) -> WebSocketConnection:
    """Return the server's end of a socket."""

    async def found() -> WebSocketConnection:
        assert isinstance(node.server, Server)
        opened = node.server.listener.open
        [connection] = [each for each in opened if each.transport.get_extra_info("peername") == socket.local_address]
        return connection

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(found(), node.loop))


@pytest.mark.parametrize("path", ["/stream", "/subscribe/{}?types=status,features"])
async def test_what_only_the_handshake_needed_is_let_go(node: Node, user: str, path: str) -> None:
    async with connect(node.ws + path.format(user), additional_headers={"X-Long": "x" * 1000}) as socket:
        await socket.send(f'{{"type":"auth","user_id":"{user}"}}')
        await socket.recv()
        gc.collect()
        assert not [it for it in gc.get_objects() if isinstance(it, dict) and it.get("type") == "websocket"]


@pytest.mark.parametrize("kind", [str, bytes])
@pytest.mark.parametrize("n_fragments", [1, 3])
async def test_a_message_is_not_kept_once_it_was_taken(node: Node, user: str, kind: type, n_fragments: int) -> None:
    async with consumer(node.ws, user) as azure, connect(f"{node.ws}/stream") as socket:
        await socket.send(f'{{"type":"auth","user_id":"{user}"}}')
        text = f'{{"type":"features","workload":0.5,"much":"{"x" * 30_000}"}}'
        message = text if kind is str else text.encode()  # which is no binary chunk
        n = len(message) // n_fragments + 1
        await socket.send([message[i : i + n] for i in range(0, len(message), n)])
        await socket.send('{"type":"ping","t0":0}', text=True)
        heard = [await socket.recv() for _ in range(2 if kind is str else 3)]
        assert ("bad_" in str(heard)) == (kind is bytes)
        connection = await connection_of(node, socket)
        assert n_bytes_kept(connection) < 1000
        if kind is str:
            assert (await azure.until("features"))["much"] == "x" * 30_000


SKIPPED = (type, ModuleType, FunctionType, Listener, logging.Logger, asyncio.Future, asyncio.AbstractEventLoop)


def n_bytes_kept(connection: WebSocketConnection) -> int:
    """Count the bytes and characters that hang on a connection, its task apart."""
    seen: set[int] = set()
    ahead: list[Any] = [connection]
    n = 0
    while ahead:
        it = ahead.pop()
        if id(it) in seen or isinstance(it, SKIPPED):
            continue
        seen.add(id(it))
        if isinstance(it, str | bytes | bytearray):
            n += len(it)
        elif not callable(it):
            ahead += gc.get_referents(it)
    return n


async def test_a_consumer_that_says_something_is_heard_again_and_again(
    start_node: Callable[..., Node], user: str
) -> None:
    node = start_node()
    async with consumer(node.ws, user), consumer(node.ws, user) as azure:
        for _ in range(3):
            await azure.send(b"junk")
            assert (await azure.receive())["code"] == "bad_message"


async def test_what_a_consumer_sends_before_it_is_greeted_is_read(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge, connect(f"{node.ws}/subscribe/{user}?types=status") as socket:
        for i in range(100):
            text = f'{{"type":"prediction","prediction_type":"a","classifier_name":"b","data":{{}},"id":{i}}}'
            await socket.send(text)
        heard = [await socket.recv() for _ in range(101)]
        assert [f'"id":{i},' in str(answer) for i, answer in enumerate(heard[1:])] == [True] * 100
        assert [(await edge.receive())["prediction_type"] for _ in range(100)] == ["a"] * 100
