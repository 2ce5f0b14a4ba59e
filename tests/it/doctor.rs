//! Checks that `doctor` finds each problem and reports no others. Each test breaks one thing.

use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::manage::Manage;
use crate::manage_process::Encrypted;
use crate::support::cli::{Run, run_in};
use crate::support::link::free_port;
use crate::support::pooler::Pooler;
use crate::support::postgres::Cluster;
use crate::support::{Backend, Database, Server, World};

/// The findings.
#[derive(Debug)]
pub(crate) struct Findings(Vec<(String, String, String)>);

impl Findings {
    fn of(run: &Run) -> Self {
        let said: Value =
            serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:#?}"));
        let word = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        let finding = |finding: &Value| {
            assert_eq!(
                finding["remedy"].is_null(),
                finding["level"] == "ok",
                "every finding that is not ok says what to do: {finding}"
            );
            (word(finding, "check"), word(finding, "level"), word(finding, "what"))
        };
        Self(said.as_array().unwrap().iter().map(finding).collect())
    }

    /// Returns `check level` of every finding that is not ok.
    pub(crate) fn not_ok(&self) -> Vec<String> {
        let wrong = self.0.iter().filter(|(_, level, _)| level != "ok");
        wrong.map(|(check, level, _)| format!("{check} {level}")).collect()
    }

    /// Whether a check is ok.
    pub(crate) fn is_ok(&self, check: &str) -> bool {
        self.0.iter().any(|found| found.0 == check && found.1 == "ok")
    }

    /// Returns what a check found.
    pub(crate) fn seen(&self, check: &str) -> &str {
        let found = self.0.iter().find(|found| found.0 == check);
        &found.unwrap_or_else(|| panic!("no {check}: {self:#?}")).2
    }

    /// Returns what a check that is not ok found.
    fn what(&self, check: &str) -> &str {
        let found = self.0.iter().find(|found| found.0 == check && found.1 != "ok");
        &found.unwrap_or_else(|| panic!("{check} is ok: {self:#?}")).2
    }
}

/// Runs doctor on a database. Returns the findings and the exit code.
#[track_caller]
pub(crate) fn doctor(database: &Database, args: &[&str]) -> (Findings, Option<i32>) {
    let run = database.cli(&[&["doctor", "--output", "json"], args].concat());
    (Findings::of(&run), run.code)
}

/// Runs doctor on a database. Returns the findings as they are printed.
#[track_caller]
pub(crate) fn doctor_json(database: &Database) -> Vec<Value> {
    let run = database.cli(&["doctor", "--output", "json"]);
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:#?}"))
}

/// Breaks a Postgres world and expects exactly these findings in addition to those of an intact one.
#[track_caller]
fn spoilt(spoil: &str, expected: &[&str]) -> Option<(World, Findings)> {
    let world = World::on(Backend::Postgres)?;
    world.db.sql(spoil);
    let (found, code) = doctor(&world.db, &[]);
    let mut seen = found.not_ok();
    seen.retain(|found| found != SUPERUSER);
    assert_eq!(seen, expected, "{found:#?}");
    assert_eq!(code, Some(i32::from(expected.iter().any(|found| found.ends_with(" bad")))));
    Some((world, found))
}

/// The tests connect as the owner of the cluster.
const SUPERUSER: &str = "database.role warn";

#[test]
fn an_intact_database_has_no_findings_on_both_stores() {
    if let Some(world) = World::on(Backend::Postgres) {
        let (found, code) = doctor(&world.db, &[]);
        assert_eq!((found.not_ok(), code), (vec![SUPERUSER.to_owned()], Some(0)), "{found:#?}");
        for check in
            ["version", "primary", "pooler", "clock", "schema", "rights", "triggers", "functions", "rows"]
        {
            assert!(found.is_ok(&format!("database.{check}")), "{check}: {found:#?}");
        }
    }
    let world = World::somewhere();
    let file = world.db.url().trim_start_matches("sqlite://");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (found, code) = doctor(&world.db, &[]);
    assert_eq!((found.not_ok(), code), (vec![], Some(0)), "{found:#?}");
    for check in ["file", "integrity", "wal", "schema", "triggers", "tenants", "rows"] {
        assert!(found.is_ok(&format!("database.{check}")), "{check}: {found:#?}");
    }
}

#[test]
fn a_trigger_that_is_disabled_missing_or_another_one_is_found() {
    let alter = |how: &str| format!("ALTER TABLE api_keys {how} TRIGGER tenantgate_key_updated");
    let Some((_, found)) = spoilt(&alter("DISABLE"), &["database.triggers bad"]) else { return };
    assert!(found.what("database.triggers").contains("tenantgate_key_updated is disabled"), "{found:#?}");
    spoilt(&alter("ENABLE REPLICA"), &["database.triggers bad"]);
    let (_, found) = spoilt(&alter("ENABLE"), &["database.triggers bad"]).unwrap();
    assert!(found.what("database.triggers").contains("session_replication_role"), "{found:#?}");
    let (_, found) =
        spoilt("DROP TRIGGER tenantgate_tenant_truncated ON tenants", &["database.triggers bad"]).unwrap();
    assert!(found.what("database.triggers").contains("tenantgate_tenant_truncated is missing"), "{found:#?}");
    let narrower = "DROP TRIGGER tenantgate_tenant_updated ON tenants;
        CREATE TRIGGER tenantgate_tenant_updated AFTER UPDATE ON tenants FOR EACH ROW
        WHEN ((old.id, old.name, old.db_schema_name) IS DISTINCT FROM (new.id, new.name, new.db_schema_name))
        EXECUTE FUNCTION tenantgate_tenant_changed();
        ALTER TABLE tenants ENABLE ALWAYS TRIGGER tenantgate_tenant_updated";
    let (_, found) = spoilt(narrower, &["database.triggers bad"]).unwrap();
    assert!(
        found.what("database.triggers").contains("tenantgate_tenant_updated differs from the migrations"),
        "{found:#?}"
    );
    spoilt(
        "CREATE OR REPLACE FUNCTION tenantgate_key_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
        &["database.functions bad"],
    );
}

#[test]
fn each_defect_is_found_once() {
    if World::on(Backend::Postgres).is_none() {
        return;
    }
    spoilt("UPDATE tenantgate_migrations SET success = false WHERE version > 1", &["database.schema bad"]);
    spoilt("UPDATE api_keys SET hashed_key = 'plain' WHERE key_prefix = 'llmk_live'", &["database.rows bad"]);
    spoilt("DROP SCHEMA tenant_acme_corp", &["database.schemas warn"]);
    spoilt("UPDATE tenantgate_change SET at = now() - interval '3 hours'", &["database.change_log warn"]);
    // Policies do not apply to a superuser.
    spoilt("ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY", &[]);
}

#[test]
fn the_required_privileges_are_those_that_serve_needs() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let role = format!("doctor_{}", world.db.name());
    let url = world.db.url().replacen("postgres://tenantgate", &format!("postgres://{role}"), 1);
    assert_ne!(url, world.db.url());
    world.db.sql(&format!("CREATE ROLE {role} LOGIN"));
    let as_role = Database::at(Backend::Postgres, &url);
    let (found, code) = doctor(&as_role, &[]);
    assert_eq!((found.not_ok(), code), (vec!["database.schema bad".to_owned()], Some(1)), "{found:#?}");
    world.db.sql(&format!("GRANT SELECT ON tenantgate_migrations TO {role}"));
    let (found, _) = doctor(&as_role, &[]);
    assert!(found.not_ok().contains(&"database.rights bad".to_owned()), "{found:#?}");
    world.db.sql(&format!(
        "GRANT SELECT ON tenants, api_keys, tenantgate_plan, tenantgate_route, tenantgate_change, tenantgate_change_floor,
            tenantgate_identity TO {role};
         GRANT UPDATE (last_used_at, key_memo) ON api_keys TO {role}"
    ));
    let (found, code) = doctor(&as_role, &[]);
    assert_eq!((found.not_ok(), code), (vec!["database.rights warn".to_owned()], Some(0)), "{found:#?}");
    assert!(found.what("database.rights").contains("tenantgate_replica"), "{found:#?}");
    world.db.sql(&format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON tenantgate_replica TO {role};
         GRANT EXECUTE ON FUNCTION tenantgate_prune(interval), tenantgate_settle() TO {role}"
    ));
    let (found, _) = doctor(&as_role, &[]);
    assert_eq!(found.not_ok(), ["database.rights warn"], "{found:#?}");
    for right in
        ["tenantgate_add_usage(date[], uuid[], text[], bigint[])", "tenantgate_prune_usage(interval)"]
    {
        assert!(
            found.what("database.rights").contains(&format!("EXECUTE ON FUNCTION {right}")),
            "{found:#?}"
        );
        world.db.sql(&format!("GRANT EXECUTE ON FUNCTION {right} TO {role}"));
    }
    let (found, _) = doctor(&as_role, &[]);
    let lacks = "the role lacks SELECT, INSERT, UPDATE (requests, first_seen, last_seen), DELETE ON tenantgate_shadow_report; \
                 SELECT (at), INSERT, DELETE ON tenantgate_refusal";
    assert_eq!(found.what("database.rights"), lacks);
    world.db.sql(&format!(
        "GRANT SELECT, INSERT, DELETE, UPDATE (requests, first_seen, last_seen) ON tenantgate_shadow_report TO {role}; \
         GRANT SELECT (at), INSERT, DELETE ON tenantgate_refusal TO {role}"
    ));
    assert_eq!(
        doctor(&as_role, &[]).0.not_ok(),
        Vec::<String>::new(),
        "the grants of roles.sql are sufficient"
    );
    world.db.sql(&format!("GRANT INSERT ON api_keys TO {role}"));
    let (found, code) = doctor(&as_role, &[]);
    assert_eq!(
        (found.not_ok(), code),
        (vec!["database.admin_rights warn".to_owned()], Some(0)),
        "{found:#?}"
    );
    for lacking in
        ["ON tenants", "ON tenantgate_audit_log", "FUNCTION tenantgate_mark()", "CREATE ON DATABASE"]
    {
        assert!(found.what("database.admin_rights").contains(lacking), "{lacking}: {found:#?}");
    }
    world.db.sql(&format!("REVOKE INSERT ON api_keys FROM {role}"));
    world.db.sql("ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY");
    let (found, _) = doctor(&as_role, &[]);
    assert_eq!(found.not_ok(), ["database.row_security bad"], "{found:#?}");
    world.db.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn created_roles_have_the_privileges_that_doctor_requires() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let prefix = world.db.with_roles();
    let (serve, admin) =
        (world.db.seen_by(&format!("{prefix}_serve")), world.db.seen_by(&format!("{prefix}_admin")));
    let (found, code) = doctor(&serve, &[]);
    assert_eq!((found.not_ok(), code), (vec![], Some(0)), "{found:#?}");
    assert!(found.is_ok("database.rights") && found.is_ok("database.admin_rights"), "{found:#?}");
    for right in ["SELECT", "INSERT", "DELETE", "UPDATE (requests)"] {
        world.db.sql(&format!("REVOKE {right} ON tenantgate_shadow_report FROM {prefix}_serve"));
        let (found, _) = doctor(&serve, &[]);
        assert_eq!(found.not_ok(), ["database.rights warn"], "{right}: {found:#?}");
        assert!(found.what("database.rights").contains("ON tenantgate_shadow_report"), "{found:#?}");
        world.db.sql(&format!("GRANT {right} ON tenantgate_shadow_report TO {prefix}_serve"));
    }
    let (found, _) = doctor(&admin, &[]);
    assert_eq!(found.not_ok(), ["database.rights bad"], "the role is not for serve: {found:#?}");
    assert!(found.is_ok("database.admin_rights"), "{found:#?}");
    for (right, table) in [
        ("INSERT", "tenantgate_audit_log"),
        ("SELECT", "tenantgate_audit_log"),
        ("SELECT", "tenantgate_shadow_report"),
        ("SELECT", "tenantgate_usage"),
        ("UPDATE (mode)", "tenants"),
        ("UPDATE (permissions)", "tenantgate_admin_key"),
        ("DELETE", "tenantgate_idempotency"),
    ] {
        world.db.sql(&format!("REVOKE {right} ON {table} FROM {prefix}_admin"));
        let (found, _) = doctor(&admin, &[]);
        assert_eq!(found.not_ok(), ["database.rights bad", "database.admin_rights warn"], "{found:#?}");
        assert!(found.what("database.admin_rights").contains(&format!("ON {table}")), "{found:#?}");
        world.db.sql(&format!("GRANT {right} ON {table} TO {prefix}_admin"));
    }
}

#[test]
fn a_role_for_manage_is_neither_too_weak_nor_too_strong() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let prefix = world.db.with_roles();
    let (serve, admin) =
        (world.db.seen_by(&format!("{prefix}_serve")), world.db.seen_by(&format!("{prefix}_admin")));
    let (found, code) = doctor(&admin, &["--manage"]);
    assert_eq!((found.not_ok(), code), (vec![], Some(0)), "{found:#?}");
    assert!(found.is_ok("database.manage_rights") && found.is_ok("database.manage_limits"), "{found:#?}");
    let (found, code) = doctor(&serve, &["--manage"]);
    assert_eq!(
        (found.not_ok(), code),
        (vec!["database.manage_rights bad".to_owned()], Some(1)),
        "{found:#?}"
    );
    for (right, table, what) in [
        ("UPDATE (hashed_key)", "api_keys", "overwrite hashes"),
        ("DELETE", "tenants", "delete tenants or keys"),
        ("TRUNCATE", "api_keys", "delete tenants or keys"),
        ("UPDATE (actor)", "tenantgate_audit_log", "audit log"),
        ("DELETE", "tenantgate_audit_log", "audit log"),
    ] {
        world.db.sql(&format!("GRANT {right} ON {table} TO {prefix}_admin"));
        let (found, code) = doctor(&admin, &["--manage"]);
        assert_eq!(
            (found.not_ok(), code),
            (vec!["database.manage_limits warn".to_owned()], Some(0)),
            "{found:#?}"
        );
        assert!(found.what("database.manage_limits").contains(what), "{right}: {found:#?}");
        world.db.sql(&format!("REVOKE {right} ON {table} FROM {prefix}_admin"));
    }
    let (found, _) = doctor(&world.db, &["--manage"]);
    assert!(found.what("database.manage_limits").contains("own the tables"), "{found:#?}");
}

#[test]
fn a_listener_of_manage_is_examined() {
    let world = World::on(Backend::Sqlite).expect("SQLite is always there");
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let (found, code) = doctor(&world.db, &["--manage", "--target", &manage.address]);
    assert_eq!(code, Some(0), "{found:#?}");
    for check in ["manage.tls", "manage.reach", "manage.answers"] {
        assert!(found.is_ok(check), "{check}: {found:#?}");
    }
    let (found, code) = doctor(&world.db, &["--manage", "--target", &manage.ops]);
    assert!(found.not_ok().contains(&"manage.answers bad".to_owned()) && code == Some(1), "{found:#?}");
    // On all addresses, with TLS.
    let encrypted = Encrypted::on(&world.db);
    let url = format!("https://localhost:{}", encrypted.address.rsplit_once(':').expect("a port").1);
    let (found, _) = doctor(&world.db, &["--manage", "--target", &url, "--ca", &encrypted.ca]);
    assert!(found.is_ok("manage.tls") && found.is_ok("manage.answers"), "{found:#?}");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let others_reach_us = socket.connect("192.0.2.1:9").is_ok()
        && socket.local_addr().is_ok_and(|address| !address.ip().is_loopback());
    assert_eq!(found.is_ok("manage.reach"), !others_reach_us, "{found:#?}");
    let (found, code) = doctor(&world.db, &["--manage", "--target", &url]);
    assert_eq!((found.is_ok("manage.tls"), code), (false, Some(1)), "an unknown authority: {found:#?}");
}

#[test]
fn a_standby_a_pooler_and_no_database_are_distinguished() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    if let Some(pooler) = Pooler::before(&world.db) {
        let seen = world.db.url().replace(&format!(":{}/", world.db.port()), &format!(":{}/", pooler.port()));
        let (found, code) = doctor(&Database::at(Backend::Postgres, &seen), &[]);
        assert_eq!((found.not_ok(), code), (vec!["database.pooler bad".to_owned()], Some(1)), "{found:#?}");
    }
    let cluster = Cluster::private().unwrap();
    Database::at(Backend::Postgres, &cluster.url("postgres")).cli(&["migrate"]).ok();
    let standby = cluster.standby();
    let (found, code) = doctor(&Database::at(Backend::Postgres, &standby.url("postgres")), &[]);
    assert_eq!(code, Some(1));
    assert_eq!(found.not_ok(), ["database.primary bad", SUPERUSER], "{found:#?}");
    let nobody = format!("postgres://postgres@127.0.0.1:{}/x", free_port());
    let (found, code) = doctor(&Database::at(Backend::Postgres, &nobody), &[]);
    assert_eq!((found.not_ok(), code), (vec!["database.reachable bad".to_owned()], Some(3)), "{found:#?}");
}

#[test]
fn a_missing_file_is_not_created() {
    let world = World::somewhere();
    let file = world.db.dir().join("nothing.db");
    let url = format!("sqlite://{}", file.display());
    let (found, code) = doctor(&Database::at(Backend::Sqlite, &url), &[]);
    assert_eq!((found.not_ok(), code), (vec!["database.file bad".to_owned()], Some(1)), "{found:#?}");
    assert!(!file.exists());
    world.db.sql("DROP TRIGGER tenantgate_key_updated; PRAGMA foreign_keys = off; DELETE FROM tenants");
    let (found, _) = doctor(&world.db, &[]);
    let wrong = found.not_ok();
    for check in ["database.triggers bad", "database.tenants bad"] {
        assert_eq!(wrong.iter().filter(|found| *found == check).count(), 1, "{found:#?}");
    }
}

#[test]
fn the_pepper_file_is_compared_with_the_memos() {
    let world = World::somewhere();
    let file = world.db.dir().join("pepper");
    let path = file.to_str().unwrap();
    let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    let pepper = |args: &[&str]| {
        let (found, _) = doctor(&world.db, &[&["--pepper-file", path], args].concat());
        found.not_ok().into_iter().filter(|found| found.starts_with("pepper")).collect::<Vec<_>>()
    };
    assert_eq!(pepper(&[]), ["pepper.file bad"]);
    world.db.cli(&["pepper", "new", path]).ok();
    assert_eq!(pepper(&[]), Vec::<String>::new());
    mode(0o644);
    assert_eq!(pepper(&[]), ["pepper.file warn"]);
    mode(0o600);
    assert_eq!(pepper(&["--memo", "required"]), ["pepper.memos warn"]);
    world.db.json(&["key", "create", &world.acme.id, "--pepper-file", path]);
    assert_eq!(pepper(&[]), Vec::<String>::new());
    std::fs::remove_file(&file).unwrap();
    world.db.cli(&["pepper", "new", path]).ok();
    assert_eq!(pepper(&[]), ["pepper.memos warn"], "a memo by a removed pepper");
    std::fs::write(&file, "nonsense").unwrap();
    assert_eq!(pepper(&[]), ["pepper.file bad"]);
    world.db.cli(&["doctor", "--public", "nonsense"]).usage();
}

#[test]
fn a_listener_is_checked_as_envoy_calls_it() {
    let world = World::somewhere();
    let listener = |target: &str| {
        let (found, code) = doctor(&world.db, &["--target", target]);
        (found.not_ok().into_iter().filter(|found| found.starts_with("listener")).collect::<Vec<_>>(), code)
    };
    let server = Server::on(&world.db).start();
    assert_eq!(listener(&server.grpc[0]), (vec![], Some(0)));
    for (reflection, says) in
        [("on", "on: grpcurl needs no"), ("off", "off: grpcurl needs -import-path proto")]
    {
        let server = Server::on(&world.db).args(&["--reflection", reflection]).start();
        let (found, _) = doctor(&world.db, &["--target", &server.grpc[0]]);
        assert!(found.is_ok("listener.reflection"), "{found:#?}");
        assert!(found.seen("listener.reflection").starts_with(says), "{found:#?}");
    }
    let nobody = format!("127.0.0.1:{}", free_port());
    assert_eq!(listener(&nobody), (vec!["listener.answers bad".to_owned()], Some(1)));
    let open = Server::on(&world.db).args(&["--public", "GET /tenantgate-doctor/is-this-refused"]).start();
    assert_eq!(listener(&open.grpc[0]).0, ["listener.answers bad"]);
    let shadow = Server::on(&world.db).args(&["--mode", "shadow"]).start();
    assert_eq!(listener(&shadow.grpc[0]), (vec!["listener.answers warn".to_owned()], Some(0)));
}

#[test]
fn text_output_has_one_line_for_each_finding() {
    let world = World::somewhere();
    let said = run_in(world.db.dir(), &[], &["doctor", "--database-url", "sqlite://nothing.db"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.stdout.starts_with("bad   database.file"), "{said:#?}");
    assert!(said.stdout.contains("; do: check --database-url"), "{said:#?}");
    assert_eq!((said.stdout.lines().count(), said.stderr.as_str()), (1, ""), "{said:#?}");
}
