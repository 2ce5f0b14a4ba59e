//! Connections and calls that fail without a decision: each is counted, logged with what to do, and named by `check`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use prost::Message as _;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::CheckRequest;
use tonic::transport::Identity;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_reflection::pb::v1alpha::ServerReflectionRequest;
use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;

use crate::support::cli::run_in;
use crate::support::envoy::Envoy;
use crate::support::{Ask, Backend, Client, PATIENCE, Server, World, eventually, left_out, wait};
use crate::tls::{authority, file, issued_for, trusting};

/// Waits until a failure is counted and logged with the peer and its reason.
#[track_caller]
pub(crate) fn is_told(server: &Server, reason: &str, advice: &str) {
    eventually(reason, PATIENCE, || {
        let counted = server.metric(&["tenantgate_connection_failures_total", &format!("\"{reason}\"")]);
        if counted >= 1.0 { Ok(()) } else { Err(counted) }
    });
    let line = server.stderr.wait_for(reason, PATIENCE, |lines| {
        lines.iter().find(|line| line.contains(&format!("reason=\"{reason}\""))).cloned()
    });
    assert!(line.contains("WARN") && line.contains("peer=127.0.0.1:") && line.contains(advice), "{line}");
}

/// Sends bytes and reads until the server closes.
pub(crate) fn send(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(bytes).expect("sent");
    let _ = stream.read_to_end(&mut Vec::new());
}

/// The beginning of TLS 1.3: a record of a handshake (RFC 8446 §5.1).
const TLS: &[u8] = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00";

#[test]
fn other_protocols_on_a_plain_listener_are_counted_and_logged() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--handshake-timeout", "300ms"]).start();
    let address = &server.grpc[0];
    send(address, b"GET / HTTP/1.1\r\nhost: tenantgate\r\n\r\n");
    is_told(&server, "http1", "http2_protocol_options");
    send(address, TLS);
    is_told(&server, "tls_on_plaintext", "--tls-cert");
    send(address, b"SSH-2.0-OpenSSH_9.6\r\n");
    is_told(&server, "not_http2", "does not speak HTTP/2");
    let mut leaves = TcpStream::connect(address).expect("it listens");
    leaves.write_all(b"PRI * HTTP/2").expect("sent");
    drop(leaves);
    is_told(&server, "preface_incomplete", "in the middle of the HTTP/2 preface");
    assert!(!server.stderr.text().contains("violates HTTP/2"));
    let mut half = TcpStream::connect(address).expect("it listens");
    half.write_all(b"PRI * HT").expect("sent");
    is_told(&server, "handshake_timeout", "--handshake-timeout");
    drop(half);
    // A probe of a load balancer connects and closes; it has not failed.
    let failed = || server.metric(&["tenantgate_connections_total", "turned_away"]);
    let before = failed();
    drop(TcpStream::connect(address).expect("it listens"));
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    assert!((failed() - before).abs() < f64::EPSILON);
}

#[test]
fn every_failed_tls_handshake_is_explained_on_both_sides() {
    let world = World::somewhere();
    let (ours, clients, others) = (authority("ours"), authority("clients"), authority("others"));
    let write = |name: &str, content: &str| file(world.db.dir(), name, content);
    let pair = |name: &str, (cert, key): &(String, String)| {
        (write(&format!("{name}.pem"), cert), write(&format!("{name}-key.pem"), key))
    };
    let (cert, key) = pair("server", &issued_for(&["localhost"], &ours));
    let (ca, client_ca, other_ca) = (
        write("ca.pem", &ours.pem()),
        write("client-ca.pem", &clients.pem()),
        write("other-ca.pem", &others.pem()),
    );
    let args = ["--tls-cert", &cert, "--tls-key", &key, "--client-ca", &client_ca, "--client-san", "envoy"];
    let server = Server::on(&world.db).args(&args).start();
    let target = format!("https://localhost:{}", server.grpc[0].rsplit_once(':').expect("a port").1);
    let check = |args: &[&str]| run_in(world.db.dir(), &[], &[&["check", "--target"], args].concat());
    let (good, stranger, unnamed) = (
        pair("good", &issued_for(&["envoy"], &clients)),
        pair("stranger", &issued_for(&["envoy"], &others)),
        pair("unnamed", &issued_for(&["somebody"], &clients)),
    );
    let with = |(cert, key): &(String, String)| {
        ["--ca", &ca, "--client-cert", cert, "--client-key", key].map(str::to_owned).to_vec()
    };
    for (shown, reason, advice, said) in [
        (
            vec!["--ca".into(), ca.clone()],
            "client_certificate_missing",
            "--client-ca",
            "needs a client certificate",
        ),
        (with(&stranger), "client_certificate_unknown_ca", "--client-ca", "does not accept the certificate"),
        (with(&unnamed), "client_san_not_allowed", "--client-san", "--client-san"),
        (
            vec!["--ca".into(), other_ca],
            "certificate_refused",
            "does not trust",
            "not trusted: give its authority",
        ),
    ] {
        let shown: Vec<_> = [&target].into_iter().chain(&shown).map(String::as_str).collect();
        let printed = check(&shown).unavailable();
        assert!(printed.contains(said), "{shown:?}: {printed}");
        is_told(&server, reason, advice);
    }
    let printed = check(&[&server.grpc[0]]).unavailable();
    assert!(printed.contains("expects TLS"), "{printed}");
    is_told(&server, "plaintext_on_tls", "transport_socket");
    // Handshakes that the library rejects itself, before certificates.
    old_tls(&server);
    is_told(&server, "tls_version", "TLS 1.2");
    // A client that gives up at once sends an alert, which is TLS (`handshake_failure`, RFC 8446 §6).
    send(&server.grpc[0], &[0x15, 3, 3, 0, 2, 2, 40]);
    is_told(&server, "tls_error", "HandshakeFailure");
    let identity = Identity::from_pem(std::fs::read(&good.0).unwrap(), std::fs::read(&good.1).unwrap());
    let client = Client::over_tls(&server.grpc[0], trusting(&ours).identity(identity));
    assert_eq!(wait(client.ask(Ask::with_key(&world.live.text))).unwrap().row(), "200 ok");
}

/// A `ClientHello` of TLS 1.0 with one cipher (RFC 2246 §7.4.1.2).
fn old_tls(server: &Server) {
    let hello = [&[3, 1][..], &[7; 32], &[0, 0, 2, 0, 0x2f, 1, 0]].concat();
    let len = |bytes: &[u8]| u16::try_from(bytes.len()).expect("short").to_be_bytes();
    let handshake = [&[1, 0][..], &len(&hello), &hello].concat();
    send(&server.grpc[0], &[&[0x16, 3, 1][..], &len(&handshake), &handshake].concat());
}

#[test]
fn check_explains_why_an_address_is_not_a_listener() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let said = |target: &str| run_in(world.db.dir(), &[], &["check", "--target", target]).unavailable();
    let http = |target: &str, status: u16| {
        let told = format!("{target} answers HTTP {status}, but not gRPC: that is not its gRPC listener");
        assert!(said(target).trim_end().ends_with(&told), "{}", said(target));
    };
    http(&format!("http://{}", server.ops), 404);
    let management = crate::manage::Manage::on(&world.db, "127.0.0.1:0");
    http(&format!("http://{}", management.address), 404);
    // A server of HTTP/1.1 that answers the preface of HTTP/2, too.
    let http1 = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = http1.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for stream in http1.incoming() {
            let mut stream = stream.expect("a connection");
            let mut head = [0; 512];
            let read = stream.read(&mut head).unwrap_or_default();
            let status = if head[..read].starts_with(b"POST /envoy.service.auth") { 401 } else { 400 };
            let _ = write!(stream, "HTTP/1.1 {status} No\r\nconnection: close\r\n\r\n");
        }
    });
    http(&format!("http://{address}"), 401);
    let tls = format!("https://localhost:{}", server.grpc[0].rsplit_once(':').expect("a port").1);
    assert!(said(&tls).contains("does not speak TLS"), "{}", said(&tls));
    if let Some(envoy) = Envoy::before(&server).start() {
        // The port of its clients: it has the Check checked, which has no key.
        let said = said(&envoy.address);
        assert!(
            said.contains("Missing API key") && said.contains("not tenantgate's gRPC listener"),
            "{said}"
        );
    }
    let nobody = format!("unix:{}/nobody.sock", world.db.dir().display());
    assert!(said(&nobody).contains("no such socket"), "{}", said(&nobody));
    let free = crate::support::link::free_port();
    assert!(said(&format!("127.0.0.1:{free}")).contains("nothing listens there"));
}

/// Sends one message with this compression flag. Returns the headers of the response, which has no body.
fn flagged(address: &str, path: &str, flag: u8) -> http::HeaderMap {
    let message = Ask::get("/v1").bytes();
    let len = u32::try_from(message.len()).expect("short").to_be_bytes();
    let frame = [&[flag][..], &len, &message].concat();
    wait(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let request = http::Request::post(format!("http://tenantgate{path}"));
        let request = request.header("content-type", "application/grpc").body(()).expect("a request");
        let (response, mut body) = client.send_request(request, false).expect("sent");
        body.send_data(frame.into(), true).expect("sent");
        let headers = response.await.expect("a response").headers().clone();
        connection.abort();
        headers
    })
}

#[test]
fn a_call_that_fails_is_counted_and_logged() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let check = "/envoy.service.auth.v3.Authorization/Check";
    let compressed = flagged(&server.grpc[0], check, 1);
    let of = |name: &str| compressed.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(of("grpc-status").as_deref(), Some("12"), "UNIMPLEMENTED");
    assert_eq!(of("grpc-accept-encoding").as_deref(), Some("identity"), "and what is supported");
    assert!(of("grpc-message").unwrap().contains("compressed"));
    flagged(&server.grpc[0], check, 2);
    let unknown = flagged(&server.grpc[0], "/envoy.service.auth.v2.Authorization/Check", 0);
    assert_eq!(unknown.get("grpc-status").map(http::HeaderValue::as_bytes), Some(&b"12"[..]));
    assert!(server.check_bytes(vec![0xff]).is_err());
    for reason in ["compressed", "invalid_framing", "invalid_message", "unknown_method"] {
        let counted = server.metric(&["tenantgate_call_failures_total", &format!("\"{reason}\"")]);
        assert!((counted - 1.0).abs() < f64::EPSILON, "{reason}: {counted}");
        server.stderr.wait_for(reason, PATIENCE, |lines| {
            let said = format!("reason=\"{reason}\"");
            lines.iter().any(|line| line.contains("call failed: ") && line.contains(&said)).then_some(())
        });
    }
}

/// `HealthListResponse` (grpc.health.v1): entries of a map from services to statuses.
#[derive(Clone, PartialEq, prost::Message)]
struct Listed {
    #[prost(map = "string, message", tag = "1")]
    statuses: std::collections::HashMap<String, tonic_health::pb::HealthCheckResponse>,
}

#[test]
fn health_lists_its_services_and_reflection_speaks_its_older_version_too() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let bytes = server.client().call("/grpc.health.v1.Health/List", Vec::new()).expect("it is served");
    let listed = Listed::decode(bytes.as_slice()).expect("a HealthListResponse").statuses;
    let mut services: Vec<_> = listed.iter().map(|(name, said)| (name.as_str(), said.status())).collect();
    services.sort_unstable_by_key(|(name, _)| *name);
    let serving = ServingStatus::Serving;
    assert_eq!(services, [("", serving), ("envoy.service.auth.v3.Authorization", serving)]);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let asked = tokio_stream::once(request);
    wait(async {
        let mut client = ServerReflectionClient::new(server.client().channel());
        let mut said = client.server_reflection_info(asked).await.expect("v1alpha").into_inner();
        assert!(said.message().await.expect("no error").is_some());
    });
}

#[test]
fn addresses_that_cannot_be_listened_on_are_refused_before_anything_starts() {
    let world = World::somewhere();
    let long = format!("unix:/{}", "x".repeat(120));
    let at = |name: &str| format!("unix:{}/{name}", world.db.dir().display());
    std::fs::write(world.db.dir().join("file"), "precious").expect("written");
    std::os::unix::fs::symlink(world.db.dir(), world.db.dir().join("link")).expect("linked");
    for (args, advice) in [
        (&["--listen", "http://127.0.0.1:1"][..], "without a scheme"),
        (&["--listen", "*:1"], "0.0.0.0"),
        (&["--listen", "::1:50051"], "[::1]"),
        (&["--listen", &long], "107 bytes"),
        (&["--listen", "127.0.0.1:1", "--listen", "127.0.0.1:1"], "given twice"),
        (&["--listen", "127.0.0.1:9464"], "used by --listen"),
        (&["--listen", "0.0.0.0:1", "--ops-listen", "127.0.0.1:1"], "used by --listen"),
        (&["--listen", "0.0.0.0:9001", "--ops-listen", "127.0.0.1:09001"], "used by --listen"),
        (&["--ops-listen", "*:1"], "0.0.0.0"),
        (&["--listen", &at("none/a.sock")], "none does not exist: create it"),
        (&["--listen", &at("file/a.sock")], "file is not a directory"),
        (&["--listen", &at("file/a/b.sock")], "a part of"),
        (&["--listen", &at("file")], "not a socket is there"),
        (&["--publish", &at("none/a.sock")], "--publish"),
        (&["--listen", &at("a.sock"), "--listen", &at("./a.sock")], "given twice"),
        (&["--listen", &at("a.sock"), "--listen", &at("link/a.sock")], "given twice"),
        (&["--listen", &at("a.sock"), "--publish", &at("link/a.sock")], "choose another path"),
    ] {
        let said = world.db.cli(&[&["serve", "--check-config"], args].concat()).usage();
        assert!(said.contains(advice), "{args:?}: {said}");
    }
}

#[test]
fn options_are_checked_beside_a_running_server() {
    let world = World::somewhere();
    let socket = format!("unix:{}/a.sock", world.db.dir().display());
    let server = Server::on(&world.db).args(&["--listen", &socket]).start();
    let args = ["serve", "--check-config", "--listen", &socket, "--ops-listen", &server.ops];
    world.db.cli(&args).ok();
    assert_eq!(server.row(Ask::get("/v1")), "401 missing", "its socket is still there");
}

static NO_OPENSSL: Once = Once::new();

/// Creates a private key with openssl. Returns its file, or `None` without openssl.
fn openssl(directory: &Path, name: &str, args: &[&str]) -> Option<String> {
    let path = directory.join(name).display().to_string();
    let run = Command::new("openssl").args(args).args(["-out", &path]).output();
    match run {
        Ok(run) if run.status.success() => Some(path),
        other => {
            left_out(&NO_OPENSSL, "keys of TLS that are not supported", &format!("no openssl: {other:?}"));
            None
        }
    }
}

#[test]
fn private_keys_that_cannot_be_used_are_refused_with_the_reason() {
    let world = World::somewhere();
    let (cert, _) = issued_for(&["localhost"], &authority("ours"));
    let cert = file(world.db.dir(), "cert.pem", &cert);
    let keys: [(&str, &[&str], &str); 4] = [
        ("p521.pem", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"], "curve P-521"),
        ("rsa1024.pem", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"], "2048 bits"),
        (
            "encrypted.pem",
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-aes256",
                "-pass",
                "pass:x",
            ],
            "is encrypted",
        ),
        (
            "other.pem",
            &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            "does not belong to the certificate",
        ),
    ];
    for (name, args, why) in keys {
        let Some(key) = openssl(world.db.dir(), name, args) else { return };
        let said = world.db.cli(&["serve", "--check-config", "--tls-cert", &cert, "--tls-key", &key]).usage();
        assert!(said.contains(why) && said.contains(name), "{name}: {said}");
    }
}

/// The rows of the shadow report, by network.
fn networks(world: &World, server: &mut Server) -> Vec<String> {
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    let report = world.db.json(&["report", "shadow"]);
    report.as_array().expect("rows").iter().map(|row| row["network"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_client_address_is_taken_from_the_configured_source() {
    let ask = || {
        Ask::get("/v1")
            .from("10.0.0.1")
            .raw("x-forwarded-for", "6.6.6.6, 192.0.2.7")
            .raw("x-real-ip", "198.51.100.9")
    };
    for (source, network) in [
        ("source", "10.0.0.0/24"),
        ("xff:1", "192.0.2.0/24"),
        ("header:x-real-ip", "198.51.100.0/24"),
        ("metadata:x-client", "203.0.113.0/24"),
        ("header:x-nothing", "unknown"),
    ] {
        let Some(world) = World::on(Backend::Sqlite) else { return };
        let args = ["--mode", "shadow", "--client-address", source];
        let mut server = Server::on(&world.db).args(&args).start();
        let metadata = [("x-client", "203.0.113.77:4711")];
        let answer = server.client().check_with(&metadata, CheckRequest::from(ask()));
        assert_eq!(answer.row(), "200 shadow");
        let line = server.stderr.wait_for("a line", PATIENCE, |lines| {
            lines.iter().find(|line| line.contains("would be refused")).cloned()
        });
        let address = network.trim_end_matches("0/24");
        assert!(network == "unknown" || line.contains(&format!("client.address={address}")), "{line}");
        assert_eq!(networks(&world, &mut server), [network], "{source}");
    }
}

#[test]
fn the_key_can_be_kept_for_a_second_filter() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--keep-key-header").start();
    assert!(server.stderr.text().contains("--keep-key-header"), "the log says what that means");
    let Some(envoy) = Envoy::before(&server).start() else { return };
    let headers = [("x-llmcore-api-key", world.live.text.as_str())];
    let outcome = envoy.send("GET", "/v1", &headers);
    assert_eq!(outcome.passed().values("x-llmcore-api-key"), [world.live.text.as_str()]);
}
