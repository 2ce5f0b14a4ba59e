-- Refusals of the last days, so that the page of manage tells the reason of a decision id that a client has.

-- Servers add a bounded number a minute, and forget them after three days. The log has all.
CREATE TABLE tenantgate_refusal (
    decision_id uuid        PRIMARY KEY,
    at          timestamptz NOT NULL,
    reason      text        NOT NULL CHECK (length(reason) BETWEEN 1 AND 64),
    -- The key that was proven; the nil UUID without one.
    key_id      uuid        NOT NULL
);
CREATE INDEX tenantgate_refusal_at ON tenantgate_refusal (at);
COMMENT ON TABLE tenantgate_refusal IS 'tenantgate: refusals by decision id, some of each minute; kept for 3 days';

-- Lists of tenants, a page at a time.
CREATE INDEX idx_tenants_created ON tenants (created_at, id);
