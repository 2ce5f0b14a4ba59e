//! Checks that every field of a log line is documented.
//!
//! Programs read these lines, so a field name is an interface. The test collects fields from the sources, which
//! includes lines that no test causes, and from a server that logs JSON.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use crate::support::{Ask, Backend, PATIENCE, Server, World, on_every_store};

on_every_store![every_line_is_an_object_of_documented_fields];

/// The fields of every line of JSON.
const FRAME: [&str; 4] = ["level", "message", "target", "timestamp"];

/// The table of fields in the reference.
fn documented() -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/log-lines.md");
    let page = std::fs::read_to_string(page).expect("the page exists");
    let (_, section) = page.split_once("\n## Fields\n").expect("the page has a section on fields");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    rows.flat_map(|names| names.split(", ").map(|name| name.trim_matches('`').to_owned())).collect()
}

/// The fields of every macro of `tracing` in the sources.
fn in_sources() -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(&path).expect("a source is text");
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                fields.extend(calls(code).iter().flat_map(|call| fields_of(call)));
            }
        }
    }
    fields
}

/// Returns the arguments of each call.
fn calls(code: &str) -> Vec<String> {
    let starts = ["info!(", "warn!(", "error!(", "debug!("].iter().flat_map(|name| code.match_indices(name));
    starts.map(|(at, name)| inside(&code[at + name.len()..])).collect()
}

fn inside(code: &str) -> String {
    let (mut depth, mut quoted, mut before) = (1, false, ' ');
    let end = code.find(|c| {
        match c {
            '"' if before != '\\' => quoted = !quoted,
            '(' | '{' if !quoted => depth += 1,
            ')' | '}' if !quoted => depth -= 1,
            _ => {}
        }
        before = c;
        depth == 0
    });
    code[..end.expect("a call ends")].to_owned()
}

/// Returns the names of `name = value`, `%name`, `?name` and `name`, without the message and the target.
fn fields_of(call: &str) -> Vec<String> {
    let (mut depth, mut quoted) = (0, false);
    let parts = call.split(move |c| {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0 && !quoted
    });
    let name = |part: &str| {
        let part = part.trim().trim_start_matches(['{', '%', '?', ' ']);
        let name = part.split('=').next().unwrap_or_default().trim().trim_end_matches(['}', ' ']);
        let word = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || "._".contains(c));
        word.then(|| name.to_owned())
    };
    parts.filter_map(name).collect()
}

#[test]
fn the_reference_has_every_field_and_no_other() {
    let sources: BTreeSet<_> = in_sources().into_iter().chain(FRAME.map(str::to_owned)).collect();
    assert!(sources.contains("key.prefix") && sources.contains("age_ms"), "{sources:?}");
    assert_eq!(sources, documented(), "left: the sources, right: the table of docs/reference/log-lines.md");
}

#[test]
fn fields_are_found_however_they_are_written() {
    for (call, expected) in [
        (r#""stopping""#, vec![]),
        (r#"%error, keys = f(a, b), "x, y = z""#, vec!["error", "keys"]),
        (r#"target: "tenantgate::audit", { key.id = %key, n = 1 }, "x""#, vec!["key.id", "n"]),
        ("?applied, a.b = %c.d(|x| x.e), \"m\"", vec!["applied", "a.b"]),
        ("\"{remark}\"", vec![]),
    ] {
        assert_eq!(fields_of(call), expected, "{call}");
    }
}

fn every_line_is_an_object_of_documented_fields(world: &World) {
    let args = ["--log-format", "json", "--log-level", "info,tenantgate=debug"];
    let mut enforcing = Server::on(&world.db).args(&args).start();
    let mut shadow = Server::on(&world.db).args(&args).args(&["--mode", "shadow"]).start();
    let bad = "UPDATE api_keys SET hashed_key = 'damaged' WHERE key_prefix = 'llmk_other'";
    world.db.sql(bad);
    for server in [&enforcing, &shadow] {
        for ask in [
            Ask::get("/docs"),
            Ask::get("/v1"),
            Ask::with_key(&world.live.text),
            Ask::with_key(&world.revoked.text),
            Ask::with_key(&world.of_sleepy.text),
            Ask::with_key(&world.other.text),
        ] {
            server.check(ask);
        }
    }
    for server in [&mut enforcing, &mut shadow] {
        server.signal("TERM");
        assert_eq!(server.exit_code(PATIENCE), Some(0));
    }
    let documented = documented();
    let lines: Vec<_> = [&enforcing, &shadow].iter().flat_map(|server| server.stderr.lines()).collect();
    assert!(lines.len() > 20, "{lines:#?}");
    for line in lines {
        let object: Map<String, Value> =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(FRAME.iter().all(|name| object[*name].is_string()), "{line}");
        let ours = object["target"].as_str().is_some_and(|target| target.starts_with("tenantgate"));
        let unknown: Vec<_> = object.keys().filter(|name| !documented.contains(*name)).collect();
        assert!(ours && unknown.is_empty(), "{unknown:?}: {line}");
    }
    if world.db.backend == Backend::Postgres {
        let text = enforcing.stderr.text();
        assert!(
            text.contains(r#""decision.id":"#) && text.contains(r#""key.prefix":"llmk_revoked""#),
            "{text}"
        );
    }
}
