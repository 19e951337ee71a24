"""Who gets in, and that no key is ever logged."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Origin

from support.clients import Peer, relay
from support.nodes import Node
from support.services import PostgresServer

EDGE, EDGE2, AZURE = "edge-key-1234", "edge-key-5678", "azure-key-ü"


@pytest.fixture(scope="module")
def locked(postgres: PostgresServer) -> Iterator[Node]:
    with Node(database_url=postgres.create_database(), edge_api_key=(EDGE, EDGE2), consumer_api_key=(AZURE,)) as node:
        yield node


@pytest.mark.parametrize("key", [EDGE, EDGE2])
async def test_each_relay_key_opens_stream_in_the_message_or_the_header(locked: Node, user: str, key: str) -> None:
    async with relay(locked.ws, user, api_key=key):
        pass
    async with connect(f"{locked.ws}/stream", additional_headers={"Authorization": f"Bearer {key}"}) as socket:
        peer = Peer(socket)
        await peer.send({"type": "auth", "user_id": user})
        assert (await peer.receive())["type"] == "auth_ok"


@pytest.mark.parametrize("fields", [{}, {"api_key": ""}, {"api_key": "wrong"}, {"api_key": AZURE}, {"api_key": None}])
async def test_no_other_key_opens_stream(locked: Node, user: str, fields: dict[str, str]) -> None:
    async with connect(f"{locked.ws}/stream") as socket:
        peer = Peer(socket)
        await peer.send({"type": "auth", "user_id": user} | fields)
        assert (await peer.receive())["code"] == "unauthorized"
        assert await peer.close_code() == 4501


async def test_a_consumer_key_opens_subscribe_in_the_header_or_the_first_message(locked: Node, user: str) -> None:
    header = {"Authorization": f"Bearer {AZURE}".encode().decode("latin-1")}
    async with connect(f"{locked.ws}/subscribe/{user}", additional_headers=header) as socket:
        assert (await Peer(socket).receive())["type"] == "status"
    async with connect(f"{locked.ws}/subscribe/{user}") as socket:
        peer = Peer(socket)
        await peer.send({"type": "auth", "api_key": AZURE})
        assert (await peer.receive())["type"] == "status"


@pytest.mark.parametrize("first", ['{"type":"auth","api_key":"wrong"}', '{"type":"prediction"}', b"x", "{"])
async def test_nothing_else_opens_subscribe(locked: Node, user: str, first: str | bytes) -> None:
    async with connect(f"{locked.ws}/subscribe/{user}?api_key={AZURE}") as socket:
        peer = Peer(socket)
        await peer.send(first)
        assert (await peer.receive())["code"] == "unauthorized"
        assert await peer.close_code() == 4501


PRIVATE = [
    "/buffer/u/latest",
    "/buffer/u/last/1",
    "/buffer/u/range?start=0&end=1",
    "/buffer/u/stats",
    "/streams",
    "/stats",
]


@pytest.mark.parametrize("path", PRIVATE)
def test_rest_needs_a_consumer_key(locked: Node, path: str) -> None:
    key = AZURE.encode().decode("latin-1")
    assert locked.get(path)[0] == 401
    assert locked.get(path, Authorization="Bearer wrong")[0] == 401
    assert locked.get(path, X_API_Key=EDGE)[0] == 401
    assert locked.get(f"{path}{'&' if '?' in path else '?'}api_key=edge-key-1234")[0] == 401
    assert locked.get(path, X_API_Key=key)[0] in (200, 404)
    assert locked.get(path, Authorization=f"Bearer {key}")[0] in (200, 404)


async def test_wrong_keys_are_counted_and_logged_once_per_address(
    start_node: Callable[..., Node], user: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = start_node(edge_api_key=(EDGE,))
    for _ in range(3):
        assert node.get("/stats", X_API_Key="wrong-key-of-rest")[0] == 401
        for path, auth in (("/stream", {"user_id": user}), (f"/subscribe/{user}", {})):
            async with connect(node.ws + path) as socket:
                peer = Peer(socket)
                await peer.send({"type": "auth", "api_key": "wrong-key-of-socket"} | auth)
                assert (await peer.receive())["code"] == "unauthorized"
                assert await peer.close_code() == 4501
    assert node.get("/stats", X_API_Key=EDGE)[1]["wrong_keys"] == 9
    said = [record.message for record in caplog.records if record.name == "zander.auth"]
    assert said == ["a wrong key, or none, came from 127.0.0.1; it is named once a minute"]
    assert "wrong-key" not in caplog.text


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json"])
def test_health_and_docs_need_none(locked: Node, path: str) -> None:
    assert locked.fetch(path)[0] == 200


async def test_without_a_consumer_key_the_relays_key_opens_rest(
    start_node: Callable[..., Node],
) -> None:
    node = start_node(edge_api_key=(EDGE,))
    assert node.get("/streams")[0] == 401
    assert node.get("/streams", X_API_Key=EDGE)[0] == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://[::1"])
async def test_without_keys_a_web_page_of_another_site_is_refused(node: Node, user: str, origin: str) -> None:
    assert node.get("/streams", Origin=origin)[0] == 401
    for path in ("/stream", f"/subscribe/{user}"):
        async with connect(node.ws + path, origin=Origin(origin)) as socket:
            assert await Peer(socket).close_code() == 4501


@pytest.mark.parametrize("host", ["evil.example:8000", "evil.example"])
def test_without_keys_a_site_whose_name_was_made_to_point_here_is_refused(node: Node, host: str) -> None:
    assert node.get("/streams", Host=host)[0] == 401


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8000"])
async def test_a_web_page_of_this_machine_may_listen(node: Node, user: str, origin: str) -> None:
    assert node.get("/streams", Origin=origin)[0] == 200
    async with connect(f"{node.ws}/subscribe/{user}", origin=Origin(origin)) as socket:
        assert (await Peer(socket).receive())["type"] == "status"


def test_with_keys_any_page_may_that_has_one(locked: Node) -> None:
    key = AZURE.encode().decode("latin-1")
    assert locked.get("/streams", Origin="https://dashboard.example", X_API_Key=key)[0] == 200
