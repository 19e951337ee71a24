"""Two nodes on one Redis behave as one."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from support.clients import DEVICE, Peer, consumer, relay
from support.databases import until
from support.nodes import Node
from support.services import PostgresServer, ValkeyServer, eventually
from zander.cluster import link as link_module
from zander.wire.chunk import decode_binary

StartNode = Callable[..., Node]


@pytest.fixture(scope="module")
def pair(postgres: PostgresServer, valkey: ValkeyServer) -> Iterator[tuple[Node, Node]]:
    """Two nodes that know each other, for tests that leave them as they are."""
    shared: dict[str, Any] = {
        "database_url": postgres.create_database(),
        "redis_url": valkey.url,
        "batch_max_seconds": 0.1,
    }
    with Node(**shared) as one, Node(**shared) as two:
        _acquainted(one, two)
        yield one, two


def _acquainted(*nodes: Node) -> None:
    """Wait until every node has its database and has heard of every other."""
    eventually(lambda: all(node.ready() for node in nodes))
    eventually(lambda: all(node.get("/stats")[1]["peers"] == len(nodes) - 1 for node in nodes))


def _everywhere(user: str, *nodes: Node) -> None:
    """Wait until every node knows that the user streams."""
    eventually(lambda: all(node.get(f"/buffer/{user}/stats")[0] == 200 for node in nodes))


async def _command(redis: Redis, words: str) -> None:
    await redis.execute_command(*words.split())  # type: ignore[no-untyped-call]  # redis-py gives it no types


async def _positions(peer: Peer, end: int) -> list[int]:
    """Read raw until position `end`, and check that each sample says its position in channel 0."""
    positions: list[int] = []
    while not positions or positions[-1] < end - 1:
        message = await peer.receive()
        if isinstance(message, bytes):
            raw = decode_binary(message)
            start, values = raw.position or 0, raw.samples[:, 0].tolist()
        elif message["type"] == "raw":
            values = [sample[0] for sample in message.get("samples", [message.get("channels")])]
            start = message["position"]
        else:
            continue
        assert values == list(range(start, start + len(values)))
        positions += range(start, start + len(values))
    return positions


async def test_a_consumer_on_the_other_node_gets_everything(pair: tuple[Node, Node], user: str) -> None:
    one, two = pair
    async with consumer(two.ws, user) as azure:
        async with relay(one.ws, user) as edge:
            status = await azure.receive()
            assert (status["type"], status["online"], status["session_id"]) == ("status", True, edge.session_id)
            await edge.send({"type": "raw", "channels": [0, None]})
            await edge.send({"type": "features", "workload": 0.5})
            await edge.send({"type": "raw", "channels": [5, 0], "position": 5})
            messages = [await azure.receive() for _ in range(4)]
            assert {message["type"] for message in messages} == {"raw", "features", "gap"}
            raw = [message for message in messages if message["type"] == "raw"]
            assert [(message["position"], message["channels"]) for message in raw] == [(0, [0, None]), (5, [5, 0])]
            assert all(message["session_id"] == edge.session_id for message in raw)
        assert (await azure.until("status"))["online"] is False


async def test_a_session_that_began_before_anyone_knew_of_the_consumer_comes_whole(
    pair: tuple[Node, Node], user: str
) -> None:
    one, two = pair
    async with consumer(two.ws, user) as azure, relay(one.ws, user) as edge:
        for i in range(500):
            await edge.send({"type": "raw", "channels": [i, 0]})
        assert await _positions(azure, 500) == list(range(500))


async def test_nobody_else_gets_a_session_that_no_database_has_yet(
    valkey: ValkeyServer, start_node: StartNode, unused_tcp_port: int, user: str
) -> None:
    away = f"postgresql://nobody@127.0.0.1:{unused_tcp_port}/none"
    one, two = (start_node(database_url=away, redis_url=valkey.url) for _ in range(2))
    await asyncio.to_thread(eventually, lambda: [node.get("/streams")[0] for node in (one, two)] == [200, 200])
    async with relay(one.ws, user) as edge:
        await edge.send({"type": "raw", "channels": [0, 0]})
        await asyncio.to_thread(_everywhere, user, one, two)
        for node in (one, two):
            async with connect(f"{node.ws}/stream") as socket:
                peer = Peer(socket)
                auth = {"type": "auth", "user_id": f"not-{user}", "session_id": edge.session_id}
                await peer.send(auth | {"device_info": DEVICE})
                assert (await peer.receive())["code"] == "forbidden"
                assert await peer.close_code() == 4503


@pytest.mark.parametrize("form", ["json", "chunks", "binary"])
async def test_last_n_joins_across_nodes_without_a_hole_or_a_repeat(
    pair: tuple[Node, Node], user: str, form: str
) -> None:
    one, two = pair
    async with relay(one.ws, user) as edge:
        _everywhere(user, two)
        some_sent = asyncio.Event()

        async def send() -> None:
            for i in range(2000):
                await edge.send({"type": "raw", "channels": [i, 0]})
                if i == 300:
                    some_sent.set()

        sending = asyncio.create_task(send())
        await some_sent.wait()
        query = f"?types=raw&last=100&format={form}"
        async with consumer(two.ws, user, query) as first, consumer(two.ws, user, query) as second:
            for peer in (first, second):
                positions = await _positions(peer, 2000)
                assert positions == list(range(positions[0], 2000))
                assert len(positions) >= 100
        await sending


async def test_every_query_has_the_same_answer_on_both_nodes(pair: tuple[Node, Node], user: str) -> None:
    one, two = pair
    async with relay(one.ws, user) as edge:
        _everywhere(user, two)
        for i in range(10):
            await edge.send({"type": "raw", "channels": [i, 0], "timestamp": 1764000000 + i})
            await edge.send({"type": "features", "workload": i / 10, "timestamp": 1764000000 + i})
        await edge.send({"type": "ping", "t0": 0})
        await edge.until("pong")
        for path in (
            "latest",
            "latest?sample_type=raw",
            "last/3",
            "last/3?sample_type=raw",
            "range?start=1764000002&end=1764000005&sample_type=raw",
            "latest?sample_type=prediction",
            "last/0",
        ):
            assert one.get(f"/buffer/{user}/{path}") == two.get(f"/buffer/{user}/{path}"), path
        answers = [node.fetch(f"/buffer/{user}/last/9?sample_type=raw&format=npy") for node in pair]
        assert answers[0][2] == answers[1][2]
        assert answers[0][1]["X-Positions"] == answers[1][1]["X-Positions"] == "[[1, 10]]"
        assert np.load(io.BytesIO(answers[1][2])).shape == (9, 2)
        for node in pair:
            assert user in [stream["user_id"] for stream in node.get("/streams")[1]["streams"]]
            assert node.get(f"/buffer/{user}/stats")[1]["raw"]["held"] == 10


async def test_a_prediction_on_the_other_node_reaches_the_relay_and_all_but_its_sender(
    pair: tuple[Node, Node], user: str
) -> None:
    one, two = pair
    async with (
        relay(one.ws, user) as edge,
        consumer(one.ws, user, "?types=prediction") as here,
    ):
        _everywhere(user, two)
        async with (
            consumer(two.ws, user, "?types=prediction") as sender,
            consumer(two.ws, user, "?types=prediction") as there,
        ):
            await there.send({"type": "prediction", "prediction_type": "w", "classifier_name": "c", "data": {}})
            assert (await sender.receive())["prediction_type"] == "w"  # both follow from here on
            await edge.receive()
            await here.receive()
            await sender.send(
                {"type": "prediction", "prediction_type": "x", "classifier_name": "c", "data": {}, "id": 9}
            )
            assert await sender.receive() == {"type": "prediction_ack", "id": 9, "delivered": True}
            for peer in (edge, here, there):
                assert (await peer.receive())["prediction_type"] == "x"
        _, answer = two.get(f"/buffer/{user}/last/5?sample_type=prediction")
        assert answer["n"] == 2


async def test_a_relay_on_the_other_node_takes_over(pair: tuple[Node, Node], user: str) -> None:
    one, two = pair
    async with relay(one.ws, user) as old, consumer(one.ws, user) as here, consumer(two.ws, user) as there:
        _everywhere(user, two)
        async with relay(two.ws, user) as new:
            assert await old.close_code() == 4509
            for peer in (here, there):
                while (await peer.until("status"))["session_id"] != new.session_id:
                    pass
            await new.send({"type": "raw", "channels": [1, 1]})
            for peer in (here, there):
                assert (await peer.until("raw"))["session_id"] == new.session_id
        async with relay(one.ws, user) as back:  # and back again
            for peer in (here, there):
                while (await peer.until("status"))["session_id"] != back.session_id:
                    pass


async def test_a_node_that_stops_says_so_and_a_new_relay_goes_elsewhere(
    start_node: StartNode, valkey: ValkeyServer, user: str
) -> None:
    one, two = start_node(redis_url=valkey.url), start_node(redis_url=valkey.url)
    async with relay(one.ws, user) as edge, consumer(two.ws, user) as azure:
        _everywhere(user, two)
        await asyncio.to_thread(one.stop)
        assert await edge.close_code() == 1012
        while (await azure.until("status"))["online"]:
            pass
        assert two.get(f"/buffer/{user}/stats")[0] == 404
        async with relay(two.ws, user) as again:
            assert (await azure.until("status"))["session_id"] == again.session_id


async def test_without_redis_each_node_goes_on_alone_and_both_heal_by_themselves(
    start_node: StartNode, user: str
) -> None:
    with ValkeyServer() as redis:
        one, two = start_node(redis_url=redis.url), start_node(redis_url=redis.url)
        eventually(one.ready)
        _acquainted(one, two)
        async with relay(one.ws, user) as edge, consumer(one.ws, user, "?types=raw,status") as here:
            _everywhere(user, two)
            async with consumer(two.ws, user, "?types=raw,gap,status") as there:
                await edge.send({"type": "raw", "channels": [0, 0]})
                assert await _positions(there, 1) == [0]
                redis.stop()
                await until(lambda: one.get("/health/ready")[1]["redis"] == "down")
                assert one.get("/health/ready")[0] == 503
                await until(lambda: two.get("/health/ready")[0] == 503)
                for i in range(1, 300):
                    await edge.send({"type": "raw", "channels": [i, 0]})
                assert (await _positions(here, 300))[-1] == 299
                assert two.get(f"/buffer/{user}/latest")[0] in (404, 503)
                redis.start()
                assert await _positions(there, 300) == list(range(1, 300))
                await until(one.ready)
                _everywhere(user, two)


async def test_what_the_ring_no_longer_holds_after_an_outage_comes_from_the_database(
    start_node: StartNode, user: str
) -> None:
    with ValkeyServer() as redis:
        one, two = (start_node(redis_url=redis.url, buffer_samples=50) for _ in range(2))
        _acquainted(one, two)
        async with relay(one.ws, user) as edge, consumer(two.ws, user, "?types=raw,gap,status") as there:
            await edge.send({"type": "raw", "channels": [0, 0]})
            assert await _positions(there, 1) == [0]
            redis.stop()
            await until(lambda: two.get("/health/ready")[1]["redis"] == "down")
            for i in range(1, 200):
                await edge.send({"type": "raw", "channels": [i, 0]})
            await edge.send({"type": "ping", "t0": 0})
            await edge.until("pong")
            redis.start()
            assert await _positions(there, 200) == list(range(1, 200))


@pytest.mark.parametrize("command", ["CLIENT KILL TYPE pubsub", "CLIENT KILL TYPE normal SKIPME yes", "FLUSHALL"])
async def test_redis_may_cut_connections_or_forget_all_and_nothing_is_lost(
    pair: tuple[Node, Node], valkey: ValkeyServer, user: str, command: str
) -> None:
    one, two = pair
    async with (
        relay(one.ws, user) as edge,
        consumer(two.ws, user, "?types=raw,status") as there,
        Redis.from_url(valkey.url) as redis,
    ):
        for i in range(600):
            await edge.send({"type": "raw", "channels": [i, 0]})
            if i % 200 == 100:
                await _command(redis, command)
        assert await _positions(there, 600) == list(range(600))
    _acquainted(one, two)


async def test_a_redis_that_hangs_is_noticed_and_nobody_waits_for_it(start_node: StartNode, user: str) -> None:
    with ValkeyServer() as redis:
        one, two = start_node(redis_url=redis.url), start_node(redis_url=redis.url)
        _acquainted(one, two)
        async with relay(one.ws, user) as edge, consumer(one.ws, user, "?types=raw") as here:
            _everywhere(user, two)
            redis.pause()
            try:
                for i in range(100):
                    await edge.send({"type": "raw", "channels": [i, 0]})
                assert (await _positions(here, 100))[-1] == 99
                assert two.get(f"/buffer/{user}/latest")[0] == 503
                await until(lambda: two.get("/health/ready")[1]["redis"] == "down")
            finally:
                redis.resume()
            await until(lambda: two.get("/health/ready")[1]["redis"] == "up")


async def test_links_that_break_again_and_again_leave_no_hole(start_node: StartNode, user: str) -> None:
    with ValkeyServer() as redis:
        one, two = (start_node(redis_url=redis.url, buffer_samples=10_000) for _ in range(2))
        _acquainted(one, two)
        async with (
            relay(one.ws, user) as edge,
            consumer(two.ws, user, "?types=raw,status") as there,
            Redis.from_url(redis.url) as client,
        ):
            reading = asyncio.create_task(_positions(there, 5000))
            for i in range(5000):
                await edge.send({"type": "raw", "channels": [i, 0]})
                if i % 700 == 600:
                    await _command(client, "CLIENT KILL TYPE pubsub")
                if i % 10 == 0:
                    await client.ping()  # what paces this, so that the links have the time to come back meanwhile
            assert await reading == list(range(5000))


async def test_a_consumer_that_comes_while_the_last_other_one_goes_is_served(
    pair: tuple[Node, Node], user: str
) -> None:
    one, two = pair
    async with relay(one.ws, user) as edge:
        _everywhere(user, two)
        before = consumer(two.ws, user)
        await before.__aenter__()
        for i in range(20):
            after = consumer(two.ws, user, "?last=0")
            _, there = await asyncio.gather(before.__aexit__(None, None, None), after.__aenter__())
            await edge.send({"type": "raw", "channels": [i, 0]})
            assert (await there.until("raw"))["channels"] == [i, 0]
            before = after
        await before.__aexit__(None, None, None)


async def test_after_an_outage_gaps_are_announced_in_their_place_however_much_was_said(
    start_node: StartNode, user: str
) -> None:
    with ValkeyServer() as redis:
        one, two = start_node(redis_url=redis.url), start_node(redis_url=redis.url)
        _acquainted(one, two)
        async with relay(one.ws, user) as edge, consumer(two.ws, user, "?types=raw,gap,status") as there:
            await edge.send({"type": "raw", "channels": [0, 0]})
            assert await _positions(there, 1) == [0]
            redis.stop()
            await until(lambda: two.get("/health/ready")[1]["redis"] == "down")
            await edge.send({"type": "raw", "channels": [1, 0]})
            await edge.send({"type": "raw", "channels": [100, 0], "position": 100})
            for i in range(300):
                await edge.send({"type": "features", "workload": i})
            await edge.send({"type": "ping", "t0": 0})
            await edge.until("pong")
            redis.start()
            assert (await there.until("raw"))["position"] == 1
            gap = await there.receive()
            assert (gap["type"], gap["from"], gap["to"], gap["reason"]) == ("gap", 2, 100, "relay")
            assert (await there.receive())["position"] == 100


# Resuming.


async def _send(edge: Peer, positions: range) -> None:
    """Send samples that say their position, and wait until they were taken."""
    for start in range(positions.start, positions.stop, 100):
        some = range(start, min(start + 100, positions.stop))
        await edge.send({"type": "raw", "samples": [[n, 0] for n in some], "position": start})
    await edge.send({"type": "ping", "t0": 0})
    await edge.until("pong")


@pytest.mark.parametrize("start", [0, 1500, 2500, 2999])
async def test_a_consumer_goes_on_on_the_other_node_where_it_was(
    pair: tuple[Node, Node], user: str, start: int
) -> None:
    one, two = pair
    async with relay(one.ws, user) as edge:
        await _send(edge, range(3000))
        _everywhere(user, two)
        query = f"?session_id={edge.session_id}&from={start}&types=raw,gap,status&format=chunks"
        async with consumer(two.ws, user, query) as there, consumer(two.ws, user, "?types=raw,status") as live:
            await _send(edge, range(3000, 3200))
            assert await _positions(there, 3200) == list(range(start, 3200))
            assert await _positions(live, 3200) == list(range(3000, 3200))


@pytest.mark.parametrize("form", ["json", "binary"])
async def test_a_session_that_moves_to_another_node_goes_on_for_every_consumer(
    pair: tuple[Node, Node], user: str, form: str
) -> None:
    """Each node has a consumer; the relay goes from node to node and sends again from where it is told."""
    one, two = pair
    query = f"?format={form}&types=raw,gap,status"
    async with consumer(one.ws, user, query) as here, consumer(two.ws, user, query) as there:
        reading = [asyncio.create_task(_positions(peer, 2000)) for peer in (here, there)]
        session_id, end = str(uuid4()), 0
        for node in (one, two, one, two, two):
            async with relay(node.ws, user, session_id=session_id, ack=True) as edge:
                end += 400
                assert edge.session_id == session_id
                await _send(edge, range(edge.next_position, end))
        for task in reading:
            assert await task == list(range(2000))


async def test_the_last_samples_before_a_relay_is_taken_over_elsewhere_come_to_a_third_node(
    pair: tuple[Node, Node], start_node: StartNode, user: str
) -> None:
    one, two = pair
    three = start_node(redis_url=one.settings.redis_url)
    eventually(lambda: three.ready() and three.get("/stats")[1]["peers"] >= 2)
    async with consumer(three.ws, user, "?types=raw,gap,status") as there:
        for old, new in ((one, two), (two, one), (one, two)):
            async with relay(old.ws, user) as edge:
                await _send(edge, range(10))
                assert await _positions(there, 10) == list(range(10))
                await _send(edge, range(10, 3000))
                async with relay(new.ws, user) as newer:
                    await newer.send({"type": "raw", "channels": [0, 0]})
                    assert await _positions(there, 3000) == list(range(10, 3000))
                    assert await _positions(there, 1) == [0]


async def test_who_listens_where_a_relay_was_taken_over_follows_it(pair: tuple[Node, Node], user: str) -> None:
    one, two = pair
    session_id = str(uuid4())
    async with (
        consumer(one.ws, user, "?types=raw,gap,status") as here,
        relay(one.ws, user, session_id=session_id, ack=True) as old,
    ):
        await _send(old, range(300))
        async with relay(two.ws, user, session_id=session_id, ack=True) as new:
            assert await old.close_code() == 4509
            await _send(new, range(new.next_position, 600))
            assert await _positions(here, 600) == list(range(600))


async def test_a_session_that_moved_while_redis_was_away_goes_on(start_node: StartNode, user: str) -> None:
    with ValkeyServer() as redis:
        one, two = start_node(redis_url=redis.url), start_node(redis_url=redis.url)
        _acquainted(one, two)
        session_id = str(uuid4())
        async with consumer(one.ws, user, "?types=raw,gap,status") as here:
            async with relay(one.ws, user, session_id=session_id, ack=True) as edge:
                await _send(edge, range(300))
                await edge.until("ack")
                redis.stop()
                await until(lambda: two.get("/health/ready")[1]["redis"] == "down")
            async with relay(two.ws, user, session_id=session_id, ack=True) as edge:
                await _send(edge, range(edge.next_position, 600))
                redis.start()
                await until(lambda: two.get("/health/ready")[1]["redis"] == "up")
                await _send(edge, range(600, 700))
                assert await _positions(here, 700) == list(range(700))


async def test_a_relay_that_came_before_another_but_was_let_in_later_takes_nothing_over(
    pair: tuple[Node, Node], user: str
) -> None:
    one, two = pair
    session_id = str(uuid4())
    auth = {"type": "auth", "user_id": user, "device_info": DEVICE, "session_id": session_id, "ack": True}
    async with connect(f"{one.ws}/stream") as early, relay(two.ws, user, session_id=session_id, ack=True) as edge:
        await _send(edge, range(10))
        _everywhere(user, one)
        stale = Peer(early)
        await stale.send(auth)
        assert await stale.close_code() in {1013, 4509}
        with suppress(ConnectionClosed):
            await edge.send({"type": "raw", "samples": [[10, 0]], "position": 10})  # what was before may be written
        assert await edge.close_code() == 1013  # its session was taken over in the database: it is to ask again
        async with relay(two.ws, user, session_id=session_id, ack=True) as again:
            await _send(again, range(again.next_position, 20))


async def test_a_session_whose_first_samples_came_while_redis_was_away_is_not_passed_over(
    start_node: StartNode, user: str
) -> None:
    with ValkeyServer() as redis:
        one, two = start_node(redis_url=redis.url), start_node(redis_url=redis.url)
        _acquainted(one, two)
        async with consumer(two.ws, user, "?types=raw,gap,status") as there:
            async with relay(one.ws, user) as edge:
                while (await there.until("status"))["session_id"] != edge.session_id:
                    pass
                redis.stop()
                await until(lambda: two.get("/health/ready")[1]["redis"] == "down")
                await _send(edge, range(6))
            async with relay(two.ws, user) as edge:
                redis.start()
                await _send(edge, range(3))
                assert await _positions(there, 6) == list(range(6))
                assert await _positions(there, 3) == list(range(3))


async def test_gaps_are_announced_where_they_are_in_what_comes_from_the_database_after_an_outage(
    start_node: StartNode, user: str
) -> None:
    with ValkeyServer() as redis:
        one, two = (start_node(redis_url=redis.url, buffer_samples=100) for _ in range(2))
        _acquainted(one, two)
        async with (
            relay(one.ws, user) as edge,
            consumer(two.ws, user, "?types=raw,gap,status") as there,
        ):
            await _send(edge, range(50))
            assert await _positions(there, 50) == list(range(50))
            redis.stop()
            await until(lambda: two.get("/health/ready")[1]["redis"] == "down")
            await _send(edge, range(60, 300))
            redis.start()
            gap = await there.until("gap")
            assert (gap["from"], gap["to"], gap["reason"]) == (50, 60, "relay")
            assert await _positions(there, 300) == list(range(60, 300))
            query = f"?types=raw,gap,status&session_id={edge.session_id}&from=50"
            async with consumer(two.ws, user, query) as again:
                gap = await again.until("gap")
                assert (gap["from"], gap["to"], gap["reason"]) == (50, 60, "relay")
                assert await _positions(again, 300) == list(range(60, 300))


async def test_while_redis_is_away_a_consumer_goes_on_from_the_database(start_node: StartNode, user: str) -> None:
    with ValkeyServer() as redis:
        one, two = (start_node(redis_url=redis.url, buffer_samples=100) for _ in range(2))
        _acquainted(one, two)
        async with relay(one.ws, user) as edge:
            await _send(edge, range(300))
            _everywhere(user, two)
            query = f"?types=raw,gap,status&session_id={edge.session_id}&from=50"
            redis.stop()
            await until(lambda: two.get("/health/ready")[1]["redis"] == "down")
            async with consumer(two.ws, user, query) as there:
                assert await _positions(there, 300) == list(range(50, 300))
                await _send(edge, range(300, 310))
                assert await _positions(there, 310) == list(range(300, 310))
                redis.start()
                await until(lambda: two.get("/health/ready")[1]["redis"] == "up")
                await _send(edge, range(310, 320))
                assert await _positions(there, 320) == list(range(310, 320))


async def test_two_clusters_on_one_redis_do_not_hear_each_other(
    postgres: PostgresServer, start_node: StartNode, valkey: ValkeyServer, user: str
) -> None:
    """As production and staging would, of the same users and the same version."""
    production = start_node(redis_url=valkey.url, cluster_name="production")
    staging = start_node(redis_url=valkey.url, cluster_name="staging", database_url=postgres.create_database())
    other = start_node(redis_url=valkey.url, cluster_name="production")
    _acquainted(production, other)
    eventually(lambda: staging.get("/stats")[1]["redis"] == "up")
    async with relay(production.ws, user) as edge, consumer(other.ws, user) as azure:
        async with relay(staging.ws, user) as test:
            await test.send({"type": "raw", "channels": [7, 7]})
            await edge.send({"type": "raw", "channels": [1, 2]})
            assert (await azure.until("raw"))["channels"] == [1, 2]
        assert staging.get("/stats")[1]["peers"] == 0
        assert edge.session_id in str(other.get("/streams")[1])


async def test_a_node_on_a_replica_of_redis_is_not_ready_and_says_why(
    start_node: StartNode, caplog: pytest.LogCaptureFixture
) -> None:
    with ValkeyServer() as primary, ValkeyServer() as replica:
        async with Redis.from_url(replica.url) as redis:
            await _command(redis, f"REPLICAOF 127.0.0.1 {primary.port}")
            node, other = start_node(redis_url=replica.url), start_node(redis_url=primary.url)
            eventually(other.ready)
            eventually(lambda: "REDIS_URL leads to a replica" in caplog.text)
            status, body = node.get("/health/ready")
            assert (status, body["redis"]) == (503, "down")
            await _command(redis, "REPLICAOF NO ONE")
        eventually(node.ready)


async def test_a_redis_that_becomes_a_replica_is_noticed(
    start_node: StartNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "REPLICA_CHECK_SECONDS", 0.05)
    with ValkeyServer() as primary, ValkeyServer() as demoted:
        node = start_node(redis_url=demoted.url)
        eventually(node.ready)
        async with Redis.from_url(demoted.url) as redis:
            await _command(redis, f"REPLICAOF 127.0.0.1 {primary.port}")
        eventually(lambda: not node.ready())
        assert "REDIS_URL leads to a replica" in caplog.text
