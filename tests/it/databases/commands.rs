//! Tests that commands lose nothing: changes that others make meanwhile, outputs that are closed, unreadable values.

use crate::support::cli::run_in;
use crate::support::world::quick_hash;
use crate::support::{Backend, Database, PATIENCE, World, eventually};

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
