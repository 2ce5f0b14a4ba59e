-- Shadow mode: requests that would have been rejected passed without an identity, and are counted here.

-- One row for each kind of request and day: a server adds to it, and bounds the number of rows.
CREATE TABLE tenantgate_shadow_report (
    day        date   NOT NULL,
    -- The reason for which it would have been rejected.
    reason     text   NOT NULL,
    -- The client's network, /24 or /56, never a whole address.
    network    text   NOT NULL,
    user_agent text   NOT NULL,
    method     text   NOT NULL,
    -- Without its query; parts that look like identities are *.
    path       text   NOT NULL,
    -- Of proven keys; else empty.
    key_prefix text   NOT NULL,
    requests   bigint NOT NULL,
    first_seen timestamptz NOT NULL,
    last_seen  timestamptz NOT NULL,
    PRIMARY KEY (day, reason, network, user_agent, method, path, key_prefix)
);
COMMENT ON TABLE tenantgate_shadow_report IS 'tenantgate: requests that enforcing would reject; kept for 30 days';
