//! Tests bad files, standard input and terminals.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;

use super::{counts, fake_hash, file, hashed_csv, refused};
use crate::support::World;
use crate::support::cli::{command, tenantgate};

/// A file without the format of keys is rejected as a whole, in one line.
#[test]
fn a_bad_file_is_one_clear_line() {
    let world = World::somewhere();
    let before = world.db.json(&["key", "list"]);
    let utf16: Vec<u8> = "key,tenant\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let files: [(&str, Vec<u8>, &str); 10] = [
        ("empty.csv", Vec::new(), "empty"),
        ("unknown.csv", b"key,tenant,colour\n".into(), "\"colour\""),
        ("twice.csv", b"key,tenant,key\n".into(), "twice"),
        ("no_tenant.csv", b"key,name\n".into(), "tenant or tenant_id"),
        ("no_key.csv", b"tenant,name\n".into(), "key or hashed_key"),
        ("no_header.csv", b"llmk_typed_SecretThatIsTyped0123,Acme Corp\n".into(), "llmk_typed_***"),
        ("utf16.csv", [&[0xff, 0xfe][..], &utf16].concat(), "UTF-8"),
        ("packed.csv", vec![0x1f, 0x8b, 8, 0, 0], "unpack"),
        ("huge.csv", [b"key,tenant\n\"".as_slice(), &vec![b'x'; 3 << 20]].concat(), "1 MiB"),
        ("huge.jsonl", vec![b'x'; 3 << 20], "1 MiB"),
    ];
    for (name, bytes, word) in files {
        let line = world.db.cli(&["key", "import", &file(&world, name, bytes)]).refused();
        assert!(line.contains(word) && line.len() < 500, "{name}: {line}");
    }
    world.db.cli(&["key", "import", "/no/such/file.csv"]).refused();
    assert!(world.db.cli(&["key", "import", &file(&world, "keys.txt", "")]).usage().contains("--format"));
    world.db.cli(&["key", "import"]).usage();
    world.db.cli(&["key", "import", "-", "--format", "xml"]).usage();
    assert_eq!(world.db.json(&["key", "list"]), before);
}

#[test]
fn an_invalid_row_does_not_affect_other_rows() {
    let world = World::somewhere();
    let good = |n: usize| json!({ "key_prefix": format!("llmk_g{n}"), "hashed_key": fake_hash(n), "tenant": "Acme Corp" });
    let mut lines = format!(
        "{}\nnot json\n[1]\n{{\"key\": 5, \"tenant\": \"Acme Corp\"}}\n{{\"colour\": \"x\"}}\n",
        good(1)
    )
    .into_bytes();
    lines.extend(b"{\"key\": \"\xff\"}\n");
    lines.extend(good(2).to_string().bytes());
    let said = refused(&world.db.cli(&["key", "import", &file(&world, "rows.jsonl", lines), "-o", "json"]));
    assert_eq!(counts(&said), [7, 2, 0, 5], "{said}");
    let csv = [
        format!("key_prefix,hashed_key,tenant\nllmk_g3,{},", fake_hash(3)).as_bytes(),
        b"\xff\nllmk_g4,",
        format!("{},Acme Corp\n", fake_hash(4)).as_bytes(),
    ]
    .concat();
    let said = refused(&world.db.cli(&["key", "import", &file(&world, "rows.csv", csv), "-o", "json"]));
    assert_eq!(
        (counts(&said), &said["refused"][0]),
        ([2, 1, 0, 1], &json!({ "line": 2, "reason": "is not UTF-8" }))
    );
}

#[test]
fn standard_input_is_imported_up_to_the_row_that_is_cut_off() {
    let world = World::somewhere();
    let feed = |text: &str| {
        let mut child = command(world.db.dir())
            .args(["key", "import", "-", "--format", "csv", "-o", "json", "--database-url", world.db.url()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut input = child.stdin.take().expect("piped");
        // The program may have stopped reading.
        let _ = input.write_all(text.as_bytes());
        drop(input);
        child.wait_with_output().expect("it ends")
    };
    let text = hashed_csv("Acme Corp", 10);
    let said = feed(&text);
    assert_eq!(counts(&serde_json::from_slice(&said.stdout).expect("JSON")), [10, 10, 0, 0]);
    let row = &world.db.json(&["audit", "list", "--limit", "1"])[0];
    assert!(
        row["after"]["file"] == "-" && row["after"]["sha256"].as_str().map(str::len) == Some(64),
        "{row}"
    );
    let said = feed(&format!("{text}\"{}", "x".repeat(3 << 20)));
    assert_eq!(said.status.code(), Some(1));
    assert_eq!(counts(&serde_json::from_slice(&said.stdout).expect("JSON")), [10, 0, 10, 0]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("1 MiB"), "{said:?}");
}

/// `script` gives the program a terminal.
#[test]
fn on_a_terminal_there_is_a_bar_and_hashes_are_not_shown() {
    let world = World::somewhere();
    let script = PathBuf::from("/usr/bin/script");
    if !script.exists() {
        crate::support::tell("!!! LEFT OUT: what a terminal shows: there is no /usr/bin/script");
        return;
    }
    let on_a_terminal = |args: &str| {
        let program = tenantgate();
        let line = format!("{} {args} --database-url {}", program.display(), world.db.url());
        let run = std::process::Command::new(&script)
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::null())
            .output();
        let run = run.expect("it starts");
        (run.status.code(), String::from_utf8_lossy(&run.stdout).into_owned())
    };
    let (code, said) = on_a_terminal("key export --with-hashes");
    assert!(code == Some(1) && said.contains("on a terminal") && !said.contains("$2"), "{said}");
    let csv = file(&world, "keys.csv", hashed_csv(&world.acme.id, 3_000));
    let (code, said) = on_a_terminal(&format!("key import {csv}"));
    assert!(code == Some(0) && said.contains("a second") && said.contains("left"), "{said}");
    let quiet = world.db.cli(&["key", "import", &csv]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""), "no bar without a terminal");
}
