//! Checks that Envoy detects the address of the client as `--client-address` needs it, and sends it.
//!
//! `tests/it/envoy_addresses.txt` has what each combination does on Envoy 1.40.

use serde_json::Value;

use super::ExpectedConfig;
use super::filter::is_sent;
use super::json::{is_true, items, text};
use crate::client_address::{ClientAddress, X_FORWARDED_FOR};
use crate::diagnostics::Finding;

/// The remedy if clients can choose their address.
pub(super) const FORGEABLE: &str = "set use_remote_address: true, xff_num_trusted_hops to the number of trusted proxies \
    before Envoy, and --client-address metadata:x-tenantgate-client-address; see docs/guides/client-addresses.md";

const CHECK: &str = "envoy.client_address";

/// The address that Envoy has detected, as a substitution.
const DETECTED: [&str; 2] = ["%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "%DOWNSTREAM_REMOTE_ADDRESS%"];

/// How Envoy detects the address of a client.
enum Detection {
    /// From the connection and, with trusted proxies, their entries of `x-forwarded-for`.
    Connection {
        /// The number of trusted proxies.
        proxies: u64,
    },
    /// By an extension, which has rules of its own about whom to trust.
    Extension,
    /// From `x-forwarded-for`, which any client can write.
    Header,
}

impl Detection {
    fn of(manager: &Value) -> Self {
        if is_true(manager, "/use_remote_address") {
            let proxies = manager.get("xff_num_trusted_hops").and_then(Value::as_u64).unwrap_or(0);
            Self::Connection { proxies }
        } else if items(manager, "/original_ip_detection_extensions").next().is_some() {
            Self::Extension
        } else {
            Self::Header
        }
    }
}

/// Examines how a connection manager detects addresses, and how its filter sends them.
pub(super) fn examine(manager: &Value, filter: &Value, expected: &ExpectedConfig<'_>) -> Finding {
    let detection = Detection::of(manager);
    match expected.client_address {
        ClientAddress::Source => source(&detection),
        ClientAddress::Metadata(name) => metadata(name, &detection, filter),
        ClientAddress::XForwardedFor(n) => x_forwarded_for(*n, &detection, filter),
        ClientAddress::Header(name) => header(name, &detection, manager, filter),
    }
}

fn source(detection: &Detection) -> Finding {
    match detection {
        Detection::Connection { proxies: 1.. } | Detection::Extension => Finding::warn(
            CHECK,
            "--client-address source is the address of the proxy before Envoy: a key with networks is accepted from \
             all of its clients, or from none",
            FORGEABLE,
        ),
        _ => Finding::ok(CHECK, "the client is the peer of the connection to Envoy"),
    }
}

fn metadata(name: &str, detection: &Detection, filter: &Value) -> Finding {
    let values: Vec<_> = items(filter, "/grpc_service/initial_metadata")
        .filter(|entry| text(entry, "/key").is_some_and(|key| key.eq_ignore_ascii_case(name)))
        .map(|entry| text(entry, "/value").unwrap_or_default())
        .collect();
    let remedy =
        format!("set grpc_service: {{initial_metadata: [{{key: {name}, value: \"{}\"}}]}}", DETECTED[0]);
    match values[..] {
        [] => {
            let what = format!(
                "Envoy does not send the metadata {name}: every client's address is unknown, and keys with networks get 403"
            );
            Finding::bad(CHECK, what, remedy)
        }
        [value] if DETECTED.contains(&value) => match detection {
            Detection::Header => forgeable(&format!("the metadata {name}")),
            _ => Finding::ok(CHECK, format!("Envoy sends the client's address as the metadata {name}")),
        },
        [value] if value.starts_with("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS") => source(detection),
        [value] => {
            let what = format!(
                "Envoy fills the metadata {name} with {value}, which is not the address of the client"
            );
            Finding::bad(CHECK, what, remedy)
        }
        _ => {
            let what = format!("Envoy sends the metadata {name} twice: every client's address is unknown");
            Finding::bad(CHECK, what, remedy)
        }
    }
}

fn x_forwarded_for(n: usize, detection: &Detection, filter: &Value) -> Finding {
    if !is_sent(filter, X_FORWARDED_FOR) {
        return not_sent(X_FORWARDED_FOR);
    }
    let Detection::Connection { proxies } = detection else { return forgeable(X_FORWARDED_FOR) };
    let right = proxies + 1;
    let n = u64::try_from(n).unwrap_or(u64::MAX);
    if n == right {
        return Finding::ok(CHECK, format!("xff:{n} is the address before {proxies} trusted proxies"));
    }
    let what = if n > right {
        format!("xff:{n} is an entry that clients write: Envoy trusts {proxies} proxies")
    } else {
        format!("xff:{n} is the address of a proxy: Envoy trusts {proxies}")
    };
    let remedy = format!("set --client-address xff:{right}, or metadata:x-tenantgate-client-address");
    if n > right { Finding::bad(CHECK, what, remedy) } else { Finding::warn(CHECK, what, remedy) }
}

fn header(name: &str, detection: &Detection, manager: &Value, filter: &Value) -> Finding {
    if !is_sent(filter, name) {
        return not_sent(name);
    }
    // For a peer that it takes for internal, Envoy leaves the header as the client wrote it.
    let overwritten = name == "x-envoy-external-address"
        && matches!(detection, Detection::Connection { .. })
        && manager.get("internal_address_config").is_some();
    if overwritten {
        Finding::ok(CHECK, format!("Envoy overwrites {name} with the client's address"))
    } else {
        forgeable(name)
    }
}

fn not_sent(name: &str) -> Finding {
    let what = format!(
        "Envoy does not send {name} to tenantgate: every client's address is unknown, and keys with networks get 403"
    );
    Finding::bad(CHECK, what, format!("add {{exact: {name}}} to allowed_headers"))
}

fn forgeable(what: &str) -> Finding {
    let what =
        format!("{what} has the address that a client writes, unless a proxy before Envoy overwrites it");
    Finding::warn(CHECK, what, FORGEABLE)
}
