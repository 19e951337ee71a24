"""`/history` and `/sessions` over real HTTP: pages of what the database holds."""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clients import consumer, relay
from support.nodes import Node
from support.services import PostgresServer, eventually
from support.stored_sessions import DEVICE, T0_US, PastSession, every
from zander.database import history as history_module
from zander.database.history import MAX_TIME_US
from zander.routes.parameters import PAGE_TOKEN, page_token_text
from zander.wire.chunk import MAX_POSITION

T0 = T0_US / 1e6
ALL = f"start={T0 - 10}&end={T0 + 100_000}"


@pytest.fixture(scope="module")
def url(postgres: PostgresServer) -> str:
    return postgres.create_database()


@pytest.fixture(scope="module")
def past(url: str) -> Iterator[Node]:
    """A node on a database into which the tests write by themselves."""
    with Node(database_url=url) as node:
        eventually(node.ready)
        yield node


@pytest.fixture
def begin(url: str, past: Node, user: str) -> Callable[..., Any]:
    """Begin a session of the test's user."""

    async def begin(start_us: int = T0_US, device: dict[str, Any] | None = None) -> PastSession:
        return await PastSession(url, user, start_us).begin(device)

    return begin


def pages(node: Node, path: str) -> list[list[Any]]:
    """Follow `next` to the end; return the samples of each page."""
    found, cursor = [], ""
    while True:
        status, answer = node.get(path + cursor)
        assert status == 200, answer
        assert answer["n"] == len(answer["samples"])
        found.append(answer["samples"])
        if answer["next"] is None:
            return found
        cursor = f"&cursor={answer['next']}"


def samples(node: Node, path: str) -> list[Any]:
    return [sample for page in pages(node, path) for sample in page]


def key(sample: Any) -> tuple[float, uuid.UUID, int]:
    return sample["timestamp"], uuid.UUID(sample["session_id"]), sample["position"]


class TestRaw:
    async def test_it_comes_in_the_original_form(self, past: Node, user: str, begin: Any) -> None:
        session = await begin()
        await session.write(every(10_000, range(3)))
        status, answer = past.get(f"/history/{user}?{ALL}&sample_type=raw")
        assert (status, answer["user_id"], answer["sample_type"], answer["n"], answer["next"]) == (
            *(200, user, "raw", 3),
            None,
        )
        assert answer["samples"][1] == {
            "type": "raw",
            **{"user_id": user, "session_id": session.session_id},
            **{"position": 1, "timestamp": (T0_US + 10_000) / 1e6, "channels": [1, None]},
        }

    async def test_a_range_is_half_open(self, past: Node, user: str, begin: Any) -> None:
        await (await begin()).write(every(1_000_000, range(10), 1_764_000_000_000_000))
        path = f"/history/{user}?start=1764000002&end=2025-11-24T16:00:05Z&sample_type=raw"
        assert [it["timestamp"] - 1764000000 for it in samples(past, path)] == [2, 3, 4]

    @pytest.mark.parametrize("limit", [1, 2, 7, 64, 1000])
    async def test_pages_give_each_sample_once_in_order(self, past: Node, user: str, begin: Any, limit: int) -> None:
        n = 10 if limit == 1 else 90
        for _ in range(3):  # at the same times, each of them three samples' long
            await (await begin()).write({i: T0_US + i // 3 * 10_000 for i in range(n)})
        found = pages(past, f"/history/{user}?{ALL}&sample_type=raw&limit={limit}")
        assert all(len(page) == limit for page in found[:-1])
        keys = [key(sample) for page in found for sample in page]
        assert keys == sorted(set(keys))
        assert len(keys) == 3 * n

    async def test_thousands_at_one_time(self, past: Node, user: str, begin: Any) -> None:
        await (await begin()).write(dict.fromkeys(range(3000), T0_US))
        found = samples(past, f"/history/{user}?start={T0}&end={T0 + 1e-6}&sample_type=raw&limit=1234")
        assert [it["position"] for it in found] == list(range(3000))

    async def test_sessions_years_apart_in_one_page(self, past: Node, user: str, begin: Any) -> None:
        times_us = [86_400_000_000, T0_US, T0_US + 10**15]
        for time_us in times_us:
            await (await begin(time_us)).write({0: time_us})
        found = pages(past, f"/history/{user}?start=0&end=1e12&sample_type=raw")
        assert [[sample["timestamp"] for sample in page] for page in found] == [[it / 1e6 for it in times_us]]

    async def test_a_page_of_very_many_channels_ends_early(
        self, past: Node, user: str, begin: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(history_module, "MAX_RAW_BYTES", 1)
        monkeypatch.setattr(history_module, "PIECE_SAMPLES", 10)
        await (await begin()).write(every(10_000, range(25)), n_channels=64)
        found = pages(past, f"/history/{user}?{ALL}&sample_type=raw")
        assert [len(page) for page in found] == [10, 10, 5]

    async def test_what_a_relay_sent_comes_back_as_a_consumer_got_it(self, node: Node, user: str) -> None:
        async with relay(node.ws, user) as edge, consumer(node.ws, user, "?types=raw,features,prediction") as reader:
            await edge.send({"type": "raw", "samples": [[0.1, None], [1e-7, -3e30]], "timestamp": 1764000000.25})
            features = {
                "workload": 0.65,
                "band_powers": {"alpha": 0.35},
                "x": [1, {"y": None}],
                "big": 12345678901234567890,
            }
            await edge.send({"type": "features", "timestamp": 1764000001.5, **features})
            live = [await reader.receive() for _ in range(3)]
        path = f"/history/{user}?start=0&end=1e12"
        eventually(lambda: node.get(f"{path}&sample_type=features")[1].get("n") == 1)
        assert samples(node, f"{path}&sample_type=raw") == live[:2]
        assert samples(node, f"{path}&sample_type=features") == live[2:]


class TestNpy:
    async def test_numpy_loads_pages_with_what_they_are_in_headers(self, past: Node, user: str, begin: Any) -> None:
        session = await begin()
        await session.write(every(10_000, [0, 1, 2, 7, 8]))
        path = f"/history/{user}?{ALL}&sample_type=raw&format=npy&limit=4"
        _, headers, body = past.fetch(path)
        array = np.load(io.BytesIO(body))
        assert (array.dtype, array[:, 0].tolist(), np.isnan(array[:, 1]).all()) == (np.float32, [0, 1, 2, 7], True)
        assert headers["X-Session-Id"] == session.session_id
        assert json.loads(headers["X-Sessions"]) == [[session.session_id, 4]]
        assert json.loads(headers["X-Positions"]) == [[0, 3], [7, 8]]
        assert json.loads(headers["X-Channel-Names"]) == DEVICE["channel_names"]
        assert (headers["X-Position"], float(headers["X-Time"])) == ("0", T0)
        assert float(headers["X-Time-Last"]) == (T0_US + 70_000) / 1e6
        _, headers, body = past.fetch(f"{path}&cursor={headers['X-Next']}")
        assert np.load(io.BytesIO(body))[:, 0].tolist() == [8]
        assert headers["X-Next"] is None

    async def test_sessions_of_one_shape_share_an_array(self, past: Node, user: str, begin: Any) -> None:
        first, second = await begin(), await begin(T0_US + 1, {"channel_names": ["O1", "O2"]})
        await first.write({0: T0_US, 1: T0_US + 1})
        await second.write({2: T0_US + 2})
        _, headers, body = past.fetch(f"/history/{user}?{ALL}&sample_type=raw&format=npy")
        assert np.load(io.BytesIO(body))[:, 0].tolist() == [0, 1, 2]
        assert json.loads(headers["X-Sessions"]) == [[first.session_id, 2], [second.session_id, 1]]
        assert json.loads(headers["X-Positions"]) == [[0, 2], [2, 3]]
        assert json.loads(headers["X-Channel-Names"]) is None

    async def test_sessions_of_two_shapes_do_not(self, past: Node, user: str, begin: Any) -> None:
        await (await begin()).write({0: T0_US}, n_channels=2)
        await (await begin()).write({0: T0_US}, n_channels=7)
        status, answer = past.get(f"/history/{user}?{ALL}&sample_type=raw&format=npy")
        assert (status, answer["error"]["code"]) == (409, "bad_format")
        assert "2 and 7" in answer["error"]["message"]

    async def test_nothing_is_an_empty_array(self, past: Node, user: str, begin: Any) -> None:
        await begin()
        status, headers, body = past.fetch(f"/history/{user}?{ALL}&sample_type=raw&format=npy")
        assert (status, np.load(io.BytesIO(body)).shape, headers["X-Session-Id"]) == (200, (0, 0), None)

    async def test_headers_stay_small_however_torn_the_samples_are(self, past: Node, user: str, begin: Any) -> None:
        await (await begin()).write(every(10_000, range(0, 4000, 2)))
        path, cursor, found = f"/history/{user}?{ALL}&sample_type=raw&format=npy&limit=10000", "", []
        while cursor is not None:
            _, headers, body = past.fetch(path + cursor)
            assert sum(len(name) + len(value) for name, value in headers.items()) < 4096
            assert headers["X-Omitted"] is None
            found += np.load(io.BytesIO(body))[:, 0].tolist()
            cursor = f"&cursor={headers['X-Next']}" if headers["X-Next"] else None  # type: ignore[assignment]
        assert found == list(range(0, 4000, 2))


class TestNotes:
    async def test_features_and_predictions_are_told_apart(self, past: Node, user: str, begin: Any) -> None:
        session = await begin()
        await session.note(T0_US, {"workload": 0.5})
        await session.note(T0_US + 1, {"a": 1}, "workload_edge", "mine")
        await session.note(T0_US + 2, {"b": 2}, "mine", "edge_relay")
        who = {"user_id": user, "session_id": session.session_id}
        path = f"/history/{user}?{ALL}"
        assert samples(past, path) == [{"type": "features", "workload": 0.5, **who, "timestamp": T0}]
        found = samples(past, f"{path}&sample_type=prediction")
        assert [(it["prediction_type"], it["classifier_name"], it["data"]) for it in found] == [
            ("workload_edge", "mine", {"a": 1}),
            ("mine", "edge_relay", {"b": 2}),
        ]
        assert found[0] == {
            **{"type": "prediction", "prediction_type": "workload_edge", "classifier_name": "mine", "data": {"a": 1}},
            **who,
            "timestamp": (T0_US + 1) / 1e6,
        }

    @pytest.mark.parametrize("limit", [1, 3, 1000])
    async def test_many_at_one_time_come_once_each(self, past: Node, user: str, begin: Any, limit: int) -> None:
        session, other = await begin(), await begin()
        for i in range(8):
            for of in (session, other):
                await of.note(T0_US + i // 4, {"i": i})
            await session.note(T0_US + i // 4, {"same": True})
        found = pages(past, f"/history/{user}?{ALL}&limit={limit}")
        assert all(len(page) == limit for page in found[:-1])
        notes = [(it["timestamp"], it["session_id"], it.get("i")) for page in found for it in page]
        assert len(notes) == 24
        assert [it[0] for it in notes] == sorted(it[0] for it in notes)
        assert len(set(notes)) == 16 + 2

    async def test_a_page_of_very_long_ones_ends_early(
        self, past: Node, user: str, begin: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(history_module, "MAX_TEXT_CHARACTERS", 1000)
        monkeypatch.setattr(history_module, "PIECE_NOTES", 2)
        session = await begin()
        for i in range(5):
            await session.note(T0_US + i, {"i": i, "x": "x" * 1000})
        assert [[it["i"] for it in page] for page in pages(past, f"/history/{user}?{ALL}")] == [[0, 1], [2, 3], [4]]

    async def test_a_stored_prediction_is_the_one_that_was_sent_but_for_its_id(self, node: Node, user: str) -> None:
        async with relay(node.ws, user) as edge, consumer(node.ws, user) as azure:
            sent = {
                "prediction_type": "a",
                "classifier_name": "b",
                "version": "v2",
                "data": {"confidence": 1, "x": 1e-7},
            }
            await azure.send({"type": "prediction", **sent, "id": 1})
            live = await edge.until("prediction")
        path = f"/history/{user}?start=0&end=1e12&sample_type=prediction"
        eventually(lambda: node.get(path)[1].get("n") == 1)
        (found,) = samples(node, path)
        assert found == {name: value for name, value in live.items() if name != "id"} | {"session_id": edge.session_id}


class TestSessions:
    async def test_one_says_what_it_has_and_what_it_lacks(self, past: Node, user: str, begin: Any) -> None:
        session = await begin()
        await session.write(every(10_000, [*range(5, 100), *range(150, 200)]))
        await session.gap(0, 5, "lost")
        await session.gap(100, 150)
        status, answer = past.get(f"/sessions/{session.session_id}")
        assert status == 200
        assert answer == {
            **{"session_id": session.session_id, "user_id": user, "device_info": DEVICE},
            **{"start_time": T0, "end_time": None, "next_position": 200, "n_samples": 145, "n_gaps": 2},
            **{"first_time": T0 + 0.05, "last_time": T0 + 1.99, "duration_seconds": 1.94},
            "gaps": [
                {"from": 0, "to": 5, "reason": "lost", "noticed_at": T0},
                {"from": 100, "to": 150, "reason": "relay", "noticed_at": T0},
            ],
        }
        assert [gap["from"] for gap in past.get(f"/sessions/{session.session_id}?from=5")[1]["gaps"]] == [100]

    async def test_one_without_samples(self, past: Node, begin: Any) -> None:
        session = await begin()
        _, answer = past.get(f"/sessions/{session.session_id}")
        assert (answer["next_position"], answer["n_samples"], answer["gaps"]) == (0, 0, [])
        assert (answer["first_time"], answer["last_time"], answer["duration_seconds"]) == (None, None, None)

    @pytest.mark.parametrize("limit", [1, 3, 200])
    async def test_a_users_come_newest_first_in_pages(self, past: Node, user: str, begin: Any, limit: int) -> None:
        begun = [await begin(T0_US + i // 2) for i in range(5)]
        await begun[0].gap(0, 9)
        await begun[0].reach(10, T0_US + 10)
        found, before = [], ""
        while True:
            _, answer = past.get(f"/sessions?user_id={user}&limit={limit}{before}")
            found += answer["sessions"]
            if answer["next"] is None:
                break
            before = f"&before={answer['next']}"
        newest = sorted(((it.start_us, it.session_id) for it in begun), reverse=True)
        assert [it["session_id"] for it in found] == [session_id for _, session_id in newest]
        (torn,) = [it for it in found if it["n_gaps"]]
        assert (torn["session_id"], torn["n_samples"], torn["last_time"]) == (begun[0].session_id, 1, T0 + 1e-5)

    async def test_all_users_sessions(self, past: Node, begin: Any) -> None:
        session = await begin(T0_US * 2)
        assert past.get("/sessions?limit=1")[1]["sessions"][0]["session_id"] == session.session_id

    async def test_a_user_nobody_knows_has_none(self, past: Node, user: str) -> None:
        assert past.get(f"/sessions?user_id={user}") == (200, {"sessions": [], "next": None})


class TestErrors:
    async def test_a_user_nobody_knows_is_404_and_one_without_samples_is_not(
        self, past: Node, user: str, begin: Any
    ) -> None:
        for kind in ("raw", "features", "prediction"):
            assert past.get(f"/history/{user}?{ALL}&sample_type={kind}")[0] == 404
        await begin()
        for kind in ("raw", "features", "prediction"):
            assert past.get(f"/history/{user}?{ALL}&sample_type={kind}") == (
                200,
                {"user_id": user, "sample_type": kind, "n": 0, "next": None, "samples": []},
            )

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("/history/{user}", 422),
            ("/history/{user}?start=0", 422),
            ("/history/{user}?start=2&end=1", 409),
            ("/history/{user}?start=0&end=1e300", 422),
            ("/history/{user}?start=-1e12&end=-1e11", 404),
            ("/history/{user}?start=0&end=1&limit=0", 422),
            ("/history/{user}?start=0&end=1&limit=10001", 422),
            ("/history/{user}?start=0&end=1&format=npy", 409),
            ("/history/{user}?start=0&end=1&cursor=x", 422),
            ("/history/{user}?start=0&end=1&cursor=ä", 422),
            ("/history/{user}?start=0&end=1&cursor=", 422),
            ("/history/{user}?start=0&end=1&cursor=kw==", 422),
            ("/history/{user}?start=0&end=1&cursor=kwAAAA==", 404),
            ("/history/{user}?start=0&end=1&cursor=kwAAAA==%0A", 422),
            ("/history/{user}?start=0&end=1&cursor=kwAAAAAA", 409),
            ("/history/{user}?start=0&end=1&sample_type=raw&cursor=kwAAAA==", 409),
            ("/history/{user}?start=1&end=2&cursor=kwAAAA==", 409),
            ("/history/{user}?start=0&end=0&cursor=kwAAAA==", 409),
            ("/history/a%20b?start=0&end=1", 422),
            ("/sessions?limit=201", 422),
            ("/sessions?user_id=", 422),
            ("/sessions?before=1", 422),
            ("/sessions?before=5f0c6a52-8d0e-4c55-9a2f-0b1f6f3c2d11", 404),
            ("/sessions/1", 422),
            ("/sessions/5f0c6a52-8d0e-4c55-9a2f-0b1f6f3c2d11", 404),
            ("/sessions/5f0c6a52-8d0e-4c55-9a2f-0b1f6f3c2d11?from=-1", 422),
        ],
    )
    async def test_errors_have_one_shape(self, past: Node, user: str, path: str, status: int) -> None:
        found, answer = past.get(path.format(user=user).replace("ä", "%C3%A4"))
        assert (found, answer["error"].keys()) == (status, {"code", "message"})

    @given(st.integers(0, MAX_TIME_US), st.uuids(), st.integers(-1, MAX_POSITION))
    def test_every_cursor_of_raw_is_one_that_the_document_allows(self, time_us: int, of: uuid.UUID, after: int) -> None:
        assert re.search(PAGE_TOKEN, page_token_text(history_module.RawPageToken(time_us, of, after)))

    @given(st.integers(0, MAX_TIME_US), st.integers(0, (1 << 63) - 1), st.integers(0, 1 << 32))
    def test_every_cursor_of_notes_is_one_that_the_document_allows(self, time_us: int, serial: int, n: int) -> None:
        assert re.search(PAGE_TOKEN, page_token_text(history_module.NotePageToken(time_us, serial, n)))

    async def test_a_cursor_of_another_question_is_refused(self, past: Node, user: str, begin: Any) -> None:
        session = await begin()
        await session.write(every(10_000, range(3)))
        for i in range(3):
            await session.note(T0_US + i, {})
        for kind, other in (("raw", "features"), ("features", "raw")):
            cursor = past.get(f"/history/{user}?{ALL}&limit=1&sample_type={kind}")[1]["next"]
            assert past.get(f"/history/{user}?{ALL}&limit=1&sample_type={other}&cursor={cursor}")[0] == 409


def test_a_key_is_needed(start_node: Callable[..., Node]) -> None:
    node = start_node(edge_api_key=("e",), consumer_api_key=("c",))

    def is_answered(path: str) -> bool:
        return node.get(path, X_API_Key="c")[0] in (200, 404)

    for path in ("/history/me?start=0&end=1", "/sessions", f"/sessions/{uuid.uuid4()}"):
        assert node.get(path)[0] == 401
        assert node.get(path, X_API_Key="e")[0] == 401
        eventually(partial(is_answered, path))


def test_without_a_database_it_is_503() -> None:
    with Node(database_url="postgresql://127.0.0.1:1/zander") as node:
        for path in ("/history/me?start=0&end=1", "/sessions", f"/sessions/{uuid.uuid4()}"):
            status, answer = node.get(path)
            assert (status, answer["error"]["code"]) == (503, "unavailable")
