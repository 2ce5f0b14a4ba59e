-- Shadow mode: what would be refused passes as nobody, and is written down here, so that
-- somebody can see whom enforcing would hurt before it does.

ALTER TABLE tenants ADD COLUMN mode text NULL
    CONSTRAINT chk_tenant_mode CHECK (mode IN ('enforce', 'shadow'));
COMMENT ON COLUMN tenants.mode IS 'What becomes of proven keys of this tenant that are to be refused; NULL: what the server''s --mode says';

-- Replicas want to hear of it too.
DROP TRIGGER auth_tenant_updated ON tenants;
CREATE TRIGGER auth_tenant_updated AFTER UPDATE ON tenants FOR EACH ROW
    WHEN ((old.id, old.name, old.db_schema_name, old.status, old.mode)
          IS DISTINCT FROM (new.id, new.name, new.db_schema_name, new.status, new.mode))
    EXECUTE FUNCTION auth_tenant_changed();
ALTER TABLE tenants ENABLE ALWAYS TRIGGER auth_tenant_updated;

-- One row for each kind of request and day: a server adds to it, and keeps the number of rows within bounds.
CREATE TABLE shadow_report (
    day        date   NOT NULL,
    -- Why it would have been refused.
    reason     text   NOT NULL,
    -- The client: a /24 or /56, never a whole address.
    network    text   NOT NULL,
    user_agent text   NOT NULL,
    method     text   NOT NULL,
    -- Without its query; parts that look like identities are *.
    path       text   NOT NULL,
    -- Of keys that were proven; else empty.
    key_prefix text   NOT NULL,
    requests   bigint NOT NULL,
    first_seen timestamptz NOT NULL,
    last_seen  timestamptz NOT NULL,
    PRIMARY KEY (day, reason, network, user_agent, method, path, key_prefix)
);
COMMENT ON TABLE shadow_report IS 'tenantgate: requests that enforcing would refuse; kept for 30 days';
