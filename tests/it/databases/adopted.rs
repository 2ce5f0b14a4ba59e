//! Tests databases that other programs share: the fixed schema, schemas of tenants, and adopted tables.

use super::{KEY, PLAIN, postgres_with, rows};
use crate::support::cli::run_in;
use crate::support::world::quick_hash;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, eventually};

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
fn naive_timestamps_are_converted_and_disabling_columns_are_applied() {
    let more = "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id, is_active)
                SELECT 'x', 'llmk_off', id, false FROM tenants;
                CREATE TABLE audit_log (theirs int);";
    let sql = format!(
        "{} {}; ALTER TABLE api_keys ADD is_active bool NOT NULL DEFAULT true; {more}",
        PLAIN.replace("timestamptz", "timestamp"),
        rows()
    );
    let Some(database) = postgres_with(&sql) else { return };
    database.sql(
        "UPDATE api_keys SET expires_at = '2099-01-01 00:00:00';
         ALTER TABLE api_keys ALTER expires_at SET DEFAULT now() + interval '1 year',
                              ALTER created_at SET DEFAULT timezone('utc', now())",
    );
    database.cli(&["migrate", "--revoke-where", "is_active=false"]).ok();
    let server = Server::on(&database).start();
    assert_eq!(server.row(Ask::with_key(KEY)), "200 ok");
    let shown = database.json(&["key", "list"]);
    assert_eq!(shown[0]["expires_at"].as_str().map(|at| &at[..19]), Some("2099-01-01T00:00:00"), "{shown}");
    assert_eq!(database.json(&["key", "show", "llmk_off"])["status"], "revoked");
    // Later rows of the application get its own default, whatever the time zone of its session is.
    let inserted = "SET TIME ZONE 'Asia/Tokyo';
                    INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) SELECT 'y', 'llmk_later', id FROM tenants";
    database.sql(inserted);
    let life = "SELECT (extract(epoch FROM expires_at - created_at) / 86400)::int::text FROM api_keys WHERE key_prefix = 'llmk_later'";
    let days: u32 = database.text(life).expect("a life").parse().expect("days");
    assert!((365..=366).contains(&days), "{days}");
    database.cli(&["tenant", "create", "New"]).ok();
    assert_eq!(
        database.text("SELECT count(*)::text FROM audit_log").as_deref(),
        Some("0"),
        "their column is unchanged"
    );
    assert_eq!(database.json(&["migrate"])["applied"], serde_json::json!([]), "asked once");
}

/// A default may call functions of the owner of the table, and `migrate` may run as a role with more privileges.
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
fn a_switch_is_heeded_however_its_value_is_spelled() {
    for (column, off, says) in [
        ("is_active bool DEFAULT true", "false", "is_active=False"),
        ("is_active bool DEFAULT true", "false", "api_keys.is_active=f"),
        ("active int DEFAULT 1", "0", "active=0"),
        ("active smallint DEFAULT 1", "0", "active=false"),
        ("status text DEFAULT 'active'", "'revoked'", "status=revoked"),
        ("deleted_at timestamptz", "now()", "deleted_at=*"),
    ] {
        let name = column.split(' ').next().unwrap_or_default();
        let sql = format!(
            "{PLAIN} {}; ALTER TABLE api_keys ADD {column};
             INSERT INTO api_keys (hashed_key, key_prefix, tenant_id, {name}) SELECT 'x', 'llmk_off', id, {off} FROM tenants",
            rows()
        );
        let Some(database) = postgres_with(&sql) else { return };
        let said = database.cli(&["migrate", "--revoke-where", &format!("{name}=perhaps")]);
        if column.contains("bool") {
            assert!(said.refused_lines().contains("perhaps"), "{column}");
        }
        database.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
        database.sql(&sql);
        database.cli(&["migrate", "--revoke-where", says]).ok();
        assert_eq!(database.json(&["key", "show", "llmk_off"])["status"], "revoked", "{column} {says}");
        assert_eq!(database.json(&["key", "show", "llmk_ours"])["status"], "active", "{column} {says}");
    }
}

#[test]
fn a_value_that_no_row_has_is_refused_with_those_that_exist() {
    for column in ["varchar(20)", "states", "char(12)", "\"char\""] {
        let (off, value) = if column == "\"char\"" { ("R", "R") } else { ("REVOKED", "REVOKED") };
        let sql = format!(
            "{PLAIN} {}; CREATE TYPE states AS ENUM ('active', 'REVOKED', 'a', 'R'); ALTER TABLE api_keys ADD state {column} DEFAULT 'a';
             INSERT INTO api_keys (hashed_key, key_prefix, tenant_id, state) SELECT 'x', 'llmk_off', id, '{off}' FROM tenants",
            rows()
        );
        let Some(database) = postgres_with(&sql) else { return };
        for value in ["revoked", "r"] {
            let said =
                database.cli(&["migrate", "--revoke-where", &format!("state={value}")]).refused_lines();
            let wanted = format!("--revoke-where state={value} matches no row: api_keys.state has ");
            assert!(said.contains(&wanted) && said.contains(&format!("{off:?}")), "{column}: {said}");
        }
        let ours = database.text("SELECT count(*)::text FROM pg_class WHERE relname LIKE 'tenantgate%'");
        assert_eq!(ours.as_deref(), Some("0"), "{column}: nothing was applied");
        database.cli(&["migrate", "--revoke-where", &format!("state={value}")]).ok();
        assert_eq!(database.json(&["key", "show", "llmk_off"])["status"], "revoked", "{column}");
        assert_eq!(database.json(&["key", "show", "llmk_ours"])["status"], "active", "{column}");
    }
}

#[test]
fn a_column_may_be_ignored() {
    let sql = format!("{PLAIN} {}; ALTER TABLE api_keys ADD is_active bool DEFAULT false", rows());
    let Some(database) = postgres_with(&sql) else { return };
    assert!(
        database
            .cli(&["migrate", "--ignore-column", "no_such"])
            .refused_lines()
            .contains("no_such is not a column")
    );
    database.cli(&["migrate", "--ignore-column", "is_active"]).ok();
    assert_eq!(Server::on(&database).start().row(Ask::with_key(KEY)), "200 ok");
}

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
fn a_key_has_one_live_successor() {
    let Some(worlds) = World::on(Backend::Postgres).map(|world| [world, World::somewhere()]) else { return };
    for world in worlds {
        let rotate = || world.db.cli(&["key", "rotate", "llmk_live", "--grace", "7d", "-o", "json"]);
        let runs =
            std::thread::scope(|scope| [(); 2].map(|()| scope.spawn(rotate)).map(|run| run.join().unwrap()));
        let done = runs.iter().filter(|run| run.code == Some(0)).count();
        assert_eq!(done, 1, "one of two concurrent rotations succeeds: {runs:#?}");
        let line = rotate().refused();
        let successor = world.db.text("SELECT s.key_prefix FROM api_keys k JOIN api_keys s ON s.id = k.replaced_by WHERE k.key_prefix = 'llmk_live'");
        assert!(line.contains(&successor.unwrap()), "{line}");
    }
}

/// The successor is made from the key as it was read; hashing it takes long enough for another change.
#[test]
fn a_rotation_does_not_undo_a_change_of_its_key() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    world.db.json(&["key", "update", "llmk_live", "--scopes", "chat:read chat:write"]);
    let mut session = world.db.session();
    session.sql("BEGIN; UPDATE api_keys SET scopes = 'chat:read' WHERE key_prefix = 'llmk_live'");
    let line = std::thread::scope(|scope| {
        let rotation = scope.spawn(|| world.db.cli(&["key", "rotate", "llmk_live", "--grace", "7d"]));
        let waiting = "SELECT pid::text FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                       AND query LIKE '%FROM api_keys WHERE id%'";
        eventually("the rotation waits for the other change", PATIENCE, || {
            let pids = world.db.texts(waiting);
            if pids.is_empty() { Err(pids) } else { Ok(()) }
        });
        session.sql("COMMIT");
        rotation.join().unwrap().refused()
    });
    assert!(line.contains("was changed in the meantime: rotate it again"), "{line}");
    world.db.cli(&["key", "rotate", "llmk_live", "--grace", "7d"]).ok();
    let scopes = "SELECT s.scopes FROM api_keys k JOIN api_keys s ON s.id = k.replaced_by
                  WHERE k.key_prefix = 'llmk_live'";
    assert_eq!(world.db.text(scopes).unwrap(), "chat:read");
}

#[test]
fn a_key_that_could_not_be_printed_is_a_failure() {
    let world = World::somewhere();
    let mut command = crate::support::cli::command(world.db.dir());
    command.args(["key", "create", &world.acme.id, "--database-url", world.db.url()]);
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    let said = command.stdout(write).stderr(std::process::Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("tenantgate key revoke llmk_"), "{stderr}");
}

#[test]
fn no_key_is_made_if_the_standard_output_is_closed() {
    let world = World::somewhere();
    let count = "SELECT CAST(count(*) AS TEXT) FROM api_keys";
    let before = world.db.text(count);
    for args in [["create", &world.acme.id], ["rotate", "llmk_live"]] {
        let ours = crate::support::cli::command(world.db.dir());
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", r#"exec "$0" "$@" >&-"#]).arg(ours.get_program()).arg("key").args(args);
        shell.args(["--database-url", world.db.url()]).current_dir(world.db.dir());
        let said = shell.output().unwrap();
        let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("standard output is closed"), "{stderr}");
    }
    assert_eq!(world.db.text(count), before);
}

#[test]
fn instants_are_read_as_postgres_writes_them_and_need_a_zone() {
    let world = World::somewhere();
    let import = |at: &str| {
        let file = format!(
            "hashed_key,key_prefix,tenant,expires_at\n{},llmk_at,{},{at}\n",
            quick_hash("llmk_at_Secret0123"),
            world.acme.id
        );
        std::fs::write(world.db.dir().join("keys.csv"), file).unwrap();
        world.db.cli(&["key", "import", world.db.dir().join("keys.csv").to_str().unwrap()])
    };
    assert_ne!(import("2027-01-31 00:00:00").code, Some(0), "no zone");
    import("2027-01-31 00:00:00+00").ok();
    let by_option = ["key", "create", &world.acme.id, "--expires-at", "2099-01-31 00:00:00+00"];
    world.db.cli(&by_option).ok();
    assert_eq!(
        world.db.json(&["key", "show", "llmk_at"])["expires_at"].as_str().map(|at| &at[..19]),
        Some("2027-01-31T00:00:00")
    );
}

#[test]
fn an_unreadable_value_is_not_reported_as_an_outage() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    world.db.sql("ALTER TABLE api_keys DROP COLUMN last_used_at; ALTER TABLE api_keys ADD last_used_at text DEFAULT 'x'");
    let said = world.db.cli(&["key", "list"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    let said = world.db.cli(&["doctor"]);
    assert!(said.stdout.contains("api_keys.last_used_at is text"), "{said:#?}");
}

#[test]
fn a_missing_database_is_named_and_not_created() {
    let database = Database::empty(Backend::Sqlite).expect("always there");
    for command in [
        &["key", "revoke", "llmk_x"][..],
        &["tenant", "list"],
        &["key", "show", "llmk_x"],
        &["audit", "list"],
    ] {
        let said = run_in(database.dir(), &[], command);
        assert_eq!((said.code, said.stdout.as_str()), (Some(3), ""), "{said:#?}");
        assert!(said.stderr.contains("tenantgate.db"), "{said:#?}");
    }
    assert!(!database.dir().join("tenantgate.db").exists());
    let world = World::somewhere();
    let line = world.db.cli(&["key", "revoke", "llmk_nobody"]).refused();
    assert!(line.contains("tenantgate.db"), "{line}");
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
