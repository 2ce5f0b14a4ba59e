//! Checks the findings of `doctor` about a real Envoy, with `envoy/envoy.yaml` unchanged and broken.

use crate::doctor::doctor;
use crate::envoy_module::{adding_module, publishing};
use crate::support::envoy::{Envoy, FILE, Plan};
use crate::support::link::free_port;
use crate::support::{Server, World};

/// Returns all findings about Envoy that are not ok, sorted by name.
fn not_ok(world: &World, args: &[&str]) -> Vec<String> {
    let (found, _) = doctor(&world.db, args);
    let mut found: Vec<_> = found.not_ok().into_iter().filter(|found| found.starts_with("envoy.")).collect();
    found.sort();
    found
}

/// Breaks the file and expects exactly these findings of its admin page.
#[track_caller]
fn spoilt(world: &World, server: &Server, spoil: &[(&str, &str)], expected: &[&str]) {
    let plan = spoil.iter().fold(Envoy::before(server), |plan, (from, to)| plan.with(from, to));
    let Some(envoy) = plan.start() else { return };
    envoy.finds_tenantgate(true);
    assert_eq!(not_ok(world, &["--envoy-admin", envoy.admin()]), expected);
}

const GRPC_ROUTE: &str = "              - match: {prefix: /, grpc: {}}\n";

/// A route for a separate path to a port without a listener yet.
fn with_sink(plan: Plan, port: u16, per_filter: &str) -> Plan {
    let route = format!(
        "              - match: {{path: /sink}}\n                route: {{cluster: sink}}\n{per_filter}{GRPC_ROUTE}"
    );
    let cluster = format!(
        "  - name: sink\n    type: STATIC\n    load_assignment:\n      cluster_name: sink\n      endpoints:\n      \
         - lb_endpoints:\n        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}\n"
    );
    plan.with(GRPC_ROUTE, &route).with("  - name: api_grpc\n", &format!("{cluster}  - name: api_grpc\n"))
}

const EXEMPT: &str = "                typed_per_filter_config:
                  envoy.filters.http.ext_authz:
                    \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    disabled: true
";

#[test]
fn the_file_that_users_start_from_has_no_findings() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let port = free_port();
    let Some(envoy) = with_sink(Envoy::before(&server), port, "").start() else { return };
    envoy.finds_tenantgate(true);
    let key = world.db.dir().join("key");
    std::fs::write(&key, &world.live.text).unwrap();
    let (key, sink, url) =
        (key.to_str().unwrap(), format!("127.0.0.1:{port}"), format!("http://{}", envoy.address));
    let live = ["--envoy", &url, "--path", "/sink", "--key-file", key, "--sink", &sink];
    let args = [&["--envoy-admin", envoy.admin()][..], &live].concat();
    let (found, code) = doctor(&world.db, &args);
    let wrong: Vec<_> = found.not_ok().into_iter().filter(|found| found.starts_with("envoy.")).collect();
    assert_eq!((wrong, code), (vec![], Some(0)), "{found:#?}");
    let checks = "version filter failure_mode status_on_error timeout retries key_header raw_headers mutations enforced \
        forged_headers routes underscores paths client_address limits cluster http2 resets circuit_breakers health_checks transport hosts errors \
        refuses passes forged_arrive key_arrives";
    for check in checks.split_whitespace() {
        assert!(found.is_ok(&format!("envoy.{check}")), "{check}: {found:#?}");
    }
    // An upstream that does not echo its request proves nothing.
    let live = ["--envoy", &url, "--path", "/v1", "--key-file", key];
    assert_eq!(not_ok(&world, &live), ["envoy.arrives warn"]);
    // No route leads to the sink.
    let live = ["--envoy", &url, "--path", "/v1", "--key-file", key, "--sink", &sink];
    assert_eq!(not_ok(&world, &live), ["envoy.arrives bad"]);
    std::fs::write(key, world.revoked.text.as_bytes()).unwrap();
    assert_eq!(not_ok(&world, &["--envoy", &url, "--key-file", key]), ["envoy.passes bad"]);
    assert_eq!(not_ok(&world, &["--envoy", &url, "--path", "/docs"]), ["envoy.refuses bad"]);
}

#[test]
fn each_defect_of_the_filter_is_found_once() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    spoilt(
        &world,
        &server,
        &[
            ("failure_mode_allow: false", "failure_mode_allow: true"),
            ("              status_on_error: {code: ServiceUnavailable}\n", ""),
            ("                timeout: 2s\n", "                timeout: 0.5s\n"),
            ("max_interval: 2s}", "max_interval: 0.1s}"),
            ("- {exact: x-llmcore-api-key, ignore_case: true}", "- {exact: x-other, ignore_case: true}"),
            ("encode_raw_headers: true", "encode_raw_headers: false\n              shadow_mode: true"),
            ("|x-llmcore-key-id|", "|"),
        ],
        &[
            "envoy.enforced bad",
            "envoy.failure_mode bad",
            "envoy.key_header bad",
            "envoy.mutations bad",
            "envoy.raw_headers warn",
            "envoy.retries bad",
            "envoy.status_on_error warn",
            "envoy.timeout warn",
        ],
    );
}

#[test]
fn retries_may_be_those_of_the_cluster() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    for (from, to, expected) in [
        ("num_retries: 2", "num_retries: 2", vec![]),
        ("num_retries: 2", "num_retries: 2\n          per_try_timeout: 0.1s", vec!["envoy.retries bad"]),
        (
            "retry_on: connect-failure,refused-stream,reset,unavailable",
            "retry_on: \"\"",
            vec!["envoy.retries warn"],
        ),
    ] {
        let Some(envoy) = Envoy::before(&server).retrying_in_cluster().with(from, to).start() else { return };
        envoy.finds_tenantgate(true);
        assert_eq!(not_ok(&world, &["--envoy-admin", envoy.admin()]), expected, "{to}");
    }
}

#[test]
fn limits_below_those_of_envoy_are_found() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let plan = Envoy::before(&server)
        .with("          stat_prefix:", "          max_request_headers_kb: 8192\n          stat_prefix:");
    let Some(envoy) = plan.start() else { return };
    envoy.finds_tenantgate(true);
    let found = |args: &[&str]| not_ok(&world, &[&["--envoy-admin", envoy.admin()], args].concat());
    assert_eq!(found(&[]), Vec::<String>::new(), "the default limits are above those of Envoy");
    assert_eq!(found(&["--max-message-bytes", "1048576"]), ["envoy.limits warn"]);
    assert_eq!(
        found(&["--max-header-bytes", "8192"]),
        Vec::<String>::new(),
        "without tracing, no headers are copied"
    );
    drop(envoy);
    let spoilt_by = "          tracing:\n            provider:\n              name: envoy.tracers.opentelemetry\n              \
        typed_config:\n                \"@type\": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig\n                \
        grpc_service: {envoy_grpc: {cluster_name: tenantgate}, timeout: 1s}\n          stat_prefix:";
    let Some(envoy) = Envoy::before(&server).with("          stat_prefix:", spoilt_by).start() else {
        return;
    };
    envoy.finds_tenantgate(true);
    let args = ["--envoy-admin", envoy.admin(), "--max-header-bytes", "8192"];
    assert_eq!(not_ok(&world, &args), ["envoy.limits warn"]);
}

#[test]
fn each_defect_of_the_listener_is_found_once() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let last = "                route: {cluster: api, timeout: 300s}\n";
    spoilt(
        &world,
        &server,
        &[
            ("headers_with_underscores_action: REJECT_REQUEST", "headers_with_underscores_action: ALLOW"),
            ("          merge_slashes: true\n", ""),
            ("              - {remove: x-llmcore-key-id}\n", ""),
            ("max_requests: 100000", "max_requests: 1024"),
            ("            max_outbound_control_frames: 100000\n", ""),
        ],
        &[
            "envoy.circuit_breakers warn",
            "envoy.forged_headers warn",
            "envoy.paths warn",
            "envoy.resets warn",
            "envoy.underscores warn",
        ],
    );
    let exempt = format!("{last}{EXEMPT}");
    spoilt(&world, &server, &[(last, &exempt)], &["envoy.routes warn"]);
    let removes = "                request_headers_to_remove: [x-llmcore-tenant-id]\n";
    let exempt = format!("{last}{removes}{EXEMPT}");
    spoilt(
        &world,
        &server,
        &[(last, &exempt), ("              - {remove: x-llmcore-key-id}\n", "")],
        &["envoy.forged_headers bad", "envoy.routes bad"],
    );
}

#[test]
fn a_cluster_that_speaks_no_grpc_is_found() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let file = std::fs::read_to_string(FILE).unwrap();
    let http2 = file
        .split("        explicit_http_config:\n")
        .nth(1)
        .expect("the comment of the cluster of tenantgate");
    let http2 = http2.split("    # WHY: every request").next().expect("what comes next");
    let health = "      grpc_health_check: {service_name: envoy.service.auth.v3.Authorization}";
    let plan = Envoy::before(&server).with(http2, "          http_protocol_options: {}\n");
    let plan = plan.with(health, "      tcp_health_check: {}");
    let Some(envoy) = plan.start() else { return };
    let url = format!("http://{}", envoy.address);
    let found = not_ok(&world, &["--envoy", &url]);
    assert_eq!(found, ["envoy.refuses bad"], "Envoy itself responds");
    envoy.finds_tenantgate(true);
    let found = not_ok(&world, &["--envoy-admin", envoy.admin()]);
    assert_eq!(found, ["envoy.errors warn", "envoy.health_checks warn", "envoy.http2 bad"]);
}

#[test]
fn requests_that_arrive_behind_an_exempt_route_are_examined() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let port = free_port();
    let early =
        ["id", "name", "schema"].map(|name| format!("              - {{remove: x-llmcore-tenant-{name}}}\n"));
    let plan = with_sink(Envoy::before(&server), port, EXEMPT);
    let plan = early.iter().fold(plan, |plan, line| plan.with(line, ""));
    let Some(envoy) = plan.start() else { return };
    let key = world.db.dir().join("key");
    std::fs::write(&key, &world.live.text).unwrap();
    let (url, sink) = (format!("http://{}", envoy.address), format!("127.0.0.1:{port}"));
    let live = ["--envoy", &url, "--path", "/sink", "--key-file", key.to_str().unwrap(), "--sink", &sink];
    assert_eq!(
        not_ok(&world, &live),
        ["envoy.forged_arrive bad", "envoy.key_arrives bad", "envoy.refuses bad"]
    );
}

#[test]
fn an_address_that_is_not_an_admin_page_is_reported() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    for address in [format!("127.0.0.1:{}", free_port()), server.ops.clone()] {
        assert_eq!(not_ok(&world, &["--envoy-admin", &address]), ["envoy.admin bad"]);
    }
    world.db.cli(&["doctor", "--envoy-admin", "ftp://x"]).usage();
    world.db.cli(&["doctor", "--key-file", "-"]).usage();
}

const METADATA: &str = "metadata:x-tenantgate-client-address";

/// A file with a key that is limited to a network without this machine.
fn limited(world: &World) -> String {
    world.db.json(&["key", "update", &world.other.id, "--networks", "203.0.113.0/24", "--wait"]);
    let file = world.db.dir().join("limited");
    std::fs::write(&file, &world.other.text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Sends the headers with addresses to tenantgate, too.
fn sending_addresses(plan: Plan) -> Plan {
    let bearer = "                - {exact: authorization, ignore_case: true}\n";
    let more = ["x-forwarded-for", "x-envoy-external-address"]
        .map(|name| format!("                - {{exact: {name}, ignore_case: true}}\n"));
    plan.with(bearer, &format!("{bearer}{}", more.concat()))
}

#[test]
fn an_address_that_envoy_does_not_send_is_found() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--client-address", METADATA]).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    envoy.finds_tenantgate(true);
    let found = |source: &str| not_ok(&world, &["--envoy-admin", envoy.admin(), "--client-address", source]);
    for source in ["source", METADATA] {
        assert_eq!(found(source), Vec::<String>::new(), "{source}");
    }
    for source in ["metadata:x-other", "xff:1", "header:x-envoy-external-address"] {
        assert_eq!(found(source), ["envoy.client_address bad"], "{source}");
    }
    let (url, key) = (format!("http://{}", envoy.address), limited(&world));
    let live = |args: &[&str]| not_ok(&world, &[&["--envoy", &url][..], args].concat());
    assert_eq!(live(&["--limited-key-file", &key, "--client-address", METADATA]), Vec::<String>::new());
    // A public path says nothing, and neither does a key without networks.
    let public = ["--limited-key-file", &key, "--path", "/docs"];
    assert_eq!(live(&public), ["envoy.forged_address bad", "envoy.refuses bad"]);
    std::fs::write(&key, &world.live.text).unwrap();
    let args = ["doctor", "--envoy", &url, "--limited-key-file", &key];
    assert!(world.db.cli(&args).usage().contains("no networks"));
}

#[test]
fn an_address_that_clients_can_choose_is_found() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--client-address", METADATA]).start();
    let remote = "          use_remote_address: true\n";
    let plan = sending_addresses(Envoy::before(&server));
    let Some(envoy) = plan.with(remote, "          use_remote_address: false\n").start() else { return };
    envoy.finds_tenantgate(true);
    let found = |source: &str| not_ok(&world, &["--envoy-admin", envoy.admin(), "--client-address", source]);
    assert_eq!(found("source"), Vec::<String>::new());
    for source in [METADATA, "xff:1", "header:x-envoy-external-address"] {
        assert_eq!(found(source), ["envoy.client_address warn"], "{source}");
    }
    let (url, key) = (format!("http://{}", envoy.address), limited(&world));
    let args = ["--envoy", &url, "--limited-key-file", &key];
    assert_eq!(not_ok(&world, &args), ["envoy.forged_address bad"]);
    let (report, _) = doctor(&world.db, &args);
    let told = format!("{report:?}");
    assert!(told.contains("x-forwarded-for: 203.0.113.0"), "{told}");
}

#[test]
fn a_position_that_does_not_fit_the_trusted_proxies_is_found() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let remote = "          use_remote_address: true\n";
    let plan = sending_addresses(Envoy::before(&server));
    let plan = plan.with(remote, &format!("{remote}          xff_num_trusted_hops: 1\n"));
    let Some(envoy) = plan.start() else { return };
    envoy.finds_tenantgate(true);
    for (source, finding) in [
        (METADATA, None),
        ("header:x-envoy-external-address", None),
        ("header:x-real-ip", Some("bad")),
        ("xff:2", None),
        ("source", Some("warn")),
        ("xff:1", Some("warn")),
        ("xff:3", Some("bad")),
    ] {
        let found = not_ok(&world, &["--envoy-admin", envoy.admin(), "--client-address", source]);
        let expected: Vec<_> =
            finding.map(|level| format!("envoy.client_address {level}")).into_iter().collect();
        assert_eq!(found, expected, "{source}");
    }
}

#[test]
fn an_identity_header_that_envoy_drops_is_found() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = Envoy::before(&server).start() else { return };
    envoy.finds_tenantgate(true);
    let found = |headers: &[&str]| {
        let headers = headers.iter().flat_map(|header| ["--identity-header", header]);
        not_ok(&world, &["--envoy-admin", envoy.admin()].into_iter().chain(headers).collect::<Vec<_>>())
    };
    assert_eq!(found(&["key-prefix", "scopes", "plan", "tenant-id"]), Vec::<String>::new());
    assert_eq!(found(&["none"]), Vec::<String>::new());
    // The expression matches whole names, and parts of this one.
    for header in ["plan=x-plan", "plan=x-llmcore-plan-name", "plan=x-llmcore"] {
        let [drops, arrives] = ["envoy.mutations bad", "envoy.forged_headers warn"];
        assert_eq!(found(&["tenant-id", header]), [arrives, drops], "{header}");
    }
    let (report, _) =
        doctor(&world.db, &["--envoy-admin", envoy.admin(), "--identity-header", "plan=x-plan"]);
    let told = format!("{report:?}");
    assert!(told.contains("drops what tenantgate sets or removes of x-plan"), "{told}");
}

#[test]
fn a_module_inside_envoy_is_examined_with_what_it_cannot_see() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let module = |plan| adding_module(plan, &socket);
    let wrong = |plan: Plan| -> Option<Vec<String>> {
        let envoy = plan.start()?;
        envoy.finds_tenantgate(true);
        Some(not_ok(&world, &["--envoy-admin", envoy.admin()]))
    };
    let Some(envoy) = module(Envoy::before(&server)).retrying_in_cluster().start() else { return };
    envoy.finds_tenantgate(true);
    let (found, _) = doctor(&world.db, &["--envoy-admin", envoy.admin()]);
    for check in ["check", "mark", "route_cache", "context", "exempt"] {
        assert!(found.is_ok(&format!("envoy.module_{check}")), "{check}: {found:#?}");
    }
    assert!(found.is_ok("envoy.enforced") && found.is_ok("envoy.retries"), "{found:#?}");
    let context = "                typed_per_filter_config:
                  envoy.filters.http.ext_authz:
                    \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    check_settings: {context_extensions: {tenantgate.mode: required}}
";
    let left = "                  tenantgate:
                    \"@type\": type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilterPerRoute
                    dynamic_module_config: {name: tenantgate_envoy, do_not_close: true}
                    filter_config: {\"@type\": type.googleapis.com/google.protobuf.StringValue, value: context_extensions=some}
";
    let route = |more: &str| {
        format!(
            "              - match: {{path: /x}}\n                route: {{cluster: api}}\n{more}{GRPC_ROUTE}"
        )
    };
    let writer = "          - name: envoy.filters.http.header_to_metadata
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config
              request_rules: [{header: x, on_header_present: {metadata_namespace: envoy.tenantgate, key: decided, type: STRING}}]
";
    let check =
        "          # --- The Check -----------------------------------------------------------------\n";
    for (from, to, expected) in [
        ("                invert: true\n", String::new(), "envoy.module_check bad"),
        ("clear_route_cache=false", "clear_route_cache=true".into(), "envoy.module_route_cache bad"),
        (GRPC_ROUTE, route(context), "envoy.module_context bad"),
        (GRPC_ROUTE, route(&format!("{context}{left}")), "envoy.module_context warn"),
        (" context_extensions=none", String::new(), "envoy.module_context warn"),
        (check, format!("{writer}{check}"), "envoy.module_mark bad"),
    ] {
        let Some(found) = wrong(module(Envoy::before(&server)).with(from, &to)) else { return };
        assert_eq!(found, [expected], "{to}");
    }
    // Left to checks, and their checks say so.
    let version = "              transport_api_version: V3\n";
    let names = format!("{version}              metadata_context_namespaces: [envoy.tenantgate]\n");
    let plan = module(Envoy::before(&server)).with(GRPC_ROUTE, &route(&format!("{context}{left}")));
    let Some(found) = wrong(plan.with(version, &names)) else { return };
    assert_eq!(found, [""; 0]);
    let found = wrong(module(Envoy::before(&server)).with(GRPC_ROUTE, &route(EXEMPT)));
    assert!(
        found.as_ref().is_some_and(|found| found.contains(&"envoy.module_exempt warn".into())),
        "{found:?}"
    );
}

#[test]
fn a_virtual_host_for_every_host_is_found_while_rules_have_hosts() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    spoilt(&world, &server, &[], &[]);
    world.db.json(&["route", "add", "--host", "api.example.com", "--path", "/**"]);
    spoilt(&world, &server, &[], &["envoy.domains warn"]);
}
