-- Management over HTTP: where a change came from, and requests that may be retried.

ALTER TABLE tenantgate_audit_log
    ADD COLUMN request_id text NULL,
    ADD COLUMN address    text NULL;
COMMENT ON COLUMN tenantgate_audit_log.request_id IS 'The id of the request over HTTP; NULL: the command line';
COMMENT ON COLUMN tenantgate_audit_log.address IS 'The IP address of its client; NULL: the command line or a Unix socket';

-- One row for each Idempotency-Key of a management key and a path, kept for a day. It never contains a secret.
CREATE TABLE tenantgate_idempotency (
    admin_key_id uuid        NOT NULL,
    path         text        NOT NULL,
    key          text        NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    -- Of this attempt. Secrets are derived from it and a pepper.
    attempt      uuid        NOT NULL UNIQUE,
    -- SHA-256 of the body.
    body_hash    text        NOT NULL CHECK (body_hash ~ '^[0-9a-f]{64}$'),
    started_at   timestamptz NOT NULL,
    -- The id of the pepper that a secret was derived from.
    pepper       text        NULL,
    -- NULL: the request is running, or its process died.
    answer       json        NULL,
    PRIMARY KEY (admin_key_id, path, key)
);
CREATE INDEX idx_tenantgate_idempotency_started_at ON tenantgate_idempotency (started_at);
COMMENT ON TABLE tenantgate_idempotency IS 'tenantgate: requests over HTTP with an Idempotency-Key, of one day';
