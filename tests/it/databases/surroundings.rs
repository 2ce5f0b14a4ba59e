//! Tests that the settings of roles, databases and other programs do not change what is served.

use super::{KEY, PLAIN, rows};
use crate::doctor::doctor;
use crate::support::cli::run_in;
use crate::support::pooler::Pooler;
use crate::support::world::quick_hash;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, wait};

/// Settings that change how Postgres parses or formats values, its search path, or its timeouts.
const SETTINGS: [&str; 18] = [
    "search_path = nowhere, pg_temp",
    "DateStyle = 'SQL, DMY'",
    "IntervalStyle = 'iso_8601'",
    "TimeZone = 'Asia/Kolkata'",
    "bytea_output = 'escape'",
    "standard_conforming_strings = off",
    "escape_string_warning = off",
    "quote_all_identifiers = on",
    "extra_float_digits = -15",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on",
    "statement_timeout = '3s'",
    "lock_timeout = '1ms'",
    "enable_indexscan = off",
    "jit_above_cost = 0",
    "plan_cache_mode = 'force_custom_plan'",
    "array_nulls = off",
    "lc_messages = 'C'",
];

/// Checks that a server and commands work with a database.
#[track_caller]
fn works(database: &Database, schema: &str) {
    let cli = |args: &[&str]| database.cli(&[args, &["--database-schema", schema]].concat());
    let json = |args: &[&str]| cli(&[args, &["-o", "json"]].concat()).json();
    let server = Server::on(database).env("TENANTGATE_DATABASE_SCHEMA", schema).start();
    assert_eq!(server.row(Ask::with_key(KEY)), "200 ok", "{schema}");
    cli(&["tenant", "create", "New Inc"]).ok();
    let made = json(&["key", "create", "tenant_new_inc", "--expires-in", "90d"]);
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(made["key"].as_str().unwrap()));
    assert_eq!(json(&["key", "list"]).as_array().map(Vec::len), Some(2));
    cli(&["key", "revoke", made["id"].as_str().unwrap(), "--wait=10s"]).ok();
    assert_eq!(server.row(Ask::with_key(made["key"].as_str().unwrap())), "401 revoked");
    assert!(json(&["migrate"])["mended"].is_null(), "{schema}");
    let said = cli(&["doctor"]);
    assert_eq!(said.code, Some(0), "{said:#?}");
    assert_eq!(cli(&["audit", "verify"]).code, Some(0));
    // As servers do.
    let usage = "SELECT tenantgate_add_usage(ARRAY[current_date], ARRAY[gen_random_uuid()], ARRAY['ok'], ARRAY[1]::bigint[])";
    database.sql(&format!(
        "SET search_path = \"{schema}\"; {usage}; SELECT tenantgate_prune_usage(interval '1 day')"
    ));
    let file = database.dir().join("keys.jsonl");
    cli(&["key", "export", "--with-hashes", "--file", file.to_str().unwrap()]);
}

#[test]
fn what_a_database_and_a_role_set_has_no_effect() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let database = Database::empty(Backend::Postgres).expect("as there is a world");
    database.cli(&["migrate"]).ok();
    database.sql(&rows());
    for setting in SETTINGS {
        database.sql(&format!("ALTER DATABASE {} SET {setting}", database.name()));
    }
    works(&database, "public");
    // A role's own settings come before those of the database.
    let role = format!("{}_serve", world.db.with_roles());
    for setting in SETTINGS {
        if !setting.starts_with("lc_messages") {
            world.db.sql(&format!("ALTER ROLE {role} SET {setting}"));
        }
    }
    let server = Server::on(&world.db.seen_by(&role)).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    world.db.cli(&["key", "revoke", &world.live.id, "--wait=10s"]).ok();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "401 revoked");
}

#[test]
fn a_schema_may_have_any_name() {
    for schema in ["UPPER", "Odd Name.1", "käse", "select", "a-b", "tenants", "$weird", "1st"] {
        let Some(database) = Database::empty(Backend::Postgres) else { return };
        database
            .sql(&format!("CREATE SCHEMA \"{schema}\"; SET search_path = \"{schema}\"; {PLAIN} {}", rows()));
        database.cli(&["migrate", "--database-schema", schema]).ok();
        works(&database, schema);
        let roles = format!("--roles=odd_{}", database.name());
        database.cli(&["migrate", "--database-schema", schema, &roles]).ok();
    }
    let Some(database) = Database::empty(Backend::Postgres) else { return };
    for schema in ["a,b", "a\"b", "a'b", "a\\b", "pg_mine", &"x".repeat(64)] {
        database.cli(&["migrate", "--database-schema", schema]).usage();
    }
}

/// An event trigger of an application forbids creating and dropping tables. Running servers are not affected.
#[test]
fn an_event_trigger_that_refuses_is_named_and_stops_no_server() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    world.db.sql(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'no DDL during office hours'; END $$;
         CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION refuse()",
    );
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    world.db.cli(&["key", "revoke", &world.live.id, "--wait=10s"]).ok();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "401 revoked");
    let line = world.db.cli(&["tenant", "create", "New"]).refused();
    assert!(line.contains("no DDL during office hours"), "{line}");
    world.db.sql("ALTER EVENT TRIGGER refuse DISABLE; DROP TRIGGER tenantgate_key_updated ON api_keys");
    world.db.sql("ALTER EVENT TRIGGER refuse ENABLE");
    let line = world.db.cli(&["migrate"]).refused();
    assert!(line.contains("no DDL during office hours"), "{line}");
}

/// `SQL_ASCII` does not check texts. A name that is not valid UTF-8 must not stop the load of all other rows.
#[test]
fn a_database_of_any_encoding_serves_every_row_that_can_be_read() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    for (encoding, name, warned) in
        [("SQL_ASCII", "E'caf\\xe9'", true), ("LATIN1", "E'caf\\xe9'", false), ("EUC_JP", "'cafe'", false)]
    {
        let database = world.db.neighbour_with(&format!("ENCODING {encoding} LOCALE 'C' TEMPLATE template0"));
        database.sql(PLAIN);
        database.sql(&rows());
        database.sql(&format!("SET client_encoding = {encoding}; INSERT INTO tenants (name, db_schema_name) VALUES ({name}, 'tenant_cafe')"));
        database.cli(&["migrate"]).ok();
        let server = Server::on(&database).start();
        assert_eq!(server.row(Ask::with_key(KEY)), "200 ok", "{encoding}");
        database.cli(&["key", "revoke", "llmk_ours", "--wait=10s"]).ok();
        assert_eq!(server.row(Ask::with_key(KEY)), "401 revoked", "{encoding}");
        let (found, code) = doctor(&database, &[]);
        assert_eq!(found.not_ok().contains(&"database.encoding warn".to_owned()), warned, "{found:#?}");
        assert_eq!(code, Some(0), "{found:#?}");
    }
}

/// A pooler that does not reset its sessions passes on the temporary tables of another client.
#[test]
fn temporary_tables_of_another_client_of_a_pooler_are_not_read() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let Some(pooler) = Pooler::that_cleans_nothing(&world.db) else { return };
    let url = world.db.url().replace(&format!(":{}/", world.db.port()), &format!(":{}/", pooler.port()));
    let behind = Database::at(Backend::Postgres, &url);
    let forged = "llmk_forged_ForgedSecret0123";
    behind.sql(&format!(
        "CREATE TEMP TABLE tenants AS SELECT * FROM public.tenants;
         CREATE TEMP TABLE api_keys AS SELECT * FROM public.api_keys WHERE key_prefix = 'llmk_live';
         UPDATE api_keys SET key_prefix = 'llmk_forged', hashed_key = '{}'",
        quick_hash(forged)
    ));
    let left = wait(async {
        use sqlx::{Connection as _, PgConnection, Row as _};
        let mut session = PgConnection::connect(&url).await.unwrap();
        let sql = "SELECT count(*) FROM pg_class WHERE relname = 'api_keys' AND relpersistence = 't'";
        let count: i64 = sqlx::raw_sql(sql).fetch_one(&mut session).await.unwrap().get_unchecked(0);
        session.close().await.unwrap();
        count
    });
    assert_eq!(left, 1, "the pooler hands the session on as it is");
    let shown =
        run_in(behind.dir(), &[], &["key", "show", "llmk_live", "--database-url", &url, "-o", "json"]).json();
    assert_eq!(shown["id"].as_str(), Some(world.live.id.as_str()));
}
