//! Checks that each role can do its work, and nothing more.
//!
//! The roles are those of `migrations/roles.sql`, created as the docs describe. What a role must not do is a table of
//! statements, each of which Postgres rejects for a missing privilege.

use std::time::Duration;

use tenantgate::store::Store as _;
use tenantgate::store::postgres::PostgresStore;

use crate::support::cli::run_in;
use crate::support::database::Session;
use crate::support::postgres::Cluster;
use crate::support::world::string;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, eventually, wait};

/// Statements for the owner of tables only.
const FOR_THE_OWNER: [&str; 16] = [
    "TRUNCATE api_keys",
    "TRUNCATE tenants CASCADE",
    "DELETE FROM api_keys",
    "DELETE FROM tenants",
    "DROP TABLE tenantgate_migrations",
    "DELETE FROM tenantgate_migrations",
    "DELETE FROM tenantgate_change",
    "INSERT INTO tenantgate_change (key_prefix) VALUES ('llmk_x')",
    "UPDATE tenantgate_change_floor SET xid = xid",
    "ALTER TABLE api_keys DISABLE TRIGGER ALL",
    "ALTER TABLE api_keys ADD COLUMN mine int",
    "ALTER TABLE tenants ENABLE ROW LEVEL SECURITY",
    "CREATE TRIGGER mine AFTER INSERT ON tenants FOR EACH ROW EXECUTE FUNCTION tenantgate_tenant_changed()",
    "CREATE TEMP TABLE t (key_prefix text);
     CREATE TRIGGER mine AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION tenantgate_key_changed()",
    "DROP FUNCTION tenantgate_prune(interval)",
    "CREATE TABLE mine (n int)",
];

/// Statements for administrators of the cluster only.
const FOR_SUPERUSERS: [&str; 6] = [
    "SET session_replication_role = replica",
    "SET SESSION AUTHORIZATION tenantgate",
    "CREATE ROLE mine",
    "COPY tenants TO PROGRAM 'true'",
    "SELECT pg_read_file('PG_VERSION')",
    "ALTER SYSTEM SET work_mem = '64MB'",
];

const NOT_FOR_SERVE: [&str; 33] = [
    "SELECT FROM tenantgate_audit_log",
    "SELECT * FROM api_keys",
    "SELECT name FROM api_keys",
    "SELECT revocation_reason FROM api_keys",
    "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) SELECT 'mine', 'llmk_mine', id FROM tenants LIMIT 1",
    "UPDATE api_keys SET revoked_at = now()",
    "UPDATE api_keys SET revoked_at = NULL",
    "UPDATE api_keys SET expires_at = NULL",
    "UPDATE api_keys SET hashed_key = 'mine'",
    "UPDATE api_keys SET key_prefix = 'llmk_mine'",
    "UPDATE api_keys SET tenant_id = (SELECT id FROM tenants LIMIT 1)",
    "UPDATE api_keys SET name = 'mine'",
    "SELECT labels FROM api_keys",
    "UPDATE api_keys SET disabled_at = NULL",
    "UPDATE api_keys SET scopes = NULL",
    "INSERT INTO tenantgate_plan (name) VALUES ('mine')",
    "UPDATE tenantgate_plan SET request_limit = NULL",
    "DELETE FROM tenantgate_route",
    "INSERT INTO tenants (name, db_schema_name) VALUES ('Mine', 'mine')",
    "UPDATE tenants SET status = 'active'",
    "UPDATE tenants SET db_schema_name = 'mine'",
    "SELECT FROM tenantgate_admin_key",
    "UPDATE tenantgate_admin_key SET revoked_at = NULL",
    "SELECT FROM tenantgate_admin_session",
    "SELECT FROM tenantgate_login_link",
    "SELECT reason FROM tenantgate_refusal",
    "UPDATE tenantgate_refusal SET reason = 'mine'",
    "UPDATE tenantgate_replica SET name = 'mine'",
    "SELECT tenantgate_mark()",
    "CREATE SCHEMA mine",
    "CREATE EXTENSION pgcrypto",
    "SET ROLE {}_admin",
    "SET ROLE {}_migrate",
];

const NOT_FOR_ADMIN: [&str; 28] = [
    "UPDATE tenantgate_audit_log SET actor = 'nobody'",
    "DELETE FROM tenantgate_audit_log",
    "UPDATE api_keys SET hashed_key = 'mine'",
    "UPDATE api_keys SET key_prefix = 'llmk_mine'",
    "UPDATE api_keys SET key_memo = NULL",
    "UPDATE api_keys SET last_used_at = now()",
    "UPDATE api_keys SET tenant_id = (SELECT id FROM tenants LIMIT 1)",
    "UPDATE tenants SET created_at = now()",
    "UPDATE tenantgate_plan SET name = 'mine'",
    "UPDATE tenantgate_route SET path = '/mine'",
    "TRUNCATE tenantgate_route",
    "UPDATE tenantgate_admin_key SET created_by = NULL",
    "UPDATE tenantgate_admin_key SET hashed_key = 'mine'",
    "DELETE FROM tenantgate_admin_key",
    "UPDATE tenantgate_idempotency SET attempt = gen_random_uuid()",
    "UPDATE tenants SET db_schema_name = 'mine'",
    "DELETE FROM tenantgate_change",
    "INSERT INTO tenantgate_change (key_prefix) VALUES ('llmk_x')",
    "UPDATE tenantgate_admin_session SET admin_key_id = gen_random_uuid()",
    "UPDATE tenantgate_login_link SET created_at = now()",
    "INSERT INTO tenantgate_refusal VALUES (gen_random_uuid(), now(), 'mine', gen_random_uuid())",
    "DELETE FROM tenantgate_refusal",
    "SELECT tenantgate_prune(interval '0')",
    "DELETE FROM tenantgate_replica",
    "INSERT INTO tenantgate_replica SELECT * FROM tenantgate_replica",
    "ALTER TABLE tenants OWNER TO {}_admin",
    "SET ROLE {}_serve",
    "SET ROLE {}_migrate",
];

/// Asserts that each statement fails for a missing privilege, and for no other reason.
#[track_caller]
fn may_not(session: &mut Session, prefix: &str, statements: &[&str]) {
    for sql in statements {
        let sql = sql.replace("{}", prefix);
        let said = match session.run(&sql) {
            Ok(_) => "nothing: it did it".to_owned(),
            Err(error) => error
                .as_database_error()
                .and_then(sqlx::error::DatabaseError::code)
                .map_or_else(|| error.to_string(), std::borrow::Cow::into_owned),
        };
        assert_eq!(said, "42501", "{sql}");
    }
}

/// A server with the role `serve`, and with all options that write.
fn server_of(world: &World, seen: &Database) -> Server {
    let file = |name: &str| world.db.dir().join(name).to_str().expect("plain").to_owned();
    if !world.db.dir().join("pepper").exists() {
        run_in(world.db.dir(), &[], &["pepper", "new", "pepper"]).ok();
    }
    let (pepper, snapshot) = (file("pepper"), file("snapshot"));
    Server::on(seen)
        .args(&[
            "--pepper-file",
            &pepper,
            "--snapshot-file",
            &snapshot,
            "--log-level",
            "info,tenantgate=debug",
        ])
        .start()
}

#[test]
fn a_server_works_as_serve_while_commands_run_as_admin() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let prefix = world.db.with_roles();
    let (serve, admin) =
        (world.db.seen_by(&format!("{prefix}_serve")), world.db.seen_by(&format!("{prefix}_admin")));
    let mut server = server_of(&world, &serve);
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    let memo = format!("SELECT key_memo FROM api_keys WHERE id = '{}'", world.live.id);
    eventually("the memo is written", PATIENCE, || world.db.text(&memo).map(drop).ok_or(()));
    let made = admin.json(&["key", "create", &world.acme.id]);
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(&string(&made, "key")));
    admin.cli(&["key", "revoke", &world.live.id, "--reason", "leaked", "--wait=20s"]).ok();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "401 revoked");
    // A transaction of another test in the cluster may delay it.
    eventually("the change log is pruned", PATIENCE, || {
        wait(PostgresStore::new(serve.url()).unwrap().prune_changes(Duration::ZERO)).unwrap();
        world.db.text("SELECT count(*)::text FROM tenantgate_change").filter(|rows| rows == "0").ok_or(())
    });
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    let log = server.stderr.to_the_end(PATIENCE);
    for bad in ["permission denied", "WARN", "ERROR", "could not", "cannot", "not pruned", "not removed"] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
    let used = "SELECT key_prefix FROM api_keys WHERE last_used_at > now() - interval '1 hour' ORDER BY 1";
    assert_eq!(
        world.db.texts(used),
        [made["key_prefix"].as_str(), Some(&*world.live.prefix)].map(|p| p.map(str::to_owned))
    );
    assert_eq!(world.db.text("SELECT count(*)::text FROM tenantgate_replica").as_deref(), Some("0"));
    assert!(world.db.dir().join("snapshot").exists());
}

#[test]
fn the_role_serve_can_do_no_more() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let prefix = world.db.with_roles();
    let mut session = world.db.seen_by(&format!("{prefix}_serve")).session();
    may_not(&mut session, &prefix, &FOR_THE_OWNER);
    may_not(&mut session, &prefix, &FOR_SUPERUSERS);
    may_not(&mut session, &prefix, &NOT_FOR_SERVE);
}

#[test]
fn admin_runs_every_command_on_rows_and_can_do_no_more() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let prefix = world.db.with_roles();
    let admin = world.db.seen_by(&format!("{prefix}_admin"));
    let tenant = string(&admin.json(&["tenant", "create", "Narrow Ltd"]), "id");
    for command in ["show", "suspend", "activate"] {
        admin.cli(&["tenant", command, &tenant]).ok();
    }
    admin.cli(&["tenant", "list"]).ok();
    run_in(world.db.dir(), &[], &["pepper", "new", "pepper"]).ok();
    let pepper = world.db.dir().join("pepper");
    let pepper = pepper.to_str().expect("plain");
    let made = admin.json(&["key", "create", &tenant, "--expires-in", "90d", "--pepper-file", pepper]);
    let key = string(&made, "id");
    admin.cli(&["key", "list", &tenant]).ok();
    admin.cli(&["key", "show", &key]).ok();
    admin.cli(&["key", "rotate", &key, "--grace", "1d"]).ok();
    admin.cli(&["key", "revoke", &key, "--reason", "over", "--wait"]).ok();
    admin.cli(&["tenant", "suspend", &tenant, "--wait"]).ok();
    admin.cli(&["tenant", "delete", &tenant, "--yes"]).ok();
    admin.cli(&["seed-demo", "--force"]).ok();
    let line = admin.cli(&["migrate", "--roles=other"]).refused();
    assert!(line.contains("permission denied"), "{line}");
    let mut session = admin.session();
    may_not(&mut session, &prefix, &FOR_THE_OWNER);
    may_not(&mut session, &prefix, &FOR_SUPERUSERS);
    may_not(&mut session, &prefix, &NOT_FOR_ADMIN);
}

/// A database whose owner is not a superuser, as in the docs.
fn owned(cluster: &'static Cluster, name: &str) -> (Database, Database) {
    cluster.admin(&format!("CREATE ROLE {name} LOGIN CREATEROLE"));
    let database = Database::postgres(cluster, "template1");
    cluster.admin(&format!("ALTER DATABASE {} OWNER TO {name}", database.name()));
    let seen = database.seen_by(name);
    (database, seen)
}

#[test]
fn the_owner_of_a_database_creates_the_roles_and_members_of_migrate_can_migrate() {
    let Some(cluster) = Cluster::shared() else { return };
    let (database, owner) = owned(cluster, "owner_of_one");
    let said = owner.json(&["migrate", "--roles=one"]);
    assert_eq!(said["roles"], serde_json::json!(["one_serve", "one_admin", "one_migrate"]));
    assert!(said["applied"].as_array().is_some_and(|applied| !applied.is_empty()), "{said}");
    let again = owner.json(&["migrate", "--roles=one"]);
    assert_eq!((&again["roles"], &again["applied"]), (&said["roles"], &serde_json::json!([])));
    assert!(owner.cli(&["migrate", "--roles=one"]).ok().contains("one_serve, one_admin, one_migrate"));
    // The previous owner still works.
    owner.cli(&["tenant", "create", "Acme"]).ok();
    owner.sql("ALTER TABLE api_keys ADD COLUMN theirs int");
    database.sql("CREATE ROLE deploy_of_one LOGIN IN ROLE one_migrate");
    let deploy = database.seen_by("deploy_of_one");
    deploy.sql("ALTER TABLE api_keys DROP COLUMN theirs");
    deploy.cli(&["migrate", "--roles=one"]).ok();
    let owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname IN ('tenants', 'tenantgate_change', 'tenantgate_migrations')";
    assert_eq!(database.texts(owners), [Some("one_migrate".to_owned())]);
    let owners = "SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE proname LIKE 'tenantgate\\_%'";
    assert_eq!(database.texts(owners), [Some("one_migrate".to_owned())]);
    let mut session = deploy.session();
    may_not(&mut session, "one", &FOR_SUPERUSERS);
    may_not(&mut session, "one", &["CREATE SCHEMA mine", "SET ROLE one_admin", "SET ROLE one_serve"]);
}

#[test]
fn excess_privileges_are_revoked_or_named() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let prefix = world.db.with_roles();
    let roles = format!("--roles={prefix}");
    world.db.sql(&format!(
        "GRANT ALL ON api_keys, tenants, tenantgate_replica TO {prefix}_serve, {prefix}_admin"
    ));
    world.db.cli(&["migrate", &roles]).ok();
    let mut session = world.db.seen_by(&format!("{prefix}_serve")).session();
    may_not(&mut session, &prefix, &NOT_FOR_SERVE);
    world.db.sql("GRANT UPDATE ON tenants TO PUBLIC");
    let line = world.db.cli(&["migrate", &roles]).refused();
    assert!(line.contains("still has more privileges on tenants"), "{line}");
    world.db.sql("REVOKE UPDATE ON tenants FROM PUBLIC; GRANT CREATE ON SCHEMA public TO PUBLIC");
    world.db.cli(&["migrate", &roles]).ok();
    may_not(&mut session, &prefix, &["CREATE TABLE mine (n int)"]);
}

#[test]
fn an_existing_superuser_with_such_a_name_is_rejected() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    for (prefix, how) in
        [("mighty1", "SUPERUSER"), ("mighty2", "BYPASSRLS"), ("mighty3", "IN ROLE tenantgate")]
    {
        world.db.sql(&format!("CREATE ROLE {prefix}_serve {how}"));
        let line = world.db.cli(&["migrate", &format!("--roles={prefix}")]).refused();
        assert!(
            line.contains(&format!("the role {prefix}_serve already exists with more privileges")),
            "{line}"
        );
        let made = format!("SELECT rolname::text FROM pg_roles WHERE rolname = '{prefix}_admin'");
        assert_eq!(world.db.texts(&made), [], "all or nothing");
    }
    for bad in ["pg_mine", "Mine", "a b", "'; DROP TABLE tenants", ""] {
        world.db.cli(&["migrate", &format!("--roles={bad}")]).usage();
    }
}

#[test]
fn sqlite_has_no_roles() {
    let world = World::somewhere();
    let line = world.db.cli(&["migrate", "--roles"]).refused();
    assert!(line.contains("sqlite has no roles"), "{line}");
}

/// Also without these roles.
#[test]
fn the_functions_are_not_executable_by_public() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let stranger = format!("stranger_{}", world.db.name());
    world.db.sql(&format!("CREATE ROLE {stranger} LOGIN"));
    let mut session = world.db.seen_by(&stranger).session();
    may_not(
        &mut session,
        "",
        &["SELECT tenantgate_prune(interval '0')", "SELECT tenantgate_mark()", FOR_THE_OWNER[13]],
    );
    may_not(
        &mut session,
        "",
        &["SELECT FROM api_keys", "SELECT FROM tenants", "SELECT FROM tenantgate_change"],
    );
}
