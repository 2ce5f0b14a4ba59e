-- Tenants and their API keys, as deployments that predate tenantgate have them.
-- Existing tables are adopted with their rows; no key is re-issued. Columns of ours are added at the end.

CREATE TABLE IF NOT EXISTS tenants (
    id             uuid         PRIMARY KEY DEFAULT gen_random_uuid(),
    name           varchar(255) NOT NULL,
    -- 63 bytes are the longest name that Postgres gives an object.
    db_schema_name varchar(63)  NOT NULL UNIQUE,
    created_at     timestamptz  NOT NULL DEFAULT now(),
    status         varchar(50)  NOT NULL DEFAULT 'active',
    CONSTRAINT chk_tenant_status
        CHECK (status IN ('active', 'suspended', 'pending_provisioning', 'deleted'))
);

CREATE TABLE IF NOT EXISTS api_keys (
    id           uuid         PRIMARY KEY DEFAULT gen_random_uuid(),
    -- bcrypt of the whole key. The key itself is not stored.
    hashed_key   text         NOT NULL UNIQUE,
    -- 'llmk_' and the public part of the key, by which a key is looked up.
    key_prefix   varchar(100) NOT NULL UNIQUE,
    tenant_id    uuid         NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    created_at   timestamptz  NOT NULL DEFAULT now(),
    -- NULL and 'infinity' both mean never.
    expires_at   timestamptz  NULL,
    last_used_at timestamptz  NULL
);

CREATE INDEX IF NOT EXISTS idx_api_keys_prefix ON api_keys (key_prefix);
CREATE INDEX IF NOT EXISTS idx_api_keys_tenant_id ON api_keys (tenant_id);
CREATE INDEX IF NOT EXISTS idx_tenants_status ON tenants (status);
CREATE INDEX IF NOT EXISTS idx_tenants_schema_name ON tenants (db_schema_name);

COMMENT ON TABLE tenants IS 'Customers, each with a schema of its own';
COMMENT ON COLUMN tenants.name IS 'For people; need not be unique';
COMMENT ON COLUMN tenants.db_schema_name IS 'The Postgres schema that holds the tenant''s data';
COMMENT ON COLUMN tenants.status IS 'Only active tenants are served';
COMMENT ON TABLE api_keys IS 'API keys of tenants, hashed';
COMMENT ON COLUMN api_keys.hashed_key IS 'bcrypt of the whole key';
COMMENT ON COLUMN api_keys.key_prefix IS 'llmk_ and the public part of the key';
COMMENT ON COLUMN api_keys.expires_at IS 'From this instant on the key is expired; NULL: never';
COMMENT ON COLUMN api_keys.last_used_at IS 'Last successful use, up to half a minute late';

-- The life cycle of a key.
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS name varchar(255) NULL;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS revoked_at timestamptz NULL;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS revocation_reason text NULL;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS replaced_by uuid NULL;
-- Records that bcrypt accepted a key, keyed by a pepper that is not in the database, so that a restart costs no
-- bcrypt. Useless without the pepper, and invalid with another hash, tenant or id. Setting it to NULL is always safe
-- and costs one bcrypt.
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS key_memo text NULL CONSTRAINT chk_key_memo
    CHECK (key_memo ~ '^\$llmk-hmac-sha256\$v=1,k=[0-9a-f]{8}\$[A-Za-z0-9_-]{11}\$[A-Za-z0-9_-]{43}$');
ALTER TABLE tenants ADD COLUMN IF NOT EXISTS mode text NULL
    CONSTRAINT chk_tenant_mode CHECK (mode IN ('enforce', 'shadow'));

COMMENT ON COLUMN api_keys.name IS 'For people; need not be unique';
COMMENT ON COLUMN api_keys.revoked_at IS 'NULL: live';
COMMENT ON COLUMN api_keys.revocation_reason IS 'For people';
COMMENT ON COLUMN api_keys.replaced_by IS 'The successor that a rotation issued; it has the lifetime that this key was issued with';
COMMENT ON COLUMN api_keys.key_memo IS 'Proof of an earlier bcrypt check, under the pepper k; NULL: the next use runs bcrypt';
COMMENT ON COLUMN tenants.mode IS 'enforce or shadow, for rejected requests with proven keys; NULL: the value of serve --mode';

-- last_used_at changes often and has no index: with room on the page, such an update stays there (a HOT update)
-- and does not touch the indexes.
ALTER TABLE api_keys SET (fillfactor = 80);
