-- Triggers. `tenantgate migrate` runs this file after each migration, and whenever the database differs from it.

DROP TRIGGER IF EXISTS tenantgate_key_inserted;
CREATE TRIGGER tenantgate_key_inserted AFTER INSERT ON api_keys BEGIN
    INSERT INTO tenantgate_change (key_prefix) VALUES (new.key_prefix);
END;
DROP TRIGGER IF EXISTS tenantgate_key_deleted;
CREATE TRIGGER tenantgate_key_deleted AFTER DELETE ON api_keys BEGIN
    INSERT INTO tenantgate_change (key_prefix) VALUES (old.key_prefix);
END;
-- Only columns that a decision needs: changes of last_used_at, names and labels are not logged.
DROP TRIGGER IF EXISTS tenantgate_key_updated;
CREATE TRIGGER tenantgate_key_updated
AFTER UPDATE OF id, tenant_id, key_prefix, hashed_key, expires_at, revoked_at, key_memo, disabled_at, not_before, scopes,
    networks, plan ON api_keys BEGIN
    INSERT INTO tenantgate_change (key_prefix) VALUES (old.key_prefix);
    INSERT INTO tenantgate_change (key_prefix) SELECT new.key_prefix WHERE new.key_prefix <> old.key_prefix;
END;

DROP TRIGGER IF EXISTS tenantgate_tenant_inserted;
CREATE TRIGGER tenantgate_tenant_inserted AFTER INSERT ON tenants BEGIN
    INSERT INTO tenantgate_change (tenant_id) VALUES (new.id);
END;
DROP TRIGGER IF EXISTS tenantgate_tenant_deleted;
CREATE TRIGGER tenantgate_tenant_deleted AFTER DELETE ON tenants BEGIN
    INSERT INTO tenantgate_change (tenant_id) VALUES (old.id);
END;
DROP TRIGGER IF EXISTS tenantgate_tenant_updated;
CREATE TRIGGER tenantgate_tenant_updated AFTER UPDATE OF id, name, db_schema_name, status, mode, plan ON tenants BEGIN
    INSERT INTO tenantgate_change (tenant_id) VALUES (old.id);
    INSERT INTO tenantgate_change (tenant_id) SELECT new.id WHERE new.id <> old.id;
END;

DROP TRIGGER IF EXISTS tenantgate_plan_inserted;
CREATE TRIGGER tenantgate_plan_inserted AFTER INSERT ON tenantgate_plan BEGIN
    INSERT INTO tenantgate_change (plan) VALUES (new.name);
END;
DROP TRIGGER IF EXISTS tenantgate_plan_deleted;
CREATE TRIGGER tenantgate_plan_deleted AFTER DELETE ON tenantgate_plan BEGIN
    INSERT INTO tenantgate_change (plan) VALUES (old.name);
END;
DROP TRIGGER IF EXISTS tenantgate_plan_updated;
CREATE TRIGGER tenantgate_plan_updated AFTER UPDATE ON tenantgate_plan BEGIN
    INSERT INTO tenantgate_change (plan) VALUES (old.name);
    INSERT INTO tenantgate_change (plan) SELECT new.name WHERE new.name <> old.name;
END;

DROP TRIGGER IF EXISTS tenantgate_route_inserted;
CREATE TRIGGER tenantgate_route_inserted AFTER INSERT ON tenantgate_route BEGIN
    INSERT INTO tenantgate_change (route_id) VALUES (new.id);
END;
DROP TRIGGER IF EXISTS tenantgate_route_deleted;
CREATE TRIGGER tenantgate_route_deleted AFTER DELETE ON tenantgate_route BEGIN
    INSERT INTO tenantgate_change (route_id) VALUES (old.id);
END;
DROP TRIGGER IF EXISTS tenantgate_route_updated;
CREATE TRIGGER tenantgate_route_updated AFTER UPDATE ON tenantgate_route BEGIN
    INSERT INTO tenantgate_change (route_id) VALUES (old.id);
    INSERT INTO tenantgate_change (route_id) SELECT new.id WHERE new.id <> old.id;
END;

-- REPLACE deletes the rows that it conflicts with, without firing their triggers, unless the connection has set
-- recursive_triggers. Rows that are about to be deleted are therefore logged before.
-- <https://www.sqlite.org/lang_conflict.html>
DROP TRIGGER IF EXISTS tenantgate_key_replaces;
CREATE TRIGGER tenantgate_key_replaces BEFORE INSERT ON api_keys BEGIN
    INSERT INTO tenantgate_change (key_prefix)
        SELECT key_prefix FROM api_keys WHERE id = new.id OR hashed_key = new.hashed_key;
END;
DROP TRIGGER IF EXISTS tenantgate_key_update_replaces;
CREATE TRIGGER tenantgate_key_update_replaces BEFORE UPDATE OF id, key_prefix, hashed_key ON api_keys BEGIN
    INSERT INTO tenantgate_change (key_prefix)
        SELECT key_prefix FROM api_keys
        WHERE rowid <> old.rowid AND (id = new.id OR hashed_key = new.hashed_key);
END;
-- The keys of a replaced tenant are deleted with it, also without firing a trigger.
DROP TRIGGER IF EXISTS tenantgate_tenant_replaces;
CREATE TRIGGER tenantgate_tenant_replaces BEFORE INSERT ON tenants BEGIN
    INSERT INTO tenantgate_change (key_prefix)
        SELECT k.key_prefix FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
        WHERE t.id = new.id OR t.db_schema_name = new.db_schema_name;
    INSERT INTO tenantgate_change (tenant_id)
        SELECT id FROM tenants WHERE id = new.id OR db_schema_name = new.db_schema_name;
END;
DROP TRIGGER IF EXISTS tenantgate_tenant_update_replaces;
CREATE TRIGGER tenantgate_tenant_update_replaces BEFORE UPDATE OF id, db_schema_name ON tenants BEGIN
    INSERT INTO tenantgate_change (key_prefix)
        SELECT k.key_prefix FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
        WHERE t.rowid <> old.rowid AND (t.id = new.id OR t.db_schema_name = new.db_schema_name);
    INSERT INTO tenantgate_change (tenant_id)
        SELECT id FROM tenants
        WHERE rowid <> old.rowid AND (id = new.id OR db_schema_name = new.db_schema_name);
END;

-- Plans need no such triggers: a replaced plan has the new name, which is logged anyway.
DROP TRIGGER IF EXISTS tenantgate_route_replaces;
CREATE TRIGGER tenantgate_route_replaces BEFORE INSERT ON tenantgate_route BEGIN
    INSERT INTO tenantgate_change (route_id) SELECT id FROM tenantgate_route WHERE name = new.name;
END;
DROP TRIGGER IF EXISTS tenantgate_route_update_replaces;
CREATE TRIGGER tenantgate_route_update_replaces BEFORE UPDATE OF id, name ON tenantgate_route BEGIN
    INSERT INTO tenantgate_change (route_id)
        SELECT id FROM tenantgate_route WHERE rowid <> old.rowid AND (id = new.id OR name = new.name);
END;

DROP TRIGGER IF EXISTS tenantgate_audit_log_not_updated;
CREATE TRIGGER tenantgate_audit_log_not_updated BEFORE UPDATE ON tenantgate_audit_log BEGIN
    SELECT RAISE(ABORT, 'UPDATE of tenantgate_audit_log is refused, it is append-only');
END;
DROP TRIGGER IF EXISTS tenantgate_audit_log_not_deleted;
CREATE TRIGGER tenantgate_audit_log_not_deleted BEFORE DELETE ON tenantgate_audit_log BEGIN
    SELECT RAISE(ABORT, 'DELETE of tenantgate_audit_log is refused, it is append-only');
END;
-- REPLACE would delete the row that it conflicts with without firing a trigger.
DROP TRIGGER IF EXISTS tenantgate_audit_log_appended;
CREATE TRIGGER tenantgate_audit_log_appended BEFORE INSERT ON tenantgate_audit_log
WHEN new.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM tenantgate_audit_log) BEGIN
    SELECT RAISE(ABORT, 'tenantgate_audit_log is append-only: the next row has the next number');
END;
