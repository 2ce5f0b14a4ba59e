-- Tenants and their API keys, under the names that Postgres has them.
-- Identities are text (a UUID in lower case), instants are text (RFC 3339 in UTC).

CREATE TABLE IF NOT EXISTS tenants (
    id             TEXT PRIMARY KEY NOT NULL DEFAULT (
        lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
        || substr('89ab', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    name           TEXT NOT NULL,
    db_schema_name TEXT NOT NULL UNIQUE,
    created_at     TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    status         TEXT NOT NULL DEFAULT 'active',
    CONSTRAINT chk_tenant_status
        CHECK (status IN ('active', 'suspended', 'pending_provisioning', 'deleted'))
);

CREATE TABLE IF NOT EXISTS api_keys (
    id           TEXT PRIMARY KEY NOT NULL DEFAULT (
        lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'
        || substr('89ab', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))),
    hashed_key   TEXT NOT NULL UNIQUE,
    key_prefix   TEXT NOT NULL UNIQUE,
    tenant_id    TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    created_at   TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    expires_at   TEXT NULL,
    last_used_at TEXT NULL
);

CREATE INDEX IF NOT EXISTS idx_api_keys_prefix ON api_keys (key_prefix);
CREATE INDEX IF NOT EXISTS idx_api_keys_tenant_id ON api_keys (tenant_id);
CREATE INDEX IF NOT EXISTS idx_tenants_status ON tenants (status);
CREATE INDEX IF NOT EXISTS idx_tenants_schema_name ON tenants (db_schema_name);

-- The life cycle of a key.
ALTER TABLE api_keys ADD COLUMN name TEXT NULL;
ALTER TABLE api_keys ADD COLUMN revoked_at TEXT NULL;
ALTER TABLE api_keys ADD COLUMN revocation_reason TEXT NULL;
-- The successor that a rotation issued; it has the lifetime that this key was issued with.
ALTER TABLE api_keys ADD COLUMN replaced_by TEXT NULL;
-- Records that bcrypt accepted a key, keyed by a pepper that is not in the database, so that a restart costs no
-- bcrypt. Setting it to NULL is always safe and costs one bcrypt.
ALTER TABLE api_keys ADD COLUMN key_memo TEXT NULL
    CHECK (key_memo GLOB '$llmk-hmac-sha256$v=1,k=*' AND length(key_memo) = 88);
-- enforce or shadow, for rejected requests with proven keys; NULL: the value of serve --mode.
ALTER TABLE tenants ADD COLUMN mode TEXT NULL CHECK (mode IN ('enforce', 'shadow'));
