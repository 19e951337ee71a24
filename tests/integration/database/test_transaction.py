"""What a transaction does to the tables: the fence, durable positions, gaps, the claim of a journal, dead letters."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import structs

from support.databases import connected, opened
from support.samples import ORIGIN, OTHER, PREDICTION, SESSION, T0_US, WRITER_ID, batch, chunk, gap
from zander.database import transaction as transaction_module
from zander.database.claim import CLAIM
from zander.database.sessions import RESUME
from zander.database.timescale import COMPRESS_COPIES
from zander.database.writer import DatabaseWriter
from zander.errors import Moved, StorageError
from zander.journal.batch import Batch, Written
from zander.journal.pgcopy import decode_rows
from zander.journal.records import PredictionRecord, Record, SessionRecord
from zander.wire.chunk import Chunk, Origin

T0 = datetime(2025, 11, 24, 16, 0, 0, 123457, tzinfo=UTC)
SESSION_ID = ORIGIN.session_id


async def positions(connection: Any, session_id: str = SESSION_ID) -> list[int]:
    rows = await connection.fetch("SELECT position FROM raw_eeg WHERE session_id = $1 ORDER BY 1", session_id)
    return [row[0] for row in rows]


async def session(connection: Any, what: str = "durable_position", session_id: str = SESSION_ID) -> Any:
    return await connection.fetchval(f"SELECT {what} FROM sessions WHERE session_id = $1", session_id)


async def stored_gaps(connection: Any) -> list[tuple[int, int, str]]:
    rows = await connection.fetch("SELECT from_position, to_position, reason FROM gaps ORDER BY session_id, 1")
    return [tuple(row) for row in rows]


async def resume(connection: Any, user_id: str = "user") -> int:
    """Raise the fence as a node does that a relay comes back to."""
    resumed = RESUME.replace("$3", "'2025-11-24'").replace("$4", "'{}'")
    row = await connection.fetchrow(resumed, uuid.UUID(SESSION_ID), user_id)
    return int(row["fence"])


def at(microseconds: int) -> datetime:
    return T0 + timedelta(microseconds=microseconds)


# How far a session is.


async def test_the_durable_position_moves_on_with_the_samples(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        written = await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
        assert written.durable == {SESSION_ID: 10}
        assert await session(connection) == 10
        assert await session(connection, "durable_time") == at(9 * 7812)
        written = await storage.write(batch(9, 20, chunk(10), chunk(11), chunk(0, 3, OTHER)))
        assert written.durable == {SESSION_ID: 12, OTHER.session_id: 3}
        assert await session(connection) == 12
        assert await session(connection, "durable_time") == at(11 * 7812)


async def test_a_batch_without_samples_tells_nobody_anything(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        assert (await storage.write(batch(0, 9, SESSION, PREDICTION))).durable == {}
        assert await session(connection) == 0
        assert await session(connection, "durable_time") is None


async def test_a_gap_is_durable_too_and_moves_no_time(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        written = await storage.write(batch(0, 9, SESSION, chunk(0, 3), gap(3, 7), chunk(7), gap(8, 12, "lost")))
        assert written.durable == {SESSION_ID: 12}
        assert await session(connection, "durable_time") == at(7 * 7812)
        written = await storage.write(batch(9, 20, gap(12, 15)))
        assert written.durable == {SESSION_ID: 15}
        assert await session(connection, "durable_time") == at(7 * 7812)
        assert await stored_gaps(connection) == [(3, 7, "relay"), (8, 12, "lost"), (12, 15, "relay")]


async def test_a_gap_that_is_told_twice_is_stored_once_at_its_longest(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, gap(0, 5), gap(0, 7)))
        await storage.write(batch(9, 20, gap(0, 6)))
        assert await stored_gaps(connection) == [(0, 7, "relay")]


async def test_a_durable_position_never_goes_back(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(90, 10)))
        assert (await storage.write(batch(9, 20, chunk(0, 10)))).durable == {SESSION_ID: 100}
        assert await session(connection, "durable_time") == at(99 * 7812)


async def test_what_one_user_records_in_the_session_of_another_is_kept_apart(any_database_url: str) -> None:
    """Somebody sent another's session_id before its row was there, to a node that could not know."""
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        assert await resume(connection, "thief") == 1
        written = await storage.write(batch(0, 9, SESSION, gap(0, 5), chunk(5, 10), PREDICTION))
        assert (written.durable, written.fenced, written.n_dead_letters) == ({}, {(SESSION_ID, 0)}, 2)
        written = await storage.write(batch(9, 20, chunk(15, 3)))
        assert (written.durable, written.fenced, written.n_dead_letters) == ({}, {(SESSION_ID, 0)}, 1)
        assert (await session(connection, "user_id"), await session(connection)) == ("thief", 0)
        assert await positions(connection) == []
        assert await stored_gaps(connection) == []
        letters = await connection.fetch("SELECT table_name, position, error, record FROM dead_letters ORDER BY 2")
        assert [(letter["table_name"], letter["position"]) for letter in letters] == [
            ("raw_eeg", 5),
            ("raw_eeg", 15),
            ("sessions", None),
        ]
        assert {letter["error"] for letter in letters} == {"of user user, but the session is of user thief"}
        kept = decode_rows(letters[0]["record"], 10)
        assert kept.samples[:, 0].tolist() == list(range(5, 15))
        assert await connection.fetchval("SELECT user_id FROM predictions") == "user"


async def test_a_session_never_changes_its_user(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 5)))
        other = structs.replace(SESSION, user_id="other", fence=7, device_info='{"mine": 1}')
        assert (await storage.write(batch(9, 20, other))).n_dead_letters == 1
        assert (await session(connection, "user_id"), await session(connection, "fence")) == ("user", 0)
        assert (await storage.write(batch(20, 30, chunk(5, 5)))).durable == {SESSION_ID: 10}


# The row of a session.


async def test_a_session_that_starts_and_ends_in_one_batch_has_both(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0), structs.replace(SESSION, end_us=T0_US + 5)))
        assert await session(connection, "(start_time, end_time)") == (T0, at(5))


async def test_an_end_is_added_to_a_session_and_taken_back_when_it_goes_on(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 1, SESSION))
        await storage.write(batch(1, 2, structs.replace(SESSION, end_us=T0_US + 5)))
        assert await session(connection, "(start_time, end_time)") == (T0, at(5))
        await storage.write(batch(2, 3, structs.replace(SESSION, start_us=T0_US + 9)))
        assert await session(connection, "(start_time, end_time)") == (T0, None)


async def test_a_session_that_somebody_resumed_is_not_ended_by_its_former_node(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 1, SESSION))
        assert await resume(connection) == 1
        await storage.write(batch(1, 2, structs.replace(SESSION, end_us=T0_US + 5)))
        assert await session(connection, "(end_time, fence)") == (None, 1)
        await storage.write(batch(2, 3, structs.replace(SESSION, end_us=T0_US + 7, fence=1)))
        assert await session(connection, "(end_time, fence)") == (at(7), 1)


async def test_the_end_of_a_session_and_its_resumption_may_be_in_one_batch(any_database_url: str) -> None:
    """As when a full journal turns a relay away, and it comes back at once."""
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 1, SESSION, chunk(0, 5)))
        assert await resume(connection) == 1
        again = batch(1, 2, chunk(5, 5), structs.replace(SESSION, end_us=T0_US + 5))
        for record in batch(1, 2, structs.replace(SESSION, fence=1), chunk(5, 3), fence=1).raw.values():
            again.raw[SESSION_ID, 1] = record
        again.add(structs.replace(SESSION, fence=1))
        written = await storage.write(again)
        assert written.durable == {SESSION_ID: 8}
        assert written.fenced == {(SESSION_ID, 0)}
        assert await positions(connection) == list(range(8))
        assert await session(connection, "(end_time, fence)") == (None, 1)


# The fence.


async def test_what_a_former_node_still_has_is_not_written(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
        fence = await resume(connection)
        zombie = batch(9, 20, chunk(10, 10), gap(20, 25), chunk(25), chunk(0, 3, OTHER), PREDICTION)
        written = await storage.write(zombie)
        assert written.fenced == {(SESSION_ID, 0)}
        assert written.durable == {OTHER.session_id: 3}
        assert await positions(connection) == list(range(10))
        assert await positions(connection, OTHER.session_id) == [0, 1, 2]  # its batch mates are
        assert await connection.fetchval("SELECT count(*) FROM predictions") == 1
        assert await stored_gaps(connection) == []
        assert await storage.position(WRITER_ID) == 20
        new = batch(0, 9, structs.replace(SESSION, fence=fence), chunk(10, 5), fence=fence, writer_id=uuid.uuid4())
        assert (await storage.write(new)).durable == {SESSION_ID: 15}
        assert await positions(connection) == list(range(15))


async def test_a_resumption_waits_for_a_write_that_is_under_way_and_sees_how_far_it_came(database_url: str) -> None:
    async with (
        opened(database_url) as storage,
        connected(database_url) as connection,
        connected(database_url) as other,
    ):
        await storage.write(batch(0, 9, SESSION))
        async with other.transaction():
            await other.execute("LOCK TABLE raw_eeg")
            writing = asyncio.create_task(storage.write(batch(9, 20, chunk(0, 10))))
            await _until_waiting(other, 1)
            resuming = asyncio.create_task(resume(connection))
            await _until_waiting(other, 2)
        assert (await writing).durable == {SESSION_ID: 10}
        assert await resuming == 1
        assert await session(connection) == 10


async def test_a_write_that_comes_after_a_resumption_finds_the_fence(database_url: str) -> None:
    async with (
        opened(database_url) as storage,
        connected(database_url) as connection,
        connected(database_url) as other,
    ):
        await storage.write(batch(0, 9, SESSION))
        transaction = other.transaction()
        await transaction.start()
        await resume(other)
        writing = asyncio.create_task(storage.write(batch(9, 20, chunk(0, 10))))
        await _until_waiting(connection, 1)
        await transaction.commit()
        assert (await writing).fenced == {(SESSION_ID, 0)}
        assert await positions(connection) == []


async def _until_waiting(connection: Any, n: int) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(5):
        while await connection.fetchval(waiting) < n:
            pass


async def test_somebody_elses_session_is_not_resumed(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION))
        with pytest.raises(TypeError):
            await resume(connection, "somebody")
        assert await session(connection, "fence") == 0


async def test_a_session_whose_row_was_deleted_gets_one_again_and_goes_on(
    any_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
        await connection.execute("DELETE FROM sessions")
        written = await storage.write(batch(9, 20, chunk(10, 5), gap(15, 17)))
        assert (written.durable, written.restored) == ({SESSION_ID: 17}, {SESSION_ID})
        assert written.fenced == set()
        assert await positions(connection) == list(range(15))
        assert await stored_gaps(connection) == [(15, 17, "relay")]  # the samples said how far it was
        assert await session(connection, "(user_id, start_time, fence, writer_id)") == ("user", at(78120), 0, WRITER_ID)
        assert caplog.messages[-1].endswith(f"{SESSION_ID}: its row was gone from the database and is written again")
        ended = structs.replace(SESSION, end_us=T0_US + 5, next_position=17)
        assert (await storage.write(batch(20, 30, ended))).durable == {SESSION_ID: 17}
        assert await session(connection, "(start_time, end_time)") == (T0, at(5))
        assert await session(connection, "device_info::text") == '{"sampling_rate": 128}'


async def test_a_session_that_is_gone_with_its_samples_is_lost_up_to_where_it_goes_on(
    any_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 10), chunk(0, 3, OTHER)))
        await connection.execute("TRUNCATE sessions, raw_eeg")
        written = await storage.write(batch(9, 20, chunk(10, 5), chunk(3, 2, OTHER)))
        assert written.durable == {SESSION_ID: 15, OTHER.session_id: 5}
        assert await positions(connection) == list(range(10, 15))
        assert await stored_gaps(connection) == [(0, 10, "lost"), (0, 3, "lost")]
        assert f"session {SESSION_ID}: its row was gone from the database and is written again: positions 0 to 9" in (
            caplog.text
        )
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 3  # one when it began
        assert (await storage.write(batch(20, 30, chunk(15)))).durable == {SESSION_ID: 16}


async def test_a_gap_of_a_session_that_is_gone_is_lost_with_what_was_before_it(any_database_url: str) -> None:
    """It does not say whose it is."""
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, PREDICTION))
        written = await storage.write(batch(9, 20, gap(10, 15)))
        assert (written.durable, written.restored) == ({}, {SESSION_ID})
        await storage.write(batch(20, 30, chunk(17, 3)))
        assert await session(connection) == 20
        assert await stored_gaps(connection) == [(0, 17, "lost")]


async def test_a_row_that_is_gone_while_somebody_begins_the_session_is_theirs(database_url: str) -> None:
    async with opened(database_url) as storage, connected(database_url) as other, connected(database_url) as connection:
        await storage.write(batch(0, 9, PREDICTION))
        transaction = other.transaction()
        await transaction.start()
        await resume(other)
        writing = asyncio.create_task(storage.write(batch(9, 20, chunk(0, 10))))
        await _until_waiting(connection, 1)
        await transaction.commit()
        assert (await writing).fenced == {(SESSION_ID, 0)}
        assert await positions(connection) == []


# What is in no record.


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


async def test_what_is_missing_before_a_batch_is_a_gap_and_said_once(
    any_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As after damage to the journal, or in a database that went back further than the journal reaches."""
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
        written = await storage.write(batch(9, 20, chunk(15, 5), gap(20, 22), chunk(22, 3)))
        assert written.durable == {SESSION_ID: 25}
        assert await positions(connection) == [*range(10), *range(15, 20), *range(22, 25)]
        assert await stored_gaps(connection) == [(10, 15, "lost"), (20, 22, "relay")]
        assert errors(caplog) == [f"session {SESSION_ID}: positions 10 to 14 (5 samples) are lost, stored as gaps"]
        await storage.write(batch(20, 30, chunk(25)))
        assert len(errors(caplog)) == 1


async def test_what_is_missing_within_a_batch_is_a_gap(any_database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        holes = [chunk(position, 2) for position in range(0, 20, 4)]
        await storage.write(batch(0, 9, SESSION, *holes, gap(20, 21), chunk(23)))
        assert await stored_gaps(connection) == [
            *((position, position + 2, "lost") for position in range(2, 20, 4)),
            (20, 21, "relay"),
            (21, 23, "lost"),
        ]
        assert errors(caplog) == [
            f"session {SESSION_ID}: positions 2 to 3, 6 to 7, 10 to 11 and 3 spans more (12 samples)"
            " are lost, stored as gaps"
        ]


async def test_what_is_missing_at_the_end_of_a_session_is_a_gap(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
        written = await storage.write(batch(9, 20, structs.replace(SESSION, end_us=T0_US + 5, next_position=14)))
        assert written.durable == {SESSION_ID: 14}
        assert await stored_gaps(connection) == [(10, 14, "lost")]


async def test_what_is_written_already_is_not_written_again(any_database_url: str) -> None:
    """As when a journal is read again, or what a former node has comes after what the relay sent again."""
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 10), gap(10, 14)))
        written = await storage.write(batch(9, 20, chunk(0, 4), chunk(4, 6), gap(10, 14), chunk(14, 2)))
        assert written.durable == {SESSION_ID: 16}
        again = batch(0, 9, chunk(8, 2), gap(10, 14), chunk(14, 6), writer_id=uuid.uuid4())
        assert (await storage.write(again)).durable == {SESSION_ID: 20}
        assert await positions(connection) == [*range(10), *range(14, 20)]
        assert await stored_gaps(connection) == [(10, 14, "relay")]


async def test_two_leases_of_a_session_in_one_batch_are_written_once_in_their_order(any_database_url: str) -> None:
    """As when the record of the second one's beginning is damaged, so that nothing has raised the fence."""
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION))
        both = batch(9, 20, chunk(0, 10))
        for records in batch(9, 20, chunk(6, 6), fence=1).raw.values():
            both.raw[SESSION_ID, 1] = records
        written = await storage.write(both)
        assert (written.durable, written.fenced) == ({SESSION_ID: 12}, set())
        assert await positions(connection) == list(range(12))


# The claim of a journal.


async def test_a_journal_that_others_moved_on_is_not_written(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0)))
        for start, end in ((0, 5), (0, 20), (5, 9 + 1), (20, 30)):
            with pytest.raises(Moved) as caught:
                await storage.write(batch(start, end, chunk(1)))
            assert caught.value.position == 9
            assert await session(connection) == 1
            await storage.open()
        assert await positions(connection) == [0]
        await storage.write(batch(9, 20, chunk(1)))
        assert await positions(connection) == [0, 1]


async def test_a_journal_that_the_database_forgot_is_read_again_and_written_once(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0)))
        await connection.execute("DELETE FROM writers")
        for what in ([chunk(1)], [PREDICTION], [SESSION, chunk(1)]):
            with pytest.raises(Moved) as caught:
                await storage.write(batch(9, 20, *what))
            assert caught.value.position == 0
        await storage.write(batch(0, 20, SESSION, chunk(0), chunk(1)))
        assert await positions(connection) == [0, 1]
        assert await storage.position(WRITER_ID) == 20


async def test_a_batch_written_before_tells_what_is_durable_unless_somebody_resumed(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        first = batch(0, 9, SESSION, chunk(0, 10))
        await storage.write(first)
        assert (await storage.write(first)).durable == {SESSION_ID: 10}
        await resume(connection)
        written = await storage.write(first)
        assert (written.durable, written.fenced) == ({}, {(SESSION_ID, 0)})
        assert await positions(connection) == list(range(10))


# While the claim waits, in one statement with what follows.


@asynccontextmanager
async def waiting(url: str, batch: Batch, claimed: str = "position") -> AsyncIterator[tuple[asyncio.Task[Any], Any]]:
    """Write a batch, which waits for somebody who has the row of its claim, until the end of the block."""
    async with opened(url) as storage, connected(url) as other, connected(url) as connection:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(f"UPDATE writers SET position = {claimed} WHERE writer_id = '{WRITER_ID}'")
        writing = asyncio.create_task(storage.write(batch))
        await _until_waiting(connection, 1)
        yield writing, connection
        assert not writing.done()
        await transaction.commit()
        await asyncio.wait([writing])


async def test_a_fence_that_is_raised_while_the_claim_waits_is_not_overlooked(database_url: str) -> None:
    other_session = structs.replace(SESSION, session_id=OTHER.session_id, user_id="other")
    async with opened(database_url) as storage, connected(database_url) as connection:
        await storage.write(batch(0, 9, SESSION, other_session, chunk(0, 10)))
        again = batch(9, 20, chunk(10, 10), gap(20, 25), chunk(0, 3, OTHER))
        async with waiting(database_url, again) as (writing, raiser):
            assert await resume(raiser) == 1
        assert writing.result().fenced == {(SESSION_ID, 0)}
        assert writing.result().durable == {OTHER.session_id: 3}
        assert await positions(connection) == list(range(10))
        assert await positions(connection, OTHER.session_id) == [0, 1, 2]
        assert await session(connection, "(durable_position, durable_time)") == (10, at(9 * 7812))
        assert await stored_gaps(connection) == []
        assert await storage.position(WRITER_ID) == 20


async def test_a_session_that_is_inserted_while_the_claim_waits_is_found(database_url: str) -> None:
    async with opened(database_url) as storage, connected(database_url) as connection:
        await storage.write(batch(0, 9, PREDICTION))
        async with waiting(database_url, batch(9, 20, chunk(0, 10))) as (writing, other):
            await other.execute(
                "INSERT INTO sessions (session_id, user_id, start_time) VALUES ($1, 'user', now())", SESSION_ID
            )
        assert (writing.result().durable, writing.result().fenced) == ({SESSION_ID: 10}, set())
        assert await session(connection) == 10
        assert await positions(connection) == list(range(10))


async def test_a_session_that_comes_further_while_the_claim_waits_does_not_go_back(database_url: str) -> None:
    async with opened(database_url) as storage, connected(database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 5)))
        async with waiting(database_url, batch(9, 20, chunk(5, 5))) as (writing, other):
            await other.execute("UPDATE sessions SET durable_position = 50")
        assert writing.result().durable == {SESSION_ID: 50}
        assert await session(connection) == 50
        assert await positions(connection) == list(range(5))  # the others are there already, says the row


async def test_a_session_that_is_deleted_while_the_claim_waits_gets_a_row_again(
    database_url: str,
) -> None:
    async with opened(database_url) as storage, connected(database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 5)))
        async with waiting(database_url, batch(9, 20, chunk(5, 5))) as (writing, other):
            await other.execute("DELETE FROM sessions")
        assert (writing.result().durable, writing.result().fenced) == ({SESSION_ID: 10}, set())
        assert await positions(connection) == list(range(10))
        assert await stored_gaps(connection) == []


@pytest.mark.parametrize(("claimed", "durable"), [("20", {SESSION_ID: 5}), ("15", None), ("30", None)])
async def test_a_claim_that_somebody_else_commits_while_it_waits_moves_nothing(
    database_url: str, claimed: str, durable: dict[str, int] | None
) -> None:
    """As an older backend inside the COMMIT whose answer was lost."""
    async with opened(database_url) as storage, connected(database_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 5)))
        async with waiting(database_url, batch(9, 20, chunk(5, 5)), claimed) as (writing, _):
            pass
        if durable is None:
            with pytest.raises(Moved):
                await writing
        else:
            assert (await writing).durable == durable
        assert await positions(connection) == list(range(5))
        assert await session(connection, "(durable_position, durable_time)") == (5, at(4 * 7812))
        assert await storage.position(WRITER_ID) == int(claimed)


# What a write costs: every answer that it waits for is a turn of a busy event loop.


@pytest.mark.parametrize(
    ("what", "n_statements"),
    [([chunk(10)], 2), ([chunk(10), gap(11, 12)], 3), ([SESSION, chunk(10)], 4), ([PREDICTION], 2)],
    ids=["samples", "with a gap", "with a session", "no samples"],
)
async def test_a_batch_takes_few_round_trips(
    any_database_url: str, what: list[Record | Chunk], n_statements: int
) -> None:
    """A COPY is one more, and not seen here."""
    async with opened(any_database_url) as storage:
        await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
        statements: list[str] = []
        with storage._connection.query_logger(lambda query: statements.append(query.query)):
            await storage.write(batch(9, 20, *what))
            await asyncio.sleep(0)
        assert len(statements) == n_statements
        assert (statements[0].partition(";")[0], statements[-1]) == ("BEGIN", "COMMIT")


# What the database refuses for itself.


async def dead_letters(connection: Any) -> list[tuple[Any, ...]]:
    rows = await connection.fetch(
        "SELECT table_name, session_id::text, position, error, record FROM dead_letters ORDER BY position"
    )
    return [tuple(row) for row in rows]


async def test_one_sample_that_is_refused_costs_only_itself(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await connection.execute("ALTER TABLE raw_eeg ADD CONSTRAINT by_hand CHECK (position <> 104)")
        mates = [chunk(position, 10) for position in range(0, 200, 10)]
        written = await storage.write(batch(0, 9, SESSION, *mates, chunk(0, 3, OTHER), gap(200, 205), PREDICTION))
        assert written.n_dead_letters == 1
        assert written.durable == {SESSION_ID: 205, OTHER.session_id: 3}
        assert await positions(connection) == [position for position in range(200) if position != 104]
        assert await positions(connection, OTHER.session_id) == [0, 1, 2]
        assert await stored_gaps(connection) == [(104, 105, "lost"), (200, 205, "relay")]
        assert await connection.fetchval("SELECT count(*) FROM predictions") == 1
        ((table, session_id, position, error, row),) = await dead_letters(connection)
        assert (table, session_id, position) == ("raw_eeg", SESSION_ID, 104)
        assert 'violates check constraint "by_hand"' in error
        assert decode_rows(row, 1).samples.tolist() == [[104.0, 0.0]]
        assert decode_rows(row, 1).times_us.tolist() == [T0_US + 104 * 7812]
        assert await storage.position(WRITER_ID) == 9
        await storage.write(batch(9, 20, chunk(205)))
        assert await session(connection) == 206


async def test_a_batch_with_poison_is_written_once_like_any_other(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await connection.execute("ALTER TABLE raw_eeg ADD CONSTRAINT by_hand CHECK (position <> 4)")
        first = batch(0, 9, SESSION, chunk(0, 10))
        await storage.write(first)
        assert (await storage.write(first)).durable == {SESSION_ID: 10}
        assert len(await dead_letters(connection)) == 1
        assert await positions(connection) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


async def test_many_refused_samples_are_dead_lettered_piece_by_piece(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await connection.execute("ALTER TABLE raw_eeg ADD CONSTRAINT by_hand CHECK (position % 2 = 0)")
        written = await storage.write(batch(0, 9, SESSION, *[chunk(position, 10) for position in range(0, 100, 10)]))
        assert written.n_dead_letters == 50
        assert await positions(connection) == list(range(0, 100, 2))
        assert [letter[2] for letter in await dead_letters(connection)] == list(range(1, 100, 2))


def prediction(**fields: Any) -> PredictionRecord:
    return structs.replace(PREDICTION, **fields)


def device(**fields: Any) -> SessionRecord:
    return structs.replace(SESSION, session_id=OTHER.session_id, **fields)


POISON: dict[str, tuple[str, Record | Chunk]] = {
    "a user too long": ("raw_eeg", chunk(0, origin=Origin("secret" * 20, OTHER.session_id, 0.0))),
    "U+0000 in JSON": ("predictions", prediction(data='{"secret": "\\u0000"}')),
    "no JSON": ("predictions", prediction(data="secret")),
    "a name too long": ("predictions", prediction(prediction_type="secret" * 20)),
    "a time out of range": ("predictions", prediction(time_us=-(1 << 62))),
    "a time beyond int64": ("predictions", prediction(time_us=-(1 << 63))),
    "a device that is no JSON": ("sessions", device(device_info="secret")),
    "a device with U+0000": ("sessions", device(device_info='{"secret": "\\u0000"}')),
}


@pytest.mark.parametrize("kind", POISON)
async def test_bad_data_is_dead_lettered_and_its_mates_are_kept(
    any_database_url: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    table, poison = POISON[kind]
    caplog.clear()
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        written = await storage.write(
            batch(0, 9, SESSION, chunk(0, 3), poison, PREDICTION, gap(3, 5), chunk(5), prediction(data="[]"))
        )
        assert written.n_dead_letters == 1
        assert written.durable[SESSION_ID] == 6
        assert await positions(connection) == [0, 1, 2, 5]
        assert await connection.fetchval("SELECT count(*) FROM predictions") == 2
        ((where, _, _, error, record),) = await dead_letters(connection)
        assert where == table
        assert error
        if table != "raw_eeg":
            assert "secret" in record.decode() or "time" in kind
    assert "secret" not in caplog.text


async def test_json_that_is_too_deep_is_dead_lettered(database_url: str) -> None:
    """Not on TimescaleDB: the stack of the one here is WebAssembly's, and ends with the server."""
    async with opened(database_url) as storage, connected(database_url) as connection:
        deep = prediction(data="[" * 100_000 + "]" * 100_000)
        written = await storage.write(batch(0, 9, SESSION, chunk(0, 3), deep, PREDICTION))
        assert written.n_dead_letters == 1
        assert await positions(connection) == [0, 1, 2]
        assert await connection.fetchval("SELECT count(*) FROM predictions") == 1


async def test_a_session_whose_device_is_refused_is_there_without_it(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        bad = structs.replace(SESSION, device_info='{"name": "\\u0000"}')
        written = await storage.write(batch(0, 9, bad, chunk(0, 10)))
        assert written.durable == {SESSION_ID: 10}
        assert await session(connection, "device_info::text") == "{}"
        ((table, session_id, position, _, record),) = await dead_letters(connection)
        assert (table, session_id, position) == ("sessions", SESSION_ID, None)
        assert json.loads(record) == ["s", SESSION_ID, "user", T0_US, None, '{"name": "\\u0000"}', 0, 0]


@pytest.mark.parametrize("fields", [{"user_id": "secret" * 20}, {"start_us": -(1 << 62)}])
async def test_a_session_that_is_refused_with_any_device_stops_nothing(
    any_database_url: str, fields: dict[str, Any]
) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        written = await storage.write(batch(0, 9, device(**fields), chunk(0, 3, OTHER), SESSION, chunk(0, 3)))
        assert written.n_dead_letters == 2  # with what it says of its device, and without
        assert written.durable == {SESSION_ID: 3, OTHER.session_id: 3}  # its samples say whose it is
        assert await positions(connection) == await positions(connection, OTHER.session_id) == [0, 1, 2]


# A record that failed by itself before.

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN IF {condition} THEN RAISE 'by hand' USING ERRCODE = '{sqlstate}'; END IF; RETURN NEW; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()
"""
OF_TABLES: dict[str, Record | Chunk] = {
    "raw_eeg": chunk(0, 10),
    "predictions": PREDICTION,
    "gaps": gap(0, 3),
    "sessions": SESSION,
}
SQLSTATES = ["53200", "53100", "XX000", "57014", "42501", "25006"]


@pytest.mark.parametrize("sqlstate", SQLSTATES)
async def test_a_record_that_is_refused_alone_is_dead_lettered_whatever_the_reason(
    any_database_url: str, sqlstate: str
) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        condition = f"NEW.session_id = '{SESSION_ID}' AND NEW.position = 4"
        await connection.execute(REFUSE.format(table="raw_eeg", condition=condition, sqlstate=sqlstate))
        with pytest.raises(StorageError, match="by hand"):
            await storage.write(batch(0, 9, SESSION, chunk(0, 10)))
        await storage.open()
        written = await storage.write(batch(0, 9, SESSION, chunk(0, 10)), is_alone=True)
        assert (written.n_dead_letters, written.durable) == (1, {SESSION_ID: 10})
        assert [letter[:4] for letter in await dead_letters(connection)] == [("raw_eeg", SESSION_ID, 4, "by hand")]
        assert await stored_gaps(connection) == [(4, 5, "lost")]
        assert await connection.fetchval("SELECT array_agg(position ORDER BY position) FROM raw_eeg") == [
            *range(4),
            *range(5, 10),
        ]  # nothing of the probe is left
        assert await connection.fetchval("SELECT count(*) FROM sessions") == 1


@pytest.mark.parametrize("sqlstate", ["53200", "25006", "23514"])
@pytest.mark.parametrize("table", OF_TABLES)
async def test_a_table_that_takes_nothing_is_waited_for_and_nothing_is_dead_lettered(
    database_url: str, table: str, sqlstate: str
) -> None:
    record = OF_TABLES[table]
    async with opened(database_url) as storage, connected(database_url) as connection:
        await storage.write(batch(0, 5) if table == "sessions" else batch(0, 5, SESSION))
        await connection.execute(REFUSE.format(table=table, condition="true", sqlstate=sqlstate))
        for is_alone in (False, True, True):
            with pytest.raises(StorageError):
                await storage.write(batch(5, 9, record), is_alone=is_alone)
            await storage.open()
        assert await dead_letters(connection) == []
        assert await storage.position(WRITER_ID) == 5
        await connection.execute(f"DROP TRIGGER refuse ON {table}")
        assert (await storage.write(batch(5, 9, record), is_alone=True)).n_dead_letters == 0
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == (10 if table == "raw_eeg" else 1)


async def test_a_locked_table_is_no_records_fault(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_module, "LIMITS_ALONE", "; SET LOCAL lock_timeout = '50ms'")
    async with opened(database_url) as storage, connected(database_url) as other:
        async with other.transaction():
            await other.execute("LOCK TABLE raw_eeg")
            with pytest.raises(StorageError, match="55P03"):
                await storage.write(batch(0, 9, SESSION, chunk(0)), is_alone=True)
        await storage.open()
        assert (await storage.write(batch(0, 9, SESSION, chunk(0)), is_alone=True)).durable == {SESSION_ID: 1}
        assert await dead_letters(other) == []


async def test_a_record_that_takes_too_long_by_itself_is_dead_lettered(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction_module, "LIMITS_ALONE", "; SET LOCAL statement_timeout = '500ms'")
    async with opened(database_url) as storage, connected(database_url) as connection:
        condition = "NEW.position = 4 AND pg_sleep(10) IS NOT NULL"
        await connection.execute(REFUSE.format(table="raw_eeg", condition=condition, sqlstate="XX000"))
        written = await storage.write(batch(0, 9, SESSION, chunk(0, 10)), is_alone=True)
        assert (written.n_dead_letters, written.durable) == (1, {SESSION_ID: 10})
        assert "statement timeout" in (await dead_letters(connection))[0][3]


# The outcome of a batch in doubt.


async def test_the_outcome_of_a_batch_says_what_it_made_durable_or_that_it_never_will(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        first, second = batch(0, 9, SESSION, chunk(0, 5)), batch(9, 20, chunk(5, 5), gap(10, 12))
        assert await storage.outcome(first) is None
        await storage.write(first)
        assert (await storage.outcome(first)) == Written({SESSION_ID: 5})
        assert await storage.outcome(second) is None
        await storage.write(second)
        assert (await storage.outcome(second)) == Written({SESSION_ID: 12})
        with pytest.raises(Moved) as caught:
            await storage.outcome(first)
        assert caught.value.position == 20
        await resume(connection)
        assert (await storage.outcome(second)) == Written({}, fenced={(SESSION_ID, 0)})


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("commits", [False, True])
async def test_the_outcome_is_not_told_while_a_backend_may_still_commit(
    database_url: str, is_known: bool, commits: bool
) -> None:
    async with opened(database_url) as storage, connected(database_url) as zombie, connected(database_url) as other:
        start = 9 if is_known else 0
        if is_known:
            await storage.write(batch(0, 9, SESSION))
        transaction = zombie.transaction()
        await transaction.start()
        await zombie.execute(CLAIM.format(writer_id=WRITER_ID, start=start, end=20))
        asked = asyncio.create_task(storage.outcome(batch(start, 20, chunk(0))))
        await _until_waiting(other, 1)
        await (transaction.commit() if commits else transaction.rollback())
        assert (await asked is not None) == commits


# Limits of the session.


async def test_no_limit_of_the_session_ends_a_batch_and_each_is_as_it_was_afterwards(database_url: str) -> None:
    async with opened(database_url) as storage, connected(database_url) as other:
        names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
        names += ["transaction_timeout"] if other.get_server_version().major >= 17 else []
        limited = storage._connection
        await limited.execute(";".join(f"SET {name} = '40ms'" for name in names))
        await storage.write(batch(0, 9, SESSION))
        each_way: list[Record | Chunk] = [SESSION, chunk(0)]  # to begin a transaction
        for number, what in enumerate(each_way, start=9):
            async with other.transaction():
                await other.execute("LOCK TABLE raw_eeg, sessions")
                writing = asyncio.create_task(storage.write(batch(number, number + 1, what, chunk(number))))
                await _until_waiting(other, 1)
                await other.execute("SELECT pg_sleep(0.1)")
            await writing
        assert storage._connection is limited
        assert [await limited.fetchval(f"SHOW {name}") for name in names] == ["40ms"] * len(names)


async def test_what_is_fenced_is_not_dead_lettered(any_database_url: str) -> None:
    async with opened(any_database_url) as storage, connected(any_database_url) as connection:
        await storage.write(batch(0, 9, SESSION))
        await resume(connection)
        await connection.execute("ALTER TABLE raw_eeg ADD CONSTRAINT by_hand CHECK (position <> 4)")
        written = await storage.write(batch(9, 20, chunk(0, 10), chunk(0, 10, OTHER)))
        assert written.fenced == {(SESSION_ID, 0)}
        assert [(letter[1], letter[2]) for letter in await dead_letters(connection)] == [(OTHER.session_id, 4)]
        assert await positions(connection) == []


async def test_poison_in_columns_of_timescaledb_is_dead_lettered_too(timescale_url: str) -> None:
    """A chunk of the hypertable that is compressed already takes part in the savepoints."""
    async with opened(timescale_url) as storage, connected(timescale_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 100)))
        await connection.execute("SELECT compress_chunk(c) FROM show_chunks('raw_eeg') AS c")
        bad = structs.replace(PREDICTION, data="secret")
        user_too_long = Origin("u" * 101, OTHER.session_id, 0.0)
        written = await storage.write(batch(9, 20, chunk(100, 100), chunk(0, 1, user_too_long), bad, PREDICTION))
        assert written.n_dead_letters == 2
        assert await positions(connection) == list(range(200))
        assert isinstance(storage, DatabaseWriter)
        assert len(await dead_letters(connection)) == 2


# Into columns at once.

COLUMNS = """
SELECT count(*) FILTER (WHERE is_compressed), count(*) FROM timescaledb_information.chunks
WHERE hypertable_schema = current_schema() AND hypertable_name = 'raw_eeg'
"""


async def test_a_large_batch_of_few_sessions_goes_into_columns(timescale_url: str) -> None:
    async with opened(timescale_url) as storage, connected(timescale_url) as connection:
        if not storage._tuning or not storage._tuning.compresses_copies:
            pytest.skip(f"this TimescaleDB has no {COMPRESS_COPIES}")
        written = await storage.write(batch(0, 9, SESSION, chunk(0, 20_000)))
        assert written.durable == {SESSION_ID: 20_000}
        n_columns, n_chunks = await connection.fetchrow(COLUMNS)
        assert n_columns == n_chunks == 1
        assert await positions(connection) == list(range(20_000))
        assert await connection.fetchval(f"SHOW {COMPRESS_COPIES}") == "off"
        await storage.write(batch(9, 20, chunk(20_000, 10)))  # the next one need not be large
        assert await positions(connection) == list(range(20_010))


async def test_a_large_batch_of_many_sessions_and_a_small_one_stay_rows(timescale_url: str) -> None:
    others = [Origin("other", str(uuid.uuid4()), 0.0) for _ in range(20)]
    async with opened(timescale_url) as storage, connected(timescale_url) as connection:
        await storage.write(batch(0, 9, SESSION, chunk(0, 999)))
        await storage.write(batch(9, 20, *(chunk(0, 999, other) for other in others)))
        assert (await connection.fetchrow(COLUMNS))[0] == 0
