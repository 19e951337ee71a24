"""`Consumer` through cuts and sessions: what it asks for when it is back, and what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection

from support.scripted_server import served
from zander.client import Consumer, Cursor, Raw, Rejected, connection
from zander.wire.chunk import RawIn, encode_binary


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE_S", 0.01)


def status(session_id: str | None, online: bool = True) -> str:
    device_info = {"sampling_rate": 100} if session_id else None
    note = {"type": "status", "user_id": "u", "online": online, "session_id": session_id, "device_info": device_info}
    return json.dumps(note)


def raw(position: int, n: int = 1) -> bytes:
    samples = np.arange(position, position + n, dtype=np.float32)[:, np.newaxis]
    return encode_binary(RawIn(position, position * 10_000, samples))


def gap(session_id: str, start: int, end: int) -> str:
    return json.dumps({"type": "gap", "session_id": session_id, "from": start, "to": end, "reason": "lost"})


class Asked:
    """A server that says what the test says, connection by connection, and notes what it was asked for."""

    def __init__(self) -> None:
        self.queries: list[dict[str, str]] = []

    def saying(self, *frames: str | bytes, code: int | None = 1012) -> Callable[[ServerConnection], Any]:
        async def behave(socket: ServerConnection) -> None:
            assert socket.request is not None
            query = parse_qs(urlsplit(socket.request.path).query)
            self.queries.append({name: values[0] for name, values in query.items() if name != "format"})
            for frame in frames:
                await socket.send(frame)
            if code:
                await socket.close(code)
            else:
                await socket.wait_closed()

        return behave


async def events(consumer: Consumer, n_samples: int) -> list[Any]:
    """Return what comes until so many samples have: raw as (session, position, values), gaps, other types' names."""
    found: list[Any] = []
    n = 0
    while n < n_samples:
        event = await anext(consumer)
        if isinstance(event, Raw):
            n += len(event.samples)
            assert event.time_us == event.position * 10_000
            found.append((event.session_id, event.position, event.samples[:, 0].tolist()))
        elif event["type"] == "gap":
            found.append((event["session_id"], event["from"], event["to"]))
        else:
            found.append(event["type"])
    return found


async def test_it_asks_for_what_follows_what_it_got_and_leaves_out_what_repeats() -> None:
    asked = Asked()
    first = asked.saying(status("s"), raw(5), raw(6, 2))
    second = asked.saying(status("s"), raw(6), raw(7, 3), raw(10))
    async with served(first, second) as url, Consumer(url, "u", last=3) as consumer:
        assert consumer.cursor is None
        found = await events(consumer, 6)
        assert consumer.cursor == Cursor("s", 11)
    assert found == ["status", ("s", 5, [5]), ("s", 6, [6, 7]), "status", ("s", 8, [8, 9]), ("s", 10, [10])]
    assert asked.queries[:2] == [{"last": "3"}, {"session_id": "s", "from": "8"}]


async def test_a_gap_moves_it_on_and_comes_once() -> None:
    asked = Asked()
    first = asked.saying(status("s"), raw(0), gap("s", 1, 5))
    second = asked.saying(status("s"), gap("s", 1, 5), gap("s", 3, 8), raw(8))
    async with served(first, second) as url, Consumer(url, "u") as consumer:
        found = await events(consumer, 2)
    assert found == ["status", ("s", 0, [0]), ("s", 1, 5), "status", ("s", 5, 8), ("s", 8, [8])]
    assert asked.queries[1] == {"session_id": "s", "from": "5"}


async def test_a_session_that_began_while_it_listened_is_asked_for_from_its_start() -> None:
    asked = Asked()
    first = asked.saying(status("s"), raw(5), status("s", False), status("t"))
    second = asked.saying(status("t"), raw(0, 2))
    async with served(first, second) as url, Consumer(url, "u") as consumer:
        found = await events(consumer, 3)
    assert found[-1] == ("t", 0, [0, 1])
    assert asked.queries[1] == {"session_id": "t", "from": "0"}


async def test_a_session_that_began_while_it_was_away_is_asked_for_as_soon_as_it_is_known() -> None:
    asked = Asked()
    first, second = asked.saying(status(None, False)), asked.saying(status("s"), raw(7), code=None)
    third = asked.saying(status("s"), raw(0, 8), raw(8))
    async with served(first, second, third) as url, Consumer(url, "u") as consumer:
        found = await events(consumer, 9)
    assert found == ["status", "status", ("s", 0, [*range(8)]), ("s", 8, [8])]
    assert asked.queries[:3] == [{}, {}, {"session_id": "s", "from": "0"}]


async def test_a_session_that_is_resumed_after_another_goes_on_where_it_was() -> None:
    asked = Asked()
    first = asked.saying(status("s"), raw(5), status("t"), raw(0), status("s"))
    second = asked.saying(status("s"), raw(5), raw(6), status("t"), raw(0), raw(1))
    async with served(first, second) as url, Consumer(url, "u") as consumer:
        found = [event for event in await events(consumer, 4) if event != "status"]
    assert found == [("s", 5, [5]), ("t", 0, [0]), ("s", 6, [6]), ("t", 1, [1])]
    assert asked.queries[1] == {"session_id": "s", "from": "6"}


async def test_a_program_goes_on_from_the_cursor_of_an_earlier_one() -> None:
    asked = Asked()
    async with (
        served(asked.saying(status("s"), raw(40), raw(41, 3))) as url,
        Consumer(url, "u", last=3, cursor=Cursor("s", 42)) as consumer,
    ):
        assert await events(consumer, 2) == ["status", ("s", 42, [42, 43])]
    assert asked.queries[0] == {"session_id": "s", "from": "42"}


async def test_who_wants_raw_alone_gets_raw_alone_and_resumes_all_the_same() -> None:
    asked = Asked()
    first, second = asked.saying(status("s"), raw(0)), asked.saying(status("s"), raw(1))
    async with served(first, second) as url, Consumer(url, "u", types=["raw"]) as consumer:
        assert await events(consumer, 2) == [("s", 0, [0]), ("s", 1, [1])]
    types = {"types": "raw,status"}
    assert asked.queries[:2] == [types, types | {"session_id": "s", "from": "1"}]


async def test_who_wants_no_raw_has_nothing_to_go_on_with() -> None:
    asked = Asked()
    features = '{"type":"features","workload":0.5}'
    first, second = asked.saying(status("s"), status("t")), asked.saying(status("t"), features)
    async with served(first, second) as url, Consumer(url, "u", types=["features", "status"]) as consumer:
        while (await anext(consumer))["type"] != "features":  # type: ignore[call-overload]
            pass
        assert consumer.cursor is None
    assert asked.queries[:2] == [{"types": "features,status"}] * 2


@pytest.mark.parametrize("field", ["channels", "samples"])
async def test_raw_as_json_names_its_session(field: str) -> None:
    value: Any = [7] if field == "channels" else [[7]]
    message = {"type": "raw", "user_id": "u", "session_id": "s", "position": 7, "timestamp": 0.07, field: value}
    asked = Asked()
    first, second = asked.saying(json.dumps(message)), asked.saying(json.dumps(message), raw(8))
    async with served(first, second) as url, Consumer(url, "u", format="json") as consumer:
        assert await events(consumer, 2) == [("s", 7, [7]), ("s", 8, [8])]


async def test_a_session_the_server_knows_no_more_is_told_and_given_up() -> None:
    asked = Asked()
    unknown = '{"type":"error","code":"not_found","message":"no session s"}'
    first, second = asked.saying(status("s"), raw(0)), asked.saying(unknown, code=4500)
    third, fourth = asked.saying(status("t"), raw(9), code=None), asked.saying(status("t"), raw(0), code=4501)
    async with served(first, second, third, fourth) as url, Consumer(url, "u") as consumer:
        assert await events(consumer, 2) == ["status", ("s", 0, [0]), "error", "status", ("t", 0, [0])]
        with pytest.raises(Rejected, match="4501"):
            await anext(consumer)
    assert asked.queries[2:] == [{}, {"session_id": "t", "from": "0"}]
