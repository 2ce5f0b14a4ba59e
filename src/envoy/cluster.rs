//! Checks the Envoy cluster that the `ext_authz` filter calls.

use serde_json::Value;

use super::ExpectedConfig;
use super::json::{is_of_type, items, text};
use crate::diagnostics::Finding;

/// The default limit of concurrent requests of a cluster. Envoy rejects further requests itself.
const DEFAULT_REQUESTS: u64 = 1_024;

/// The default of `Http2ProtocolOptions.max_outbound_control_frames`. Beyond it Envoy closes its connection.
const DEFAULT_CONTROL_FRAMES: u64 = 1_000;

/// Returns the name of the cluster that a filter calls.
pub(super) fn called(filter: &Value) -> Option<&str> {
    text(filter, "/grpc_service/envoy_grpc/cluster_name")
}

/// Examines the cluster that a filter calls.
pub(super) fn examine(dump: &Value, filter: &Value, expected: &ExpectedConfig<'_>) -> Vec<Finding> {
    const CHECK: &str = "envoy.cluster";
    let Some(name) = called(filter) else {
        let what = "the filter uses google_grpc, which ignores retry policies; its target is not examined";
        return vec![Finding::warn(CHECK, what, "use envoy_grpc with a cluster")];
    };
    let Some(cluster) = find(dump, name) else {
        return vec![Finding::bad(
            CHECK,
            format!("the cluster {name} does not exist"),
            "add it, as in envoy/envoy.yaml",
        )];
    };
    let found = Finding::ok(CHECK, format!("the filter calls the cluster {name}"));
    let options = http2_options(cluster);
    let mut findings = vec![found, http2(options)];
    findings.extend(options.map(resets));
    findings.extend([requests(cluster), health(cluster, expected), transport(cluster)]);
    findings
}

fn find<'a>(dump: &'a Value, name: &str) -> Option<&'a Value> {
    let configs = items(dump, "/configs").filter(|config| is_of_type(config, "ClustersConfigDump"));
    let lists = ["/static_clusters", "/dynamic_active_clusters"];
    let all = configs.flat_map(|config| lists.into_iter().flat_map(move |list| items(config, list)));
    all.map(|entry| &entry["cluster"]).find(|cluster| text(cluster, "/name") == Some(name))
}

/// Returns the `Http2ProtocolOptions` of a cluster, if it uses HTTP/2 and nothing else.
fn http2_options(cluster: &Value) -> Option<&Value> {
    let mut options = cluster.get("http2_protocol_options");
    super::json::for_each_object(&cluster["typed_extension_protocol_options"], &mut |object| {
        options = options.or(object.pointer("/explicit_http_config/http2_protocol_options"));
    });
    options
}

/// Returns the retry policy of the cluster that a filter calls, which Envoy has since 1.37.
pub(super) fn retry_policy<'a>(dump: &'a Value, filter: &Value) -> Option<&'a Value> {
    let options = find(dump, called(filter)?)?.get("typed_extension_protocol_options")?;
    let mut all = options.as_object()?.values().filter_map(|options| options.get("retry_policy"));
    all.find(|policy| text(policy, "/retry_on").is_some())
}

fn http2(options: Option<&Value>) -> Finding {
    const CHECK: &str = "envoy.http2";
    if options.is_some() {
        Finding::ok(CHECK, "Envoy calls tenantgate over HTTP/2")
    } else {
        let what = "Envoy calls tenantgate over HTTP/1.1, which cannot carry gRPC: every check fails";
        Finding::bad(
            CHECK,
            what,
            "set typed_extension_protocol_options … explicit_http_config: {http2_protocol_options: {}}",
        )
    }
}

/// Checks that clients that hang up do not make Envoy close its connection to tenantgate.
fn resets(options: &Value) -> Finding {
    const CHECK: &str = "envoy.resets";
    let most = options.pointer("/max_outbound_control_frames").and_then(Value::as_u64);
    let most = most.unwrap_or(DEFAULT_CONTROL_FRAMES);
    if most > DEFAULT_CONTROL_FRAMES {
        Finding::ok(CHECK, format!("up to {most} clients may hang up at once"))
    } else {
        let what = format!(
            "if {most} clients hang up at once, Envoy closes its connection to tenantgate, and all checks on it fail"
        );
        Finding::warn(CHECK, what, "set http2_protocol_options: {max_outbound_control_frames: 100000}")
    }
}

fn requests(cluster: &Value) -> Finding {
    const CHECK: &str = "envoy.circuit_breakers";
    let most = cluster.pointer("/circuit_breakers/thresholds/0/max_requests").and_then(Value::as_u64);
    let most = most.unwrap_or(DEFAULT_REQUESTS);
    if most > DEFAULT_REQUESTS {
        Finding::ok(CHECK, format!("up to {most} concurrent checks"))
    } else {
        let what =
            format!("beyond {most} concurrent checks Envoy rejects requests, as if tenantgate were down");
        Finding::warn(
            CHECK,
            what,
            "set circuit_breakers: {thresholds: [{max_requests: 100000, max_pending_requests: 10000}]}",
        )
    }
}

fn health(cluster: &Value, expected: &ExpectedConfig<'_>) -> Finding {
    const CHECK: &str = "envoy.health_checks";
    let service = expected.health_service;
    let asks = |check: &Value| text(check, "/grpc_health_check/service_name") == Some(service);
    if items(cluster, "/health_checks").any(asks) {
        Finding::ok(CHECK, "Envoy does not call replicas that are not ready")
    } else {
        let what = "Envoy also calls replicas that start, drain or have lost the database";
        Finding::warn(
            CHECK,
            what,
            format!("add health_checks with grpc_health_check: {{service_name: {service}}}"),
        )
    }
}

fn transport(cluster: &Value) -> Finding {
    const CHECK: &str = "envoy.transport";
    let mut beyond = None;
    super::json::for_each_object(&cluster["load_assignment"], &mut |object| {
        let address = text(object, "/socket_address/address");
        beyond = beyond.or(address.filter(|address| !is_local(address)));
    });
    match (beyond, cluster.get("transport_socket")) {
        (Some(address), None) => Finding::warn(
            CHECK,
            format!("keys are sent to {address} over the network without encryption"),
            "add an UpstreamTlsContext, and --tls-cert, --tls-key, --client-ca to serve",
        ),
        (_, Some(_)) => Finding::ok(CHECK, "Envoy calls tenantgate over TLS"),
        (None, None) if cluster.get("load_assignment").is_some() => {
            Finding::ok(CHECK, "Envoy calls tenantgate on the same machine")
        }
        (None, None) => Finding::warn(
            CHECK,
            "there is no TLS, and the hosts come from discovery: keys may be sent over a network without encryption",
            "make sure that the hosts are on the same machine, or add an UpstreamTlsContext",
        ),
    }
}

fn is_local(address: &str) -> bool {
    address == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
