-- Rejections of the last days, so that the page of manage can look up a decision id that a client has.

-- Servers add a limited number a minute, and delete them after three days. Envoy's access log has all.
CREATE TABLE tenantgate_refusal (
    decision_id uuid        PRIMARY KEY,
    at          timestamptz NOT NULL,
    reason      text        NOT NULL CHECK (length(reason) BETWEEN 1 AND 64),
    -- The key that was proven; the nil UUID without one.
    key_id      uuid        NOT NULL
);
CREATE INDEX tenantgate_refusal_at ON tenantgate_refusal (at);
COMMENT ON TABLE tenantgate_refusal IS 'tenantgate: rejections by decision id, some of each minute; kept for 3 days';

-- Lists of tenants, a page at a time.
CREATE INDEX idx_tenants_created ON tenants (created_at, id);
