//! Replays every captured request of a real Envoy.
//!
//! `fixtures/*.bin` are `CheckRequest`s as sent by Envoy 1.40. They carry a foreign key in `x-api-key`. Each is sent
//! twice: as captured, and with a live key instead of the captured one.

use std::path::Path;

use prost::Message as _;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::CheckRequest;

use crate::support::wire::Check;
use crate::support::{Server, World};

/// The file, the row as captured, and the row with a live key in its place.
const ROWS: [(&str, &str, &str); 13] = [
    ("body_partial_raw", "401 malformed", "200 ok"),
    ("connect_no_path", "401 malformed", "200 ok"),
    ("context_extensions_metadata", "401 malformed", "200 ok"),
    ("http1_basic", "401 malformed", "200 ok"),
    ("http1_bearer", "401 missing", "200 ok"),
    ("http1_dup_key", "401 malformed", "401 malformed"),
    ("http1_no_key", "401 missing", "401 missing"),
    ("http1_non_utf8_sanitized", "401 malformed", "200 ok"),
    ("http2_grpc", "401 malformed", "200 ok"),
    ("raw_headers_dup_nonutf8", "401 malformed", "401 malformed"),
    ("tls_client_cert", "401 malformed", "200 ok"),
    ("tls_sni_non_utf8", "401 malformed", "200 ok"),
    ("websocket_upgrade", "401 malformed", "200 ok"),
];

/// The keys in the captured requests, longest first.
const CAPTURED: [&str; 5] = ["ak_test_0123456789", "a!b", "one", "two", "k"];

#[test]
fn every_captured_request_gets_its_row() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--key-header", "x-api-key", "--accept-bearer"]).start();
    for (name, captured, live) in ROWS {
        let bytes = read(name);
        let answer = server.check_bytes(bytes.clone()).unwrap_or_else(|status| panic!("{name}: {status:?}"));
        assert_eq!(answer.row(), captured, "{name}");
        let answer = server.check_bytes(with_key(&bytes, &world.live.text)).expect("an answer");
        assert_eq!(answer.row(), live, "{name} with a live key");
    }
}

#[test]
fn the_key_header_of_another_service_is_ignored() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    for (name, ..) in ROWS {
        assert_eq!(server.check_bytes(read(name)).expect("an answer").row(), "401 missing", "{name}");
    }
}

#[test]
fn every_captured_request_is_tested() {
    let files = std::fs::read_dir(directory()).expect("the directory is committed").flatten();
    let mut names: Vec<String> =
        files.filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort_unstable();
    assert_eq!(names, ROWS.map(|row| row.0));
}

fn directory() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures")
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(directory().join(name).with_extension("bin")).expect(name)
}

/// Returns the same request with another key.
fn with_key(bytes: &[u8], key: &str) -> Vec<u8> {
    let Ok(mut request) = CheckRequest::decode(bytes) else { return with_key_in_bytes(bytes, key) };
    let http = request.attributes.as_mut().and_then(|attributes| attributes.request.as_mut());
    let http =
        http.and_then(|request| request.http.as_mut()).expect("Envoy's HTTP filter sends an HTTP request");
    for (name, value) in &mut http.headers {
        if ["x-api-key", "authorization"].contains(&name.as_str()) {
            *value = CAPTURED
                .iter()
                .find(|captured| value.contains(*captured))
                .map_or_else(|| value.clone(), |captured| value.replace(captured, key));
        }
    }
    for header in http.header_map.iter_mut().flat_map(|map| &mut map.headers) {
        if header.key == "x-api-key" {
            header.raw_value = key.as_bytes().to_vec();
        }
    }
    request.encode_to_vec()
}

/// The same, if the generated decoder rejects the message.
fn with_key_in_bytes(bytes: &[u8], key: &str) -> Vec<u8> {
    let mut check = Check::decode(bytes).expect("protobuf");
    let http = check.attributes.as_mut().and_then(|attributes| attributes.request.as_mut());
    let http =
        http.and_then(|request| request.http.as_mut()).expect("Envoy's HTTP filter sends an HTTP request");
    for header in http.headers.iter_mut().filter(|header| header.key == b"x-api-key") {
        header.value = key.as_bytes().to_vec();
    }
    check.encode_to_vec()
}
