-- The page of `tenantgate manage`: sessions of browsers, and links that open one.

-- A session ends with its management key. Ended ones are deleted; the audit log has them.
CREATE TABLE tenantgate_admin_session (
    id           uuid        PRIMARY KEY,
    -- SHA-256 of the cookie, whose 256 random bits cannot be guessed.
    hashed_token text        NOT NULL UNIQUE CHECK (hashed_token ~ '^[0-9a-f]{64}$'),
    admin_key_id uuid        NOT NULL REFERENCES tenantgate_admin_key (id),
    created_at   timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    -- User agent and address, shown in the list of sessions.
    address      text        NULL CHECK (length(address) <= 64),
    user_agent   text        NULL CHECK (length(user_agent) <= 255)
);
COMMENT ON TABLE tenantgate_admin_session IS 'tenantgate: browsers that are signed in to the page of manage';

-- A link is deleted when it is used, or when another one is created after it has expired.
CREATE TABLE tenantgate_login_link (
    hashed_token text        PRIMARY KEY CHECK (hashed_token ~ '^[0-9a-f]{64}$'),
    admin_key_id uuid        NOT NULL REFERENCES tenantgate_admin_key (id),
    created_at   timestamptz NOT NULL
);
COMMENT ON TABLE tenantgate_login_link IS 'tenantgate: links of `admin-key login-link`, each of which signs in once';
