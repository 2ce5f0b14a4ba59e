//! Tests SQLite files that are replaced, restored or deleted under a running server.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{KEY, count};
use crate::support::world::quick_hash;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, eventually};

fn file(database: &Database) -> &Path {
    Path::new(database.url().trim_start_matches("sqlite://"))
}

#[track_caller]
fn says(server: &Server, words: &str) {
    eventually("the log contains the line", PATIENCE, || {
        let log = server.stderr.text();
        if log.contains(words) { Ok(()) } else { Err(log) }
    });
}

#[test]
fn files_are_readable_only_by_their_owner() {
    let database = Database::empty(Backend::Sqlite).expect("always there");
    database.cli(&["migrate"]).ok();
    let server = Server::on(&database).start();
    let mut session = database.session();
    session.sql("UPDATE tenants SET name = name");
    for end in ["", "-wal", "-shm"] {
        let name = format!("{}{end}", file(&database).display());
        let mode = std::fs::metadata(&name).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    drop(server);
}

#[test]
fn an_older_copy_is_loaded_and_raises_an_alarm() {
    let world = World::somewhere();
    world.db.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let backup = std::fs::read(file(&world.db)).unwrap();
    let server = Server::on(&world.db).start();
    let key = Ask::with_key(&world.live.text);
    world.db.cli(&["key", "revoke", &world.live.id]).ok();
    server.row_becomes("401 revoked", PATIENCE, key.clone());
    replace(file(&world.db), Some(&backup));
    server.row_becomes("200 ok", PATIENCE, key.clone());
    says(&server, "the database went back");
    assert_eq!(count(&server, "tenantgate_database_moves_total"), 1);
    world.db.cli(&["key", "revoke", &world.live.id]).ok();
    server.row_becomes("401 revoked", PATIENCE, key);
}

#[test]
fn another_file_is_rejected_and_a_missing_one_is_not_created() {
    let (world, other) = (World::somewhere(), Database::empty(Backend::Sqlite).expect("always there"));
    other.cli(&["migrate"]).ok();
    other.cli(&["tenant", "create", "Other"]).ok();
    other.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let server = Server::on(&world.db).start();
    replace(file(&world.db), None);
    says(&server, "is gone");
    eventually("the server keeps trying", PATIENCE, || {
        let tries = server.metric(&["replica_lost_sessions_total"]);
        if tries > 3.0 { Ok(()) } else { Err(tries) }
    });
    assert!(!file(&world.db).exists(), "no file is created");
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    replace(file(&world.db), Some(&std::fs::read(file(&other)).unwrap()));
    says(&server, "another database");
    assert_eq!(
        server.row(Ask::with_key(&world.live.text)),
        "200 ok",
        "known keys pass up to the staleness limit"
    );
}

#[test]
fn a_wal_that_is_deleted_under_a_running_server_is_noticed() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let key = Ask::with_key(&world.live.text);
    assert_eq!(server.row(key.clone()), "200 ok");
    world.db.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    for end in ["-wal", "-shm"] {
        std::fs::remove_file(format!("{}{end}", file(&world.db).display())).unwrap();
    }
    world.db.cli(&["key", "revoke", &world.live.id]).ok();
    server.row_becomes("401 revoked", PATIENCE, key.clone());
    says(&server, "was deleted or replaced while serve used it");
    // The connection that had the deleted files has not damaged the database, and the server follows it again.
    assert_eq!(world.db.text("PRAGMA integrity_check").as_deref(), Some("ok"));
    world.db.sql("UPDATE api_keys SET revoked_at = NULL");
    server.row_becomes("200 ok", PATIENCE, key);
}

#[test]
fn a_file_that_is_truncated_in_place_is_noticed() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    world.db.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    std::fs::File::create(file(&world.db)).unwrap();
    says(&server, "became shorter");
    eventually("it is not connected", PATIENCE, || {
        let page = server.http("/readyz").body;
        if page.contains("disconnected") { Ok(()) } else { Err(page) }
    });
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "up to the staleness limit");
}

#[test]
fn a_second_name_of_a_file_is_warned_about() {
    let world = World::somewhere();
    std::fs::hard_link(file(&world.db), world.db.dir().join("other.db")).unwrap();
    let server = Server::on(&world.db).start();
    says(&server, "more than one name");
    let said = world.db.cli(&["doctor"]);
    assert!(
        said.stdout.contains("warn  database.file") && said.stdout.contains("more than one name"),
        "{said:#?}"
    );
}

#[test]
fn a_running_server_rejects_a_new_identity() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    world.db.cli(&["migrate", "--new-identity"]).ok();
    says(&server, "another database");
}

/// If rows were passed between two threads one by one, each would cost two context switches.
#[test]
fn a_load_passes_its_rows_in_pages() {
    let world = World::somewhere();
    let (rows, tenant) = (20_000, &world.acme.id);
    world.db.sql(&format!(
        "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id)
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})
         SELECT 'hash' || n, 'llmk_many' || n, '{tenant}' FROM n; DELETE FROM tenantgate_change"
    ));
    let server = Server::on(&world.db).start();
    let switches = |task: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).map(str::to_owned);
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0_usize)
    };
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let switches: usize = tasks.map(switches).sum();
    assert!(switches < rows / 2, "{switches} switches for {rows} rows");
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
}

/// Replaces the file as `mv` does, or removes it.
fn replace(file: &Path, bytes: Option<&[u8]>) {
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", file.display()));
    }
    match bytes {
        None => std::fs::remove_file(file).unwrap(),
        Some(bytes) => {
            let new = file.with_extension("new");
            std::fs::write(&new, bytes).unwrap();
            std::fs::rename(&new, file).unwrap();
        }
    }
}

/// The two tables as SQLAlchemy creates them.
const PLAIN: &str = "CREATE TABLE tenants (
    id CHAR(32) NOT NULL PRIMARY KEY, name VARCHAR(255) NOT NULL, db_schema_name VARCHAR(63) NOT NULL UNIQUE,
    created_at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, status VARCHAR(50) NOT NULL DEFAULT 'active');
CREATE TABLE api_keys (
    id CHAR(32) NOT NULL PRIMARY KEY, hashed_key TEXT NOT NULL UNIQUE, key_prefix VARCHAR(100) NOT NULL UNIQUE,
    tenant_id CHAR(32) NOT NULL REFERENCES tenants (id), created_at DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
    expires_at DATETIME, last_used_at DATETIME);
INSERT INTO tenants (id, name, db_schema_name) VALUES ('0123456789abcdef0123456789abcdef', 'Own', 'tenant_own');
INSERT INTO api_keys (id, hashed_key, key_prefix, tenant_id)
VALUES ('1123456789abcdef0123456789abcdef', '{hash}', 'llmk_ours', '0123456789abcdef0123456789abcdef')";

/// Creates a file with the tables of an application. `change` replaces a part of their definition; `more` follows it.
fn plain(change: (&str, &str), more: &str) -> Database {
    let database = Database::empty(Backend::Sqlite).expect("always there");
    std::fs::write(file(&database), "").unwrap();
    let sql = PLAIN.replace("{hash}", &quick_hash(KEY)).replace(change.0, change.1);
    database.sql(&format!("{sql}; {more}"));
    database
}

#[test]
fn tables_that_cannot_be_served_are_refused_before_any_change() {
    for (change, more, wanted) in [
        ((" UNIQUE,\n    tenant_id", ",\n    tenant_id"), "", "api_keys.key_prefix is not UNIQUE"),
        (("", ""), "ALTER TABLE api_keys ADD is_active INTEGER DEFAULT 1", "--revoke-where is_active=false"),
        (("", ""), "ALTER TABLE api_keys ADD deleted_at DATETIME", "--revoke-where deleted_at=*"),
        (("last_used_at DATETIME)", "last_used_at DATETIME) WITHOUT ROWID"), "", "api_keys is WITHOUT ROWID"),
        (
            ("", ""),
            "ALTER TABLE api_keys RENAME TO keys; CREATE VIEW api_keys AS SELECT * FROM keys",
            "api_keys is a view",
        ),
        (("", ""), "DROP TABLE api_keys", "api_keys is missing beside tenants"),
        (("", ""), "ALTER TABLE api_keys DROP COLUMN last_used_at", "api_keys.last_used_at is missing"),
    ] {
        let database = plain(change, more);
        let said = database.cli(&["migrate"]).refused_lines();
        assert!(said.contains(wanted), "{more}: {said}");
        let ours = database.text("SELECT count(*) || '' FROM sqlite_master WHERE name LIKE 'tenantgate%'");
        assert_eq!(ours.as_deref(), Some("0"), "{more}");
    }
    let said = plain(("", ""), "").cli(&["migrate", "--ignore-column", "no_such"]).refused_lines();
    assert!(said.contains("no_such is not a column"), "{said}");
}

#[test]
fn a_switch_is_heeded_however_its_value_is_spelled() {
    for (column, off, says) in [
        ("is_active BOOLEAN DEFAULT 1", "0", "is_active=false"),
        ("is_active BOOLEAN DEFAULT 1", "0", "api_keys.is_active=False"),
        ("is_active TEXT DEFAULT 'true'", "'False'", "is_active=0"),
        ("status TEXT DEFAULT 'active'", "'Revoked'", "status=Revoked"),
        ("deleted_at DATETIME", "CURRENT_TIMESTAMP", "deleted_at=*"),
    ] {
        let name = column.split(' ').next().unwrap_or_default();
        let more = format!(
            "ALTER TABLE api_keys ADD {column};
             INSERT INTO api_keys (id, hashed_key, key_prefix, tenant_id, {name}) VALUES
             ('2123456789abcdef0123456789abcdef', 'x', 'llmk_off', '0123456789abcdef0123456789abcdef', {off})"
        );
        let database = plain(("", ""), &more);
        if name == "status" {
            let said = database.cli(&["migrate", "--revoke-where", "status=revoked"]).refused_lines();
            assert!(said.contains(r#"matches no row: api_keys.status has "Revoked", "active""#), "{said}");
        }
        database.cli(&["migrate", "--revoke-where", says]).ok();
        assert_eq!(database.json(&["key", "show", "llmk_off"])["status"], "revoked", "{column} {says}");
        assert_eq!(Server::on(&database).start().row(Ask::with_key(KEY)), "200 ok", "{column} {says}");
    }
}

/// Tests the other ways in which a file disappears or changes.
#[test]
fn a_file_that_is_moved_away_emptied_or_replaced_behind_a_link_is_noticed() {
    let world = World::somewhere();
    world.db.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let backup = std::fs::read(file(&world.db)).unwrap();
    let key = Ask::with_key(&world.live.text);
    // Replaced behind a symbolic link, as in mounted volumes.
    let (real, other) = (world.db.dir().join("a.db"), world.db.dir().join("b.db"));
    for copy in [&real, &other] {
        std::fs::write(copy, &backup).unwrap();
    }
    let link = world.db.dir().join("link.db");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let linked = Database::at(Backend::Sqlite, &format!("sqlite://{}", link.display()));
    let behind = Database::at(Backend::Sqlite, &format!("sqlite://{}", other.display()));
    behind.cli(&["key", "revoke", &world.live.id]).ok();
    behind.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let server = Server::on(&linked).start();
    assert_eq!(server.row(key.clone()), "200 ok");
    let new = world.db.dir().join("new.db");
    std::os::unix::fs::symlink(&other, &new).unwrap();
    std::fs::rename(&new, &link).unwrap();
    server.row_becomes("401 revoked", PATIENCE, key.clone());
    drop(server);
    // Moved away and back.
    let server = Server::on(&world.db).start();
    let away = world.db.dir().join("away.db");
    std::fs::rename(file(&world.db), &away).unwrap();
    says(&server, "is gone");
    assert_eq!(server.row(key.clone()), "200 ok");
    std::fs::rename(&away, file(&world.db)).unwrap();
    world.db.cli(&["key", "revoke", &world.live.id]).ok();
    server.row_becomes("401 revoked", PATIENCE, key.clone());
    // An empty file in its place is not the known database.
    replace(file(&world.db), Some(b""));
    says(&server, "the database is not usable");
    assert_eq!(server.row(key), "401 revoked");
    let tables = world.db.text("SELECT count(*) || '' FROM sqlite_master");
    assert_eq!(tables.as_deref(), Some("0"), "and is not made one");
}
