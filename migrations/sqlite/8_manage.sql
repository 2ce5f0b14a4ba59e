-- Management over HTTP: where a change came from, and requests that may be retried.

-- The id of the request over HTTP and the IP address of its client; NULL: the command line.
ALTER TABLE tenantgate_audit_log ADD COLUMN request_id TEXT NULL;
ALTER TABLE tenantgate_audit_log ADD COLUMN address TEXT NULL;

-- One row for each Idempotency-Key of a management key and a path, kept for a day. It never contains a secret.
CREATE TABLE tenantgate_idempotency (
    admin_key_id TEXT NOT NULL,
    path         TEXT NOT NULL,
    key          TEXT NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    -- Of this attempt. Secrets are derived from it and a pepper.
    attempt      TEXT NOT NULL UNIQUE,
    -- SHA-256 of the body.
    body_hash    TEXT NOT NULL CHECK (length(body_hash) = 64 AND body_hash NOT GLOB '*[^0-9a-f]*'),
    started_at   TEXT NOT NULL,
    -- The id of the pepper that a secret was derived from.
    pepper       TEXT NULL,
    -- NULL: the request is running, or its process died.
    answer       TEXT NULL,
    PRIMARY KEY (admin_key_id, path, key)
) WITHOUT ROWID;
CREATE INDEX idx_tenantgate_idempotency_started_at ON tenantgate_idempotency (started_at);
