-- The tables of the original schema. TimescaleDB, where it is there, makes hypertables of two of them: see timescale.py.
--
-- No unique index, foreign key or trigger on `raw_eeg` and `predictions`: two users share a microsecond, so the time
-- alone cannot be a key, and TimescaleDB compresses a COPY on its way in only without them.

CREATE TABLE sessions (
    session_id  uuid PRIMARY KEY,
    user_id     varchar(100) NOT NULL,
    start_time  timestamptz NOT NULL,
    end_time    timestamptz,
    device_info jsonb
);

CREATE INDEX sessions_by_user ON sessions (user_id, start_time DESC);

CREATE TABLE predictions (
    timestamp          timestamptz NOT NULL,
    session_id         uuid NOT NULL,
    user_id            varchar(100) NOT NULL,
    prediction_type    varchar(50) NOT NULL,
    classifier_name    varchar(100) NOT NULL,
    data               jsonb NOT NULL,
    confidence         float,
    classifier_version varchar(50)
);

CREATE INDEX predictions_by_user ON predictions (user_id, timestamp DESC);

CREATE TABLE raw_eeg (
    timestamp  timestamptz NOT NULL,
    session_id uuid NOT NULL,
    user_id    varchar(100) NOT NULL,
    position   bigint NOT NULL,   -- of the sample in its session, from 0
    channels   real[] NOT NULL    -- µV; NaN where the relay had no value
);

-- One index only, since it is a third of what a row costs to write. This one serves both readers. A dashboard asks for
-- a user and a time. Whoever reads a session by position takes its user and its times from `sessions` first: within a
-- session times never run backwards, and a user has one session at a time, so the same index leads to the rows.
CREATE INDEX raw_eeg_by_user ON raw_eeg (user_id, timestamp DESC);

-- The original table of raw samples, column by column.
CREATE VIEW raw_samples AS
SELECT
    timestamp,
    session_id,
    user_id,
    jsonb_build_object('channels', array_replace(channels, 'NaN', NULL)) AS data
FROM raw_eeg;

-- The last batch of each process that writes: how a COMMIT whose answer was lost is told from one that never happened.
CREATE TABLE writers (
    writer_id  uuid PRIMARY KEY,
    batch      bigint NOT NULL,
    written_at timestamptz NOT NULL
) WITH (fillfactor = 50);  -- updated ten times a second: room for it in the page, so that no index changes
