//! Tests where a proof is kept beyond the process, and where it must not be.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::support::cli::{Run, run_in};
use crate::support::server::Plan;
use crate::support::world::quick_hash;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, eventually, on_every_store};

on_every_store!(
    an_issued_key_costs_no_bcrypt_ever,
    the_first_proof_is_the_last,
    another_hash_tenant_or_id_invalidates_the_memo,
    a_new_pepper_replaces_the_old_one_key_by_key,
    a_lost_pepper_costs_one_bcrypt,
    a_forged_row_without_a_memo_is_rejected_if_memos_are_required,
);

/// Creates a pepper file.
fn pepper_file(world: &World, name: &str) -> String {
    let file = world.db.dir().join(name);
    pepper_new(&world.db, Some(&file)).ok();
    file.to_str().expect("a plain path").to_owned()
}

fn pepper_new(db: &Database, file: Option<&PathBuf>) -> Run {
    let file = file.map(|file| file.to_str().expect("a plain path"));
    run_in(db.dir(), &[], &[&["pepper", "new"], file.as_slice()].concat())
}

fn with_pepper(world: &World, file: &str) -> Plan {
    Server::on(&world.db).args(&["--pepper-file", file])
}

/// Returns the pepper of a key's memo, from `key show`.
fn memo(world: &World, key: &str) -> Option<String> {
    let shown = world.db.json(&["key", "show", key]);
    assert_eq!(shown["memo"].as_bool(), Some(shown["memo_pepper"].is_string()), "{shown}");
    shown["memo_pepper"].as_str().map(str::to_owned)
}

#[track_caller]
fn memo_becomes(world: &World, key: &str, wanted: impl Fn(Option<&str>) -> bool) {
    eventually("the memo has the wanted value", PATIENCE, || {
        let seen = memo(world, key);
        if wanted(seen.as_deref()) { Ok(()) } else { Err(seen) }
    });
}

fn an_issued_key_costs_no_bcrypt_ever(world: &World) {
    let file = pepper_file(world, "pepper");
    let made = world.db.json(&["key", "create", &world.acme.id, "--pepper-file", &file]);
    let (text, id) = (made["key"].as_str().expect("a key"), made["id"].as_str().expect("an id"));
    assert!(memo(world, id).is_some() && made.get("memo").is_none());
    let server = with_pepper(world, &file).start();
    assert_eq!(server.row(Ask::with_key(text)), "200 ok");
    let (rest, last) = text.split_at(text.len() - 1);
    let wrong = format!("{rest}{}", if last == "0" { "1" } else { "0" });
    assert_eq!(server.row(Ask::with_key(&wrong)), "401 mismatch");
    assert_eq!(server.bcrypts(), 0);
    assert!(server.metric(&["tenantgate_replica_keys_with_memo"]) >= 1.0);
    let rotated = world.db.json(&["key", "rotate", id, "--grace", "1d", "--pepper-file", &file]);
    let text = rotated["new"]["key"].as_str().expect("a key");
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(text));
    assert_eq!(server.bcrypts(), 0);
}

fn the_first_proof_is_the_last(world: &World) {
    let file = pepper_file(world, "pepper");
    let server = with_pepper(world, &file).start();
    let other = with_pepper(world, &file).start();
    assert_eq!(memo(world, &world.live.id), None);
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    memo_becomes(world, &world.live.id, |memo| memo.is_some());
    // A running replica gets the memo, and so does one that starts.
    eventually("the other replica has it", PATIENCE, || {
        match other.metric(&["tenantgate_replica_keys_with_memo"]) {
            seen if seen >= 1.0 => Ok(()),
            seen => Err(seen),
        }
    });
    for server in [other, with_pepper(world, &file).start()] {
        assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
        assert_eq!(server.row(Ask::with_key(&world.live.with_wrong_secret())), "401 mismatch");
        assert_eq!(server.bcrypts(), 0);
    }
    // Removing a memo is always safe.
    world.db.sql("UPDATE api_keys SET key_memo = NULL");
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    assert_eq!(server.bcrypts(), 1);
}

fn another_hash_tenant_or_id_invalidates_the_memo(world: &World) {
    let file = pepper_file(world, "pepper");
    let prefix = &world.live.prefix;
    let server = with_pepper(world, &file).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    memo_becomes(world, prefix, |memo| memo.is_some());
    drop(server);
    let other_key = format!("{prefix}_another-Secret-0123456789");
    let kept = world.db.text(&format!("SELECT key_memo FROM api_keys WHERE key_prefix = '{prefix}'"));
    let kept = kept.expect("just seen");
    for (change, text, wanted) in [
        (format!("hashed_key = '{}'", quick_hash(&other_key)), &world.live.text, "401 mismatch"),
        (format!("hashed_key = '{}'", quick_hash(&other_key)), &other_key, "200 ok"),
        (format!("hashed_key = '{}'", quick_hash(&world.live.text)), &world.live.text, "200 ok"),
        (format!("tenant_id = '{}'", world.sleepy.id), &world.live.text, "403 tenant_inactive"),
        ("id = '99999999-9999-4999-8999-999999999999'".to_owned(), &world.live.text, "403 tenant_inactive"),
    ] {
        // For an old memo beside a changed row, bcrypt decides.
        world
            .db
            .sql(&format!("UPDATE api_keys SET {change}, key_memo = '{kept}' WHERE key_prefix = '{prefix}'"));
        let server = with_pepper(world, &file).start();
        assert_eq!(server.row(Ask::with_key(text)), wanted, "{change}");
        assert_eq!(server.bcrypts(), 1, "{change}");
    }
    assert!(world.db.refuses("UPDATE api_keys SET key_memo = 'yes'").to_lowercase().contains("check"));
}

fn a_new_pepper_replaces_the_old_one_key_by_key(world: &World) {
    let file = pepper_file(world, "pepper");
    let key = Ask::with_key(&world.live.text);
    assert_eq!(with_pepper(world, &file).start().row(key.clone()), "200 ok");
    let server = with_pepper(world, &file).start();
    assert_eq!(server.row(key.clone()), "200 ok");
    memo_becomes(world, &world.live.id, |memo| memo.is_some());
    let old = memo(world, &world.live.id);
    drop(server);
    pepper_new(&world.db, Some(&file.clone().into())).ok();
    let server = with_pepper(world, &file).start();
    assert_eq!(server.row(key.clone()), "200 ok");
    assert_eq!(server.bcrypts(), 0, "memos of the old pepper are still accepted");
    memo_becomes(world, &world.live.id, |memo| memo.is_some() && memo != old.as_deref());
    drop(server);
    // The old pepper is removed.
    let text = std::fs::read_to_string(&file).expect("the file exists");
    let newest = text.lines().take(2).collect::<Vec<_>>().join("\n");
    std::fs::write(&file, newest).expect("written");
    let server = with_pepper(world, &file).start();
    assert_eq!((server.row(key), server.bcrypts()), ("200 ok".to_owned(), 0));
}

fn a_lost_pepper_costs_one_bcrypt(world: &World) {
    let (lost, new) = (pepper_file(world, "lost"), pepper_file(world, "new"));
    let key = Ask::with_key(&world.live.text);
    let server = with_pepper(world, &lost).start();
    assert_eq!(server.row(key.clone()), "200 ok");
    memo_becomes(world, &world.live.id, |memo| memo.is_some());
    let before = memo(world, &world.live.id);
    drop(server);
    let server = with_pepper(world, &new).start();
    assert_eq!((server.row(key), server.bcrypts()), ("200 ok".to_owned(), 1));
    memo_becomes(world, &world.live.id, |memo| memo.is_some() && memo != before.as_deref());
}

fn a_forged_row_without_a_memo_is_rejected_if_memos_are_required(world: &World) {
    let file = pepper_file(world, "pepper");
    let made = world.db.json(&["key", "create", &world.acme.id, "--pepper-file", &file]);
    let (ours, id) = (made["key"].as_str().expect("a key"), made["id"].as_str().expect("an id"));
    let forged = "llmk_forged_Forged-Secret-0123456789abc";
    let memo = world.db.text(&format!("SELECT key_memo FROM api_keys WHERE id = '{id}'")).expect("has one");
    world.db.sql(&format!(
        "INSERT INTO api_keys (id, hashed_key, key_prefix, tenant_id, key_memo) \
         VALUES ('99999999-9999-4999-8999-999999999999', '{}', 'llmk_forged', '{}', '{memo}')",
        quick_hash(forged),
        world.acme.id
    ));
    let server = with_pepper(world, &file).args(&["--memo", "required"]).start();
    assert_eq!(server.row(Ask::with_key(ours)), "200 ok");
    assert_eq!(server.row(Ask::with_key(forged)), "401 mismatch");
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "401 mismatch");
    // Moving a key to another tenant or removing the memo does not help either.
    world.db.sql(&format!("UPDATE api_keys SET tenant_id = '{}' WHERE id = '{id}'", world.sleepy.id));
    server.row_becomes("401 mismatch", PATIENCE, Ask::with_key(ours));
    world.db.sql(&format!("UPDATE api_keys SET tenant_id = '{}' WHERE id = '{id}'", world.acme.id));
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(ours));
    world.db.sql(&format!("UPDATE api_keys SET key_memo = NULL WHERE id = '{id}'"));
    server.row_becomes("401 mismatch", PATIENCE, Ask::with_key(ours));
    assert_eq!(server.bcrypts(), 0, "no request can cause a bcrypt");
}

#[test]
fn a_short_secret_gets_no_memo() {
    let database = Database::empty(Backend::Sqlite).expect("always there");
    database.json(&["seed-demo"]);
    let file = database.dir().join("pepper");
    pepper_new(&database, Some(&file)).ok();
    let server = Server::on(&database).args(&["--pepper-file", file.to_str().expect("plain")]).start();
    assert_eq!(server.row(Ask::with_key("llmk_demo_secret123")), "200 ok");
    // A graceful stop flushes all memos.
    server.signal("TERM");
    let mut server = server;
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    assert_eq!(database.text("SELECT key_memo FROM api_keys"), None);
}

#[test]
fn a_graceful_stop_writes_the_memos_of_the_last_second() {
    let world = World::somewhere();
    let file = pepper_file(&world, "pepper");
    let mut server = with_pepper(&world, &file).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    assert!(memo(&world, &world.live.id).is_some());
}

#[test]
fn a_pepper_file_is_readable_only_by_its_owner_and_the_new_pepper_is_first() {
    let database = Database::empty(Backend::Sqlite).expect("always there");
    let line = pepper_new(&database, None).ok();
    let file = database.dir().join("pepper");
    std::fs::write(&file, format!("# ours\n{line}")).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o440)).expect("set");
    let said = pepper_new(&database, Some(&file)).ok();
    let text = std::fs::read_to_string(&file).expect("there");
    let peppers: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(peppers.len() == 2 && peppers[1] == line.trim() && text.contains("# ours"), "{said}");
    assert!(!said.contains(peppers[0]) && !said.contains(peppers[1]), "peppers in a file are not printed");
    let mode = |file| std::fs::metadata(file).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o440, "the file keeps its owner, group and mode");
    let new = database.dir().join("new");
    let json =
        run_in(database.dir(), &[], &["pepper", "new", new.to_str().expect("plain"), "-o", "json"]).json();
    assert_eq!((mode(&new), json["peppers"].as_u64()), (0o600, Some(1)));
}

#[test]
fn invalid_pepper_files_are_explained() {
    let database = Database::empty(Backend::Sqlite).expect("always there");
    let broken = database.dir().join("broken");
    std::fs::write(&broken, "my-secret-pepper\n").expect("written");
    let broken = broken.to_str().expect("plain");
    for (args, why) in [
        (vec!["--pepper-file", "nowhere"], "nowhere cannot be read"),
        (vec!["--pepper-file", broken], "line 1 is not a valid pepper"),
        (vec!["--memo", "required"], "needs --pepper-file"),
        (vec!["--memo", "maybe"], "optional or required"),
        (vec!["--snapshot-file", "snapshot"], "needs --pepper-file"),
        (vec!["--snapshot-file", "no/where"], "must be a file in an existing directory"),
    ] {
        let said = database.cli(&[&["serve", "--check-config"], args.as_slice()].concat()).usage();
        assert!(said.contains(why) && !said.contains("my-secret-pepper"), "{args:?}: {said}");
    }
    let said = database.cli(&["key", "create", "acme", "--pepper-file", broken]).usage();
    assert!(said.contains("line 1 is not a valid pepper") && !said.contains("my-secret"), "{said}");
    let said = pepper_new(&database, Some(&broken.into())).refused();
    assert!(said.contains("line 1 is not a valid pepper") && !said.contains("my-secret"), "{said}");
    assert_eq!(
        std::fs::read_to_string(broken).expect("there"),
        "my-secret-pepper\n",
        "the file is unchanged"
    );
}

#[test]
fn a_world_readable_pepper_file_is_warned_about() {
    let world = World::somewhere();
    let file = pepper_file(&world, "pepper");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("set");
    let server = with_pepper(&world, &file).start();
    let log = server.stderr.text();
    assert!(log.contains("WARN") && log.contains("chmod 0400"), "{log}");
}
