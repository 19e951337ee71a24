"""Statements about the rows of `sessions` that a batch writes."""

END_SESSIONS = """
UPDATE sessions SET end_time = greatest(start_time, durable_time) WHERE writer_id = $1 AND end_time IS NULL
"""

# A start or an end, or both at once. A resumed session keeps its start and is open again.
UPSERT_SESSIONS = """
INSERT INTO sessions (session_id, user_id, start_time, end_time, device_info, fence, writer_id)
SELECT s, u, timestamptz 'epoch' + t0 * interval '1 us', timestamptz 'epoch' + t1 * interval '1 us', d, f, $7
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::jsonb[], $6::bigint[])
    AS given (s, u, t0, t1, d, f)
ON CONFLICT (session_id) DO UPDATE SET
    start_time = least(sessions.start_time, excluded.start_time),
    end_time = excluded.end_time,
    device_info = coalesce(excluded.device_info, sessions.device_info),
    fence = excluded.fence,
    writer_id = excluded.writer_id
WHERE sessions.fence <= excluded.fence AND sessions.user_id = excluded.user_id
RETURNING session_id::text
"""

# Takes the locks of the rows: a resume that raises the fence waits for our COMMIT, and then reads what it made durable.
# Tells where each session was before, under the same lock: what lies between that and the batch is lost.
ADVANCE = """
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[])
        AS given (session_id, fence, position, time_us)
), held AS (
    SELECT session_id, fence, durable_position FROM sessions
    WHERE session_id = ANY($1::uuid[]) ORDER BY session_id FOR NO KEY UPDATE
), reached AS (
    SELECT held.session_id, held.fence, held.durable_position,
        max(given.position) AS position, timestamptz 'epoch' + max(given.time_us) * interval '1 us' AS durable_time
    FROM held JOIN given ON given.session_id = held.session_id AND given.fence >= held.fence
    GROUP BY held.session_id, held.fence, held.durable_position
)
UPDATE sessions SET
    durable_position = greatest(sessions.durable_position, reached.position),
    durable_time = greatest(sessions.durable_time, reached.durable_time)
FROM reached WHERE sessions.session_id = reached.session_id
RETURNING sessions.session_id::text, reached.fence, reached.durable_position, sessions.durable_position
"""

# Writes the rows of sessions again that are gone. Where only they are gone, their samples say how far they were: a user
# has one session at a time, so the last sample before is of this one if any is.
RESTORE_SESSIONS = """
INSERT INTO sessions (session_id, user_id, start_time, fence, writer_id, durable_position, durable_time)
SELECT s, u, t, f, $5, coalesce(latest.position + 1, 0), latest.timestamp
FROM (
    SELECT s, u, timestamptz 'epoch' + us * interval '1 us', f
    FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[]) AS given (s, u, us, f)
) AS given (s, u, t, f)
LEFT JOIN LATERAL (
    SELECT session_id, position, timestamp FROM raw_eeg WHERE user_id = u AND timestamp <= t
    ORDER BY timestamp DESC, position DESC LIMIT 1
) AS latest ON latest.session_id = s
ON CONFLICT DO NOTHING
"""

KNOWN = "SELECT session_id::text, fence, durable_position FROM sessions WHERE session_id = ANY($1::uuid[])"

OWNERS = "SELECT session_id::text, user_id FROM sessions WHERE session_id = ANY($1::uuid[])"
