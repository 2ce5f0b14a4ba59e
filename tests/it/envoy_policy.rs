//! Tests scopes and rules through a real Envoy: what a rule and Envoy's own configuration require, and that no spelling
//! of a protected path avoids its rule.

use crate::support::ask::KEY_HEADER;
use crate::support::envoy::Envoy;
use crate::support::world::quick_hash;
use crate::support::{Server, World};

/// Creates a key with these terms, and with a hash that a busy machine verifies in time.
fn key(world: &World, terms: [&str; 2]) -> String {
    let key = world.db.json(&[&["key", "create", &world.acme.id], &terms[..]].concat());
    let [id, text] = ["id", "key"].map(|field| key[field].as_str().expect("a text").to_owned());
    world.db.sql(&format!("UPDATE api_keys SET hashed_key = '{}' WHERE id = '{id}'", quick_hash(&text)));
    text
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
    let routes = "              routes:\n";
    let route = "              - match: {prefix: /v1/orders}
                route: {cluster: api}
                typed_per_filter_config:
                  envoy.filters.http.ext_authz:
                    \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    check_settings:
                      context_extensions: {tenantgate.scopes: \"orders:write\", tenantgate.route: orders}
";
    let Some(envoy) = Envoy::before(&server).with(routes, &format!("{routes}{route}")).start() else {
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

/// Spellings of `/v1/admin/keys` that some proxy or upstream treats as this path.
const LOOK_ALIKES: [&str; 30] = [
    "/v1/admin/keys/",
    "/v1/admin/keys?x=/v1/open",
    "/v1/%61dmin/keys",
    "/v1/%61%64min/keys",
    "/%76%31/admin/keys",
    "/v1/admin%2Fkeys",
    "/v1/admin%2fkeys",
    "/v1%2Fadmin/keys",
    "//v1/admin/keys",
    "/v1//admin/keys",
    "/v1/admin//keys",
    "/v1/./admin/keys",
    "/v1/open/../admin/keys",
    "/v1/open/%2e%2e/admin/keys",
    "/v1/open/.%2e/admin/keys",
    "/v1/open/%2E%2E/admin/keys",
    "/v1/admin/./keys",
    "/v1/admin/x/../keys",
    "/v1/admin\\keys",
    "/v1\\admin\\keys",
    "/v1/admin%5Ckeys",
    "/v1/admin/keys;x=1",
    "/v1/admin;x=1/keys",
    "/v1/admin/keys%3Bx",
    "/v1/admin/keys%00",
    "/v1/admin/keys%",
    "/v1/admin/keys%zz",
    "/v1/..;/v1/admin/keys",
    "/v1/admin/keys%c0%af",
    "/v1/open/..%2fadmin/keys",
];

#[test]
fn no_spelling_of_a_protected_path_passes_by_its_rule() {
    let world = World::somewhere();
    world.db.json(&["route", "add", "--path", "/v1/admin/**", "--scopes", "admin"]);
    world.db.json(&["route", "add", "--path", "/**", "--mode", "optional"]);
    let key = key(&world, ["--scopes", "other"]);
    let key = key.as_str();
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
    for (name, plan) in [("normalized", normalized()), ("raw", raw())] {
        let Some(envoy) = plan.start() else { return };
        assert!(envoy.send("GET", "/v1/open", &[(KEY_HEADER, key)]).seen.is_some(), "other paths are public");
        for path in LOOK_ALIKES {
            for headers in [&[][..], &[(KEY_HEADER, key)]] {
                let outcome = envoy.send("GET", path, headers);
                assert!([400, 401, 403].contains(&outcome.page.status), "{name} {path}: {:?}", outcome.page);
                assert!(outcome.seen.is_none(), "{name} {path}: {:?}", outcome.seen);
            }
        }
    }
}
