-- That bcrypt once said yes to a key, under a pepper that is not in the database: so that
-- a restart costs no bcrypt. Worth nothing without the pepper, or beside another hash,
-- tenant or id; setting it to NULL is always safe and costs one bcrypt.
ALTER TABLE api_keys ADD COLUMN key_memo TEXT NULL
    CHECK (key_memo GLOB '$llmk-hmac-sha256$v=1,k=*' AND length(key_memo) = 88);

-- Replicas want to hear of it too.
DROP TRIGGER auth_key_updated;
CREATE TRIGGER auth_key_updated
AFTER UPDATE OF id, tenant_id, key_prefix, hashed_key, expires_at, revoked_at, key_memo ON api_keys BEGIN
    INSERT INTO auth_change (key_prefix) VALUES (old.key_prefix);
    INSERT INTO auth_change (key_prefix) SELECT new.key_prefix WHERE new.key_prefix <> old.key_prefix;
END;
