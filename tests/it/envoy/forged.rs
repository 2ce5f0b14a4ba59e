//! Tests forged, repeated and untrusted headers.

use std::io::Read as _;

use super::{FORGED, INACTIVE, MALFORMED, MISSING, with_key};
use crate::support::ask::KEY_HEADER;
use crate::support::envoy::Envoy;
use crate::support::verified_response::IDENTITY;
use crate::support::{Server, World};

/// No forged header reaches the upstream, whatever the reason to pass is.
#[track_caller]
fn forgeries(world: &World, envoy: &Envoy) {
    let bearer = format!("bearer {}", world.other.text);
    let authorization = [("authorization", bearer.as_str())];
    envoy.send("GET", "/v1", &with_key(&world.live, &FORGED)).is_allowed_as(&world.acme, &world.live);
    envoy.send("POST", "/docs", &with_key(&world.live, &FORGED)).is_allowed_as(&world.acme, &world.live);
    let outcome = envoy.send("GET", "/v1", &[&authorization[..], &FORGED].concat());
    outcome.is_allowed_as(&world.acme, &world.other);
    let twice = [FORGED, FORGED].concat();
    envoy.send("GET", "/v1", &with_key(&world.live, &twice)).is_allowed_as(&world.acme, &world.live);
    envoy.send("GET", "/docs", &twice).is_allowed_as_nobody();
    envoy.send("HEAD", "/", &with_key(&world.live, &FORGED)).is_allowed_as_nobody();
    envoy.send("GET", "/health", &[&authorization[..], &FORGED].concat()).is_allowed_as_nobody();
    envoy.send("GET", "/v1", &FORGED).is_refused(401, MISSING);
    envoy.send("GET", "/v1", &with_key(&world.of_sleepy, &FORGED)).is_refused(403, INACTIVE);
}

#[test]
fn no_client_can_forge_a_tenant() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    forgeries(&world, &envoy);
    for twin in ["x_llmcore_tenant_id", "x-llmcore_tenant-id", "X_LLMCORE_KEY_ID", "x_llmcore_api_key"] {
        envoy.send("GET", "/v1", &with_key(&world.live, &[(twin, "forged")])).is_envoys_own(400);
        envoy.send("GET", "/docs", &[(twin, "forged")]).is_envoys_own(400);
    }
    // A client that names the headers as hop-by-hop must not make Envoy remove those that tenantgate sets.
    let nominated = "x-llmcore-tenant-id, x-llmcore-key-id, close";
    let mut stream = envoy.open("GET", "/v1", &[(KEY_HEADER, world.live.text.as_bytes())], nominated);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn tenantgate_alone_removes_forged_headers_if_envoy_does_not() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    let mut plan = Envoy::before(&server);
    for name in IDENTITY {
        plan = plan.with(&format!("{{remove: {name}}}"), "{remove: x-not-there}");
    }
    let Some(envoy) = plan.start() else { return };
    forgeries(&world, &envoy);
}

/// Only a single key header counts.
#[track_caller]
fn duplicates(world: &World, envoy: &Envoy) {
    let (live, other) = (world.live.text.as_str(), world.other.text.as_str());
    let joined = format!("{live},{other}");
    let spaced = format!("{live}, {live}");
    for keys in [
        &[live, live][..],
        &[live, other],
        &[live, "sesame"],
        &["llmk_nobody_0123456789", live],
        &[live, live, live],
        &[&joined],
        &[&spaced],
    ] {
        let headers: Vec<_> = keys.iter().map(|key| ("x-llmcore-api-key", *key)).collect();
        envoy.send("GET", "/v1", &headers).is_refused(401, MALFORMED);
        envoy.send("GET", "/docs", &headers).is_allowed_as_nobody();
    }
    let mixed = [("x-llmcore-api-key", live), ("X-LLMCORE-API-KEY", live)];
    envoy.send("GET", "/v1", &mixed).is_refused(401, MALFORMED);
    for odd in [&b"llmk_live_live-Secret-0123456\xff89"[..], b"\xc3\xa4", b"llmk_live_live-Secret 0123456789"]
    {
        envoy.send_bytes("GET", "/v1", &[(KEY_HEADER, odd)]).is_refused(401, MALFORMED);
    }
}

#[test]
fn a_key_that_is_sent_twice_is_malformed() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    duplicates(&world, &envoy);
}

#[test]
fn a_key_that_is_sent_twice_is_malformed_without_raw_headers_too() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let plan = Envoy::before(&server).with("encode_raw_headers: true", "encode_raw_headers: false");
    let Some(envoy) = plan.start() else { return };
    duplicates(&world, &envoy);
}

#[test]
fn a_bearer_key_is_removed_and_other_authorization_is_passed_on() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    let bearer = format!("Bearer {}", world.live.text);
    let outcome = envoy.send("GET", "/v1", &[("Authorization", &bearer)]);
    outcome.is_allowed_as(&world.acme, &world.live);
    assert!(outcome.passed().values("authorization").is_empty(), "{outcome:#?}");
    let outcome = envoy.send("GET", "/docs", &[("authorization", &bearer)]);
    outcome.is_allowed_as_nobody();
    assert!(outcome.passed().values("authorization").is_empty(), "{outcome:#?}");
    for theirs in ["Basic bWU6cGFzcw==", "Bearer eyJhbGciOiJub25lIn0.e30."] {
        let outcome = envoy.send("GET", "/v1", &with_key(&world.live, &[("authorization", theirs)]));
        outcome.is_allowed_as(&world.acme, &world.live);
        assert_eq!(outcome.passed().values("authorization"), [theirs], "{outcome:#?}");
        envoy.send("GET", "/v1", &[("authorization", theirs)]).is_refused(401, MISSING);
    }
    let both = with_key(&world.live, &[("authorization", &bearer)]);
    envoy.send("GET", "/v1", &both).is_refused(401, MALFORMED);
    let twice = [("authorization", bearer.as_str()), ("authorization", "Basic bWU6cGFzcw==")];
    envoy.send("GET", "/v1", &twice).is_refused(401, MALFORMED);
}

#[test]
fn untrusted_client_values_are_not_in_the_access_log() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    let key = world.live.text.as_str();
    let misplaced = [
        "authorization",
        "cookie",
        "referer",
        "user-agent",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-request-id",
        "x-envoy-original-path",
        "x-api-key",
    ];
    let headers: Vec<_> = misplaced.into_iter().map(|name| (name, key)).collect();
    let path = format!("/v1/misplaced?key={key}");
    // With x-forwarded-for and without: without it, Envoy could take a loopback peer for "internal".
    for headers in
        [headers.clone(), headers.into_iter().filter(|header| header.0 != "x-forwarded-for").collect()]
    {
        envoy.send("GET", &path, &headers).is_refused(401, MISSING);
    }
    let outcome = envoy.send("GET", "/v1/last", &with_key(&world.live, &[("x-request-id", "mine")]));
    assert!(outcome.passed().values("x-envoy-internal").is_empty(), "no client is internal: {outcome:#?}");
    assert_ne!(outcome.passed().values("x-request-id"), ["mine"], "{outcome:#?}");
    envoy.logged("/v1/last");
    assert_eq!(envoy.access_log.lines().len(), 3, "{}", envoy.access_log.text());
    assert!(!envoy.access_log.text().contains("Secret"), "{}", envoy.access_log.text());
}
