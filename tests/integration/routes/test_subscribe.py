"""`/subscribe/{user_id}`, the consumer's end, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from websockets.asyncio.client import connect

from support.clients import DEVICE, Peer, consumer, relay
from support.nodes import Node
from support.services import eventually
from zander.wire.chunk import decode_binary

SOME_ID = "00000000-0000-4000-8000-00000000abcd"


async def test_the_status_comes_first_and_whenever_the_relay_comes_or_goes(node: Node, user: str) -> None:
    async with consumer(node.ws, user) as azure:
        assert (azure.status["online"], azure.status["session_id"]) == (False, None)
        async with relay(node.ws, user) as edge:
            status = await azure.receive()
            assert status == {
                "type": "status",
                "user_id": user,
                "online": True,
                "session_id": edge.session_id,
                "device_info": DEVICE,
            }
        assert (await azure.receive())["online"] is False


async def test_only_the_types_asked_for_come(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=features") as azure:
        await edge.send({"type": "raw", "channels": [1, 2]})
        await edge.send({"type": "features", "workload": 0.5})
        assert (await azure.receive())["type"] == "features"


@pytest.mark.parametrize("form", ["json", "chunks", "binary"])
async def test_last_n_joins_the_live_stream_without_a_hole_or_a_repeat(node: Node, user: str, form: str) -> None:
    async with relay(node.ws, user) as edge:
        first_sent = asyncio.Event()

        async def send() -> None:
            for i in range(3000):
                await edge.send({"type": "raw", "channels": [i, 0]})
                if i == 500:
                    first_sent.set()

        sending = asyncio.create_task(send())
        await first_sent.wait()
        async with consumer(node.ws, user, f"?types=raw&last=100&format={form}") as azure:
            positions: list[int] = []
            while not positions or positions[-1] < 2999:
                message = await azure.receive()
                if form == "binary":
                    raw = decode_binary(message)
                    values, start = raw.samples[:, 0].tolist(), raw.position or 0
                elif form == "chunks":
                    values, start = [sample[0] for sample in message["samples"]], message["position"]
                else:
                    values, start = [message["channels"][0]], message["position"]
                assert values == list(range(start, start + len(values)))
                positions += range(start, start + len(values))
            assert positions == list(range(positions[0], 3000))
            assert len(positions) >= 100
        await sending


async def test_last_n_gives_what_there_is_and_features_too(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        for i in range(5):
            await edge.send({"type": "raw", "channels": [i, 0]})
            await edge.send({"type": "features", "workload": i / 10})
        await edge.send({"type": "ping", "t0": 0})
        await edge.receive()
        async with consumer(node.ws, user, "?last=3") as azure:
            messages = [await azure.receive() for _ in range(6)]
            assert [m["channels"][0] for m in messages if m["type"] == "raw"] == [2, 3, 4]
            assert [m["workload"] for m in messages if m["type"] == "features"] == [0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    "query",
    [
        *["?types=rwa", "?types=", "?format=xml", "?last=-1", "?last=x", "?last=1001", "?last=99999999999999999999999"],
        *[f"?session_id={SOME_ID}", "?from=0", f"?last=1&session_id={SOME_ID}&from=0", "?session_id=x&from=0"],
        *[f"?from=-1&session_id={SOME_ID}", f"?from={1 << 53}&session_id={SOME_ID}"],
    ],
)
async def test_a_wrong_query_is_refused_with_its_reason(node: Node, user: str, query: str) -> None:
    async with connect(f"{node.ws}/subscribe/{user}{query}") as socket:
        peer = Peer(socket)
        error = await peer.receive()
        assert error["code"] == "bad_parameter"
        assert query[1:].split("=", maxsplit=1)[0] in error["message"]
        assert await peer.close_code() == 4500


@pytest.mark.parametrize("name", ["a%20b", "u" * 101, "a%00b", "%0A"])
async def test_a_user_out_of_range_is_refused(node: Node, name: str) -> None:
    async with connect(f"{node.ws}/subscribe/{name}") as socket:
        peer = Peer(socket)
        assert (await peer.receive())["code"] == "bad_parameter"
        assert await peer.close_code() == 4500


BAD_PREDICTIONS = {
    "not JSON": "{",
    "another type": '{"type":"raw","channels":[1]}',
    "no data": '{"type":"prediction","prediction_type":"a","classifier_name":"b"}',
    "data that is no object": '{"type":"prediction","prediction_type":"a","classifier_name":"b","data":[1]}',
    "a long type": '{"type":"prediction","prediction_type":"%s","classifier_name":"b","data":{}}' % ("a" * 51),
    "a long name": '{"type":"prediction","prediction_type":"a","classifier_name":"%s","data":{}}' % ("b" * 101),
    "an empty type": '{"type":"prediction","prediction_type":"","classifier_name":"b","data":{}}',
    "NUL": '{"type":"prediction","prediction_type":"a","classifier_name":"b","data":{"x":"\\u0000"}}',
    "binary": b"\x01\x01",
}


async def test_each_bad_prediction_gets_its_error_and_disturbs_nothing(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=prediction") as azure:
        for what, message in BAD_PREDICTIONS.items():
            await azure.send(message)
            assert (await azure.receive())["type"] == "error", what
        await azure.send({"type": "prediction", "prediction_type": "a", "classifier_name": "b", "data": {}, "id": 1})
        assert (await azure.receive())["delivered"] is True
        assert (await edge.receive())["prediction_type"] == "a"
        for _ in range(100):
            await azure.send("junk")
        assert await azure.close_code() == 4500


async def test_a_prediction_that_is_too_large_on_its_way_out_is_refused_and_closes_nobody(
    start_node: Callable[..., Node], user: str
) -> None:
    own = start_node(outbox_max_bytes=1024)  # less than one note may have
    prediction = {"type": "prediction", "prediction_type": "a", "classifier_name": "b", "data": {}, "id": 1}
    types = "?types=prediction"
    async with (
        relay(own.ws, user) as edge,
        consumer(own.ws, user, types) as azure,
        consumer(own.ws, user, types) as other,
    ):
        text = json.dumps(prediction)
        await azure.send(text.replace("{}", '{"x":[' + ",".join(["1e15"] * 60_000) + "]}"))
        assert await azure.receive() == {"type": "prediction_ack", "id": 1, "delivered": False}
        assert (await azure.receive())["code"] == "too_large"
        large = prediction | {"data": {"x": "y" * 65_000}}
        await azure.send(large)
        assert await azure.receive() == {"type": "prediction_ack", "id": 1, "delivered": True}
        assert (await edge.receive())["data"] == large["data"]
        assert (await other.receive())["data"] == large["data"]


async def test_a_prediction_for_a_user_nobody_knows_is_not_delivered_and_an_error(node: Node, user: str) -> None:
    async with consumer(node.ws, user) as azure:
        await azure.send({"type": "prediction", "prediction_type": "a", "classifier_name": "b", "data": {}, "id": 1})
        assert await azure.receive() == {"type": "prediction_ack", "id": 1, "delivered": False}
        assert (await azure.receive())["code"] == "not_found"


async def test_a_prediction_after_the_relay_has_gone_is_kept_but_not_delivered(node: Node, user: str) -> None:
    async with consumer(node.ws, user) as azure:
        async with relay(node.ws, user):
            assert (await azure.until("status"))["online"] is True
        assert (await azure.until("status"))["online"] is False
        await azure.send({"type": "prediction", "prediction_type": "a", "classifier_name": "b", "data": {}, "id": 1})
        assert await azure.receive() == {"type": "prediction_ack", "id": 1, "delivered": False}
        assert node.get(f"/buffer/{user}/latest?sample_type=prediction")[0] == 200


async def test_a_consumer_that_does_not_read_loses_its_oldest_raw_and_slows_nobody(
    start_node: Callable[..., Node], user: str
) -> None:
    own = start_node(outbox_max_bytes=256 << 10)
    stuck = await _stuck_consumer(own, user)
    n, wide = 4000, {"sampling_rate": 1000, "channel_count": 256}
    async with relay(own.ws, user, device=wide) as edge, consumer(own.ws, user, "?types=raw,gap,status") as quick:
        read: list[int] = []

        async def read_all() -> None:
            while len(read) < n:
                read.append((await quick.receive())["position"])

        reading = asyncio.create_task(read_all())
        for i in range(n):
            await edge.send({"type": "raw", "channels": [i] + [0.125] * 255})
            if i % 100 == 99:
                await edge.send({"type": "features", "workload": i})
            while i - len(read) > 20:  # noqa: ASYNC110 - the quick one keeps up: it only needs its turn
                await asyncio.sleep(0)
        await reading
        assert read == list(range(n))
        positions, gaps, workloads = await _read_all(stuck, n)
    assert gaps, "a consumer that read nothing should have lost something"
    assert workloads == list(range(99, n, 100)), "features are kept"
    covered = sorted([(p, p + 1) for p in positions] + gaps)
    assert covered[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(covered))
    assert covered[-1][1] == n
    await stuck.socket.close()


async def _stuck_consumer(node: Node, user: str) -> Peer:
    """A consumer whose kernel buffer is small and who reads nothing until it is asked to."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", int(node.ws.rsplit(":", 1)[1])))
    raw.setblocking(False)
    socket = await connect(f"{node.ws}/subscribe/{user}?types=raw,features,gap", sock=raw, max_queue=1)
    eventually(lambda: node.get("/stats")[1]["consumers"] == 1)
    return Peer(socket)


async def _read_all(stuck: Peer, n: int) -> tuple[list[int], list[tuple[int, int]], list[float]]:
    positions: list[int] = []
    gaps: list[tuple[int, int]] = []
    workloads: list[float] = []
    while (positions or [0])[-1] < n - 1 or len(workloads) < n // 100:
        message = await stuck.receive()
        if message["type"] == "raw":
            assert message["channels"][0] == message["position"]
            positions.append(message["position"])
        elif message["type"] == "gap":
            assert message["reason"] == "slow"
            gaps.append((message["from"], message["to"]))
        else:
            workloads.append(message["workload"])
    return positions, gaps, workloads


async def test_a_consumer_that_reads_nothing_at_all_is_given_up_with_4413(
    start_node: Callable[..., Node], user: str
) -> None:
    own = start_node(outbox_max_bytes=4096)
    stuck = await _stuck_consumer(own, user)
    async with relay(own.ws, user) as edge:
        for _ in range(400):
            await edge.send({"type": "features", "metrics": {"pad": "x" * 5000}})
        await edge.send({"type": "ping", "t0": 0})
        await edge.receive()
        eventually(lambda: own.get("/stats")[1]["consumers"] == 0)
    stuck.socket.transport.abort()


async def test_a_hole_among_the_last_n_is_announced_in_its_place(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        await edge.send({"type": "raw", "samples": [[0, 0], [1, 0]]})
        await edge.send({"type": "raw", "channels": [7, 0], "position": 7})
        await edge.send({"type": "ping", "t0": 0})
        await edge.receive()
        async with consumer(node.ws, user, "?types=raw,gap&last=3") as azure:
            messages = [await azure.receive() for _ in range(4)]
            assert [message.get("position") for message in messages] == [0, 1, None, 7]
            assert (messages[2]["from"], messages[2]["to"], messages[2]["reason"]) == (2, 7, "relay")


# Resuming.


async def _heard(peer: Peer, n: int) -> list[Any]:
    """Read until position `n` has come: positions, and (from, to, reason) for a gap."""
    heard: list[Any] = []
    while n - 1 not in heard:
        message = await peer.receive()
        if message["type"] == "gap":
            heard.append((message["from"], message["to"], message["reason"]))
        elif message["type"] == "raw":
            heard += [int(sample[0]) for sample in message.get("samples", [message.get("channels")])]
            assert heard[-1] == message["position"] + len(message.get("samples", [0])) - 1
    return heard


async def _send(edge: Peer, positions: range) -> None:
    """Send samples in chunks, and wait until they were taken."""
    for start in range(positions.start, positions.stop, 100):
        some = range(start, min(start + 100, positions.stop))
        await edge.send({"type": "raw", "samples": [[n, 0] for n in some], "position": start})
    await edge.send({"type": "ping", "t0": 0})
    await edge.until("pong")


@pytest.mark.parametrize("start", [0, 1500, 2500, 3000])
async def test_a_consumer_that_comes_back_goes_on_where_it_was(node: Node, user: str, start: int) -> None:
    async with relay(node.ws, user) as edge:
        await _send(edge, range(3000))
        query = f"?session_id={edge.session_id}&from={start}&format=chunks"
        async with consumer(node.ws, user, query) as azure:
            assert azure.status["session_id"] == edge.session_id
            await _send(edge, range(3000, 3200))
            assert await _heard(azure, 3200) == list(range(start, 3200))


async def test_a_session_that_has_ended_is_read_to_its_end_and_then_comes_the_next(node: Node, user: str) -> None:
    async with relay(node.ws, user) as first:
        await _send(first, range(1500))
    async with relay(node.ws, user) as second:
        await _send(second, range(5))
    async with relay(node.ws, user) as third:
        await _send(third, range(10, 20))
        query = f"?session_id={first.session_id}&from=1400&format=chunks"
        async with consumer(node.ws, user, query) as azure:
            assert (azure.status["session_id"], azure.status["online"]) == (first.session_id, False)
            assert await _heard(azure, 1500) == list(range(1400, 1500))
            assert (await azure.until("status"))["session_id"] == second.session_id
            assert await _heard(azure, 5) == list(range(5))
            status = await azure.until("status")
            assert (status["session_id"], status["online"]) == (third.session_id, True)
            assert await _heard(azure, 20) == [(0, 10, "relay"), *range(10, 20)]
            await _send(third, range(20, 21))
            assert await _heard(azure, 21) == [20]


async def test_a_session_nobody_knows_is_not_found(
    node: Node, user: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zander.hub.replay.PATIENCE_SECONDS", 0)
    async with connect(f"{node.ws}/subscribe/{user}?session_id={SOME_ID}&from=0") as socket:
        peer = Peer(socket)
        assert (await peer.receive())["code"] == "not_found"
        assert await peer.close_code() == 4500
    assert "Traceback" not in caplog.text


async def test_a_consumer_may_leave_while_it_is_brought_up(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        await _send(edge, range(3000))
        before = node.get("/stats")[1]["consumers"]
        for _ in range(5):
            async with consumer(node.ws, user, f"?session_id={edge.session_id}&from=0"):
                pass
        eventually(lambda: node.get("/stats")[1]["consumers"] == before)


async def test_one_that_is_brought_up_gets_answers_to_its_predictions(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        await _send(edge, range(3000))
        async with consumer(node.ws, user, f"?session_id={edge.session_id}&from=0") as azure:
            await azure.send(
                {"type": "prediction", "prediction_type": "a", "classifier_name": "b", "data": {}, "id": 1}
            )
            assert (await azure.until("prediction_ack"))["delivered"] is True


@pytest.mark.parametrize("format", ["json", "chunks"])
async def test_a_consumer_that_would_rather_wait_gets_the_same_in_its_order(node: Node, user: str, format: str) -> None:
    async with relay(node.ws, user) as edge, consumer(node.ws, user, f"?delay_ms=20&format={format}") as azure:
        for i in range(100):
            await edge.send({"type": "raw", "channels": [i, 0]})
            if i % 30 == 29:
                await edge.send({"type": "features", "workload": 0.5})
        got: list[float] = []
        while len(got) < 100:
            message = await azure.until("raw")
            got += [message["channels"][0]] if "channels" in message else [row[0] for row in message["samples"]]
        assert got == [*range(100)]


@pytest.mark.parametrize("delay", ["-1", "1001", "x", "1.5"])
async def test_a_delay_that_is_wrong_is_refused_with_its_range(node: Node, user: str, delay: str) -> None:
    async with connect(f"{node.ws}/subscribe/{user}?delay_ms={delay}") as socket:
        error = json.loads(await socket.recv())
        assert (error["code"], "delay_ms" in error["message"]) == ("bad_parameter", True)
        assert await Peer(socket).close_code() == 4500
