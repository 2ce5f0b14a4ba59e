//! Checks Envoy's configuration for everything that tenantgate relies on.
//!
//! Reads a configuration dump, finds the HTTP connection managers with an `ext_authz` filter over gRPC, and examines
//! each of them, its filter, and the cluster of the filter. Numbers and defaults are those of Envoy 1.40.

use serde_json::Value;

use super::json::{is_of_type, is_true, items, of_type, text};
use super::{ExpectedConfig, address, cluster, filter, module};
use crate::diagnostics::Finding;

/// Returns findings about a configuration.
pub(super) fn examine(dump: &Value, expected: &ExpectedConfig<'_>) -> Vec<Finding> {
    let managers: Vec<_> =
        managers(dump).into_iter().filter_map(|manager| Some((manager, filter_of(manager)?))).collect();
    if managers.is_empty() {
        let what = "no listener has an ext_authz filter with gRPC: requests need no key";
        return vec![Finding::bad("envoy.filter", what, "add the filter, as in envoy/envoy.yaml")];
    }
    let names: Vec<_> = managers.iter().map(|(manager, _)| name(manager)).collect();
    let mut findings = vec![Finding::ok(
        "envoy.filter",
        format!("these listeners have the ext_authz filter: {}", names.join(", ")),
    )];
    for (manager, asked) in &managers {
        let mut found = filter::examine(asked, cluster::retry_policy(dump, asked), expected);
        found.extend(manager_findings(dump, manager, expected));
        found.push(address::examine(manager, asked, expected));
        found.push(limits(manager, asked, expected));
        found.extend(cluster::examine(dump, asked, expected));
        found.extend(module::examine(manager, &routes_of(dump, manager)));
        if managers.len() > 1 {
            for finding in &mut found {
                finding.what = format!("{}: {}", name(manager), finding.what);
            }
        }
        findings.extend(found);
    }
    findings
}

/// Returns the connection managers of the listeners. The copies in the bootstrap are ignored.
fn managers(dump: &Value) -> Vec<&Value> {
    let listeners = items(dump, "/configs").filter(|config| is_of_type(config, "ListenersConfigDump"));
    listeners.flat_map(|config| of_type(config, "HttpConnectionManager")).collect()
}

fn name(manager: &Value) -> &str {
    text(manager, "/stat_prefix").unwrap_or("a listener")
}

/// Returns the `ext_authz` filter of a manager, if it uses gRPC.
fn filter_of(manager: &Value) -> Option<&Value> {
    let filters = items(manager, "/http_filters").map(|filter| &filter["typed_config"]);
    filters.into_iter().find(|config| is_of_type(config, "ExtAuthz") && config.get("grpc_service").is_some())
}

fn manager_findings(dump: &Value, manager: &Value, expected: &ExpectedConfig<'_>) -> Vec<Finding> {
    let exempt = exempt_routes(dump, manager);
    let stripped = strips_early(manager, expected);
    let mut findings = vec![forged(stripped, exempt), routes(dump, manager, stripped, exempt, expected)];
    findings.push(underscores(manager));
    findings.push(paths(manager));
    findings.extend(expected.rules_of_hosts.then(|| domains(dump, manager)));
    findings
}

/// Checks whether clients can avoid rules for single hosts by choosing another host.
fn domains(dump: &Value, manager: &Value) -> Finding {
    const CHECK: &str = "envoy.domains";
    let hosts = routes_of(dump, manager).into_iter().flat_map(|routes| items(routes, "/virtual_hosts"));
    let any = hosts.into_iter().find(|host| items(host, "/domains").any(|domain| domain == "*"));
    match any.map(|host| text(host, "/name").unwrap_or_default()) {
        None => Finding::ok(CHECK, "no virtual host accepts every host"),
        Some(name) => Finding::warn(
            CHECK,
            format!(
                "the virtual host {name:?} has the domain *, and some rules are for single hosts: a client that sends \
                 another host avoids them"
            ),
            "list the hosts in domains, or run serve with --route-default deny",
        ),
    }
}

/// Returns whether the filter is disabled on some routes.
fn exempt_routes(dump: &Value, manager: &Value) -> bool {
    routes_of(dump, manager)
        .into_iter()
        .flat_map(|routes| of_type(routes, "ExtAuthzPerRoute"))
        .any(|route| is_true(route, "/disabled"))
}

/// Returns the routes of a manager, inline or by name in the dump.
fn routes_of<'a>(dump: &'a Value, manager: &'a Value) -> Vec<&'a Value> {
    let inline = manager.get("route_config").into_iter();
    let Some(named) = text(manager, "/rds/route_config_name") else { return inline.collect() };
    let configs = items(dump, "/configs").filter(|config| is_of_type(config, "RoutesConfigDump"));
    let all = configs.flat_map(|config| of_type(config, "RouteConfiguration"));
    inline.chain(all.filter(|routes| text(routes, "/name") == Some(named))).collect()
}

/// Returns whether every identity header is removed before the filter calls tenantgate.
fn strips_early(manager: &Value, expected: &ExpectedConfig<'_>) -> bool {
    let early =
        items(manager, "/early_header_mutation_extensions").map(|extension| &extension["typed_config"]);
    let filters = items(manager, "/http_filters").map(|filter| &filter["typed_config"]);
    let before = filters.take_while(|config| !is_of_type(config, "ExtAuthz"));
    let removed: Vec<_> = early.flat_map(removals).chain(before.flat_map(removals)).collect();
    expected.identity.iter().all(|name| removed.iter().any(|removed| removed.eq_ignore_ascii_case(name)))
}

/// Returns the names that a header mutation removes.
fn removals(config: &Value) -> Vec<&str> {
    let lists = ["/mutations", "/mutations/request_mutations"];
    lists
        .iter()
        .flat_map(|list| items(config, list))
        .filter_map(|mutation| text(mutation, "/remove"))
        .collect()
}

fn forged(stripped: bool, exempt: bool) -> Finding {
    const CHECK: &str = "envoy.forged_headers";
    const REMEDY: &str = "add early_header_mutation_extensions, as in envoy/envoy.yaml";
    match (stripped, exempt) {
        (true, _) => Finding::ok(CHECK, "Envoy removes forged identity headers before the check"),
        (false, true) => Finding::bad(
            CHECK,
            "forged identity headers reach the upstream on routes that are exempt from the check",
            REMEDY,
        ),
        (false, false) => Finding::warn(
            CHECK,
            "only tenantgate's response removes forged identity headers: a route that is exempted later would pass them",
            REMEDY,
        ),
    }
}

fn routes(
    dump: &Value,
    manager: &Value,
    stripped: bool,
    exempt: bool,
    expected: &ExpectedConfig<'_>,
) -> Finding {
    const CHECK: &str = "envoy.routes";
    let mut removed = None;
    for routes in routes_of(dump, manager) {
        super::json::for_each_object(routes, &mut |object| {
            let names = items(object, "/request_headers_to_remove").filter_map(Value::as_str);
            removed = removed.or(names.into_iter().find(|name| expected.identity.contains(name)));
        });
    }
    if let Some(name) = removed {
        let what =
            format!("a route removes {name}, which tenantgate sets: the upstream does not get the tenant");
        return Finding::bad(CHECK, what, "remove it from request_headers_to_remove");
    }
    match (exempt, stripped) {
        (false, _) => Finding::ok(CHECK, "no route is exempt from the check"),
        (true, _) => Finding::warn(
            CHECK,
            "some routes are exempt from the check: keys that clients send there reach the upstream",
            "remove ExtAuthzPerRoute.disabled, and make paths public with --public of serve",
        ),
    }
}

/// Checks that every request that Envoy accepts fits into a call.
fn limits(manager: &Value, filter: &Value, expected: &ExpectedConfig<'_>) -> Finding {
    const CHECK: &str = "envoy.limits";
    /// `max_request_headers_kb` if it is not set.
    const DEFAULT_HEADERS_KB: u64 = 60;
    /// The size that Envoy adds to the headers and the body of a request.
    const OWN: u64 = 64 * 1024;
    let number = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_u64);
    let headers = number(manager, "/max_request_headers_kb").unwrap_or(DEFAULT_HEADERS_KB) * 1024 + OWN;
    let body = number(filter, "/with_request_body/max_request_bytes").unwrap_or(0);
    // Envoy copies trace headers of the client into the headers of the call, and what initial_metadata takes from a
    // request. Clients cannot make addresses and names of routes longer.
    let is_bounded =
        |operator: &str| operator.starts_with("DOWNSTREAM_") || operator.starts_with("ROUTE_NAME");
    let from_client = |entry: &Value| {
        let value = entry.get("value").and_then(Value::as_str).unwrap_or_default();
        !value.split('%').skip(1).step_by(2).all(is_bounded)
    };
    let metadata = filter.pointer("/grpc_service/initial_metadata").and_then(Value::as_array);
    let copies = manager.get("tracing").is_some() || metadata.into_iter().flatten().any(from_client);
    if headers + body > expected.message_bytes {
        let what = format!(
            "Envoy may send a request of {} bytes, but tenantgate accepts {}: larger requests get 503",
            headers + body,
            expected.message_bytes
        );
        return Finding::warn(
            CHECK,
            what,
            "raise --max-message-bytes, or lower max_request_headers_kb or max_request_bytes",
        );
    }
    if copies && headers > expected.header_bytes {
        let what = format!(
            "Envoy may send trace headers of {headers} bytes, but tenantgate accepts {}: larger requests get 503",
            expected.header_bytes
        );
        return Finding::warn(CHECK, what, "raise --max-header-bytes, or lower max_request_headers_kb");
    }
    Finding::ok(CHECK, "every request that Envoy accepts fits into a call to tenantgate")
}

fn underscores(manager: &Value) -> Finding {
    const CHECK: &str = "envoy.underscores";
    let action = text(manager, "/common_http_protocol_options/headers_with_underscores_action");
    match action {
        Some(action @ ("REJECT_REQUEST" | "DROP_HEADER")) => {
            Finding::ok(CHECK, format!("headers with underscores: {action}"))
        }
        _ => Finding::warn(
            CHECK,
            "x_llmcore_tenant_id reaches the upstream, which may treat it as x-llmcore-tenant-id",
            "set common_http_protocol_options: {headers_with_underscores_action: REJECT_REQUEST}",
        ),
    }
}

fn paths(manager: &Value) -> Finding {
    const CHECK: &str = "envoy.paths";
    let escaped = text(manager, "/path_with_escaped_slashes_action");
    let decided = escaped.is_some_and(|action| action != "KEEP_UNCHANGED");
    if is_true(manager, "/normalize_path") && is_true(manager, "/merge_slashes") && decided {
        Finding::ok(CHECK, "paths are normalized: they mean the same to tenantgate and to the upstream")
    } else {
        let what = "paths are not normalized: the upstream may interpret a path differently from tenantgate";
        Finding::warn(
            CHECK,
            what,
            "set normalize_path, merge_slashes, path_with_escaped_slashes_action: REJECT_REQUEST",
        )
    }
}
