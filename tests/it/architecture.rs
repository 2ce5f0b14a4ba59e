//! Checks that every module is in its layer and uses only the words of its place.
//!
//! `src/lib.rs` describes which module belongs to which layer, and which vocabulary to which place. This file contains
//! the same table as data and checks the text of the sources against it, without unit tests and comments.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, lowest first. A module may use those of its own layer and of lower ones.
const LAYERS: [&[&str]; 6] = [
    &[
        "clock",
        "diagnostics",
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
        "public",
        "request",
        "stats",
        "audit",
        "trace",
        "random",
        "duration",
        "client_address",
        "rate_limited_log",
    ],
    &["decision", "permission", "policy"],
    &["supervise", "batch_writer", "transport", "store", "verify", "replica", "client_tls"],
    &["admin", "explain", "gate", "last_used", "memo_writer", "refusals", "shadow", "usage"],
    &[
        "envoy",
        "ext_authz",
        "publisher",
        "store/postgres",
        "store/sqlite",
        "store/sql",
        "store/migrations",
        "store/errors",
        "store/schema_spec",
    ],
    &["cli", "config", "health", "server", "telemetry", "main", "lib"],
];

/// Words and the places that may use them, as prefixes of paths below `src/` and `crates/core/src/`.
const PLACES: [(&str, &[&str]); 24] = [
    ("sqlx::", &["store/postgres", "store/sqlite", "store/sql", "store/migrations", "store/errors"]),
    ("api_keys SET", &["store/postgres", "store/sqlite", "store/sql"]),
    ("bcrypt::non_truncating", &["verify/bcrypt"]),
    ("whoami::", &["cli/"]),
    ("csv::", &["cli/"]),
    ("indicatif", &["cli/bulk/progress"]),
    ("std::env", &["main", "store/postgres/address"]),
    ("clock_gettime", &["clock"]),
    ("rand::", &["random", "key/", "verify/", "admin/sessions", "server/assembly"]),
    ("Uuid::new_v4", &["random"]),
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

/// The folders with sources: the program, and the shared parts of layers 0 and 1.
const FOLDERS: [&str; 2] = ["src", "crates/core/src"];

/// The modules of `crates/core`, which needs nothing of the program.
const CORE: &str = "crates/core/";

/// A source file.
pub(crate) struct Source {
    /// Below the top of the repository.
    pub(crate) path: String,
    /// Below its folder, without `.rs` and `/mod`.
    pub(crate) module: String,
    text: String,
    /// Without comments and unit tests.
    pub(crate) code: String,
}

/// All source files without unit tests.
pub(crate) fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in FOLDERS {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let mut files = Vec::new();
        collect(&root, &mut files);
        files.retain(|path| {
            let below = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            !below.ends_with("tests.rs") && !below.contains("/tests/")
        });
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
    let module = shown.strip_suffix("/mod").unwrap_or(&shown).to_owned();
    let before_tests = text.split("#[cfg(test)]").next().unwrap();
    let lines = before_tests.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    Source { path: format!("{folder}/{shown}.rs"), module, text, code }
}

/// The map for readers, in `src/lib.rs`.
#[test]
fn the_map_of_the_code_names_every_module_in_its_layer() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for (number, layer) in LAYERS.iter().enumerate() {
        let row = map.lines().find(|line| line.starts_with(&format!("//! | {number} ")));
        let row = row.unwrap_or_else(|| panic!("src/lib.rs has no row of layer {number}"));
        let named: BTreeSet<_> = row.split('`').skip(1).step_by(2).collect();
        assert_eq!(named, layer.iter().copied().collect(), "left: src/lib.rs, right: LAYERS; layer {number}");
    }
}

fn layer_of(module: &str) -> usize {
    let place = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    // A module that is not listed belongs to the layer of its parent.
    let ends = module.match_indices('/').map(|(at, _)| at).rev();
    [module]
        .into_iter()
        .chain(ends.map(|end| &module[..end]))
        .find_map(place)
        .unwrap_or_else(|| panic!("{module} belongs to no layer: add it to LAYERS and to src/lib.rs"))
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
    for Source { path, module, code, .. } in sources() {
        let own = layer_of(&module);
        for name in names_of_this_crate(&code) {
            let other = layer_of(&name);
            if other > own {
                broken.push(format!("{path} (layer {own}) uses {name} (layer {other})"));
            }
        }
    }
    assert!(broken.is_empty(), "see the layers in src/lib.rs:\n{}", broken.join("\n"));
}

/// Returns the module that a path leads to, as far as it names modules. `own` is the module that contains the path.
fn target(path: &str, own: &str, modules: &BTreeSet<String>) -> Option<String> {
    let mut parts = path.split("::").map(str::trim).peekable();
    let mut place: Vec<&str> = own.split('/').collect();
    match parts.next()? {
        "crate" => place.clear(),
        "self" => {}
        "super" => {
            place.pop();
            while parts.next_if_eq(&"super").is_some() {
                place.pop();
            }
        }
        _ => return None,
    }
    for part in parts {
        let next = [&place[..], &[part]].concat().join("/");
        if !modules.contains(&next) {
            break;
        }
        place.push(part);
    }
    Some(place.join("/"))
}

/// Returns the paths of a `use` declaration, each in full: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths_of_use(tree: &str) -> Vec<String> {
    let Some((head, rest)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap_or_default().trim().to_owned()];
    };
    let (mut paths, mut depth, mut part) = (Vec::new(), 0_usize, String::new());
    for c in rest.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            paths.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    paths.push(part);
    let paths = paths.iter().filter(|path| !path.trim().is_empty());
    paths.flat_map(|path| paths_of_use(&format!("{}{}", head.trim(), path.trim()))).collect()
}

/// Returns every path of this crate in the code, in `use` declarations and elsewhere.
fn paths_of_this_crate(code: &str) -> Vec<String> {
    let uses = code.split("use ").skip(1).filter_map(|rest| rest.split_once(';'));
    let mut paths: Vec<_> = uses.flat_map(|(tree, _)| paths_of_use(tree)).collect();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let is_path = |c: &char| c.is_ascii_alphanumeric() || "_:".contains(*c);
            paths.push(code[at..].chars().take_while(is_path).collect());
        }
    }
    paths
}

/// Returns the modules of each folder that depend on each other in a circle.
fn circles(sources: &[Source]) -> BTreeSet<String> {
    let mut modules: BTreeSet<String> = sources.iter().map(|source| source.module.clone()).collect();
    for module in modules.clone() {
        modules.extend(module.match_indices('/').map(|(at, _)| module[..at].to_owned()));
    }
    // For each folder: which of its modules uses which others.
    let mut uses: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for Source { module, code, .. } in sources.iter().filter(|s| !["lib", "main"].contains(&&*s.module)) {
        for path in paths_of_this_crate(code) {
            let Some(other) = target(&path, module, &modules) else { continue };
            let (own, other): (Vec<_>, Vec<_>) = (module.split('/').collect(), other.split('/').collect());
            let common = own.iter().zip(&other).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) =
                (own.get(common), other.get(common).filter(|name| !name.is_empty()))
            {
                let folder = uses.entry(own[..common].join("/")).or_default();
                folder.entry((*from).to_owned()).or_default().insert((*to).to_owned());
            }
        }
    }
    let mut circles = BTreeSet::new();
    for (folder, uses) in uses {
        let reached = |from: &str| {
            let (mut reached, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
            while let Some(name) = next.pop() {
                let new = uses.get(&name).into_iter().flatten();
                next.extend(new.filter(|name| reached.insert((*name).clone())).cloned());
            }
            reached
        };
        let reach: BTreeMap<_, _> = uses.keys().map(|name| (name, reached(name))).collect();
        for (name, from_here) in &reach {
            let back = |other: &&String| reach.get(other).is_some_and(|reached| reached.contains(*name));
            let circle: Vec<_> = from_here.iter().filter(back).map(String::as_str).collect();
            if !circle.is_empty() {
                circles.insert(format!("{folder}/{{{}}}", circle.join(", ")));
            }
        }
    }
    circles
}

#[test]
fn no_modules_of_a_folder_depend_on_each_other_in_a_circle() {
    for folder in FOLDERS {
        let sources: Vec<_> =
            sources().into_iter().filter(|s| s.path.starts_with(&format!("{folder}/"))).collect();
        assert!(sources.len() > 20, "the sources of {folder} are not found");
        let circles = circles(&sources);
        assert!(circles.is_empty(), "{folder}: break these circles:\n{circles:#?}");
    }
}

#[test]
fn a_circle_is_found_through_nested_imports_and_several_modules() {
    let source = |module: &str, code: &str| Source {
        path: format!("src/{module}.rs"),
        module: module.to_owned(),
        text: String::new(),
        code: code.to_owned(),
    };
    let mut sources = vec![
        source("a", "use crate::{b::{self, x}, c};"),
        source("b", "mod x; use self::x::Y;"),
        source("b/x", "fn f() { crate::c::g() }"),
        source("c", "struct C;"),
        source("c/one", "use super::two::T;"),
        source("c/two", "use super::C;"),
    ];
    assert!(circles(&sources).is_empty());
    sources[3] = source("c", "use crate::a::A;");
    sources[5] = source("c/two", "use super::{one::O, C};");
    let found: Vec<_> = circles(&sources).into_iter().collect();
    assert_eq!(found, ["/{a, b, c}", "c/{one, two}"]);
}

#[test]
fn the_shared_crate_has_only_the_lowest_layers() {
    let core: Vec<_> =
        sources().into_iter().filter(|s| s.path.starts_with(CORE) && s.module != "lib").collect();
    assert!(core.len() > 5, "the sources of crates/core are not found");
    for Source { path, module, .. } in core {
        assert!(layer_of(&module) < SILENT_LAYERS, "{path} is in layer {}", layer_of(&module));
    }
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/core/Cargo.toml")).unwrap();
    for no in ["tokio", "sqlx", "tonic", "rustix", "tracing"] {
        assert!(!manifest.contains(no), "crates/core depends on {no}");
    }
}

#[test]
fn adapters_do_not_know_each_other() {
    for Source { path, code, .. } in sources().iter().filter(|s| s.module.starts_with("ext_authz")) {
        assert!(!code.contains("crate::store"), "{path} knows a database");
    }
    for Source { path, code, .. } in sources().iter().filter(|s| s.module.starts_with("envoy")) {
        for other in ["crate::store", "crate::ext_authz::"] {
            assert!(!code.contains(other), "{path} knows {other}");
        }
    }
    for Source { path, code, .. } in sources().iter().filter(|s| s.module.starts_with("store")) {
        assert!(!code.contains("crate::ext_authz"), "{path} knows Envoy");
    }
}

#[test]
fn every_vocabulary_is_used_only_in_its_modules() {
    let mut broken = Vec::new();
    for Source { path, module, code, .. } in sources() {
        for (word, places) in PLACES {
            let at_home = places
                .iter()
                .any(|place| format!("{module}/").starts_with(place) || module.starts_with(place));
            if code.contains(word) && !at_home {
                broken.push(format!("{path} uses {word:?}, which belongs to {places:?}"));
            }
        }
        if layer_of(&module) < SILENT_LAYERS && code.contains("tracing") {
            broken.push(format!("{path} logs, but vocabulary and judgement do not log"));
        }
    }
    assert!(broken.is_empty(), "see `Where a line belongs` in src/lib.rs:\n{}", broken.join("\n"));
}

#[test]
fn judgement_is_synchronous_and_reads_no_clock() {
    let decision = sources().into_iter().find(|s| s.module == "decision").unwrap();
    for word in ["async", "await", "Instant", "Clock", "std::io", "std::net"] {
        assert!(!decision.code.contains(word), "decision uses {word:?}");
    }
}

#[test]
fn every_file_begins_with_its_documentation() {
    for folder in ["src", "crates/core/src", "tests/it"] {
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
