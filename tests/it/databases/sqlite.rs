//! SQLite files that are replaced, restored or deleted under a running server.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::count;
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

/// Rows that are passed between two threads one by one cost two context switches each.
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

/// Replaces the file, as `mv` does, or removes it.
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
