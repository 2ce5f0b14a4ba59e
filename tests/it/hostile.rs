//! Checks that every known bad input gets its exact answer and affects no other request.
//!
//! A numbered catalogue. HTTP requests ([`requests`]) are sent three times: as Envoy writes them into `headers`, as
//! Envoy writes them into `header_map`, and through a real Envoy. Inputs that only a gRPC client can send are in
//! [`messages`] (bytes that are not a `CheckRequest`, or a large one) and [`frames`] (bytes that are not gRPC). After
//! each row a valid key still passes. After all of them the server uses no more memory than before, has run no
//! unnecessary bcrypt, and has logged no secret.

mod frames;
mod messages;
pub(crate) mod requests;

use std::collections::BTreeSet;
use std::path::Path;

use self::requests::{Http, Request, furnish, requests};
use crate::support::envoy::{Envoy, Outcome};
use crate::support::{Ask, Server, VerifiedResponse, World, on_every_store};

/// Rows that another suite tests, with the test. Numbers in neither list (14, 28, 36, 38) are unused.
const ELSEWHERE: [(u8, &str, &str); 3] = [
    (27, "damaged", "a_key_whose_tenant_is_missing_is_never_allowed"),
    (46, "waiting", "hundreds_of_requests_share_the_one_proof_of_a_key"),
    // 42 to 45 are behaviour instead of input: floods, stalls, unknown peers.
    (20, "outage", "known_keys_work_without_the_database_and_unknown_ones_get_503"),
];

on_every_store![the_instant_of_expiry_is_exact];

#[test]
fn every_row_is_tested() {
    let world = World::somewhere();
    furnish(&world);
    let numbers = requests(&world).iter().map(|row| row.number).collect::<Vec<_>>();
    let numbers = numbers.into_iter().chain(messages::NUMBERS).chain(frames::NUMBERS).chain([24]);
    let numbers: BTreeSet<u8> = numbers.chain(ELSEWHERE.map(|row| row.0)).collect();
    let known = (1..=46).filter(|number| ![14, 28, 36, 38, 42, 43, 44, 45].contains(number));
    assert_eq!(numbers, known.collect());
    for (number, suite, test) in ELSEWHERE {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/{suite}.rs"));
        let text = std::fs::read_to_string(file).expect("the suite is there");
        assert!(text.contains(&format!("fn {test}(")), "row {number}: no {test} in {suite}");
    }
}

/// The server for the catalogue, which reads both places of keys.
fn server(world: &World) -> Server {
    Server::on(&world.db).arg("--accept-bearer").start()
}

#[test]
fn every_bad_request_gets_its_answer_from_tenantgate() {
    let world = World::somewhere();
    let deleted = furnish(&world);
    let server = server(&world);
    for row in requests(&world) {
        for request in &row.requests {
            for ask in [request.joined(), request.raw()] {
                let answer = server.check(ask);
                assert_eq!(answer.row(), request.wanted, "row {} ({}): {request}", row.number, row.what);
                tells_nothing_of_the_request(&answer, request);
            }
        }
        assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "after row {}", row.number);
    }
    assert_eq!(server.row(Ask::with_key(&deleted)), "401 unknown", "row 25: a key whose row is gone");
    let log = server.stderr.text();
    assert!(!log.contains("Secret") && !log.contains("jndi"), "{log}");
}

/// A rejection has the same text for all inputs.
#[track_caller]
fn tells_nothing_of_the_request(answer: &VerifiedResponse, request: &Request) {
    if answer.http_status() != 200 {
        let said = format!("{:?} {:?}", answer.body(), answer.headers());
        assert!(!said.contains("llmk_") && !said.contains("forged"), "{request}: {said}");
    }
}

#[test]
fn every_bad_request_gets_its_answer_through_envoy() {
    let world = World::somewhere();
    furnish(&world);
    let server = server(&world);
    let Some(envoy) = Envoy::before(&server).start() else { return };
    for row in requests(&world) {
        for request in &row.requests {
            let what = format!("row {} ({}): {request}", row.number, row.what);
            let headers: Vec<_> = request.headers.iter().map(|(name, value)| (*name, &value[..])).collect();
            let send = || envoy.send_bytes(request.method, &request.path, &headers);
            match request.http {
                Http::Same => holds(&world, &send(), request.wanted, &what),
                Http::Becomes(row) => holds(&world, &send(), row, &what),
                Http::Refused(status) => {
                    let outcome = send();
                    assert_eq!(outcome.page.status, status, "{what}");
                    outcome.is_envoys_own(status);
                }
                Http::Unsayable => {}
            }
        }
        let live = [("x-llmcore-api-key", world.live.text.as_str())];
        envoy.send("GET", "/v1", &live).is_allowed_as(&world.acme, &world.live);
    }
    assert_eq!(envoy.stat("cluster.tenantgate.upstream_cx_destroy_remote"), 0, "no connection was lost");
    assert_eq!(envoy.stat("http.edge.ext_authz.error"), 0, "no Check was left without an answer");
}

/// Returns what a client gets for a row of the contract.
#[track_caller]
fn holds(world: &World, outcome: &Outcome, wanted: &str, what: &str) {
    let body = match wanted {
        "200 ok" => return outcome.is_allowed_as(&world.acme, &world.live),
        "401 missing" => r#"{"detail":"Missing API key"}"#,
        "401 malformed" => r#"{"detail":"Invalid API key format"}"#,
        "403 tenant_inactive" => r#"{"detail":"Tenant account is inactive"}"#,
        _ => r#"{"detail":"Invalid API key"}"#,
    };
    assert_eq!(outcome.page.body, body, "{what}: {outcome:#?}");
    outcome.is_refused(if wanted.starts_with("403") { 403 } else { 401 }, body);
}

#[test]
fn a_wrong_secret_of_a_proven_key_costs_no_bcrypt() {
    let world = World::somewhere();
    furnish(&world);
    let server = server(&world);
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    let proven = server.bcrypts();
    for row in requests(&world).iter().filter(|row| [12, 15, 16, 17, 18, 19, 20, 29].contains(&row.number)) {
        for request in &row.requests {
            assert_eq!(server.row(request.joined()), request.wanted, "row {}: {request}", row.number);
        }
    }
    assert_eq!(server.bcrypts(), proven, "rejected by the grammar, the look-up or the stored verdict");
}

/// Row 24, with instants as the database writes them.
fn the_instant_of_expiry_is_exact(world: &World) {
    use crate::support::{Backend, PATIENCE};
    let server = Server::on(&world.db).start();
    let (ago, now, far) = match world.db.backend {
        Backend::Postgres => ("now() - interval '1 millisecond'", "now()", "'294276-12-31T23:59:59Z'"),
        // A year has four digits there.
        Backend::Sqlite => (
            "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-0.001 seconds')",
            "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
            "'9999-12-31T23:59:59Z'",
        ),
    };
    let mut rows = vec![(ago, "401 expired"), (now, "401 expired"), (far, "200 ok"), ("NULL", "200 ok")];
    if world.db.backend == Backend::Postgres {
        rows.extend([("'infinity'", "200 ok"), ("'-infinity'", "401 expired")]);
    }
    let mut session = world.db.session();
    for (at, wanted) in rows {
        let prefix = &world.live.prefix;
        session.sql(&format!("UPDATE api_keys SET expires_at = {at} WHERE key_prefix = '{prefix}'"));
        // Another key is revoked and restored, to know when this change has been applied.
        let mark = |to: &str| {
            format!("UPDATE api_keys SET revoked_at = {to} WHERE key_prefix = '{}'", world.other.prefix)
        };
        session.sql(&mark("'2026-01-01T00:00:00Z'"));
        server.row_becomes("401 revoked", PATIENCE, Ask::with_key(&world.other.text));
        assert_eq!(server.row(Ask::with_key(&world.live.text)), wanted, "{at}");
        session.sql(&mark("NULL"));
        server.row_becomes("200 ok", PATIENCE, Ask::with_key(&world.other.text));
    }
}
