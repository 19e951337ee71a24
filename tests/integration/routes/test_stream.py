"""`/stream`, the relay's end, over real sockets."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from support.clients import DEVICE, Peer, consumer, relay
from support.nodes import Node
from zander.wire.chunk import RawIn, decode_binary, encode_binary


async def test_a_sample_of_the_original_form_reaches_the_consumer(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge, consumer(node.ws, user) as azure:
        await edge.send({"type": "raw", "channels": [0.1, -0.2]})
        message = await azure.receive()
        assert (message["type"], message["channels"]) == ("raw", [0.1, -0.2])
        assert (message["user_id"], message["session_id"], message["position"]) == (user, edge.session_id, 0)
        assert abs(message["timestamp"] - time.time()) < 5


async def test_auth_is_answered_with_the_session_and_where_to_go_on(node: Node, user: str) -> None:
    async with connect(f"{node.ws}/stream") as socket:
        peer = Peer(socket)
        await peer.send({"type": "auth", "api_key": "any", "user_id": user, "device_info": DEVICE})
        greeting = await peer.receive()
        assert greeting.keys() == {"type", "session_id", "user_id", "next_position", "server_time"}
        assert (greeting["type"], greeting["user_id"], greeting["next_position"]) == ("auth_ok", user, 0)


async def test_chunks_in_json_and_binary_continue_the_same_positions(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=raw") as azure:
        await edge.send({"type": "raw", "samples": [[0, 1.5], [1, None]]})
        await edge.send(encode_binary(RawIn(None, None, np.array([[2, math.nan], [3, -4.25]], np.float32))))
        messages = [await azure.receive() for _ in range(4)]
        assert [message["position"] for message in messages] == [0, 1, 2, 3]
        assert [message["channels"] for message in messages] == [[0.0, 1.5], [1.0, None], [2.0, None], [3.0, -4.25]]
        times = [message["timestamp"] for message in messages]
        assert times == sorted(times)


async def test_what_is_older_than_the_setting_is_refused_and_told_and_the_rest_is_taken(
    start_node: Callable[..., Node], user: str
) -> None:
    """As of a spool that waited for too long."""
    node = start_node(max_age_days=30)
    async with relay(node.ws, user) as edge:
        old_s, new_s = time.time() - 31 * 86_400, time.time() - 29 * 86_400
        for timestamp in (old_s, new_s, old_s, new_s):
            await edge.send({"type": "raw", "channels": [0, 0], "timestamp": timestamp})
        await edge.send({"type": "features", "workload": 0.5, "timestamp": old_s})
        for _ in range(3):
            error = await edge.receive()
            assert (error["type"], error["code"]) == ("error", "bad_timestamp")
            assert "expected 30 days ago (MAX_AGE_DAYS) to" in error["message"]
        assert node.get(f"/buffer/{user}/stats")[1]["raw"]["held"] == 2


async def test_timestamps_of_the_relay_are_kept_and_spaced_by_the_sampling_rate(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=raw") as azure:
        await edge.send({"type": "raw", "samples": [[0, 0], [1, 0]], "timestamp": 1764000000.5})
        first, second = await azure.receive(), await azure.receive()
        assert first["timestamp"] == 1764000000.5
        assert second["timestamp"] == pytest.approx(1764000000.5 + 1 / 128, abs=1e-6)


@pytest.mark.parametrize("is_binary", [False, True])
async def test_a_clock_that_jumps_leaves_every_sample_a_time_of_its_own(
    start_node: Callable[..., Node], user: str, is_binary: bool
) -> None:
    node = start_node()
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=raw") as azure:
        await edge.send({"type": "raw", "channels": [0, 0], "timestamp": time.time() + 50})
        for i in range(1, 301):
            chunk = encode_binary(RawIn(i, None, np.zeros((1, 2), np.float32)))
            await edge.send(chunk if is_binary else {"type": "raw", "channels": [i, 0]})
        times = [(await azure.receive())["timestamp"] for _ in range(301)]
        steps = np.diff(times)
        assert steps == pytest.approx(0.875 / 128, abs=1e-5)
        told = await edge.receive()
        assert (told["type"], told["code"]) == ("error", "clamped")
        await edge.send({"type": "ping", "t0": 1.5})
        assert (await edge.receive())["type"] == "pong"  # told once, and the connection goes on
        assert node.get(f"/buffer/{user}/stats")[1]["raw"]["clamped"] == 300
        assert node.get("/stats")[1]["clamped"] == 300


async def test_a_time_more_than_a_minute_ahead_is_refused(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        await edge.send({"type": "raw", "channels": [0, 0], "timestamp": time.time() + 65})
        assert (await edge.receive())["code"] == "bad_timestamp"
        await edge.send({"type": "raw", "channels": [0, 0], "timestamp": time.time() + 55})
        await edge.send({"type": "ping", "t0": 1.5})
        assert (await edge.receive())["type"] == "pong"


async def test_a_position_ahead_is_announced_as_a_gap_and_never_filled(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=raw,gap") as azure:
        await edge.send({"type": "raw", "channels": [0, 0]})
        await edge.send({"type": "raw", "channels": [7, 0], "position": 7})
        assert (await azure.receive())["position"] == 0
        gap = await azure.receive()
        assert gap == {"type": "gap", "session_id": edge.session_id, "from": 1, "to": 7, "reason": "relay"}
        assert (await azure.receive())["position"] == 7


async def test_what_is_sent_twice_is_delivered_once_and_counted(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=raw") as azure:
        await edge.send({"type": "raw", "samples": [[0, 0], [1, 0], [2, 0]], "position": 0})
        await edge.send({"type": "raw", "samples": [[1, 0], [2, 0], [3, 0]], "position": 1})
        assert [(await azure.receive())["channels"][0] for _ in range(4)] == [0, 1, 2, 3]
        _, stats = node.get(f"/buffer/{user}/stats")
        assert (stats["raw"]["duplicates"], stats["raw"]["gaps"], stats["next_position"]) == (2, 0, 4)


async def test_features_keep_every_field_and_say_whose_they_are(node: Node, user: str) -> None:
    features = {
        "type": "features",
        "workload": 0.65,
        "confidence": 0.89,
        "band_powers": {"delta": 0.12, "theta": 0.25},
        "metrics": {"frontal_theta": 0.22},
        "our_own": [1, {"two": None}],
    }
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=features") as azure:
        await edge.send(features)
        message = await azure.receive()
        assert message.items() >= features.items()
        assert (message["user_id"], message["session_id"]) == (user, edge.session_id)


async def test_features_that_are_too_large_on_their_way_out_are_refused_and_close_nobody(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=features") as azure:
        await edge.send('{"type":"features","x":[' + ",".join(["1e15"] * 4000) + "]}")  # 20 kB in, 76 kB out
        error = await edge.receive()
        assert (error["type"], error["code"]) == ("error", "too_large")
        assert "65536" in error["message"]
        await edge.send({"type": "features", "x": "y" * 65_000})
        assert (await azure.receive())["x"] == "y" * 65_000
        assert node.get(f"/buffer/{user}/stats")[1]["bad_messages"] == 1


async def test_a_clock_probe_is_answered_with_three_times(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        await edge.send({"type": "ping", "t0": 12.5})
        pong = await edge.receive()
        assert (pong["type"], pong["t0"]) == ("pong", 12.5)
        assert pong["t1"] <= pong["t2"]


async def test_a_second_relay_of_the_user_takes_over(node: Node, user: str) -> None:
    async with relay(node.ws, user) as old, consumer(node.ws, user) as azure:
        async with relay(node.ws, user) as new:
            assert await old.close_code() == 4509
            assert (await azure.until("status"))["session_id"] == new.session_id
            await new.send({"type": "raw", "channels": [1, 1]})
            assert (await azure.until("raw"))["session_id"] == new.session_id
        status = await azure.until("status")
        assert (status["online"], status["session_id"]) == (False, new.session_id)


BAD_MESSAGES = {
    "not JSON": "{",
    "not an object": "[1]",
    "no type": '{"channels": [1, 2]}',
    "unknown type": '{"type": "rawr"}',
    "too few channels": '{"type": "raw", "channels": [1]}',
    "too many channels": '{"type": "raw", "channels": [1, 2, 3]}',
    "no channels": '{"type": "raw", "channels": []}',
    "ragged samples": '{"type": "raw", "samples": [[1, 2], [3]]}',
    "both forms": '{"type": "raw", "channels": [1, 2], "samples": [[1, 2]]}',
    "neither form": '{"type": "raw"}',
    "a word": '{"type": "raw", "channels": ["one", 2]}',
    "NaN in JSON": '{"type": "raw", "channels": [NaN, 2]}',
    "Infinity in JSON": '{"type": "raw", "channels": [Infinity, 2]}',
    "beyond a double": '{"type": "raw", "channels": [1e999, 2]}',
    "beyond a float32": '{"type": "raw", "channels": [1e39, 2]}',
    "negative position": '{"type": "raw", "channels": [1, 2], "position": -1}',
    "fractional position": '{"type": "raw", "channels": [1, 2], "position": 1.5}',
    "huge position": '{"type": "raw", "channels": [1, 2], "position": 99999999999999999999}',
    "the year 10000": '{"type": "raw", "channels": [1, 2], "timestamp": 253402300800}',
    "the year 1": '{"type": "raw", "channels": [1, 2], "timestamp": -62135596800}',
    "milliseconds": '{"type": "raw", "channels": [1, 2], "timestamp": 1764000000000}',
    "a text timestamp": '{"type": "raw", "channels": [1, 2], "timestamp": "now"}',
    "features of words": '{"type": "features", "workload": "high"}',
    "NUL in features": '{"type": "features", "metrics": {"a": "\\u0000"}}',
    "a probe without t0": '{"type": "ping"}',
    "a second auth": '{"type": "auth", "user_id": "x"}',
    "deep nesting": '{"type": "features", "metrics": ' + "[" * 50_000,
    "a lone surrogate": '{"type": "features", "metrics": {"a": "\\ud800"}}',
    "binary junk": b"\x00\xff junk",
    "an empty binary": b"",
    "another version": b"\x02" + encode_binary(RawIn(None, None, np.zeros((1, 2), np.float32)))[1:],
    "a cut binary": encode_binary(RawIn(None, None, np.zeros((2, 2), np.float32)))[:-1],
    "a long binary": encode_binary(RawIn(None, None, np.zeros((1, 2), np.float32))) + b"\0",
    "no samples": encode_binary(RawIn(None, None, np.zeros((0, 2), np.float32))),
    "infinity in binary": encode_binary(RawIn(None, None, np.array([[math.inf, 0]], np.float32))),
    "another device in binary": encode_binary(RawIn(None, None, np.zeros((1, 3), np.float32))),
}


async def test_each_bad_message_gets_its_error_and_disturbs_nothing(
    node: Node, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=raw,features,gap") as azure:
        for i, (what, message) in enumerate(BAD_MESSAGES.items()):
            await edge.send(message)
            error = await edge.receive()
            assert error["type"] == "error", what
            assert error["code"], what
            assert error["message"], what
            await edge.send({"type": "raw", "channels": [i, 0]})
            assert (await azure.receive())["channels"][0] == i, what
        assert node.get(f"/buffer/{user}/stats")[1]["bad_messages"] == len(BAD_MESSAGES)
    assert "Traceback" not in caplog.text


async def test_after_a_hundred_bad_messages_the_relay_is_closed(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        for _ in range(101):
            await edge.send("junk")
        assert await edge.close_code() == 4500


@pytest.mark.parametrize("first", ['{"type":"raw","channels":[1]}', "junk", b"junk", '{"type":"ping","t0":1}'])
async def test_anything_before_auth_closes(node: Node, first: str | bytes) -> None:
    async with connect(f"{node.ws}/stream") as socket:
        peer = Peer(socket)
        await peer.send(first)
        assert (await peer.receive())["code"] == "unauthorized"
        assert await peer.close_code() == 4501


BAD_AUTHS = {
    "no user": {},
    "an empty user": {"user_id": ""},
    "a long user": {"user_id": "u" * 101},
    "white space": {"user_id": "a b"},
    "a final newline": {"user_id": "a\n"},
    "a slash": {"user_id": "a/b"},
    "a control character": {"user_id": "a\x07"},
    "a number": {"user_id": 7},
    "no rate": {"user_id": "u", "device_info": {"sampling_rate": 0}},
    "a huge rate": {"user_id": "u", "device_info": {"sampling_rate": 1e9}},
    "a negative count": {"user_id": "u", "device_info": {"channel_count": -1}},
    "a huge count": {"user_id": "u", "device_info": {"channel_count": 10**9}},
    "count and names differ": {"user_id": "u", "device_info": {"channel_count": 3, "channel_names": ["a"]}},
    "a text device": {"user_id": "u", "device_info": "headset"},
    "a device of a megabyte": {"user_id": "u", "device_info": {"notes": "x" * 100_000}},
}


@pytest.mark.parametrize("fields", BAD_AUTHS.values(), ids=BAD_AUTHS.keys())
async def test_an_auth_out_of_range_is_refused_with_its_reason(node: Node, fields: dict[str, object]) -> None:
    async with connect(f"{node.ws}/stream") as socket:
        peer = Peer(socket)
        await peer.send({"type": "auth"} | fields)
        error = await peer.receive()
        assert error["type"] == "error"
        assert await peer.close_code() == 4500


async def test_a_message_over_one_mebibyte_closes_with_1009(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        await edge.send('{"type":"features","pad":"' + "x" * (1 << 20) + '"}')
        assert await edge.close_code() == 1009


async def test_a_message_just_under_one_mebibyte_is_taken_and_reaches_every_format(node: Node, user: str) -> None:
    n = ((1 << 20) - 24) // 8
    samples = np.stack([np.arange(n), np.full(n, 0.1)], axis=1).astype(np.float32)
    async with (
        relay(node.ws, user) as edge,
        consumer(node.ws, user, "?types=raw&format=binary") as binary,
        consumer(node.ws, user, "?types=raw&format=chunks") as chunks,
    ):
        for start in range(0, n, 0xFFFF):
            await edge.send(encode_binary(RawIn(None, None, samples[start : start + 0xFFFF])))
        first = 0
        while first < n:
            raw = decode_binary(await binary.receive())
            assert raw.position == first
            first += len(raw.samples)
        first = 0
        while first < n:
            message = await chunks.receive()
            assert message["samples"][0][0] == message["position"] == first
            first += len(message["samples"])


async def test_text_that_is_not_utf8_closes_with_1007(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        await edge.socket.send(b"\xff\xfe", text=True)
        assert await edge.close_code() == 1007


async def test_a_relay_that_does_not_know_its_channels_is_fixed_by_its_first_sample(node: Node, user: str) -> None:
    async with relay(node.ws, user, device={}) as edge, consumer(node.ws, user, "?types=raw") as azure:
        await edge.send({"type": "raw", "channels": [1, 2, 3]})
        assert (await azure.receive())["channels"] == [1, 2, 3]
        await edge.send({"type": "raw", "channels": [1]})
        assert (await edge.receive())["code"] == "bad_channels"
        await edge.send({"type": "raw", "samples": [[1, 2, 3], [4, 5, 6]]})
        assert (await edge.receive())["code"] == "no_sampling_rate"


async def test_unknown_fields_of_the_device_are_given_back_as_they_came(node: Node, user: str) -> None:
    device = DEVICE | {"firmware": {"version": [1, 2.5]}, "électrodes": "Ag/AgCl"}
    async with relay(node.ws, user, device=device), consumer(node.ws, user) as azure:
        assert azure.status["device_info"] == device
        _, streams = node.get("/streams")
        assert [s["device_info"] for s in streams["streams"] if s["user_id"] == user] == [device]


async def test_a_relay_that_vanishes_without_closing_goes_offline(node: Node, user: str) -> None:
    async with consumer(node.ws, user) as azure, relay(node.ws, user) as edge:
        assert (await azure.until("status"))["online"] is True
        edge.socket.transport.abort()
        assert (await azure.until("status"))["online"] is False


async def test_predictions_reach_the_relay_and_the_other_consumers(node: Node, user: str) -> None:
    prediction = {
        "type": "prediction",
        "prediction_type": "workload_azure_lstm",
        "classifier_name": "azure_ml_lstm_v2",
        "version": "v2.1.0",
        "data": {"workload_prediction": 0.72, "confidence": 0.94},
    }
    async with (
        relay(node.ws, user) as edge,
        consumer(node.ws, user, "?types=prediction") as azure,
        consumer(node.ws, user, "?types=prediction") as dashboard,
    ):
        await azure.send(prediction | {"id": "p1"})
        assert await azure.receive() == {"type": "prediction_ack", "id": "p1", "delivered": True}
        for peer in (edge, dashboard):
            message = await peer.receive()
            assert message.items() >= prediction.items()
            assert message["user_id"] == user
            assert abs(message["timestamp"] - time.time()) < 5


async def test_a_hundred_relays_at_once_keep_their_samples_apart(node: Node, user: str) -> None:
    async def stream(name: str, n: int) -> None:
        async with relay(node.ws, name) as edge, consumer(node.ws, name, "?types=raw") as azure:
            for i in range(20):
                await edge.send({"type": "raw", "channels": [i, n]})
            assert [(await azure.receive())["channels"] for _ in range(20)] == [[i, n] for i in range(20)]

    await asyncio.gather(*(stream(f"{user}-{n}", n) for n in range(100)))


async def test_the_connection_ends_when_the_peer_says_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zander.routes.websocket.AUTH_SECONDS", 0.05)
    async with connect(f"{node.ws}/stream") as socket:
        peer = Peer(socket)
        assert json.loads(await socket.recv())["code"] == "unauthorized"
        assert await peer.close_code() == 4408


async def test_more_connections_than_allowed_are_closed_with_4429(
    start_node: Callable[..., Node], user: str, caplog: pytest.LogCaptureFixture
) -> None:
    small = start_node(max_connections=1)
    caplog.clear()
    async with connect(f"{small.ws}/stream") as silent, relay(small.ws, user), connect(f"{small.ws}/stream") as socket:
        await socket.send(f'{{"type":"auth","user_id":"{user}"}}')
        assert await Peer(socket).close_code() == 4429
        await asyncio.to_thread(small.stop)
        assert await Peer(silent).close_code() == 1012
    assert "ended with an error" not in caplog.text
    with pytest.raises(ConnectionClosed):
        await socket.recv()


async def test_a_relay_that_sends_more_than_it_may_is_slowed_and_loses_nothing(
    start_node: Callable[..., Node], user: str
) -> None:
    node = start_node(relay_max_bytes_per_second=20_000)
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=raw") as azure:
        for i in range(600):  # 27 KB
            await edge.send({"type": "raw", "channels": [i, 0]})
        assert [(await azure.receive())["channels"][0] for _ in range(600)] == [*range(600)]
