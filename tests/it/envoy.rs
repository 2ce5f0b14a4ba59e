//! Tests what clients and upstreams get with a real Envoy between them.
//!
//! Envoy runs `envoy/envoy.yaml`; a test that needs changes lists them. Other files test the answers of tenantgate over
//! gRPC; here the tests check what Envoy does with them.

use std::io::{Read as _, Write as _};
use std::process::Command;

use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::answer::IDENTITY;
use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, FILE, MTLS, Outcome, Seen, UDS, binary};
use crate::support::link::Link;
use crate::support::world::{Key, SLOW, Tenant};
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
