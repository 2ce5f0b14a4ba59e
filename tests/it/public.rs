//! Tests which requests pass without a key, and look-alikes that must not.

use crate::support::ask::KEY_HEADER;
use crate::support::cli::run_in;
use crate::support::verified_response::{IDENTITY, UNPROVEN};
use crate::support::{Ask, Server, World};

/// The identity headers and the key header, which clients must not pass to the upstream.
fn stripped() -> Vec<&'static str> {
    let mut names = IDENTITY.to_vec();
    names.push(KEY_HEADER);
    names.sort_unstable();
    names
}

#[test]
fn public_paths_are_get_and_head_of_three() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    for path in ["/", "/health", "/docs", "/docs?page=2", "/?", "/health?x=/v1"] {
        for method in ["GET", "HEAD"] {
            let answer = server.check(Ask::new(method, path));
            assert_eq!(answer.row(), "200 public", "{method} {path}");
            assert_eq!(answer.meta_names(), UNPROVEN, "no identity: {method} {path}");
            assert_eq!(answer.removed(), stripped(), "{method} {path}");
        }
    }
}

#[test]
fn look_alikes_of_public_paths_are_not_public() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let paths = [
        "/docs/",
        "//docs",
        "//",
        "/./docs",
        "/docs/../x",
        "/x/../docs",
        "/%64ocs",
        "/docs%3Fx",
        "/docs%00",
        "/docs;x=1",
        "/docs#x",
        "/Docs",
        "/DOCS",
        "/docs ",
        " /docs",
        "docs",
        "/docsx",
        "/health/live",
        "/healthz",
        "/%2F",
        "/\\docs",
        "/d!cs",
        "http://api.example.com/docs",
        "*",
        "",
        "?",
        "?/docs",
        "&/docs",
        "/v1?/docs",
        "/docs\u{0}",
        "/dоcs",
    ];
    for path in paths {
        assert_eq!(server.row(Ask::get(path)), "401 missing", "GET {path:?}");
    }
    for method in [
        "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "get", "Get", "GET ", "", "PROPFIND",
    ] {
        for path in ["/", "/health", "/docs"] {
            assert_eq!(server.row(Ask::new(method, path)), "401 missing", "{method:?} {path}");
        }
    }
}

#[test]
fn a_key_on_a_public_path_is_ignored_and_removed() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let keys = [world.live.text.clone(), world.revoked.text.clone(), "!malformed".to_owned(), String::new()];
    for key in keys {
        let answer = server.check(Ask::get("/health").key(&key));
        assert_eq!(answer.row(), "200 public", "{key}");
        assert_eq!(answer.removed(), stripped(), "{key}");
    }
    assert_eq!(server.bcrypts(), 0);
}

#[test]
fn a_bearer_key_on_a_public_path_is_removed_but_other_values_are_not() {
    let world = World::somewhere();
    let server = Server::on(&world.db).arg("--accept-bearer").start();
    let removed = |value: &str| {
        let answer = server.check(Ask::get("/docs").authorization(value));
        assert_eq!(answer.row(), "200 public", "{value}");
        answer.removed().contains(&"authorization")
    };
    assert!(removed(&format!("Bearer {}", world.live.text)));
    assert!(removed(&format!("Bearer {}", world.revoked.text)));
    assert!(!removed("Basic dXNlcjpwYXNz"));
    assert!(!removed("Bearer eyJhbGciOiJIUzI1NiJ9.e30.c2ln"));
}

#[test]
fn a_given_list_replaces_the_default() {
    let world = World::somewhere();
    let own = ["--public", "GET /status", "--public", "POST /hook/in"];
    let rows = [
        ("GET", "/status", "200 public"),
        ("GET", "/status?x", "200 public"),
        ("POST", "/hook/in", "200 public"),
        ("HEAD", "/status", "401 missing"),
        ("POST", "/status", "401 missing"),
        ("GET", "/hook/in", "401 missing"),
        ("POST", "/hook/in/", "401 missing"),
        ("GET", "/", "401 missing"),
        ("GET", "/health", "401 missing"),
        ("HEAD", "/docs", "401 missing"),
    ];
    let by_flag = Server::on(&world.db).args(&own).start();
    let by_variable = Server::on(&world.db).env("TENANTGATE_PUBLIC", "GET /status,POST /hook/in").start();
    for (method, path, wanted) in rows {
        assert_eq!(by_flag.row(Ask::new(method, path)), wanted, "{method} {path} by flag");
        assert_eq!(by_variable.row(Ask::new(method, path)), wanted, "{method} {path} by variable");
    }
    assert_eq!(by_flag.check(Ask::get("/status")).removed(), stripped());
}

#[test]
fn none_empties_the_list() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--public", "none"]).start();
    for path in ["/", "/health", "/docs"] {
        assert_eq!(server.row(Ask::get(path)), "401 missing", "{path}");
    }
    let overruled =
        Server::on(&world.db).args(&["--public", "none"]).env("TENANTGATE_PUBLIC", "GET /docs").start();
    assert_eq!(
        overruled.row(Ask::get("/docs")),
        "401 missing",
        "an option takes precedence over its variable"
    );
}

#[test]
fn an_invalid_public_path_is_a_usage_error() {
    let world = World::somewhere();
    for value in ["/docs", "GET", "GET docs", "GET  /docs", "GET /docs?x=1", "", "G@T /docs"] {
        let args = ["serve", "--check-config", "--database-url", world.db.url(), "--public", value];
        let said = run_in(world.db.dir(), &[], &args).usage();
        assert!(said.contains("--public"), "{value:?}: {said}");
    }
}
