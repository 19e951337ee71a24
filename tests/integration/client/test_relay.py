"""`Relay` through cuts, kills and refusals: what it sends again, what it drops, and what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve

from support.databases import until
from support.nodes import Node
from support.scripted_server import ack, closing, greet, served, storing
from zander.client import ConnectionLost, Rejected, Relay, SpoolError, connection, relay, sender
from zander.journal.log import Log
from zander.wire.chunk import decode_binary

DEVICE = {"device_type": "test", "sampling_rate": 100, "channel_count": 1}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE_S", 0.01)


class Got(NamedTuple):
    """A raw message as a server got it; `session` is that of the connection."""

    position: int
    time_us: int
    values: list[float]
    is_binary: bool


def read(frame: str | bytes) -> Got:
    if isinstance(frame, bytes):
        position, time_us, values = decode_binary(frame)
        assert position is not None
        assert time_us is not None
        return Got(position, time_us, values[:, 0].tolist(), True)
    message = json.loads(frame)
    samples = message["samples"] if "samples" in message else [message["channels"]]
    return Got(message["position"], round(message["timestamp"] * 1e6), [sample[0] for sample in samples], False)


class Hearing:
    """A server that notes what it gets: `auths` and, for each connection, `got`."""

    def __init__(self) -> None:
        self.auths: list[dict[str, Any]] = []
        self.got: list[list[Got]] = []

    def until(
        self,
        n_samples: int,
        *last_words: str,
        code: int | None = None,
        next_position: int = 0,
        session_id: str = "s",
    ) -> Callable[[ServerConnection], Any]:
        """Take in so many samples, say something, then close with a code, or cut the line without one."""

        async def behave(socket: ServerConnection) -> None:
            self.auths.append(await greet(socket, next_position, session_id))
            self.got.append([])
            while sum(len(got.values) for got in self.got[-1]) < n_samples:
                self.got[-1].append(read(await socket.recv()))
            for word in last_words:
                await socket.send(word)
            if code is None:
                socket.transport.abort()
            elif code:
                await socket.close(code)
            else:
                await socket.wait_closed()

        return behave

    def storing(self, next_position: int = 0, session_id: str = "s") -> Callable[[ServerConnection], Any]:
        """Say of everything that it is stored."""

        async def behave(socket: ServerConnection) -> None:
            self.auths.append(await greet(socket, next_position, session_id))
            self.got.append([])
            async for frame in socket:
                got = read(frame)
                self.got[-1].append(got)
                await socket.send(ack(got.position + len(got.values), session_id))

        return behave

    def values(self, connection: int) -> list[float]:
        return [value for got in self.got[connection] for value in got.values]


async def send(relay: Relay, *values: float) -> None:
    for value in values:
        await relay.send_sample([value], time_us=1_000_000 + int(value) * 10_000)


async def test_samples_are_numbered_in_the_form_that_was_asked_for_and_acknowledged() -> None:
    hearing = Hearing()
    async with served(hearing.storing()) as url, Relay(url, "u", DEVICE) as relay:
        await relay.send_sample([5], time_us=10)
        await relay.send_chunk([[6], [7]], time_us=20)
        await relay.send_chunk([[8], [9]], time_us=30, binary=False)
        assert relay.next_position == 5
        assert await relay.drain(10)
        assert (relay.durable, relay.n_waiting, relay.session_id) == (5, 0, "s")
    assert hearing.got == [[Got(0, 10, [5], False), Got(1, 20, [6, 7], True), Got(3, 30, [8, 9], False)]]
    assert hearing.auths == [{"type": "auth", "user_id": "u", "device_info": DEVICE, "ack": True}]


async def test_without_a_time_a_sample_is_of_now_and_the_last_of_a_chunk_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "time", lambda: 50.0)
    hearing = Hearing()
    async with served(hearing.storing()) as url, Relay(url, "u", DEVICE) as sender:
        await sender.send_sample([1])
        await sender.send_chunk([[2], [3], [4]])
    assert [got.time_us for got in hearing.got[0]] == [50_000_000, 49_980_000]


async def test_after_a_cut_it_goes_on_with_its_session_from_what_is_durable() -> None:
    hearing = Hearing()
    connected: list[int] = []
    behaviours = hearing.until(4, ack(2), code=1012), hearing.until(0), hearing.storing(2)
    async with served(*behaviours) as url, Relay(url, "u", DEVICE, on_connected=connected.append) as relay:
        await send(relay, 0, 1, 2, 3)
        await until(lambda: len(hearing.got) == 3 and hearing.values(2))
        await send(relay, 4)
        assert await relay.drain(10)
        assert (relay.durable, relay.next_position) == (5, 5)
    assert [auth.get("session_id") for auth in hearing.auths] == [None, "s", "s"]
    assert hearing.values(0) == [0, 1, 2, 3]
    again = hearing.got[2][0]
    assert again == Got(2, hearing.got[0][2].time_us, [2, 3], True), "the same samples, at the same times"
    assert hearing.values(2) == [2, 3, 4]
    assert connected == [0, 4, 2]


async def test_what_is_sent_before_there_is_a_server_waits(unused_tcp_port: int) -> None:
    hearing, away = Hearing(), asyncio.Event()
    relay = Relay(f"ws://127.0.0.1:{unused_tcp_port}", "u", DEVICE, on_lost=lambda *_: away.set())
    await send(relay, 0, 1)
    relay.start()
    await away.wait()
    await send(relay, 2, 3)
    async with serve(hearing.storing(), "127.0.0.1", unused_tcp_port):
        assert await relay.drain(10)
        assert await relay.close() == 0
    assert hearing.values(0) == [0, 1, 2, 3]


async def test_new_samples_queue_behind_what_is_sent_again() -> None:
    hearing = Hearing()
    n_old, n_new = 3000, 3000
    async with served(hearing.until(1), hearing.storing()) as url, Relay(url, "u", DEVICE) as relay:
        await send(relay, *range(n_old))
        await send(relay, *range(n_old, n_old + n_new))
        assert await relay.drain(30)
    assert hearing.values(-1) == list(range(n_old + n_new))


async def test_more_than_the_network_takes_at_once_arrives_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "MAX_QUEUED", 3)
    hearing = Hearing()
    async with served(hearing.storing()) as url, Relay(url, "u", DEVICE) as relay:
        for start in range(0, 200, 20):
            await asyncio.gather(*(relay.send_sample([value]) for value in range(start, start + 20)))
        assert await relay.drain(10)
    assert [got.position for got in hearing.got[0]] == list(range(200))
    assert hearing.values(0) == list(range(200))


async def test_a_call_that_is_cancelled_has_sent_its_sample() -> None:
    hearing = Hearing()
    async with served(hearing.storing()) as url, Relay(url, "u", DEVICE) as relay:
        sending = asyncio.create_task(relay.send_sample([7]))
        await asyncio.sleep(0)
        sending.cancel()
        await relay.send_sample([8])
        assert await relay.drain(10)
    assert hearing.values(0) == [7, 8]


async def test_a_full_spool_drops_the_oldest_says_so_and_the_wire_shows_a_jump(unused_tcp_port: int) -> None:
    hearing, dropped = Hearing(), []
    url = f"ws://127.0.0.1:{unused_tcp_port}"
    relay = Relay(url, "u", DEVICE, spool_bytes=4000, on_drop=lambda *span: dropped.append(span))
    await send(relay, *range(500))
    async with served(hearing.storing(), port=unused_tcp_port):
        await relay.connect()
        assert await relay.drain(10)
        await relay.close()
    first = hearing.got[0][0].position
    assert dropped[0][0] == 0
    assert dropped[-1][1] == first == relay.n_dropped > 0
    assert hearing.values(0) == list(range(first, 500))


async def test_only_acks_of_this_session_count_and_they_never_go_back() -> None:
    hearing = Hearing()
    words = ack(2, "another"), ack(2), ack(1), ack(99)
    async with served(hearing.until(3, *words[:3], code=0)) as url, Relay(url, "u", DEVICE) as relay:
        await send(relay, 0, 1)
        assert relay.durable == 0
        await send(relay, 2)
        await until(lambda: relay.durable)
        assert not await relay.drain(0.05)
        assert relay.durable == 2
        assert await relay.close(0) == 1


async def test_a_server_whose_database_was_lost_gets_everything_that_is_still_here() -> None:
    hearing = Hearing()
    async with served(hearing.until(3, ack(2), code=1012), hearing.storing(0)) as url, Relay(url, "u", DEVICE) as relay:
        await send(relay, 0, 1, 2)
        await until(lambda: len(hearing.got) == 2)
        assert await relay.drain(10)
    assert hearing.values(1) == [0, 1, 2]


async def test_a_server_that_begins_another_session_gets_what_is_not_durable() -> None:
    hearing = Hearing()
    behaviours = hearing.until(3, ack(2), code=1012), hearing.storing(0, "another")
    async with served(*behaviours) as url, Relay(url, "u", DEVICE) as relay:
        await send(relay, 0, 1, 2)
        await until(lambda: len(hearing.got) == 2)
        assert await relay.drain(10)
        assert relay.session_id == "another"
    assert [(got.position, got.values) for got in hearing.got[1]] == [(2, [2])]


async def test_what_is_sent_again_is_joined_where_position_time_and_channels_go_on(unused_tcp_port: int) -> None:
    hearing = Hearing()
    relay = Relay(f"ws://127.0.0.1:{unused_tcp_port}", "u", DEVICE)
    for time_us in (0, 10_000, 20_001, 30_002, 40_000):  # a device's clock, then somebody's
        await relay.send_sample([time_us], time_us=time_us)
    await relay.send_chunk([[5], [6]], time_us=50_000)
    await relay.send_chunk([[8], [9]], position=8, time_us=80_000)
    await relay.send_sample([10, 10], time_us=100_000)
    async with served(hearing.storing(), port=unused_tcp_port):
        await relay.connect()
        assert await relay.close() == 0
    spans = [(got.position, len(got.values), got.time_us) for got in hearing.got[0]]
    assert spans == [(0, 3, 0), (3, 1, 30_002), (4, 3, 40_000), (8, 2, 80_000), (10, 1, 100_000)]


async def test_a_sample_the_server_refuses_takes_no_other_with_it(node: Node, user: str) -> None:
    heard: list[dict[str, Any]] = []
    relay = Relay(node.ws, user, DEVICE, on_message=heard.append)
    for value in (0, 1, np.inf, 3):
        await relay.send_sample([value], time_us=1_000_000 + relay.next_position * 10_000)
    await relay.connect()
    assert await relay.close() == 0
    assert [message["code"] for message in heard] == ["bad_value"]
    _, stats = node.get(f"/buffer/{user}/stats")
    assert (stats["next_position"], stats["raw"]["gaps"], stats["raw"]["held"]) == (4, 1, 3)


async def test_a_server_that_has_more_is_followed_and_a_number_given_twice_is_said(tmp_path: Path) -> None:
    hearing, dropped = Hearing(), []
    async with served(hearing.until(2, code=0), hearing.storing(5)) as url:
        first = Relay(url, "u", DEVICE, spool=tmp_path)
        await first.connect()
        await send(first, 0, 1)
        await first.close(0)
        for log in list(tmp_path.glob("spool.*")):  # noqa: ASYNC240
            log.write_bytes(b"")  # the machine died, and the disk had none of it yet
        second = Relay(url, "u", DEVICE, spool=tmp_path, on_drop=lambda *span: dropped.append(span))
        await send(second, 90, 91)
        await second.connect()
        await send(second, 5)
        assert await second.drain(10)
        await second.close()
    assert dropped == [(0, 2)]
    assert [(got.position, got.values) for got in hearing.got[1]] == [(5, [5])]


async def test_a_position_ahead_is_a_hole_and_what_lies_behind_is_left_out() -> None:
    hearing = Hearing()
    async with served(hearing.storing()) as url, Relay(url, "u", DEVICE) as relay:
        await relay.send_chunk([[3], [4]], position=3, time_us=0)
        await relay.send_chunk([[4], [5]], position=4, time_us=10_000)
        await relay.send_chunk([[4]], position=4, time_us=10_000)
        assert relay.next_position == 6
    assert hearing.got[0] == [Got(3, 0, [3, 4], True), Got(5, 20_000, [5], True)]


async def test_a_large_chunk_goes_in_messages_that_a_server_takes() -> None:
    hearing = Hearing()
    samples = np.arange(40_000, dtype=np.float32)[:, np.newaxis]
    async with served(hearing.storing()) as url, Relay(url, "u", DEVICE) as relay:
        await relay.send_chunk(samples, time_us=0)
        await relay.send_chunk(samples[:0])
    assert hearing.values(0) == samples[:, 0].tolist()
    assert all(got.time_us == got.position * 10_000 for got in hearing.got[0])
    assert len(hearing.got[0]) == 3


async def test_samples_of_no_shape_are_refused_at_once() -> None:
    relay = Relay("ws://x", "u", DEVICE)
    with pytest.raises(ValueError, match=r"expected samples of the shape \(n, n_channels\), got \(3,\)"):
        await relay.send_chunk([1, 2, 3])
    assert relay.next_position == 0


async def test_the_end_says_what_is_not_known_to_be_stored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relay, "CLOSE_S", 0.05)
    async with served(Hearing().until(3, ack(1), code=0)) as url:
        async with Relay(url, "u", DEVICE) as sender:
            await send(sender, 0, 1, 2)
        assert sender.n_waiting == 2
        assert await sender.close() == 2
    assert [record.getMessage() for record in caplog.records] == ["u: 2 samples are not known to be stored"]


async def test_a_closed_relay_goes_on_with_its_session_when_it_is_opened_again() -> None:
    hearing = Hearing()
    async with served(hearing.until(2, code=0), hearing.storing(1)) as url:
        relay = Relay(url, "u", DEVICE)
        await relay.connect()
        await send(relay, 0, 1)
        await relay.close(0)
        await send(relay, 2)
        await relay.connect()
        assert await relay.close() == 0
    assert hearing.auths[1]["session_id"] == "s"
    assert hearing.values(1) == [1, 2]


async def test_connecting_twice_is_connecting_once() -> None:
    hearing = Hearing()
    async with served(hearing.storing()) as url, Relay(url, "u", DEVICE) as relay:
        await relay.connect()
        relay.start()
        await send(relay, 0)
    assert len(hearing.auths) == 1


async def test_another_relay_with_the_folder_goes_on_where_the_first_was_killed(tmp_path: Path) -> None:
    hearing = Hearing()
    async with served(hearing.until(3, ack(2), code=0), hearing.storing(2)) as url:
        first = Relay(url, "u", DEVICE, spool=tmp_path)
        await first.connect()
        await send(first, 0, 1, 2)
        await until(lambda: first.durable == 2)
        with pytest.raises(SpoolError, match="another relay uses this spool"):
            Relay(url, "u", DEVICE, spool=tmp_path)
        await first.close(0)
        await asyncio.sleep(0)
        second = Relay(url, "u", DEVICE, spool=tmp_path)
        assert (second.session_id, second.next_position) == ("s", 3)
        await send(second, 3)
        await second.connect()
        assert await second.close() == 0
    assert hearing.auths[1]["session_id"] == "s"
    assert hearing.values(1) == [2, 3]


async def test_a_session_that_is_over_and_stored_leaves_the_folder(tmp_path: Path) -> None:
    hearing = Hearing()
    async with served(hearing.storing()) as url:
        for _ in range(2):
            relay = Relay(url, "u", DEVICE, spool=tmp_path)
            await relay.connect()
            await send(relay, 0)
            assert await relay.close(end_session=True) == 0
        other = Relay(url, "another", DEVICE, spool=tmp_path)
        await other.close()
    assert [auth.get("session_id") for auth in hearing.auths] == [None, None]
    assert hearing.got[1][0].position == 0


async def test_a_session_that_is_over_but_not_stored_stays(tmp_path: Path) -> None:
    async with served(Hearing().until(1, code=0)) as url:
        relay = Relay(url, "u", DEVICE, spool=tmp_path)
        await relay.connect()
        await send(relay, 0)
        assert await relay.close(0.05, end_session=True) == 1
    again = Relay("ws://x", "u", DEVICE, spool=tmp_path)
    assert (again.session_id, again.n_waiting) == ("s", 1)
    await again.close(0)


@pytest.mark.parametrize("code", [4509, 4503, 1009])
async def test_a_refusal_after_a_cut_comes_out_of_the_next_call_and_what_waits_stays(tmp_path: Path, code: int) -> None:
    async with served(Hearing().until(1), closing(code)) as url:
        relay = Relay(url, "u", DEVICE, spool=tmp_path)
        await relay.connect()
        await send(relay, 0)
        with pytest.raises(Rejected):
            await relay.drain(10)
        with pytest.raises(Rejected, match=rf"\({code}\)"):
            await send(relay, 1)
        with pytest.raises(Rejected, match=rf"\({code}\)"):
            await relay.send_features({"workload": 0.5})
        assert await relay.close() == 1
    again = Relay("ws://x", "u", DEVICE, spool=tmp_path)
    assert again.n_waiting == 1
    await again.close(0)


async def test_features_are_of_the_moment() -> None:
    lost = asyncio.Event()
    async with served(closing(1012), storing) as url:
        relay = Relay(url, "u", DEVICE, on_lost=lambda *_: lost.set())
        relay.start()
        await lost.wait()
        with pytest.raises(ConnectionLost, match="not connected"):
            await relay.send_features({"workload": 0.5})
        await relay.close()


async def test_a_server_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "AUTH_S", 0.05)
    losses: list[str] = []

    async def silent(socket: ServerConnection) -> None:
        await socket.wait_closed()

    async with served(silent, storing) as url:
        async with Relay(url, "u", DEVICE, on_lost=lambda error, _: losses.append(str(error))):
            pass
        assert losses == [f"{url} does not answer"]


async def test_a_disk_that_cannot_be_read_comes_out_of_the_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    relay = Relay(f"ws://127.0.0.1:{unused_tcp_port}", "u", DEVICE, spool=tmp_path)
    await send(relay, 0)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    async with served(storing, port=unused_tcp_port):
        monkeypatch.setattr(Log, "read", fail)
        await relay.connect()
        with pytest.raises(OSError, match="Input/output error"):
            await relay.drain(10)
        with pytest.raises(OSError, match="Input/output error"):
            await relay.close()
