-- The page of `tenantgate manage`: sessions of browsers, and links that open one.

-- A session ends with its management key. Ended ones are deleted; the audit log has them.
CREATE TABLE tenantgate_admin_session (
    id           TEXT PRIMARY KEY NOT NULL
        CHECK (id GLOB '????????-????-????-????-????????????' AND id NOT GLOB '*[^0-9a-f-]*'),
    -- SHA-256 of the cookie, whose 256 random bits cannot be guessed.
    hashed_token TEXT NOT NULL UNIQUE CHECK (length(hashed_token) = 64 AND hashed_token NOT GLOB '*[^0-9a-f]*'),
    admin_key_id TEXT NOT NULL REFERENCES tenantgate_admin_key (id),
    created_at   TEXT NOT NULL,
    last_seen_at TEXT NOT NULL,
    -- User agent and address, shown in the list of sessions.
    address      TEXT NULL CHECK (length(address) <= 64),
    user_agent   TEXT NULL CHECK (length(user_agent) <= 255)
);

-- A link is deleted when it is used, or when another one is created after it has expired.
CREATE TABLE tenantgate_login_link (
    hashed_token TEXT PRIMARY KEY NOT NULL CHECK (length(hashed_token) = 64 AND hashed_token NOT GLOB '*[^0-9a-f]*'),
    admin_key_id TEXT NOT NULL REFERENCES tenantgate_admin_key (id),
    created_at   TEXT NOT NULL
);
