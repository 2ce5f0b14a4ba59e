//! Tests what clients and upstreams get with a real Envoy between them.
//!
//! Envoy runs `envoy/envoy.yaml`; a test that needs changes lists them. Other files test the answers of tenantgate over
//! gRPC; here the tests check what Envoy does with them.

mod forged;
mod unavailable;

use std::io::{Read as _, Write as _};
use std::process::Command;

use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, FILE, MTLS, Outcome, Seen, UDS, binary};
use crate::support::verified_response::IDENTITY;
use crate::support::world::{Key, Tenant};
use crate::support::{Backend, PATIENCE, Server, World, eventually, runtime, wait};
use crate::tls::{authority, file, issued_for};

const MISSING: &str = r#"{"detail":"Missing API key"}"#;
const MALFORMED: &str = r#"{"detail":"Invalid API key format"}"#;
const INVALID: &str = r#"{"detail":"Invalid API key"}"#;
const INACTIVE: &str = r#"{"detail":"Tenant account is inactive"}"#;
const UNAVAILABLE: &str = r#"{"detail":"Authentication service unavailable"}"#;

/// Headers that a client might forge.
const FORGED: [(&str, &str); 4] = [
    ("x-llmcore-tenant-id", "forged"),
    ("X-LLMCore-Tenant-Name", "forged"),
    ("x-llmcore-tenant-schema", "forged"),
    ("X-LLMCORE-KEY-ID", "forged"),
];

impl Outcome {
    /// Asserts that the request was rejected with this status and body, and did not reach the upstream.
    #[track_caller]
    pub(crate) fn is_refused(&self, status: u16, body: &str) {
        assert_eq!((self.page.status, self.page.body.as_str()), (status, body), "{self:#?}");
        assert_eq!(self.page.headers["content-type"], "application/json", "{self:#?}");
        assert_eq!(self.page.headers["x-llmcore-decision-id"].len(), 36, "{self:#?}");
        let challenge = self.page.headers.get("www-authenticate").map(String::as_str);
        assert_eq!(challenge, (status == 401).then_some(r#"ApiKey realm="llmcore""#), "{self:#?}");
        assert_eq!(self.page.headers.contains_key("retry-after"), status == 503, "{self:#?}");
        assert!(self.seen.is_none(), "a refused request reached the upstream: {self:#?}");
    }

    /// Asserts that Envoy itself rejected the request, and that it did not reach the upstream.
    #[track_caller]
    pub(crate) fn is_envoys_own(&self, status: u16) {
        assert_eq!(self.page.status, status, "{self:#?}");
        assert!(!self.page.headers.contains_key("x-llmcore-decision-id"), "{self:#?}");
        assert!(self.seen.is_none(), "{self:#?}");
    }

    /// Asserts that the request passed: the upstream saw the identity of this key, each header once, and no key.
    #[track_caller]
    pub(crate) fn is_allowed_as(&self, tenant: &Tenant, key: &Key) {
        let seen = self.passed();
        identified(seen, tenant, key);
    }

    /// Asserts that the request passed without identity and key.
    #[track_caller]
    pub(crate) fn is_allowed_as_nobody(&self) {
        let names = self.passed().names("x-llmcore-");
        assert!(names.is_empty(), "a public request has no identity: {self:#?}");
    }

    #[track_caller]
    pub(crate) fn passed(&self) -> &Seen {
        assert_eq!(self.page.status, 200, "{self:#?}");
        self.seen.as_ref().unwrap_or_else(|| panic!("the upstream was not reached: {self:#?}"))
    }
}

#[track_caller]
fn identified(seen: &Seen, tenant: &Tenant, key: &Key) {
    assert_eq!(seen.names("x-llmcore-"), IDENTITY, "all four, each once, and no key: {seen:#?}");
    let name = tenant.name.replace(' ', "%20");
    for (header, value) in [
        ("x-llmcore-key-id", &key.id),
        ("x-llmcore-tenant-id", &tenant.id),
        ("x-llmcore-tenant-name", &name),
        ("x-llmcore-tenant-schema", &tenant.schema),
    ] {
        assert_eq!(seen.values(header), [value], "{header}: {seen:#?}");
    }
}

/// Adds the key header in front.
fn with_key<'a>(key: &'a Key, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("X-LLMCore-API-Key", key.text.as_str())], more].concat()
}

#[test]
fn the_file_is_valid() {
    let Some(envoy) = binary() else { return };
    let said = Command::new(envoy).args(["--mode", "validate", "-c", FILE]).output().expect("envoy starts");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

/// Sends requests with every kind of key, and checks the responses and Envoy's access log.
#[track_caller]
fn every_kind_of_key(world: &World, envoy: &Envoy) {
    let unknown = "llmk_nobody_0123456789";
    let wrong = world.live.with_wrong_secret();
    let rows = [
        (None, 401, MISSING, "missing"),
        (Some(""), 401, MISSING, "missing"),
        (Some("sesame"), 401, MALFORMED, "malformed"),
        (Some("llmk_live_live-Secret!0123456789"), 401, MALFORMED, "malformed"),
        (Some(unknown), 401, INVALID, "unknown"),
        (Some(&wrong), 401, INVALID, "mismatch"),
        (Some(&world.revoked.text), 401, INVALID, "revoked"),
        (Some(&world.expired.text), 401, INVALID, "expired"),
        (Some(&world.of_sleepy.text), 403, INACTIVE, "tenant_inactive"),
        (Some(&world.of_newborn.text), 403, INACTIVE, "tenant_inactive"),
        (Some(&world.of_gone.text), 403, INACTIVE, "tenant_inactive"),
    ];
    for (index, (key, status, body, reason)) in rows.into_iter().enumerate() {
        let path = format!("/v1/refused/{index}");
        let headers: Vec<_> = key.iter().map(|key| (KEY_HEADER, *key)).collect();
        let outcome = envoy.send("GET", &path, &headers);
        outcome.is_refused(status, body);
        let logged = envoy.logged(&path);
        assert_eq!((&logged["decision"], &logged["reason"]), (&"deny".into(), &reason.into()), "{logged}");
        assert_eq!(logged["decision_id"], outcome.page.headers["x-llmcore-decision-id"].as_str(), "{logged}");
        assert_eq!(
            (&logged["status"], &logged["details"]),
            (&status.into(), &"ext_authz_denied".into()),
            "{logged}"
        );
    }
    // `issued` costs a bcrypt of normal cost first: Envoy's timeout must be long enough.
    for key in [&world.live, &world.issued] {
        let path = format!("/v1/allowed/{}", key.prefix);
        envoy.send("GET", &path, &with_key(key, &[])).is_allowed_as(&world.acme, key);
        let logged = envoy.logged(&path);
        assert_eq!((&logged["decision"], &logged["reason"]), (&"allow".into(), &"ok".into()), "{logged}");
        assert_eq!(logged["tenant_id"], world.acme.id.as_str(), "{logged}");
        assert_eq!(logged["key_prefix"], key.prefix.as_str(), "{logged}");
    }
    assert!(!envoy.access_log.text().contains("Secret"), "a key is in the access log");
}

#[test]
fn every_kind_of_key_gets_its_answer() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    every_kind_of_key(&world, &envoy);
}

#[test]
fn every_kind_of_key_gets_its_answer_on_postgres() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    every_kind_of_key(&world, &envoy);
}

#[test]
fn every_kind_of_key_gets_its_answer_without_raw_headers() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let plan = Envoy::before(&server).with("encode_raw_headers: true", "encode_raw_headers: false");
    let Some(envoy) = plan.start() else { return };
    every_kind_of_key(&world, &envoy);
}

#[test]
fn every_kind_of_key_gets_its_answer_over_a_unix_socket() {
    let world = World::somewhere();
    let socket = world.db.dir().join("authz.sock").display().to_string();
    let _server = Server::on(&world.db).args(&["--listen", &format!("unix:{socket}")]).start();
    let plan = Envoy::with_file(UDS).with("/run/tenantgate/authz.sock", &socket);
    let Some(envoy) = plan.start() else { return };
    every_kind_of_key(&world, &envoy);
}

/// Returns a server whose certificate is for this name, and an Envoy whose certificate is of the right authority or of
/// another one.
fn with_certificates(world: &World, name: &str, right: bool) -> Option<(Server, Envoy)> {
    let (servers, clients) = (authority("servers"), authority("clients"));
    let put = |name: &str, content: &str| file(world.db.dir(), name, content);
    let (cert, key) = issued_for(&[name], &servers);
    let (cert, key) = (put("server.crt", &cert), put("server.key", &key));
    let client_ca = put("clients.crt", &clients.pem());
    let args = ["--tls-cert", &cert, "--tls-key", &key, "--client-ca", &client_ca];
    let server = Server::on(&world.db).args(&args).start();
    let (client, client_key) = issued_for(&["envoy.internal"], if right { &clients } else { &servers });
    let mut plan = Envoy::with_file(MTLS).asking(&server.grpc[0]);
    for (name, content) in [("client.crt", client), ("client.key", client_key), ("ca.crt", servers.pem())] {
        plan = plan.with(&format!("/etc/envoy/authz/{name}"), &put(name, &content));
    }
    Some((server, plan.start()?))
}

#[test]
fn every_kind_of_key_gets_its_answer_with_certificates_on_both_sides() {
    let world = World::somewhere();
    let Some((_server, envoy)) = with_certificates(&world, "tenantgate.internal", true) else { return };
    every_kind_of_key(&world, &envoy);
}

#[test]
fn with_a_foreign_certificate_on_either_side_no_request_passes() {
    for (name, right) in [("somebody.internal", true), ("tenantgate.internal", false)] {
        let world = World::somewhere();
        let Some((_server, envoy)) = with_certificates(&world, name, right) else { return };
        envoy.send("GET", "/v1", &with_key(&world.live, &[])).is_envoys_own(503);
        envoy.send("GET", "/docs", &FORGED).is_envoys_own(503);
    }
}

#[test]
fn a_change_beside_the_server_reaches_clients() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    let status = || envoy.send("GET", "/v1", &with_key(&world.live, &[])).page.status;
    let becomes = |wanted: u16, what: &str| {
        eventually(what, PATIENCE, || match status() {
            seen if seen == wanted => Ok(()),
            seen => Err(seen),
        });
    };
    assert_eq!(status(), 200);
    world.db.json(&["tenant", "suspend", &world.acme.id]);
    becomes(403, "a suspended tenant is refused");
    world.db.json(&["tenant", "activate", &world.acme.id]);
    becomes(200, "an activated tenant is let in");
    world.db.json(&["key", "revoke", &world.live.id]);
    becomes(401, "a revoked key is refused");
}

#[test]
fn public_paths_need_no_key_and_give_no_identity() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    for path in ["/", "/health", "/docs", "/docs?page=2"] {
        for method in ["GET", "HEAD"] {
            envoy.send(method, path, &[]).is_allowed_as_nobody();
            envoy.send(method, path, &FORGED).is_allowed_as_nobody();
            // On a public path, keys are ignored, valid or not.
            envoy.send(method, path, &with_key(&world.live, &[])).is_allowed_as_nobody();
            envoy.send(method, path, &[(KEY_HEADER, "sesame")]).is_allowed_as_nobody();
        }
    }
    assert_eq!(envoy.logged("/health")["reason"], "public");
}

#[test]
fn look_alikes_of_public_paths_need_a_key() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    for (method, path) in [
        ("GET", "/docs/"),
        ("GET", "/docs/../x"),
        ("GET", "/docs/x"),
        ("GET", "/DOCS"),
        ("GET", "/docs;x"),
        ("GET", "/docs%3Fx"),
        ("GET", "/health/../docs/../v1"),
        ("GET", "/x?/docs"),
        ("POST", "/docs"),
        ("OPTIONS", "/"),
    ] {
        envoy.send(method, path, &[]).is_refused(401, MISSING);
        let outcome = envoy.send(method, path, &with_key(&world.live, &[]));
        outcome.is_allowed_as(&world.acme, &world.live);
    }
    envoy.send("GET", "/docs%2f..%2fx", &[]).is_envoys_own(400);
    envoy.send("get", "/docs", &[]).is_envoys_own(400);
    // Envoy normalizes these to a public path, and the upstream gets that path.
    for path in ["//docs", "/%64ocs", "/x/../docs", "/docs/../docs"] {
        let outcome = envoy.send("GET", path, &[]);
        outcome.is_allowed_as_nobody();
        assert_eq!(outcome.passed().line, "GET /docs HTTP/1.1", "{path}");
    }
}

#[test]
fn look_alikes_are_distinguished_even_if_envoy_does_not_normalize_paths() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let plan = Envoy::before(&server)
        .with("normalize_path: true", "normalize_path: false")
        .with("merge_slashes: true", "merge_slashes: false")
        .with(
            "path_with_escaped_slashes_action: REJECT_REQUEST",
            "path_with_escaped_slashes_action: KEEP_UNCHANGED",
        );
    let Some(envoy) = plan.start() else { return };
    for path in
        ["//docs", "/%64ocs", "/x/../docs", "/docs/../x", "/docs/.", "/docs%2f..%2fx", "/docs/../docs"]
    {
        envoy.send("GET", path, &[]).is_refused(401, MISSING);
    }
    envoy.send("GET", "/docs", &[]).is_allowed_as_nobody();
}

/// Sends one gRPC call through Envoy to the upstream's health service.
fn grpc(envoy: &Envoy, metadata: &[(&'static str, &str)]) -> Result<(), Status> {
    let _in_runtime = runtime().enter();
    let channel =
        Channel::from_shared(format!("http://{}", envoy.address)).expect("an address").connect_lazy();
    let mut request = Request::new(HealthCheckRequest::default());
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.parse().expect("ASCII"));
    }
    wait(HealthClient::new(channel).check(request)).map(|_| ())
}

#[test]
fn a_grpc_client_is_authorized_by_its_metadata() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    let key =
        |key: &'static str, of: &Key| -> Result<(), Status> { grpc(&envoy, &[(key, of.text.as_str())]) };
    key(KEY_HEADER, &world.live).expect("a valid key passes");
    let seen = envoy.grpc_seen();
    assert_eq!(seen.len(), 1, "{seen:#?}");
    identified(&seen[0], &world.acme, &world.live);
    let forged = [(KEY_HEADER, world.live.text.as_str()), ("x-llmcore-tenant-id", "forged")];
    grpc(&envoy, &forged).expect("a valid key passes");
    identified(&envoy.grpc_seen()[0], &world.acme, &world.live);
    // The HTTP body becomes the message of the gRPC status.
    for (outcome, code, message) in [
        (grpc(&envoy, &[]), Code::Unauthenticated, MISSING),
        (grpc(&envoy, &[(KEY_HEADER, "sesame")]), Code::Unauthenticated, MALFORMED),
        (key(KEY_HEADER, &world.revoked), Code::Unauthenticated, INVALID),
        (key(KEY_HEADER, &world.of_sleepy), Code::PermissionDenied, INACTIVE),
    ] {
        let status = outcome.expect_err(message);
        assert_eq!((status.code(), status.message()), (code, message));
        assert!(status.metadata().contains_key("x-llmcore-decision-id"), "{status:?}");
    }
    assert!(envoy.grpc_seen().is_empty(), "refused calls do not reach the upstream");
}

#[test]
fn a_websocket_is_authorized_before_it_opens() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    let upgrade = [
        ("upgrade", &b"websocket"[..]),
        ("sec-websocket-version", b"13"),
        ("sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let mut refused = envoy.open("GET", "/v1/socket", &upgrade, "Upgrade");
    let mut status = [0; 12];
    refused.read_exact(&mut status).expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 401");
    let headers = [&upgrade[..], &[(KEY_HEADER, world.live.text.as_bytes())]].concat();
    let mut open = envoy.open("GET", "/v1/socket", &headers, "Upgrade");
    open.read_exact(&mut status).expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 101");
    open.write_all(b"over the socket").expect("sent");
    let mut heard = Vec::new();
    while !heard.ends_with(b"over the socket") {
        let mut byte = [0];
        open.read_exact(&mut byte).expect("the upstream echoes it");
        heard.extend(byte);
    }
}
