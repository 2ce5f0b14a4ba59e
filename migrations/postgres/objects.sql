-- Functions and triggers. `tenantgate migrate` runs this file after each migration, and whenever the database differs
-- from it (after a restore without privileges, a renamed schema, a dropped trigger). It may be run again at any time,
-- with the schema of the tables first in search_path.

-- Rows of keys and tenants -------------------------------------------------------------------------------------
--
-- These run with the privileges of their owner, so that a role that may change a key needs none on the log.

CREATE OR REPLACE FUNCTION tenantgate_key_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $body$
BEGIN
    IF tg_op <> 'INSERT' THEN
        INSERT INTO tenantgate_change (key_prefix) VALUES (old.key_prefix);
    END IF;
    IF tg_op = 'INSERT' OR (tg_op = 'UPDATE' AND new.key_prefix <> old.key_prefix) THEN
        INSERT INTO tenantgate_change (key_prefix) VALUES (new.key_prefix);
    END IF;
    PERFORM pg_notify('tenantgate_change', '');
    RETURN NULL;
END $body$;

CREATE OR REPLACE FUNCTION tenantgate_tenant_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $body$
BEGIN
    IF tg_op <> 'INSERT' THEN
        INSERT INTO tenantgate_change (tenant_id) VALUES (old.id);
    END IF;
    IF tg_op = 'INSERT' OR (tg_op = 'UPDATE' AND new.id <> old.id) THEN
        INSERT INTO tenantgate_change (tenant_id) VALUES (new.id);
    END IF;
    PERFORM pg_notify('tenantgate_change', '');
    RETURN NULL;
END $body$;

CREATE OR REPLACE FUNCTION tenantgate_plan_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $body$
BEGIN
    IF tg_op <> 'INSERT' THEN
        INSERT INTO tenantgate_change (plan) VALUES (old.name);
    END IF;
    IF tg_op = 'INSERT' OR (tg_op = 'UPDATE' AND new.name <> old.name) THEN
        INSERT INTO tenantgate_change (plan) VALUES (new.name);
    END IF;
    PERFORM pg_notify('tenantgate_change', '');
    RETURN NULL;
END $body$;

CREATE OR REPLACE FUNCTION tenantgate_route_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $body$
BEGIN
    IF tg_op <> 'INSERT' THEN
        INSERT INTO tenantgate_change (route_id) VALUES (old.id);
    END IF;
    IF tg_op = 'INSERT' OR (tg_op = 'UPDATE' AND new.id <> old.id) THEN
        INSERT INTO tenantgate_change (route_id) VALUES (new.id);
    END IF;
    PERFORM pg_notify('tenantgate_change', '');
    RETURN NULL;
END $body$;

CREATE OR REPLACE FUNCTION tenantgate_refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    RAISE EXCEPTION 'TRUNCATE of % is refused', tg_table_name
        USING HINT = 'DELETE the rows instead: every replica of tenantgate then sees them go.';
END $body$;

-- The change log -----------------------------------------------------------------------------------------------

-- Deletes old rows that every later snapshot sees, and records the newest of their transactions in the floor. If two
-- sessions prune at the same time, the second does nothing.
CREATE OR REPLACE FUNCTION tenantgate_prune(keep interval) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $body$
DECLARE
    pruned bigint := 0;
    newest xid8;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('tenantgate prune')) THEN
        RETURN 0;
    END IF;
    WITH gone AS (
        DELETE FROM tenantgate_change
        WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) AND at < now() - keep RETURNING xid)
    SELECT count(*), (SELECT xid FROM gone ORDER BY xid DESC LIMIT 1) INTO pruned, newest FROM gone;
    UPDATE tenantgate_change_floor SET xid = newest WHERE xid < newest;
    RETURN pruned;
END $body$;

-- Removes rows that a restore brought from a cluster with higher transaction ids: they are visible, but their
-- transaction ids are in the future. Replicas ignore them now, but would not once this cluster reaches those ids.
CREATE OR REPLACE FUNCTION tenantgate_settle() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $body$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM tenantgate_change
        WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()) AND xid <> pg_current_xact_id();
    GET DIAGNOSTICS removed = ROW_COUNT;
    UPDATE tenantgate_change_floor SET xid = '0' WHERE xid >= pg_snapshot_xmax(pg_current_snapshot());
    DELETE FROM tenantgate_replica WHERE pg_snapshot_xmax(applied) > pg_snapshot_xmax(pg_current_snapshot());
    RETURN removed;
END $body$;

-- Writes a mark into the log, so that every server polls, and then records that it has.
CREATE OR REPLACE FUNCTION tenantgate_mark() RETURNS xid8 LANGUAGE plpgsql SECURITY DEFINER AS $body$
BEGIN
    INSERT INTO tenantgate_change (key_prefix) VALUES ('');
    PERFORM pg_notify('tenantgate_change', '');
    RETURN pg_current_xact_id();
END $body$;

-- Usage --------------------------------------------------------------------------------------------------------
--
-- Servers add to it only through this function, which creates the partition of a month when it is needed, and that of
-- the next month in advance. A day after tomorrow comes from a wrong clock, and is counted as tomorrow.
CREATE OR REPLACE FUNCTION tenantgate_add_usage(days date[], keys uuid[], reasons text[], counts bigint[])
RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $body$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    home  name := (SELECT nspname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                   WHERE c.oid = 'tenantgate_usage'::regclass);
    month date;
    part  text;
BEGIN
    FOR month IN
        SELECT date_trunc('month', LEAST(d, today + 1)::timestamp)::date FROM unnest(days) AS d
        UNION SELECT (date_trunc('month', today::timestamp) + interval '1 month')::date ORDER BY 1
    LOOP
        part := 'tenantgate_usage_' || to_char(month, 'YYYY_MM');
        IF to_regclass(format('%I.%I', home, part)) IS NULL THEN
            -- Of two that find it missing, one makes it.
            PERFORM pg_advisory_xact_lock(hashtext('tenantgate usage'));
            EXECUTE format('CREATE TABLE IF NOT EXISTS %1$I.%2$I PARTITION OF %1$I.tenantgate_usage
                FOR VALUES FROM (%3$L) TO (%4$L) WITH (fillfactor = 70)',
                home, part, month, (month + interval '1 month')::date);
        END IF;
    END LOOP;
    -- In the order of the primary key: two servers cannot deadlock.
    INSERT INTO tenantgate_usage (day, key_id, reason, requests)
    SELECT LEAST(u.day, today + 1), u.key_id, u.reason, sum(u.requests)::bigint
    FROM unnest(days, keys, reasons, counts) AS u (day, key_id, reason, requests)
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (day, key_id, reason) DO UPDATE SET requests = tenantgate_usage.requests + excluded.requests;
END $body$;

-- Deletes the days that ended longer than `keep` ago: drops whole months, and deletes the remaining days. The last day
-- always stays, so that a role that may call this cannot delete what was just counted.
CREATE OR REPLACE FUNCTION tenantgate_prune_usage(keep interval) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $body$
DECLARE
    oldest date := ((now() AT TIME ZONE 'UTC') - GREATEST(keep, interval '1 day'))::date;
    part   regclass;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('tenantgate usage')) THEN
        RETURN;
    END IF;
    -- A report that reads a month for long delays its end, not the servers that count.
    PERFORM set_config('lock_timeout', '500ms', true);
    FOR part IN
        SELECT c.oid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'tenantgate_usage'::regclass AND c.relname ~ '^tenantgate_usage_[0-9]{4}_[0-9]{2}$'
          AND right(c.relname, 7) COLLATE "C" < to_char(oldest, 'YYYY_MM')
    LOOP
        EXECUTE format('DROP TABLE %s', part);
    END LOOP;
    DELETE FROM tenantgate_usage WHERE day < oldest;
END $body$;

-- The audit log ------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION tenantgate_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    -- Logical replication replaces a row of the subscriber's own by the publisher's: see tenantgate_replicated.
    IF tg_op = 'DELETE' AND pg_trigger_depth() > 1 AND current_setting('session_replication_role') = 'replica' THEN
        RETURN old;
    END IF;
    RAISE EXCEPTION '% of % is refused', tg_op, tg_table_name
        USING HINT = 'The audit log is append-only.';
END $body$;

-- Logical replication ------------------------------------------------------------------------------------------
--
-- Fires only for replicated rows. A subscriber has its own change log, which the triggers of its tables write when rows
-- are applied. Replicated rows of the log, and of tables that servers write, are therefore discarded. So are management
-- keys: each database has its own, and a key of one region is not valid in another. The identity is the publisher's.

CREATE OR REPLACE FUNCTION tenantgate_replicated() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $body$
BEGIN
    IF pg_trigger_depth() > 1 THEN
        -- Written by one of our triggers, not replicated.
        NULL;
    ELSIF tg_table_name IN ('tenantgate_change', 'tenantgate_change_floor', 'tenantgate_replica',
                            'tenantgate_shadow_report', 'tenantgate_admin_key', 'tenantgate_admin_session',
                            'tenantgate_login_link', 'tenantgate_refusal')
        OR tg_table_name LIKE 'tenantgate\_usage%' THEN
        RETURN NULL;
    ELSIF tg_table_name = 'tenantgate_identity' AND tg_op <> 'DELETE' THEN
        IF tg_op = 'UPDATE' THEN
            new.log := old.log;
        ELSIF EXISTS (SELECT FROM tenantgate_identity) THEN
            UPDATE tenantgate_identity SET id = new.id, made_at = new.made_at;
            RETURN NULL;
        ELSE
            new.log := gen_random_uuid();
        END IF;
    ELSIF tg_table_name = 'tenantgate_audit_log' AND tg_op = 'INSERT' THEN
        DELETE FROM tenantgate_audit_log WHERE seq = new.seq;
    ELSIF tg_table_name = 'tenantgate_migrations' AND tg_op = 'INSERT' THEN
        IF EXISTS (SELECT FROM tenantgate_migrations WHERE version = new.version) THEN
            RETURN NULL;
        END IF;
    END IF;
    IF tg_op = 'DELETE' THEN
        RETURN old;
    END IF;
    RETURN new;
END $body$;

-- Each function finds only the tables in this schema, whatever the search_path of the session is, and cannot be called
-- by every role. Triggers need no privilege on their function.
DO $do$
DECLARE
    ours text;
BEGIN
    FOR ours IN SELECT p.oid::regprocedure::text FROM pg_proc p
        WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) AND p.proname LIKE 'tenantgate\_%'
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %I, pg_temp', ours, current_schema());
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', ours);
    END LOOP;
END $do$;

-- Triggers -----------------------------------------------------------------------------------------------------
--
-- ALWAYS: also under session_replication_role = replica, which restores and logical replication set.
-- REPLICA: only there.

DROP TRIGGER IF EXISTS tenantgate_key_came_or_went ON api_keys;
CREATE TRIGGER tenantgate_key_came_or_went AFTER INSERT OR DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION tenantgate_key_changed();
ALTER TABLE api_keys ENABLE ALWAYS TRIGGER tenantgate_key_came_or_went;

-- Only columns that a decision needs: changes of last_used_at, names and labels are not logged.
DROP TRIGGER IF EXISTS tenantgate_key_updated ON api_keys;
CREATE TRIGGER tenantgate_key_updated AFTER UPDATE ON api_keys FOR EACH ROW
    WHEN ((old.id, old.tenant_id, old.key_prefix, old.hashed_key, old.expires_at, old.revoked_at, old.key_memo,
           old.disabled_at, old.not_before, old.scopes, old.networks, old.plan)
          IS DISTINCT FROM
          (new.id, new.tenant_id, new.key_prefix, new.hashed_key, new.expires_at, new.revoked_at, new.key_memo,
           new.disabled_at, new.not_before, new.scopes, new.networks, new.plan))
    EXECUTE FUNCTION tenantgate_key_changed();
ALTER TABLE api_keys ENABLE ALWAYS TRIGGER tenantgate_key_updated;

DROP TRIGGER IF EXISTS tenantgate_key_truncated ON api_keys;
CREATE TRIGGER tenantgate_key_truncated BEFORE TRUNCATE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION tenantgate_refuse_truncate();
ALTER TABLE api_keys ENABLE ALWAYS TRIGGER tenantgate_key_truncated;

DROP TRIGGER IF EXISTS tenantgate_tenant_came_or_went ON tenants;
CREATE TRIGGER tenantgate_tenant_came_or_went AFTER INSERT OR DELETE ON tenants
    FOR EACH ROW EXECUTE FUNCTION tenantgate_tenant_changed();
ALTER TABLE tenants ENABLE ALWAYS TRIGGER tenantgate_tenant_came_or_went;

DROP TRIGGER IF EXISTS tenantgate_tenant_updated ON tenants;
CREATE TRIGGER tenantgate_tenant_updated AFTER UPDATE ON tenants FOR EACH ROW
    WHEN ((old.id, old.name, old.db_schema_name, old.status, old.mode, old.plan)
          IS DISTINCT FROM (new.id, new.name, new.db_schema_name, new.status, new.mode, new.plan))
    EXECUTE FUNCTION tenantgate_tenant_changed();
ALTER TABLE tenants ENABLE ALWAYS TRIGGER tenantgate_tenant_updated;

DROP TRIGGER IF EXISTS tenantgate_tenant_truncated ON tenants;
CREATE TRIGGER tenantgate_tenant_truncated BEFORE TRUNCATE ON tenants
    FOR EACH STATEMENT EXECUTE FUNCTION tenantgate_refuse_truncate();
ALTER TABLE tenants ENABLE ALWAYS TRIGGER tenantgate_tenant_truncated;

DROP TRIGGER IF EXISTS tenantgate_plan_changed ON tenantgate_plan;
CREATE TRIGGER tenantgate_plan_changed AFTER INSERT OR UPDATE OR DELETE ON tenantgate_plan
    FOR EACH ROW EXECUTE FUNCTION tenantgate_plan_changed();
ALTER TABLE tenantgate_plan ENABLE ALWAYS TRIGGER tenantgate_plan_changed;

DROP TRIGGER IF EXISTS tenantgate_plan_truncated ON tenantgate_plan;
CREATE TRIGGER tenantgate_plan_truncated BEFORE TRUNCATE ON tenantgate_plan
    FOR EACH STATEMENT EXECUTE FUNCTION tenantgate_refuse_truncate();
ALTER TABLE tenantgate_plan ENABLE ALWAYS TRIGGER tenantgate_plan_truncated;

DROP TRIGGER IF EXISTS tenantgate_route_changed ON tenantgate_route;
CREATE TRIGGER tenantgate_route_changed AFTER INSERT OR UPDATE OR DELETE ON tenantgate_route
    FOR EACH ROW EXECUTE FUNCTION tenantgate_route_changed();
ALTER TABLE tenantgate_route ENABLE ALWAYS TRIGGER tenantgate_route_changed;

DROP TRIGGER IF EXISTS tenantgate_route_truncated ON tenantgate_route;
CREATE TRIGGER tenantgate_route_truncated BEFORE TRUNCATE ON tenantgate_route
    FOR EACH STATEMENT EXECUTE FUNCTION tenantgate_refuse_truncate();
ALTER TABLE tenantgate_route ENABLE ALWAYS TRIGGER tenantgate_route_truncated;

DROP TRIGGER IF EXISTS tenantgate_audit_log_kept ON tenantgate_audit_log;
CREATE TRIGGER tenantgate_audit_log_kept BEFORE UPDATE OR DELETE ON tenantgate_audit_log
    FOR EACH ROW EXECUTE FUNCTION tenantgate_audit_refuse();
ALTER TABLE tenantgate_audit_log ENABLE ALWAYS TRIGGER tenantgate_audit_log_kept;

DROP TRIGGER IF EXISTS tenantgate_audit_log_not_truncated ON tenantgate_audit_log;
CREATE TRIGGER tenantgate_audit_log_not_truncated BEFORE TRUNCATE ON tenantgate_audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION tenantgate_audit_refuse();
ALTER TABLE tenantgate_audit_log ENABLE ALWAYS TRIGGER tenantgate_audit_log_not_truncated;

DROP TRIGGER IF EXISTS tenantgate_change_replicated ON tenantgate_change;
CREATE TRIGGER tenantgate_change_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_change
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_change ENABLE REPLICA TRIGGER tenantgate_change_replicated;

DROP TRIGGER IF EXISTS tenantgate_change_floor_replicated ON tenantgate_change_floor;
CREATE TRIGGER tenantgate_change_floor_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_change_floor
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_change_floor ENABLE REPLICA TRIGGER tenantgate_change_floor_replicated;

DROP TRIGGER IF EXISTS tenantgate_replica_replicated ON tenantgate_replica;
CREATE TRIGGER tenantgate_replica_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_replica
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_replica ENABLE REPLICA TRIGGER tenantgate_replica_replicated;

DROP TRIGGER IF EXISTS tenantgate_shadow_report_replicated ON tenantgate_shadow_report;
CREATE TRIGGER tenantgate_shadow_report_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_shadow_report
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_shadow_report ENABLE REPLICA TRIGGER tenantgate_shadow_report_replicated;

DROP TRIGGER IF EXISTS tenantgate_admin_key_replicated ON tenantgate_admin_key;
CREATE TRIGGER tenantgate_admin_key_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_admin_key
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_admin_key ENABLE REPLICA TRIGGER tenantgate_admin_key_replicated;

DROP TRIGGER IF EXISTS tenantgate_admin_session_replicated ON tenantgate_admin_session;
CREATE TRIGGER tenantgate_admin_session_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_admin_session
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_admin_session ENABLE REPLICA TRIGGER tenantgate_admin_session_replicated;

DROP TRIGGER IF EXISTS tenantgate_refusal_replicated ON tenantgate_refusal;
CREATE TRIGGER tenantgate_refusal_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_refusal
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_refusal ENABLE REPLICA TRIGGER tenantgate_refusal_replicated;

DROP TRIGGER IF EXISTS tenantgate_login_link_replicated ON tenantgate_login_link;
CREATE TRIGGER tenantgate_login_link_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_login_link
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_login_link ENABLE REPLICA TRIGGER tenantgate_login_link_replicated;

DROP TRIGGER IF EXISTS tenantgate_usage_replicated ON tenantgate_usage;
CREATE TRIGGER tenantgate_usage_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_usage
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_usage ENABLE REPLICA TRIGGER tenantgate_usage_replicated;

DROP TRIGGER IF EXISTS tenantgate_identity_replicated ON tenantgate_identity;
CREATE TRIGGER tenantgate_identity_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_identity
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_identity ENABLE REPLICA TRIGGER tenantgate_identity_replicated;

DROP TRIGGER IF EXISTS tenantgate_audit_log_replicated ON tenantgate_audit_log;
CREATE TRIGGER tenantgate_audit_log_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_audit_log
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_audit_log ENABLE REPLICA TRIGGER tenantgate_audit_log_replicated;

DROP TRIGGER IF EXISTS tenantgate_migrations_replicated ON tenantgate_migrations;
CREATE TRIGGER tenantgate_migrations_replicated BEFORE INSERT OR UPDATE OR DELETE ON tenantgate_migrations
    FOR EACH ROW EXECUTE FUNCTION tenantgate_replicated();
ALTER TABLE tenantgate_migrations ENABLE REPLICA TRIGGER tenantgate_migrations_replicated;
