-- What changed, written by the changing transaction itself. SQLite has one
-- writer at a time, so the order of ids is the order of commits and a replica
-- need only remember the last id it saw.

CREATE TABLE auth_change (
    -- AUTOINCREMENT: an id is never used twice, also after pruning.
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    key_prefix TEXT NULL,
    tenant_id  TEXT NULL,
    -- For pruning alone.
    at         TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);

CREATE TRIGGER auth_key_inserted AFTER INSERT ON api_keys BEGIN
    INSERT INTO auth_change (key_prefix) VALUES (new.key_prefix);
END;
CREATE TRIGGER auth_key_deleted AFTER DELETE ON api_keys BEGIN
    INSERT INTO auth_change (key_prefix) VALUES (old.key_prefix);
END;
-- Only what judgement needs: last_used_at and names are written without a word.
CREATE TRIGGER auth_key_updated
AFTER UPDATE OF id, tenant_id, key_prefix, hashed_key, expires_at, revoked_at ON api_keys BEGIN
    INSERT INTO auth_change (key_prefix) VALUES (old.key_prefix);
    INSERT INTO auth_change (key_prefix) SELECT new.key_prefix WHERE new.key_prefix <> old.key_prefix;
END;

CREATE TRIGGER auth_tenant_inserted AFTER INSERT ON tenants BEGIN
    INSERT INTO auth_change (tenant_id) VALUES (new.id);
END;
CREATE TRIGGER auth_tenant_deleted AFTER DELETE ON tenants BEGIN
    INSERT INTO auth_change (tenant_id) VALUES (old.id);
END;
CREATE TRIGGER auth_tenant_updated AFTER UPDATE OF id, name, db_schema_name, status ON tenants BEGIN
    INSERT INTO auth_change (tenant_id) VALUES (old.id);
    INSERT INTO auth_change (tenant_id) SELECT new.id WHERE new.id <> old.id;
END;
