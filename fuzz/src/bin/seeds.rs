//! What are the targets started with? Writes a file for each seed, `DIRECTORY/TARGET/NAME`.
//!
//! Captured requests (`tests/it/fixtures`), as they are and with every key of ours in the
//! place of the captured one, so that mutation starts from what passes.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::CheckRequest;
use tenantgate_fuzz::model::KEY_HEADER;
use tenantgate_fuzz::people::KEYS;
use tenantgate_fuzz::wire;

fn main() {
    let directory = PathBuf::from(std::env::args().nth(1).expect("the directory to write to"));
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = directory.join(target);
        fs::create_dir_all(&folder).expect("a directory");
        fs::write(folder.join(name), bytes).expect("written");
    };
    for key in &KEYS {
        write("key", key.prefix(), key.text.as_bytes());
    }
    for (name, message) in requests() {
        write("check", &name, &message);
        write("grpc", &format!("call-{name}"), &[&[3], &message[..]].concat());
    }
    let call = wire::call(&requests()[0].1);
    write("grpc", "raw", &[&[0], &call[..]].concat());
    write("grpc", "ping", &[&[1], &wire::frame(6, 0, 0, &[7; 8])[..]].concat());
    for (name, kind, text) in ROWS {
        write("row", name, &[&[kind], text.as_bytes()].concat());
    }
}

/// What rows and files hold, and how `targets/row.rs` takes it.
const ROWS: [(&str, u8, &str); 7] = [
    ("hash", 0, "$2b$04$su2b.vqz4TpZE4efb02CmOdFIwDrm2LI8KtSjA93JDkMtHMX4hmb2"),
    ("hash-12", 0, "$2y$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232"),
    ("memo", 1, "$llmk-hmac-sha256$v=1,k=1f00ab09$BwcHBwcHBwc$yMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMg"),
    (
        "peppers",
        2,
        "# new\nAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE\n\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
    ),
    ("status", 3, "pending_provisioning"),
    ("schema", 3, "tenant_acme_1"),
    ("reserved", 3, "pg_catalog"),
];

/// Every captured request, and the first of them that is plain with every key of ours.
fn requests() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/it/fixtures");
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("the fixtures").flatten().map(|file| file.path()).collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        let bytes = fs::read(&file).expect("readable");
        if let Ok(request) = CheckRequest::decode(&bytes[..]) {
            all.extend(
                KEYS.iter().map(|key| (format!("{name}-{}", key.prefix()), with_key(&request, key.text))),
            );
        }
        all.push((name, bytes));
    }
    all
}

/// The same request with our header and a key of ours.
fn with_key(request: &CheckRequest, key: &str) -> Vec<u8> {
    let mut request = request.clone();
    let http = request.attributes.as_mut().and_then(|attributes| attributes.request.as_mut());
    if let Some(http) = http.and_then(|request| request.http.as_mut()) {
        if http.headers.remove("x-api-key").is_some() {
            http.headers.insert(KEY_HEADER.into(), key.into());
        }
        if let Some(value) = http.headers.get_mut("authorization") {
            *value = format!("Bearer {key}");
        }
        for header in http.header_map.iter_mut().flat_map(|map| &mut map.headers) {
            if header.key == "x-api-key" {
                header.key = KEY_HEADER.into();
                header.raw_value = key.into();
            }
        }
    }
    request.encode_to_vec()
}
