-- Tenants and their API keys, as deployments that predate tenantgate have them.
-- Where the tables stand already they are adopted, rows and all; nothing is re-issued.

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
    -- bcrypt over the whole key. The key itself is nowhere.
    hashed_key   text         NOT NULL UNIQUE,
    -- 'llmk_' and the public part of the key: what a key is found by.
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
