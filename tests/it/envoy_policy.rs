//! Tests scopes and rules through a real Envoy: what a rule and Envoy's own configuration require, and that no spelling
//! of a protected path avoids its rule.

use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, FILE};
use crate::support::world::quick_hash;
use crate::support::{Server, World, table};

/// Creates a key with these terms, and with a hash that a busy machine verifies in time.
fn key(world: &World, terms: [&str; 2]) -> String {
    let key = world.db.json(&[&["key", "create", &world.acme.id], &terms[..]].concat());
    let [id, text] = ["id", "key"].map(|field| key[field].as_str().expect("a text").to_owned());
    world.db.sql(&format!("UPDATE api_keys SET hashed_key = '{}' WHERE id = '{id}'", quick_hash(&text)));
    text
}

/// The beginning of the routes with the example that `envoy.yaml` has in a comment.
fn routes_with_the_example() -> String {
    let file = std::fs::read_to_string(FILE).expect("the file is there");
    let lines = file.lines().skip_while(|line| !line.contains("# - match: {prefix: /v1/orders}"));
    let lines = lines.take_while(|line| line.trim_start().starts_with('#') && !line.contains("WHY"));
    let example = lines.flat_map(|line| [line.replacen("# ", "", 1), "\n".to_owned()]).collect::<String>();
    assert!(example.contains("tenantgate.scopes"), "{example}");
    format!("              routes:\n{example}")
}

#[test]
fn a_route_needs_scopes_by_a_rule_and_by_envoys_configuration() {
    let world = World::somewhere();
    world.db.json(&[
        "route",
        "add",
        "--path",
        "/v1/models/**",
        "--scopes",
        "models.read",
        "--name",
        "models",
    ]);
    world.db.json(&["route", "add", "--path", "/v1/open", "--mode", "optional"]);
    let made = |scopes: &str| key(&world, ["--scopes", scopes]);
    let (reader, writer) = (made("models.read"), made("models.* orders:write"));
    let server =
        Server::on(&world.db).args(&["--identity-header", "key-id", "--identity-header", "scopes"]).start();
    let Some(envoy) =
        Envoy::before(&server).with("              routes:\n", &routes_with_the_example()).start()
    else {
        return;
    };
    let send = |path: &str, key: Option<&str>| {
        let headers: Vec<_> = key.iter().map(|key| (KEY_HEADER, *key)).collect();
        envoy.send("GET", path, &headers)
    };
    let lacks = r#"{"detail":"API key lacks a required scope"}"#;
    let told = |outcome: &crate::support::envoy::Outcome, name: &str| {
        outcome
            .seen
            .as_ref()
            .map(|seen| seen.values(name).iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let allowed = send("/v1/models/1", Some(&reader));
    assert_eq!(told(&allowed, "x-llmcore-scopes"), Some(vec!["models.read".to_owned()]));
    let refused = send("/v1/orders/1", Some(&reader));
    assert_eq!((refused.page.status, refused.page.body.as_str()), (403, lacks));
    assert!(refused.seen.is_none());
    let challenge = r#"ApiKey realm="llmcore", error="insufficient_scope", scope="orders:write""#;
    assert_eq!(refused.page.headers.get("www-authenticate").map(String::as_str), Some(challenge));
    assert_eq!(envoy.logged("/v1/orders/1")["reason"], "scope");
    assert!(
        send("/v1/orders/2", Some(&writer)).seen.is_some()
            && send("/v1/models/2", Some(&writer)).seen.is_some()
    );
    send("/v1/models/3", None).is_refused(401, r#"{"detail":"Missing API key"}"#);
    let anonymous = send("/v1/open", None);
    assert_eq!(told(&anonymous, "x-llmcore-key-id"), Some(Vec::new()));
    send("/v1/open", Some("llmk_nobody_12345678")).is_refused(401, r#"{"detail":"Invalid API key"}"#);
}

/// Spellings of `/v1/admin/keys`, and of what lies around it, that some proxy or upstream takes for it. One that is
/// escaped twice (`%2561`, to which Envoy normalizes `%%61`) is not among them: it is another path for every program
/// that follows RFC 3986.
const LOOK_ALIKES: [&str; 91] = [
    // The path itself, and its neighbours.
    "/v1/admin/keys",
    "/v1/admin/keys/",
    "/v1/admin",
    "/v1/admin/",
    "/v1/admin/?",
    // Queries and absolute forms.
    "/v1/admin/keys?x=/v1/open",
    "/v1/admin/keys?/../../open",
    "/v1/admin/keys?%2e%2e/open",
    "/v1/admin/keys#/v1/open",
    "http://api.example.com/v1/admin/keys",
    "http://other.example/v1/admin/keys",
    "http://other.example//v1/admin/keys",
    // Escapes of what needs none.
    "/v1/%61dmin/keys",
    "/v1/%61%64min/keys",
    "/v1/admi%6e/keys",
    "/v1/admi%6E/keys",
    "/%76%31/admin/keys",
    "/v%31/admin/keys",
    "/v1/admin/%6beys",
    "/v1/%61%64%6d%69%6e/%6b%65%79%73",
    // Escaped slashes.
    "/v1/admin%2Fkeys",
    "/v1/admin%2fkeys",
    "/v1%2Fadmin/keys",
    "/v1%2fadmin%2fkeys",
    "/%2fv1/admin/keys",
    "%2fv1/admin/keys",
    // More slashes.
    "//v1/admin/keys",
    "///v1/admin/keys",
    "/v1//admin/keys",
    "/v1///admin/keys",
    "/v1/admin//keys",
    "/v1/admin/keys//",
    // Dots.
    "/./v1/admin/keys",
    "/../v1/admin/keys",
    "/v1/./admin/keys",
    "/v1/admin/./keys",
    "/v1/admin/keys/.",
    "/v1/admin/keys/..",
    "/v1/admin/x/../keys",
    "/v1/open/../admin/keys",
    "/v1/open/../../v1/admin/keys",
    "/v1/open/./../admin/keys",
    // Escaped dots.
    "/v1/%2e/admin/keys",
    "/%2e/v1/admin/keys",
    "/%2e%2e/v1/admin/keys",
    "/v1/open/%2e%2e/admin/keys",
    "/v1/open/%2E%2E/admin/keys",
    "/v1/open/.%2e/admin/keys",
    "/v1/open/%2e./admin/keys",
    "/v1/admin/keys/%2e",
    "/v1/admin/%2e%2e/admin/keys",
    "/v1/open/..%2fadmin/keys",
    "/v1/open%2f..%2fadmin%2fkeys",
    "/v1/open%2f%2e%2e%2fadmin/keys",
    // Backslashes.
    "/v1/admin\\keys",
    "/v1\\admin\\keys",
    "\\v1\\admin\\keys",
    "/v1/open/..\\admin/keys",
    "/v1/admin%5Ckeys",
    "/v1%5cadmin%5ckeys",
    "/v1/open/..%5cadmin/keys",
    // Parameters.
    "/v1/admin/keys;x=1",
    "/v1/admin;x=1/keys",
    "/v1/admin;/keys",
    "/v1;/admin/keys",
    "/;/v1/admin/keys",
    "/v1/admin/;x/keys",
    "/v1/admin/keys%3Bx",
    "/v1/admin%3b/keys",
    "/v1/..;/v1/admin/keys",
    "/v1/open/..;/admin/keys",
    "/v1/open/..;x=1/admin/keys",
    "/v1/open/.;/../admin/keys",
    // Ends of strings, and escapes that are none.
    "/v1/admin/keys%00",
    "/v1/admin%00/keys",
    "/v1/admin/keys%",
    "/v1/admin/keys%2",
    "/v1/admin/keys%zz",
    "/v1/%u0061dmin/keys",
    // Overlong and broken UTF-8.
    "/v1/admin/keys%c0%af",
    "/v1/%c1%a1dmin/keys",
    "/v1/open/%c0%ae%c0%ae/admin/keys",
    "/v1/admin/keys%ff",
    // Characters that belong in an escape, and one that does not, in the path of another rule.
    "/v1/x%5B1%5D",
    "/v1/x[1]",
    "/v1/x%5b1%5d",
    "/v1/x[1%5D",
    "/v1/x[1]/",
    "/v1/x[1]?y=1",
    "/v1/~adm",
    "/v1/%7eadm",
];

/// Every spelling is in `look_alikes.txt`: the status without and with a key that lacks the scope, by an Envoy that
/// normalizes paths and by one that does not. `UPDATE_SNAPSHOTS=1 cargo test --test it envoy_policy` rewrites it.
#[test]
fn no_spelling_of_a_protected_path_passes_by_its_rule() {
    let world = World::somewhere();
    world.db.json(&["route", "add", "--path", "/v1/admin/**", "--scopes", "admin"]);
    world.db.json(&["route", "add", "--path", "/v1/x%5B1%5D", "--scopes", "admin"]);
    world.db.json(&["route", "add", "--path", "/v1/~adm", "--scopes", "admin"]);
    world.db.json(&["route", "add", "--path", "/**", "--mode", "optional"]);
    let key = key(&world, ["--scopes", "other"]);
    let server = Server::on(&world.db).start();
    let normalized = || Envoy::before(&server);
    let raw = || {
        normalized()
            .with("          normalize_path: true\n", "          normalize_path: false\n")
            .with("          merge_slashes: true\n", "          merge_slashes: false\n")
            .with(
                "path_with_escaped_slashes_action: REJECT_REQUEST",
                "path_with_escaped_slashes_action: KEEP_UNCHANGED",
            )
    };
    let keep = || {
        normalized().with(
            "path_with_escaped_slashes_action: REJECT_REQUEST",
            "path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD",
        )
    };
    let plans = [("normalized", normalized()), ("unescaped", keep()), ("raw", raw())];
    let mut columns: Vec<Vec<String>> =
        vec![[&["spelling"][..], &LOOK_ALIKES].concat().into_iter().map(str::to_owned).collect()];
    for (name, plan) in plans {
        let Some(envoy) = plan.start() else { return };
        assert!(envoy.send("GET", "/v1/open", &[(KEY_HEADER, &key)]).seen.is_some(), "the rest is open");
        let mut column = vec![name.to_owned()];
        for path in LOOK_ALIKES {
            let answers = [&[][..], &[(KEY_HEADER, key.as_str())]].map(|headers| {
                let outcome = envoy.send("GET", path, headers);
                assert!([400, 401, 403].contains(&outcome.page.status), "{name} {path}: {:?}", outcome.page);
                assert!(outcome.seen.is_none(), "{name} {path}: {:?}", outcome.seen);
                let by = outcome.page.headers.get("x-llmcore-decision-id").map_or(" Envoy", |_| "");
                format!("{}{by}", outcome.page.status)
            });
            column.push(answers.join(", "));
        }
        columns.push(column);
    }
    let rows: Vec<[String; 4]> = (0..columns[0].len())
        .map(|row| [0, 1, 2, 3].map(|column: usize| columns[column][row].clone()))
        .collect();
    table::compare("look_alikes.txt", &table::render(&rows), "spellings of /v1/admin/keys");
}

#[test]
fn no_spelling_of_a_host_passes_by_its_rule() {
    let world = World::somewhere();
    world.db.json(&["route", "add", "--host", "api.example.com", "--path", "/**", "--scopes", "admin"]);
    world.db.json(&["route", "add", "--path", "/**", "--mode", "public"]);
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    let status = |hosts: &[&str]| {
        let hosts: Vec<_> = hosts.iter().map(|host| format!("host: {host}\r\n")).collect();
        let hosts = hosts.concat();
        let page =
            envoy.exchange(format!("GET /v1/x HTTP/1.1\r\n{hosts}connection: close\r\n\r\n").as_bytes());
        (page.status, page.body)
    };
    // The client chooses the host: only Envoy's `domains` can keep it from choosing another one.
    assert_eq!(status(&["other.example"]).0, 200);
    for host in [
        "api.example.com",
        "API.Example.com",
        "api.example.com.",
        "api.example.com:80",
        "api.example.com.:80",
    ] {
        assert_eq!(status(&[host]).0, 401, "{host}");
    }
    for hosts in [
        &["api.example.com.."][..],
        &["u@api.example.com"],
        &["api.example.com:abc"],
        &["api.example.com,x"],
        &["api.example.com", "x.test"],
        &["x.test", "api.example.com"],
        &["api..example.com"],
        &["%61pi.example.com"],
    ] {
        assert_eq!(status(hosts).0, 400, "{hosts:?}");
    }
}
