"""A relay that comes back, to the same node or another: it goes on from what is durable, and nothing is there twice."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import connect

from support.clients import DEVICE, Peer, RelayPeer, consumer, relay
from support.databases import connected
from support.nodes import Node
from support.programs import Program
from support.services import PostgresServer, ValkeyServer, eventually

StartNode = Callable[..., Node]


async def send(peer: Peer, positions: range, mark: float = 0.0) -> None:
    """Send numbered samples that carry their position, and a mark."""
    for position in positions:
        await peer.send({"type": "raw", "channels": [position, mark], "position": position})


async def acked(peer: RelayPeer, durable: int) -> None:
    """Wait for the ack of everything before a position; acks only ever grow."""
    last = 0
    while last < durable:
        ack = await peer.until("ack")
        assert ack == {"type": "ack", "session_id": peer.session_id, "durable": ack["durable"]}
        assert ack["durable"] >= last
        last = ack["durable"]
    assert last == durable


async def rows(url: str, session_id: str) -> list[tuple[int, float, float]]:
    async with connected(url) as connection:
        found = await connection.fetch(
            "SELECT position, channels[1], channels[2] FROM raw_eeg WHERE session_id = $1 ORDER BY position", session_id
        )
    return [tuple(row) for row in found]


async def session(url: str, session_id: str) -> Any:
    async with connected(url) as connection:
        return await connection.fetchrow("SELECT * FROM sessions WHERE session_id = $1", session_id)


async def refusal(ws: str, user: str, **fields: Any) -> tuple[str, int]:
    """Return why a relay is not let in: the error's code and the close code."""
    async with connect(f"{ws}/stream") as socket:
        peer = Peer(socket)
        await peer.send({"type": "auth", "user_id": user, "device_info": DEVICE} | fields)
        error = await peer.receive()
        return error["code"], await peer.close_code()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """One to stop. Asked for before a node, it outlives the node, which otherwise waits for it in vain at its end."""
    with PostgresServer() as server:
        yield server


# Acks.


async def test_an_ack_comes_only_after_the_commit(
    own_postgres: PostgresServer, start_node: StartNode, user: str
) -> None:
    url = own_postgres.create_database()
    node = start_node(database_url=url)
    eventually(node.ready)
    async with relay(node.ws, user, ack=True) as edge:
        await send(edge, range(50))
        await acked(edge, 50)
        assert [row[0] for row in await rows(url, edge.session_id)] == list(range(50))
        own_postgres.pause()
        await send(edge, range(50, 100))
        await edge.send({"type": "ping", "t0": 1.0})
        assert (await edge.receive())["type"] == "pong"  # all is read, and nothing is acked
        own_postgres.resume()
        await acked(edge, 100)


async def test_a_relay_that_did_not_ask_gets_no_acks(start_node: StartNode, database_url: str, user: str) -> None:
    node = start_node(batch_max_seconds=0.01)
    eventually(node.ready)
    async with relay(node.ws, user) as edge:
        await send(edge, range(10))
        eventually(lambda: node.get("/stats")[1]["database"]["pending_records"] == 0)
        await edge.send({"type": "ping", "t0": 1.0})
        assert (await edge.receive())["type"] == "pong"


async def test_a_gap_counts_as_durable(node: Node, user: str) -> None:
    async with relay(node.ws, user, ack=True) as edge:
        await send(edge, range(10))
        await send(edge, range(90, 100))
        await acked(edge, 100)


# Coming back.


async def test_on_the_same_node_it_goes_on_from_what_is_durable(
    start_node: StartNode, database_url: str, user: str
) -> None:
    node = start_node()
    eventually(node.ready)
    async with consumer(node.ws, user, "?types=raw,gap") as listener:
        async with relay(node.ws, user, ack=True) as edge:
            session_id = edge.session_id
            await send(edge, range(60))
            await acked(edge, 60)
        async with relay(node.ws, user, ack=True, session_id=session_id) as edge:
            assert (edge.session_id, edge.next_position) == (session_id, 60)
            assert (await session(database_url, session_id))["fence"] == 0
            await send(edge, range(30, 100))  # it had not heard of the last ack
            await acked(edge, 100)
        for position in range(100):
            assert (await listener.receive())["position"] == position
    assert await rows(database_url, session_id) == [(position, position, 0) for position in range(100)]
    eventually(lambda: node.get("/stats")[1]["database"]["pending_records"] == 0)
    assert (await session(database_url, session_id))["end_time"] is not None


async def test_a_relay_that_numbers_nothing_goes_on_where_it_is_told(
    start_node: StartNode, database_url: str, user: str
) -> None:
    node = start_node()
    eventually(node.ready)
    async with relay(node.ws, user, ack=True) as edge:
        for value in range(60):
            await edge.send({"type": "raw", "channels": [value, 0]})
        await acked(edge, 60)
        for value in range(60, 80):
            await edge.send({"type": "raw", "channels": [value, 0]})
        await edge.send({"type": "ping", "t0": 1.0})
        await edge.until("pong")
        async with relay(node.ws, user, ack=True, session_id=edge.session_id) as back:
            for value in range(back.next_position, 100):
                await back.send({"type": "raw", "channels": [value, 0]})
            await acked(back, 100)
    assert await rows(database_url, edge.session_id) == [(position, position, 0) for position in range(100)]


async def test_a_half_open_connection_is_closed_when_its_relay_comes_back(node: Node, user: str) -> None:
    async with relay(node.ws, user, ack=True) as old:
        await send(old, range(10))
        async with relay(node.ws, user, ack=True, session_id=old.session_id) as new:
            assert await old.close_code() == 4509
            await send(new, range(new.next_position, 20))
            await acked(new, 20)
            assert node.get("/streams")[1]["streams"] != []


@pytest.mark.parametrize("buffer_keep_seconds", [0.0, 900.0])
async def test_after_a_restart_it_goes_on_from_the_database(
    start_node: StartNode, database_url: str, user: str, buffer_keep_seconds: float
) -> None:
    before, after = start_node(), start_node(buffer_keep_seconds=buffer_keep_seconds)
    eventually(lambda: before.ready() and after.ready())
    async with relay(before.ws, user, ack=True) as edge:
        session_id = edge.session_id
        await send(edge, range(50))
        await acked(edge, 50)
    before.stop()
    async with relay(after.ws, user, ack=True, session_id=session_id) as edge:
        assert edge.next_position == 50
        await send(edge, range(50, 100))
        await acked(edge, 100)
    assert await rows(database_url, session_id) == [(position, position, 0) for position in range(100)]


async def test_who_holds_a_session_no_more_writes_no_more_of_it(
    start_node: StartNode, database_url: str, valkey: ValkeyServer, user: str
) -> None:
    """The first node believes that the session is its own, and has samples of it in its journal."""
    slow = start_node(batch_max_seconds=60, batch_max_records=1_000_000)  # alone: nobody tells it
    quick = start_node(redis_url=valkey.url)
    eventually(lambda: slow.ready() and quick.ready())
    async with relay(slow.ws, user, ack=True) as old:
        eventually(lambda: slow.get("/stats")[1]["database"]["written_records"])  # its start, without a sample
        await send(old, range(100), mark=1)
        await old.send({"type": "ping", "t0": 1.0})
        assert (await old.receive())["type"] == "pong"
        async with relay(quick.ws, user, ack=True, session_id=old.session_id) as new:
            assert new.next_position == 0
            await send(new, range(80), mark=2)
            await acked(new, 80)
            await asyncio.to_thread(slow.stop)  # while its relay answers the close
            assert await old.close_code() in {1012, 1013}
            await send(new, range(80, 120), mark=2)
            await acked(new, 120)
    assert await rows(database_url, old.session_id) == [(position, position, 2) for position in range(120)]
    assert (await session(database_url, old.session_id))["fence"] == 1


async def test_a_node_that_finds_itself_fenced_closes_its_relay_without_redis(
    start_node: StartNode, database_url: str, user: str
) -> None:
    one, two = start_node(), start_node()
    eventually(lambda: one.ready() and two.ready())
    async with relay(one.ws, user, ack=True) as old:
        await send(old, range(10))
        await acked(old, 10)
        async with relay(two.ws, user, ack=True, session_id=old.session_id) as new:
            assert new.next_position == 10
            await send(old, range(10, 20), mark=1)  # half-open: it still reaches the first node
            assert await old.close_code() == 1013
            await send(new, range(10, 20), mark=2)
            await acked(new, 20)
    assert [row[2] for row in await rows(database_url, old.session_id)] == [0] * 10 + [2] * 10


async def test_consumers_on_both_nodes_follow_a_session_that_moves(
    start_node: StartNode, database_url: str, valkey: ValkeyServer, user: str
) -> None:
    one, two = start_node(redis_url=valkey.url), start_node(redis_url=valkey.url)
    eventually(lambda: one.get("/stats")[1]["peers"] == two.get("/stats")[1]["peers"] == 1)
    async with (
        consumer(one.ws, user, "?types=raw,gap") as here,
        consumer(two.ws, user, "?types=raw,gap") as there,
        relay(one.ws, user, ack=True) as edge,
    ):
        await send(edge, range(100))
        await acked(edge, 100)
        await send(edge, range(100, 150))
        for listener in (here, there):
            for position in range(150):
                assert (await listener.receive())["position"] == position
        async with relay(two.ws, user, ack=True, session_id=edge.session_id) as moved:
            await send(moved, range(moved.next_position, 200))
            await acked(moved, 200)
            for listener in (here, there):
                for position in range(150, 200):
                    assert (await listener.receive())["position"] == position
    assert await rows(database_url, edge.session_id) == [(position, position, 0) for position in range(200)]


async def test_a_session_that_was_open_in_a_killed_server_ends_with_its_last_sample(
    database_url: str, user: str, tmp_path: Path
) -> None:
    place = {"database_url": database_url, "batch_max_seconds": 0.1}
    with Program(**place, data_dir=tmp_path) as program:
        eventually(program.ready)
        async with relay(program.ws, user, ack=True) as gone, relay(program.ws, f"{user}-too", ack=True) as back:
            for peer in (gone, back):
                await send(peer, range(10))
                await acked(peer, 10)
            program.kill()
    with Program(**place) as other:
        eventually(other.ready)
        async with relay(other.ws, f"{user}-too", ack=True, session_id=back.session_id) as back:
            await send(back, range(10, 20))
            await acked(back, 20)
            with Program(**place, data_dir=tmp_path) as program:
                eventually(lambda: len(list(tmp_path.glob("journal/*.lock"))) == 1 and program.ready())
                ended = await session(database_url, gone.session_id)
                assert ended["end_time"] == ended["durable_time"]
                assert (await session(database_url, back.session_id))["end_time"] is None


# What cannot be resumed.


async def test_a_session_that_nobody_knows_begins(start_node: StartNode, database_url: str, user: str) -> None:
    node, session_id = start_node(), str(uuid.uuid4())
    eventually(node.ready)
    async with relay(node.ws, user, ack=True, session_id=session_id) as edge:
        assert (edge.session_id, edge.next_position) == (session_id, 0)
        await send(edge, range(10))
        await acked(edge, 10)
    assert len(await rows(database_url, session_id)) == 10


async def test_the_session_of_another_user_is_refused(node: Node, user: str) -> None:
    async with relay(node.ws, user, ack=True) as edge:
        await send(edge, range(1))
        await acked(edge, 1)
        assert await refusal(node.ws, f"not-{user}", session_id=edge.session_id) == ("forbidden", 4503)


async def test_a_session_with_other_channels_is_refused(node: Node, user: str) -> None:
    async with relay(node.ws, user, ack=True) as edge:
        await send(edge, range(1))
        await acked(edge, 1)
        fields = {"session_id": edge.session_id, "device_info": {"channel_count": 3, "sampling_rate": 128}}
        assert await refusal(node.ws, user, **fields) == ("bad_channels", 4500)


async def test_a_session_with_another_rate_is_refused(node: Node, user: str) -> None:
    async with relay(node.ws, user, ack=True) as edge:
        fields = {"session_id": edge.session_id, "device_info": DEVICE | {"sampling_rate": 256}}
        assert await refusal(node.ws, user, **fields) == ("bad_rate", 4500)


async def test_a_device_that_never_said_its_channels_keeps_them_after_a_restart(
    start_node: StartNode, user: str
) -> None:
    one, two = start_node(), start_node()
    eventually(lambda: one.ready() and two.ready())
    async with relay(one.ws, user, {}, ack=True) as edge:
        await send(edge, range(10))
        await acked(edge, 10)
    async with relay(two.ws, user, {}, ack=True, session_id=edge.session_id) as edge:
        await edge.send({"type": "raw", "channels": [1, 2, 3], "position": 10})
        assert (await edge.until("error"))["code"] == "bad_channels"


async def test_a_session_id_that_is_none_is_refused(node: Node, user: str) -> None:
    assert await refusal(node.ws, user, session_id="mine") == ("bad_message", 4500)


async def test_a_session_that_only_an_absent_database_knows_can_be_asked_for_later(
    own_postgres: PostgresServer, start_node: StartNode, user: str
) -> None:
    node = start_node(database_url=own_postgres.create_database())
    eventually(node.ready)
    own_postgres.kill()
    assert await refusal(node.ws, user, session_id=str(uuid.uuid4())) == ("unavailable", 1013)
    async with relay(node.ws, user, ack=True) as edge:  # a new one needs nobody
        await send(edge, range(10))
    own_postgres.start()


# A stop.


async def test_a_stop_tells_relays_what_is_durable_before_it_closes_them(database_url: str, user: str) -> None:
    with Program(database_url=database_url, batch_max_seconds=60, batch_max_records=1_000_000) as program:
        eventually(program.ready)
        async with relay(program.ws, user, ack=True) as edge:
            await send(edge, range(100))
            await edge.send({"type": "ping", "t0": 1.0})
            assert (await edge.receive())["type"] == "pong"
            program.send(signal.SIGTERM)
            await acked(edge, 100)
            assert await edge.close_code() == 1012
        assert program.exit_code() == 0
    assert len(await rows(database_url, edge.session_id)) == 100


async def test_a_relay_that_is_gone_when_its_auth_is_read_takes_nothing_over(database_url: str, user: str) -> None:
    """Both waited in the socket of a server that was frozen, while the relay came back elsewhere."""
    with Program(database_url=database_url, batch_max_seconds=0.1) as zander:
        eventually(zander.ready)
        async with connect(f"{zander.ws}/stream") as stale, relay(zander.ws, user, ack=True) as edge:
            zander.send(signal.SIGSTOP)
            eventually(lambda: psutil.Process(zander.pid).status() == psutil.STATUS_STOPPED)
            await Peer(stale).send(
                {"type": "auth", "user_id": user, "device_info": DEVICE, "session_id": edge.session_id}
            )
            stale.transport.abort()
            await stale.wait_closed()
            zander.send(signal.SIGCONT)
            await send(edge, range(10))
            await edge.send({"type": "ping", "t0": 0})
            await edge.until("pong")
            await acked(edge, 10)
