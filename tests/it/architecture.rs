//! Checks that every module is in its layer and uses only the words of its place.
//!
//! `src/lib.rs` describes which module belongs to which layer, and which vocabulary to which place. This file contains the same
//! table as data and checks the text of the sources against it, without unit tests and comments.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, lowest first. A module of `src/` may use those of its own layer and of lower ones.
const LAYERS: [&[&str]; 6] = [
    &[
        "clock",
        "diagnostics",
        "key",
        "tenant",
        "record",
        "request",
        "stats",
        "audit",
        "trace",
        "client_address",
        "rate_limited_log",
    ],
    &["decision"],
    &["supervise", "batch_writer", "transport", "store", "verify", "replica", "client_tls"],
    &["admin", "explain", "gate", "last_used", "memo_writer", "shadow"],
    &[
        "envoy",
        "ext_authz",
        "store/postgres",
        "store/sqlite",
        "store/migrations",
        "store/errors",
        "store/expected",
    ],
    &["cli", "config", "health", "server", "telemetry", "main", "lib"],
];

/// Words and the places that may use them, as prefixes of paths below `src/`.
const PLACES: [(&str, &[&str]); 22] = [
    ("sqlx::", &["store/postgres", "store/sqlite", "store/migrations", "store/errors"]),
    ("api_keys SET", &["store/postgres", "store/sqlite"]),
    ("bcrypt::non_truncating", &["verify/bcrypt"]),
    ("whoami", &["cli/"]),
    ("csv::", &["cli/"]),
    ("indicatif", &["cli/bulk/progress"]),
    ("std::env", &["main"]),
    ("clock_gettime", &["clock"]),
    ("SystemTime", &[]),
    ("println!", &[]),
    ("io::stdout", &["cli/"]),
    ("ExitCode", &["cli/", "main"]),
    ("clap", &["cli/", "config"]),
    ("prometheus_client", &["telemetry/"]),
    ("opentelemetry", &["telemetry/"]),
    ("StatusCode::", &["ext_authz/", "transport/", "server"]),
    ("\"x-llmcore-tenant", &["ext_authz/"]),
    ("proto::envoy", &["ext_authz/", "cli/check"]),
    ("ExtAuthz", &["envoy/"]),
    ("rustls_native_certs", &["client_tls"]),
    ("tokio::spawn", &["transport/", "server"]),
    ("std::thread::Builder", &["verify/", "server"]),
];

/// Vocabulary and judgement do not log.
const SILENT_LAYERS: usize = 2;

/// A file below `src/`.
pub(crate) struct Source {
    /// Below `src/`, without `.rs` and `/mod`.
    pub(crate) room: String,
    text: String,
    /// Without comments and unit tests.
    pub(crate) code: String,
}

/// All source files without unit tests.
pub(crate) fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.retain(|path| !path.ends_with("tests.rs"));
    files.into_iter().map(|path| source(&root, &path)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

fn source(base: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let shown = path.strip_prefix(base).unwrap().with_extension("").display().to_string();
    let room = shown.strip_suffix("/mod").unwrap_or(&shown).to_owned();
    let before_tests = text.split("#[cfg(test)]").next().unwrap();
    let lines = before_tests.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    Source { room, text, code }
}

fn layer_of(room: &str) -> usize {
    let place = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    // A module that is not listed belongs to the layer of its parent.
    let ends = room.match_indices('/').map(|(at, _)| at).rev();
    [room]
        .into_iter()
        .chain(ends.map(|end| &room[..end]))
        .find_map(place)
        .unwrap_or_else(|| panic!("src/{room}.rs belongs to no layer: add it to LAYERS and to src/lib.rs"))
}

/// Returns every `crate::name` in the code, also in `crate::{a, b::c}`.
fn names_of_this_crate(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let list = rest.strip_prefix('{').and_then(|list| list.split('}').next()).unwrap_or_default();
        let one = (!rest.starts_with('{')).then_some(rest);
        for path in list.split(',').chain(one) {
            let path: String =
                path.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || "_:".contains(*c)).collect();
            let mut parts = path.split("::");
            let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let full = format!("{first}/{second}");
            names.push(if LAYERS.iter().any(|f| f.contains(&full.as_str())) {
                full
            } else {
                first.to_owned()
            });
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn no_module_uses_one_of_a_layer_above() {
    let mut broken = Vec::new();
    for Source { room, code, .. } in sources() {
        let own = layer_of(&room);
        for name in names_of_this_crate(&code) {
            let other = layer_of(&name);
            if other > own {
                broken.push(format!("src/{room}.rs (layer {own}) uses {name} (layer {other})"));
            }
        }
    }
    assert!(broken.is_empty(), "see the layers in src/lib.rs:\n{}", broken.join("\n"));
}

#[test]
fn adapters_do_not_know_each_other() {
    for Source { room, code, .. } in sources().iter().filter(|s| s.room.starts_with("ext_authz")) {
        assert!(!code.contains("crate::store"), "src/{room}.rs knows a database");
    }
    for Source { room, code, .. } in sources().iter().filter(|s| s.room.starts_with("envoy")) {
        for other in ["crate::store", "crate::ext_authz::"] {
            assert!(!code.contains(other), "src/{room}.rs knows {other}");
        }
    }
    for Source { room, code, .. } in sources().iter().filter(|s| s.room.starts_with("store")) {
        assert!(!code.contains("crate::ext_authz"), "src/{room}.rs knows Envoy");
    }
}

#[test]
fn every_vocabulary_is_used_only_in_its_places() {
    let mut broken = Vec::new();
    for Source { room, code, .. } in sources() {
        for (word, rooms) in PLACES {
            let at_home =
                rooms.iter().any(|home| format!("{room}/").starts_with(home) || room.starts_with(home));
            if code.contains(word) && !at_home {
                broken.push(format!("src/{room}.rs uses {word:?}, which belongs to {rooms:?}"));
            }
        }
        if layer_of(&room) < SILENT_LAYERS && code.contains("tracing") {
            broken.push(format!("src/{room}.rs logs, but vocabulary and judgement do not log"));
        }
    }
    assert!(broken.is_empty(), "see `Where a line belongs` in src/lib.rs:\n{}", broken.join("\n"));
}

#[test]
fn judgement_is_synchronous_and_reads_no_clock() {
    let decision = sources().into_iter().find(|s| s.room == "decision").unwrap();
    for word in ["async", "await", "Instant", "Clock", "std::io", "std::net"] {
        assert!(!decision.code.contains(word), "decision uses {word:?}");
    }
}

#[test]
fn every_file_begins_with_its_documentation() {
    for folder in ["src", "tests/it"] {
        let mut files = Vec::new();
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//! "), "{} does not begin with //!", path.display());
        }
    }
}

#[test]
fn no_secret_implements_display_or_serialize_or_derives_debug() {
    let all: BTreeMap<_, _> = sources().into_iter().map(|s| (s.room, s.text)).collect();
    for name in ["PresentedKey", "PlainKey", "Pepper"] {
        for (room, text) in &all {
            for what in ["Display", "Serialize"] {
                let ends = |text: &str| !text.starts_with(|c: char| c.is_alphanumeric());
                let found = text.split(&format!("{what} for {name}")).skip(1).any(ends);
                assert!(!found, "src/{room}.rs: {what} for {name}");
            }
        }
        let key = &all[if name == "Pepper" { "verify/pepper" } else { "key" }];
        let before = key.split(&format!("pub struct {name}")).next().unwrap();
        let attributes = before.rsplit("\n\n").next().unwrap();
        assert!(!attributes.contains("Debug"), "{name} derives Debug");
    }
}
