//! Routes that tell `ext_authz` something by `context_extensions`, which the module cannot see.

use super::*;

/// A route below this path, with these settings of its filters.
fn route(path: &str, filters: &[&str]) -> String {
    let filters = filters.concat();
    let filters = if filters.is_empty() {
        filters
    } else {
        format!("                typed_per_filter_config:\n{filters}")
    };
    format!("              - match: {{prefix: {path}}}\n                route: {{cluster: api}}\n{filters}")
}

/// What the module is told of a route.
fn module(promise: &str) -> String {
    format!(
        r#"                  tenantgate:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilterPerRoute
                    dynamic_module_config: {{name: tenantgate_envoy, do_not_close: true}}
                    filter_config: {{"@type": type.googleapis.com/google.protobuf.StringValue, value: "{promise}"}}
"#
    )
}

/// What `ext_authz` is told of a route.
fn check(mode: &str) -> String {
    format!(
        r#"                  envoy.filters.http.ext_authz:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    check_settings: {{context_extensions: {{tenantgate.mode: {mode}}}}}
"#
    )
}

/// The first of the routes in the file.
const FIRST: &str = "              - match: {prefix: /, grpc: {}}\n";

/// An Envoy with these routes before those of the file.
fn with_routes(server: &Server, socket: &Path, routes: &[String], default: &str) -> Plan {
    let plan = with_module(server, socket).with(FIRST, &format!("{}{FIRST}", routes.concat()));
    let version = "              transport_api_version: V3\n";
    let plan = plan
        .with(version, &format!("{version}              metadata_context_namespaces: [envoy.tenantgate]\n"));
    plan.with(" context_extensions=none", default)
}

/// Sends a request to a path of its own below this one. Returns its status and who has decided.
fn at(envoy: &Envoy, below: &str, key: &Key) -> (u16, bool) {
    let path = path().replace("/v1", below);
    let (outcome, said) = ask(envoy, &path, &[(KEY_HEADER, key.text.as_bytes())]);
    (outcome.page.status, said["via"] == "module")
}

#[test]
fn the_module_decides_only_on_routes_that_are_configured_without_context() {
    let world = World::somewhere();
    let (none, some) = (module("context_extensions=none"), module("context_extensions=some"));
    // A Check answers 503 to a mode that it does not know, whatever the key.
    let (known, unknown) = (check("required"), check("nonsense"));
    // Without a word in the filter's own configuration, a route has to say it; with it, a route can take itself out.
    for (default, yes, no) in [("", none.as_str(), ""), (" context_extensions=none", "", some.as_str())] {
        let (server, socket, _directory) = publishing(&world, &[]);
        let routes = [
            route("/v1", &[yes]),
            route("/plain", &[no]),
            route("/told", &[no, &known]),
            route("/wrong", &[no, &unknown]),
        ];
        let Some(envoy) = with_routes(&server, &socket, &routes, default).start() else { return };
        with_key(&envoy, &world.live.text);
        for _ in 0..3 {
            assert_eq!(at(&envoy, "/plain", &world.live), (200, false), "{default}");
            assert_eq!(at(&envoy, "/wrong", &world.live), (503, false), "{default}");
            // The Check of such a route does not stop the module: it says that the module leaves the route alone.
            assert_eq!(at(&envoy, "/v1", &world.live), (200, true), "{default}");
        }
        // Neither do Checks whose proof takes a while, after which the message is read again.
        assert_eq!(at(&envoy, "/told", &world.other), (200, false), "{default}");
        assert_eq!(at(&envoy, "/v1", &world.live), (200, true), "{default}");
        assert!(!server.stderr.text().contains("decides nothing until serve restarts"));
    }
}

#[test]
fn a_check_that_shows_a_wrong_configuration_disables_the_module() {
    let world = World::somewhere();
    let none = module("context_extensions=none");
    for (default, filters) in
        [("", none.clone() + &check("nonsense")), (" context_extensions=none", check("nonsense"))]
    {
        let (server, socket, _directory) = publishing(&world, &[]);
        let routes = [route("/v1", &[&none]), route("/wrong", &[&filters])];
        let Some(envoy) = with_routes(&server, &socket, &routes, default).start() else { return };
        with_key(&envoy, &world.live.text);
        // A key that is not proven goes to a Check, which tells of the route.
        assert_eq!(at(&envoy, "/wrong", &world.other), (503, false), "{default}");
        eventually("the module asks", PATIENCE, || match at(&envoy, "/v1", &world.live) {
            (200, false) => Ok(()),
            other => Err(other),
        });
        assert_eq!(at(&envoy, "/wrong", &world.live), (503, false), "{default}");
        assert!(
            server.stderr.text().contains("decides nothing until serve restarts"),
            "{}",
            server.stderr.text()
        );
    }
}

#[test]
fn a_route_with_an_unknown_word_is_rejected() {
    let Some(envoy) = binary() else { return };
    let world = World::somewhere();
    let (server, socket, directory) = publishing(&world, &[]);
    for (word, valid) in [("none", true), ("some", true), ("maybe", false), ("", false)] {
        let routes = [route("/v1", &[&module(&format!("context_extensions={word}"))])];
        let file = directory.path().join("envoy.yaml");
        std::fs::write(&file, with_routes(&server, &socket, &routes, "").text()).expect("written");
        let said = Command::new(&envoy)
            .args(["--mode", "validate", "-c"])
            .arg(&file)
            .env("ENVOY_DYNAMIC_MODULES_SEARCH_PATH", &*MODULES)
            .output()
            .expect("envoy starts");
        assert_eq!(said.status.success(), valid, "{word}: {}", String::from_utf8_lossy(&said.stderr));
    }
}
