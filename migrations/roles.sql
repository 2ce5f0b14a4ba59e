-- Least privilege on Postgres: three roles and their privileges.
--
--   tenantgate_serve     `tenantgate serve`: reads; writes last_used_at, memos, usage and its position
--                        in the change log
--   tenantgate_admin     `tenantgate tenant`, `tenantgate key`, `tenantgate manage`: creates and changes rows; deletes
--                        only plans, routes, sessions and stored answers to requests over HTTP
--   tenantgate_migrate   `tenantgate migrate`: owns the tables and functions
--
-- `tenantgate migrate --roles` runs this file. By hand, with the schema of the tables first in search_path:
-- psql -v ON_ERROR_STOP=1 -f migrations/roles.sql
-- The first run needs a superuser, or the owner of database and tables with CREATEROLE; later runs need a member of
-- tenantgate_migrate. It can be run again: afterwards each role has exactly the privileges written here, also on tables
-- of a newer version.
--
-- The roles cannot log in. Make your login roles members of them:
--
--   CREATE ROLE gate LOGIN PASSWORD '...' IN ROLE tenantgate_serve;
--
-- Roles belong to a cluster, tables to a database. If several databases of a cluster have tables of tenantgate, give
-- each its own roles: `tenantgate migrate --roles=blue`, or here
--
--   SET tenantgate.roles = 'blue';   -- blue_serve, blue_admin, blue_migrate

DO $do$
DECLARE
    prefix  text := coalesce(nullif(current_setting('tenantgate.roles', true), ''), 'tenantgate');
    serve   text := prefix || '_serve';
    admin   text := prefix || '_admin';
    migrate text := prefix || '_migrate';
    -- The tables that `migrate` owns. A new table needs a line here, and its privileges below.
    tables  regclass[] := ARRAY[
        'tenants',
        'api_keys',
        'tenantgate_change',
        'tenantgate_change_floor',
        'tenantgate_identity',
        'tenantgate_replica',
        'tenantgate_audit_log',
        'tenantgate_shadow_report',
        'tenantgate_plan',
        'tenantgate_route',
        'tenantgate_admin_key',
        'tenantgate_admin_session',
        'tenantgate_login_link',
        'tenantgate_refusal',
        'tenantgate_usage',
        'tenantgate_idempotency',
        'tenantgate_migrations'
    ]::regclass[] || ARRAY(SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'tenantgate_usage'::regclass);
    functions regprocedure[] := ARRAY(SELECT p.oid::regprocedure FROM pg_proc p
        WHERE p.proname LIKE 'tenantgate\_%'
          AND p.pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'api_keys'::regclass));
    home    text := (SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'api_keys'::regclass);
    -- The role that runs this file.
    we      pg_roles := (SELECT r FROM pg_roles r WHERE rolname = current_user);
    one     text;
    found   record;
BEGIN
    IF prefix !~ '^[a-z_][a-z0-9_]{0,49}$' OR prefix ~ '^pg_' THEN
        RAISE EXCEPTION 'invalid prefix of role names %: use a-z, 0-9 and _', quote_literal(prefix);
    END IF;
    -- One run at a time, and no long wait for a lock that another session holds.
    PERFORM set_config('lock_timeout', coalesce(nullif(current_setting('lock_timeout'), '0'), '5s'), true);
    PERFORM pg_advisory_xact_lock(hashtext('tenantgate roles'));

    FOREACH one IN ARRAY ARRAY[serve, admin, migrate] LOOP
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = one) THEN
            CONTINUE;
        END IF;
        IF NOT (we.rolsuper OR we.rolcreaterole) THEN
            RAISE EXCEPTION 'the role % does not exist, and % cannot create it: run this once as a superuser, or '
                'as the owner of the database with CREATEROLE', one, current_user;
        END IF;
        EXECUTE format('CREATE ROLE %I NOLOGIN', one);
    END LOOP;

    -- An existing role with one of these names may have another purpose and too many privileges.
    FOR one IN SELECT rolname FROM pg_roles r
        WHERE rolname IN (serve, admin, migrate) AND rolsuper
           OR rolname IN (serve, admin) AND (rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
              OR pg_has_role(rolname, migrate, 'MEMBER')
              OR EXISTS (SELECT FROM pg_roles su WHERE su.rolsuper AND pg_has_role(r.rolname, su.oid, 'MEMBER'))
              OR EXISTS (SELECT FROM pg_class c WHERE c.oid = ANY (tables) AND pg_has_role(r.rolname, relowner, 'MEMBER')))
    LOOP
        RAISE EXCEPTION 'the role % already exists with more privileges than expected (a superuser, an owner of the '
            'tables, or one with rights of its own): choose other names with --roles=NAME', one;
    END LOOP;

    -- `migrate` becomes the owner of the tables. The previous owner becomes a member of it, and can continue as before.
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %s TO %I', home, migrate);
    IF NOT we.rolsuper AND NOT pg_has_role(current_user, migrate, 'USAGE') THEN
        EXECUTE format('GRANT %I TO %I', migrate, current_user);
    END IF;
    FOR found IN SELECT format('TABLE %s', c.oid::regclass) AS thing, relowner::regrole::text AS owner FROM pg_class c
            WHERE c.oid = ANY (tables) AND relowner <> migrate::regrole
        UNION ALL SELECT format('FUNCTION %s', p.oid::regprocedure), proowner::regrole::text FROM pg_proc p
            WHERE p.oid = ANY (functions) AND proowner <> migrate::regrole
    LOOP
        -- A superuser needs no membership.
        IF NOT pg_has_role(found.owner::regrole, migrate, 'USAGE') THEN
            EXECUTE format('GRANT %I TO %s', migrate, found.owner);
        END IF;
        EXECUTE format('ALTER %s OWNER TO %I', found.thing, migrate);
    END LOOP;

    -- Earlier grants to these two roles are revoked. Grants to other roles stay.
    EXECUTE format('REVOKE ALL ON %s FROM %I, %I',
        (SELECT string_agg(t::text, ', ') FROM unnest(tables) t), serve, admin);
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC, %I, %I',
        (SELECT string_agg(f::text, ', ') FROM unnest(functions) f), serve, admin);
    -- The default since Postgres 15: a role that may connect cannot create objects beside our tables.
    EXECUTE format('REVOKE CREATE ON SCHEMA %s FROM PUBLIC', home);

    EXECUTE format($grants$
        GRANT USAGE ON SCHEMA %4$s TO %1$I, %2$I;

        -- serve. Not the name of a key or the reason of its revocation: decisions need neither.
        GRANT SELECT ON tenants, tenantgate_plan, tenantgate_route, tenantgate_change, tenantgate_change_floor,
            tenantgate_identity, tenantgate_migrations TO %1$I;
        GRANT SELECT ON SEQUENCE tenantgate_change_id_seq TO %1$I;
        GRANT SELECT (id, tenant_id, key_prefix, hashed_key, expires_at, revoked_at, last_used_at, key_memo,
            disabled_at, not_before, scopes, networks, plan) ON api_keys TO %1$I;
        GRANT UPDATE (last_used_at, key_memo) ON api_keys TO %1$I;
        -- All servers have this role, so each could also write the row of another.
        GRANT SELECT, INSERT, DELETE, UPDATE (applied, seen_at, serves_until) ON tenantgate_replica TO %1$I;
        GRANT EXECUTE ON FUNCTION tenantgate_prune(interval), tenantgate_settle() TO %1$I;
        -- It can add to the counts of usage and delete old ones, but neither read nor overwrite them.
        GRANT EXECUTE ON FUNCTION tenantgate_add_usage(date[], uuid[], text[], bigint[]),
            tenantgate_prune_usage(interval) TO %1$I;
        -- The shadow report, which it deletes after a month.
        GRANT SELECT, INSERT, UPDATE (requests, first_seen, last_seen), DELETE ON tenantgate_shadow_report TO %1$I;
        -- Rejections by decision id, which it deletes after three days and cannot read.
        GRANT SELECT (at), INSERT, DELETE ON tenantgate_refusal TO %1$I;

        -- admin. It reads hashes to report their cost, to export them, and to recognize them in a repeated import.
        GRANT SELECT, INSERT, UPDATE (name, status, mode, plan) ON tenants TO %2$I;
        GRANT SELECT, INSERT, UPDATE (name, expires_at, revoked_at, revocation_reason, replaced_by, disabled_at, not_before,
            scopes, networks, plan, labels) ON api_keys TO %2$I;
        GRANT SELECT, INSERT, DELETE, UPDATE (request_limit, total_limit, input_limit, output_limit) ON tenantgate_plan TO %2$I;
        GRANT SELECT, INSERT, DELETE, UPDATE (name, mode, scopes, shadow) ON tenantgate_route TO %2$I;
        -- Management keys are never deleted, and neither their secrets nor their creators can change.
        GRANT SELECT, INSERT, UPDATE (name, permissions, tenants, expires_at, last_used_at, revoked_at)
            ON tenantgate_admin_key TO %2$I;
        -- Idempotency-Keys, which are deleted after a day.
        GRANT SELECT, INSERT, UPDATE (answer), DELETE ON tenantgate_idempotency TO %2$I;
        -- The page deletes sessions and links that have ended.
        GRANT SELECT, INSERT, DELETE, UPDATE (last_seen_at) ON tenantgate_admin_session TO %2$I;
        GRANT SELECT, INSERT, DELETE ON tenantgate_login_link TO %2$I;
        -- Every change is appended to the audit log, whose rows cannot be changed.
        GRANT SELECT, INSERT ON tenantgate_audit_log TO %2$I;
        GRANT SELECT ON tenantgate_replica, tenantgate_identity, tenantgate_migrations, tenantgate_shadow_report,
            tenantgate_usage, tenantgate_change, tenantgate_refusal TO %2$I;
        GRANT EXECUTE ON FUNCTION tenantgate_mark() TO %2$I;
        -- Every tenant gets a schema.
        GRANT CREATE ON DATABASE %3$I TO %2$I;
    $grants$, serve, admin, current_database(), home);

    -- Privileges can also come from PUBLIC, or from a role that one of these is a member of.
    FOR found IN SELECT r AS role, t::text AS thing FROM unnest(ARRAY[serve, admin]) r, unnest(tables) t
        WHERE has_table_privilege(r, t, 'TRUNCATE, REFERENCES, TRIGGER')
           OR has_table_privilege(r, t, 'UPDATE')
           OR has_table_privilege(r, t, 'DELETE') AND NOT (r = serve AND t IN ('tenantgate_replica'::regclass, 'tenantgate_shadow_report'::regclass, 'tenantgate_refusal'::regclass)
              OR r = admin AND t IN ('tenantgate_plan'::regclass, 'tenantgate_route'::regclass,
                                  'tenantgate_idempotency'::regclass, 'tenantgate_admin_session'::regclass,
                                  'tenantgate_login_link'::regclass))
           OR has_table_privilege(r, t, 'INSERT') AND NOT (r = serve AND t IN ('tenantgate_replica'::regclass, 'tenantgate_shadow_report'::regclass, 'tenantgate_refusal'::regclass)
              OR r = admin AND t IN ('tenants'::regclass, 'api_keys'::regclass, 'tenantgate_audit_log'::regclass,
                                  'tenantgate_plan'::regclass, 'tenantgate_route'::regclass,
                                  'tenantgate_admin_key'::regclass, 'tenantgate_idempotency'::regclass,
                                  'tenantgate_admin_session'::regclass, 'tenantgate_login_link'::regclass))
        UNION ALL SELECT r, 'the schema ' || home FROM unnest(ARRAY[serve, admin]) r
        WHERE has_schema_privilege(r, home::regnamespace, 'CREATE')
    LOOP
        RAISE EXCEPTION '% still has more privileges on % than expected, granted to PUBLIC or to a role that it is a '
            'member of: the owner must revoke them', found.role, found.thing;
    END LOOP;
END $do$;
