-- A place for each row of `predictions`, by which a page goes on: there may be thousands of the same time.
--
-- Neither step writes a row, and both go with rows in columns, where TimescaleDB takes no default that has to be
-- computed for each. Those who wait for us wait for two seconds at most; then it is tried again.

SET LOCAL lock_timeout = '2s';

CREATE SEQUENCE predictions_serial CACHE 32;

ALTER TABLE predictions ADD COLUMN serial bigint NOT NULL DEFAULT 0;  -- of rows from before
ALTER TABLE predictions ALTER COLUMN serial SET DEFAULT nextval('predictions_serial');

-- The index that leads to it. Where there are rows it is built later, beside those who write.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM predictions) THEN
        DROP INDEX predictions_by_user;
        CREATE INDEX predictions_by_user_time ON predictions (user_id, timestamp, serial);
    END IF;
END $$;
