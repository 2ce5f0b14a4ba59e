-- Usage: how many requests each key made on each day, and their outcomes.

-- One row for each day (UTC), key and reason; servers add to it. Requests without a proven key are rows of the key
-- 00000000-0000-0000-0000-000000000000. There is no foreign key, because counts outlive their key.
CREATE TABLE tenantgate_usage (
    day      TEXT    NOT NULL,
    key_id   TEXT    NOT NULL,
    -- As in the metadata of answers: ok, revoked, missing, and so on
    reason   TEXT    NOT NULL,
    requests INTEGER NOT NULL,
    PRIMARY KEY (day, key_id, reason)
) WITHOUT ROWID;
-- The usage of one key.
CREATE INDEX idx_tenantgate_usage_key ON tenantgate_usage (key_id, day);
