"""The program `zander serve`: its start, its word to the operator, its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from support.clients import consumer, relay
from support.databases import connected
from support.nodes import Node
from support.programs import Program
from support.services import PostgresServer, ValkeyServer, eventually


def test_without_a_database_it_keeps_one_of_its_own_and_says_where(tmp_path: Path) -> None:
    with Program(data_dir=tmp_path / "data") as zander:
        eventually(zander.ready)
        assert str(tmp_path / "data") in zander.log
        assert "none: everybody on this machine may" in zander.log
        assert "zander relay --sample" in zander.log
        assert zander.terminate() == 0
        assert "Traceback" not in zander.log


def test_without_keys_no_other_address_than_loopback_is_served(database_url: str) -> None:
    with Program(host="0.0.0.0", database_url=database_url) as zander:
        assert zander.exit_code() == 2
        assert "EDGE_API_KEY" in zander.log
        assert "Traceback" not in zander.log


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("LOG_LEVEL", "loud"),
        ("BUFFER_SAMPLES", "0"),
        ("DATABASE_URL", "mysql://x"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_a_sentence_that_names_it(variable: str, value: str) -> None:
    with Program(**{variable: value}) as zander:
        assert zander.exit_code() == 2
        assert zander.log.startswith(f"zander: {variable}: ")
        assert zander.log.count("\n") == 1


def test_a_port_that_is_taken_stops_the_start_with_a_sentence(node: Node, database_url: str) -> None:
    with Program(port=node.http.rsplit(":", 1)[1], database_url=database_url) as zander:
        assert zander.exit_code() == 2
        assert "PORT" in zander.log
        assert "Traceback" not in zander.log


async def test_no_key_and_no_password_is_ever_logged(database_url: str, user: str) -> None:
    with Program(
        database_url=database_url,
        edge_api_key="long-secret-edge",
        consumer_api_key="long-secret-azure",
        log_level="DEBUG",
    ) as zander:
        eventually(zander.ready)
        async with relay(zander.ws, user, api_key="long-secret-edge"):
            zander.get("/streams?api_key=long-secret-azure", X_API_Key="long-secret-azure")
            with pytest.raises(AssertionError, match="unauthorized"):
                async with relay(zander.ws, user, api_key="long-secret-wrong"):
                    pass
            async with consumer(
                zander.ws,
                user,
                "?key=long-secret-azure",
                additional_headers={"Authorization": "Bearer long-secret-azure"},
            ):
                pass
        zander.terminate()
        assert "secret" not in zander.log
        assert database_url.split("@", maxsplit=1)[0].rsplit(":", 1)[1] not in zander.log
        assert "Traceback" not in zander.log


async def test_sigterm_under_load_loses_nothing_that_was_taken_in(database_url: str, user: str) -> None:
    seen: list[int] = []
    with Program(database_url=database_url, outbox_max_bytes=64 << 20) as zander:  # whoever reads on gets all
        eventually(zander.ready)

        async def stream(name: str) -> int:
            async with relay(zander.ws, name) as edge:
                with suppress(ConnectionClosed):
                    i = 0
                    while True:
                        await edge.send({"type": "raw", "channels": [i, 0]})
                        i += 1
                        await asyncio.sleep(0)  # or this loop would never let the others read
                return await edge.close_code()

        async with consumer(zander.ws, user, "?types=raw,status") as azure:
            relays = [asyncio.create_task(stream(name)) for name in [user, *(f"{user}-{n}" for n in range(20))]]
            while len(seen) < 500:
                seen.append((await azure.until("raw"))["position"])
            zander.send(signal.SIGTERM)
            with suppress(ConnectionClosed):
                while True:
                    seen.append((await azure.until("raw"))["position"])
            assert azure.socket.close_code == 1012
            assert await asyncio.gather(*relays) == [1012] * 21
        assert zander.exit_code() == 0
        assert "Traceback" not in zander.log
    async with connected(database_url) as database:
        rows = await database.fetch(
            "SELECT user_id, array_agg(position ORDER BY position) AS p FROM raw_eeg GROUP BY user_id"
        )
        positions = {row["user_id"]: row["p"] for row in rows}
        assert all(p == list(range(len(p))) for p in positions.values())
        assert len(positions) == 21
        assert seen == positions[user]
        assert await database.fetchval("SELECT count(*) FROM sessions WHERE end_time IS NULL") == 0


async def test_a_client_that_does_not_close_cannot_hold_up_the_end(database_url: str, user: str) -> None:
    with Program(database_url=database_url) as zander:
        async with consumer(zander.ws, user) as azure:
            azure.socket.transport.pause_reading()
            assert zander.terminate() == 0
            azure.socket.transport.abort()


async def test_workers_share_one_port_and_behave_as_one(database_url: str, valkey: ValkeyServer, user: str) -> None:
    with Program("--workers", "2", database_url=database_url, redis_url=valkey.url) as zander:
        eventually(lambda: zander.ready() and zander.get("/stats")[1]["peers"] >= 1)
        async with relay(zander.ws, user) as edge:
            await edge.send({"type": "raw", "channels": [1, 2]})
            for _ in range(10):
                async with consumer(zander.ws, user, "?types=raw&last=1") as azure:
                    assert (await azure.receive())["channels"] == [1, 2]
        assert zander.terminate() == 0


def test_workers_without_redis_are_refused(database_url: str) -> None:
    with Program("--workers", "2", database_url=database_url) as zander:
        assert zander.exit_code() == 2
        assert "REDIS_URL" in zander.log


async def test_a_killed_node_is_noticed_within_seconds(database_url: str, valkey: ValkeyServer, user: str) -> None:
    shared = {"database_url": database_url, "redis_url": valkey.url}
    with Program(**shared) as one, Program(**shared) as two:
        async with relay(one.ws, user), consumer(two.ws, user) as azure:
            eventually(lambda: two.get(f"/buffer/{user}/stats")[0] == 200)
            one.kill()
            assert two.get(f"/buffer/{user}/stats")[0] in (404, 503)
            while (await azure.until("status"))["online"]:
                pass
            assert two.get(f"/buffer/{user}/stats")[0] == 404


async def test_a_node_that_slept_gives_up_a_user_who_went_elsewhere(
    database_url: str, valkey: ValkeyServer, user: str
) -> None:
    shared = {"database_url": database_url, "redis_url": valkey.url}
    with Program(**shared) as one, Program(**shared) as two:
        eventually(lambda: one.get("/stats")[1]["peers"] == two.get("/stats")[1]["peers"])
        async with relay(one.ws, user) as old, consumer(one.ws, user) as azure:
            eventually(lambda: two.get(f"/buffer/{user}/stats")[0] == 200)
            one.send(signal.SIGSTOP)
            eventually(lambda: two.get(f"/buffer/{user}/stats")[0] == 404)
            async with relay(two.ws, user) as new:
                one.send(signal.SIGCONT)
                assert await old.close_code() == 4509
                while (await azure.until("status"))["session_id"] != new.session_id:
                    pass
                await new.send({"type": "raw", "channels": [1, 1]})
                assert (await azure.until("raw"))["session_id"] == new.session_id


async def test_while_the_database_is_away_ingest_goes_on_and_nothing_is_lost(
    start_node: Callable[..., Node], user: str
) -> None:
    with PostgresServer() as postgres:
        url = postgres.create_database()
        node = start_node(database_url=url)
        eventually(node.ready)
        async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=raw,status") as azure:
            for i in range(300):
                if i == 100:
                    postgres.kill()
                if i == 200:
                    eventually(lambda: not node.ready())
                    assert node.get("/health/ready") == (
                        503,
                        {"status": "degraded", "database": "down", "redis": "off", "journal": "up", "reason": None},
                    )
                await edge.send({"type": "raw", "channels": [i, 0]})
                assert (await azure.until("raw"))["channels"][0] == i
            postgres.start()
            eventually(lambda: node.ready() and node.get("/stats")[1]["database"]["pending_records"] == 0)
        node.stop()
        async with connected(url) as database:
            rows = await database.fetch("SELECT position, channels[1] FROM raw_eeg ORDER BY position")
            assert [tuple(row) for row in rows] == [(i, i) for i in range(300)]


async def test_it_starts_without_its_database_and_finds_it_later(start_node: Callable[..., Node], user: str) -> None:
    with PostgresServer() as postgres:
        url = postgres.create_database()
        postgres.stop()
        node = start_node(database_url=url)
        async with relay(node.ws, user) as edge:
            await edge.send({"type": "raw", "channels": [1, 2]})
            await edge.send({"type": "ping", "t0": 0})
            await edge.until("pong")
        assert node.get("/health/ready")[0] == 503
        postgres.start()
        eventually(node.ready)
        node.stop()
        async with connected(url) as database:
            assert await database.fetchval("SELECT count(*) FROM raw_samples") == 1


async def test_two_nodes_may_start_at_once_on_an_empty_database(start_node: Callable[..., Node]) -> None:
    nodes = await asyncio.gather(*(asyncio.to_thread(start_node) for _ in range(3)))
    for node in nodes:
        eventually(node.ready)
