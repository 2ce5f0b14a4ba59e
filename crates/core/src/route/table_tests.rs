//! Tests of the route table, also against a slow model.

use std::cmp::Reverse;

use proptest::prelude::*;
use uuid::Uuid;

use super::super::host::request_host;
use super::super::lint::{LintFinding, LintOptions};
use super::super::tests::row;
use super::*;
use crate::path::PathOptions;

/// The names of all rules that match, the most specific first.
fn all(table: &RouteTable, host: &str, method: &str, path: &str) -> Vec<String> {
    let path = Path::read(path.as_bytes(), PathOptions::default()).unwrap();
    let host = request_host(host.as_bytes());
    let found = table.candidates(&host, method.as_bytes(), &path);
    let first = table.find(&host, method.as_bytes(), &path);
    assert_eq!(first.map(|e| e.id), found.first().map(|e| e.id));
    found.iter().map(|entry| entry.name.as_deref().unwrap_or_default().to_owned()).collect()
}

fn table(rules: &[(&str, &str, &str)]) -> RouteTable {
    let rows: Vec<_> = (1..).zip(rules).map(|(n, (host, method, path))| row(n, host, method, path)).collect();
    RouteTable::of(&rows)
}

#[test]
fn rules_of_the_most_specific_host_come_first() {
    let table = table(&[
        ("*", "*", "/a"),
        ("*.example.com", "*", "/a"),
        ("*.b.example.com", "*", "/a"),
        ("a.b.example.com", "*", "/a"),
        ("a.b.example.com", "*", "/x"),
        ("[::1]", "*", "/a"),
    ]);
    for (host, expected) in [
        ("a.b.example.com", "r4 r3 r2 r1"),
        ("A.b.Example.com.:443", "r4 r3 r2 r1"),
        ("x.y.b.example.com", "r3 r2 r1"),
        ("b.example.com", "r2 r1"),
        ("example.com", "r1"),
        ("notexample.com", "r1"),
        (".example.com", "r1"),
        ("", "r1"),
        ("[0::1]:80", "r6 r1"),
    ] {
        assert_eq!(all(&table, host, "GET", "/a").join(" "), expected, "{host}");
    }
}

#[test]
fn paths_are_matched_segment_by_segment_with_backtracking() {
    let table = table(&[
        ("*", "*", "/a/b"),
        ("*", "*", "/a/{x}/c"),
        ("*", "*", "/a/{x}"),
        ("*", "*", "/a/**"),
        ("*", "*", "/**"),
        ("*", "*", "/a"),
        ("*", "*", "/"),
        ("*", "*", "/{x}/b"),
    ]);
    for (path, expected) in [
        ("/a/b", "r1 r3 r4 r8 r5"),
        ("/a/b/c", "r2 r4 r5"),
        ("/a/b/d", "r4 r5"),
        ("/a/z", "r3 r4 r5"),
        ("/a", "r6 r4 r5"),
        ("/a/", "r6 r4 r5"),
        ("/", "r7 r5"),
        ("/z/b", "r8 r5"),
        ("/z", "r5"),
        ("/A/b", "r8 r5"),
    ] {
        assert_eq!(all(&table, "h", "GET", path).join(" "), expected, "{path}");
    }
}

#[test]
fn a_named_method_comes_before_any_method_and_head_before_get() {
    let table = table(&[
        ("*", "*", "/a"),
        ("*", "GET", "/a"),
        ("*", "HEAD", "/a"),
        ("*", "GET", "/b"),
        ("*", "*", "/**"),
    ]);
    for (method, path, expected) in [
        ("GET", "/a", "r2 r1 r5"),
        ("HEAD", "/a", "r3 r2 r1 r5"),
        ("POST", "/a", "r1 r5"),
        ("HEAD", "/b", "r4 r5"),
        ("POST", "/b", "r5"),
        ("get", "/b", "r5"),
    ] {
        assert_eq!(all(&table, "h", method, path).join(" "), expected, "{method} {path}");
    }
}

#[test]
fn a_damaged_row_wins_for_every_request_that_it_could_have_matched() {
    let base = [row(1, "*", "*", "/**"), row(2, "a.com", "*", "/x"), row(3, "*.b.com", "GET", "/y")];
    for (bad, host, path, damaged) in [
        (RouteRow { host: "a b".into(), ..row(9, "", "*", "/z") }, "a.com", "/x", true),
        (RouteRow { host: "a b".into(), ..row(9, "", "*", "/z") }, "q", "/", true),
        (row(9, "a.com", "get", "/z"), "a.com", "/x", true),
        (row(9, "a.com", "get", "/z"), "b.com", "/x", false),
        (row(9, "*.b.com", "*", "z"), "c.b.com", "/q", true),
        (row(9, "*.b.com", "*", "z"), "b.com", "/q", false),
        (row(9, "*", "*", "z"), "a.com", "/x", false),
        (row(9, "*", "*", "z"), "a.com", "/q", true),
        (RouteRow { mode: "x".into(), ..row(9, "a.com", "*", "/z") }, "a.com", "/z", true),
        (RouteRow { mode: "x".into(), ..row(9, "a.com", "*", "/z") }, "a.com", "/x", false),
        (RouteRow { scopes: Some("*".into()), ..row(9, "a.com", "*", "/z") }, "a.com", "/z", true),
        (RouteRow { name: Some("\n".into()), ..row(9, "a.com", "*", "/z") }, "a.com", "/z", true),
        (row(9, "A.com", "*", "/x"), "a.com", "/x", true),
        (row(9, "A.com", "*", "/x"), "a.com", "/y", false),
    ] {
        let table = RouteTable::of(base.iter().chain([&bad]));
        let path = Path::read(path.as_bytes(), PathOptions::default()).unwrap();
        let found = table.find(host.as_bytes(), b"GET", &path).unwrap();
        assert_eq!(found.rule.is_err(), damaged, "{bad:?} {host}");
        assert!(table.damaged().next().is_some());
    }
}

#[test]
fn twin_finds_a_rule_with_the_same_shape() {
    let table = table(&[("a.com", "GET", "/a/{x}"), ("a.com", "*", "/a/{x}")]);
    for (new, twin) in [
        (row(9, "A.com", "GET", "/a/{y}"), Some("r1")),
        (row(9, "a.com", "*", "/a/{y}/"), Some("r2")),
        (row(9, "a.com", "HEAD", "/a/{y}"), None),
        (row(9, "*", "GET", "/a/{y}"), None),
        (row(9, "a.com", "GET", "/a/y"), None),
        (row(1, "a.com", "GET", "/a/{x}"), None),
    ] {
        let found = table.twin(&new.compile().unwrap()).and_then(|rule| rule.name.as_deref());
        assert_eq!(found, twin, "{new:?}");
    }
}

#[test]
fn compiled_needs_are_met_by_compiled_scopes() {
    let mut rows = [row(1, "*", "*", "/a"), row(2, "*", "*", "/b")];
    rows[0].scopes = Some("models.read models.write | admin".into());
    let table = RouteTable::of(&rows);
    for (granted, expected) in
        [("models.*", true), ("models.read", false), ("admin", true), ("*", true), ("", false), ("x", false)]
    {
        let granted = table.granted(&Scopes::parse(granted).unwrap());
        assert_eq!(table.entries()[0].is_met_by(&granted), expected);
        assert!(table.entries()[1].is_met_by(&granted));
    }
    assert!(table.entries()[0].needs().is_some() && !table.is_empty() && RouteTable::default().is_empty());
    assert_eq!(table.scopes().iter().collect::<Vec<_>>(), ["admin", "models.read", "models.write"]);
}

/// A model of how specific a rule is for a request: numbers for host, path and method, of which the greater wins.
/// `None` if the rule does not match.
fn rank(rule: &Rule, host: &str, method: &str, path: &[String]) -> Option<(usize, Vec<u8>, u8)> {
    let host = match &rule.shape.host {
        HostPattern::Any => 0,
        HostPattern::Below(below) => {
            let inside = host.strip_suffix(&**below).and_then(|front| front.strip_suffix('.'));
            inside.filter(|front| !front.is_empty()).map(|_| 1 + below.len())?
        }
        HostPattern::Exact(name) => (**name == *host).then_some(usize::MAX)?,
    };
    let mut shape = Vec::new();
    let mut rest = path;
    let template = rule.shape.path.to_string();
    for segment in template.split('/').skip(1).filter(|_| template != "/") {
        if segment == "**" {
            // Ranks below the end of a template, which is 1.
            shape.push(0);
            rest = &[];
            break;
        }
        let (first, after) = rest.split_first()?;
        rest = after;
        shape.push(if segment.starts_with('{') { 2 } else { (segment == first).then_some(3)? });
    }
    if !rest.is_empty() {
        return None;
    }
    if shape.last() != Some(&0) {
        shape.push(1);
    }
    let method = match &rule.shape.method {
        Method::Any => 0,
        Method::Named(name) if **name == *method => 2,
        Method::Named(name) if **name == *"GET" && method == "HEAD" => 1,
        Method::Named(_) => return None,
    };
    Some((host, shape, method))
}

fn a_row() -> impl Strategy<Value = (String, String, String)> {
    let host = proptest::sample::select(vec!["*", "*.c", "*.b.c", "a.b.c", "b.c", "c"]);
    let method = proptest::sample::select(vec!["*", "GET", "HEAD", "PUT"]);
    let segment = proptest::sample::select(vec!["a", "b", "{}"]);
    let path = (proptest::collection::vec(segment, 0..4), any::<bool>()).prop_map(|(segments, rest)| {
        let names = segments.iter().enumerate().map(|(at, s)| s.replace("{}", &format!("{{n{at}}}")));
        let names: Vec<_> = names.chain(rest.then(|| "**".to_owned())).collect();
        format!("/{}", names.join("/"))
    });
    (host, method, path).prop_map(|(h, m, p)| (h.to_owned(), m.to_owned(), p))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn the_table_agrees_with_the_model(
        rules in proptest::collection::vec(a_row(), 0..14),
        host in proptest::sample::select(vec!["a.b.c", "x.b.c", "b.c", "c", "q"]),
        method in proptest::sample::select(vec!["GET", "HEAD", "PUT", "POST"]),
        path in proptest::collection::vec(proptest::sample::select(vec!["a", "b", "c"]), 0..5),
    ) {
        let rows: Vec<_> = (1..).zip(&rules).map(|(n, (h, m, p))| row(n, h, m, p)).collect();
        // Keeps only the first rule of each shape, because two with the same shape are rejected.
        let mut kept: Vec<RouteRow> = Vec::new();
        for row in rows {
            let rule = row.compile().unwrap();
            if !kept.iter().any(|other| other.compile().unwrap().shape.is_same(&rule.shape)) {
                kept.push(row);
            }
        }
        let table = RouteTable::of(kept.iter().rev());
        let path: Vec<String> = path.into_iter().map(str::to_owned).collect();
        let mut expected: Vec<_> = kept
            .iter()
            .filter_map(|row| Some((rank(&row.compile().unwrap(), host, method, &path)?, row.name.clone().unwrap())))
            .collect();
        expected.sort_by_key(|(rank, _)| Reverse(rank.clone()));
        let expected: Vec<_> = expected.into_iter().map(|(_, name)| name).collect();
        let raw = format!("/{}", path.join("/"));
        prop_assert_eq!(all(&table, host, method, &raw), expected, "{:?} {} {}", rules, host, raw);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every request of a small world is asked for, so that a rule that never wins for one of them never wins.
    #[test]
    fn exactly_the_rules_that_win_for_no_request_are_reported(
        rules in proptest::collection::vec((any::<u128>(), a_row()), 1..10),
    ) {
        let mut kept: Vec<RouteRow> = Vec::new();
        for (id, (host, method, path)) in &rules {
            let row = row(*id, host, method, path);
            let shape = row.compile().unwrap().shape;
            if !kept.iter().any(|other| other.id == row.id || other.compile().unwrap().shape.is_same(&shape)) {
                kept.push(row);
            }
        }
        let table = RouteTable::of(&kept);
        let mut paths = vec![String::new()];
        for at in 0..4 {
            let longer = paths.iter().filter(|path| path.matches('/').count() == at);
            let longer: Vec<_> = longer.flat_map(|path| ["a", "b", "c"].map(|next| format!("{path}/{next}"))).collect();
            paths.extend(longer);
        }
        paths[0] = "/".into();
        let mut winners = Vec::new();
        for path in &paths {
            let path = Path::read(path.as_bytes(), PathOptions::default()).unwrap();
            for host in ["a.b.c", "x.b.c", "b.c", "x.c", "c", "q"] {
                for method in ["GET", "HEAD", "PUT", "POST"] {
                    winners.extend(table.find(host.as_bytes(), method.as_bytes(), &path).map(|entry| entry.id));
                }
            }
        }
        let mut losers: Vec<_> = kept.iter().map(|row| row.id).filter(|id| !winners.contains(id)).collect();
        losers.sort_unstable();
        let findings = table.lint(&[None], &LintOptions::default());
        let found = findings.iter().filter_map(|finding| match finding {
            LintFinding::NeverWins(rule) => Some(rule.id),
            _ => None,
        });
        let found: Vec<_> = found.collect();
        prop_assert_eq!(found, losers, "{:?}", rules);
    }
}

/// Variants of `/admin/keys` that an upstream may treat as this path. Each must be rejected as ambiguous or match
/// the rule of the path itself, never a weaker one.
const LOOK_ALIKES: [&str; 72] = [
    "//admin/keys",
    "/admin//keys",
    "///admin/keys",
    "/admin/keys//",
    "/./admin/keys",
    "/admin/./keys",
    "/admin/keys/.",
    "/x/../admin/keys",
    "/x/y/../../admin/keys",
    "/admin/x/../keys",
    "/admin/keys/x/..",
    "/../admin/keys",
    "/admin/keys/..;/keys",
    "/%61dmin/keys",
    "/%61%64%6d%69%6e/keys",
    "/%61%64%6D%69%6E/%6b%65%79%73",
    "/admin/key%73",
    "/admin%2fkeys",
    "/admin%2Fkeys",
    "/%2fadmin/keys",
    "/%2e/admin/keys",
    "/%2E/admin/keys",
    "/x/%2e%2e/admin/keys",
    "/x/.%2e/admin/keys",
    "/x/%2E./admin/keys",
    "/x/..%2fadmin/keys",
    "/x%2f..%2fadmin/keys",
    "/x/%2e%2e%2fadmin/keys",
    "/x/..%5cadmin/keys",
    "/admin%5ckeys",
    "/admin%5Ckeys",
    "/admin\\keys",
    "\\admin\\keys",
    "/\\admin/keys",
    "/x\\..\\admin\\keys",
    "/admin;x/keys",
    "/admin;/keys",
    "/admin/keys;x=1",
    "/admin/keys;",
    "/;/admin/keys",
    "/x;y/../admin/keys",
    "/x/..;/admin/keys",
    "/x/..;a=b/admin/keys",
    "/.;/admin/keys",
    "/admin%3bx/keys",
    "/admin/keys%3B",
    "/admin/keys%00",
    "/admin/keys%00.png",
    "/admin%00/keys",
    "/admin/keys#",
    "/admin/keys#x",
    "/admin/keys ",
    "/admin/keys\t",
    "/admin/keys\r",
    "/admin/keys\u{a0}",
    "/ admin/keys",
    "/admin/keys\x7f",
    "/admin/k\u{ff45}ys",
    "/\u{212a}eys",
    "/admin/%c0%afkeys",
    "/admin%c0%afkeys",
    "/%c0%ae%c0%ae/admin/keys",
    "/%e0%80%af/admin/keys",
    "/admin/%c1%abeys",
    "/admin/keys%",
    "/admin/keys%2",
    "/%u0061dmin/keys",
    "/admin/%zzkeys",
    "admin/keys",
    "http://h/admin/keys",
    "/admin/keys/",
    "/admin/keys?/../x",
];

#[test]
fn no_variant_of_a_protected_path_matches_a_weaker_rule() {
    let table = table(&[
        ("*", "*", "/admin/keys"),
        ("*", "*", "/**"),
        ("*", "*", "/{x}/{y}"),
        ("*", "*", "/admin/**"),
    ]);
    let mut same = 0;
    for spelling in LOOK_ALIKES {
        let Ok(path) = Path::read(spelling.as_bytes(), PathOptions::default()) else { continue };
        let found = table.find(b"h", b"GET", &path).and_then(|entry| entry.name.as_deref());
        assert_eq!(found, Some("r1"), "{spelling:?}");
        same += 1;
    }
    assert_eq!(same, 6, "variants that are normalized to the path itself");
}

#[test]
fn a_rule_may_have_no_name() {
    let row = RouteRow { name: None, ..row(1, "*", "*", "/a") };
    let table = RouteTable::of([&row]);
    assert_eq!(
        (table.entries()[0].id, table.entries()[0].name.as_deref()),
        (RouteId(Uuid::from_u128(1)), None)
    );
}
