//! Tests import and export of many keys and tenants, on both stores, with all kinds of files.

mod input;

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::cli::{Run, command};
use crate::support::world::quick_hash;
use crate::support::{Ask, Backend, Database, PATIENCE, Server, World, eventually, on_every_store};

on_every_store![
    keys_are_imported_from_both_formats_and_work,
    whole_keys_are_hashed_and_leave_no_trace,
    a_repeated_import_changes_nothing_and_contradictions_are_rejected,
    every_rejected_row_is_reported_with_its_line_and_reason,
    a_dry_run_reports_the_same_and_changes_nothing,
    all_or_nothing_imports_nothing_if_a_row_is_rejected,
    an_export_can_be_imported_unchanged,
    a_killed_import_is_completed_by_repeating_it,
    every_batch_is_a_row_of_the_audit_log,
    tenants_are_imported_with_their_schemas,
    the_mode_of_a_tenant_is_imported_and_exported,
];

/// Writes a file beside the database.
fn file(world: &World, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = world.db.dir().join(name);
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

fn text_of(n: usize) -> String {
    format!("llmk_moved{n}_Moved-Secret-{n:010}")
}

/// A CSV of keys hashed by another program. The hashes differ in their salts; only the first few are real.
fn hashed_csv(tenant: &str, rows: usize) -> String {
    let mut csv = String::from("key_prefix,hashed_key,tenant,name\n");
    for n in 0..rows {
        let hash = if n < 2 { quick_hash(&text_of(n)) } else { fake_hash(n) };
        let _ = writeln!(csv, "llmk_moved{n},{hash},{tenant},moved {n}");
    }
    csv
}

fn fake_hash(n: usize) -> String {
    format!("$2b$04${n:08}4TpZE4efb02CmOdFIwDrm2LI8KtSjA93JDkMtHMX4hmb2")
}

/// Asserts a run that rejected rows: exit 1; returns its JSON.
fn refused(run: &Run) -> Value {
    assert_eq!(run.code, Some(1), "{run:#?}");
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:#?}"))
}

fn counts(said: &Value) -> [u64; 4] {
    let refused = said["refused"].as_array().expect("an array").len() as u64;
    let count = |name: &str| said[name].as_u64().unwrap_or_else(|| panic!("no {name}: {said}"));
    [count("read"), count("imported"), count("already_there"), refused]
}

fn keys_are_imported_from_both_formats_and_work(world: &World) {
    let csv = file(world, "keys.csv", hashed_csv(&world.acme.schema, 2).replace('\n', "\r\n"));
    assert_eq!(counts(&world.db.json(&["key", "import", &csv])), [2, 2, 0, 0]);
    let row = json!({
        "key_prefix": "llmk_line", "hashed_key": quick_hash("llmk_line_Line-Secret-01"), "tenant_id": world.acme.id,
        "id": "770e8400-e29b-41d4-a716-446655440000", "name": "=1+1", "created_at": "2020-01-01T00:00:00Z",
        "expires_at": "2099-01-01T00:00:00Z", "revoked_at": null
    });
    let taken = json!({
        "key_prefix": "llmk_taken", "hashed_key": quick_hash("llmk_taken_Line-Secret-01"), "tenant": world.acme.name,
        "revoked_at": "2024-01-01T00:00:00Z", "revocation_reason": "old"
    });
    let jsonl = file(world, "keys.jsonl", format!("\u{feff}{row}\n\n{taken}"));
    assert_eq!(counts(&world.db.json(&["key", "import", &jsonl])), [2, 2, 0, 0]);
    let shown = world.db.json(&["key", "show", "llmk_line"]);
    assert_eq!((&shown["name"], &shown["id"]), (&row["name"], &row["id"]));
    assert_eq!(shown["created_at"], "2020-01-01T00:00:00.000000Z");
    assert_eq!(world.db.json(&["key", "show", "llmk_taken"])["revocation_reason"], "old");
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&text_of(0))), "200 ok");
    assert_eq!(server.row(Ask::with_key("llmk_line_Line-Secret-01")), "200 ok");
    assert_eq!(server.row(Ask::with_key("llmk_line_Line-Secret-02")), "401 mismatch");
    assert_eq!(server.row(Ask::with_key("llmk_taken_Line-Secret-01")), "401 revoked");
}

fn whole_keys_are_hashed_and_leave_no_trace(world: &World) {
    let (one, two) = ("llmk_plain1_PlainSecret0123456789", "llmk_plain2_PlainSecret9876543210");
    let csv = file(world, "plain.csv", format!("key,tenant\n{one},{0}\n{two},{0}\n", world.acme.id));
    let run = world.db.cli(&["key", "import", &csv, "-o", "json"]);
    assert!(!run.stderr.contains("Secret") && !run.stdout.contains("Secret"), "{run:#?}");
    assert_eq!(counts(&run.json()), [2, 2, 0, 0]);
    assert_eq!(
        counts(&world.db.json(&["key", "import", &csv])),
        [2, 0, 2, 0],
        "bcrypt verifies the key against the stored hash"
    );
    let other = file(world, "other.csv", format!("key,tenant\n{}x,{}\n", one, world.acme.id));
    let said = refused(&world.db.cli(&["key", "import", &other, "-o", "json"]));
    assert!(
        said["refused"][0]["reason"].as_str().is_some_and(|why| why.contains("another key or hash")),
        "{said}"
    );
    let hash =
        world.db.text("SELECT hashed_key FROM api_keys WHERE key_prefix = 'llmk_plain1'").expect("a hash");
    assert!(hash.starts_with("$2b$12$"), "{hash}");
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(two)), "200 ok");
    if world.db.backend == Backend::Postgres {
        assert!(!world.db.everything().contains("PlainSecret"), "a secret is in the database");
    }
}

fn a_repeated_import_changes_nothing_and_contradictions_are_rejected(world: &World) {
    let text = hashed_csv(&world.acme.name, 5);
    let csv = file(world, "keys.csv", &text);
    world.db.cli(&["key", "import", &csv]).ok();
    world.db.cli(&["key", "revoke", "llmk_moved1"]).ok();
    let before = world.db.json(&["key", "list"]);
    let again = world.db.cli(&["key", "import", &csv]);
    assert_eq!(again.stdout, "5 rows: 0 imported, 5 already there, 0 refused\n", "{again:#?}");
    assert_eq!(world.db.json(&["key", "list"]), before, "a revocation after the first import remains");
    let text = text.replace("moved 2", "other name").replace(&fake_hash(3), &fake_hash(99)).replace(
        &format!("{},{}", fake_hash(4), world.acme.name),
        &format!("{},{}", fake_hash(4), world.sleepy.name),
    );
    let said = refused(&world.db.cli(&["key", "import", &file(world, "changed.csv", text), "-o", "json"]));
    assert_eq!(counts(&said), [5, 0, 2, 3]);
    for (at, (line, word)) in [(4, "name"), (5, "hash"), (6, "tenant")].into_iter().enumerate() {
        let row = &said["refused"][at];
        assert_eq!(row["line"], line, "{said}");
        assert!(
            row["reason"]
                .as_str()
                .is_some_and(|why| why.contains(&format!("with another {word}")) || why.contains(word)),
            "{row}"
        );
    }
    assert_eq!(world.db.json(&["key", "list"]), before);
}

fn every_rejected_row_is_reported_with_its_line_and_reason(world: &World) {
    let acme = &world.acme.id;
    let good = fake_hash(1);
    let bad_hash = |hash: &str| format!("llmk_bad,{hash},,{acme},,,");
    let rows: Vec<(String, &str)> = vec![
        (format!("llmk_fine,{good},,{acme},,,"), ""),
        (bad_hash(&good.replace("2b", "2x")), "hashed_key"),
        (bad_hash(&good.replace("$04$", "$03$")), "hashed_key"),
        (bad_hash(&good.replace("$04$", "$15$")), "hashed_key"),
        (bad_hash(&format!("{}3", &good[..59])), "hashed_key"),
        (bad_hash("plaintext"), "hashed_key"),
        (format!("llmk_a_b,{good},,{acme},,,"), "key_prefix"),
        (format!("other_a,{good},,{acme},,,"), "key_prefix"),
        (format!(",{good},,{acme},,,"), "key_prefix"),
        (format!("llmk_b,,,{acme},,,"), "neither key nor hashed_key"),
        (format!(",,llmk_short_1,{acme},,,"), "secret of 8"),
        (format!(",,llmk_{}_{},{acme},,,", "a".repeat(48), "b".repeat(18)), "71"),
        (format!("llmk_x,,llmk_plain_PlainSecret012,{acme},,,"), "key_prefix is not that of key"),
        (format!("llmk_x,{good},llmk_x_PlainSecret012,{acme},,,"), "both"),
        (format!("llmk_x,{},,Nobody,,,", fake_hash(2)), "no tenant"),
        (format!("llmk_x,{},,,,,", fake_hash(2)), "neither tenant nor tenant_id"),
        (format!("llmk_x,{},,{acme},,,tomorrow", fake_hash(2)), "expires_at"),
        (format!("llmk_x,{},,{acme},,not-a-uuid,", fake_hash(2)), "id"),
        (format!("llmk_x,{},,{acme},llmk_x_PlainSecret012,,", fake_hash(2)), "name"),
        (format!("llmk_x,{},,{acme}", fake_hash(2)), "fields"),
        (format!("llmk_other1,{good},,{acme},,,"), "hashed_key belongs to llmk_fine"),
        (format!("llmk_other1,{},,{acme},,{},", fake_hash(3), world.live.id), "id belongs to llmk_live"),
        (format!("llmk_fine,{good},,{acme},again,,"), "another name"),
        (format!("llmk_fine,{good},,{acme},,,"), ""),
    ];
    let mut csv = String::from("key_prefix,hashed_key,key,tenant,name,id,expires_at\n");
    for (row, _) in &rows {
        let _ = writeln!(csv, "{row}");
    }
    let csv = file(world, "bad.csv", &csv);
    let said = refused(&world.db.cli(&["key", "import", &csv, "-o", "json"]));
    let expected: Vec<_> = rows.iter().zip(2..).filter(|((_, why), _)| !why.is_empty()).collect();
    assert_eq!(counts(&said), [24, 1, 1, expected.len() as u64], "{said:#}");
    for (((row, word), line), got) in expected.iter().zip(said["refused"].as_array().expect("an array")) {
        assert_eq!(got["line"], *line, "{row}: {got}");
        assert!(got["reason"].as_str().is_some_and(|why| why.contains(word)), "{row}: {got}");
    }
    assert!(!said.to_string().contains("PlainSecret"), "a secret is repeated");
    let text = world.db.cli(&["key", "import", &csv]);
    assert_eq!((text.code, text.stdout.lines().count()), (Some(1), 1), "{text:#?}");
    assert_eq!(
        text.stderr.lines().filter(|line| line.starts_with("line ")).count(),
        expected.len(),
        "{text:#?}"
    );
    assert!(!text.stderr.contains("PlainSecret"), "{text:#?}");
    world.db.cli(&["key", "show", "llmk_fine"]).ok();
}

fn a_dry_run_reports_the_same_and_changes_nothing(world: &World) {
    let mut csv = hashed_csv(&world.acme.name, 1_200);
    csv.push_str("llmk_bad,nothing,Acme Corp,bad\n");
    let _ = writeln!(csv, "llmk_moved7,{},Acme Corp,moved 7", fake_hash(5_000));
    let csv = file(world, "keys.csv", csv);
    let before = (world.db.json(&["key", "list"]), world.db.json(&["audit", "verify"]));
    let said = refused(&world.db.cli(&["key", "import", &csv, "--dry-run", "-o", "json"]));
    assert_eq!((counts(&said), &said["dry_run"]), ([1_202, 1_200, 0, 2], &true.into()));
    assert_eq!((world.db.json(&["key", "list"]), world.db.json(&["audit", "verify"])), before);
    let said = refused(&world.db.cli(&["key", "import", &csv, "-o", "json"]));
    assert_eq!((counts(&said), &said["dry_run"]), ([1_202, 1_200, 0, 2], &false.into()));
}

fn all_or_nothing_imports_nothing_if_a_row_is_rejected(world: &World) {
    let good = file(world, "good.csv", hashed_csv(&world.acme.name, 3));
    let bad = file(world, "bad.csv", hashed_csv(&world.acme.name, 3) + "llmk_bad,nothing,Acme Corp,bad\n");
    let before = world.db.json(&["key", "list"]);
    let said = refused(&world.db.cli(&["key", "import", &bad, "--all-or-nothing", "-o", "json"]));
    assert_eq!(counts(&said), [4, 0, 0, 1], "{said}");
    assert_eq!(world.db.json(&["key", "list"]), before);
    assert_eq!(counts(&world.db.json(&["key", "import", &good, "--all-or-nothing"])), [3, 3, 0, 0]);
    let stream = ["key", "import", "-", "--format", "csv", "--all-or-nothing"];
    assert!(world.db.cli(&stream).usage().contains("twice"));
}

fn an_export_can_be_imported_unchanged(world: &World) {
    for (name, reason) in [("=cmd|' /C calc'!A0", "a, \"b\""), ("'=quoted", "-"), ("plain", "ä")] {
        let made = world.db.json(&["key", "create", &world.acme.id, &format!("--name={name}")]);
        world
            .db
            .cli(&["key", "revoke", made["id"].as_str().expect("an id"), &format!("--reason={reason}")])
            .ok();
    }
    let Some(other) = Database::empty(world.db.backend) else { return };
    other.cli(&["migrate"]).ok();
    for format in ["csv", "jsonl"] {
        let path =
            |what: &str| world.db.dir().join(format!("{what}.{format}")).to_str().expect("UTF-8").to_owned();
        world.db.cli(&["tenant", "export", &path("tenants")]).ok();
        let said = world.db.cli(&["key", "export", &path("keys"), "--with-hashes"]);
        assert!(said.stderr.contains("11 keys are in"), "{said:#?}");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(path("keys")).expect("the file exists").permissions(),
        );
        assert_eq!(mode & 0o777, 0o600, "readable only by its owner");
        other.cli(&["tenant", "import", &path("tenants")]).ok();
        other.cli(&["key", "import", &path("keys")]).ok();
        // An export that is imported and exported again is the same to the byte, and the import changes nothing.
        let again = other.dir().join(format!("again.{format}")).to_str().expect("UTF-8").to_owned();
        other.cli(&["key", "export", &again, "--with-hashes"]).ok();
        let read = |path: &str| std::fs::read_to_string(path).expect("the file exists");
        assert_eq!(read(&path("keys")), read(&again));
        assert_eq!(counts(&world.db.json(&["key", "import", &path("keys")])), [11, 0, 11, 0]);
        assert_eq!(counts(&world.db.json(&["tenant", "import", &path("tenants")])), [4, 0, 4, 0]);
    }
    let shown = |db: &Database| db.json(&["key", "list"]).as_array().map(Vec::len);
    assert_eq!(shown(&other), shown(&world.db));
    let plain = world.db.cli(&["key", "export"]).ok();
    assert!(
        plain.starts_with("id,key_prefix,name,tenant_id,tenant,created_at,"),
        "CSV on stdout by default: {plain}"
    );
    assert!(!plain.contains("$2") && !plain.contains("hashed_key") && plain.lines().count() == 12, "{plain}");
    let lines = world.db.cli(&["key", "export", "--format", "jsonl", "--tenant", &world.sleepy.name]).ok();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(
        world.db.cli(&["key", "export", "-", "--with-hashes"]).ok().contains("$2b$"),
        "on request, and not to a terminal"
    );
    let nowhere = world.db.dir().join("no/such/dir.csv");
    world.db.cli(&["key", "export", nowhere.to_str().expect("UTF-8")]).refused();
}

/// Kills an import in the middle, and repeats it.
fn a_killed_import_is_completed_by_repeating_it(world: &World) {
    const ROWS: usize = 12_000;
    let csv = file(world, "keys.csv", hashed_csv(&world.acme.id, ROWS));
    let there = || -> usize {
        let count = "SELECT CAST(count(*) AS text) FROM api_keys WHERE key_prefix LIKE 'llmk_moved%'";
        world.db.text(count).and_then(|count| count.parse().ok()).expect("a number")
    };
    let mut child = command(world.db.dir())
        .args(["key", "import", &csv, "--database-url", world.db.url()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let start = Instant::now();
    while there() == 0 && start.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let first = eventually("the session of the killed import has ended", Duration::from_secs(10), || {
        let first = there();
        if first.is_multiple_of(1_000) { Ok(first) } else { Err(first) }
    });
    assert!(first > 0, "some rows were imported");
    let said = world.db.json(&["key", "import", &csv]);
    // A commit in progress when the program was killed may have completed after the count.
    assert_eq!(
        said["imported"].as_u64().zip(said["already_there"].as_u64()).map(|(a, b)| a + b),
        Some(ROWS as u64)
    );
    assert!(said["already_there"].as_u64() >= Some(first as u64), "{said}");
    assert_eq!(there(), ROWS);
    world.db.cli(&["audit", "verify"]).ok();
}

fn every_batch_is_a_row_of_the_audit_log(world: &World) {
    let text = hashed_csv(&world.acme.id, 2_500);
    let csv = file(world, "keys.csv", &text);
    world.db.cli(&["key", "import", &csv, "--actor", "mover"]).ok();
    let rows = world.db.json(&["audit", "list", "--actor", "mover"]);
    let rows = rows.as_array().expect("an array");
    assert_eq!(rows.len(), 3);
    let digest = {
        use sha2::Digest as _;
        sha2::Sha256::digest(&text).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    };
    for (row, (first, last, count)) in
        rows.iter().zip([(2, 1_001, 1_000), (1_002, 2_001, 1_000), (2_002, 2_501, 500)])
    {
        let after = &row["after"];
        assert_eq!((&row["action"], &row["before"]), (&"key.import".into(), &Value::Null));
        assert_eq!((&after["file"], &after["sha256"]), (&csv.as_str().into(), &digest.as_str().into()));
        assert_eq!(
            (&after["first_line"], &after["last_line"], &after["rows"]),
            (&first.into(), &last.into(), &count.into())
        );
        let id = after["first_id"].as_str().expect("an id");
        assert!(
            world.db.json(&["key", "show", id])["name"]
                .as_str()
                .is_some_and(|name| name == format!("moved {}", first - 2))
        );
        assert_eq!(row["subject"], rows[0]["subject"], "one import");
    }
    world.db.cli(&["audit", "verify"]).ok();
}

fn tenants_are_imported_with_their_schemas(world: &World) {
    let csv = "name,db_schema_name,status,created_at\nOne & Co,,,\nTwo,the_two,suspended,2020-01-01T00:00:00Z\n\
               Three,the_three,deleted,\nBad,public,,\n,x,,\nWorse,x,frozen,\nAcme,tenant_acme_corp,,\nTwo,the_two,suspended,\n";
    let said = refused(&world.db.cli(&["tenant", "import", &file(world, "tenants.csv", csv), "-o", "json"]));
    assert_eq!(counts(&said), [8, 3, 1, 4], "{said}");
    let lines: Vec<_> =
        said["refused"].as_array().expect("an array").iter().map(|row| row["line"].as_u64()).collect();
    assert_eq!(lines, [Some(5), Some(6), Some(7), Some(8)]);
    let shown = world.db.json(&["tenant", "show", "the_two"]);
    assert_eq!(
        (&shown["status"], &shown["created_at"]),
        (&"suspended".into(), &"2020-01-01T00:00:00.000000Z".into())
    );
    assert_eq!(world.db.json(&["tenant", "show", "One & Co"])["db_schema_name"], "tenant_one_co");
    if world.db.backend == Backend::Postgres {
        let stands = |schema: &str| {
            let sql = format!("SELECT count(*)::text FROM pg_namespace WHERE nspname = '{schema}'");
            world.db.text(&sql).as_deref() == Some("1")
        };
        assert!(stands("tenant_one_co") && stands("the_two") && !stands("the_three"));
    }
    assert_eq!(world.db.json(&["audit", "list", "--limit", "1"])[0]["action"], "tenant.import");
}

fn the_mode_of_a_tenant_is_imported_and_exported(world: &World) {
    world.db.json(&["tenant", "mode", &world.acme.id, "shadow"]);
    let csv = "name,mode\nOne,shadow\nTwo,enforce\nThree,\nFour,Shadow\nAcme Corp,shadow\nAcme Corp,\n\
               Acme Corp,enforce\nSleepy Ltd,shadow\n";
    let said = refused(&world.db.cli(&["tenant", "import", &file(world, "tenants.csv", csv), "-o", "json"]));
    assert_eq!(counts(&said), [8, 3, 2, 3], "{said}");
    let rows = [(5, "expected one of enforce, shadow"), (8, "another mode"), (9, "another mode")];
    for ((line, why), row) in rows.into_iter().zip(said["refused"].as_array().expect("an array")) {
        assert!(
            row["line"] == line && row["reason"].as_str().is_some_and(|said| said.contains(why)),
            "{row}"
        );
    }
    let lines = r#"{"name":"Five","mode":""}
        {"name":"Six","mode":null}
        {"name":"Seven","mode":"shadow"}
        {"name":"Eight","mode":"off"}"#;
    let jsonl = file(world, "tenants.jsonl", lines);
    let said = refused(&world.db.cli(&["tenant", "import", &jsonl, "-o", "json"]));
    assert_eq!((counts(&said), &said["refused"][0]["line"]), ([4, 3, 0, 1], &4.into()), "{said}");
    let mode = |name: &str| world.db.json(&["tenant", "show", name])["mode"].as_str().map(ToOwned::to_owned);
    for (name, said) in [("One", Some("shadow")), ("Two", Some("enforce")), ("Seven", Some("shadow"))] {
        assert_eq!(mode(name).as_deref(), said, "{name}");
    }
    for name in ["Three", "Five", "Six", "Sleepy Ltd"] {
        assert_eq!(mode(name), None, "{name}");
    }
    for format in ["csv", "jsonl"] {
        let Some(other) = Database::empty(world.db.backend) else { return };
        other.cli(&["migrate"]).ok();
        let out = world.db.cli(&["tenant", "export", "--format", format]).ok();
        assert!(
            out.contains(if format == "csv" { ",active,shadow," } else { r#""mode":"shadow""# }),
            "{out}"
        );
        other.cli(&["tenant", "import", &file(world, &format!("all.{format}"), &out)]).ok();
        assert_eq!(other.cli(&["tenant", "export", "--format", format]).ok(), out);
    }
}
