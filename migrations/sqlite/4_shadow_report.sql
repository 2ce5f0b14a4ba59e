-- Shadow mode: requests that would have been rejected passed without an identity, and are counted here.

-- One row for each kind of request and day: a server adds to it, and bounds the number of rows.
CREATE TABLE tenantgate_shadow_report (
    day        TEXT    NOT NULL,
    -- The reason for which it would have been rejected.
    reason     TEXT    NOT NULL,
    -- The client's network, /24 or /56, never a whole address.
    network    TEXT    NOT NULL,
    user_agent TEXT    NOT NULL,
    method     TEXT    NOT NULL,
    -- Without its query; parts that look like identities are *.
    path       TEXT    NOT NULL,
    -- Of proven keys; else empty.
    key_prefix TEXT    NOT NULL,
    requests   INTEGER NOT NULL,
    first_seen TEXT    NOT NULL,
    last_seen  TEXT    NOT NULL,
    PRIMARY KEY (day, reason, network, user_agent, method, path, key_prefix)
) WITHOUT ROWID;
