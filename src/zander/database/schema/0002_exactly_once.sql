-- What makes a sample reach `raw_eeg` exactly once, and a session say what it lacks.

ALTER TABLE sessions
    ADD COLUMN durable_position bigint NOT NULL DEFAULT 0,  -- every sample below it is in raw_eeg, or in gaps
    ADD COLUMN durable_time     timestamptz,                -- of the last sample below it
    ADD COLUMN fence            bigint NOT NULL DEFAULT 0,  -- raised when a relay resumes: lower ones write no more
    ADD COLUMN writer_id        uuid;                       -- the journal that it comes through, as in writers

ALTER TABLE sessions SET (fillfactor = 50);  -- updated with every batch: room for it in the page, so no index changes

UPDATE sessions SET durable_position = held.durable_position, durable_time = held.durable_time
FROM (
    SELECT session_id, max(position) + 1 AS durable_position, max(timestamp) AS durable_time
    FROM raw_eeg GROUP BY session_id
) AS held
WHERE held.session_id = sessions.session_id;

-- Positions that are not in raw_eeg and never will be.
CREATE TABLE gaps (
    session_id    uuid NOT NULL,
    from_position bigint NOT NULL,
    to_position   bigint NOT NULL,       -- not included
    reason        text NOT NULL,         -- relay: it sent past them; lost: the server had to give them up
    noticed_at    timestamptz NOT NULL,
    PRIMARY KEY (session_id, from_position)
);

-- What the database refused for itself, with what it said. `record` holds the row of a binary COPY into raw_eeg, and
-- of everything else JSON: convert_from(record, 'UTF8').
CREATE TABLE dead_letters (
    refused_at timestamptz NOT NULL DEFAULT now(),
    table_name text NOT NULL,
    session_id uuid NOT NULL,
    position   bigint,                   -- of a sample
    error      text NOT NULL,
    record     bytea NOT NULL
);

CREATE INDEX dead_letters_by_session ON dead_letters (session_id);

-- How far each journal is in the tables, moved on in the transaction that writes them: so a COMMIT whose answer was
-- lost is told from one that never happened, and a journal found after a crash goes on where it stood.
DROP TABLE writers;
CREATE TABLE writers (
    writer_id  uuid PRIMARY KEY,
    position   bigint NOT NULL,          -- offset in the journal
    written_at timestamptz NOT NULL
) WITH (fillfactor = 50);
