"""The parts of `make chaos`, and a shortened run of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chaos import round as chaos_round
from chaos.faults import Fault, Stage
from chaos.proxy import Proxy
from chaos.round import Outcome, Strike, plan, play
from chaos.setbacks import FAULTS
from chaos.system import System, started
from chaos.twins import impatient


class Echo:
    """A server that gives back what it gets, and notes how its connections end."""

    def __init__(self) -> None:
        self.got = b""
        self.ends: asyncio.Queue[str] = asyncio.Queue()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                self.got += data
                writer.write(data)
            self.ends.put_nowait("FIN")
        except ConnectionResetError:
            self.ends.put_nowait("RST")
        finally:
            writer.close()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Proxy, Echo]]:
    echo = Echo()
    async with await asyncio.start_server(echo.serve, "127.0.0.1", 0) as server:
        echo.port = server.sockets[0].getsockname()[1]
        async with Proxy(lambda: echo.port) as proxy:
            yield proxy, echo


@asynccontextmanager
async def client(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection through the proxy that has been heard on the other side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    assert await reader.read(100) == b"hello"
    try:
        yield reader, writer
    finally:
        writer.close()


async def is_silent(reader: asyncio.StreamReader) -> bool:
    """Whether nothing comes, not even an end."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(100), 0.1)
    return True


@pytest.mark.parametrize("reset", [True, False])
async def test_a_cut_ends_both_sides(reset: bool) -> None:
    async with proxied() as (proxy, echo), client(proxy) as (reader, _):
        proxy.cut(reset=reset)
        if reset:
            with pytest.raises(ConnectionResetError):
                await reader.read(100)
        else:
            assert await reader.read(100) == b""
        assert await echo.ends.get() == ("RST" if reset else "FIN")
        async with client(proxy):  # and a new one passes
            pass


async def test_the_end_of_one_side_ends_the_other() -> None:
    async with proxied() as (proxy, echo):
        async with client(proxy):
            pass
        assert await echo.ends.get() == "FIN"


async def test_a_frozen_link_swallows_and_closes_nothing_until_it_thaws() -> None:
    async with proxied() as (proxy, echo), client(proxy) as (reader, writer):
        proxy.freeze()
        writer.write(b"lost")
        assert await is_silent(reader)
        late_reader, late_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        late_writer.write(b"lost too")
        assert await is_silent(late_reader)
        assert echo.got == b"hello"
        proxy.thaw()
        for one in (reader, late_reader):
            with pytest.raises(ConnectionResetError):
                await one.read(100)
        late_writer.close()
        async with client(proxy):
            pass


async def test_an_orphaned_server_hears_nothing_of_the_end() -> None:
    async with proxied() as (proxy, echo), client(proxy) as (reader, _):
        proxy.orphan()
        with pytest.raises(ConnectionResetError):
            await reader.read(100)
        async with client(proxy):
            assert echo.ends.empty()
    assert echo.ends.qsize() == 2


async def test_a_stalled_link_delivers_late_even_what_a_client_left_behind() -> None:
    async with proxied() as (proxy, echo), client(proxy) as (reader, writer):
        proxy.stall()
        writer.write(b" late")
        assert await is_silent(reader)
        proxy.desert()
        proxy.resume()
        assert await echo.ends.get() == "FIN"
        assert echo.got == b"hello late"


async def test_a_link_to_nobody_is_refused_at_once() -> None:
    async with proxied() as (proxy, echo):
        echo.port = 1
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read(100)
        writer.close()


def test_a_seed_is_a_plan() -> None:
    assert plan(7) == plan(7) != plan(8)
    assert {strike.name for seed in range(20) for strike in plan(seed, ["kill node"])} == {"kill node"}
    assert {strike.name for seed in range(300) for strike in plan(seed)} == set(FAULTS)


async def _played(system: System, *strikes: Strike) -> Outcome:
    outcome = await play(system, 1, list(strikes))
    assert outcome.n_samples > 300
    assert outcome.n_acked
    assert outcome.n_delivered
    return outcome


# Each a round or two of `make chaos`; the faults of one round overlap.
ROUNDS = {
    "a kill, and a zombie": ((0.0, "kill node", "node 0", 0.3), (0.2, "freeze node", "node 1", 2.0)),
    "COMMIT": ((0.0, "lose COMMIT answers", "postgres", 0.7), (0.3, "kill node", "node 1", 0.1)),
    "PostgreSQL and Valkey": ((0.0, "kill PostgreSQL", "postgres", 0.5), (0.1, "kill Valkey", "valkey", 0.3)),
    "rolling restart": ((0.0, "rolling restart", "nodes", 0.2),),
    "links, and a full disk": ((0.0, "orphan links", "links", 1.0), (0.2, "full disk", "node 0", 0.5)),
    "damage": ((0.0, "damaged journal", "node 0", 0.7), (0.1, "statement timeout", "postgres", 0.5)),
    "a backup": ((0.2, "restored backup", "postgres", 0.7),),
    "refusals": ((0.0, "read-only database", "postgres", 0.7), (0.1, "poison", "postgres", 0.5)),
}


@pytest.mark.parametrize("faults", ROUNDS.values(), ids=ROUNDS)
async def test_the_promises_hold(faults: tuple[tuple[float, str, str, float], ...]) -> None:
    with impatient():
        async with started() as system:
            outcome = await _played(system, *(Strike(*fault, seed=1) for fault in faults))
            assert outcome.sentences == [], system.log_tails


async def test_what_is_taken_out_of_the_database_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def steal(stage: Stage) -> None:
        await stage.system.run(
            "DELETE FROM raw_eeg WHERE position = 3", "UPDATE raw_eeg SET position = 8 WHERE position = 9"
        )

    monkeypatch.setitem(FAULTS, "theft", Fault(steal, ("postgres",), (0, 0)))
    monkeypatch.setattr(chaos_round, "FINISH_SECONDS", 2.0)
    with impatient():
        async with started() as system:
            outcome = await _played(system, Strike(0.5, "theft", "postgres", 0.0, 1))
    for wrong in ("position 3 not in the database", "position 8 more than once", "position 8 as"):
        assert sum(wrong in sentence for sentence in outcome.sentences) >= 4
