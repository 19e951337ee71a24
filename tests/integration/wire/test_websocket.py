"""The way past uvicorn's queue, and that it changes nothing but the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Frame, Opcode

from support.clients import consumer, relay
from support.nodes import Node
from zander.routes.websocket import SessionTask
from zander.wire.websocket import WebSocketProtocol, frame


@pytest.mark.parametrize("n", [0, 1, 125, 126, 127, 65535, 65536, 1 << 20])
def test_a_frame_is_what_the_library_writes(n: int) -> None:
    assert frame("é" * (n // 2)) == Frame(Opcode.TEXT, ("é" * (n // 2)).encode()).serialize(mask=False)
    assert frame(b"x" * n) == Frame(Opcode.BINARY, b"x" * n).serialize(mask=False)


async def test_with_uvicorns_own_class_everything_works_as_with_ours(
    start_node: Callable[..., Node], user: str
) -> None:
    node = start_node(ws="websockets-sansio")
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


# What a connection leaves in memory.


def protocol_of(node: Node, socket: ClientConnection) -> Any:
    """Return the server's end of a socket."""
    connections: Collection[Any] = node.server.server_state.connections
    [found] = [each for each in connections if each.client == socket.local_address]
    assert isinstance(found, WebSocketProtocol)
    return found


def n_readers(node: Node) -> int:
    """Count the conversations that read by a task."""

    async def count() -> int:
        return sum(task.get_coro().__qualname__ == SessionTask._read.__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]

    return asyncio.run_coroutine_threadsafe(count(), node.server.servers[0].get_loop()).result()


@pytest.mark.parametrize("path", ["/stream", "/subscribe/{}?types=status,features"])
async def test_what_only_the_handshake_needed_is_let_go(node: Node, user: str, path: str) -> None:
    async with connect(node.ws + path.format(user), additional_headers={"X-Long": "x" * 1000}) as socket:
        await socket.send(f'{{"type":"auth","user_id":"{user}"}}')
        await socket.recv()
        protocol = protocol_of(node, socket)
        assert (protocol.scope, [*protocol.request.headers], [*protocol.response.headers]) == ({}, [], [])


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
        parser = protocol_of(node, socket).conn.parser.gi_yieldfrom
        assert parser.gi_frame.f_locals["frame"].data == b""
        if kind is str:
            assert (await azure.until("features"))["much"] == "x" * 30_000


async def test_a_consumer_is_read_from_once_it_says_something(start_node: Callable[..., Node], user: str) -> None:
    node = start_node()
    async with consumer(node.ws, user), consumer(node.ws, user) as azure:
        assert n_readers(node) == 0
        for _ in range(2):
            await azure.send(b"junk")
            assert (await azure.receive())["code"] == "bad_message"
            assert n_readers(node) == 1


async def test_what_a_consumer_sends_before_it_is_greeted_is_read(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge, connect(f"{node.ws}/subscribe/{user}?types=status") as socket:
        for i in range(100):
            text = f'{{"type":"prediction","prediction_type":"a","classifier_name":"b","data":{{}},"id":{i}}}'
            await socket.send(text)
        heard = [await socket.recv() for _ in range(101)]
        assert [f'"id":{i},' in str(answer) for i, answer in enumerate(heard[1:])] == [True] * 100
        assert [(await edge.receive())["prediction_type"] for _ in range(100)] == ["a"] * 100
