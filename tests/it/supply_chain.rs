//! Checks the dependencies, and that the tests named in SECURITY.md exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect(name)
}

type Version = [u64; 3];

fn version(text: &str) -> Version {
    let plain = text.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<u64> = plain.split('.').map(|number| number.parse().expect(text)).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{text} is no version"))
}

/// Returns the value of `key = "value"`.
fn value<'a>(package: &'a str, key: &str) -> Option<&'a str> {
    let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
    line.map(|value| value.trim_matches('"'))
}

/// Crates with known vulnerabilities: the first corrected version, and the advisory.
const LEAST: [(&str, &str, &str); 7] = [
    ("bcrypt", "0.19.2", "RUSTSEC-2026-0199: a panic over a hash that is not ASCII"),
    ("bytes", "1.11.1", "an overflow in reserve"),
    ("h2", "0.4.20", "RUSTSEC-2026-0258 and the floods before it"),
    ("postgres-protocol", "0.6.12", "RUSTSEC-2026-0179: a hostile server stalls the client"),
    ("rustls-webpki", "0.103.13", "four advisories of 2026"),
    ("tokio-postgres", "0.7.18", "RUSTSEC-2026-0178: a hostile server panics the client"),
    ("tonic", "0.14.9", "RUSTSEC-2024-0376 and the limits that can be set since"),
];

/// Those in the dependency tree; the others would need a corrected version.
const OURS: [&str; 5] = ["bcrypt", "bytes", "h2", "rustls-webpki", "tonic"];

#[test]
fn versions_are_at_least_those_without_known_vulnerabilities() {
    let lock = file("Cargo.lock");
    let mut seen = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let (name, its) =
            (value(package, "name").expect("a name"), value(package, "version").expect("a version"));
        if let Some((name, least, why)) = LEAST.iter().find(|(known, ..)| *known == name) {
            assert!(version(its) >= version(least), "{name} {its} is older than {least}: {why}");
            seen.insert(*name, its);
        }
    }
    assert_eq!(seen.keys().copied().filter(|name| OURS.contains(name)).collect::<Vec<_>>(), OURS);
    assert!(version("0.4.9") < version("0.4.20") && version("1.0.0-rc.1") >= version("0.9.9"));
}

#[test]
fn every_crate_is_from_crates_io_and_has_its_checksum() {
    for package in file("Cargo.lock").split("[[package]]").skip(1) {
        let name = value(package, "name").expect("a name");
        if ["tenantgate", "tenantgate-core", "tenantgate-envoy", "tenantgate-snapshot"].contains(&name) {
            continue;
        }
        let from = value(package, "source");
        assert_eq!(from, Some("registry+https://github.com/rust-lang/crates.io-index"), "{name}");
        assert!(value(package, "checksum").is_some_and(|sum| sum.len() == 64), "{name}");
    }
}

/// A section of Cargo.toml.
fn section<'a>(manifest: &'a str, head: &str) -> &'a str {
    let after = manifest.split_once(&format!("\n{head}\n")).unwrap_or_else(|| panic!("no {head}")).1;
    after.split("\n[").next().unwrap_or_default()
}

#[test]
fn unsafe_code_is_forbidden() {
    let manifest = file("Cargo.toml");
    assert_eq!(value(section(&manifest, "[workspace.lints.rust]"), "unsafe_code"), Some("forbid"));
    for source in crate::architecture::sources() {
        assert!(!source.code.contains("unsafe "), "{}", source.path);
    }
    // The two crates that need it have it in one file each.
    for (folder, allowed) in [("crates/snapshot/", "mapping.rs"), ("envoy/module/", "abi.rs")] {
        assert!(file(&format!("{folder}Cargo.toml")).contains("\nunsafe_code = \"deny\"\n"), "{folder}");
        let sources =
            fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("src")).expect(folder);
        let mut with = Vec::new();
        for source in sources {
            let path = source.expect("an entry").path();
            if fs::read_to_string(&path).expect("a file").contains("unsafe {") {
                with.push(path.file_name().expect("a name").to_string_lossy().into_owned());
            }
        }
        assert_eq!(with, [allowed], "{folder}");
    }
}

/// Panics must unwind, because an abort would end all requests.
#[test]
fn a_panic_unwinds_in_every_profile() {
    let manifest = file("Cargo.toml");
    assert!(!manifest.contains("panic ="), "a profile configures panics");
}

#[test]
fn the_supply_chain_is_part_of_what_ci_runs() {
    let (run, deny) = (file("tests/run"), file("deny.toml"));
    for what in ["check bans licenses sources", "check advisories"] {
        assert!(run.contains(what), "tests/run does not {what}");
    }
    for rule in [
        "unmaintained = \"all\"",
        "yanked = \"deny\"",
        "ignore = []",
        "multiple-versions = \"deny\"",
        "wildcards = \"deny\"",
        "unknown-git = \"deny\"",
        "unknown-registry = \"deny\"",
    ] {
        assert!(deny.lines().any(|line| line == rule), "deny.toml without `{rule}`");
    }
}

/// Every test that SECURITY.md names must exist.
#[test]
fn the_tests_that_the_security_policy_names_exist() {
    let policy = file("SECURITY.md");
    let named: Vec<(&str, &str)> =
        policy.split('`').skip(1).step_by(2).filter_map(|code| code.rsplit_once("::")).collect();
    let named: Vec<_> = named.into_iter().filter(|(module, _)| *module != "file").collect();
    assert!(named.len() > 30, "{named:?}");
    for (module, name) in named {
        let tests = file(&format!("tests/it/{}.rs", module.replace("::", "/")));
        assert!(tests.contains(&format!("fn {name}(")), "SECURITY.md names {module}::{name}");
    }
}
