-- Usage: how many requests each key made on each day, and what became of them.

-- One row for each day (UTC), key and reason; servers add to it. Requests without a proven key are rows of the key
-- 00000000-0000-0000-0000-000000000000. There is no foreign key: what a key did stays known when the key is gone.
-- The partitions are months, made and dropped by tenantgate_add_usage and tenantgate_prune_usage.
CREATE TABLE tenantgate_usage (
    day      date   NOT NULL,
    key_id   uuid   NOT NULL,
    -- As in the metadata of answers: ok, revoked, missing, and so on
    reason   text   NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (day, key_id, reason)
) PARTITION BY RANGE (day);
-- What one key did.
CREATE INDEX idx_tenantgate_usage_key ON tenantgate_usage (key_id, day);
COMMENT ON TABLE tenantgate_usage IS 'tenantgate: requests by day (UTC), key and reason; kept as long as serve --usage-retention says';

-- Stays empty. Rows that a publisher sends for a month that this database does not have go here, and are discarded by a
-- trigger as all of them are; without it the subscription would stop.
CREATE TABLE tenantgate_usage_default PARTITION OF tenantgate_usage DEFAULT;
