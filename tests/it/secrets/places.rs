//! Searches all places that must not contain a secret.
//!
//! A secret may occur in printed bytes, so the search covers text, hexadecimal, base64 and lists of numbers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::CheckRequest;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use tonic::transport::Endpoint;

use super::{around, present_everything};
use crate::support::cli::run_in;
use crate::support::{Ask, Backend, PATIENCE, Server, World, eventually, on_every_store, wait};

on_every_store![a_database_and_a_snapshot_file_contain_no_secret];

/// Returns a text in all usual encodings of bytes.
fn disguises(secret: &str) -> Vec<String> {
    let list = |bytes: &[u8], form: fn(&u8) -> String, between: &str| {
        bytes.iter().map(form).collect::<Vec<_>>().join(between)
    };
    let bytes = secret.as_bytes();
    let end = &bytes[bytes.len().saturating_sub(9)..];
    vec![
        secret.to_owned(),
        list(end, |b| format!("{b:02x}"), ""),
        list(end, |b| format!("{b:02X}"), ""),
        list(end, ToString::to_string, ", "),
        list(end, |b| format!("0x{b:02x}"), ", "),
        BASE64_STANDARD_NO_PAD.encode(bytes).chars().take(bytes.len()).collect(),
    ]
}

#[track_caller]
fn holds_none(place: &str, content: &[u8], secrets: &[String]) {
    let text = String::from_utf8_lossy(content);
    for secret in secrets.iter().flat_map(|secret| disguises(secret)) {
        assert!(!text.contains(&secret), "{place} holds `{secret}`: {}", around(&text, &secret));
    }
}

fn a_database_and_a_snapshot_file_contain_no_secret(world: &World) {
    let dir = world.db.dir();
    let pepper = run_in(dir, &[], &["pepper", "new"]).ok();
    let (pepper_file, snapshot) = (dir.join("pepper"), dir.join("snapshot"));
    std::fs::write(&pepper_file, &pepper).expect("written");
    let path = |path: &std::path::Path| path.to_str().expect("plain").to_owned();
    let args = ["--pepper-file", &path(&pepper_file), "--snapshot-file", &path(&snapshot), "--accept-bearer"];
    let mut server = Server::on(&world.db).args(&args).args(&["--log-level", "trace"]).start();
    let mut secrets = present_everything(world, &server);
    // A database contains hashes.
    secrets.retain(|secret| !secret.starts_with("$2b$"));
    secrets.push(pepper.trim().to_owned());
    let memos = "SELECT key_memo FROM api_keys WHERE key_memo IS NOT NULL";
    eventually("memos are written", PATIENCE, || {
        let written = world.db.texts(memos).len();
        if written > 1 { Ok(()) } else { Err(written) }
    });
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0));
    holds_none("the log", server.stderr.to_the_end(PATIENCE).as_bytes(), &secrets);
    let kept = std::fs::read(&snapshot).expect("kept");
    assert!(String::from_utf8_lossy(&kept).contains(&world.live.prefix), "the snapshot file was searched");
    holds_none("the snapshot file", &kept, &secrets);
    match world.db.backend {
        Backend::Postgres => {
            let all = world.db.everything();
            assert!(all.contains(&world.live.prefix) && all.contains("$llmk-hmac-sha256$"), "{all}");
            holds_none("the database", all.as_bytes(), &secrets);
        }
        Backend::Sqlite => {
            let files = std::fs::read_dir(dir).expect("a directory").flatten();
            for file in files.filter(|file| file.file_name().to_string_lossy().starts_with("tenantgate.db")) {
                let content = std::fs::read(file.path()).expect("readable");
                holds_none(&file.path().display().to_string(), &content, &secrets);
            }
        }
    }
}

/// Sends bytes and reads until the end.
fn throw(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket");
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
}

fn as_metadata(address: &str, key: &str) {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let mut request = tonic::Request::new(CheckRequest::default());
    request.metadata_mut().insert("x-llmcore-api-key", key.parse().expect("ASCII"));
    let bearer = format!("Bearer {key}");
    request.metadata_mut().insert("authorization", bearer.parse().expect("ASCII"));
    let _ = wait(async { AuthorizationClient::new(endpoint.connect_lazy()).check(request).await });
}

#[test]
fn a_key_sent_to_the_wrong_listener_is_not_repeated() {
    let world = World::somewhere();
    let (cert, private) = self_signed(&world);
    for format in ["text", "json"] {
        let verbose = ["--log-level", "trace", "--log-format", format];
        let plain = Server::on(&world.db).args(&verbose).start();
        let tls =
            Server::on(&world.db).args(&verbose).args(&["--tls-cert", &cert, "--tls-key", &private]).start();
        let key = &world.issued.text;
        let http1 = format!(
            "GET /v1?key={key} HTTP/1.1\r\nhost: a\r\nx-llmcore-api-key: {key}\r\nauthorization: Bearer {key}\r\n\r\n"
        );
        let http2 = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), http1.as_bytes()].concat();
        let hello =
            [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03], key.as_bytes()].concat();
        for address in [&plain.grpc[0], &tls.grpc[0], &plain.ops] {
            for bytes in [http1.as_bytes(), &http2, &hello, key.as_bytes()] {
                throw(address, bytes);
            }
        }
        as_metadata(&plain.grpc[0], key);
        for path in [format!("/metrics?key={key}"), format!("/{key}"), format!("/readyz/{key}")] {
            plain.http(&path);
        }
        assert_eq!(plain.row(Ask::with_key(key)), "200 ok", "and the server continues");
        let secret = [key.rsplit_once('_').expect("a secret").1.to_owned(), key.clone()];
        for (name, mut server) in [("plain", plain), ("tls", tls)] {
            holds_none("/metrics", server.http("/metrics").body.as_bytes(), &secret);
            server.signal("TERM");
            assert_eq!(server.exit_code(PATIENCE), Some(0));
            let log = server.stderr.to_the_end(PATIENCE);
            // Without a handshake there is no HTTP/2.
            assert!(name == "tls" || log.contains("TRACE"), "the log is not verbose");
            holds_none(&format!("the log of {name} ({format})"), log.as_bytes(), &secret);
        }
    }
}

fn self_signed(world: &World) -> (String, String) {
    let names = vec!["localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let write = |name: &str, content: String| {
        let path = world.db.dir().join(name);
        std::fs::write(&path, content).expect("written");
        path.to_str().expect("plain").to_owned()
    };
    (write("cert.pem", made.cert.pem()), write("key.pem", made.signing_key.serialize_pem()))
}

/// Passwords in URLs that are invalid or unreachable.
const ADDRESSES: [&str; 15] = [
    "postgres://u:Pa55-never-said@127.0.0.1:notaport/db",
    "postgres://u:Pa55-never-said@127.0.0.1:99999/db",
    "postgres://u:Pa55-never-said@127.0.0.1:1/db",
    "postgres://u:Pa55-never-said@[::1/db",
    "postgres://u:Pa55-never-said@/db?host=/nowhere",
    "postgres://u:Pa55-never-said@127.0.0.1:1/db?sslmode=bogus",
    "postgres://u:Pa55-never-said@127.0.0.1:1/db?sslmode=verify-full&sslrootcert=/nowhere",
    "postgres://u:Pa55-never-said@no.such.host.invalid/db",
    "postgresql+asyncpg://u:Pa55-never-said@127.0.0.1:1/db?ssl=bogus",
    "postgres://u:Pa55-never-said",
    "postgres://127.0.0.1:1/db?user=u&password=Pa55-never-said&bogus=1",
    "postgres://127.0.0.1:1/db?password=Pa55-never-said&sslmode=bogus",
    "mysql://u:Pa55-never-said@h/db",
    "Pa55-never-said",
    " postgres://u:Pa55-never-said@127.0.0.1:1/db",
];

#[test]
fn an_invalid_address_is_not_repeated() {
    let dir = tempfile::tempdir().expect("a directory");
    for url in ADDRESSES {
        for args in [
            &["tenant", "list", "--database-url", url][..],
            &["serve", "--check-config", "--database-url", url],
            &["migrate", "-o", "json", "--database-url", url],
        ] {
            let run = run_in(dir.path(), &[("RUST_LOG", "trace"), ("RUST_BACKTRACE", "1")], args);
            let checked = args[0] == "serve" && run.code == Some(0);
            assert!(checked || matches!(run.code, Some(1..=3)), "{run:#?}");
            for text in [&run.stdout, &run.stderr] {
                assert!(!text.contains("Pa55"), "{url}: {run:#?}");
            }
        }
    }
}

#[test]
fn a_server_that_cannot_connect_does_not_log_the_password() {
    let dir = tempfile::tempdir().expect("a directory");
    for url in [ADDRESSES[2], ADDRESSES[6], ADDRESSES[7]] {
        let args = ["--database-url", url, "--ops-listen", "127.0.0.1:0", "--log-level", "trace"];
        let mut server = Server::plan(dir.path(), &args).start_unready();
        let tried =
            |lines: &[String]| lines.iter().any(|line| line.contains("no database yet")).then_some(());
        server.stderr.wait_for("no database yet", PATIENCE, tried);
        assert_eq!(server.row(Ask::with_key("llmk_nobody_12345678")), "503 unavailable");
        server.signal("TERM");
        assert_eq!(server.exit_code(PATIENCE), Some(0));
        let log = server.stderr.to_the_end(PATIENCE);
        holds_none("the log", log.as_bytes(), &["Pa55-never-said".to_owned()]);
    }
}
