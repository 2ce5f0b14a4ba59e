-- Which servers hold these keys in memory, and how far each of them has looked:
-- so that whoever takes a key back can wait until the last one knows.

CREATE TABLE auth_replica (
    id           uuid        PRIMARY KEY,
    -- Host and process, for people.
    name         text        NOT NULL,
    -- Everything visible in this snapshot has been applied.
    applied      pg_snapshot NOT NULL,
    seen_at      timestamptz NOT NULL,
    -- From then on it refuses every key unless it looks again: it keeps nothing alive any more.
    serves_until timestamptz NOT NULL
);
COMMENT ON TABLE auth_replica IS 'tenantgate: servers and how far they have looked';

-- Logs a change of nothing, so that every server looks and writes down that it has.
DO $do$
BEGIN
    EXECUTE format($fn$
        CREATE FUNCTION auth_mark() RETURNS xid8 LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog, %1$I, pg_temp AS $body$
        BEGIN
            INSERT INTO auth_change (key_prefix) VALUES ('');
            PERFORM pg_notify('auth_change', '');
            RETURN pg_current_xact_id();
        END $body$
    $fn$, current_schema());
END $do$;
