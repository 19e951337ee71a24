"""The way past uvicorn's queue, and that it changes nothing but the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from clients import consumer, relay
from nodes import Node
from zander.protocol import frame


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
