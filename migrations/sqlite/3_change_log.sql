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

-- REPLACE deletes whatever is in its way, and no trigger hears of that (recursive_triggers is a setting of
-- each connection, and off). So what is about to be in the way is written down before.
-- <https://www.sqlite.org/lang_conflict.html>
CREATE TRIGGER auth_key_replaces BEFORE INSERT ON api_keys BEGIN
    INSERT INTO auth_change (key_prefix)
        SELECT key_prefix FROM api_keys WHERE id = new.id OR hashed_key = new.hashed_key;
END;
CREATE TRIGGER auth_key_update_replaces BEFORE UPDATE OF id, key_prefix, hashed_key ON api_keys BEGIN
    INSERT INTO auth_change (key_prefix)
        SELECT key_prefix FROM api_keys
        WHERE rowid <> old.rowid AND (id = new.id OR hashed_key = new.hashed_key);
END;
-- The keys of a tenant that is in the way go with it, as unheard.
CREATE TRIGGER auth_tenant_replaces BEFORE INSERT ON tenants BEGIN
    INSERT INTO auth_change (key_prefix)
        SELECT k.key_prefix FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
        WHERE t.id = new.id OR t.db_schema_name = new.db_schema_name;
    INSERT INTO auth_change (tenant_id)
        SELECT id FROM tenants WHERE id = new.id OR db_schema_name = new.db_schema_name;
END;
CREATE TRIGGER auth_tenant_update_replaces BEFORE UPDATE OF id, db_schema_name ON tenants BEGIN
    INSERT INTO auth_change (key_prefix)
        SELECT k.key_prefix FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
        WHERE t.rowid <> old.rowid AND (t.id = new.id OR t.db_schema_name = new.db_schema_name);
    INSERT INTO auth_change (tenant_id)
        SELECT id FROM tenants
        WHERE rowid <> old.rowid AND (id = new.id OR db_schema_name = new.db_schema_name);
END;
