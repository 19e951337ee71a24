"""What is in the database of a round, as the checker takes it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from chaos.history import Stored

RAW = """
SELECT position, (extract(epoch FROM timestamp) * 1000000)::bigint AS time_us, channels
FROM raw_eeg WHERE session_id = $1 ORDER BY position
"""
FEATURES = "SELECT (data->'metrics'->>'n')::int FROM predictions WHERE session_id = $1"
MORE_THAN_ONCE = "SELECT session_id, position FROM raw_eeg GROUP BY session_id, position HAVING count(*) > 1 LIMIT 10"


async def read(connection: Any, session_ids: Collection[str]) -> dict[str, Stored]:
    """Read all there is of some sessions, as of one moment."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return {session_id: await _session(connection, session_id) for session_id in session_ids}


async def _session(connection: Any, session_id: str) -> Stored:
    row = await connection.fetchrow("SELECT user_id, durable_position FROM sessions WHERE session_id = $1", session_id)
    raw = await connection.fetch(RAW, session_id)
    gaps = await connection.fetch(
        "SELECT from_position, to_position, reason FROM gaps WHERE session_id = $1", session_id
    )
    dead = await connection.fetch("SELECT position FROM dead_letters WHERE session_id = $1", session_id)
    return Stored(
        row["user_id"] if row else None,
        row["durable_position"] if row else 0,
        np.array([sample["position"] for sample in raw], np.int64),
        np.array([sample["time_us"] for sample in raw], np.int64),
        [np.array(sample["channels"], np.float32) for sample in raw],
        [tuple(gap) for gap in gaps],
        [letter["position"] for letter in dead if letter["position"] is not None],
        [number for (number,) in await connection.fetch(FEATURES, session_id)],
    )


async def more_than_once(connection: Any) -> list[str]:
    """Look through everything for samples that are there twice, even after their round was judged."""
    found = await connection.fetch(MORE_THAN_ONCE)
    return [
        f"session {session_id}: position {position} is in the database more than once" for session_id, position in found
    ]
