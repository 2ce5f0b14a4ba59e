//! Tests HTTP/2, TLS, internal redirects, drain and hot restart of Envoy.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};

use super::{MODULES, ask, by_module, fields, logging, path, publishing, seen, with_key, with_module};
use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, Plan, binary};
use crate::support::{PATIENCE, World, eventually, wait};
use crate::tls::{authority, file, issued_for};

/// Sends a request over HTTP/2. Returns the status, headers and body.
async fn call<S>(stream: S, path: &str, headers: &[(&str, &str)]) -> (u16, Vec<(String, String)>, Bytes)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (send, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let driver = tokio::spawn(connection);
    let mut request = Request::get(format!("https://api.example.com{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut send = send.ready().await.expect("a stream");
    let (response, _) = send.send_request(request.body(()).expect("a request"), true).expect("sent");
    let (head, mut body) = response.await.expect("an answer").into_parts();
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        bytes.extend_from_slice(&part.expect("data"));
    }
    let mut headers: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .map(|(name, value)| {
            let differs = name == "date" || name == "x-llmcore-decision-id";
            (name, if differs { String::new() } else { value })
        })
        .collect();
    headers.sort();
    driver.abort();
    (head.status.as_u16(), headers, bytes.into())
}

#[test]
fn clients_of_http2_and_tls_see_the_same() {
    let world = World::somewhere();
    let (server, socket, directory) = publishing(&world, &[]);
    let authority = authority("ca");
    let (cert, key) = issued_for(&["api.example.com"], &authority);
    let (cert, key) = (file(directory.path(), "cert.pem", &cert), file(directory.path(), "key.pem", &key));
    let with_tls = |plan: Plan| {
        let begin = "      filters:\n      - name: envoy.filters.network.http_connection_manager\n";
        let socket = format!(
            "      transport_socket:\n        name: envoy.transport_sockets.tls\n        typed_config:\n          \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n          common_tls_context:\n            alpn_protocols: [h2, http/1.1]\n            tls_certificates:\n            - {{certificate_chain: {{filename: {cert}}}, private_key: {{filename: {key}}}}}\n"
        );
        plan.with(begin, &format!("{socket}{begin}"))
    };
    let plain: fn(Plan) -> Plan = |plan| plan;
    for (tls, change) in [(false, &plain as &dyn Fn(Plan) -> Plan), (true, &with_tls)] {
        let Some(one) = change(logging(Envoy::before(&server))).start() else { return };
        let Some(other) = change(with_module(&server, &socket)).workers(2).start() else { return };
        let mut roots = RootCertStore::empty();
        let pem = authority.pem();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")).expect("added");
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let config = Arc::new(config);
        let send = |envoy: &Envoy, headers: &[(&str, &str)]| {
            let path = path();
            let answer = wait(async {
                let stream = TcpStream::connect(&envoy.address).await.expect("envoy listens");
                if tls {
                    let name = ServerName::try_from("api.example.com").expect("a name");
                    let stream = TlsConnector::from(Arc::clone(&config)).connect(name, stream).await;
                    call(stream.expect("TLS"), &path, headers).await
                } else {
                    call(stream, &path, headers).await
                }
            });
            (answer, envoy.logged(&path))
        };
        for (key, reason) in [
            (Some(&world.live), "ok"),
            (Some(&world.revoked), "revoked"),
            (Some(&world.of_sleepy), "tenant_inactive"),
            (None, "missing"),
        ] {
            let headers: Vec<_> = key.iter().map(|key| (KEY_HEADER, key.text.as_str())).collect();
            let (said, line) = send(&one, &headers);
            let told = eventually("the module decides", PATIENCE, || {
                let (other, told) = send(&other, &headers);
                if told["decision"]["via"] == "module" { Ok((other, told)) } else { Err(told) }
            });
            assert_eq!(told.0, said, "{reason}, TLS: {tls}");
            assert_eq!(fields(&told.1["decision"]), fields(&line["decision"]), "{reason}, TLS: {tls}");
            assert_eq!(
                (&told.1["decision"]["reason"], &told.1["protocol"]),
                (&reason.into(), &"HTTP/2".into())
            );
        }
        // Two lines of the key header, which HTTP/2 sends as two fields.
        let twice = [(KEY_HEADER, world.live.text.as_str()); 2];
        let ((said, _), (told, line)) = (send(&one, &twice), send(&other, &twice));
        assert_eq!((told, &line["decision"]["reason"]), (said, &"malformed".into()));
    }
}

/// Starts an upstream that redirects every request to a path below `/v1`.
fn redirecting() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut bytes = Vec::new();
            let mut buffer = [0; 4_096];
            while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(n @ 1..) => bytes.extend_from_slice(&buffer[..n]),
                    _ => break,
                }
            }
            let line = String::from_utf8_lossy(&bytes);
            let number = line.split([' ', '/']).nth(3).unwrap_or_default();
            let _ = write!(
                stream,
                "HTTP/1.1 302 Found\r\nlocation: http://api.example.com/v1/{number}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        }
    });
    port
}

#[test]
fn a_mark_does_not_survive_a_redirect_inside_envoy() {
    let world = World::somewhere();
    let upstream = redirecting();
    let redirects = |plan: Plan, off: bool| {
        let first = "              - match: {prefix: /, grpc: {}}\n";
        let off = if off {
            "              - match: {prefix: /v1}\n                route: {cluster: api}\n                typed_per_filter_config:\n                  tenantgate: {\"@type\": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}\n"
        } else {
            ""
        };
        let route = "              - match: {prefix: /away}\n                route:\n                  cluster: away\n                  internal_redirect_policy: {max_internal_redirects: 2, redirect_response_codes: [302]}\n";
        let clusters = "  clusters:\n";
        let away = format!(
            "{clusters}  - name: away\n    type: STATIC\n    connect_timeout: 1s\n    load_assignment:\n      cluster_name: away\n      endpoints:\n      - lb_endpoints:\n        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}\n"
        );
        plan.with(first, &format!("{route}{off}{first}")).with(clusters, &away)
    };
    for (keeps, off) in [(false, false), (false, true), (true, false), (true, true)] {
        let args: &[&str] = if keeps { &["--keep-key-header"] } else { &[] };
        let (server, socket, _directory) = publishing(&world, args);
        let Some(plain) = redirects(logging(Envoy::before(&server)), false).start() else { return };
        let Some(envoy) = redirects(with_module(&server, &socket), off).start() else { return };
        let key = [(KEY_HEADER, world.live.text.as_bytes())];
        if off {
            // The routes below /v1 are without the module.
            eventually("the module decides", PATIENCE, || {
                let at = path().replace("/v1", "/away");
                let outcome = envoy.send_bytes("GET", &at, &key);
                let asked = envoy.stat("dynamicmodulescustom.tenantgate_allowed");
                if asked >= 1 { Ok(()) } else { Err((outcome, asked)) }
            });
        } else {
            with_key(&envoy, &world.live.text);
        }
        let away = || path().replace("/v1", "/away");
        let (one, other) = (away(), away());
        let checks = server.metric(&["tenantgate_decisions_total", "reason=\"missing\""]);
        let (one, other) = (plain.send_bytes("GET", &one, &key), envoy.send_bytes("GET", &other, &key));
        // The Check removes the key, so the redirected request has none.
        let expected = if keeps { 200 } else { 401 };
        assert_eq!((one.page.status, other.page.status), (expected, expected), "{keeps} {off}: {other:?}");
        if !keeps {
            assert_eq!(seen(&other), seen(&one));
            assert!(other.seen.is_none(), "{keeps} {off}");
            eventually("both were refused for the missing key", PATIENCE, || {
                let now = server.metric(&["tenantgate_decisions_total", "reason=\"missing\""]);
                if now >= checks + 2.0 { Ok(()) } else { Err((checks, now)) }
            });
        }
    }
}

#[test]
fn while_envoy_drains_the_answers_stay_the_same() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    let mut kept = envoy.open("GET", &path(), &[(KEY_HEADER, world.live.text.as_bytes())], "keep-alive");
    let mut line = [0; 12];
    kept.read_exact(&mut line).expect("an answer");
    let mut admin = std::net::TcpStream::connect(envoy.admin()).expect("the admin page");
    write!(
        admin,
        "POST /drain_listeners?graceful HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
    .expect("sent");
    let mut said = String::new();
    admin.read_to_string(&mut said).expect("an answer");
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    for (key, status) in [(&world.live, 200), (&world.revoked, 401)] {
        let (outcome, said) = by_module(&envoy, &[(KEY_HEADER, key.text.as_bytes())]);
        assert_eq!((outcome.page.status, outcome.seen.is_some()), (status, status == 200), "{said}");
    }
}

/// A process that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_hot_restart_takes_the_module_along() {
    let Some(program) = binary() else { return };
    let world = World::somewhere();
    let (server, socket, directory) = publishing(&world, &[]);
    let Some(first) = with_module(&server, &socket).start() else { return };
    with_key(&first, &world.live.text);
    let config = directory.path().join("envoy.yaml");
    let port = crate::support::link::free_port();
    let text = with_module(&server, &socket).text().replace("port_value: 9901}", "port_value: 0}");
    std::fs::write(&config, text.replace("port_value: 10000}", &format!("port_value: {port}}}")))
        .expect("written");
    // Envoys with the same id share memory, so the id contains that of this process.
    let id = (std::process::id() % 30_000).to_string();
    let start = |epoch: &str, admin: &Path| {
        let child = Command::new(&program)
            .env("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", &*MODULES)
            .args([
                "--base-id",
                &id,
                "--restart-epoch",
                epoch,
                "--concurrency",
                "1",
                "--log-level",
                "warning",
            ])
            .args(["--drain-time-s", "1", "--parent-shutdown-time-s", "2", "-c"])
            .arg(&config)
            .arg("--admin-address-path")
            .arg(admin)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Ends(child.expect("envoy starts"))
    };
    let allowed = |admin: &Path| {
        let address = std::fs::read_to_string(admin).ok()?;
        let page = crate::support::http::get(address.trim(), "/stats?filter=tenantgate_allowed").ok()?;
        page.body.rsplit(':').next()?.trim().parse::<u64>().ok()
    };
    let send = || -> Option<u16> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let key = &world.live.text;
        write!(stream, "GET /docs/x HTTP/1.1\r\nhost: a\r\n{KEY_HEADER}: {key}\r\nconnection: close\r\n\r\n")
            .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    };
    let mut before = None;
    for epoch in ["0", "1"] {
        let admin = directory.path().join(format!("admin-{epoch}"));
        let next = start(epoch, &admin);
        eventually(&format!("the module of epoch {epoch} decides"), PATIENCE, || {
            let status = send();
            assert!(status.is_none_or(|status| status != 401 && status != 403), "{status:?}");
            match allowed(&admin) {
                Some(1..) => Ok(()),
                count => Err((status, count)),
            }
        });
        if let Some(mut old) = before.replace(next) {
            eventually("the old process ends", PATIENCE, || match old.0.try_wait() {
                Ok(Some(_)) => Ok(()),
                other => Err(other.is_ok()),
            });
        }
    }
    let _: Value = ask(&first, &path(), &[]).1;
}
