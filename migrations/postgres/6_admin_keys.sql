-- Management keys: who may manage tenants and keys over HTTP.

CREATE TABLE tenantgate_admin_key (
    id           uuid        PRIMARY KEY,
    key_prefix   text        NOT NULL UNIQUE CHECK (key_prefix ~ '^llma_[A-Za-z0-9-]{1,48}$'),
    -- SHA-256 of the whole key. A key has 190 random bits, so a fast hash is sufficient.
    hashed_key   text        NOT NULL UNIQUE CHECK (hashed_key ~ '^[0-9a-f]{64}$'),
    name         text        NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255),
    permissions  text        NOT NULL CHECK (permissions ~ '^[a-z_]+:[a-z]+( [a-z_]+:[a-z]+)*$'),
    -- Ids, separated by spaces. An empty list is invalid.
    tenants      text        NULL CHECK (tenants ~ '^[0-9a-f-]{36}( [0-9a-f-]{36})*$'),
    created_by   uuid        NULL REFERENCES tenantgate_admin_key (id),
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NULL,
    last_used_at timestamptz NULL,
    revoked_at   timestamptz NULL
);
COMMENT ON TABLE tenantgate_admin_key IS 'tenantgate: who may manage tenants and keys over HTTP';
COMMENT ON COLUMN tenantgate_admin_key.permissions IS 'What the key may do, separated by spaces';
COMMENT ON COLUMN tenantgate_admin_key.tenants IS 'The tenants that it sees; NULL: all';
COMMENT ON COLUMN tenantgate_admin_key.created_by IS
    'The management key that created it, with which it ends; NULL: created with the command line';
