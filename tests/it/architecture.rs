//! Does every line stand in its room?
//!
//! `src/lib.rs` says which module stands on which floor and which vocabulary is
//! spoken in which room. This is that table as data, held against the sources as
//! text: unit tests and comments do not count.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors, lowest first. A module may name those of its own floor and of lower ones.
const FLOORS: [&[&str]; 6] = [
    &[
        "clock",
        "finding",
        "invalid",
        "labels",
        "network",
        "path",
        "plan",
        "profile",
        "route",
        "scope",
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
    &["decision", "policy"],
    &["supervise", "writing", "transport", "store", "verify", "replica", "trust"],
    &["admin", "explain", "gate", "memos", "shadow", "usage"],
    &[
        "envoy",
        "ext_authz",
        "store/postgres",
        "store/sqlite",
        "store/sql",
        "store/migrations",
        "store/errors",
        "store/expected",
    ],
    &["cli", "config", "health", "server", "telemetry", "main", "lib"],
];

/// A vocabulary and the rooms it is spoken in, as beginnings of paths below `src/` and `crates/core/src/`.
const ROOMS: [(&str, &[&str]); 22] = [
    ("sqlx::", &["store/postgres", "store/sqlite", "store/sql", "store/migrations", "store/errors"]),
    ("api_keys SET", &["store/postgres", "store/sqlite", "store/sql"]),
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
    ("rustls_native_certs", &["trust"]),
    ("tokio::spawn", &["transport/", "server"]),
    ("std::thread::Builder", &["verify/", "server"]),
];

/// Words and judgement are silent.
const SILENT_FLOORS: usize = 2;

/// Where sources are: the program, and the floors 0 and 1 that it shares.
const FOLDERS: [&str; 2] = ["src", "crates/core/src"];

/// The modules of `crates/core`, which needs nothing of the program.
const CORE: &str = "crates/core/";

/// A source file.
pub(crate) struct Source {
    /// Below the top of the repository.
    pub(crate) path: String,
    /// Below its folder, without `.rs` and `/mod`.
    pub(crate) room: String,
    text: String,
    /// Without comments and unit tests.
    pub(crate) code: String,
}

/// All of them.
pub(crate) fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in FOLDERS {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let mut files = Vec::new();
        collect(&root, &mut files);
        files.retain(|path| !path.to_string_lossy().ends_with("tests.rs"));
        sources.extend(files.iter().map(|path| source(folder, &root, path)));
    }
    sources
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

fn source(folder: &str, base: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let shown = path.strip_prefix(base).unwrap().with_extension("").display().to_string();
    let room = shown.strip_suffix("/mod").unwrap_or(&shown).to_owned();
    let before_tests = text.split("#[cfg(test)]").next().unwrap();
    let lines = before_tests.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    Source { path: format!("{folder}/{shown}.rs"), room, text, code }
}

fn floor_of(room: &str) -> usize {
    let place = |name: &str| FLOORS.iter().position(|floor| floor.contains(&name));
    // What is not named itself stands where the room does that it is in.
    let ends = room.match_indices('/').map(|(at, _)| at).rev();
    [room]
        .into_iter()
        .chain(ends.map(|end| &room[..end]))
        .find_map(place)
        .unwrap_or_else(|| panic!("{room} stands on no floor: put it into FLOORS and into src/lib.rs"))
}

/// Every `crate::name` in the code, and every `crate::{a, b::c}`.
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
            names.push(if FLOORS.iter().any(|f| f.contains(&full.as_str())) {
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
fn no_module_names_one_of_a_floor_above() {
    let mut broken = Vec::new();
    for Source { path, room, code, .. } in sources() {
        let own = floor_of(&room);
        for name in names_of_this_crate(&code) {
            let other = floor_of(&name);
            if other > own {
                broken.push(format!("{path} (floor {own}) names {name} (floor {other})"));
            }
        }
    }
    assert!(broken.is_empty(), "see the floors in src/lib.rs:\n{}", broken.join("\n"));
}

#[test]
fn what_is_shared_stands_on_the_lowest_floors() {
    let core: Vec<_> =
        sources().into_iter().filter(|s| s.path.starts_with(CORE) && s.room != "lib").collect();
    assert!(core.len() > 5, "the sources of crates/core are not found");
    for Source { path, room, .. } in core {
        assert!(floor_of(&room) < SILENT_FLOORS, "{path} stands on floor {}", floor_of(&room));
    }
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/core/Cargo.toml")).unwrap();
    for no in ["tokio", "sqlx", "tonic", "rustix", "tracing"] {
        assert!(!manifest.contains(no), "crates/core depends on {no}");
    }
}

#[test]
fn doors_do_not_know_other_doors() {
    for Source { path, code, .. } in sources().iter().filter(|s| s.room.starts_with("ext_authz")) {
        assert!(!code.contains("crate::store"), "{path} knows a database");
    }
    for Source { path, code, .. } in sources().iter().filter(|s| s.room.starts_with("envoy")) {
        for other in ["crate::store", "crate::ext_authz::"] {
            assert!(!code.contains(other), "{path} knows {other}");
        }
    }
    for Source { path, code, .. } in sources().iter().filter(|s| s.room.starts_with("store")) {
        assert!(!code.contains("crate::ext_authz"), "{path} knows Envoy");
    }
}

#[test]
fn every_vocabulary_is_spoken_in_its_rooms_alone() {
    let mut broken = Vec::new();
    for Source { path, room, code, .. } in sources() {
        for (word, rooms) in ROOMS {
            let at_home =
                rooms.iter().any(|home| format!("{room}/").starts_with(home) || room.starts_with(home));
            if code.contains(word) && !at_home {
                broken.push(format!("{path} says {word:?}, which belongs to {rooms:?}"));
            }
        }
        if floor_of(&room) < SILENT_FLOORS && code.contains("tracing") {
            broken.push(format!("{path} logs, but words and judgement are silent"));
        }
    }
    assert!(broken.is_empty(), "see `Where a line belongs` in src/lib.rs:\n{}", broken.join("\n"));
}

#[test]
fn judgement_waits_for_nobody_and_reads_no_clock() {
    let decision = sources().into_iter().find(|s| s.room == "decision").unwrap();
    for word in ["async", "await", "Instant", "Clock", "std::io", "std::net"] {
        assert!(!decision.code.contains(word), "decision says {word:?}");
    }
}

#[test]
fn every_file_opens_with_the_question_it_answers() {
    for folder in ["src", "crates/core/src", "tests/it"] {
        let mut files = Vec::new();
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//! "), "{} does not open with //!", path.display());
        }
    }
}

#[test]
fn no_secret_can_be_printed_by_accident() {
    let all: BTreeMap<_, _> = sources().into_iter().map(|s| (s.path, s.text)).collect();
    for name in ["PresentedKey", "PlainKey", "Pepper"] {
        for (path, text) in &all {
            for what in ["Display", "Serialize"] {
                let ends = |text: &str| !text.starts_with(|c: char| c.is_alphanumeric());
                let found = text.split(&format!("{what} for {name}")).skip(1).any(ends);
                assert!(!found, "{path}: {what} for {name}");
            }
        }
        let key = &all[if name == "Pepper" { "src/verify/pepper.rs" } else { "crates/core/src/key/mod.rs" }];
        let before = key.split(&format!("pub struct {name}")).next().unwrap();
        let attributes = before.rsplit("\n\n").next().unwrap();
        assert!(!attributes.contains("Debug"), "{name} derives Debug");
    }
}
