"""The one transaction that writes a batch: rows, the sessions' durable positions and the journal's, all or nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from time import time
from typing import NamedTuple, TypeVar

import asyncpg
from msgspec import json, structs

from zander.database.claim import LIMITS_ALONE, POSITION, claim, claim_and_advance, written_before
from zander.database.connection import FAILURES, Connection, blames_data
from zander.database.probe import probe
from zander.database.rows import columns
from zander.database.session_statements import ADVANCE, KNOWN, OWNERS, RESTORE_SESSIONS, UPSERT_SESSIONS
from zander.errors import StorageError
from zander.journal.batch import Batch, Lease, Watermark, Written, settle
from zander.journal.pgcopy import COPY_END, COPY_HEAD, RAW_COLUMNS, first_of_rows, first_us, rows_user
from zander.journal.records import GapRecord, PredictionRecord, RawRecord, Record, SessionRecord, halves

LARGE_BYTES = 1 << 20  # joined in 0.5 ms; then other tasks of the event loop run
MOST_NAMED = 3  # spans in one line of the log

log = logging.getLogger(__name__)

# A large batch with many samples of each session is a backlog or an import: its rows go into columns at once, with a
# fifth of the bytes in the log of the server, and no conversion later. Few samples of many sessions would be as many
# small pieces, which are slow to read until they are joined: 0.1 s of 1,000 relays, 4.9 ms for the newest 5 of a user
# instead of 0.24.
COMPRESS_COPY = "SET LOCAL timescaledb.enable_direct_compress_copy = on"
COMPRESSED_SAMPLES = 1000  # of each session, on average; columns are divided into pieces of so many

LOCKED = ("55P03", "40")  # lock_not_available; deadlocks, and what else is due to other transactions: no record's fault

INSERT_GAPS = """
INSERT INTO gaps (session_id, from_position, to_position, reason, noticed_at)
SELECT s, f, t, r, timestamptz 'epoch' + at * interval '1 us'
FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[]) AS given (s, f, t, r, at)
ON CONFLICT (session_id, from_position) DO UPDATE SET to_position = greatest(gaps.to_position, excluded.to_position)
"""

INSERT_DEAD_LETTER = """
INSERT INTO dead_letters (table_name, session_id, position, error, record) VALUES ($1, $2, $3, $4, $5)
"""

PREDICTION_COLUMNS = (
    "session_id",
    "timestamp",
    "user_id",
    "prediction_type",
    "classifier_name",
    "data",
    "confidence",
    "classifier_version",
)

T = TypeVar("T")
R = TypeVar("R", SessionRecord, RawRecord, GapRecord, PredictionRecord)


class _Row(NamedTuple):
    """The row of a session, before this batch."""

    fence: int
    durable: int


async def write(
    connection: Connection,
    batch: Batch,
    late_us: int | None = None,
    *,
    is_alone: bool = False,
    compresses_copies: bool = False,
) -> Written:
    """Write a batch once; Moved when the journal is committed up to another offset than the batch starts from.

    When the database refuses a record for itself, the batch is written again with a savepoint before each step: what it
    refuses goes to `dead_letters`, the rest to its table, provided that it takes others. `is_alone`: so is what it
    refuses for any other reason, for instance want of memory. Rows from before `late_us` are written as late ones.
    """
    if is_alone:
        return await _Transaction(connection, batch, late_us, careful=True, is_alone=True).run()
    try:
        return await _Transaction(connection, batch, late_us, compresses_copies=compresses_copies).run()
    except (asyncpg.PostgresError, ValueError, OverflowError) as error:
        if not blames_data(error) or connection.is_closed():
            raise
        await connection.execute("ROLLBACK")
        return await _Transaction(connection, batch, late_us, careful=True).run()


class _Transaction:
    """One attempt. `careful`: a savepoint before each step, and what is refused is halved until it stands alone.

    `is_alone`: whatever the reason. `compresses_copies`: the server can turn rows into columns on their way in.
    """

    def __init__(
        self,
        connection: Connection,
        batch: Batch,
        late_us: int | None,
        *,
        careful: bool = False,
        is_alone: bool = False,
        compresses_copies: bool = False,
    ) -> None:
        self._connection = connection
        self._batch = batch
        self._late_us = late_us
        self._careful = careful
        self._is_alone = is_alone
        self._compresses_copies = compresses_copies
        self._takes: dict[str, bool] = {}  # by table: whether the database takes anything
        self._written = Written()
        self._lost: dict[str, list[tuple[int, int]]] = {}  # by session, positions that were in no record

    async def run(self) -> Written:
        """Write the batch and commit; without a claim on it, return what an earlier attempt wrote."""
        batch, connection = self._batch, self._connection
        reaches = batch.watermarks()
        has_only_rows = reaches and not batch.sessions and all(reach.is_whole for reach in reaches.values())
        raw = [record for records in batch.raw.values() for record in records]
        gaps = batch.gaps
        if has_only_rows and not self._careful and await claim_and_advance(connection, batch, reaches):
            self._written.durable = {session_id: reach.end for (session_id, _), reach in reaches.items()}
        else:
            if not await claim(connection, batch, LIMITS_ALONE if self._is_alone else ""):
                position = await connection.fetchval(POSITION, batch.writer_id)
                await connection.execute("ROLLBACK")
                return await written_before(connection, batch, position)
            await self._each("sessions", list(batch.sessions.values()), self._upsert_sessions)
            if reaches:
                raw, gaps = await self._settled(reaches)
        await self._write_rows(raw, gaps)
        try:
            if await connection.execute("COMMIT") != "COMMIT":
                raise StorageError("the transaction was rolled back")
        finally:  # without an answer too: if it is committed, nobody finds out any more
            self._say_what_is_lost()
        return self._written

    async def _write_rows(self, raw: list[RawRecord], gaps: list[GapRecord]) -> None:
        """Write samples, gaps and the batch's predictions."""
        late, raw = self._divided(raw, lambda record: first_us(record.rows))
        late_predictions, predictions = self._divided(self._batch.predictions, lambda record: record.time_us)
        self._written.has_late_rows = bool(late or late_predictions)
        await self._each("raw_eeg", late, partial(self._copy_raw, table="late_raw_eeg"))
        await self._each("raw_eeg", raw, self._copy_raw)
        await self._each("gaps", gaps, self._insert_gaps)
        await self._each("predictions", late_predictions, partial(self._copy_predictions, table="late_predictions"))
        await self._each("predictions", predictions, self._copy_predictions)

    def _divided(self, records: list[R], time_us: Callable[[R], int]) -> tuple[list[R], list[R]]:
        """Divide records into late ones and the others; one that begins late is late as a whole."""
        if (late_us := self._late_us) is None:
            return [], records
        late = [record for record in records if time_us(record) < late_us]
        return late, [record for record in records if time_us(record) >= late_us] if late else records

    def _say_what_is_lost(self) -> None:
        restored = self._written.restored
        for session_id in sorted(restored | self._lost.keys()):
            gone = ": its row was gone from the database and is written again" if session_id in restored else ""
            spans = self._lost.get(session_id)
            lost = f": {_spans(spans)} are lost, stored as gaps" if spans else ""
            log.error("session %s%s%s", session_id, gone, lost)

    async def _settled(self, reaches: dict[Lease, Watermark]) -> tuple[list[RawRecord], list[GapRecord]]:
        """Advance the durable positions; return the samples and gaps to write.

        Without those of sessions whose fence was raised, and of what is written already; with a gap for what is lost.
        """
        held = await self._advance(reaches)
        raw: list[RawRecord] = []
        gaps: list[GapRecord] = []
        dropped: list[RawRecord] = []
        leases: dict[str, list[Lease]] = {}
        for lease in sorted(reaches):
            leases.setdefault(lease[0], []).append(lease)
        records = self._batch.leases()
        for session_id, mine in leases.items():
            if (row := held.get(session_id)) is None:  # its gaps are lost to whatever comes next
                raw += [record for lease in mine for record in self._batch.raw.get(lease, ())]
                continue
            fenced = {lease for lease in mine if lease[1] < row.fence}
            self._written.fenced |= fenced
            dropped += [record for lease in fenced for record in self._batch.raw.get(lease, ())]
            found = settle((one for lease in mine if lease[1] >= row.fence for one in records[lease]), row.durable)
            raw += found.raw
            gaps += found.gaps
            if found.lost:
                self._lost[session_id] = found.lost
                now_us = int(time() * 1e6)
                gaps += [GapRecord(session_id, row.fence, start, end, "lost", now_us) for start, end in found.lost]
        await self._refuse_others(dropped)
        return raw, gaps

    async def _refuse_others(self, dropped: list[RawRecord]) -> None:
        """Dead-letter the samples of users whose session it is not, of those that a greater fence drops."""
        owners = await self._owners([record.session_id for record in dropped]) if dropped else {}
        for record in dropped:
            if (user_id := rows_user(record.rows)) != (owner := owners[record.session_id]):
                await self._refuse("raw_eeg", record, user_id, owner)

    async def _advance(self, reaches: dict[Lease, Watermark]) -> dict[str, _Row]:
        """Advance the durable positions; return the rows as they were before.

        What is fenced off is as it stays. A row that is gone is written again, unless nothing says whose it was.
        """
        held: dict[str, _Row] = {}
        others = {session_id for session_id, _ in reaches}
        for is_last in (False, True):
            rows = [(*lease, reach.end, reach.last_us) for lease, reach in reaches.items() if lease[0] in others]
            for session_id, fence, before, durable in await self._connection.fetch(ADVANCE, *columns(rows, 4)):
                held[session_id] = _Row(fence, before)
                self._written.durable[session_id] = durable
            if not (others := others - held.keys()):
                break
            known = {row[0]: _Row(*row[1:]) for row in await self._connection.fetch(KNOWN, list(others))}
            if any(lease[1] >= known[lease[0]].fence for lease in reaches if lease[0] in known):
                raise StorageError("another node began one of the sessions just now")
            held |= known
            if not is_last and (others := others - known.keys()):
                await self._restore(others)
        return held

    async def _restore(self, session_ids: set[str]) -> None:
        """Write the rows of sessions again, with what their samples say of them."""
        self._written.restored |= session_ids
        firsts: dict[str, tuple[str, str, int, int]] = {}
        for (session_id, fence), records in sorted(self._batch.raw.items()):
            if session_id in session_ids:
                firsts[session_id] = (session_id, *first_of_rows(records[0].rows), fence)

        async def restore(rows: list[tuple[str, str, int, int]]) -> None:
            await self._connection.execute(RESTORE_SESSIONS, *columns(rows, 4), self._batch.writer_id)

        if firsts and not self._careful:
            await restore(list(firsts.values()))
        for row in firsts.values() if self._careful else ():
            await self._try(restore, [row])  # what is refused of it is refused of its samples too

    async def _each(self, table: str, records: list[R], write: Callable[[list[R]], Awaitable[None]]) -> None:
        """Write records; when careful, dead-letter those that the database refuses for themselves."""
        if not records:
            return
        if not self._careful:
            await write(records)
            return
        if error := await self._try(write, records):
            if parts := halves(records):
                for half in parts:
                    await self._each(table, half, write)
            elif await self._takes_others(table, records[0], write):
                await self._dead_letter(table, records[0], error)
            else:
                raise error

    async def _try(self, write: Callable[[list[T]], Awaitable[None]], records: list[T]) -> Exception | None:
        """Write records; return the error with which the database refuses them for themselves, with nothing written."""
        await self._connection.execute("SAVEPOINT before")
        try:
            await write(records)
            await self._connection.execute("RELEASE SAVEPOINT before")
        except Exception as error:
            if not self._may_be_to_blame(error):
                raise
            await self._connection.execute("ROLLBACK TO SAVEPOINT before; RELEASE SAVEPOINT before")
            return error
        return None

    def _may_be_to_blame(self, error: Exception) -> bool:
        """Return whether the error may be due to what was written; else the whole batch is tried again later."""
        if self._connection.is_closed():
            return False
        if not self._is_alone or blames_data(error):
            return blames_data(error)
        if isinstance(error, asyncpg.PostgresError):
            return not (error.sqlstate or "").startswith(LOCKED)
        return not isinstance(error, FAILURES)

    async def _takes_others(self, table: str, record: R, write: Callable[[list[R]], Awaitable[None]]) -> bool:
        """Return whether the database takes records that nothing is wrong with; they are taken back."""
        if table not in self._takes:
            await self._connection.execute("SAVEPOINT before")
            try:
                await write(probe(record))
            except asyncpg.PostgresError:
                if self._connection.is_closed():
                    raise
                self._takes[table] = False
            else:
                self._takes[table] = True
            await self._connection.execute("ROLLBACK TO SAVEPOINT before; RELEASE SAVEPOINT before")
        return self._takes[table]

    async def _dead_letter(self, table: str, record: Record, error: Exception) -> None:
        """Keep a refused record with its error; a sample leaves a gap, a session is written without `device_info`."""
        position = record.position if isinstance(record, RawRecord) else None
        data = record.rows if isinstance(record, RawRecord) else json.encode(record)
        await self._connection.execute(INSERT_DEAD_LETTER, table, record.session_id, position, str(error), data)
        self._written.n_dead_letters += 1
        if isinstance(record, RawRecord):
            gap = (record.session_id, record.fence, record.position, record.end, "lost", int(time() * 1e6))
            await self._insert_gaps([GapRecord(*gap)])
        if isinstance(record, SessionRecord) and record.device_info != "{}":  # to blame; the samples need the row
            await self._each("sessions", [structs.replace(record, device_info="{}")], self._upsert_sessions)

    async def _upsert_sessions(self, records: list[SessionRecord]) -> None:
        rows = [(r.session_id, r.user_id, r.start_us, r.end_us, r.device_info, r.fence) for r in records]
        found = await self._connection.fetch(UPSERT_SESSIONS, *columns(rows, 6), self._batch.writer_id)
        if len(found) < len(records):  # else none has a greater fence, or is another user's
            left = {r.session_id: r for r in records} | dict.fromkeys((row[0] for row in found), None)
            owners = await self._owners([session_id for session_id, record in left.items() if record])
            for session_id, user_id in owners.items():
                if (record := left[session_id]) and record.user_id != user_id:
                    await self._refuse("sessions", record, record.user_id, user_id)

    async def _owners(self, session_ids: list[str]) -> dict[str, str]:
        """Return whose sessions those are that are known."""
        return dict(await self._connection.fetch(OWNERS, session_ids))

    async def _refuse(self, table: str, record: SessionRecord | RawRecord, user_id: str, owner: str) -> None:
        """Dead-letter what one user recorded in another's session, who had its row first; it is no gap of that."""
        position = record.position if isinstance(record, RawRecord) else None
        data = record.rows if isinstance(record, RawRecord) else json.encode(record)
        error = f"of user {user_id}, but the session is of user {owner}"
        await self._connection.execute(INSERT_DEAD_LETTER, table, record.session_id, position, error, data)
        self._written.n_dead_letters += 1

    async def _copy_raw(self, records: list[RawRecord], table: str = "raw_eeg") -> None:
        source: bytearray | AsyncIterator[bytes]
        if sum(len(record.rows) for record in records) > LARGE_BYTES:
            if self._compresses_copies and _has_long_sessions(records):
                await self._connection.execute(COMPRESS_COPY)
            source = _pieces(records)
        else:
            # In one piece: before each of several asyncpg waits until the one before it is sent, an iteration or more
            # of a busy event loop. Not bytes, which it would take for the name of a file.
            source = bytearray().join([COPY_HEAD, *(record.rows for record in records), COPY_END])
        await self._connection.copy_to_table(table, source=source, format="binary", columns=RAW_COLUMNS)

    async def _insert_gaps(self, records: list[GapRecord]) -> None:
        rows = {(r.session_id, r.start): (r.session_id, r.start, r.end, r.reason, r.time_us) for r in records}
        await self._connection.execute(INSERT_GAPS, *columns(list(rows.values()), 5))

    async def _copy_predictions(self, records: list[PredictionRecord], table: str = "predictions") -> None:
        rows = [structs.astuple(record) for record in records]
        await self._connection.copy_records_to_table(table, records=rows, columns=PREDICTION_COLUMNS)


def _spans(lost: list[tuple[int, int]]) -> str:
    """Say which positions these are, and how many."""
    spans = ", ".join(f"{start} to {end - 1}" for start, end in lost[:MOST_NAMED])
    more = f" and {len(lost) - MOST_NAMED} spans more" if len(lost) > MOST_NAMED else ""
    return f"positions {spans}{more} ({sum(end - start for start, end in lost)} samples)"


async def _pieces(records: list[RawRecord]) -> AsyncIterator[bytes]:
    """Yield the rows of records in pieces of LARGE_BYTES, each joined while the server takes the one before."""
    piece, n_bytes = [COPY_HEAD], 0
    for record in records:
        piece.append(record.rows)
        n_bytes += len(record.rows)
        if n_bytes >= LARGE_BYTES:
            yield b"".join(piece)
            piece, n_bytes = [], 0
            await asyncio.sleep(0)
    yield b"".join([*piece, COPY_END])


def _has_long_sessions(records: list[RawRecord]) -> bool:
    n_samples = sum(record.end - record.position for record in records)
    return n_samples >= COMPRESSED_SAMPLES * len({record.session_id for record in records})
