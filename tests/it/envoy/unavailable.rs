//! Tests requests that tenantgate cannot decide or does not answer.

use tonic::Code;

use super::{FORGED, MISSING, UNAVAILABLE, grpc, with_key};
use crate::support::ask::KEY_HEADER;
use crate::support::envoy::Envoy;
use crate::support::link::Link;
use crate::support::world::SLOW;
use crate::support::{Backend, PATIENCE, Server, World, eventually};

/// With `failure_mode_allow`, which the docs advise against.
const OPEN: (&str, &str) = ("failure_mode_allow: false", "failure_mode_allow: true");

#[test]
fn without_any_load_no_request_passes_even_if_envoy_fails_open() {
    let world = World::somewhere();
    let nowhere = ["--database-url", "postgres://127.0.0.1:1/nowhere", "--ops-listen", "127.0.0.1:0"];
    let server = Server::plan(world.db.dir(), &nowhere).start_unready();
    let Some(envoy) = Envoy::before(&server).with(OPEN.0, OPEN.1).start() else { return };
    // Once Envoy considers the only tenantgate unhealthy, it must still call it.
    envoy.finds_tenantgate(false);
    let outcome = envoy.send("GET", "/v1/unable", &with_key(&world.live, &FORGED));
    outcome.is_refused(503, UNAVAILABLE);
    assert_eq!(envoy.logged("/v1/unable")["decision"], "unable");
    envoy.send("GET", "/v1", &FORGED).is_refused(401, MISSING);
    envoy.send("GET", "/docs", &FORGED).is_allowed_as_nobody();
    let status = grpc(&envoy, &[(KEY_HEADER, world.live.text.as_str())]).expect_err("closed");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, UNAVAILABLE));
}

#[test]
fn with_too_old_data_no_request_passes_even_if_envoy_fails_open() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let (link, seen) = Link::before(&world.db);
    let server = Server::on(&seen).args(&["--max-staleness", "2s"]).start();
    let Some(envoy) = Envoy::before(&server).with(OPEN.0, OPEN.1).start() else { return };
    let call = || envoy.send("GET", "/v1", &with_key(&world.live, &[]));
    call().is_allowed_as(&world.acme, &world.live);
    link.cut();
    envoy.finds_tenantgate(false);
    call().is_refused(503, UNAVAILABLE);
    envoy.send("GET", "/docs", &[]).is_allowed_as_nobody();
    link.mend();
    envoy.finds_tenantgate(true);
    call().is_allowed_as(&world.acme, &world.live);
}

#[test]
fn on_unavailable_error_leaves_it_to_envoy() {
    let world = World::somewhere();
    let nowhere = ["--database-url", "postgres://127.0.0.1:1/nowhere", "--ops-listen", "127.0.0.1:0"];
    let server = Server::plan(world.db.dir(), &nowhere).args(&["--on-unavailable", "error"]).start_unready();
    let Some(open) = Envoy::before(&server).with(OPEN.0, OPEN.1).start() else { return };
    let outcome = open.send("GET", "/v1", &FORGED);
    outcome.is_refused(401, MISSING);
    let claims = [("x-envoy-auth-failure-mode-allowed", "forged")];
    let outcome = open.send("GET", "/v1", &with_key(&world.live, &[&FORGED[..], &claims].concat()));
    let made_up = outcome.passed().headers_of("forged");
    assert!(made_up.is_empty(), "passed as the operator configured, but without a tenant: {outcome:#?}");
    let Some(closed) = Envoy::before(&server).start() else { return };
    closed.send("GET", "/v1", &with_key(&world.live, &[])).is_refused(503, UNAVAILABLE);
}

#[test]
fn without_tenantgate_clients_get_503_instead_of_401() {
    let world = World::somewhere();
    let mut server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    envoy.send("GET", "/v1", &with_key(&world.live, &[])).is_allowed_as(&world.acme, &world.live);
    server.signal("KILL");
    server.exit_code(PATIENCE);
    envoy.send("GET", "/v1/gone", &with_key(&world.live, &[])).is_envoys_own(503);
    envoy.send("GET", "/docs", &FORGED).is_envoys_own(503);
    let status = grpc(&envoy, &[(KEY_HEADER, world.live.text.as_str())]).expect_err("closed");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(envoy.logged("/v1/gone")["details"], "ext_authz_error");
    // And after Envoy's health check has noticed.
    envoy.finds_tenantgate(false);
    envoy.send("GET", "/v1", &with_key(&world.live, &[])).is_envoys_own(503);
}

/// Envoy resets the stream of a Check whose client has left. All other clients share the connection, so
/// this must only cancel one answer.
#[test]
fn clients_that_leave_do_not_affect_others() {
    let world = World::somewhere();
    world.slow_down();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    let leave = |n: usize| {
        // Different secrets, so that each waits for its own proof.
        let key = format!("{}_WrongWrongWrong{n:04}", SLOW.rsplit_once('_').expect("a secret").0);
        drop(envoy.open("GET", "/v1/left", &[(KEY_HEADER, key.as_bytes())], "close"));
    };
    envoy.send("GET", "/v1", &with_key(&world.other, &[])).is_allowed_as(&world.acme, &world.other);
    for n in 0..200 {
        leave(n);
        if n % 4 == 0 {
            envoy.send("GET", "/v1", &with_key(&world.other, &[])).is_allowed_as(&world.acme, &world.other);
        }
    }
    eventually("envoy has reset streams", PATIENCE, || {
        match envoy.stat("cluster.tenantgate.upstream_rq_tx_reset") {
            0 => Err(0),
            resets => Ok(resets),
        }
    });
    envoy.send("GET", "/v1", &with_key(&world.other, &[])).is_allowed_as(&world.acme, &world.other);
    assert_eq!(envoy.stat("cluster.tenantgate.upstream_cx_destroy_remote"), 0, "no connection was lost");
    assert_eq!(server.http("/livez").status, 200);
}
