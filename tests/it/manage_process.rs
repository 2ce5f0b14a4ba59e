//! Tests the process `tenantgate manage`: its listeners, TLS, trusted users, and its metrics and logs.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use serde_json::Value;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::manage::{Manage, ask, is_problem, owner};
use crate::support::http::{Page, get, samples};
use crate::support::{Backend, Database, PATIENCE, World, eventually};
use crate::tls::{authority, file, issued_for};

/// Returns a world whose manager listens on a socket and trusts the current user with a role.
fn trusting_us(role: &str) -> (World, Manage, String) {
    let world = World::on(Backend::Sqlite).expect("a world");
    let path = world.db.dir().join("manage.sock").display().to_string();
    let us = rustix::process::getuid().as_raw();
    let manage = Manage::with(
        &world.db,
        &format!("unix:{path}"),
        &["--trust-uid", &format!("{us}={role}"), "--listen", "127.0.0.1:0"],
    );
    (world, manage, path)
}

#[test]
fn a_trusted_user_of_this_machine_needs_no_key_on_a_socket() {
    let (world, manage, path) = trusting_us("viewer");
    let knock =
        |path: &str, headers: &[&str]| ask(UnixStream::connect(path).unwrap(), "GET", "/v1/whoami", headers);
    let page = knock(&path, &[]);
    assert_eq!(page.status, 200, "{}", page.body);
    let who: Value = serde_json::from_str(&page.body).expect("JSON");
    assert_eq!(
        (&who["id"], &who["key_prefix"], &who["expires_at"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let us = rustix::process::getuid().as_raw();
    assert_eq!(who["name"], format!("uid {us}"));
    let permissions: Vec<_> = who["permissions"].as_array().expect("a list").iter().collect();
    assert!(permissions.iter().all(|name| name.as_str().is_some_and(|name| name.ends_with(":read"))));
    // A presented key is checked, even if the user is trusted.
    is_problem(&knock(&path, &["authorization: Bearer llma_wrong_key"]), 401, "unauthorized");
    let key = owner(&world);
    let page = knock(&path, &[&format!("authorization: Bearer {key}")]);
    assert!(page.body.contains("owner of all"), "{}", page.body);
    let forbidden = ask(UnixStream::connect(&path).unwrap(), "GET", "/v1/admin_keys", &[]);
    is_problem(&forbidden, 403, "missing_permission");
    // Over TCP, the user of a client is unknown.
    is_problem(&manage.ask("GET", "/v1/whoami", &[]), 401, "unauthorized");
}

#[test]
fn only_the_users_named_are_trusted() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let path = world.db.dir().join("manage.sock").display().to_string();
    let other = rustix::process::getuid().as_raw() + 1;
    let trust = format!("{other}=owner");
    let _manage = Manage::with(&world.db, &format!("unix:{path}"), &["--trust-uid", &trust]);
    is_problem(&ask(UnixStream::connect(&path).unwrap(), "GET", "/v1/whoami", &[]), 401, "unauthorized");
}

/// Management over TLS, and its clients.
pub(crate) struct Encrypted {
    pub(crate) manage: Manage,
    pub(crate) address: String,
    /// The file of the authority.
    pub(crate) ca: String,
    config: Arc<ClientConfig>,
}

impl Encrypted {
    /// Listens on all addresses of this machine.
    pub(crate) fn on(database: &Database) -> Self {
        let ours = authority("ours");
        let (cert, key) = issued_for(&["localhost"], &ours);
        let write = |name: &str, content: &str| file(database.dir(), name, content);
        let (cert, key, ca) =
            (write("cert.pem", &cert), write("key.pem", &key), write("ca.pem", &ours.pem()));
        let manage = Manage::with(database, "0.0.0.0:0", &["--tls-cert", &cert, "--tls-key", &key]);
        let port = manage.address.rsplit_once(':').expect("a port").1;
        let address = format!("127.0.0.1:{port}");
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(ours.pem().as_bytes()).expect("a certificate");
        roots.add(root).expect("a root");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { manage, address, ca, config: Arc::new(config) }
    }

    pub(crate) fn get(&self, path: &str, key: &str) -> Page {
        let name = "localhost".try_into().expect("a name");
        let client = ClientConnection::new(Arc::clone(&self.config), name).expect("a client");
        let stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let bearer = format!("authorization: Bearer {key}");
        ask(StreamOwned::new(client, stream), "GET", path, &[&bearer])
    }
}

#[test]
fn other_machines_need_tls() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let management_key = owner(&world);
    let encrypted = Encrypted::on(&world.db);
    let page = encrypted.get("/v1/whoami", &management_key);
    assert_eq!(page.status, 200, "{}", page.body);
    let Encrypted { manage, address, .. } = encrypted;
    // A client without TLS gets no response, and the operator sees why.
    let mut plain = TcpStream::connect(&address).expect("it listens");
    plain.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    plain.write_all(b"GET /v1/whoami HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"));
    eventually("the failure is counted", PATIENCE, || {
        let failed = metric(&manage, "tenantgate_manage_tls_failures_total");
        if failed >= 1.0 { Ok(()) } else { Err(failed) }
    });
    let line = manage.stderr.wait_for("a line", PATIENCE, |lines| {
        lines.iter().find(|line| line.contains("a TLS handshake failed")).cloned()
    });
    assert!(line.contains("plaintext_on_tls"), "{line}");
}

pub(crate) fn metric(manage: &Manage, name: &str) -> f64 {
    let page = get(&manage.ops, "/metrics").expect("metrics");
    samples(&page.body).get(name).copied().unwrap_or(0.0)
}

#[test]
fn operators_see_health_and_requests_by_route_and_status() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let key = owner(&world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    assert_eq!(get(&manage.ops, "/livez").expect("an answer").body, "ok\n");
    let ready = get(&manage.ops, "/readyz").expect("an answer");
    assert_eq!((ready.status, ready.body.as_str()), (200, r#"{"status":"ready","database":"connected"}"#));
    manage.get(&format!("/v1/tenants/{}", world.acme.id), &key);
    manage.get(&format!("/v1/tenants/{}", world.sleepy.id), &key);
    manage.get("/v1/nothing", &key);
    manage.ask("BREW", "/v1/whoami", &[]);
    let count = |labels: &str| metric(&manage, &format!("tenantgate_manage_requests_total{{{labels}}}"));
    for (labels, n) in [
        (r#"route="/v1/tenants/{reference}",method="GET",status="200""#, 2.0),
        (r#"route="other",method="GET",status="404""#, 1.0),
        (r#"route="/v1/whoami",method="other",status="401""#, 1.0),
    ] {
        assert!(
            (count(labels) - n).abs() < f64::EPSILON,
            "{labels}: {}",
            get(&manage.ops, "/metrics").unwrap().body
        );
    }
    assert!((metric(&manage, "tenantgate_manage_request_duration_seconds_count") - 4.0).abs() < f64::EPSILON);
    // Tenants and keys never become labels.
    let page = get(&manage.ops, "/metrics").expect("metrics").body;
    assert!(!page.contains(&world.acme.id) && !page.contains("llma_"));
    // The listener for clients does not serve these paths.
    for path in ["/metrics", "/readyz"] {
        is_problem(&manage.get(path, &key), 404, "not_found");
    }
}

#[test]
fn without_its_database_it_is_not_ready() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let file = world.db.url().strip_prefix("sqlite:").expect("a file").to_owned();
    std::fs::rename(file.trim_start_matches("//"), world.db.dir().join("elsewhere")).expect("moved");
    let page = get(&manage.ops, "/readyz").expect("an answer");
    assert_eq!(
        (page.status, page.body.as_str()),
        (503, r#"{"status":"not_ready","database":"unavailable"}"#)
    );
    assert_eq!(get(&manage.ops, "/livez").expect("an answer").status, 200);
}

#[test]
fn mistakes_in_options_are_reported_together() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let said = world
        .db
        .cli(&[
            "manage",
            "--check-config",
            "--listen",
            "0.0.0.0:1",
            "--trust-uid",
            "1000=king",
            "--trust-uid",
            "me=owner",
            "--unix-mode",
            "rw",
            "--ops-listen",
            "9466",
            "--pepper-file",
            "/nowhere",
        ])
        .usage();
    for part in [
        "--tls-cert",
        "\"king\" is not a role",
        "invalid number \"me\"",
        "needs a Unix socket",
        "--unix-mode",
        "--ops-listen",
        "/nowhere",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = world.db.cli(&["manage", "--check-config", "--listen", "127.0.0.1:9466"]).usage();
    assert!(said.contains("is an address of --listen"), "{said}");
    for one in [["--tls-cert", "x"], ["--tls-key", "x"]] {
        let said = world.db.cli(&[&["manage", "--check-config"], &one[..]].concat()).usage();
        assert!(said.contains("needs --tls-"), "{said}");
    }
}

#[test]
fn each_request_is_logged() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let key = owner(&world);
    let manage = Manage::with(&world.db, "127.0.0.1:0", &["--log-format", "json"]);
    let page = manage.get(&format!("/v1/tenants/{}?page_size=7", world.acme.id), &key);
    let id = page.headers["x-request-id"].clone();
    let line = manage.stderr.wait_for("its line", PATIENCE, |lines| {
        let line = lines.iter().find(|line| line.contains(&id))?;
        serde_json::from_str::<Value>(line).ok()
    });
    for (name, value) in [
        ("method", "GET".into()),
        ("route", "/v1/tenants/{reference}".into()),
        ("status", Value::from(page.status)),
        ("client.address", "127.0.0.1".into()),
        ("admin_key", "owner of all".into()),
    ] {
        assert_eq!(line["fields"].get(name).or(line.get(name)), Some(&value), "{line}");
    }
    let text = manage.stderr.text();
    assert!(!text.contains("page_size") && !text.contains(&key) && !text.contains(&world.acme.id), "{text}");
}
