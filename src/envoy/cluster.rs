//! Is the cluster that is asked set up well?

use serde_json::Value;

use super::Expected;
use super::json::{is_of_type, items, text};
use crate::diagnostics::Finding;

/// Requests that a cluster takes at once if nothing is said, beyond which Envoy answers by itself.
const DEFAULT_REQUESTS: u64 = 1_024;

/// The name of the cluster that a filter asks.
pub(super) fn asked(filter: &Value) -> Option<&str> {
    text(filter, "/grpc_service/envoy_grpc/cluster_name")
}

/// Looks at the cluster that a filter asks.
pub(super) fn examine(dump: &Value, filter: &Value, expected: &Expected<'_>) -> Vec<Finding> {
    const CHECK: &str = "envoy.cluster";
    let Some(name) = asked(filter) else {
        let what = "google_grpc asks: it heeds no retry policy, and is not looked at here";
        return vec![Finding::warn(CHECK, what, "use envoy_grpc with a cluster")];
    };
    let Some(cluster) = find(dump, name) else {
        return vec![Finding::bad(
            CHECK,
            format!("there is no cluster {name}"),
            "add it, as in envoy/envoy.yaml",
        )];
    };
    let found = Finding::ok(CHECK, format!("the cluster {name} is asked"));
    vec![found, http2(cluster), requests(cluster), health(cluster, expected), transport(cluster)]
}

fn find<'a>(dump: &'a Value, name: &str) -> Option<&'a Value> {
    let configs = items(dump, "/configs").filter(|config| is_of_type(config, "ClustersConfigDump"));
    let lists = ["/static_clusters", "/dynamic_active_clusters"];
    let all = configs.flat_map(|config| lists.into_iter().flat_map(move |list| items(config, list)));
    all.map(|entry| &entry["cluster"]).find(|cluster| text(cluster, "/name") == Some(name))
}

fn http2(cluster: &Value) -> Finding {
    const CHECK: &str = "envoy.http2";
    let mut explicit = cluster.get("http2_protocol_options").is_some();
    super::json::for_each_object(&cluster["typed_extension_protocol_options"], &mut |object| {
        explicit |= object.pointer("/explicit_http_config/http2_protocol_options").is_some();
    });
    if explicit {
        Finding::ok(CHECK, "tenantgate is asked over HTTP/2")
    } else {
        let what = "tenantgate is asked over HTTP/1.1, which is no gRPC: every check fails";
        Finding::bad(
            CHECK,
            what,
            "typed_extension_protocol_options … explicit_http_config: {http2_protocol_options: {}}",
        )
    }
}

fn requests(cluster: &Value) -> Finding {
    const CHECK: &str = "envoy.circuit_breakers";
    let most = cluster.pointer("/circuit_breakers/thresholds/0/max_requests").and_then(Value::as_u64);
    let most = most.unwrap_or(DEFAULT_REQUESTS);
    if most > DEFAULT_REQUESTS {
        Finding::ok(CHECK, format!("{most} checks at once"))
    } else {
        let what =
            format!("beyond {most} checks at once Envoy answers by itself, as if tenantgate were down");
        Finding::warn(
            CHECK,
            what,
            "circuit_breakers: {thresholds: [{max_requests: 100000, max_pending_requests: 10000}]}",
        )
    }
}

fn health(cluster: &Value, expected: &Expected<'_>) -> Finding {
    const CHECK: &str = "envoy.health_checks";
    let service = expected.health_service;
    let asks = |check: &Value| text(check, "/grpc_health_check/service_name") == Some(service);
    if items(cluster, "/health_checks").any(asks) {
        Finding::ok(CHECK, "a replica that is not fit is spared")
    } else {
        let what = "a replica that starts, drains or lost its database is asked all the same";
        Finding::warn(
            CHECK,
            what,
            format!("health_checks with grpc_health_check: {{service_name: {service}}}"),
        )
    }
}

fn transport(cluster: &Value) -> Finding {
    const CHECK: &str = "envoy.transport";
    let mut beyond = None;
    super::json::for_each_object(&cluster["load_assignment"], &mut |object| {
        let address = text(object, "/socket_address/address");
        beyond = beyond.or(address.filter(|address| !is_near(address)));
    });
    match (beyond, cluster.get("transport_socket")) {
        (Some(address), None) => Finding::warn(
            CHECK,
            format!("keys cross the network to {address} in the clear"),
            "UpstreamTlsContext, and --tls-cert, --tls-key, --client-ca at tenantgate",
        ),
        (_, Some(_)) => Finding::ok(CHECK, "tenantgate is asked over TLS"),
        (None, None) if cluster.get("load_assignment").is_some() => {
            Finding::ok(CHECK, "tenantgate is asked on this machine")
        }
        (None, None) => Finding::warn(
            CHECK,
            "no TLS, and the hosts come from discovery: keys may cross a network in the clear",
            "see that they are near, or an UpstreamTlsContext",
        ),
    }
}

fn is_near(address: &str) -> bool {
    address == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
