from __future__ import annotations

import asyncio
import json
import logging
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import numpy as np
import pytest

from databases import connected, opened, until
from services import PostgresServer
from zander import recorder as recorder_module
from zander import storage as storage_module
from zander.chunk import Chunk, Origin
from zander.errors import Refused, StorageError
from zander.recorder import Batch, PredictionRecord, Recorder, SessionRecord
from zander.storage import Postgres, plain_dsn

T0_US = 1_764_000_000_123_457
T0 = datetime(2025, 11, 24, 16, 0, 0, 123457, tzinfo=UTC)
ORIGIN = Origin("user", str(uuid.uuid4()), 7812.5)
SESSION = SessionRecord(ORIGIN.session_id, "user", T0_US, None, '{"sampling_rate": 128}')
PREDICTION = PredictionRecord(
    T0_US, ORIGIN.session_id, "user", "workload_edge", "edge_relay", '{"workload": 0.5}', 0.9, "v2"
)


def chunk(position: int, n_samples: int = 1, origin: Origin = ORIGIN, n_channels: int = 2) -> Chunk:
    """Samples that carry their position in the first channel."""
    samples = np.zeros((n_samples, n_channels), np.float32)
    samples[:, 0] = np.arange(position, position + n_samples)
    return Chunk(origin, position, T0_US + 7812 * np.arange(position, position + n_samples), samples)


def raw(n: int, *chunks: Chunk) -> Batch:
    return Batch(n, [], list(chunks), [])


async def positions(url: str) -> list[int]:
    """All positions in the database; fails where a sample is not the one of its position."""
    async with connected(url) as connection:
        rows = await connection.fetch("SELECT position, channels[1] AS first FROM raw_eeg ORDER BY position")
    assert all(row["position"] == row["first"] for row in rows)
    return [row["position"] for row in rows]


class Proxy:
    """A TCP way to the database that can lose the answer to COMMIT, or go silent."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.loses_commits = False
        self.silent = False
        self.n_lost = 0

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._parts._replace(netloc=f"{self._parts.netloc.rpartition(':')[0]}:{port}").geturl()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Proxy]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield self
        finally:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        self._writers += [writer, back]
        state = {"committing": False}
        await asyncio.gather(self._upward(reader, back, state), self._downward(there, writer, state))
        writer.transport.abort()
        back.transport.abort()

    async def _upward(self, reader: Any, writer: Any, state: dict[str, bool]) -> None:
        while data := await _read(reader):
            state["committing"] = b"COMMIT\0" in data
            if not self.silent:
                writer.write(data)
        writer.close()

    async def _downward(self, reader: Any, writer: Any, state: dict[str, bool]) -> None:
        while data := await _read(reader):
            if state["committing"] and self.loses_commits:
                self.n_lost += 1
                break
            if not self.silent:
                writer.write(data)
        writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(1 << 16)
    except OSError:
        return b""


@pytest.fixture(scope="module")
def fragile() -> Iterator[PostgresServer]:
    """A PostgreSQL to stop and kill: the one of the whole run has other users."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _patient_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "BACKOFF_MAX_SECONDS", 0.1)
    monkeypatch.setattr(recorder_module, "PING_SECONDS", 0.05)


# What is written is what comes back.


async def test_a_batch_comes_back_as_it_was_written(any_database_url: str) -> None:
    async with opened(any_database_url) as storage:
        await storage.write(Batch(1, [SESSION], [chunk(0, 3), chunk(7)], [PREDICTION]))
    async with connected(any_database_url) as connection:
        session = await connection.fetchrow("SELECT * FROM sessions")
        samples = await connection.fetch("SELECT * FROM raw_eeg ORDER BY position")
        prediction = await connection.fetchrow("SELECT * FROM predictions")
    session_id = uuid.UUID(ORIGIN.session_id)
    assert tuple(session) == (session_id, "user", T0, None, '{"sampling_rate": 128}')
    assert [tuple(row) for row in samples] == [
        (T0 + timedelta(microseconds=7812 * position), session_id, "user", position, [position, 0.0])
        for position in (0, 1, 2, 7)
    ]
    assert tuple(prediction) == (
        T0, session_id, "user", "workload_edge", "edge_relay", '{"workload": 0.5}', 0.9, "v2",
    )  # fmt: skip


@pytest.mark.parametrize("n_channels", [1, 139])
@pytest.mark.parametrize("user_id", ["Zoë", "脑电图", "🧠" * 100, "o'brien\\N"])
async def test_any_user_and_channel_count_comes_back(any_database_url: str, user_id: str, n_channels: int) -> None:
    origin = Origin(user_id, str(uuid.uuid4()), 0.0)
    values = np.random.default_rng(7).normal(0, 50, (20, n_channels)).astype(np.float32)
    values[3, 0] = np.nan
    async with opened(any_database_url) as storage:
        await storage.write(raw(1, Chunk(origin, 0, np.full(20, T0_US), values)))
    async with connected(any_database_url) as connection:
        rows = await connection.fetch("SELECT user_id, channels FROM raw_eeg ORDER BY position")
    assert {row["user_id"] for row in rows} == {user_id}
    np.testing.assert_array_equal(np.array([row["channels"] for row in rows], np.float32), values)


async def test_the_view_of_raw_samples_is_the_original_table(any_database_url: str) -> None:
    samples = np.array([[0.1, np.nan, -3]], np.float32)
    async with opened(any_database_url) as storage:
        await storage.write(raw(1, Chunk(ORIGIN, 0, np.array([T0_US]), samples)))
    async with connected(any_database_url) as connection:
        row = await connection.fetchrow("SELECT * FROM raw_samples")
    assert list(row.keys()) == ["timestamp", "session_id", "user_id", "data"]
    assert tuple(row)[:3] == (T0, uuid.UUID(ORIGIN.session_id), "user")
    assert json.loads(row["data"]) == {"channels": [0.1, None, -3]}


async def test_a_large_batch_goes_in_several_pieces(any_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "COPY_BYTES", 1000)
    other = Origin("other", str(uuid.uuid4()), 0.0)
    async with opened(any_database_url) as storage:
        await storage.write(raw(1, chunk(0, 100), chunk(100, 100, other), chunk(200, 100)))
    assert await positions(any_database_url) == list(range(300))


async def test_the_end_of_a_session_is_added_to_its_row(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(Batch(1, [SESSION], [], []))
        await storage.write(Batch(2, [SESSION._replace(end_us=T0_US + 5)], [], []))
        ends = await connection.fetch("SELECT start_time, end_time FROM sessions")
        assert [tuple(row) for row in ends] == [(T0, T0 + timedelta(microseconds=5))]
        await storage.write(Batch(3, [SESSION._replace(start_us=T0_US + 9)], [], []))  # resumed
        ends = await connection.fetch("SELECT start_time, end_time FROM sessions")
        assert [tuple(row) for row in ends] == [(T0, None)]


# Where to.


def test_both_forms_of_a_url_are_read() -> None:
    assert plain_dsn("postgresql+asyncpg://u:p@h:1/d?ssl=require") == "postgresql://u:p@h:1/d?sslmode=require"
    assert plain_dsn("postgres://u:p@h:1/d?sslmode=disable") == "postgresql://u:p@h:1/d?sslmode=disable"
    assert plain_dsn("postgresql://u:p@h/d") == "postgresql://u:p@h/d"


async def test_the_original_form_of_a_url_works(database_url: str) -> None:
    async with opened(database_url.replace("postgresql://", "postgresql+asyncpg://")) as storage:
        await storage.write(raw(1, chunk(0)))
    assert await positions(database_url) == [0]


async def test_a_wrong_password_is_not_repeated(database_url: str) -> None:
    user, _, rest = database_url.partition("@")
    wrong = f"{user.rpartition(':')[0]}:sesame@{rest}"
    with pytest.raises(StorageError, match="password authentication failed") as caught:
        await Postgres(wrong, retention_days=None, columnstore_after_hours=24).open()
    assert "sesame" not in str(caught.value)


async def test_a_password_that_breaks_the_url_is_not_repeated() -> None:
    storage = Postgres("postgresql://u:sesame/x@h:1/d", retention_days=None, columnstore_after_hours=24)
    with pytest.raises(StorageError, match="DATABASE_URL cannot be read") as caught:
        await storage.open()
    assert "sesame" not in str(caught.value)


async def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel takes the connection, nobody reads it
        url = f"postgresql://u:p@127.0.0.1:{server.getsockname()[1]}/d"
        with pytest.raises(StorageError, match="no answer in time"):
            await Postgres(url, retention_days=None, columnstore_after_hours=24).open()


# Once each.


async def test_a_batch_that_is_written_again_is_there_once(any_database_url: str) -> None:
    async with opened(any_database_url) as storage:
        batch = Batch(1, [SESSION], [chunk(0, 10)], [PREDICTION])
        await storage.write(batch)
        await storage.open()
        await storage.write(batch)
        await storage.write(raw(2, chunk(10)))
        await storage.write(raw(1, chunk(11)))
    assert await positions(any_database_url) == list(range(11))
    async with connected(any_database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM predictions") == 1


async def test_two_writers_do_not_mistake_each_others_batches(any_database_url: str) -> None:
    async with opened(any_database_url) as one, opened(any_database_url) as other:
        await one.write(raw(1, chunk(0)))
        await other.write(raw(1, chunk(1)))
    assert await positions(any_database_url) == [0, 1]


async def test_a_commit_whose_answer_is_lost_is_not_written_twice(any_database_url: str) -> None:
    async with Proxy(any_database_url).listening() as proxy, opened(proxy.url) as storage:
        proxy.loses_commits = True
        with pytest.raises(StorageError):
            await storage.write(raw(1, chunk(0, 10)))
        assert proxy.n_lost == 1
        proxy.loses_commits = False
        await storage.open()
        await storage.write(raw(1, chunk(0, 10)))
        await storage.write(raw(2, chunk(10, 10)))
        await storage.close()
    assert await positions(any_database_url) == list(range(20))


async def test_a_backend_that_is_still_committing_is_waited_for(database_url: str) -> None:
    async with opened(database_url) as storage, connected(database_url) as zombie:
        transaction = zombie.transaction()
        await transaction.start()
        await zombie.fetchval(storage_module.CLAIM, storage._writer_id, 1)
        retry = asyncio.create_task(storage.write(raw(1, chunk(0))))
        async with connected(database_url) as connection:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            async with asyncio.timeout(5):
                while not await connection.fetchval(waiting):
                    pass
        assert not retry.done()
        await transaction.commit()
        await retry
    assert await positions(database_url) == []


async def test_a_write_that_is_cancelled_leaves_nothing_behind(database_url: str) -> None:
    async with opened(database_url) as storage, connected(database_url) as other:
        async with other.transaction():
            await other.execute("LOCK TABLE raw_eeg")
            task = asyncio.create_task(storage.write(raw(1, chunk(0))))
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            async with asyncio.timeout(5):
                while not await other.fetchval(waiting):
                    pass
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await storage.open()
        await storage.write(raw(1, chunk(0)))
    assert await positions(database_url) == [0]


async def test_a_silent_network_is_given_up(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "COMMAND_SECONDS", 0.2)
    monkeypatch.setattr(storage_module, "PING_SECONDS", 0.2)
    async with Proxy(database_url).listening() as proxy, opened(proxy.url) as storage:
        proxy.silent = True
        with pytest.raises(StorageError, match="no answer in time"):
            await storage.write(raw(1, chunk(0)))
        proxy.silent = False
        await storage.open()
        proxy.silent = True
        with pytest.raises(StorageError, match="no answer in time"):
            await storage.ping()
        proxy.silent = False
        await storage.open()
        await storage.write(raw(1, chunk(0)))
    assert await positions(database_url) == [0]


async def test_a_closed_storage_says_so() -> None:
    storage = Postgres("postgresql://h/d", retention_days=None, columnstore_after_hours=24)
    await storage.close()
    for call in (storage.ping(), storage.write(raw(1, chunk(0)))):
        with pytest.raises(StorageError, match="closed"):
            await call


# What the database refuses.


def poison(kind: str) -> Batch:
    late = Chunk(ORIGIN, 5, np.array([-(1 << 62)]), np.zeros((1, 2), np.float32))
    nowhere = Origin("user", "secret", 0.0)
    return {
        "a time out of range": raw(1, chunk(0), late),
        "a session id that is none": raw(1, chunk(0, origin=nowhere)),
        "a user too long": raw(1, chunk(0, origin=Origin("secret" * 20, ORIGIN.session_id, 0.0))),
        "a channel count that changes": raw(1, chunk(0), chunk(1, n_channels=3)),
        "U+0000 in JSON": Batch(1, [], [chunk(0)], [PREDICTION._replace(data='{"secret": "\\u0000"}')]),
        "no JSON": Batch(1, [], [chunk(0)], [PREDICTION._replace(data="secret")]),
        "JSON too deep": Batch(1, [], [], [PREDICTION._replace(data="[" * 100_000 + "]" * 100_000)]),
        "half a character": Batch(1, [], [chunk(0)], [PREDICTION._replace(user_id="secret\ud800")]),
        "a name too long": Batch(1, [], [chunk(0)], [PREDICTION._replace(prediction_type="secret" * 20)]),
        "a device that is no JSON": Batch(1, [SESSION._replace(device_info="secret")], [chunk(0)], []),
        "a session of no user": Batch(1, [SESSION._replace(user_id="secret" * 20)], [chunk(0)], []),
    }[kind]


KINDS = [
    "a time out of range",
    "a session id that is none",
    "a user too long",
    "a channel count that changes",
    "U+0000 in JSON",
    "no JSON",
    "JSON too deep",
    "half a character",
    "a name too long",
    "a device that is no JSON",
    "a session of no user",
]


@pytest.mark.parametrize("kind", KINDS)
async def test_bad_data_is_refused_as_a_whole_and_the_next_batch_is_taken(database_url: str, kind: str) -> None:
    async with opened(database_url) as storage:
        with pytest.raises(Refused) as caught:
            await storage.write(poison(kind))
        assert "secret" not in str(caught.value)
        await storage.write(raw(2, chunk(1)))
    assert await positions(database_url) == [1]


async def test_bad_data_among_good_costs_only_itself(any_database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(any_database_url) as storage:
        recorder = Recorder(storage, max_records=50, max_seconds=60, linger_seconds=0, backlog_max_bytes=1 << 30)
        for position in range(0, 100, 10):
            recorder.record_chunk(chunk(position, 10))
        times_us = np.full(10, T0_US)
        times_us[4] = -(1 << 62)  # long before 4713 BC
        samples = np.arange(100, 110, dtype=np.float32)[:, None]
        recorder.record_chunk(Chunk(ORIGIN, 100, times_us, samples))
        recorder.record_prediction(PREDICTION._replace(data='"\\u0000"'))
        assert await recorder.drain(10)
    assert await positions(any_database_url) == [position for position in range(110) if position != 104]
    assert recorder.stats().refused_records == 2
    refusals = [message for message in caplog.messages if "refuses" in message]
    assert len(refusals) == 1
    assert f"session {ORIGIN.session_id}, position 104" in refusals[0]


# Outages.


@asynccontextmanager
async def recording(storage: Postgres) -> AsyncIterator[Recorder]:
    recorder = Recorder(storage, max_records=50, max_seconds=0.05, linger_seconds=0.005, backlog_max_bytes=1 << 30)
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        task.cancel()
        await asyncio.wait([task])
        await storage.close()


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_database_that_restarts_loses_nothing_and_gets_nothing_twice(
    fragile: PostgresServer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    database_url = fragile.create_database()
    position = 0
    async with recording(Postgres(database_url, retention_days=None, columnstore_after_hours=24)) as recorder:

        async def record(until_done: asyncio.Task[None]) -> None:
            nonlocal position
            while not until_done.done():
                recorder.record_chunk(chunk(position, 10))
                position += 10
                await asyncio.sleep(0.001)  # as relays would: 10,000 samples a second
            await until_done

        await until(lambda: recorder.online)
        await record(asyncio.create_task(until(lambda: recorder.stats().written_batches > 5)))
        try:
            await record(asyncio.create_task(asyncio.to_thread(getattr(fragile, how))))
            await record(asyncio.create_task(until(lambda: not recorder.online)))
        finally:
            fragile.start()
        await record(asyncio.create_task(until(lambda: recorder.online)))
        assert await recorder.drain(20)
    assert await positions(database_url) == list(range(position))
    assert len([message for message in caplog.messages if "the database is away" in message]) == 1
    assert len([message for message in caplog.messages if "the database is back" in message]) == 1


async def test_a_backend_that_is_terminated_loses_nothing(database_url: str) -> None:
    async with recording(Postgres(database_url, retention_days=None, columnstore_after_hours=24)) as recorder:
        await until(lambda: recorder.online)
        async with connected(database_url) as connection:
            for position in range(0, 1000, 10):
                recorder.record_chunk(chunk(position, 10))
                if position % 200 == 0:
                    await connection.fetch(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE application_name = 'zander' AND datname = current_database()"
                    )
                await asyncio.sleep(0)
        assert await recorder.drain(20)
    assert await positions(database_url) == list(range(1000))


async def test_an_outage_is_noticed_without_a_write(fragile: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    async with recording(
        Postgres(fragile.create_database(), retention_days=None, columnstore_after_hours=24)
    ) as recorder:
        await until(lambda: recorder.online)
        try:
            await asyncio.to_thread(fragile.stop)
            await until(lambda: not recorder.online)
        finally:
            fragile.start()
        await until(lambda: recorder.online)
    assert len([message for message in caplog.messages if "no hypertables" in message]) == 1


# Housekeeping.


async def test_rows_older_than_the_retention_are_deleted_from_plain_tables(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now_us = int(datetime.now(UTC).timestamp() * 1e6)
    old = Chunk(ORIGIN, 0, np.full(5, now_us - 3 * 86_400_000_000), np.zeros((5, 1), np.float32))
    new = Chunk(ORIGIN, 5, np.full(2, now_us), np.array([[5], [6]], np.float32))
    async with opened(database_url, retention_days=2) as storage:
        await storage.write(Batch(1, [], [old, new], [PREDICTION]))
        await storage.ping()
        await until(lambda: any("6 rows" in message for message in caplog.messages))
        await storage.ping()  # the next hour
    assert await positions(database_url) == [5, 6]
    async with connected(database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM predictions") == 0


async def test_writers_that_are_long_gone_are_forgotten(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await connection.execute(
            "INSERT INTO writers VALUES (gen_random_uuid(), 7, now() - interval '31 days'),"
            " (gen_random_uuid(), 8, now() - interval '29 days')"
        )
        await storage.open()
        assert await connection.fetchval("SELECT array_agg(batch) FROM writers") == [8]


async def test_what_the_database_lacks_is_logged_once(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(database_url) as storage:
        await storage.open()
        await storage.open()
    assert caplog.messages == ["plain PostgreSQL: no hypertables or columnstore; retention by delete"]


async def test_a_server_that_is_not_there_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="ConnectionRefusedError"):
        await Postgres("postgresql://u:p@127.0.0.1:1/d", retention_days=None, columnstore_after_hours=24).open()


async def test_a_full_disk_is_no_refusal() -> None:
    assert not storage_module.blames_data(asyncpg.exceptions.DiskFullError("no space"))
    assert storage_module.blames_data(asyncpg.exceptions.DatetimeFieldOverflowError("out of range"))
