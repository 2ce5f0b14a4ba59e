//! Checks that every change by a command is in the audit log, and that the log cannot be changed without detection.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::cli::{DATABASE_URL, run_in};
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, on_every_store};

on_every_store![
    every_change_is_a_row_with_actor_action_and_difference,
    rejected_changes_and_changes_without_effect_have_no_row,
    the_log_is_append_only,
    a_modified_row_is_named,
    a_truncated_log_is_detected_by_a_recorded_head,
    concurrent_writers_continue_one_chain,
    the_log_holds_no_secret,
    the_actor_is_the_user_or_the_given_name,
    the_log_is_filtered_by_time_actor_subject_and_number,
    the_first_use_of_a_key_is_logged,
    the_documented_program_verifies_a_dump,
];

fn list(database: &Database, args: &[&str]) -> Vec<Value> {
    let list = database.json(&[&["audit", "list"], args].concat());
    list.as_array().unwrap_or_else(|| panic!("no array: {list}")).clone()
}

fn head(database: &Database) -> (i64, String) {
    let verified = database.json(&["audit", "verify"]);
    (verified["rows"].as_i64().expect("a number"), verified["head"].as_str().expect("a hash").to_owned())
}

/// Runs a command and returns its new entries: action, subject, before, after.
fn left(world: &World, args: &[&str]) -> Vec<(String, String, Value, Value)> {
    let (rows, _) = head(&world.db);
    world.db.cli(args).ok();
    let new = list(&world.db, &[]).into_iter().filter(|row| row["seq"].as_i64() > Some(rows));
    new.map(|row| {
        let text = |name: &str| row[name].as_str().expect("a text").to_owned();
        (text("action"), text("subject"), row["before"].clone(), row["after"].clone())
    })
    .collect()
}

/// Returns the names of fields in which two objects differ.
fn differing(before: &Value, after: &Value) -> Vec<String> {
    let after = after.as_object().expect("an object");
    after
        .iter()
        .filter(|(name, value)| before[name.as_str()] != **value)
        .map(|(name, _)| name.clone())
        .collect()
}

fn every_change_is_a_row_with_actor_action_and_difference(world: &World) {
    for (verb, status) in [("suspend", "suspended"), ("activate", "active"), ("delete", "deleted")] {
        let yes: &[&str] = if verb == "delete" { &["--yes"] } else { &[] };
        let rows = left(world, &[&["tenant", verb, &world.acme.id], yes].concat());
        let [(action, subject, before, after)] = &rows[..] else { panic!("one row: {rows:?}") };
        assert_eq!((action, subject), (&format!("tenant.{verb}"), &world.acme.id));
        assert_eq!((differing(before, after), &after["status"]), (vec!["status".into()], &status.into()));
    }
    world.db.cli(&["tenant", "activate", &world.acme.id]).ok();
    let made = left(world, &["key", "create", &world.acme.id, "--name", "ci"]);
    let [(action, _, Value::Null, after)] = &made[..] else { panic!("one row: {made:?}") };
    assert_eq!((action.as_str(), &after["name"]), ("key.create", &"ci".into()));
    let rotated = left(world, &["key", "rotate", &world.live.id, "--grace", "1h"]);
    let [(one, old, before, after), (other, _, Value::Null, new)] = &rotated[..] else {
        panic!("{rotated:?}")
    };
    assert_eq!((one.as_str(), other.as_str(), old), ("key.rotate", "key.rotate", &world.live.id));
    assert_eq!((differing(before, after).len(), &after["replaced_by"]), (2, &new["id"]));
    let revoked = left(world, &["key", "revoke", &world.live.id, "--reason", "leaked"]);
    let [(action, subject, before, after)] = &revoked[..] else { panic!("one row: {revoked:?}") };
    assert_eq!((action.as_str(), subject), ("key.revoke", &world.live.id));
    assert_eq!(differing(before, after), ["revocation_reason", "revoked_at"]);
    let made: Vec<_> = left(world, &["tenant", "create", "New"]).into_iter().map(|row| row.0).collect();
    let wanted: &[&str] = match world.db.backend {
        Backend::Postgres => &["tenant.create", "tenant.provision"],
        Backend::Sqlite => &["tenant.create"],
    };
    assert_eq!(made, wanted);
    let seeded: BTreeSet<_> = left(world, &["seed-demo", "--force"]).into_iter().map(|row| row.0).collect();
    assert!(seeded.contains("seed-demo"), "{seeded:?}");
    let first = &list(&world.db, &[])[0];
    assert_eq!(
        (&first["action"], &first["seq"], &first["before"]),
        (&"migrate".into(), &1.into(), &Value::Null)
    );
    assert_eq!(first["after"]["current"], world.db.json(&["migrate"])["current"]);
}

fn rejected_changes_and_changes_without_effect_have_no_row(world: &World) {
    let before = head(&world.db);
    let refused: [&[&str]; 5] = [
        &["tenant", "create", "Again", "--schema", &world.acme.schema],
        &["key", "create", &world.gone.id],
        &["key", "rotate", &world.revoked.id],
        &["tenant", "suspend", "Nobody"],
        &["seed-demo"],
    ];
    for command in refused {
        world.db.cli(command).refused();
    }
    let reason = ["key", "revoke", &world.live.id, "--reason", "it is llmk_typed_SecretThatIsTyped0123"];
    world.db.cli(&reason).usage();
    let nothing: [&[&str]; 5] = [
        &["migrate"],
        &["tenant", "suspend", &world.sleepy.id],
        &["tenant", "activate", &world.acme.id],
        &["key", "revoke", &world.revoked.id, "--reason", "again"],
        &["key", "list"],
    ];
    for command in nothing {
        world.db.cli(command).ok();
    }
    assert_eq!(head(&world.db), before);
    // If the log cannot be written, nothing is changed.
    let full = match world.db.backend {
        Backend::Postgres => {
            "ALTER TABLE tenantgate_audit_log ADD CONSTRAINT full_up CHECK (seq < 1) NOT VALID"
        }
        Backend::Sqlite => {
            "CREATE TRIGGER full_up BEFORE INSERT ON tenantgate_audit_log BEGIN SELECT RAISE(ABORT, 'full_up'); END"
        }
    };
    world.db.sql(full);
    let shown = world.db.json(&["key", "list"]);
    for command in [
        &["key", "revoke", &world.live.id][..],
        &["key", "rotate", &world.live.id],
        &["key", "create", &world.acme.id],
        &["tenant", "suspend", &world.acme.id],
        &["tenant", "create", "Unwritten"],
    ] {
        let line = world.db.cli(command).refused();
        assert!(line.contains("full_up"), "{line}");
    }
    assert_eq!(world.db.json(&["key", "list"]), shown);
    assert_eq!(world.db.json(&["tenant", "show", &world.acme.id])["status"], "active");
    world.db.cli(&["tenant", "show", "Unwritten"]).refused();
}

fn the_log_is_append_only(world: &World) {
    let before = head(&world.db);
    let mut refused = vec![
        "UPDATE tenantgate_audit_log SET actor = 'nobody'",
        "UPDATE tenantgate_audit_log SET actor = 'nobody' WHERE seq = 2",
        "DELETE FROM tenantgate_audit_log",
        "DELETE FROM tenantgate_audit_log WHERE seq = (SELECT max(seq) FROM tenantgate_audit_log)",
    ];
    match world.db.backend {
        Backend::Postgres => refused.extend([
            "TRUNCATE tenantgate_audit_log",
            "SET session_replication_role = replica; DELETE FROM tenantgate_audit_log",
            "INSERT INTO tenantgate_audit_log SELECT * FROM tenantgate_audit_log WHERE seq = 2
             ON CONFLICT (seq) DO UPDATE SET actor = 'nobody'",
        ]),
        Backend::Sqlite => refused.extend([
            "REPLACE INTO tenantgate_audit_log SELECT * FROM tenantgate_audit_log WHERE seq = 2",
            "INSERT INTO tenantgate_audit_log SELECT 99, at, actor, action, subject, before, after, hash FROM tenantgate_audit_log WHERE seq = 2",
        ]),
    }
    for sql in refused {
        let said = world.db.refuses(sql);
        assert!(said.contains("tenantgate_audit_log"), "{sql}: {said}");
    }
    assert_eq!(head(&world.db), before);
}

/// Disables the triggers, as only the owner of the tables can.
fn without_triggers(database: &Database, sql: &str) {
    let off = match database.backend {
        Backend::Postgres => "ALTER TABLE tenantgate_audit_log DISABLE TRIGGER ALL;",
        Backend::Sqlite => {
            "DROP TRIGGER IF EXISTS tenantgate_audit_log_not_updated; DROP TRIGGER IF EXISTS tenantgate_audit_log_not_deleted;"
        }
    };
    database.sql(&format!("{off} {sql}"));
}

fn a_modified_row_is_named(world: &World) {
    let (rows, _) = head(&world.db);
    assert!(rows > 5, "the world was made by commands: {rows}");
    let broken = |sql: &str, row: i64, word: &str| {
        without_triggers(&world.db, sql);
        for output in ["text", "json"] {
            let line = world.db.cli(&["audit", "verify", "-o", output]).refused();
            assert!(line.contains(&format!("row {row} ")) && line.contains(word), "{sql}: {line}");
        }
    };
    broken("UPDATE tenantgate_audit_log SET actor = 'nobody' WHERE seq = 5", 5, "was changed");
    broken("UPDATE tenantgate_audit_log SET after = '{}' WHERE seq = 4", 4, "was changed");
    broken("DELETE FROM tenantgate_audit_log WHERE seq = 3", 3, "missing");
    broken("DELETE FROM tenantgate_audit_log WHERE seq = 1", 1, "missing");
}

fn a_truncated_log_is_detected_by_a_recorded_head(world: &World) {
    let (rows, noted) = head(&world.db);
    world.db.cli(&["key", "revoke", &world.live.id]).ok();
    let verified = world.db.json(&["audit", "verify", "--expect-head", &noted.to_uppercase()]);
    assert_eq!((&verified["rows"], &verified["rows_since_expected"]), (&json!(rows + 1), &json!(1)));
    let (_, newest) = head(&world.db);
    without_triggers(
        &world.db,
        "DELETE FROM tenantgate_audit_log WHERE seq = (SELECT max(seq) FROM tenantgate_audit_log)",
    );
    assert_eq!(head(&world.db), (rows, noted.clone()), "without a recorded head, a truncated log is valid");
    let line = world.db.cli(&["audit", "verify", "--expect-head", &newest]).refused();
    assert!(line.contains("rows were removed") && line.contains(&noted), "{line}");
    for bad in ["", "abc", &"g".repeat(64)] {
        world.db.cli(&["audit", "verify", "--expect-head", bad]).usage();
    }
}

fn concurrent_writers_continue_one_chain(world: &World) {
    const WRITERS: usize = 6;
    const EACH: usize = 5;
    let (before, _) = head(&world.db);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            scope.spawn(move || {
                for n in 0..EACH {
                    let name = format!("writer {writer} {n}");
                    world.db.cli(&["tenant", "create", &name, "--status", "pending_provisioning"]).ok();
                }
            });
        }
    });
    assert_eq!(head(&world.db).0, before + i64::try_from(WRITERS * EACH).expect("few"));
}

fn the_log_holds_no_secret(world: &World) {
    let pepper = world.db.dir().join("pepper");
    let pepper = pepper.to_str().expect("UTF-8");
    world.db.cli(&["pepper", "new", pepper]).ok();
    let issued = world.db.json(&["key", "create", &world.acme.id, "--pepper-file", pepper]);
    let rotated = world.db.json(&["key", "rotate", &world.live.id, "--pepper-file", pepper]);
    assert_eq!(world.db.json(&["key", "show", issued["id"].as_str().unwrap_or_default()])["memo"], true);
    let log = world.db.texts("SELECT coalesce(CAST(before AS text), '') || coalesce(CAST(after AS text), '') || subject || actor FROM tenantgate_audit_log");
    let log: String = log.into_iter().flatten().collect();
    let secret =
        |key: &Value| key["key"].as_str().and_then(|k| k.rsplit_once('_')).expect("a key").1.to_owned();
    for never in ["$2b$", "$2a$", "$llmk", "hash", "memo", &secret(&issued), &secret(&rotated["new"])] {
        assert!(!log.contains(never), "the log contains {never}");
    }
    for output in ["text", "json"] {
        let said = world.db.cli(&["audit", "list", "-o", output]).ok();
        assert!(!said.contains("$2b$") && !said.contains(&secret(&issued)), "{said}");
    }
}

fn the_actor_is_the_user_or_the_given_name(world: &World) {
    let newest = |env: &[(&str, &str)], args: &[&str]| {
        let all = [args, &["--database-url", world.db.url()]].concat();
        run_in(world.db.dir(), env, &all).ok();
        list(&world.db, &["--limit", "1"])[0]["actor"].clone()
    };
    let user = Command::new("id").arg("-un").output().expect("every Linux has it").stdout;
    let user = String::from_utf8(user).expect("UTF-8").trim().to_owned();
    assert_eq!(newest(&[], &["tenant", "suspend", &world.acme.id]), user.as_str());
    let variable = [("TENANTGATE_ACTOR", "ci@example.org")];
    assert_eq!(newest(&variable, &["tenant", "activate", &world.acme.id]), "ci@example.org");
    assert_eq!(newest(&variable, &["--actor", "Alice", "tenant", "suspend", &world.acme.id]), "Alice");
    assert_eq!(newest(&[], &["tenant", "activate", &world.acme.id, "--actor", "Bob"]), "Bob");
    for bad in ["", "two\nlines", "llmk_typed_SecretThatIsTyped0123"] {
        world.db.cli(&["tenant", "suspend", &world.acme.id, "--actor", bad]).usage();
    }
    let of_alice = list(&world.db, &["--actor", "Alice"]);
    assert!(of_alice.len() == 1 && of_alice[0]["actor"] == "Alice", "{of_alice:?}");
    let args = ["audit", "list", "-o", "json", "--database-url", world.db.url()];
    let all = run_in(world.db.dir(), &variable, &args).json();
    assert!(
        all.as_array().is_some_and(|rows| rows.len() > 5),
        "the variable sets the actor, but does not filter the list"
    );
}

fn the_log_is_filtered_by_time_actor_subject_and_number(world: &World) {
    let all = list(&world.db, &[]);
    let fields =
        ["action", "actor", "address", "after", "at", "before", "hash", "request_id", "seq", "subject"];
    let names: Vec<_> = all[0].as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, fields);
    let number = |row: &Value| row["seq"].as_i64().expect("a number");
    assert!(all.iter().zip(1..).all(|(row, n)| number(row) == n), "oldest first and complete");
    assert_eq!(list(&world.db, &["--limit", "3"]), all[all.len() - 3..]);
    let at = all[4]["at"].as_str().expect("an instant");
    let (since, until) = (list(&world.db, &["--since", at]), list(&world.db, &["--until", at]));
    assert_eq!(since.len() + until.len(), all.len());
    assert!(until.iter().all(|row| row["at"].as_str() < Some(at)));
    assert_eq!(list(&world.db, &["--since", "1d"]).len(), all.len());
    assert_eq!(list(&world.db, &["--until", "1d"]), Vec::<Value>::new());
    for subject in [&world.issued.id, &world.issued.prefix] {
        let rows = list(&world.db, &["--subject", subject]);
        assert!(
            !rows.is_empty() && rows.iter().all(|row| row["subject"] == world.issued.id.as_str()),
            "{rows:?}"
        );
    }
    for subject in [&world.sleepy.schema, &world.sleepy.name] {
        let rows = list(&world.db, &["--subject", subject]);
        assert!(
            rows.len() >= 2 && rows.iter().all(|row| row["subject"] == world.sleepy.id.as_str()),
            "{rows:?}"
        );
    }
    let of_tenant = list(&world.db, &["--subject", &world.sleepy.id]);
    assert!(
        of_tenant.iter().any(|row| row["after"]["key_prefix"].is_string()),
        "its keys too: {of_tenant:?}"
    );
    let text = world.db.cli(&["audit", "list", "--subject", &world.sleepy.id]).ok();
    assert!(text.contains("tenant.suspend") && text.contains("status: active → suspended"), "{text}");
    let intact = world.db.cli(&["audit", "verify"]).ok();
    assert!(intact.starts_with("intact: ") && intact.contains(&head(&world.db).1), "{intact}");
    for bad in [["--since", "yesterday"], ["--until", "90"], ["--limit", "0"]] {
        world.db.cli(&[&["audit", "list"], &bad[..]].concat()).usage();
    }
}

fn the_first_use_of_a_key_is_logged(world: &World) {
    let use_it = || {
        let mut server = Server::on(&world.db).start();
        assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
        server.signal("TERM");
        assert_eq!(server.exit_code(PATIENCE), Some(0));
        let said = server.stderr.to_the_end(PATIENCE);
        said.lines().filter(|line| line.contains("first use")).map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let lines = use_it();
    let [line] = &lines[..] else { panic!("one line: {lines:?}") };
    for word in ["INFO", "tenantgate::audit", &world.live.id, &world.live.prefix, &world.acme.id] {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert_eq!(use_it(), Vec::<String>::new(), "a second use is not logged as the first, on any server");
}

/// The documented program verifies a dump as CSV.
fn the_documented_program_verifies_a_dump(world: &World) {
    let page = include_str!("../../docs/reference/audit.md");
    let (_, program) = page.split_once("```python audit\n").expect("the page has the program");
    let program = program.split("```").next().expect("it ends");
    let at = match world.db.backend {
        Backend::Postgres => r#"to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#,
        Backend::Sqlite => "at",
    };
    let columns =
        ["seq", at, "actor", "action", "subject", "before", "after", "request_id", "address", "hash"].map(
            |column| format!("'\"' || replace(coalesce(CAST({column} AS text), ''), '\"', '\"\"') || '\"'"),
        );
    let dump = world
        .db
        .texts(&format!("SELECT {} FROM tenantgate_audit_log ORDER BY seq", columns.join(" || ',' || ")));
    let dump: Vec<String> = dump.into_iter().flatten().collect();
    let header = "seq,at,actor,action,subject,before,after,request_id,address,hash\n";
    let run = |dump: &str| {
        let mut python = Command::new("python3");
        let mut python = python
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut input = python.stdin.take().expect("piped");
        std::io::Write::write_all(&mut input, format!("{header}{dump}\n").as_bytes()).expect("it reads");
        drop(input);
        let said = python.wait_with_output().expect("it ends");
        (said.status.success(), String::from_utf8(said.stdout).expect("UTF-8"))
    };
    let (rows, hash) = head(&world.db);
    assert_eq!(run(&dump.join("\n")), (true, format!("intact: {rows} rows; head {hash}\n")));
    let touched = dump.join("\n").replacen("tenant.suspend", "tenant.restore", 1);
    assert!(!run(&touched).0, "a modified dump is detected");
}

#[test]
fn the_variable_of_the_database_selects_the_database() {
    let database = Database::empty(Backend::Sqlite).expect("always there");
    run_in(database.dir(), &[(DATABASE_URL, database.url())], &["tenant", "create", "First"]).ok();
    let actions: Vec<_> = list(&database, &[]).iter().map(|row| row["action"].clone()).collect();
    assert_eq!(actions, ["migrate", "tenant.create"]);
}
