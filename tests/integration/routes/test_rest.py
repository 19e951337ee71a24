"""The REST endpoints over real HTTP."""

from __future__ import annotations

import io
import json

import httpx
import numpy as np
import pytest

from support.clients import consumer, relay
from support.nodes import Node
from support.services import eventually


async def _fill(node: Node, user: str, n: int = 10) -> None:
    """Leave `n` samples a second apart, some features and a prediction in the user's buffer."""
    async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=prediction") as azure:
        for i in range(n):
            await edge.send({"type": "raw", "channels": [i, None], "timestamp": 1764000000 + i})
            await edge.send({"type": "features", "workload": i / 10, "timestamp": 1764000000 + i})
        await edge.send({"type": "ping", "t0": 0})
        await edge.until("pong")
        await azure.send({"type": "prediction", "prediction_type": "a", "classifier_name": "b", "data": {}, "id": 1})
        await azure.until("prediction_ack")


async def test_health_and_readiness_need_no_key(node: Node) -> None:
    assert node.get("/health") == (200, {"status": "ok"})
    assert node.get("/health/ready") == (
        200,
        {"status": "ready", "database": "up", "redis": "off", "journal": "up", "reason": None},
    )


async def test_the_latest_sample_is_the_message_itself(node: Node, user: str) -> None:
    await _fill(node, user)
    assert node.get(f"/buffer/{user}/latest")[1]["workload"] == 0.9
    assert node.get(f"/buffer/{user}/latest?sample_type=raw")[1]["channels"] == [9, None]
    assert node.get(f"/buffer/{user}/latest?sample_type=prediction")[1]["prediction_type"] == "a"


async def test_the_last_n_come_oldest_first(node: Node, user: str) -> None:
    await _fill(node, user)
    status, answer = node.get(f"/buffer/{user}/last/3?sample_type=raw")
    assert (status, answer["user_id"], answer["sample_type"], answer["n"]) == (200, user, "raw", 3)
    assert [sample["position"] for sample in answer["samples"]] == [7, 8, 9]
    assert [s["workload"] for s in node.get(f"/buffer/{user}/last/2?sample_type=features")[1]["samples"]] == [0.8, 0.9]
    assert node.get(f"/buffer/{user}/last/1000?sample_type=raw")[1]["n"] == 10


@pytest.mark.parametrize("kind", ["raw", "features"])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("1764000002", "1764000005"),
        ("1764000001.5", "1764000004.5"),
        ("2025-11-24T16:00:02Z", "2025-11-24T16:00:05Z"),
        ("2025-11-24T16:00:02", "2025-11-24T17:00:05+01:00"),
    ],
)
async def test_a_range_is_half_open_in_unix_seconds_or_iso_8601(
    node: Node, user: str, start: str, end: str, kind: str
) -> None:
    await _fill(node, user)
    _, answer = node.get(f"/buffer/{user}/range?start={start}&end={end}&sample_type={kind}")
    assert [sample["timestamp"] - 1764000000 for sample in answer["samples"]] == [2, 3, 4]


async def test_a_range_without_samples_is_empty(node: Node, user: str) -> None:
    await _fill(node, user)
    assert node.get(f"/buffer/{user}/range?start=0&end=1&sample_type=raw")[1]["samples"] == []


async def test_numpy_loads_raw_with_what_it_is_in_headers(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        await edge.send({"type": "raw", "samples": [[0, 0.1], [1, None]], "timestamp": 1764000000})
        await edge.send({"type": "raw", "samples": [[5, 0.5]], "position": 5})
        await edge.send({"type": "ping", "t0": 0})
        await edge.until("pong")
    status, headers, body = node.fetch(f"/buffer/{user}/last/10?sample_type=raw&format=npy")
    samples = np.load(io.BytesIO(body))
    assert (status, samples.dtype, samples.shape) == (200, np.float32, (3, 2))
    np.testing.assert_array_equal(samples, np.array([[0, 0.1], [1, np.nan], [5, 0.5]], np.float32))
    assert (headers["X-Position"], headers["X-Time"]) == ("0", "1764000000.0")
    assert json.loads(headers["X-Positions"]) == [[0, 2], [5, 6]]
    assert json.loads(headers["X-Channel-Names"]) == ["C3", "C4"]


async def test_stats_tell_what_each_buffer_holds(node: Node, user: str) -> None:
    await _fill(node, user)
    eventually(lambda: not node.get(f"/buffer/{user}/stats")[1]["online"])
    _, stats = node.get(f"/buffer/{user}/stats")
    assert (stats["user_id"], stats["next_position"]) == (user, 10)
    for kind, held in (("raw", 10), ("features", 10), ("prediction", 1)):
        assert (stats[kind]["held"], stats[kind]["capacity"]) == (held, 1000)
        assert stats[kind]["bytes"] > 0
    assert (stats["raw"]["first_time"], stats["raw"]["last_time"]) == (1764000000, 1764000009)


async def test_streams_lists_who_is_online(node: Node, user: str) -> None:
    async with relay(node.ws, user) as edge:
        _, answer = node.get("/streams")
        mine = [stream for stream in answer["streams"] if stream["user_id"] == user]
        assert [stream["session_id"] for stream in mine] == [edge.session_id]
        assert mine[0]["device_info"]["sampling_rate"] == 128
    eventually(lambda: user not in [stream["user_id"] for stream in node.get("/streams")[1]["streams"]])


async def test_the_server_counts_what_it_does(node: Node, user: str) -> None:
    before = node.get("/stats")[1]
    await _fill(node, user)
    eventually(lambda: node.get("/stats")[1]["database"]["pending_records"] == 0)
    after = node.get("/stats")[1]
    assert after["samples_in"] - before["samples_in"] == 10
    assert after["database"]["written_records"] > before["database"]["written_records"]
    assert after["uptime_seconds"] > 0
    assert after["redis"] == "off"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/buffer/{user}/latest", 404),
        ("/buffer/{user}/stats", 404),
        ("/buffer/{user}/last/0", 422),
        ("/buffer/{user}/last/-1", 422),
        ("/buffer/{user}/last/x", 422),
        ("/buffer/{user}/last/1001", 422),
        ("/buffer/{user}/last/99999999999999999999999999", 422),
        ("/buffer/{user}/last/5?sample_type=rwa", 422),
        ("/buffer/{user}/last/5?format=xml", 422),
        ("/buffer/{user}/range?start=0", 422),
        ("/buffer/{user}/range?start=then&end=now", 422),
        ("/buffer/{user}/range?start=nan&end=inf", 422),
        ("/buffer/{user}/range?start=5&end=4", 409),
        ("/buffer/{user}/range?start=0&end=1e300", 422),
        ("/buffer/a%20b/latest", 422),
        ("/nowhere", 404),
        ("/stream", 404),
    ],
)
async def test_errors_have_one_shape(node: Node, user: str, path: str, status: int) -> None:
    found, answer = node.get(path.format(user=user))
    assert found == status
    assert answer["error"].keys() == {"code", "message"}


async def test_features_cannot_be_had_as_npy(node: Node, user: str) -> None:
    await _fill(node, user)
    assert node.get(f"/buffer/{user}/last/5?format=npy")[0] == 409


def test_another_method_is_405_in_the_same_shape(node: Node) -> None:
    answer = httpx.post(f"{node.http}/health")
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"
