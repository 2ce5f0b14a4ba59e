//! Checks that the tree of rules finds the rule that the contract describes, and that no path bypasses its rule.
//!
//! The first line is a request (`METHOD host /path`), each other line is a rule in the same form. The first byte
//! selects the options.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenantgate::path::{Path, PathOptions};
use tenantgate::route::host::{request_host, unambiguous_host};
use tenantgate::route::lint::LintOptions;
use tenantgate::route::{HostPattern, RouteId, RouteRow, RouteTable, Rule};
use tenantgate_fuzz::{routes, seeds};
use uuid::Uuid;

fuzz_target!(init: seeds::plant("route"), |bytes: &[u8]| {
    let Some((flags, text)) = bytes.split_first() else { return };
    let options = PathOptions { keep_encoded_slash: flags & 1 == 1, keep_parameters: flags & 2 == 2 };
    let mut lines = text.split(|byte| *byte == b'\n');
    let request = lines.next().unwrap_or_default();
    let mut words = request.splitn(3, |byte| *byte == b' ');
    let mut next = || words.next().unwrap_or_default();
    let (method, host, raw) = (next(), next(), next());
    let read = Path::read(raw, options);
    let segments = routes::segments(raw, options);
    let ours = read.as_ref().ok().map(|path| path.segments().map(<[u8]>::to_vec).collect::<Vec<_>>());
    assert_eq!(ours, segments, "{}", raw.escape_ascii());
    let rows: Vec<_> = (1..).zip(lines.take(64)).filter_map(|(number, line)| row(number, line)).collect();
    let rules: Vec<Rule> = rows.iter().filter_map(|row| row.compile().ok()).collect();
    let twins = |rule: &Rule| rules.iter().any(|other| other.id != rule.id && other.shape.is_same(&rule.shape));
    let kept: Vec<Rule> = rules.iter().filter(|rule| !twins(rule)).cloned().collect();
    let (Ok(path), Some(segments)) = (read, segments) else { return };
    let judged = unambiguous_host(host);
    let host = request_host(host);
    // A host is accepted exactly if a rule can name it.
    let named = std::str::from_utf8(&host).is_ok_and(|name| name != "*" && !name.starts_with("*.") && HostPattern::parse(name).is_ok());
    assert_eq!(judged.is_ok(), named || matches!(judged.as_deref(), Ok([])), "{}", host.escape_ascii());
    // Valid rules without duplicates: the result equals the slow implementation.
    let sound: Vec<_> = kept.iter().map(RouteRow::from).collect();
    let found: Vec<_> = RouteTable::of(&sound).candidates(&host, method, &path).iter().map(|e| e.id).collect();
    let wanted: Vec<_> = routes::ranked(&kept, &host, method, &segments).iter().map(|rule| rule.id).collect();
    assert_eq!(found, wanted, "{}", text.escape_ascii());
    // All rows, including damaged ones: the best rule wins, or none; never a weaker one.
    let table = RouteTable::of(&rows);
    let best = routes::ranked(&rules, &host, method, &segments).first().map(|rule| rule.id);
    match table.find(&host, method, &path) {
        Some(entry) if entry.rule.is_err() => {}
        found => assert_eq!(found.map(|entry| entry.id), best, "{}", text.escape_ascii()),
    }
    for rule in &rules {
        let again = RouteRow::from(rule).compile().expect("a rule is read back");
        assert_eq!(again, *rule);
    }
    let _ = table.lint(&[None], &LintOptions::default());
});

fn row(number: u128, line: &[u8]) -> Option<RouteRow> {
    let mut words = std::str::from_utf8(line).ok()?.splitn(3, ' ').map(str::to_owned);
    let (method, host, path) = (words.next()?, words.next()?, words.next()?);
    let (mode, shadow) = ("required".into(), false);
    Some(RouteRow {
        id: RouteId(Uuid::from_u128(number)),
        name: None,
        host,
        method,
        path,
        mode,
        scopes: None,
        shadow,
    })
}
