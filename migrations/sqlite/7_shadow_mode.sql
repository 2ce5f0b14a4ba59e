-- Shadow mode: what would be refused passes as nobody, and is written down here, so that
-- somebody can see whom enforcing would hurt before it does.

-- NULL: what the server's --mode says.
ALTER TABLE tenants ADD COLUMN mode TEXT NULL CHECK (mode IN ('enforce', 'shadow'));

-- Replicas want to hear of it too.
DROP TRIGGER auth_tenant_updated;
CREATE TRIGGER auth_tenant_updated AFTER UPDATE OF id, name, db_schema_name, status, mode ON tenants BEGIN
    INSERT INTO auth_change (tenant_id) VALUES (old.id);
    INSERT INTO auth_change (tenant_id) SELECT new.id WHERE new.id <> old.id;
END;

-- One row for each kind of request and day: a server adds to it, and keeps the number of rows within bounds.
CREATE TABLE shadow_report (
    day        TEXT    NOT NULL,
    -- Why it would have been refused.
    reason     TEXT    NOT NULL,
    -- The client: a /24 or /56, never a whole address.
    network    TEXT    NOT NULL,
    user_agent TEXT    NOT NULL,
    method     TEXT    NOT NULL,
    -- Without its query; parts that look like identities are *.
    path       TEXT    NOT NULL,
    -- Of keys that were proven; else empty.
    key_prefix TEXT    NOT NULL,
    requests   INTEGER NOT NULL,
    first_seen TEXT    NOT NULL,
    last_seen  TEXT    NOT NULL,
    PRIMARY KEY (day, reason, network, user_agent, method, path, key_prefix)
) WITHOUT ROWID;
