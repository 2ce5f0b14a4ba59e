-- That bcrypt once said yes to a key, under a pepper that is not in the database: so that
-- a restart costs no bcrypt. Worth nothing without the pepper, or beside another hash,
-- tenant or id; setting it to NULL is always safe and costs one bcrypt.

ALTER TABLE api_keys ADD COLUMN key_memo text NULL CONSTRAINT chk_key_memo
    CHECK (key_memo ~ '^\$llmk-hmac-sha256\$v=1,k=[0-9a-f]{8}\$[A-Za-z0-9_-]{11}\$[A-Za-z0-9_-]{43}$');

COMMENT ON COLUMN api_keys.key_memo IS 'That bcrypt said yes, under the pepper k; NULL: bcrypt is asked';

-- Replicas want to hear of it too.
DROP TRIGGER auth_key_updated ON api_keys;
CREATE TRIGGER auth_key_updated AFTER UPDATE ON api_keys FOR EACH ROW
    WHEN ((old.id, old.tenant_id, old.key_prefix, old.hashed_key, old.expires_at, old.revoked_at, old.key_memo)
          IS DISTINCT FROM
          (new.id, new.tenant_id, new.key_prefix, new.hashed_key, new.expires_at, new.revoked_at, new.key_memo))
    EXECUTE FUNCTION auth_key_changed();
ALTER TABLE api_keys ENABLE ALWAYS TRIGGER auth_key_updated;
