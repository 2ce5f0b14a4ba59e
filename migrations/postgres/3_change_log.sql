-- What changed, written by the changing transaction itself: the way every
-- replica stays true to these tables, whoever changes them and however.
--
-- A replica asks for the rows whose transaction became visible since its last
-- look (NOT pg_visible_in_snapshot(xid, last look)), so a transaction that
-- commits late is never missed; the notification only saves it waiting for its
-- next look.

CREATE TABLE auth_change (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid        xid8   NOT NULL DEFAULT pg_current_xact_id(),
    -- Exactly one of the two says what changed; neither: everything may have.
    key_prefix text   NULL,
    tenant_id  uuid   NULL,
    -- For pruning alone: it is the start of the transaction, and orders nothing.
    at         timestamptz NOT NULL DEFAULT now(),
    CHECK (num_nonnulls(key_prefix, tenant_id) <= 1)
);
CREATE INDEX auth_change_xid ON auth_change (xid);
COMMENT ON TABLE auth_change IS 'tenantgate: what changed in tenants and api_keys, by transaction';

-- Up to which transaction the log was pruned. Who looked last before that must load everything again.
CREATE TABLE auth_change_floor (
    one bool PRIMARY KEY DEFAULT true CHECK (one),
    xid xid8 NOT NULL DEFAULT '0'
);
INSERT INTO auth_change_floor DEFAULT VALUES;
COMMENT ON TABLE auth_change_floor IS 'tenantgate: the newest transaction that was pruned from auth_change';

-- The functions run with the rights of their owner and look names up in this
-- schema alone, so that whoever may change a key needs no right to the log and
-- can put nothing in its way.
DO $do$
BEGIN
    EXECUTE format($fn$
        CREATE FUNCTION auth_key_changed() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog, %1$I, pg_temp AS $body$
        BEGIN
            IF tg_op <> 'INSERT' THEN
                INSERT INTO auth_change (key_prefix) VALUES (old.key_prefix);
            END IF;
            IF tg_op = 'INSERT' OR (tg_op = 'UPDATE' AND new.key_prefix <> old.key_prefix) THEN
                INSERT INTO auth_change (key_prefix) VALUES (new.key_prefix);
            END IF;
            PERFORM pg_notify('auth_change', '');
            RETURN NULL;
        END $body$
    $fn$, current_schema());
    EXECUTE format($fn$
        CREATE FUNCTION auth_tenant_changed() RETURNS trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog, %1$I, pg_temp AS $body$
        BEGIN
            IF tg_op <> 'INSERT' THEN
                INSERT INTO auth_change (tenant_id) VALUES (old.id);
            END IF;
            IF tg_op = 'INSERT' OR (tg_op = 'UPDATE' AND new.id <> old.id) THEN
                INSERT INTO auth_change (tenant_id) VALUES (new.id);
            END IF;
            PERFORM pg_notify('auth_change', '');
            RETURN NULL;
        END $body$
    $fn$, current_schema());
    -- Forgets what every look since has seen, and says so in the floor. Two that prune at once would only
    -- wait for each other: the second one leaves it to the first.
    EXECUTE format($fn$
        CREATE FUNCTION auth_prune(keep interval) RETURNS bigint LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog, %1$I, pg_temp AS $body$
        DECLARE
            pruned bigint := 0;
            newest xid8;
        BEGIN
            IF NOT pg_try_advisory_xact_lock(hashtext('tenantgate auth_prune')) THEN
                RETURN 0;
            END IF;
            WITH gone AS (
                DELETE FROM auth_change
                WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) AND at < now() - keep RETURNING xid)
            SELECT count(*), (SELECT xid FROM gone ORDER BY xid DESC LIMIT 1) INTO pruned, newest FROM gone;
            UPDATE auth_change_floor SET xid = newest WHERE xid < newest;
            RETURN pruned;
        END $body$
    $fn$, current_schema());
END $do$;

CREATE FUNCTION auth_refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'TRUNCATE of % is refused', tg_table_name
        USING HINT = 'DELETE the rows instead: every replica of tenantgate then sees them go.';
END $$;

CREATE TRIGGER auth_key_came_or_went AFTER INSERT OR DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION auth_key_changed();
-- Only what judgement needs: last_used_at and names are written without a word.
CREATE TRIGGER auth_key_updated AFTER UPDATE ON api_keys FOR EACH ROW
    WHEN ((old.id, old.tenant_id, old.key_prefix, old.hashed_key, old.expires_at, old.revoked_at)
          IS DISTINCT FROM
          (new.id, new.tenant_id, new.key_prefix, new.hashed_key, new.expires_at, new.revoked_at))
    EXECUTE FUNCTION auth_key_changed();
CREATE TRIGGER auth_key_truncated BEFORE TRUNCATE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION auth_refuse_truncate();

CREATE TRIGGER auth_tenant_came_or_went AFTER INSERT OR DELETE ON tenants
    FOR EACH ROW EXECUTE FUNCTION auth_tenant_changed();
CREATE TRIGGER auth_tenant_updated AFTER UPDATE ON tenants FOR EACH ROW
    WHEN ((old.id, old.name, old.db_schema_name, old.status)
          IS DISTINCT FROM (new.id, new.name, new.db_schema_name, new.status))
    EXECUTE FUNCTION auth_tenant_changed();
CREATE TRIGGER auth_tenant_truncated BEFORE TRUNCATE ON tenants
    FOR EACH STATEMENT EXECUTE FUNCTION auth_refuse_truncate();

-- Also under session_replication_role = replica, which restores and logical replication set.
ALTER TABLE api_keys ENABLE ALWAYS TRIGGER auth_key_came_or_went;
ALTER TABLE api_keys ENABLE ALWAYS TRIGGER auth_key_updated;
ALTER TABLE api_keys ENABLE ALWAYS TRIGGER auth_key_truncated;
ALTER TABLE tenants ENABLE ALWAYS TRIGGER auth_tenant_came_or_went;
ALTER TABLE tenants ENABLE ALWAYS TRIGGER auth_tenant_updated;
ALTER TABLE tenants ENABLE ALWAYS TRIGGER auth_tenant_truncated;
