-- Usage: how many requests each key made on each day, and their outcomes.

-- One row for each day (UTC), key and reason; servers add to it. Requests without a proven key are rows of the key
-- 00000000-0000-0000-0000-000000000000. There is no foreign key, because counts outlive their key.
-- The partitions are months, created and dropped by tenantgate_add_usage and tenantgate_prune_usage.
CREATE TABLE tenantgate_usage (
    day      date   NOT NULL,
    key_id   uuid   NOT NULL,
    -- As in the metadata of answers: ok, revoked, missing, and so on
    reason   text   NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (day, key_id, reason)
) PARTITION BY RANGE (day);
-- The usage of one key.
CREATE INDEX idx_tenantgate_usage_key ON tenantgate_usage (key_id, day);
COMMENT ON TABLE tenantgate_usage IS 'tenantgate: requests by day (UTC), key and reason; kept for serve --usage-retention';

-- Stays empty. Replicated rows of a month without a partition go here, and are discarded by the trigger
-- tenantgate_usage_replicated, like all replicated usage rows. Without this partition, the subscription would stop.
CREATE TABLE tenantgate_usage_default PARTITION OF tenantgate_usage DEFAULT;
