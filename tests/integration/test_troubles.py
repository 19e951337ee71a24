"""What an operator may meet: disks that are full, a database that refuses. Said once, survived, recovered from."""

from __future__ import annotations

import asyncio
import re
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from support.clients import Peer, consumer, relay
from support.databases import connected
from support.files import damage
from support.nodes import Node
from support.programs import Program
from support.services import PostgresServer, eventually
from zander.journal.shares import SHARES
from zander.wire.chunk import RawIn, encode_binary

KILOBYTE = 1 << 10
TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
)


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """A PostgreSQL of their own: it is frozen, and its role loses rights."""
    with PostgresServer() as server:
        yield server


async def stored(url: str) -> list[tuple[int, float]]:
    async with connected(url) as connection:
        rows = await connection.fetch("SELECT position, channels[1] AS value FROM raw_eeg ORDER BY position")
    return [tuple(row) for row in rows]


async def send(peer: Peer, positions: range) -> None:
    for position in positions:
        await peer.send({"type": "raw", "channels": [position, 0], "position": position})


async def send_all(ws: str, user: str, session_id: str, end: int) -> None:
    """Come back until everything before `end` is durable: a journal that is full in between sends relays away."""
    durable = 0
    while durable < end:
        with suppress(AssertionError, ConnectionClosed):
            async with relay(ws, user, ack=True, session_id=session_id) as edge:
                await send(edge, range(edge.next_position, end))
                while durable < end:
                    durable = (await edge.until("ack"))["durable"]


async def acked(peer: Peer, durable: int) -> None:
    """Wait for the ack of everything before a position."""
    while (await peer.until("ack"))["durable"] < durable:
        pass


# The database refuses for a while.


Trouble = Callable[[Any, str], Any]


@asynccontextmanager
async def full_disk(connection: Any, _: str) -> AsyncIterator[None]:
    """What PostgreSQL says when its disk is full, said by a trigger."""
    await connection.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;"
        "CREATE TRIGGER full_disk BEFORE INSERT ON raw_eeg EXECUTE FUNCTION full_disk()"
    )
    yield
    await connection.execute("DROP TRIGGER full_disk ON raw_eeg")


@asynccontextmanager
async def read_only(connection: Any, role: str) -> AsyncIterator[None]:
    await connection.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on; {TERMINATE}")
    yield
    await connection.execute(f"ALTER ROLE {role} RESET ALL; {TERMINATE}")


@asynccontextmanager
async def revoked_permission(connection: Any, role: str) -> AsyncIterator[None]:
    await connection.execute("ALTER TABLE raw_eeg OWNER TO CURRENT_USER")
    yield
    await connection.execute(f"ALTER TABLE raw_eeg OWNER TO {role}")


@asynccontextmanager
async def changed_password(connection: Any, role: str) -> AsyncIterator[None]:
    await connection.execute(f"ALTER ROLE {role} PASSWORD 'another'; {TERMINATE}")
    yield
    await connection.execute(f"ALTER ROLE {role} PASSWORD 'first'")


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (full_disk, "No space left on device"),
        (read_only, "read-only transaction"),
        (revoked_permission, "permission denied"),
        (changed_password, "password authentication failed"),
    ],
)
async def test_a_database_that_refuses_for_a_while_is_said_once_and_loses_nothing(  # noqa: PLR0917 - fixtures
    database: PostgresServer,
    start_node: Callable[..., Node],
    user: str,
    trouble: Trouble,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, role = database.create_database(), f"{trouble.__name__}_role"
    async with connected(url) as admin:
        name = urlsplit(url).path[1:]
        await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'first'; ALTER DATABASE {name} OWNER TO {role}")
        await admin.execute(f"GRANT CREATE ON SCHEMA public TO {role}")
        node = start_node(database_url=_as(url, role))
        eventually(node.ready)
        async with relay(node.ws, user, ack=True) as edge, consumer(node.ws, user, "?types=raw") as listener:
            await send(edge, range(100))
            await acked(edge, 100)
            async with trouble(admin, role):
                await send(edge, range(100, 200))
                await asyncio.to_thread(eventually, lambda: said in " ".join(complaints(caplog)))
                assert node.get("/health/ready")[1]["database"] == "down"
                await send(edge, range(200, 300))
                for position in range(300):
                    assert (await listener.until("raw"))["position"] == position
            await acked(edge, 300)
    assert await stored(url) == [(position, position) for position in range(300)]
    assert len(complaints(caplog)) == len(set(complaints(caplog))) <= 3


def _as(url: str, role: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}:first@{parts.hostname}:{parts.port}").geturl()


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        message for message in caplog.messages if message.startswith(("the database is away", "the database is still"))
    ]


# The journal is full.


async def test_a_journal_at_its_bound_sends_relays_away_and_takes_them_back(
    database: PostgresServer,
    start_node: Callable[..., Node],
    user: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SHARES, "samples", 1e9)  # as if many had filled it
    url = database.create_database()
    node = start_node(database_url=url, journal_max_bytes=64 * KILOBYTE)
    eventually(node.ready)
    async with relay(node.ws, f"{user}-old") as old:
        async with relay(node.ws, user, ack=True) as edge:
            await send(edge, range(100))
            await acked(edge, 100)
            session_id = edge.session_id
            database.pause()
            await send(edge, range(100, 1100))
            assert await edge.close_code() == 1013
        async with consumer(node.ws, f"{user}-old", "?types=raw") as listener:
            for value in range(50):
                await old.send({"type": "raw", "channels": [value, 0]})
                assert (await listener.until("raw"))["channels"][0] == value  # live, if not kept
        with pytest.raises(AssertionError, match="journal is full"):
            async with relay(node.ws, "newcomer"):
                pass
        assert not node.get("/stats")[1]["database"]["taking"]
        status, ready = node.get("/health/ready")
        assert (status, ready["journal"]) == (503, "full")
        assert "its bound" in ready["reason"]
        database.resume()
        await asyncio.to_thread(eventually, lambda: node.get("/stats")[1]["database"]["taking"], 20)
        await send_all(node.ws, user, session_id, 1100)
        await old.send({"type": "raw", "channels": [50, 0]})
    await asyncio.to_thread(eventually, lambda: node.get("/stats")[1]["database"]["pending_records"] == 0)
    async with connected(url) as connection:
        rows = await connection.fetch(
            "SELECT position, channels[1] AS value FROM raw_eeg WHERE session_id = $1 ORDER BY position", session_id
        )
        gaps = await connection.fetch("SELECT session_id::text, from_position, to_position, reason FROM gaps")
    assert [tuple(row) for row in rows] == [(position, position) for position in range(1100)]
    assert [tuple(gap) for gap in gaps] == [(old.session_id, 0, 50, "lost")]
    n_full = len([message for message in caplog.messages if message.startswith("the journal takes no more")])
    assert n_full == len(
        [message for message in caplog.messages if message.startswith("the journal takes records again")]
    )
    assert n_full < 10  # once per change of state, not once per message


FLOODS: dict[str, Any] = {
    "features": {"type": "features", "metrics": {"x": "x" * 60_000}},
    "raw": {"type": "raw", "samples": [[0.5, 0.25]] * 500},
    "binary": encode_binary(RawIn(None, None, np.zeros((500, 2), np.float32))),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_relay_that_floods_fills_its_share_of_the_journal_and_no_other_loses_a_sample(
    database: PostgresServer, start_node: Callable[..., Node], user: str, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    url = database.create_database()
    node = start_node(database_url=url, journal_max_bytes=4 << 20)
    eventually(node.ready)
    async with (
        relay(node.ws, user) as edge,
        relay(node.ws, f"{user}-ack", ack=True) as acking,
        relay(node.ws, f"{user}-flood") as flood,
    ):
        await flood.send({"type": "raw", "channels": [0, 0]})
        database.pause()
        await edge.send({"type": "raw", "channels": [0, 0], "position": 0})
        await acking.send({"type": "raw", "channels": [0, 0], "position": 0})
        for _ in range(200):
            await flood.send(FLOODS[kind])
        told = await flood.receive()
        assert (told["type"], told["code"]) == ("error", "not_stored")
        async with relay(node.ws, f"{user}-new", ack=True) as newcomer:  # is taken in, too
            for peer in (edge, acking, newcomer):
                await send(peer, range(1, 500))
            await flood.send(FLOODS[kind])
            await flood.send({"type": "ping", "t0": 0})
            assert (await flood.receive())["type"] == "pong"  # told once
            stats = node.get("/stats")[1]["database"]
            assert stats["taking"]
            assert stats["users_over_share"] == 1
            assert stats["dropped_records"] > 0
            database.resume()
            await acked(acking, 500)
            await acked(newcomer, 500)
    await asyncio.to_thread(eventually, lambda: node.get("/stats")[1]["database"]["pending_records"] == 0, 30)
    assert [name for name in caplog.messages if "bytes in the journal" in name] == [
        text for text in caplog.messages if text.startswith(f"user {user}-flood has ")
    ]
    async with connected(url) as connection:
        for peer, first in ((edge, 0), (acking, 0), (newcomer, 1)):
            rows = await connection.fetch(
                "SELECT position FROM raw_eeg WHERE session_id = $1 ORDER BY position", peer.session_id
            )
            assert [row["position"] for row in rows] == list(range(first, 500))
        gaps = await connection.fetch("SELECT session_id::text AS session_id, reason FROM gaps WHERE reason = 'lost'")
        assert {gap["session_id"] for gap in gaps} <= {flood.session_id}
        assert bool(gaps) == (kind != "features")


async def test_a_full_disk_under_the_journal_is_survived(database: PostgresServer, user: str) -> None:
    url = database.create_database()
    with Program(database_url=url) as program:
        eventually(program.ready)
        async with relay(program.ws, user, ack=True) as edge:
            await send(edge, range(100))
            await acked(edge, 100)
            limit = (256 * KILOBYTE, resource.RLIM_INFINITY)  # no file of its may grow beyond
            resource.prlimit(program.pid, resource.RLIMIT_FSIZE, limit)
            database.pause()
            await send(edge, range(100, 3000))
            assert await edge.close_code() == 1013
            session_id = edge.session_id
        assert "the journal takes no more" in program.log
        database.resume()
        resource.prlimit(program.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await asyncio.to_thread(eventually, lambda: program.get("/stats")[1]["database"]["taking"], 20)
        async with relay(program.ws, user, ack=True, session_id=session_id) as edge:
            await send(edge, range(edge.next_position, 3000))
            await acked(edge, 3000)
    assert await stored(url) == [(position, position) for position in range(3000)]


# The server is killed.


async def test_what_a_killed_server_had_read_is_in_the_database_after_its_next_start(
    database: PostgresServer, user: str, tmp_path: Any
) -> None:
    url = database.create_database()
    with Program(database_url=url, data_dir=tmp_path) as program:
        eventually(program.ready)
        async with relay(program.ws, user) as edge, consumer(program.ws, user, "?types=raw") as listener:
            await edge.send({"type": "raw", "channels": [0, 0]})
            await listener.until("raw")
            database.pause()
            for value in range(1, 500):
                await edge.send({"type": "raw", "channels": [value, 0]})
            for value in range(1, 500):
                assert (await listener.until("raw"))["channels"][0] == value
            program.send(signal.SIGKILL)
            program.exit_code()
    database.resume()
    with Program(database_url=url, data_dir=tmp_path) as program:
        eventually(lambda: program.ready() and program.get("/stats")[1]["database"]["pending_bytes"] == 0, 20)
        assert "in the journal of a process that died" in program.log
        assert program.terminate() == 0
    assert await stored(url) == [(value, value) for value in range(500)]
    assert not list(tmp_path.glob("journal/*"))


async def test_damage_to_the_journal_of_a_killed_server_costs_what_is_damaged_and_is_a_gap(
    database: PostgresServer, user: str, tmp_path: Any
) -> None:
    url = database.create_database()
    with Program(database_url=url, data_dir=tmp_path) as program:
        eventually(program.ready)
        database.pause()
        async with relay(program.ws, user) as edge, consumer(program.ws, user, "?types=raw") as listener:
            for value in range(300):
                await edge.send({"type": "raw", "channels": [value, 0]})
                await listener.until("raw")
            program.kill()
    (path,) = (path for path in tmp_path.glob("journal/*.v1") if path.stat().st_size)
    for part in (0.2, 0.5, 0.9):
        damage(path, round(part * path.stat().st_size))
    (tmp_path / "journal/foo.lock").touch()
    for lock in tmp_path.glob("journal/*-*.lock"):
        lock.unlink()
    database.resume()
    with Program(database_url=url, data_dir=tmp_path) as program:
        eventually(lambda: program.ready() and program.get("/stats")[1]["database"]["pending_bytes"] == 0, 20)
        assert program.terminate() == 0
        assert len(re.findall(r"ERROR .*: positions .* are lost, stored as gaps", program.log)) == 1
    async with connected(url) as connection:
        gaps = await connection.fetch("SELECT from_position, to_position FROM gaps WHERE reason = 'lost'")
        assert await connection.fetchval("SELECT durable_position FROM sessions") == 300
    lost = {position for start, end in gaps for position in range(start, end)}
    assert 3 <= len(lost) < 10
    assert await stored(url) == [(value, value) for value in range(300) if value not in lost]
    assert len(list(tmp_path.glob("journal/*.damaged"))) == 3


# The database is not what it was.


@pytest.mark.parametrize("n_kept", [0, 64 << 20])
@pytest.mark.parametrize(
    "wipe", ["DROP SCHEMA public CASCADE; CREATE SCHEMA public", "TRUNCATE sessions, raw_eeg, writers"]
)
async def test_a_database_that_is_wiped_under_a_relay_gets_what_is_kept_and_a_gap_for_the_rest(
    database: PostgresServer, start_node: Callable[..., Node], user: str, wipe: str, n_kept: int
) -> None:
    url = database.create_database()
    node = start_node(database_url=url, journal_max_bytes=64 * KILOBYTE, journal_keep_bytes=n_kept)
    eventually(node.ready)
    async with relay(node.ws, user, ack=True) as edge, connected(url) as admin:
        for start in range(0, 200, 50):
            await send(edge, range(start, start + 50))
            await acked(edge, start + 50)
        await admin.execute(wipe)
        await send(edge, range(200, 250))
        await acked(edge, 250)
        await asyncio.to_thread(eventually, lambda: node.get("/stats")[1]["database"]["pending_records"] == 0)
        status, stored_session = node.get(f"/sessions/{edge.session_id}")
        assert (status, stored_session["user_id"]) == (200, user)
        gaps = await admin.fetch("SELECT from_position, to_position, reason FROM gaps")
        positions = [position for position, _ in await stored(url)]
        assert positions == list(range(positions[0], 250))
        assert [tuple(gap) for gap in gaps] == [(0, positions[0], "lost")] * bool(positions[0])
        assert (positions[0] == 0) == bool(n_kept)
        device = await admin.fetchval("SELECT device_info->>'device_type' FROM sessions")
        assert device == "test"
