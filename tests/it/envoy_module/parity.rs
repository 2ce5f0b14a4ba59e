//! Sends the requests of other suites through both Envoys, which must give equal answers.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message as _;
use serde_json::Value;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::CheckRequest;

use super::{Key, fields, logging, publishing, seen, with_key, with_module};
use crate::hostile::requests::{Http, furnish, requests};
use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, Outcome, Plan};
use crate::support::{PATIENCE, Server, World, eventually};

/// Two Envoys with one server, and the number of decisions of the module so far.
struct Pair {
    plain: Envoy,
    module: Envoy,
    by_module: BTreeMap<String, usize>,
}

/// A request: method, path, headers.
type Request<'r> = (&'r str, &'r str, &'r [(&'r str, &'r [u8])]);

impl Pair {
    fn new(server: &Server, socket: &Path, change: impl Fn(Plan) -> Plan) -> Option<Self> {
        // Otherwise Envoy waits a second before it closes a connection on which a filter has rejected at once.
        let name = "          stat_prefix: edge\n";
        let quick = |plan: Plan| plan.with(name, &format!("{name}          delayed_close_timeout: 0s\n"));
        let plain = change(quick(logging(Envoy::before(server)))).start()?;
        let module = change(quick(with_module(server, socket))).workers(2).start()?;
        Some(Self { plain, module, by_module: BTreeMap::new() })
    }

    /// Checks that both answers to a request are equal: for the client, for the upstream, and in the log.
    #[track_caller]
    fn agree(&mut self, request: Request<'_>, what: &str) -> (Outcome, Value) {
        let (one, told) = once(&self.plain, request);
        let (other, said) = once(&self.module, request);
        assert_eq!(seen(&other), seen(&one), "{what}");
        for field in ["status", "grpc_status", "details", "method", "protocol", "upstream"] {
            let upstream = |line: &Value| {
                if field == "upstream" { line[field].is_null().into() } else { line[field].clone() }
            };
            assert_eq!(upstream(&said), upstream(&told), "{what}: {field}");
        }
        if told["decision"].is_null() || said["decision"].is_null() {
            assert_eq!(said["decision"], told["decision"], "{what}");
            return (other, said);
        }
        assert_eq!(fields(&said["decision"]), fields(&told["decision"]), "{what}");
        if said["decision"]["via"] == "module" {
            *self.by_module.entry(said["decision"]["reason"].to_string()).or_default() += 1;
        }
        (other, said)
    }
}

/// Sends a request, and waits for its line in the access log.
#[track_caller]
fn once(envoy: &Envoy, (method, path, headers): Request<'_>) -> (Outcome, Value) {
    let before = envoy.access_log.wait_for("lines", PATIENCE, |lines| Some(lines.len()));
    let outcome = envoy.send_bytes(method, path, headers);
    let line =
        envoy.access_log.wait_for("a line of the access log", PATIENCE, |lines| lines.get(before).cloned());
    (outcome, serde_json::from_str(&line).expect("the access log is JSON"))
}

/// Proves a key through one Envoy, and waits until the module of the other one has it.
fn settle(pair: &Pair, world: &World) {
    eventually("it is proven", PATIENCE, || {
        let (outcome, _) = once(&pair.plain, ("GET", "/v1", &[(KEY_HEADER, world.live.text.as_bytes())]));
        if outcome.page.status == 200 { Ok(()) } else { Err(outcome) }
    });
    with_key(&pair.module, &world.live.text);
}

#[test]
fn requests_near_the_limits_of_envoy_get_the_same_answer() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(mut pair) = Pair::new(&server, &socket, |plan| plan) else { return };
    settle(&pair, &world);
    let key = (KEY_HEADER, world.live.text.as_bytes());
    let mut statuses = Vec::new();
    // Envoy rejects more than 100 lines and 60 KiB, also if ext_authz adds some of them.
    for (lines, size) in [(20, 1), (60, 1), (85, 1), (90, 1), (95, 1), (1, 50_000), (1, 60_500), (1, 61_000)]
    {
        let value = vec![b'v'; size];
        let headers = [&[key], &vec![("x-more", &value[..]); lines][..]].concat();
        let (outcome, _) = pair.agree(("GET", "/v1", &headers), &format!("{lines} lines of {size} bytes"));
        statuses.push(outcome.page.status);
    }
    assert_eq!((statuses[0], statuses[1]), (200, 200));
    assert!(statuses.contains(&500), "some are rejected only for what ext_authz adds: {statuses:?}");
    assert_eq!(pair.by_module.values().sum::<usize>(), 1, "the short one");
}

#[test]
fn a_rejected_request_with_a_body_leaves_the_connection_open() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(pair) = Pair::new(&server, &socket, |plan| plan) else { return };
    settle(&pair, &world);
    let head = |more: &str| format!("POST /v1 HTTP/1.1\r\nhost: api.example.com\r\n{more}\r\n");
    let requests =
        format!("{}hi{}", head("content-length: 2\r\n"), head("connection: close\r\ncontent-length: 0\r\n"));
    for envoy in [&pair.plain, &pair.module] {
        let first = envoy.exchange(requests.as_bytes());
        assert_eq!((first.status, first.headers.get("connection")), (401, None), "{first:?}");
        assert!(first.body.contains("HTTP/1.1 401"), "the second request is answered, too: {first:?}");
    }
}

#[test]
fn every_bad_request_gets_the_same_answer() {
    let world = World::somewhere();
    furnish(&world);
    for accept in [&[][..], &["--accept-bearer"]] {
        let (server, socket, _directory) = publishing(&world, accept);
        let Some(mut pair) = Pair::new(&server, &socket, |plan| plan) else { return };
        settle(&pair, &world);
        for row in requests(&world) {
            for request in row.requests.iter().filter(|request| !matches!(request.http, Http::Unsayable)) {
                let headers: Vec<_> =
                    request.headers.iter().map(|(name, value)| (*name, &value[..])).collect();
                let what = format!("row {} ({}): {request}", row.number, row.what);
                pair.agree((request.method, &request.path, &headers), &what);
            }
        }
        for reason in ["malformed", "missing", "unknown", "ok"] {
            assert!(pair.by_module.contains_key(&format!("\"{reason}\"")), "{reason}: {:?}", pair.by_module);
        }
    }
}

#[test]
fn every_captured_request_gets_the_same_answer() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &["--accept-bearer"]);
    let Some(mut pair) = Pair::new(&server, &socket, |plan| plan) else { return };
    settle(&pair, &world);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("fixtures").flatten().map(|file| file.path()).collect();
    files.sort();
    let mut sent = 0;
    for file in files {
        // One of them has a TLS server name that is not text. A request does not contain it.
        let Ok(message) = CheckRequest::decode(&std::fs::read(&file).expect("readable")[..]) else {
            continue;
        };
        let http =
            message.attributes.and_then(|attributes| attributes.request).and_then(|request| request.http);
        let Some(http) = http.filter(|http| http.path.starts_with('/')) else { continue };
        let keys = [&world.live, &world.revoked, &world.of_sleepy, &world.issued];
        for key in [None].into_iter().chain(keys.map(Some)) {
            // Omits headers that only HTTP/2 has, and those that the client always sends.
            let left_out = ["connection", "upgrade", "host", "content-length", "transfer-encoding", "te"];
            let raw = http.header_map.iter().flat_map(|map| &map.headers);
            let raw = raw.map(|header| (header.key.clone(), header.raw_value.clone()));
            let listed = http.headers.iter().map(|(name, value)| (name.clone(), value.clone().into()));
            let mut headers: Vec<(String, Vec<u8>)> = raw
                .chain(listed.map(|(name, value): (String, Vec<u8>)| (name, value)))
                .filter(|(name, _)| !name.starts_with(':') && !left_out.contains(&name.as_str()))
                .collect();
            // They were captured with another key header.
            for (name, value) in headers.iter_mut().filter(|(name, _)| name == "x-api-key") {
                KEY_HEADER.clone_into(name);
                if let Some(Key { text, .. }) = key {
                    *value = text.clone().into_bytes();
                }
            }
            let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
            let method = if http.method == "CONNECT" { "GET" } else { &http.method };
            let what = format!("{} with {:?}", file.display(), key.map(|key| &key.prefix));
            // In both orders, because a key that one Check has proven is then published to the other Envoy.
            for _ in 0..2 {
                pair.agree((method, &http.path, &headers), &what);
                sent += 1;
            }
        }
    }
    assert!(sent >= 80, "{sent}");
    assert!(pair.by_module.len() >= 3, "{:?}", pair.by_module);
}

#[test]
fn every_outcome_is_the_same() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &["--accept-bearer"]);
    let Some(mut pair) = Pair::new(&server, &socket, |plan| plan) else { return };
    settle(&pair, &world);
    let live = world.live.text.as_str();
    let (bearer, both) = (format!("Bearer {live}"), format!("{live},{live}"));
    let wrong = world.live.with_wrong_secret();
    let outcomes = |pair: &mut Pair| {
        let keys: [(&str, &str); 11] = [
            ("empty key", ""),
            ("not a key", "sk-12345678"),
            ("two keys in one header", &both),
            ("unknown prefix", "llmk_nobody_12345678"),
            ("wrong secret", &wrong),
            ("revoked key", &world.revoked.text),
            ("expired key", &world.expired.text),
            ("tenant suspended", &world.of_sleepy.text),
            ("tenant pending_provisioning", &world.of_newborn.text),
            ("tenant deleted", &world.of_gone.text),
            ("live key", live),
        ];
        for (what, key) in keys {
            for (method, path) in [("GET", "/v1"), ("HEAD", "/v1"), ("DELETE", "/v1?x=y"), ("GET", "/docs")] {
                let header: (&str, &[u8]) = (KEY_HEADER, key.as_bytes());
                pair.agree((method, path, &[header]), &format!("{what}, {method} {path}"));
                // A rejected gRPC call gets a gRPC response.
                let grpc: (&str, &[u8]) = ("content-type", b"application/grpc");
                if what != "live key" && path != "/docs" {
                    pair.agree((method, path, &[header, grpc]), &format!("{what}, gRPC"));
                }
            }
        }
        let header: (&str, &[u8]) = (KEY_HEADER, live.as_bytes());
        let token: (&str, &[u8]) = ("authorization", bearer.as_bytes());
        let other: (&str, &[u8]) = ("authorization", b"Basic dXNlcjpwYXNz");
        for (what, headers) in [
            ("no key", &[][..]),
            ("two key headers", &[header, header]),
            ("key header and bearer key", &[header, token]),
            ("key header and another authorization", &[header, other]),
            ("another authorization", &[other]),
            ("bearer key", &[token]),
            ("two bearer keys", &[token, token]),
            ("bearer key and another authorization", &[token, other]),
        ] {
            for path in ["/v1", "/docs", "/health", "/docs/", "//docs", "/%64ocs", "/v1/../docs"] {
                pair.agree(("GET", path, headers), &format!("{what}, {path}"));
            }
        }
    };
    // Twice, because the keys that the first round proves are published for the second.
    outcomes(&mut pair);
    outcomes(&mut pair);
    for reason in ["ok", "missing", "malformed", "unknown", "revoked", "expired", "tenant_inactive"] {
        assert!(pair.by_module.contains_key(&format!("\"{reason}\"")), "{reason}: {:?}", pair.by_module);
    }
    // With rules in force, the module must ask the server.
    for rule in [["--path=/v1", "--scopes=write"].as_slice(), &["--path=/rules/open", "--mode=optional"]] {
        world.db.json(&[&["route", "add"], rule].concat());
    }
    eventually("the rules are in force", PATIENCE, || {
        let (outcome, said) = once(&pair.module, ("GET", "/rules/open", &[]));
        if outcome.page.status == 200 { Ok(()) } else { Err(said) }
    });
    pair.by_module.clear();
    outcomes(&mut pair);
    pair.agree(("GET", "/rules/open", &[]), "optional");
    assert!(pair.by_module.is_empty(), "{:?}", pair.by_module);
}
