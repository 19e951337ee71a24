-- Rows that are older than the columnstore's age: TimescaleDB may be turning their chunk into columns, and who writes to
-- it waits until that is done. They are written here, in the transaction of their batch, and moved later: see late.py.
-- In between they are read from here, by all but SQL on the tables themselves.

CREATE TABLE late_raw_eeg (LIKE raw_eeg);
CREATE INDEX late_raw_eeg_by_user ON late_raw_eeg (user_id, timestamp);

CREATE TABLE late_predictions (LIKE predictions INCLUDING DEFAULTS);  -- with their serials, which they keep
CREATE INDEX late_predictions_by_user ON late_predictions (user_id, timestamp, serial);
