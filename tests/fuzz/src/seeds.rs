//! The first inputs of the targets.
//!
//! Captured requests (`tests/it/fixtures`), unchanged and with each of the known keys instead of the captured one, so
//! that mutation starts from requests that pass.

use std::fs;
use std::path::{Path, PathBuf};

use prost::Message as _;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::CheckRequest;

use crate::fixtures::KEYS;
use crate::model::KEY_HEADER;
use crate::wire;

/// Writes the seeds of a target into the directory in `FUZZ_SEEDS`, if it is set. libFuzzer reads them afterwards.
pub fn plant(target: &str) {
    let Some(directory) = std::env::var_os("FUZZ_SEEDS").map(PathBuf::from) else { return };
    let seeds = match target {
        "key" => KEYS.iter().map(|key| (key.prefix().to_owned(), key.text.into())).collect(),
        "check" => requests(),
        "route" => ROUTES
            .iter()
            .map(|route| (route.0.to_owned(), [&[route.1], route.2.as_bytes()].concat()))
            .collect(),
        "row" => ROWS.iter().map(|row| (row.0.to_owned(), [&[row.1], row.2.as_bytes()].concat())).collect(),
        "mapping" => MAPPINGS.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect(),
        _ => connections(),
    };
    for (name, bytes) in seeds {
        fs::write(directory.join(name), bytes).expect("the directory is there");
    }
}

/// Complete calls in the format of `targets/grpc.rs`, one as sent over the network, and a ping.
fn connections() -> Vec<(String, Vec<u8>)> {
    let raw = wire::call(&requests()[0].1);
    let ping = wire::frame(6, 0, 0, &[7; 8]);
    let others = [("raw", 0, raw), ("ping", 1, ping)];
    let others = others.map(|(name, kind, bytes)| (name.to_owned(), [&[kind], &bytes[..]].concat()));
    let calls = requests().into_iter().map(|(name, message)| (name, [&[3], &message[..]].concat()));
    calls.chain(others).collect()
}

/// Damage in the format of `targets/mapping.rs`: none, a heartbeat, a slot that takes over another one, a bit, reports.
const MAPPINGS: [(&str, &[u8]); 5] = [
    ("sound", &[1]),
    ("heartbeat", &[1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ("slot", &[1, 17, 0, 3, 18, 0, 0, 0, 0, 0, 0, 0]),
    ("bit", &[1, 40, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0]),
    ("report", b"\0\x16\0\0\0\0\0\x02\0ok\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0"),
];

/// Requests and rules in the format of `targets/route.rs`.
const ROUTES: [(&str, u8, &str); 7] = [
    ("literal", 0, "GET a.example.com /a/b\nGET a.example.com /a/b\n* *.example.com /a/{x}\n* * /**"),
    ("back", 0, "GET h /a/b/c\n* * /a/b\n* * /a/{x}/c\n* * /a/**"),
    ("head", 0, "HEAD h /a\nGET * /a\nHEAD * /a\n* * /a"),
    ("escapes", 0, "GET h:80 /%61dmin/%c3%a9/x%3ay\nGET H /admin/**\n* * /{a}/{b}/x:y"),
    ("unescaped", 0, "GET h:x /v2/x[1]|\n* h /v2/x%5B1%5D/**\n* * /**"),
    ("slash", 1, "GET h. /a%2fb\n* * /a%2Fb\n* * /{x}"),
    ("parameters", 3, "GET [::1]:80 /a;b/..;c\n* [::1] /a%3Bb/**\n* * nonsense\nget * /"),
];

/// Contents of rows and files in the format of `targets/row.rs`.
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

/// Every captured request, and the first plain one with every known key.
fn requests() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../it/fixtures");
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

/// Returns the same request with the key header and a known key.
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
