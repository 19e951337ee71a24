"""Claim of a batch: the start of the transaction that writes it, which no other attempt can make too."""

from __future__ import annotations

from uuid import UUID

from zander.database.connection import Connection
from zander.database.rows import columns
from zander.errors import Moved
from zander.journal.batch import Batch, Lease, Watermark, Written

# The first statement, sent together with BEGIN: a round trip costs an iteration of a busy event loop, and several
# statements in one take no parameters. So numbers and a UUID are written into it. One row: the batch is ours to write.
# No row: it is written already, if only by ourselves before the answer to our COMMIT was lost. It takes the lock of the
# row, so it waits for an older backend that is still inside such a COMMIT; one that lost its client earlier never
# commits.
CLAIM = """
INSERT INTO writers (writer_id, position, written_at) VALUES ('{writer_id}', {end:d}, now())
ON CONFLICT (writer_id) DO UPDATE SET position = excluded.position, written_at = excluded.written_at
WHERE writers.position = {start:d}
"""

# Of a batch that is not its journal's first: without a row the database has gone back to before that.
CLAIM_NEXT = """
UPDATE writers SET position = {end:d}, written_at = now() WHERE writer_id = '{writer_id}' AND position = {start:d}
"""

# Of a batch whose write has failed: waits like the claim for an older backend, which may still commit. The row of a
# journal's first batch need not be there.
SETTLE = """
INSERT INTO writers (writer_id, position, written_at) VALUES ($1, 0, now())
ON CONFLICT (writer_id) DO UPDATE SET written_at = excluded.written_at
RETURNING position
"""
SETTLE_NEXT = "UPDATE writers SET written_at = now() WHERE writer_id = $1 RETURNING position"

# Whatever the role or the server is set to, a batch may take its time: no setting of theirs can end it again and again.
# Only a node that was frozen in the middle of one must not keep its locks. LOCAL, so that nothing is left behind on a
# connection to the server that others share.
LIMITS = """
SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '60s'
"""
NO_TRANSACTION_TIMEOUT = "; SET LOCAL transaction_timeout = 0"  # since PostgreSQL 17
# Of a record that failed before: what it is to blame for comes as an error, and the connection stays.
LIMITS_ALONE = "; SET LOCAL statement_timeout = '10s'; SET LOCAL lock_timeout = '5s'"

POSITION = "SELECT position FROM writers WHERE writer_id = $1"

# CLAIM and ADVANCE in one statement, with their locks and in their order. While the claim waits for an older backend,
# its snapshot ages: it misses a session inserted meanwhile, but of an updated one it checks the latest version, so no
# fence is overlooked. It did everything only if it counts every session of the batch: each stood where its rows begin.
# Else it has to be rolled back.
CLAIM_AND_ADVANCE = """
WITH claim AS ({claim} RETURNING 1)
UPDATE sessions SET
    durable_position = given.position,
    durable_time = greatest(sessions.durable_time, timestamptz 'epoch' + given.time_us * interval '1 us')
FROM (VALUES {given}) AS given (session_id, fence, start, position, time_us)
WHERE EXISTS (SELECT FROM claim) AND sessions.session_id = given.session_id
    AND sessions.fence <= given.fence AND sessions.durable_position = given.start
"""

DURABLE = """
SELECT sessions.session_id::text, given.fence, durable_position, sessions.fence > given.fence
FROM sessions JOIN unnest($1::uuid[], $2::bigint[]) AS given (session_id, fence)
    ON sessions.session_id = given.session_id
"""


async def outcome(connection: Connection, batch: Batch) -> Written | None:
    """Return what a batch made durable whose write failed; None when it is not committed, and never will be.

    Moved when the journal is committed up to another offset than the batch's start and end.
    """
    position = await connection.fetchval(SETTLE_NEXT if batch.start else SETTLE, batch.writer_id)
    return None if position == batch.start else await written_before(connection, batch, position)


async def written_before(connection: Connection, batch: Batch, position: int | None) -> Written:
    """Return what an earlier commit of this very batch made durable; Moved when the journal is at another offset."""
    if position != batch.end:
        raise Moved(position or 0)
    rows = await connection.fetch(DURABLE, *columns(list(batch.watermarks()), 2))
    durable = {session_id: durable for session_id, _, durable, is_fenced in rows if not is_fenced}
    return Written(durable, fenced={(session_id, fence) for session_id, fence, _, is_fenced in rows if is_fenced})


def _claim_of(batch: Batch) -> str:
    claim = CLAIM_NEXT if batch.start else CLAIM
    return claim.format(writer_id=batch.writer_id, start=batch.start, end=batch.end)


def _begin(connection: Connection) -> str:
    """Return the statements that begin a transaction without limits."""
    has_transaction_timeout = connection.get_server_version().major >= 17
    return f"{connection.begin}; {LIMITS}{NO_TRANSACTION_TIMEOUT if has_transaction_timeout else ''}"


async def claim(connection: Connection, batch: Batch, limits: str = "") -> bool:
    """Begin a transaction and claim the batch; False when the journal is committed up to another offset."""
    begin = f"{'ROLLBACK; ' if connection.is_in_transaction() else ''}{_begin(connection)}{limits}"
    return await connection.execute(f"{begin}; {_claim_of(batch)}") in {"INSERT 0 1", "UPDATE 1"}


async def claim_and_advance(connection: Connection, batch: Batch, reaches: dict[Lease, Watermark]) -> bool:
    """Begin a transaction, claim the batch and advance all its sessions, in one round trip instead of two.

    Most batches are nothing but rows of known sessions that follow those before, and each answer that a batch waits for
    costs an iteration of a busy event loop. A batch with sessions takes the other way: an UPDATE does not see rows that
    another part of its statement inserts. False when a session was not advanced; the open transaction has to be rolled
    back then.
    """
    given = ",".join(
        f"('{UUID(session_id)}'::uuid, {fence:d}, {reach.start:d}, {reach.end:d},"
        f" {'NULL' if reach.last_us is None else int(reach.last_us)}::bigint)"
        for (session_id, fence), reach in reaches.items()
    )
    statement = CLAIM_AND_ADVANCE.format(claim=_claim_of(batch), given=given)
    return bool(await connection.execute(f"{_begin(connection)}; {statement}") == f"UPDATE {len(reaches)}")
