-- Management keys: who may manage tenants and keys over HTTP.

CREATE TABLE tenantgate_admin_key (
    id           TEXT PRIMARY KEY NOT NULL
        CHECK (id GLOB '????????-????-????-????-????????????' AND id NOT GLOB '*[^0-9a-f-]*'),
    key_prefix   TEXT NOT NULL UNIQUE CHECK (key_prefix GLOB 'llma_?*' AND length(key_prefix) <= 53
        AND substr(key_prefix, 6) NOT GLOB '*[^A-Za-z0-9-]*'),
    -- SHA-256 of the whole key. A key has 190 random bits, so a fast hash is sufficient.
    hashed_key   TEXT NOT NULL UNIQUE CHECK (length(hashed_key) = 64 AND hashed_key NOT GLOB '*[^0-9a-f]*'),
    name         TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 255),
    -- What the key may do, separated by spaces.
    permissions  TEXT NOT NULL CHECK (permissions GLOB '[a-z]*' AND permissions NOT GLOB '*[^a-z_: ]*'),
    -- The ids of the tenants that it sees, separated by spaces; NULL: all. An empty list is invalid.
    tenants      TEXT NULL CHECK (length(tenants) >= 36 AND tenants NOT GLOB '*[^0-9a-f -]*'),
    -- The management key that created it, with which it ends; NULL: created with the command line.
    created_by   TEXT NULL REFERENCES tenantgate_admin_key (id),
    created_at   TEXT NOT NULL,
    expires_at   TEXT NULL,
    last_used_at TEXT NULL,
    revoked_at   TEXT NULL
);
