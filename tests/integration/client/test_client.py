"""`Relay` and `Consumer` against a real node; against a server of the test's own where it has to misbehave."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import pytest
from websockets.asyncio.server import ServerConnection, serve

from support.databases import connected
from support.nodes import Node
from support.programs import Program
from support.scripted_server import auth_ok, closing, greet, served, storing
from zander.client import ConnectionLost, Consumer, Cursor, Raw, Rejected, Relay, connection
from zander.wire.chunk import RawIn, encode_binary

DEVICE = {"device_type": "test", "sampling_rate": 128, "channel_names": ["C3", "C4"], "channel_count": 2}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE_S", 0.01)


async def until(consumer: Consumer, kind: str) -> dict[str, Any]:
    """Return the next message of a type, passing over the others."""
    async for event in consumer:
        if isinstance(event, dict) and event["type"] == kind:
            return event
    raise AssertionError("a consumer's iteration never ends")


async def raw(consumer: Consumer, n_samples: int) -> list[Raw]:
    """Return raw until so many samples came."""
    found: list[Raw] = []
    while sum(len(event.samples) for event in found) < n_samples:
        event = await anext(consumer)
        if isinstance(event, Raw):
            found.append(event)
    return found


@pytest.mark.parametrize("format", ["json", "chunks", "binary"])
async def test_samples_and_chunks_of_either_kind_arrive_in_every_format(node: Node, user: str, format: str) -> None:
    async with Relay(node.ws, user, DEVICE) as relay, Consumer(node.ws, user, format=format) as consumer:
        assert (await until(consumer, "status"))["online"] is True
        await relay.send_sample([0.5, -1.5], time_us=1_764_000_000_000_000)
        await relay.send_chunk(np.array([[1, 2], [3, 4]]), time_us=1_764_000_001_000_000)
        await relay.send_chunk([[5, 6], [7, np.nan]], time_us=1_764_000_002_000_000, binary=False)
        found = await raw(consumer, 5)
    assert [event.position for event in found] == list(np.cumsum([0, *(len(event.samples) for event in found[:-1])]))
    assert found[0].time_us == 1_764_000_000_000_000
    assert found[-1].time_us >= 1_764_000_002_000_000
    samples = np.concatenate([event.samples for event in found])
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, [[0.5, -1.5], [1, 2], [3, 4], [5, 6], [7, np.nan]])


async def test_a_position_ahead_is_a_gap(node: Node, user: str) -> None:
    async with Relay(node.ws, user, DEVICE) as relay, Consumer(node.ws, user) as consumer:
        await until(consumer, "status")
        await relay.send_chunk([[1, 2]], position=3)
        await relay.send_chunk([[1, 2]], position=7, binary=False)
        first, second = await until(consumer, "gap"), await until(consumer, "gap")
    assert [(gap["from"], gap["to"], gap["reason"]) for gap in (first, second)] == [(0, 3, "relay"), (4, 7, "relay")]
    assert first["session_id"] == relay.session_id


async def test_features_arrive_as_they_were_sent(node: Node, user: str) -> None:
    async with Relay(node.ws, user, DEVICE) as relay, Consumer(node.ws, user, types=["features"]) as consumer:
        fields = {"workload": 0.65, "confidence": None, "band_powers": {"alpha": 0.35}, "own": [1]}
        message = await _sent_until_heard(relay, consumer, fields)
    assert {name: message[name] for name in fields} == fields


async def _sent_until_heard(relay: Relay, consumer: Consumer, fields: dict[str, Any]) -> dict[str, Any]:
    """Send until something comes: without a status nothing tells when a subscription has begun."""
    heard = asyncio.create_task(until(consumer, "features"))
    while not heard.done():
        await relay.send_features(fields)
        await asyncio.wait({heard}, timeout=0.02)
    return heard.result()


async def test_a_prediction_reaches_the_relay_and_is_acknowledged(node: Node, user: str) -> None:
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    async with Relay(node.ws, user, DEVICE, on_message=heard.put_nowait), Consumer(node.ws, user) as consumer:
        await until(consumer, "status")
        await consumer.send_prediction("emotion", "lstm", {"joy": 0.7}, version="2", id=5)
        assert (await until(consumer, "prediction_ack")) == {"type": "prediction_ack", "id": 5, "delivered": True}
        message = await heard.get()
    assert (message["prediction_type"], message["classifier_name"], message["version"]) == ("emotion", "lstm", "2")
    assert message["data"] == {"joy": 0.7}


async def test_what_the_server_does_not_like_is_told_and_the_connection_goes_on(node: Node, user: str) -> None:
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    async with Relay(node.ws, user, DEVICE, on_message=heard.put_nowait) as relay:
        await relay.send_sample([1, 2, 3])
        assert (await heard.get())["code"] == "bad_channels"
        await relay.send_sample([1, 2])


async def test_the_last_samples_come_first(node: Node, user: str) -> None:
    async with Relay(node.ws, user, DEVICE) as relay:
        async with Consumer(node.ws, user) as consumer:
            await until(consumer, "status")
            await relay.send_chunk(np.arange(20).reshape(10, 2))
            await raw(consumer, 10)
        async with Consumer(node.ws, user, last=4) as consumer:
            found = await raw(consumer, 4)
    assert found[0].position == 6
    np.testing.assert_array_equal(found[0].samples[0], [12, 13])


async def test_a_user_of_any_spelling_has_a_stream(node: Node, user: str) -> None:
    spelling = f"{user}?#%ü&"
    async with Relay(node.ws, spelling, DEVICE), Consumer(node.ws, spelling) as consumer:
        assert (await until(consumer, "status"))["user_id"] == spelling


async def test_an_http_address_will_do(node: Node, user: str) -> None:
    async with Relay(node.http + "/", user, DEVICE) as relay:
        assert relay.session_id


async def test_a_relay_that_is_taken_over_is_told_so(node: Node, user: str) -> None:
    async with Relay(node.ws, user, DEVICE) as old, Relay(node.ws, user, DEVICE):
        with pytest.raises(Rejected, match=r"another relay took over this user \(4509\)") as rejected:
            await send_until_refused(old)
        assert rejected.value.code == 4509


async def send_until_refused(relay: Relay) -> None:
    while True:
        await relay.send_sample([1, 2])
        await asyncio.sleep(0)


@pytest.mark.parametrize("key", [None, "wrong"])
async def test_without_the_right_key_there_is_no_coming_back(
    start_node: Callable[..., Node], user: str, key: str | None
) -> None:
    node = start_node(edge_api_key=("right",))
    with pytest.raises(Rejected, match=r"the key is wrong or missing \(4501\): expected") as rejected:
        await Relay(node.ws, user, DEVICE, key).connect()
    assert rejected.value.code == 4501
    with pytest.raises(Rejected, match=r"the key is wrong or missing \(4501\): expected"):
        await until(Consumer(node.ws, user, key), "status")


async def test_the_right_key_opens_both_ends_even_if_it_is_not_ascii(
    start_node: Callable[..., Node], user: str
) -> None:
    node = start_node(edge_api_key=("schlüssel",))
    async with Relay(node.ws, user, DEVICE, "schlüssel"), Consumer(node.ws, user, "schlüssel") as consumer:
        assert (await until(consumer, "status"))["online"] is True


async def test_keys_go_in_the_header_and_never_in_the_url() -> None:
    seen: list[tuple[str, str | None]] = []

    async def look(socket: ServerConnection) -> None:
        assert socket.request is not None
        seen.append((socket.request.path, socket.request.headers.get("Authorization")))
        await socket.send(auth_ok())
        await socket.wait_closed()

    async with served(look) as url:
        async with Relay(url, "u", DEVICE, "secret"):
            pass
        async with Consumer(url, "u", "secret", types=["raw", "gap"], last=3) as consumer:
            await anext(consumer)
    paths = ["/stream", "/subscribe/u?format=binary&types=raw%2Cgap%2Cstatus&last=3"]
    assert seen == [(path, "Bearer secret") for path in paths]


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013, 4408, 4413, 4429, 4499])
async def test_a_relay_comes_back_after_codes_that_allow_it(code: int) -> None:
    losses: list[tuple[int | None, float]] = []
    async with served(closing(code), closing(code), storing) as url:
        relay = Relay(url, "u", DEVICE, on_lost=lambda error, pause_s: losses.append((error.code, pause_s)))
        async with relay:
            await relay.send_sample([1, 2])
            assert await relay.drain(10)
    assert [found for found, _ in losses] == [code, code]
    assert 0.005 <= losses[0][1] <= 0.01 <= losses[1][1] <= 0.02, "pauses grow, and are not all the same"


@pytest.mark.parametrize("code", [1009, 4500, 4501, 4503, 4509, 4999])
async def test_neither_end_comes_back_after_codes_that_forbid_it(code: int) -> None:
    async with served(closing(code, '{"type":"error","code":"x","message":"the reason"}')) as url:
        with pytest.raises(Rejected, match=rf"\({code}\): the reason") as rejected:
            await Relay(url, "u", DEVICE).connect()
        assert rejected.value.code == code
        consumer = Consumer(url, "u")
        assert (await until(consumer, "error"))["message"] == "the reason"
        with pytest.raises(Rejected, match=rf"\({code}\): the reason"):
            await anext(consumer)


async def test_a_consumer_comes_back_by_itself_and_asks_for_the_past_only_once() -> None:
    paths: list[str] = []

    async def one_sample(socket: ServerConnection) -> None:
        assert socket.request is not None
        paths.append(socket.request.path)
        await socket.send(encode_binary(RawIn(len(paths), 0, np.ones((1, 2), np.float32))))
        await socket.close(1012)

    losses: list[str] = []
    async with (
        served(one_sample) as url,
        Consumer(url, "u", last=9, on_lost=lambda error, _: losses.append(str(error))) as consumer,
    ):
        found = await raw(consumer, 3)
    assert [event.position for event in found] == [1, 2, 3]
    assert paths == ["/subscribe/u?format=binary&last=9", *["/subscribe/u?format=binary"] * 2]
    assert losses == ["the server restarts (1012)"] * 2


async def test_a_server_that_is_not_there_yet_is_waited_for(unused_tcp_port: int) -> None:
    away = asyncio.Event()
    relay = Relay(f"ws://127.0.0.1:{unused_tcp_port}", "u", DEVICE, on_lost=lambda error, _: away.set())
    connecting = asyncio.create_task(relay.connect())
    await away.wait()
    async with serve(storing, "127.0.0.1", unused_tcp_port):
        await connecting
        await relay.close()


async def test_an_address_where_something_else_serves_is_refused(node: Node) -> None:
    with pytest.raises(Rejected, match=r"answers 40[34] instead of opening a WebSocket"):
        await Relay(f"{node.ws}/elsewhere", "u", DEVICE).connect()
    with pytest.raises(Rejected, match="isn't a valid URI"):
        await Relay("gopher://there", "u", DEVICE).connect()


async def test_what_a_listener_raises_comes_out_of_the_relay() -> None:
    def fail(message: dict[str, Any]) -> None:
        raise ZeroDivisionError(message["type"])

    async def speak(socket: ServerConnection) -> None:
        await _greet_and_say(socket, {"type": "prediction"})

    async with served(speak) as url:
        relay = Relay(url, "u", DEVICE, on_message=fail)
        await relay.connect()
        with pytest.raises(ZeroDivisionError, match="prediction"):
            await send_until_refused(relay)
        with pytest.raises(ZeroDivisionError):
            await relay.close()


async def _greet_and_say(socket: ServerConnection, message: dict[str, Any]) -> None:
    await greet(socket)
    await socket.send(orjson.dumps(message).decode())
    await socket.wait_closed()


async def test_predictions_before_connecting_are_an_error() -> None:
    with pytest.raises(ConnectionLost, match="not connected"):
        await Consumer("ws://127.0.0.1:1", "u").send_prediction("a", "b", {})
    with pytest.raises(ConnectionLost, match="not connected"):
        await Relay("ws://127.0.0.1:1", "u", DEVICE).send_features({"workload": 0.5})


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_through_the_ends_of_a_server_every_sample_arrives_once_and_is_stored_once(
    database_url: str, unused_tcp_port: int, user: str, end: signal.Signals
) -> None:
    place: dict[str, Any] = {"database_url": database_url, "port": unused_tcp_port}
    url, found = f"ws://127.0.0.1:{unused_tcp_port}", []
    with ExitStack() as programs:
        place["data_dir"] = programs.enter_context(TemporaryDirectory())
        server = programs.enter_context(Program(**place))
        async with Relay(url, user, DEVICE) as relay, Consumer(url, user) as consumer:
            await until(consumer, "status")
            for place["batch_max_seconds"] in (5.0, 5.0, 0.1):  # the last, so that the end need not be waited for
                await send(relay, 100)
                found += await raw(consumer, 1)  # the rest of it may be anywhere
                server.send(end)
                await send(relay, 100)
                await asyncio.to_thread(server.exit_code)
                server = await asyncio.to_thread(lambda: programs.enter_context(Program(**place)))
            assert await relay.drain(30)
            found += await raw(consumer, relay.next_position - sum(len(event.samples) for event in found))
            async with Consumer(url, user, cursor=Cursor(relay.session_id, 123)) as late:
                again = await raw(late, 600 - 123)
    assert relay.next_position == 600
    values = np.arange(600)
    np.testing.assert_array_equal(np.concatenate([event.samples for event in found])[:, 0], values)
    np.testing.assert_array_equal(np.concatenate([event.samples for event in again])[:, 0], values[123:])
    assert {event.session_id for event in found + again} == {relay.session_id}
    async with connected(database_url) as database:
        rows = await database.fetch("SELECT position, channels[1] FROM raw_eeg ORDER BY position")
    assert [tuple(row) for row in rows] == [(position, position) for position in values]


async def send(relay: Relay, n_samples: int) -> None:
    """Send samples that say where they are."""
    for _ in range(n_samples):
        await relay.send_sample([relay.next_position, 0.5])
