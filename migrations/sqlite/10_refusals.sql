-- Rejections of the last days, so that the page of manage can look up a decision id that a client has.

-- Servers add a limited number a minute, and delete them after three days. Envoy's access log has all.
CREATE TABLE tenantgate_refusal (
    decision_id TEXT NOT NULL PRIMARY KEY,
    at          TEXT NOT NULL,
    reason      TEXT NOT NULL,
    -- The key that was proven; the nil UUID without one.
    key_id      TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX tenantgate_refusal_at ON tenantgate_refusal (at);

-- Lists of tenants, a page at a time.
CREATE INDEX idx_tenants_created ON tenants (created_at, id);
