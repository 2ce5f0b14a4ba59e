//! Tests every faulty state of a database: `doctor` names it and its remedy, and `migrate` fixes it if it may.

use crate::doctor::{doctor, doctor_json};
use crate::support::{Backend, Database, PATIENCE, Region, World, eventually};

/// What fixes a state.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// `tenantgate migrate`.
    Migrate,
    /// The operator, as `doctor` advises.
    Hand,
}

/// The statements that cause the state, the check that finds it, a part of the finding, a part of the remedy, and what
/// fixes it.
type State = (&'static str, &'static str, &'static str, &'static str, By);

const POSTGRES: [State; 40] = [
    // Losses by a dump without privileges, a restore or a renamed schema.
    (
        "GRANT EXECUTE ON FUNCTION tenantgate_mark() TO PUBLIC",
        "database.functions",
        "every role may call",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER FUNCTION tenantgate_key_changed() RESET ALL",
        "database.functions",
        "may find tables outside public",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER FUNCTION tenantgate_mark() SET search_path = elsewhere",
        "database.functions",
        "may find tables outside",
        "migrate",
        By::Migrate,
    ),
    (
        "DROP FUNCTION tenantgate_settle()",
        "database.functions",
        "tenantgate_settle is missing",
        "migrate",
        By::Migrate,
    ),
    (
        "CREATE OR REPLACE FUNCTION tenantgate_prune(keep interval) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'",
        "database.functions",
        "tenantgate_prune differs",
        "migrate",
        By::Migrate,
    ),
    (
        "DROP TRIGGER tenantgate_key_updated ON api_keys",
        "database.triggers",
        "tenantgate_key_updated is missing",
        "migrate",
        By::Migrate,
    ),
    (
        "DROP TRIGGER tenantgate_key_truncated ON api_keys",
        "database.triggers",
        "tenantgate_key_truncated is missing",
        "migrate",
        By::Migrate,
    ),
    ("ALTER TABLE tenants DISABLE TRIGGER ALL", "database.triggers", "is disabled", "migrate", By::Migrate),
    (
        "ALTER TABLE api_keys ENABLE TRIGGER tenantgate_key_came_or_went",
        "database.triggers",
        "session_replication_role",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER TABLE tenantgate_change ENABLE ALWAYS TRIGGER tenantgate_change_replicated",
        "database.triggers",
        "tenantgate_change_replicated",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER FUNCTION tenantgate_key_changed() SECURITY INVOKER",
        "database.functions",
        "privileges of its caller",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER FUNCTION tenantgate_mark() IMMUTABLE",
        "database.functions",
        "another volatility",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER FUNCTION tenantgate_mark() SET work_mem = '4MB'",
        "database.functions",
        "has settings",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER FUNCTION tenantgate_key_changed() OWNER TO pg_monitor",
        "database.functions",
        "may not use tenantgate_change",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER TABLE tenantgate_change ENABLE TRIGGER tenantgate_change_replicated",
        "database.triggers",
        "fires for every change",
        "migrate",
        By::Migrate,
    ),
    // A restore without its last section, or an operator who looked for space.
    (
        "DROP INDEX tenantgate_change_xid",
        "database.parts",
        "tenantgate_change_xid is missing",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER TABLE tenantgate_change DROP CONSTRAINT tenantgate_change_pkey",
        "database.parts",
        "tenantgate_change has lost its PRIMARY KEY (id)",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER TABLE tenantgate_admin_key DROP CONSTRAINT tenantgate_admin_key_name_key",
        "database.parts",
        "tenantgate_admin_key has lost its UNIQUE (name)",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER TABLE tenantgate_change ALTER xid DROP DEFAULT",
        "database.parts",
        "tenantgate_change.xid has lost its default",
        "migrate",
        By::Migrate,
    ),
    (
        "ALTER TABLE tenantgate_change ALTER id DROP IDENTITY",
        "database.parts",
        "tenantgate_change.id has lost its numbers",
        "migrate",
        By::Migrate,
    ),
    ("DROP INDEX idx_api_keys_created", "database.parts", "idx_api_keys_created", "migrate", By::Migrate),
    (
        "ALTER TABLE tenantgate_usage DETACH PARTITION tenantgate_usage_default",
        "database.parts",
        "tenantgate_usage_default is not a partition",
        "ATTACH PARTITION tenantgate_usage_default DEFAULT",
        By::Hand,
    ),
    ("DELETE FROM tenantgate_identity", "database.identity", "no identity", "migrate", By::Migrate),
    (
        "DELETE FROM tenantgate_change_floor",
        "database.identity",
        "tenantgate_change_floor is empty",
        "migrate",
        By::Migrate,
    ),
    // Remains of a restore.
    (
        "INSERT INTO tenantgate_change (key_prefix, xid) VALUES ('llmk_x', '99999999')",
        "database.identity",
        "rows of another cluster",
        "migrate",
        By::Migrate,
    ),
    (
        "UPDATE tenantgate_change_floor SET xid = '99999999'",
        "database.identity",
        "rows of another cluster",
        "migrate",
        By::Migrate,
    ),
    (
        "UPDATE tenantgate_migrations SET success = false WHERE version > 3",
        "database.schema",
        "version 3",
        "migrate",
        By::Hand,
    ),
    // A second set of tables, and names that precede ours in the search path.
    (
        "CREATE SCHEMA other; CREATE TABLE other.tenantgate_migrations (version bigint)",
        "database.tables",
        "the schema other has tables of tenantgate, too",
        "drop the other set",
        By::Hand,
    ),
    (
        "UPDATE tenants SET db_schema_name = 'tenantgate' WHERE db_schema_name = 'tenant_acme_corp'",
        "database.schemas",
        "name of a role",
        "rename",
        By::Hand,
    ),
    (
        "UPDATE tenants SET db_schema_name = 'public' WHERE db_schema_name = 'tenant_acme_corp'",
        "database.schemas",
        "which has tenantgate's tables",
        "rename",
        By::Hand,
    ),
    // Tables that were changed after the adoption.
    (
        "ALTER TABLE api_keys ALTER created_at TYPE timestamp",
        "database.columns",
        "must be timestamptz",
        "ALTER TABLE",
        By::Hand,
    ),
    (
        "ALTER TABLE api_keys ADD owner text NOT NULL DEFAULT 'x'; ALTER TABLE api_keys ALTER owner DROP DEFAULT",
        "database.columns",
        "api_keys.owner is NOT NULL without a default",
        "ALTER TABLE",
        By::Hand,
    ),
    (
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_key_prefix_key",
        "database.columns",
        "api_keys.key_prefix is not UNIQUE",
        "ALTER TABLE",
        By::Hand,
    ),
    (
        "ALTER TABLE api_keys RENAME COLUMN labels TO tags",
        "database.columns",
        "api_keys.labels is missing",
        "ALTER TABLE",
        By::Hand,
    ),
    (
        "CREATE TABLE old_keys () INHERITS (api_keys)",
        "database.columns",
        "others inherit from",
        "ALTER TABLE",
        By::Hand,
    ),
    (
        "UPDATE api_keys SET hashed_key = 'plain' WHERE key_prefix = 'llmk_live'",
        "database.rows",
        "a row is damaged: key",
        "UPDATE",
        By::Hand,
    ),
    (
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_tenant_id_fkey; DELETE FROM tenants WHERE name = 'Acme Corp'",
        "database.rows",
        "does not exist",
        "restore the tenant",
        By::Hand,
    ),
    // Replication.
    (
        "CREATE PUBLICATION everything FOR ALL TABLES; SELECT tenantgate_add_usage(ARRAY[current_date], ARRAY[gen_random_uuid()], ARRAY['ok'], ARRAY[1]::bigint[])",
        "database.replication",
        "by partition",
        "publish_via_partition_root",
        By::Hand,
    ),
    (
        "CREATE PUBLICATION part FOR TABLE tenants, api_keys WITH (publish = 'insert, delete')",
        "database.replication",
        "the publication part sends no updates, such as revocations",
        "ALTER PUBLICATION part SET (publish",
        By::Hand,
    ),
    (
        "CREATE PUBLICATION part FOR TABLE api_keys WITH (publish = 'insert, update')",
        "database.replication",
        "the publication part sends no deletions",
        "ALTER PUBLICATION part SET (publish",
        By::Hand,
    ),
];

#[test]
fn doctor_finds_every_state_and_migrate_repairs_its_own_objects() {
    for (spoil, check, what, remedy, by) in POSTGRES {
        let Some(world) = World::on(Backend::Postgres) else { return };
        world.db.sql(spoil);
        let found = doctor_json(&world.db);
        let bad: Vec<_> = found.iter().filter(|found| found["level"] == "bad").collect();
        let text = |name: &str| bad[0][name].as_str().unwrap_or_default().to_owned();
        assert!(!bad.is_empty(), "{spoil}: {found:#?}");
        assert!(bad.iter().all(|found| found["check"] == check), "{spoil}: {bad:#?}");
        assert!(text("what").contains(what), "{spoil}: {bad:#?}");
        assert!(text("remedy").contains(remedy), "{spoil}: {bad:#?}");
        let mended = world.db.cli(&["migrate", "-o", "json"]);
        if by == By::Migrate {
            let mended = mended.json()["mended"].as_array().map(Vec::len);
            assert!(mended >= Some(1), "{spoil}");
            assert_eq!(doctor(&world.db, &[]).1, Some(0), "{spoil}");
        } else {
            assert_eq!(doctor(&world.db, &[]).1, Some(1), "{spoil}: it is for people to mend");
        }
    }
}

#[test]
fn doctor_reports_a_stopped_subscription_and_an_unread_slot() {
    let Some(region) = Region::shared() else { return };
    let says = |database: &Database, level: &str, what: &str| {
        eventually("doctor says it", PATIENCE, || {
            let found = doctor_json(database);
            let same = |found: &&serde_json::Value| {
                found["check"] == "database.replication"
                    && found["level"] == level
                    && found["what"].as_str().is_some_and(|said| said.contains(what))
            };
            if found.iter().any(|found| same(&found)) { Ok(()) } else { Err(found) }
        });
    };
    says(&region.copy, "ok", "writes tenants and keys");
    says(&region.origin, "ok", "changed here");
    let name = region.name();
    // A row that the subscriber rejects stops its worker.
    region.copy.sql("ALTER TABLE tenants ADD CONSTRAINT no_more CHECK (name <> 'Own')");
    region.origin.sql(&super::rows());
    says(&region.copy, "bad", "has no running worker");
    region.copy.sql("ALTER TABLE tenants DROP CONSTRAINT no_more");
    says(&region.copy, "ok", "writes tenants and keys");
    region.copy.sql(&format!("ALTER SUBSCRIPTION {name} SET (synchronous_commit = off)"));
    says(&region.copy, "warn", "commits asynchronously");
    // A table whose changes do not arrive, though the worker runs.
    let refresh = format!("ALTER SUBSCRIPTION {name} REFRESH PUBLICATION");
    region.origin.sql("ALTER PUBLICATION tenantgate DROP TABLE api_keys");
    region.copy.sql(&refresh);
    says(&region.copy, "bad", "api_keys is not part of the subscription");
    region.origin.sql("ALTER PUBLICATION tenantgate SET (publish = 'insert')");
    says(&region.origin, "bad", "sends no updates");
    region.origin.cli(&["migrate", "--publication"]).ok();
    says(&region.origin, "ok", "changed here");
    region.copy.sql("DELETE FROM api_keys; ALTER TABLE api_keys ADD CONSTRAINT none CHECK (false)");
    region.copy.sql(&refresh);
    says(&region.copy, "bad", "has not copied the rows of api_keys yet");
    region.copy.sql("ALTER TABLE api_keys DROP CONSTRAINT none");
    says(&region.copy, "warn", "commits asynchronously");
    // Rows of a subscriber are corrected at its publisher.
    region.copy.sql("UPDATE api_keys SET hashed_key = 'plain'");
    let found = doctor_json(&region.copy);
    let rows = found.iter().find(|found| found["check"] == "database.rows").expect("a finding");
    assert!(rows["remedy"].as_str().is_some_and(|said| said.starts_with("change nothing here")), "{rows}");
    region.copy.sql(&format!("ALTER SUBSCRIPTION {name} DISABLE"));
    says(&region.copy, "bad", "is disabled: revocations of its publisher do not arrive");
    says(&region.origin, "warn", "no subscriber reads the slot");
}

const SQLITE: [State; 5] = [
    (
        "DROP TRIGGER tenantgate_key_updated",
        "database.triggers",
        "tenantgate_key_updated is missing",
        "migrate",
        By::Migrate,
    ),
    (
        "DROP TRIGGER tenantgate_tenant_updated; CREATE TRIGGER tenantgate_tenant_updated AFTER UPDATE ON tenants BEGIN SELECT 1; END",
        "database.triggers",
        "tenantgate_tenant_updated is missing or differs",
        "migrate",
        By::Migrate,
    ),
    ("DELETE FROM tenantgate_identity", "database.identity", "no identity", "migrate", By::Migrate),
    (
        "PRAGMA foreign_keys = off; DELETE FROM tenants WHERE name = 'Acme Corp'",
        "database.tenants",
        "have no tenant",
        "DELETE them",
        By::Hand,
    ),
    (
        "UPDATE api_keys SET hashed_key = 'plain' WHERE key_prefix = 'llmk_live'",
        "database.rows",
        "a row is damaged: key",
        "UPDATE",
        By::Hand,
    ),
];

#[test]
fn doctor_finds_every_state_of_a_file_and_migrate_repairs_its_own_objects() {
    for (spoil, check, what, remedy, by) in SQLITE {
        let world = World::somewhere();
        world.db.sql(spoil);
        let found = doctor_json(&world.db);
        let bad: Vec<_> = found.iter().filter(|found| found["level"] == "bad").collect();
        let one = bad.iter().find(|found| found["check"] == check);
        let one = one.unwrap_or_else(|| panic!("{spoil}: {found:#?}"));
        assert!(one["what"].as_str().is_some_and(|said| said.contains(what)), "{spoil}: {one}");
        assert!(one["remedy"].as_str().is_some_and(|said| said.contains(remedy)), "{spoil}: {one}");
        if by == By::Migrate {
            let mended = world.db.json(&["migrate"])["mended"].as_array().map(Vec::len);
            assert_eq!(mended, Some(1), "{spoil}");
            assert_eq!(doctor(&world.db, &[]).1, Some(0), "{spoil}");
        }
    }
    let world = World::somewhere();
    let file = world.db.url().trim_start_matches("sqlite://");
    std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let (found, code) = doctor(&world.db, &[]);
    assert_eq!((found.not_ok(), code), (vec!["database.file bad".to_owned()], Some(1)), "{found:#?}");
}
