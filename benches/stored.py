"""What the database holds of a run, against what was sent."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import NamedTuple

import asyncpg

QUIET_S = 10.0  # without a new row, after which what is missing is lost


class Tables(NamedTuple):
    """Where a service has what it was sent; `samples` gives the first two channels, and the position it gave them."""

    sessions: str
    samples: str
    predictions: str


ZANDER = Tables(
    sessions="sessions",
    samples="SELECT session_id, position, channels[1] AS index, channels[2] AS relay FROM raw_eeg",
    predictions="predictions",
)
BASELINE = Tables(  # counts no positions: that every index is there once, and no other, is all that can be asked of it
    sessions="baseline.sessions",
    samples="""
        SELECT session_id, index AS position, index, relay FROM baseline.raw_samples,
        LATERAL (SELECT (data #>> '{channels,0}')::float8 AS index, (data #>> '{channels,1}')::float8 AS relay) AS _
    """,
    predictions="baseline.predictions",
)

N_ROWS = """
SELECT (SELECT count(*) FROM ({samples}) AS r WHERE session_id = ANY ($1::uuid[]))
     + (SELECT count(*) FROM {predictions} WHERE session_id = ANY ($1::uuid[]))
"""
RAW = """
SELECT s.user_id, count(*) AS n, count(DISTINCT r.position) AS n_positions,
       min(r.position) AS first, max(r.position) AS last, bool_and(r.index = r.position) AS in_place,
       min(r.relay) AS least_relay, max(r.relay) AS greatest_relay
FROM {sessions} s JOIN ({samples}) AS r USING (session_id) WHERE s.session_id = ANY ($1::uuid[]) GROUP BY 1
"""
FEATURES = """
SELECT count(DISTINCT (session_id, data -> 'metrics' -> 'n')) FROM {predictions}
WHERE session_id = ANY ($1::uuid[]) AND prediction_type = 'workload_edge'
"""


async def lost_rows(dsn: str, tables: Tables, sessions: list[str], n_samples: int, n_features: int) -> int:
    """Wait until all is written, and count the samples and features that are not there exactly once."""
    n_rows_of, raw_of, features_of = (query.format(**tables._asdict()) for query in (N_ROWS, RAW, FEATURES))
    connection = await asyncpg.connect(dsn)
    try:
        n_rows = await _settled(connection, n_rows_of, sessions, len(sessions) * (n_samples + n_features))
        rows = await connection.fetch(raw_of, sessions)
        n_found: int = await connection.fetchval(features_of, sessions)
    finally:
        await connection.close()
    n_raw: int = sum(row["n"] for row in rows)
    lost: int = sum(max(1, abs(n_samples - row["n"])) for row in rows if not _is_whole(row, n_samples))
    lost += (len(sessions) - len(rows)) * n_samples
    return lost + abs(len(sessions) * n_features - n_found) + (n_rows - n_raw - n_found)


async def _settled(connection: asyncpg.Connection, n_rows_of: str, sessions: list[str], expected: int) -> int:
    n, changed = -1, monotonic()
    while n < expected and monotonic() - changed < QUIET_S:
        before, n = n, await connection.fetchval(n_rows_of, sessions)
        if n != before:
            changed = monotonic()
        if n < expected:
            await asyncio.sleep(0.2)
    return n


def _is_whole(row: asyncpg.Record, n_samples: int) -> bool:
    relay = row["least_relay"]
    is_own = relay == row["greatest_relay"] and (relay is None or row["user_id"] == f"bench-{int(relay):04}")
    counts = (row["n"], row["n_positions"], row["first"], row["last"])
    return bool(counts == (n_samples, n_samples, 0, n_samples - 1) and row["in_place"] and is_own)
