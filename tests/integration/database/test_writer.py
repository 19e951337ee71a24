from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import numpy as np
import pytest

from support.databases import connected, opened, until
from support.samples import ORIGIN, PREDICTION, SESSION, T0_US, WRITER_ID, batch, chunk, gap
from support.services import PostgresServer
from zander.database import connection as connection_module
from zander.database import transaction as transaction_module
from zander.database import writer as writer_module
from zander.database.claim import CLAIM
from zander.database.connection import Connection, blames_data
from zander.database.writer import DatabaseWriter
from zander.errors import StorageError
from zander.journal import recorder as recorder_module
from zander.journal.journal import Journals
from zander.journal.recorder import Recorder
from zander.journal.writer import JournalWriter
from zander.wire.chunk import Chunk, Origin

T0 = datetime(2025, 11, 24, 16, 0, 0, 123457, tzinfo=UTC)
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


async def positions(url: str) -> list[int]:
    """All positions in the database; fails where a sample is not the one of its position."""
    async with connected(url) as connection:
        rows = await connection.fetch("SELECT position, channels[1] AS first FROM raw_eeg ORDER BY position")
    assert all(row["position"] == row["first"] for row in rows)
    return [row["position"] for row in rows]


async def until_somebody_waits(connection: Connection) -> None:
    async with asyncio.timeout(5):
        while not await connection.fetchval(WAITING):
            pass


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
    monkeypatch.setattr(recorder_module, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(recorder_module, "MAX_SECONDS", 0.1)
    monkeypatch.setattr(recorder_module, "PING_SECONDS", 0.05)


# What is written is what comes back.


async def test_a_batch_comes_back_as_it_was_written(any_database_url: str) -> None:
    async with opened(any_database_url) as storage:
        await storage.write(batch(0, 9, SESSION, chunk(0, 3), gap(3, 7), chunk(7), PREDICTION))
    async with connected(any_database_url) as connection:
        session = await connection.fetchrow(
            "SELECT session_id, user_id, start_time, end_time, device_info, durable_position, durable_time, fence"
            " FROM sessions"
        )
        samples = await connection.fetch("SELECT * FROM raw_eeg ORDER BY position")
        stored_gap = await connection.fetchrow("SELECT * FROM gaps")
        prediction = await connection.fetchrow(
            "SELECT timestamp, session_id, user_id, prediction_type, classifier_name, data, confidence,"
            " classifier_version FROM predictions"
        )
    session_id = uuid.UUID(ORIGIN.session_id)
    durable_time = T0 + timedelta(microseconds=7 * 7812)
    assert tuple(session) == (session_id, "user", T0, None, '{"sampling_rate": 128}', 8, durable_time, 0)
    assert [tuple(row) for row in samples] == [
        (T0 + timedelta(microseconds=7812 * position), session_id, "user", position, [position, 0.0])
        for position in (0, 1, 2, 7)
    ]
    assert tuple(stored_gap) == (session_id, 3, 7, "relay", T0)
    assert tuple(prediction) == (
        T0, session_id, "user", "workload_edge", "edge_relay", '{"workload": 0.5}', 0.9, "v2",
    )  # fmt: skip


async def test_what_a_prediction_may_leave_out_is_null(any_database_url: str) -> None:
    async with opened(any_database_url) as storage:
        bare = type(PREDICTION)(ORIGIN.session_id, T0_US, "user", "type", "classifier", "[]", None, None)
        await storage.write(batch(0, 9, bare))
    async with connected(any_database_url) as connection:
        row = await connection.fetchrow("SELECT data, confidence, classifier_version FROM predictions")
    assert tuple(row) == ("[]", None, None)


@pytest.mark.parametrize("n_channels", [1, 139])
@pytest.mark.parametrize("user_id", ["Zoë", "脑电图", "🧠" * 100, "o'brien\\N"])
async def test_any_user_and_channel_count_comes_back(any_database_url: str, user_id: str, n_channels: int) -> None:
    origin = Origin(user_id, str(uuid.uuid4()), 0.0)
    values = np.random.default_rng(7).normal(0, 50, (20, n_channels)).astype(np.float32)
    values[3, 0] = np.nan
    async with opened(any_database_url) as storage:
        await storage.write(batch(0, 9, Chunk(origin, 0, np.full(20, T0_US), values)))
    async with connected(any_database_url) as connection:
        rows = await connection.fetch("SELECT user_id, channels FROM raw_eeg ORDER BY position")
    assert {row["user_id"] for row in rows} == {user_id}
    np.testing.assert_array_equal(np.array([row["channels"] for row in rows], np.float32), values)


async def test_the_view_of_raw_samples_is_the_original_table(any_database_url: str) -> None:
    samples = np.array([[0.1, np.nan, -3]], np.float32)
    async with opened(any_database_url) as storage:
        await storage.write(batch(0, 9, Chunk(ORIGIN, 0, np.array([T0_US]), samples)))
    async with connected(any_database_url) as connection:
        row = await connection.fetchrow("SELECT * FROM raw_samples")
    assert list(row.keys()) == ["timestamp", "session_id", "user_id", "data"]
    assert tuple(row)[:3] == (T0, uuid.UUID(ORIGIN.session_id), "user")
    assert json.loads(row["data"]) == {"channels": [0.1, None, -3]}


async def test_a_large_batch_goes_whole(any_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_module, "LARGE_BYTES", 1000)
    other = Origin("other", str(uuid.uuid4()), 0.0)
    async with opened(any_database_url) as storage:
        await storage.write(batch(0, 9, chunk(0, 100), chunk(100, 100, other), chunk(200, 100)))
    assert await positions(any_database_url) == list(range(300))


# Where to.


async def test_the_original_form_of_a_url_works(database_url: str) -> None:
    async with opened(database_url.replace("postgresql://", "postgresql+asyncpg://")) as storage:
        await storage.write(batch(0, 9, chunk(0)))
    assert await positions(database_url) == [0]


async def test_a_wrong_password_is_not_repeated(database_url: str) -> None:
    user, _, rest = database_url.partition("@")
    wrong = f"{user.rpartition(':')[0]}:sesame@{rest}"
    with pytest.raises(StorageError, match="password authentication failed") as caught:
        await DatabaseWriter(wrong, retention_days=None, columnstore_after_hours=24).open()
    assert "sesame" not in str(caught.value)


async def test_a_password_that_breaks_the_url_is_not_repeated() -> None:
    storage = DatabaseWriter("postgresql://u:sesame/x@h:1/d", retention_days=None, columnstore_after_hours=24)
    with pytest.raises(StorageError, match="DATABASE_URL cannot be read") as caught:
        await storage.open()
    assert "sesame" not in str(caught.value)


async def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel takes the connection, nobody reads it
        url = f"postgresql://u:p@127.0.0.1:{server.getsockname()[1]}/d"
        with pytest.raises(StorageError, match="no answer in time"):
            await DatabaseWriter(url, retention_days=None, columnstore_after_hours=24).open()


# Once each.


async def test_a_batch_that_is_written_again_is_there_once(any_database_url: str) -> None:
    async with opened(any_database_url) as storage:
        first = batch(0, 9, SESSION, chunk(0, 10), PREDICTION)
        written = await storage.write(first)
        await storage.open()
        assert await storage.write(first) == written
        assert written.durable == {ORIGIN.session_id: 10}
        await storage.write(batch(9, 20, chunk(10)))
    assert await positions(any_database_url) == list(range(11))
    async with connected(any_database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM predictions") == 1


async def test_two_writers_do_not_mistake_each_others_batches(any_database_url: str) -> None:
    async with opened(any_database_url) as one, opened(any_database_url) as other:
        await one.write(batch(0, 9, chunk(0)))
        await other.write(batch(0, 9, chunk(1), writer_id=uuid.uuid4()))
    assert await positions(any_database_url) == [0, 1]


async def test_a_commit_whose_answer_is_lost_is_not_written_twice(any_database_url: str) -> None:
    async with Proxy(any_database_url).listening() as proxy, opened(proxy.url) as storage:
        proxy.loses_commits = True
        with pytest.raises(StorageError):
            await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
        assert proxy.n_lost == 1
        proxy.loses_commits = False
        await storage.open()
        assert await storage.position(WRITER_ID) == 9
        written = await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
        assert written.durable == {ORIGIN.session_id: 10}
        await storage.write(batch(9, 20, chunk(10, 10)))
        await storage.close()
    assert await positions(any_database_url) == list(range(20))


async def test_a_backend_that_is_still_committing_is_waited_for(database_url: str) -> None:
    async with opened(database_url) as storage, connected(database_url) as zombie:
        transaction = zombie.transaction()
        await transaction.start()
        await zombie.execute(CLAIM.format(writer_id=WRITER_ID, start=0, end=9))
        retry = asyncio.create_task(storage.write(batch(0, 9, chunk(0))))
        async with connected(database_url) as connection:
            await until_somebody_waits(connection)
        assert not retry.done()
        await transaction.commit()
        await retry
    assert await positions(database_url) == []


async def test_a_backend_that_never_commits_is_not_believed(database_url: str) -> None:
    async with opened(database_url) as storage, connected(database_url) as zombie:
        transaction = zombie.transaction()
        await transaction.start()
        await zombie.execute(CLAIM.format(writer_id=WRITER_ID, start=0, end=9))
        retry = asyncio.create_task(storage.write(batch(0, 9, chunk(0))))
        async with connected(database_url) as connection:
            await until_somebody_waits(connection)
        await transaction.rollback()
        await retry
    assert await positions(database_url) == [0]


async def test_a_write_that_is_cancelled_leaves_nothing_behind(database_url: str) -> None:
    async with opened(database_url) as storage, connected(database_url) as other:
        async with other.transaction():
            await other.execute("LOCK TABLE raw_eeg")
            task = asyncio.create_task(storage.write(batch(0, 9, chunk(0))))
            await until_somebody_waits(other)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await storage.open()
        assert await storage.position(WRITER_ID) == 0
        await storage.write(batch(0, 9, chunk(0)))
    assert await positions(database_url) == [0]


async def test_a_silent_network_is_given_up(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "COMMAND_SECONDS", 0.2)
    monkeypatch.setattr(writer_module, "PING_SECONDS", 0.2)
    async with Proxy(database_url).listening() as proxy, opened(proxy.url) as storage:
        proxy.silent = True
        with pytest.raises(StorageError, match="no answer in time"):
            await storage.write(batch(0, 9, chunk(0)))
        proxy.silent = False
        await storage.open()
        proxy.silent = True
        with pytest.raises(StorageError, match="no answer in time"):
            await storage.ping()
        proxy.silent = False
        await storage.open()
        await storage.write(batch(0, 9, chunk(0)))
    assert await positions(database_url) == [0]


async def test_a_closed_storage_says_so() -> None:
    storage = DatabaseWriter("postgresql://h/d", retention_days=None, columnstore_after_hours=24)
    await storage.close()
    for call in (storage.ping(), storage.write(batch(0, 9, chunk(0))), storage.position(WRITER_ID)):
        with pytest.raises(StorageError, match="closed"):
            await call


async def test_a_journal_nobody_knows_stands_at_its_beginning(any_database_url: str) -> None:
    async with opened(any_database_url) as storage:
        assert await storage.position(uuid.uuid4()) == 0
        await storage.write(batch(0, 9, chunk(0)))
        assert await storage.position(WRITER_ID) == 9


# What the database will not do now is no fault of the data.


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ALTER TABLE raw_eeg RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO raw_eeg"),
        ("CREATE ROLE {0}; SET ROLE {0}", "RESET ROLE; DROP ROLE {0}"),
        ("SET default_transaction_read_only = on", "SET default_transaction_read_only = off"),
    ],
    ids=["a table is missing", "permission revoked", "read-only"],
)
async def test_a_database_that_refuses_everything_leaves_no_dead_letters(
    database_url: str, before: str, after: str
) -> None:
    role = f"role_{uuid.uuid4().hex}"
    async with opened(database_url) as storage, connected(database_url) as connection:
        await storage._connection.execute(before.format(role))
        own = storage._connection
        with pytest.raises(StorageError):
            await storage.write(batch(0, 9, SESSION, chunk(0)))
        assert own.is_closed()
        if "ALTER" in after:
            await connection.execute(after)
        await storage.open()
        assert await storage.position(WRITER_ID) == 0
        await storage.write(batch(0, 9, SESSION, chunk(0)))
        assert await connection.fetchval("SELECT count(*) FROM dead_letters") == 0
        if "ROLE" in before:
            await connection.execute(f"DROP ROLE {role}")
    assert await positions(database_url) == [0]


def test_a_full_disk_is_no_refusal() -> None:
    assert not blames_data(asyncpg.exceptions.DiskFullError("no space"))
    assert blames_data(asyncpg.exceptions.DatetimeFieldOverflowError("out of range"))


# Outages.


@asynccontextmanager
async def recording(storage: DatabaseWriter, folder: Path) -> AsyncIterator[Recorder]:
    journals = Journals(folder, 1 << 30)
    writer = JournalWriter(journals, max_bytes=1 << 30, batch_records=50)
    recorder = Recorder(
        storage, journals, writer, max_seconds=0.05, linger_seconds=0.005, on_written=lambda written: None
    )
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        task.cancel()
        await asyncio.wait([task])
        await storage.close()
        journals.close()


def postgres(database_url: str) -> DatabaseWriter:
    return DatabaseWriter(database_url, retention_days=None, columnstore_after_hours=1e5)


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_database_that_restarts_loses_nothing_and_gets_nothing_twice(
    fragile: PostgresServer, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database_url = fragile.create_database()
    position = 0
    async with recording(postgres(database_url), tmp_path) as recorder:

        async def record(until_done: asyncio.Task[None]) -> None:
            nonlocal position
            while not until_done.done():
                recorder.writer.record_chunk(chunk(position, 10), 0)
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
    assert os.listdir(tmp_path) == []


async def test_a_backend_that_is_terminated_loses_nothing(database_url: str, tmp_path: Path) -> None:
    async with recording(postgres(database_url), tmp_path) as recorder:
        await until(lambda: recorder.online)
        async with connected(database_url) as connection:
            for position in range(0, 1000, 10):
                recorder.writer.record_chunk(chunk(position, 10), 0)
                if position % 200 == 0:
                    await connection.fetch(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE application_name = 'zander' AND datname = current_database()"
                    )
                await asyncio.sleep(0)
        assert await recorder.drain(20)
    assert await positions(database_url) == list(range(1000))


async def test_lost_answers_at_random_neither_lose_nor_repeat(any_database_url: str, tmp_path: Path) -> None:
    async with Proxy(any_database_url).listening() as proxy, recording(postgres(proxy.url), tmp_path) as recorder:
        await until(lambda: recorder.online)
        recorder.writer.record(SESSION)

        def is_answered(n_batches: int, n_lost: int) -> bool:
            return recorder.stats().written_batches > n_batches or proxy.n_lost > n_lost

        for position in range(0, 150, 10):
            proxy.loses_commits = position % 60 < 20
            recorder.writer.record_chunk(chunk(position, 10), 0)
            await until(partial(is_answered, recorder.stats().written_batches, proxy.n_lost))
        proxy.loses_commits = False
        assert await recorder.drain(20)
        assert proxy.n_lost >= 3
    assert await positions(any_database_url) == list(range(150))


async def test_an_outage_is_noticed_without_a_write(
    fragile: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with recording(postgres(fragile.create_database()), tmp_path) as recorder:
        await until(lambda: recorder.online)
        try:
            await asyncio.to_thread(fragile.stop)
            await until(lambda: not recorder.online)
        finally:
            fragile.start()
        await until(lambda: recorder.online)
    assert len([message for message in caplog.messages if "no hypertables" in message]) == 1


async def test_a_lock_that_somebody_holds_is_an_outage_and_what_waits_for_it_is_as_old_as_it_is(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(writer_module, "COMMAND_SECONDS", 1.0)
    async with recording(postgres(database_url), tmp_path) as recorder, connected(database_url) as other:
        await until(lambda: recorder.online)
        async with other.transaction():
            await other.execute("LOCK TABLE raw_eeg")
            began_s = monotonic()
            for position in range(0, 1000, 10):
                recorder.writer.record_chunk(chunk(position, 10), 0)
            latest_s = monotonic()
            await until(lambda: not recorder.online)
            assert monotonic() < began_s + 1.0, "only the timeout of the command told it"
            await until(lambda: recorder.stats().last_error)  # that came too: the batch is made smaller
            assert monotonic() - latest_s <= recorder.stats().oldest_pending_seconds <= monotonic() - began_s
        await until(lambda: recorder.stats().pending_records == 0)
        assert recorder.online
        assert (recorder.stats().oldest_pending_seconds, recorder.stats().dead_letters) == (0, 0)
    assert await positions(database_url) == list(range(1000))


# What cannot be done at once.

TOO_MANY = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
    IF (SELECT count(*) FROM new) > 100 THEN RAISE 'out of shared memory' USING ERRCODE = '53200'; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER refuse AFTER INSERT ON raw_eeg REFERENCING NEW TABLE AS new FOR EACH STATEMENT EXECUTE FUNCTION refuse()
"""
SLOW = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON raw_eeg FOR EACH ROW EXECUTE FUNCTION refuse()
"""
ONE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN IF NEW.position = 104 THEN RAISE 'by hand' USING ERRCODE = 'XX000'; END IF; RETURN NEW; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON raw_eeg FOR EACH ROW EXECUTE FUNCTION refuse()
"""


@pytest.fixture(params=[(TOO_MANY, 1000, []), (SLOW, 100, []), (ONE, 200, [104])], ids=["locks", "slow", "one"])
def cannot_be_done(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int, list[int]]:
    """A refusal as SQL, how many samples meet it, and the positions of those that no batch can write."""
    if request.param[0] == SLOW:
        monkeypatch.setattr(writer_module, "COMMAND_SECONDS", 0.3)
    found: tuple[str, int, list[int]] = request.param
    return found


async def test_a_batch_that_cannot_be_done_is_done_in_parts_and_what_fails_alone_is_dead_lettered(
    database_url: str, tmp_path: Path, cannot_be_done: tuple[str, int, list[int]]
) -> None:
    refusal, n_samples, refused = cannot_be_done
    async with opened(database_url), connected(database_url) as connection:
        await connection.execute(refusal)
    async with recording(postgres(database_url), tmp_path) as recorder:
        recorder.writer.record(SESSION)
        for position in range(0, n_samples, 2):
            recorder.writer.record_chunk(chunk(position, 2), 0)
        assert await recorder.drain(30)
        assert recorder.stats().dead_letters == len(refused)
    assert await positions(database_url) == [position for position in range(n_samples) if position not in refused]
    async with connected(database_url) as connection:
        rows = await connection.fetch("SELECT position FROM dead_letters")
        assert [row["position"] for row in rows] == refused


# Housekeeping.


async def test_rows_older_than_the_retention_are_deleted_from_plain_tables(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now_us = int(datetime.now(UTC).timestamp() * 1e6)
    old = Chunk(ORIGIN, 0, np.full(5, now_us - 3 * 86_400_000_000), np.zeros((5, 1), np.float32))
    new = Chunk(ORIGIN, 5, np.full(2, now_us), np.array([[5], [6]], np.float32))
    async with opened(database_url, retention_days=2) as storage:
        await storage.write(batch(0, 9, old, new, PREDICTION))
        await storage.ping()
        await until(lambda: any("6 rows" in message for message in caplog.messages))
        await storage.ping()  # the next hour
    assert await positions(database_url) == [5, 6]
    async with connected(database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM predictions") == 0


async def test_what_the_database_lacks_is_logged_once(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(database_url) as storage:
        await storage.open()
        await storage.open()
    assert caplog.messages == ["plain PostgreSQL: no hypertables or columnstore; retention by delete"]


async def test_a_server_that_is_not_there_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="ConnectionRefusedError"):
        await postgres("postgresql://u:p@127.0.0.1:1/d").open()
