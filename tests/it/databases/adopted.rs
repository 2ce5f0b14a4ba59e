//! Tests databases that other programs share: the fixed schema, schemas of tenants, and adopted tables.

use super::{KEY, PLAIN, postgres_with, rows};
use crate::support::cli::run_in;
use crate::support::world::quick_hash;
use crate::support::{Ask, Backend, Server, World};

#[test]
fn a_schema_named_like_the_role_makes_no_second_set_of_tables() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let line = world.db.cli(&["tenant", "create", "Owner Inc", "--schema", "tenantgate"]).refused();
    assert!(line.contains("name of a role"), "{line}");
    let line = world.db.cli(&[
        "tenant",
        "create",
        "Odd Inc",
        "--status",
        "pending_provisioning",
        "--schema",
        "tenantgate",
    ]);
    assert!(line.refused().contains("name of a role"));
    world.db.sql("CREATE SCHEMA tenantgate");
    assert_eq!(world.db.json(&["migrate"])["applied"], serde_json::json!([]));
    let count = "SELECT count(*)::text FROM pg_class WHERE relname = 'api_keys'";
    assert_eq!(world.db.text(count).as_deref(), Some("1"));
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
}

#[test]
fn tables_in_another_schema_are_refused_with_the_option_to_use() {
    let sql = format!("CREATE SCHEMA app; SET search_path = app; {PLAIN} {}", rows());
    let Some(database) = postgres_with(&sql) else { return };
    database.sql(&format!("ALTER DATABASE {} SET search_path = app, public", database.name()));
    for command in [&["migrate"][..], &["tenant", "list"], &["key", "revoke", "llmk_ours"]] {
        let line = database.cli(command).refused();
        assert!(line.contains("\"app\"") && line.contains("--database-schema app"), "{line}");
    }
    let (code, _, stderr) = Server::on(&database).run_to_end();
    assert_eq!((code, stderr.matches("--database-schema").count()), (Some(1), 1), "{stderr}");
    let count = "SELECT count(*)::text FROM pg_class WHERE relname IN ('tenants', 'api_keys', 'tenantgate_migrations')";
    assert_eq!(database.text(count).as_deref(), Some("2"), "nothing was created");
    database.cli(&["migrate", "--database-schema", "app"]).ok();
    let server = Server::on(&database).env("TENANTGATE_DATABASE_SCHEMA", "app").start();
    assert_eq!(server.row(Ask::with_key(KEY)), "200 ok");
    // The same in the URL; two different values are a usage error.
    let url = format!("{}?options=-c%20search_path%3Dapp", database.url());
    let shown =
        run_in(database.dir(), &[], &["key", "show", "llmk_ours", "--database-url", &url, "-o", "json"]);
    assert_eq!(shown.json()["key_prefix"], "llmk_ours");
    let args = ["key", "list", "--database-url", &url, "--database-schema", "public"];
    run_in(database.dir(), &[], &args).usage();
    let said = database.cli(&["doctor"]);
    assert!(said.stdout.contains("bad   database.schema"), "{said:#?}");
}

#[test]
fn the_administrators_role_cannot_put_tables_before_ours() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let prefix = world.db.with_roles();
    let (serve, admin) = (format!("{prefix}_serve"), world.db.seen_by(&format!("{prefix}_admin")));
    let forged = "llmk_forged_ForgedSecret0123";
    admin.sql(&format!(
        "CREATE SCHEMA {serve}; SET search_path = {serve};
         CREATE TABLE tenants AS SELECT * FROM public.tenants;
         CREATE TABLE api_keys AS SELECT * FROM public.api_keys LIMIT 1;
         UPDATE api_keys SET key_prefix = 'llmk_forged', hashed_key = '{}', revoked_at = NULL, expires_at = NULL;
         GRANT USAGE ON SCHEMA {serve} TO PUBLIC; GRANT SELECT ON tenants, api_keys TO PUBLIC",
        quick_hash(forged)
    ));
    let server = Server::on(&world.db.seen_by(&serve)).start();
    assert_eq!(server.row(Ask::with_key(forged)), "401 unknown");
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
}

#[test]
fn a_tenant_cannot_use_a_schema_of_another_program() {
    let Some(database) =
        postgres_with("CREATE SCHEMA app; CREATE TABLE app.theirs (n int); CREATE SCHEMA bare")
    else {
        return;
    };
    database.cli(&["migrate", "--database-schema", "gate"]).ok();
    let create = |schema: &str, more: &[&str]| {
        let args = ["tenant", "create", "New", "--schema", schema, "--database-schema", "gate"];
        database.cli(&[&args, more].concat())
    };
    assert!(create("gate", &[]).refused().contains("tables of tenantgate"));
    assert!(create("app", &[]).refused().contains("--adopt-schema"));
    create("bare", &[]).ok();
    create("app", &["--adopt-schema"]).ok();
    let rows = database.text("SELECT count(*)::text FROM gate.tenants");
    assert_eq!(rows.as_deref(), Some("2"), "a rejected tenant left no row");
}

/// Statements that break the plain tables, and a part of the expected error.
const SPOILT: [(&str, &str); 34] = [
    ("ALTER TABLE api_keys DROP CONSTRAINT api_keys_key_prefix_key", "api_keys.key_prefix is not UNIQUE"),
    (
        "ALTER TABLE api_keys ALTER id DROP DEFAULT, ALTER id TYPE varchar(36)",
        "api_keys.id is character varying(36): must be uuid",
    ),
    (
        "CREATE TYPE state AS ENUM ('active'); ALTER TABLE tenants ALTER status DROP DEFAULT, ALTER status TYPE state USING 'active'::state",
        "tenants.status is state (an enum)",
    ),
    (
        "ALTER TABLE api_keys ADD owner text NOT NULL DEFAULT 'x'; ALTER TABLE api_keys ALTER owner DROP DEFAULT",
        "api_keys.owner is NOT NULL without a default",
    ),
    ("ALTER TABLE api_keys ALTER hashed_key DROP NOT NULL", "api_keys.hashed_key may be NULL"),
    ("ALTER TABLE api_keys RENAME TO keys; CREATE VIEW api_keys AS SELECT * FROM keys", "api_keys is a view"),
    ("ALTER TABLE api_keys ALTER expires_at TYPE text", "api_keys.expires_at is text: must be timestamptz"),
    (
        "ALTER TABLE api_keys DROP expires_at, ADD expires_at timestamptz GENERATED ALWAYS AS (created_at) STORED",
        "api_keys.expires_at is GENERATED: must be an ordinary column",
    ),
    ("ALTER TABLE api_keys ADD is_active bool NOT NULL DEFAULT true", "--revoke-where is_active=false"),
    ("ALTER TABLE api_keys ADD is_active smallint NOT NULL DEFAULT 1", "--revoke-where is_active=false"),
    ("ALTER TABLE api_keys ADD blocked bool NOT NULL DEFAULT false", "--revoke-where blocked=true"),
    ("ALTER TABLE tenants ADD is_deleted bool NOT NULL DEFAULT false", "tenants.is_deleted"),
    ("ALTER TABLE api_keys ADD deleted_at timestamptz", "--revoke-where deleted_at=*"),
    ("ALTER TABLE api_keys ADD status text NOT NULL DEFAULT 'active'", "--revoke-where status=revoked"),
    ("ALTER TABLE api_keys ADD \"isActive\" bool NOT NULL DEFAULT true", "--revoke-where isActive=false"),
    ("ALTER TABLE tenants ADD \"is active\" bool NOT NULL DEFAULT true", "--revoke-where 'is active=false'"),
    ("ALTER TABLE api_keys ADD \"revokedAt\" timestamptz", "--revoke-where revokedAt=*"),
    ("ALTER TABLE tenants ADD disabled_at timestamptz", "--revoke-where disabled_at=*"),
    ("ALTER TABLE api_keys ADD valid_until timestamptz", "set expires_at of such keys"),
    (
        "ALTER TABLE api_keys ALTER expires_at SET DEFAULT now(), ALTER expires_at SET NOT NULL",
        "api_keys.expires_at is NOT NULL: must allow NULL",
    ),
    (
        "ALTER TABLE api_keys ADD revoked_at timestamptz NOT NULL DEFAULT 'infinity'",
        "api_keys.revoked_at is NOT NULL: must allow NULL",
    ),
    (
        "ALTER TABLE api_keys ADD revoked_at timestamptz DEFAULT 'infinity'",
        "api_keys.revoked_at has a default: must have none",
    ),
    (
        "ALTER TABLE tenants ADD CONSTRAINT few CHECK (status IN ('active', 'suspended'))",
        "tenants.status may not be pending_provisioning, deleted (constraint few)",
    ),
    ("ALTER TABLE api_keys SET UNLOGGED", "api_keys is UNLOGGED"),
    ("CREATE TABLE old_keys () INHERITS (api_keys)", "api_keys is a table that others inherit from"),
    (
        "CREATE RULE kept AS ON UPDATE TO api_keys DO INSTEAD NOTHING",
        "api_keys is a table with rewrite rules",
    ),
    (
        "DROP TABLE api_keys; CREATE TABLE api_keys (id uuid) PARTITION BY HASH (id)",
        "api_keys is a partitioned table",
    ),
    ("DROP TABLE api_keys", "api_keys is missing beside tenants"),
    (
        "ALTER TABLE api_keys ALTER key_prefix TYPE varchar(12)",
        "api_keys.key_prefix is character varying(12): must take 25",
    ),
    (
        "ALTER TABLE api_keys ALTER hashed_key TYPE char(60)",
        "api_keys.hashed_key is character(60): must be text or varchar",
    ),
    (
        "CREATE DOMAIN word AS text; ALTER TABLE api_keys ALTER key_prefix TYPE word",
        "api_keys.key_prefix is word: must be text or varchar",
    ),
    (
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_key_prefix_key, ADD UNIQUE (key_prefix) DEFERRABLE",
        "api_keys.key_prefix is not UNIQUE",
    ),
    (
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_key_prefix_key; CREATE UNIQUE INDEX ON api_keys (key_prefix) WHERE expires_at IS NULL",
        "api_keys.key_prefix is not UNIQUE",
    ),
    (
        "CREATE COLLATION vague (provider = icu, locale = 'und-u-ks-level2', deterministic = false); ALTER TABLE api_keys ALTER key_prefix TYPE text COLLATE vague",
        "api_keys.key_prefix has a nondeterministic collation",
    ),
];

#[test]
fn tables_that_cannot_be_served_are_refused_before_any_change() {
    for (spoil, wanted) in SPOILT {
        let Some(database) = postgres_with(&format!("{PLAIN} {spoil}")) else { return };
        let said = database.cli(&["migrate"]);
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{spoil}: {said:#?}");
        assert!(said.stderr.contains(wanted), "{spoil}: {said:#?}");
        let ours = database.text("SELECT count(*)::text FROM pg_class WHERE relname LIKE 'tenantgate%'");
        assert_eq!(ours.as_deref(), Some("0"), "{spoil}");
    }
}

/// As `pg_dump -t tenants -t api_keys | psql` leaves a database.

#[test]
fn the_two_tables_of_a_database_of_tenantgate_are_adopted_alone() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    world.db.json(&["plan", "create", "pro"]);
    world.db.json(&["key", "update", "llmk_live", "--plan", "pro", "--scopes", "chat:read"]);
    world.db.sql(
        "DO $do$ DECLARE one text; BEGIN
             FOR one IN SELECT format('DROP TABLE IF EXISTS %I CASCADE', relname) FROM pg_class
                 WHERE relname LIKE 'tenantgate%' AND relkind IN ('r', 'p') LOOP EXECUTE one; END LOOP;
             FOR one IN SELECT format('DROP FUNCTION %s CASCADE', oid::regprocedure) FROM pg_proc
                 WHERE proname LIKE 'tenantgate%' LOOP EXECUTE one; END LOOP;
         END $do$",
    );
    world.db.cli(&["migrate"]).ok();
    assert_eq!(world.db.cli(&["doctor"]).code, Some(0));
    let shown = world.db.json(&["key", "show", "llmk_live"]);
    assert_eq!((&shown["plan"], &shown["status"]), (&"pro".into(), &"active".into()), "{shown}");
    assert_eq!(Server::on(&world.db).start().row(Ask::with_key(&world.live.text)), "200 ok");
}

#[test]
fn an_index_of_the_application_with_a_name_of_tenantgates_is_kept() {
    let sql = format!("{PLAIN} {}; CREATE INDEX idx_api_keys_created ON api_keys (created_at)", rows());
    let Some(database) = postgres_with(&sql) else { return };
    let said = database.cli(&["migrate"]);
    assert!(said.stderr.contains("idx_api_keys_created_before"), "{said:#?}");
    let there =
        "SELECT indexname::text FROM pg_indexes WHERE indexname LIKE 'idx_api_keys_created%' ORDER BY 1";
    assert_eq!(database.texts(there).len(), 2);
}

#[test]
fn the_schema_of_the_tables_is_not_that_of_each_role() {
    let Some(database) = postgres_with(PLAIN) else { return };
    database.cli(&["migrate", "--database-schema", "$user"]).usage();
    let ours = database.text("SELECT count(*)::text FROM pg_class WHERE relname LIKE 'tenantgate%'");
    assert_eq!(ours.as_deref(), Some("0"));
}

#[test]
fn a_pending_tenant_does_not_get_a_schema_that_was_filled_meanwhile() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let pending = ["--schema", "tenant_filled", "--status", "pending_provisioning"];
    world.db.cli(&[&["tenant", "create", "Filled"][..], &pending].concat()).ok();
    world.db.sql("CREATE SCHEMA tenant_filled; CREATE TABLE tenant_filled.theirs (n int)");
    let line = world.db.cli(&["tenant", "activate", "Filled"]).refused();
    assert!(
        line.starts_with("error: the schema \"tenant_filled\" exists") && line.contains("--adopt-schema"),
        "{line}"
    );
    world.db.cli(&["tenant", "activate", "Filled", "--adopt-schema"]).ok();
    world.db.cli(&["tenant", "suspend", "Filled"]).ok();
    world.db.cli(&["tenant", "activate", "Filled"]).ok();
}

#[test]
fn migrate_says_nothing_to_do_only_if_it_did_nothing() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    for (option, wanted) in
        [("--new-identity", "the new identity is"), ("--publication", "the publication is")]
    {
        let said = world.db.cli(&["migrate", option]);
        assert!(said.stdout.contains(wanted) && !said.stdout.contains("nothing to do"), "{said:#?}");
    }
    assert!(world.db.cli(&["migrate"]).stdout.contains("nothing to do"));
}

#[test]
fn a_default_is_converted_without_being_executed() {
    let sql = format!(
        "{} {}; CREATE FUNCTION trap() RETURNS timestamp LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''executed''; END';
         ALTER TABLE api_keys ALTER expires_at SET DEFAULT trap()",
        PLAIN.replace("timestamptz", "timestamp"),
        rows()
    );
    let Some(database) = postgres_with(&sql) else { return };
    database.cli(&["migrate"]).ok();
    let default = "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef d JOIN pg_attribute a ON (adrelid, adnum) = (attrelid, attnum)
                   WHERE adrelid = 'api_keys'::regclass AND attname = 'expires_at'";
    assert_eq!(database.text(default).as_deref(), Some("(trap() AT TIME ZONE 'UTC'::text)"));
}

/// For every type of a column that disables rows, and every spelling of its value.

#[test]
fn losses_by_a_restore_or_a_rename_are_found_and_fixed() {
    for spoil in [
        "GRANT EXECUTE ON FUNCTION tenantgate_mark() TO PUBLIC",
        "ALTER FUNCTION tenantgate_key_changed() RESET ALL",
        "DROP TRIGGER tenantgate_key_updated ON api_keys",
        "ALTER TABLE tenants DISABLE TRIGGER tenantgate_tenant_updated",
        "DROP FUNCTION tenantgate_settle()",
        "DELETE FROM tenantgate_identity",
    ] {
        let Some(world) = World::on(Backend::Postgres) else { return };
        world.db.sql(spoil);
        let said = world.db.cli(&["doctor"]);
        assert_eq!(said.code, Some(1), "{spoil}: {said:#?}");
        let mended = world.db.json(&["migrate"]);
        assert_eq!(mended["mended"].as_array().map(Vec::len), Some(1), "{spoil}: {mended}");
        assert_eq!(world.db.cli(&["doctor"]).code, Some(0), "{spoil}");
    }
    let Some(world) = World::on(Backend::Postgres) else { return };
    world.db.sql("ALTER SCHEMA public RENAME TO gate; CREATE SCHEMA public");
    let gate = ["--database-schema", "gate"];
    let cli = |args: &[&str]| world.db.cli(&[args, &gate].concat());
    assert_eq!(cli(&["doctor"]).code, Some(1));
    cli(&["migrate"]).ok();
    assert_eq!(cli(&["doctor"]).code, Some(0));
    cli(&["key", "create", &world.acme.id]).ok();
}

#[test]
fn existing_columns_of_plans_and_terms_are_adopted_if_their_values_are_valid() {
    let plans = |plan: &str| {
        format!(
            "{PLAIN} {}; ALTER TABLE tenants ADD COLUMN plan text; UPDATE tenants SET plan = '{plan}'",
            rows()
        )
    };
    let Some(database) = postgres_with(&plans("pro")) else { return };
    database.cli(&["migrate"]).ok();
    assert_eq!(database.json(&["plan", "show", "pro"])["tenants"], 1);
    assert_eq!(database.json(&["key", "show", "llmk_ours"])["status"], "active");
    let scopes = format!("{PLAIN} {}; ALTER TABLE api_keys ADD COLUMN scopes text DEFAULT 'a,b'", rows());
    for sql in [plans("Pro Plan"), scopes] {
        let Some(database) = postgres_with(&sql) else { return };
        let line = database.cli(&["migrate"]).refused();
        assert!(line.contains("migration 5"), "{line}");
        let count = "SELECT count(*)::text FROM pg_class WHERE relname LIKE 'tenantgate%'";
        assert_eq!(database.text(count).as_deref(), Some("0"), "nothing was created");
    }
}
