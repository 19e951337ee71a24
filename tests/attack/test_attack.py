"""The parts of `make attack`, and a short form of it: memory, how connections end, and that nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import repeat
from time import monotonic
from typing import Any

import pytest

from attack import requests, unread
from attack.attacks import ATTACKS, EVER, MIB
from attack.crowd import Crowd
from attack.line import Line, Order, Report, block, handshake
from attack.neighbour import Heard
from attack.outcome import Delays, Outcome
from attack.round import play
from attack.target import Target
from attack.visitor import MANY_SECONDS
from support.services import PostgresServer

REST_SECONDS = 0.1
STORED_PATIENCE_S = 30.0

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
REFUSED = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n\r\n"
TOO_BIG = b"\x88\x02\x03\xf1"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


class Targets:
    """Servers by their settings, each started when it is first wanted, and anew after one that was harmed."""

    def __init__(self, postgres: PostgresServer) -> None:
        self._postgres = postgres
        self._started: dict[str, Target] = {}

    def get(self, settings: Mapping[str, Any]) -> Target:
        name = repr(sorted(settings.items()))
        if name not in self._started:
            self._started[name] = Target(self._postgres, **settings)
        return self._started[name]

    def drop(self, target: Target) -> None:
        self._started = {name: other for name, other in self._started.items() if other is not target}
        target.__exit__()

    def close(self) -> None:
        for target in list(self._started.values()):
            self.drop(target)


@pytest.fixture(scope="module")
def targets(postgres: PostgresServer) -> Iterator[Targets]:
    started = Targets(postgres)
    yield started
    started.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_takes_no_memory_and_costs_no_neighbour_a_sample(targets: Targets, name: str) -> None:
    attack = ATTACKS[name].shortened()
    target = targets.get(attack.settings)
    outcome = play(target, name, attack, REST_SECONDS, STORED_PATIENCE_S)
    if outcome.broken:
        targets.drop(target)
    assert outcome.broken == []


@asynccontextmanager
async def served(serve: Serve) -> AsyncIterator[int]:
    """Serve on a port."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1000)
    writer.write(REFUSED)
    writer.close()  # with all the rest unread: the kernel resets it


async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(SWITCHED)
    await reader.read(1000)
    writer.write(TOO_BIG)
    writer.close()


async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def test_an_attacker_hears_why_it_is_refused_though_it_goes_on_sending() -> None:
    async with served(refuse) as port:
        report = await asyncio.to_thread(requests.headers, Order(port, 10, EVER))
        assert report.endings == {"431": 1}


@pytest.mark.parametrize("reads", [True, False])
async def test_an_attacker_sees_the_code_that_it_is_closed_with(reads: bool) -> None:
    def attack(port: int) -> Report:
        with Line(port, reads=reads).open_websocket("/stream") as line:
            line.pour(repeat(block(unread.LONG_PING)), monotonic() + 10)
            return line.report()

    async with served(close) as port:
        assert (await asyncio.to_thread(attack, port)).endings == {"1009": 1}


async def test_an_attack_is_over_in_time_though_nobody_ends_it() -> None:
    async with served(ignore) as port:
        report = await asyncio.to_thread(requests.headers, Order(port, 0.2, 1000))
        assert report.endings == {"open": 1}
        assert report.n_sent >= 1000
        report = await asyncio.to_thread(requests.slow, Order(port, 0.2, EVER, 10))
        assert report.endings == {"open": 10}


async def test_a_crowd_counts_how_each_of_it_ends_and_whether_all_are_served() -> None:
    async with served(refuse) as port:
        report = await asyncio.to_thread(requests.half, Order(port, 10, EVER, 10))
        assert report.endings == {"431": 10}
    async with served(close) as port:
        crowd = Crowd(Order(port, 10, EVER, 10))
        report = await asyncio.to_thread(lambda: crowd.run(handshake("/"), drip=b"x", every_s=0.01, wanted=b"data"))
        assert report.endings == {"1009": 10}
        assert report.served_s is None
        crowd = Crowd(Order(port, 10, EVER, 10))
        report = await asyncio.to_thread(lambda: crowd.run(handshake("/"), wanted=b"101"))
        assert report.endings == {"open": 10}
        assert report.served_s is not None


FINE = Outcome(
    attack=ATTACKS["headers"],
    report=Report(1000, {"431": 1}, 0.1),
    before_bytes=60 * MIB,
    most_bytes=61 * MIB,
    after_bytes=61 * MIB,
    cpu_s=0.1,
    rest=Delays(0.0, 0.0, 0.0, 0.0),
    beside=Delays(0.0, 0.0, 0.0, 0.0),
    n_neighbour=100,
    n_lost=0,
    n_stored=100,
    neighbour_ending="",
    health_rest_s=[0.001],
    health_s=[0.001],
    history_rest_s=[0.001],
    history_s=[0.001],
    newcomers_s=[0.001],
    n_log_lines=0,
    is_logged=True,
    complaint="",
)
STORM = {"attack": ATTACKS["storm"], "report": Report(1000, {"open": 5000}, 1.0)}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"most_bytes": 81 * MIB}, "the server grew by 21 MiB"),
        ({"after_bytes": 81 * MIB}, "the server grew by 21 MiB"),
        ({"report": Report(1, {"431": 1, "open": 2}, 0.1)}, "connections ended open × 2, expected"),
        ({"neighbour_ending": "1013"}, "the neighbour was cut: 1013"),
        ({"n_lost": 3}, "the neighbour's consumer missed 3 of 100"),
        ({"n_stored": 99}, "of the neighbour's 100 samples 99 are stored"),
        ({"newcomers_s": [0.1, MANY_SECONDS]}, "1 of 2 new relays were not let in"),
        ({"history_s": [0.1, MANY_SECONDS]}, "1 of 2 questions for the neighbour's /history were not answered"),
        ({"report": Report(1000, {"431": 1}, 0.1, harm="all have one time")}, "all have one time"),
        ({"n_log_lines": 3000}, "the server logged 3,000 lines"),
        ({"attack": ATTACKS["keys-over-rest"], "is_logged": False}, "the log does not say “a wrong key”"),
        ({"complaint": "the server has ended"}, "the server has ended"),
        (STORM, "not all got what they came for"),
    ],
)
def test_a_verdict_names_the_harm(wrong: dict[str, Any], sentence: str) -> None:
    assert FINE.broken == FINE.slow == []
    (said,) = FINE._replace(**wrong).broken
    assert said.startswith(sentence)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"report": Report(1000, {"408": 1}, 12.0)}, "a connection lived 12.0 s"),
        ({"beside": Delays(0.0, 0.011, 0.012, 0.0)}, "the neighbour's p99 is 11 ms"),
        ({"health_s": [0.001, 0.06]}, "/health took 60 ms"),
        ({"history_s": [0.001, 0.3]}, "the neighbour's /history took 300 ms"),
        (STORM | {"report": Report(1, {}, 1.0, 0.9)}, "the last was subscribed after 0.90 s"),
        (STORM | {"report": Report(1, {}, 1.0, 0.7), "cpu_s": 1.5}, "each cost 0.30 ms"),
    ],
)
def test_a_verdict_names_what_took_too_long(wrong: dict[str, Any], sentence: str) -> None:
    assert FINE._replace(**wrong).slow == [sentence]


def test_what_never_came_took_for_ever() -> None:
    heard = Heard([0.0, 1.0, 2.0], [0.5, 1.0, 2.0], [0.6, 1.1, None], [1], 0, 0, "")
    assert Delays.of(heard, slice(2)) == pytest.approx(Delays(0.1, 0.1, 0.1, 0.495))
    assert Delays.of(heard, slice(3)).most_s > MANY_SECONDS / 2
    assert Delays.of(heard, slice(3, 3)).p50_s == MANY_SECONDS
