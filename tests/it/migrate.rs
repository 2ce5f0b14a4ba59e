//! Tests migration of existing tables, and the tables that are rejected.
//!
//! The legacy tables are written as in existing deployments, with hashes by Python's bcrypt. No part of this file uses
//! the program's own definitions.

use crate::support::cli::{DATABASE_URL, run_in};
use crate::support::{Ask, Backend, Database, Server, World, on_every_store};

/// The two tables and their indexes, as the older SQL made them.
const LEGACY: &str = r"
CREATE TABLE tenants (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL,
    db_schema_name varchar(63) NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    status varchar(50) NOT NULL DEFAULT 'active',
    CONSTRAINT chk_tenant_status CHECK (status IN ('active', 'suspended', 'pending_provisioning', 'deleted'))
);
CREATE TABLE api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    hashed_key text NOT NULL UNIQUE,
    key_prefix varchar(100) NOT NULL UNIQUE,
    tenant_id uuid NOT NULL REFERENCES tenants(id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NULL,
    last_used_at timestamptz NULL
);
CREATE INDEX idx_api_keys_prefix ON api_keys(key_prefix);
CREATE INDEX idx_api_keys_tenant_id ON api_keys(tenant_id);
CREATE INDEX idx_tenants_status ON tenants(status);
CREATE INDEX idx_tenants_schema_name ON tenants(db_schema_name);
COMMENT ON TABLE tenants IS 'who may use the platform';
INSERT INTO tenants (id, name, db_schema_name, status) VALUES
    ('11111111-1111-4111-8111-111111111111', 'Production', 'tenant_production', 'active'),
    ('22222222-2222-4222-8222-222222222222', 'Quiet', 'tenant_quiet', 'suspended');
INSERT INTO api_keys (id, hashed_key, key_prefix, tenant_id, expires_at, last_used_at) VALUES
    ('aaaaaaaa-0000-4000-8000-000000000001', '$2b$10$P3VBCLmR5leiwXAOryqwSOaDONziWqlDvkO9xj6WR8eCBqSfh/Cti',
     'llmk_prod1', '11111111-1111-4111-8111-111111111111', NULL, '2025-01-01 00:00:00+00'),
    ('aaaaaaaa-0000-4000-8000-000000000002', '$2b$10$qyfmNUyrrXeXl3zNlXXy.egmKSVUs/W1Xz1gpu6kiRWImPUhIzRVm',
     'llmk_prod2', '11111111-1111-4111-8111-111111111111', '2099-01-01 00:00:00+00', NULL),
    ('aaaaaaaa-0000-4000-8000-000000000003', '$2b$12$uv3b5wMMPyv37c5RaVYfHu0y0unKN6IdRm8Q7Atbb9umxS1XA.z0a',
     'llmk_batch-job', '11111111-1111-4111-8111-111111111111', 'infinity', NULL),
    ('aaaaaaaa-0000-4000-8000-000000000004', '$2b$10$fLUhxch.q4U.zSLfOqrgwubXM1o8N51nKzCpMshucbSJCtn795UcW',
     'llmk_old', '11111111-1111-4111-8111-111111111111', '2025-01-01 00:00:00+00', NULL),
    ('aaaaaaaa-0000-4000-8000-000000000005', '$2b$10$Qo6C/yrIXGGrEvF4P3zQRudL.6M6bf6c5xCks/8ZMo3l13Vg04wnm',
     'llmk_quiet', '22222222-2222-4222-8222-222222222222', NULL, NULL);
";

/// The keys of those hashes, with their answers.
const KEYS: [(&str, &str); 5] = [
    ("llmk_prod1_cK9vXw2LmQ4tR7yU0pZs", "200 ok"),
    ("llmk_prod2_a-Legacy_Secret-with_underscores", "200 ok"),
    ("llmk_batch-job_N4fJ8sQ1wE6rT3yU9iO2pA5d", "200 ok"),
    ("llmk_old_Expired0123456789", "401 expired"),
    ("llmk_quiet_Suspended0123456789", "403 tenant_inactive"),
];

/// The values of all legacy columns.
const LEGACY_ROWS: &str = "SELECT concat_ws('|', id, hashed_key, key_prefix, tenant_id, created_at, expires_at, last_used_at) \
     FROM api_keys UNION ALL SELECT concat_ws('|', id, name, db_schema_name, created_at, status) FROM tenants ORDER BY 1";

on_every_store![
    migrating_again_does_nothing,
    the_database_rejects_invalid_rows,
    tables_and_columns_have_the_documented_names,
];

fn legacy() -> Option<Database> {
    let database = Database::empty(Backend::Postgres)?;
    database.sql(LEGACY);
    Some(database)
}

/// The URL in the form in which such deployments have it.
fn for_asyncpg(database: &Database) -> String {
    database.url().replacen("postgres://", "postgresql+asyncpg://", 1)
}

#[test]
fn an_existing_deployment_works_without_new_keys() {
    let Some(database) = legacy() else { return };
    let before = database.texts(LEGACY_ROWS);
    let url = for_asyncpg(&database);
    let migrated = run_in(database.dir(), &[(DATABASE_URL, &url)], &["migrate", "-o", "json"]).json();
    assert_eq!(migrated["applied"].as_array().map(Vec::is_empty), Some(false), "{migrated}");
    assert_eq!(database.texts(LEGACY_ROWS), before, "no row was changed");
    let server =
        Server::plan(database.dir(), &["--ops-listen", "127.0.0.1:0"]).env(DATABASE_URL, &url).start();
    for (key, wanted) in KEYS {
        assert_eq!(server.row(Ask::with_key(key)), wanted, "{key}");
    }
    let answer = server.check(Ask::with_key(KEYS[0].0));
    assert_eq!(answer.meta("key_id"), "aaaaaaaa-0000-4000-8000-000000000001");
    assert_eq!(answer.headers()["x-llmcore-tenant-schema"], "tenant_production");
    assert_eq!(server.check(Ask::with_key(KEYS[1].0)).meta("key_expires_at").get(..10), Some("2099-01-01"));
    assert_eq!(
        server.check(Ask::with_key(KEYS[2].0)).metadata.get("key_expires_at"),
        None,
        "infinity is never"
    );
    let shown = database.json(&["key", "show", "llmk_batch-job"]);
    assert_eq!((&shown["status"], &shown["expires_at"]), (&"active".into(), &serde_json::Value::Null));
}

#[test]
fn an_old_schema_is_refused_with_the_command_to_run() {
    let (Some(old), Some(empty)) = (legacy(), Database::empty(Backend::Postgres)) else { return };
    let commands: [&[&str]; 6] = [
        &["tenant", "list"],
        &["tenant", "create", "New"],
        &["key", "list"],
        &["key", "show", "llmk_prod1"],
        &["key", "revoke", "llmk_prod1"],
        &["seed-demo"],
    ];
    for database in [&old, &empty] {
        for command in commands {
            let line = database.cli(command).refused();
            assert!(line.contains("tenantgate migrate"), "{line}");
        }
        let (code, stdout, stderr) = Server::on(database).run_to_end();
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        assert_eq!(
            stderr.matches("tenantgate migrate").count(),
            1,
            "one line, with the command to run: {stderr}"
        );
    }
}

#[test]
fn serve_migrates_postgres_with_its_option() {
    let (Some(old), Some(empty)) = (legacy(), Database::empty(Backend::Postgres)) else { return };
    let server = Server::on(&old).arg("--migrate").start();
    assert_eq!(server.row(Ask::with_key(KEYS[0].0)), "200 ok");
    let server = Server::on(&empty).arg("--migrate").start();
    assert_eq!(server.row(Ask::with_key(KEYS[0].0)), "401 unknown");
    assert_eq!(empty.json(&["tenant", "list"]), serde_json::json!([]));
}

#[test]
fn every_command_migrates_an_old_sqlite_file() {
    let database = Database::empty(Backend::Sqlite).expect("always there");
    let server = Server::on(&database).start();
    assert_eq!(server.row(Ask::with_key(KEYS[0].0)), "401 unknown");
    assert_eq!(database.json(&["key", "list"]), serde_json::json!([]));
}

#[test]
fn concurrent_migrations_succeed() {
    let Some(database) = legacy() else { return };
    let runs = std::thread::scope(|scope| {
        let runs = [(); 3].map(|()| scope.spawn(|| database.cli(&["migrate"])));
        runs.map(|run| run.join().expect("no panic"))
    });
    for run in runs {
        run.ok();
    }
    assert_eq!(database.json(&["migrate"])["applied"], serde_json::json!([]));
}

fn migrating_again_does_nothing(world: &World) {
    let first = world.db.json(&["migrate"]);
    let names: Vec<&str> = first.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, ["applied", "current"]);
    assert_eq!(first["applied"], serde_json::json!([]), "the world is migrated");
    assert!(first["current"].as_u64().is_some_and(|version| version > 0), "{first}");
    assert_eq!(world.db.json(&["migrate"]), first);
    assert!(!world.db.cli(&["migrate"]).ok().is_empty(), "the text output is not empty");
}

fn tables_and_columns_have_the_documented_names(world: &World) {
    let count = |sql: &str| world.db.texts(sql).len();
    assert_eq!(count("SELECT name FROM tenants WHERE status IN ('active', 'deleted')"), 2);
    assert_eq!(count("SELECT key_prefix FROM api_keys WHERE revoked_at IS NULL"), 7);
    let columns = "SELECT id, hashed_key, key_prefix, tenant_id, created_at, expires_at, last_used_at, name, revoked_at";
    assert_eq!(count(&format!("SELECT 'x' FROM ({columns} FROM api_keys) AS k")), 8);
    assert_eq!(
        count("SELECT 'x' FROM (SELECT id, name, db_schema_name, created_at, status FROM tenants) AS t"),
        4
    );
}

fn the_database_rejects_invalid_rows(world: &World) {
    let refused = [
        "UPDATE tenants SET status = 'frozen'",
        "UPDATE tenants SET status = NULL",
        "UPDATE tenants SET name = NULL",
        "UPDATE tenants SET db_schema_name = 'the_same'",
        "UPDATE api_keys SET key_prefix = 'llmk_same'",
        "UPDATE api_keys SET hashed_key = 'same'",
        "UPDATE api_keys SET hashed_key = NULL",
        "UPDATE api_keys SET tenant_id = NULL",
        "UPDATE api_keys SET tenant_id = id",
    ];
    let before = world.db.json(&["key", "list"]);
    for sql in refused {
        let said = world.db.refuses(sql).to_lowercase();
        assert!(said.contains("constraint") || said.contains("null"), "{sql}: {said}");
    }
    assert_eq!(world.db.json(&["key", "list"]), before);
    world.db.sql(&format!("DELETE FROM tenants WHERE db_schema_name = '{}'", world.sleepy.schema));
    assert_eq!(
        world.db.json(&["key", "list"]).as_array().map(Vec::len),
        Some(7),
        "deleting a tenant deletes its keys"
    );
}

#[test]
fn truncate_is_rejected() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    for sql in ["TRUNCATE api_keys", "TRUNCATE tenants CASCADE", "TRUNCATE tenants, api_keys"] {
        world.db.refuses(sql);
    }
    assert_eq!(world.db.text("SELECT count(*)::text FROM api_keys").as_deref(), Some("8"));
}

#[test]
fn a_fresh_postgres_has_the_documented_constraint_indexes_and_comments() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let indexes = world.db.texts("SELECT indexname::text FROM pg_indexes WHERE schemaname = 'public'");
    for index in
        ["idx_api_keys_prefix", "idx_api_keys_tenant_id", "idx_tenants_status", "idx_tenants_schema_name"]
    {
        assert!(indexes.contains(&Some(index.to_owned())), "{index}: {indexes:?}");
    }
    let constraints = world.db.texts("SELECT conname::text FROM pg_constraint");
    assert!(constraints.contains(&Some("chk_tenant_status".to_owned())), "{constraints:?}");
    let undocumented = world.db.texts(
        "SELECT c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 \
         WHERE c.relname IN ('tenants', 'api_keys') AND c.relkind = 'r' AND NOT a.attisdropped AND a.attname NOT IN ('id', 'tenant_id', 'created_at') \
           AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid) IS NULL)",
    );
    assert_eq!(
        undocumented,
        Vec::<Option<String>>::new(),
        "columns whose meaning is not in their name, without a comment"
    );
    let types = world.db.texts(
        "SELECT column_name || ' ' || udt_name || coalesce('(' || character_maximum_length || ')', '') || ' ' || is_nullable \
         FROM information_schema.columns WHERE table_schema = 'public' AND table_name = 'api_keys' \
           AND column_name NOT IN ('name') ORDER BY ordinal_position LIMIT 7",
    );
    let types: Vec<String> = types.into_iter().flatten().collect();
    let wanted = [
        "id uuid NO",
        "hashed_key text NO",
        "key_prefix varchar(100) NO",
        "tenant_id uuid NO",
        "created_at timestamptz NO",
        "expires_at timestamptz YES",
        "last_used_at timestamptz YES",
    ];
    assert_eq!(types, wanted);
}
