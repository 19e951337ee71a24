"""The reactor and its sockets, as transports: what a protocol is told, and that everybody has a turn."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from zander.native import IS_NATIVE, WHY_NOT

if not IS_NATIVE and os.environ.get("ZANDER_REQUIRE_NATIVE") != "1":
    pytest.skip(f"the native path is not there: {WHY_NOT}", allow_module_level=True)

from support.frame_readers import Alone
from support.relay_bytes import PING, masked, text
from zander._native import FrameReader, Reactor, Socket
from zander.streams.stream import Stream

MIB = 1 << 20


class Told(asyncio.Protocol):
    """What a protocol was told."""

    transport: Any

    def __init__(self, *, fails: bool = False) -> None:
        self.received = b""
        self.calls: list[str] = []
        self._fails = fails

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._fails:
            raise MemoryError("injected")
        self.received += data

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")


class Wire:
    """One connection of a reactor, and its other end."""

    def __init__(self, reactor: Reactor, *, fails: bool = False) -> None:
        self.peer, theirs = socket.socketpair()
        for end in (self.peer, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.protocol = Told(fails=fails)
        self.socket: Socket = reactor.add(theirs.detach(), ("peer", 1), self.protocol)

    def read(self) -> bytes:
        """Read what is there."""
        found = b""
        try:
            while data := self.peer.recv(1 << 20):
                found += data
        except BlockingIOError:
            pass
        return found


@pytest.fixture
async def reactor() -> Reactor:
    return Reactor(asyncio.get_running_loop())


@pytest.fixture
async def connect(reactor: Reactor) -> Any:
    wires: list[Wire] = []

    def make(**options: bool) -> Wire:
        wires.append(Wire(reactor, **options))
        return wires[-1]

    yield make
    for wire in wires:
        wire.socket.abort()
        wire.peer.close()


Connect = Callable[..., Wire]


async def test_what_is_sent_is_received_and_its_end_told_in_the_next_iteration(
    reactor: Reactor, connect: Connect
) -> None:
    wire = connect()
    wire.peer.send(b"abc")
    wire.peer.shutdown(socket.SHUT_WR)
    for _ in range(2):
        reactor.turn()
    assert (wire.protocol.received, wire.protocol.calls, wire.socket.is_closing()) == (b"abc", [], True)
    await asyncio.sleep(0)
    assert wire.protocol.calls == ["lost"]
    assert wire.socket.get_extra_info("peername") == ("peer", 1)


async def test_what_cannot_be_sent_is_kept_and_the_protocol_told_to_wait_and_to_go_on(
    reactor: Reactor, connect: Connect
) -> None:
    wire = connect()
    sent = os.urandom(MIB)
    wire.socket.write(sent[:100])
    wire.socket.write(sent[100:])
    assert wire.protocol.calls == ["pause"]
    assert wire.socket.get_write_buffer_size() > 1 << 16
    got = b""
    while len(got) < MIB:
        got += wire.read()
        reactor.turn()
    assert got == sent
    assert (wire.protocol.calls, wire.socket.get_write_buffer_size()) == (["pause", "resume"], 0)


async def test_a_close_waits_for_what_is_not_sent_and_an_abort_does_not(reactor: Reactor, connect: Connect) -> None:
    closed, aborted = connect(), connect()
    for wire in (closed, aborted):
        wire.socket.write(bytes(MIB))
    closed.socket.close()
    closed.socket.write(b"too late")
    aborted.socket.abort()
    n_got = 0
    while "lost" not in closed.protocol.calls:
        n_got += len(closed.read())
        reactor.turn()
        await asyncio.sleep(0)
    assert n_got + len(closed.read()) == MIB
    assert "lost" in aborted.protocol.calls
    assert len(aborted.read()) < MIB


async def test_a_protocol_that_is_paused_gets_nothing_until_it_goes_on(reactor: Reactor, connect: Connect) -> None:
    wire = connect()
    wire.socket.pause_reading()
    wire.peer.send(b"abc")
    for _ in range(3):
        reactor.turn()
    assert wire.protocol.received == b""
    wire.socket.resume_reading()
    await asyncio.sleep(0)
    assert wire.protocol.received == b"abc"


async def test_who_sends_much_waits_for_the_others(reactor: Reactor, connect: Connect) -> None:
    greedy, modest = connect(), connect()
    n_sent = 0
    for _ in range(20):
        try:
            n_sent += greedy.peer.send(bytes(1 << 15))
        except BlockingIOError:
            break
    assert n_sent > 1 << 16
    modest.peer.send(b"abc")
    reactor.turn()
    assert modest.protocol.received == b"abc"
    assert len(greedy.protocol.received) <= 1 << 15
    while len(greedy.protocol.received) < n_sent:  # noqa: ASYNC110 - the reactor schedules itself
        await asyncio.sleep(0)


async def test_who_sends_many_small_messages_waits_for_the_others_too(reactor: Reactor, connect: Connect) -> None:
    greedy = connect()
    greedy.socket.read_frames(FrameReader())
    sent = text("junk") * 500 + masked(b"a", PING)
    greedy.peer.send(sent)
    reactor.turn()
    assert len(greedy.protocol.received) < len(sent) / 10
    while len(greedy.protocol.received) < len(sent):  # noqa: ASYNC110 - the reactor schedules itself
        await asyncio.sleep(0)
    assert greedy.protocol.received == sent


async def test_who_has_sent_more_than_it_may_waits_and_loses_nothing(reactor: Reactor, connect: Connect) -> None:
    wire = connect()
    wire.socket.limit(100_000)
    assert not wire.socket.take_throttled()
    sent = os.urandom(120_000)
    n_sent = 0
    while len(wire.protocol.received) < len(sent):
        if n_sent < len(sent):
            with suppress(BlockingIOError):
                n_sent += wire.peer.send(sent[n_sent : n_sent + 10_000])
        reactor.turn()
        await asyncio.sleep(0)
    assert wire.protocol.received == sent
    assert wire.socket.take_throttled()


async def test_pongs_are_heard_but_not_passed(reactor: Reactor, connect: Connect) -> None:
    wire = connect()
    wire.socket.read_frames(FrameReader())
    wire.peer.send(masked(b"", 10))
    reactor.turn()
    assert (wire.protocol.received, wire.socket.take_heard(), wire.socket.take_heard()) == (b"", True, False)


async def test_a_protocol_that_fails_ends_its_own_connection_alone(reactor: Reactor, connect: Connect) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    failing, other = connect(fails=True), connect()
    for wire in (failing, other):
        wire.peer.send(b"abc")
    reactor.turn()
    await asyncio.sleep(0)
    assert [type(context["exception"]) for context in told] == [MemoryError]
    assert failing.protocol.calls == ["lost"]
    assert (other.protocol.received, other.protocol.calls) == (b"abc", [])


async def test_a_peer_that_resets_is_lost_at_once(reactor: Reactor, connect: Connect) -> None:
    wire = connect()
    wire.socket.write(bytes(MIB))
    wire.peer.close()
    for _ in range(2):
        reactor.turn()
    await asyncio.sleep(0)
    assert "lost" in wire.protocol.calls


@pytest.fixture(autouse=True)
def no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_reader_that_fails_ends_its_own_connection_alone(
    reactor: Reactor, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("injected")

    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    monkeypatch.setattr(Stream, "follows", fail)
    failing, other = connect(), connect()
    failing.socket.read_frames(Alone().reader)
    for wire in (failing, other):
        wire.peer.send(text('{"type":"raw","channels":[1]}'))
    reactor.turn()
    await asyncio.sleep(0)
    assert [type(context["exception"]) for context in told] == [MemoryError]
    assert failing.protocol.calls == ["lost"]
    assert other.protocol.received
