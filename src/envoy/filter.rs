//! Checks the configuration of the `ext_authz` filter.

use regex::Regex;
use serde_json::Value;

use super::ExpectedConfig;
use super::json::{is_true, items, seconds, text};
use crate::diagnostics::Finding;

/// The default timeout of Envoy, in seconds.
const DEFAULT_TIMEOUT: f64 = 0.2;

/// The minimum timeout, in seconds: a first proof takes a third of a second on an idle core.
const LEAST_TIMEOUT: f64 = 1.0;

/// Examines the configuration of an `ext_authz` filter. `retry_policy` is that of the cluster that it calls.
pub(super) fn examine(
    filter: &Value,
    retry_policy: Option<&Value>,
    expected: &ExpectedConfig<'_>,
) -> Vec<Finding> {
    let retries = retries(filter, retry_policy);
    let found = [failure_mode(filter), status_on_error(filter), timeout(filter), retries];
    let more =
        [headers(filter, expected), raw_headers(filter), mutations(filter, expected), enforced(filter)];
    found.into_iter().chain(more).chain(body(filter)).collect()
}

fn failure_mode(filter: &Value) -> Finding {
    const CHECK: &str = "envoy.failure_mode";
    if is_true(filter, "/failure_mode_allow") {
        let what = "failure_mode_allow: a client that slows tenantgate down passes without a key";
        Finding::bad(CHECK, what, "set failure_mode_allow: false")
    } else {
        Finding::ok(CHECK, "without an answer of tenantgate, requests are rejected")
    }
}

fn status_on_error(filter: &Value) -> Finding {
    const CHECK: &str = "envoy.status_on_error";
    match text(filter, "/status_on_error/code") {
        Some("ServiceUnavailable") => Finding::ok(CHECK, "clients get 503 while tenantgate does not respond"),
        other => {
            let what = format!(
                "clients get {} while tenantgate does not respond, which looks like an invalid key",
                other.unwrap_or("403")
            );
            Finding::warn(CHECK, what, "set status_on_error: {code: ServiceUnavailable}")
        }
    }
}

fn allowed_time(filter: &Value) -> f64 {
    seconds(filter, "/grpc_service/timeout").unwrap_or(DEFAULT_TIMEOUT)
}

fn timeout(filter: &Value) -> Finding {
    const CHECK: &str = "envoy.timeout";
    let timeout = allowed_time(filter);
    if timeout >= LEAST_TIMEOUT || timeout == 0.0 {
        Finding::ok(CHECK, format!("Envoy waits up to {timeout} s for an answer"))
    } else {
        let what = format!(
            "Envoy waits only {timeout} s: the first proof of a key takes longer, and its request gets 503"
        );
        Finding::warn(CHECK, what, "set grpc_service: {timeout: 2s}")
    }
}

/// A policy of the filter counts before that of the cluster. For one of the filter, Envoy uses the longest back-off also
/// as the timeout of a single attempt.
fn retries(filter: &Value, of_cluster: Option<&Value>) -> Finding {
    const CHECK: &str = "envoy.retries";
    let of_filter = filter.pointer("/grpc_service/retry_policy");
    let (each, field) = match (of_filter, of_cluster) {
        (Some(policy), _) => {
            let base = seconds(policy, "/retry_back_off/base_interval").unwrap_or(0.025);
            let each = seconds(policy, "/retry_back_off/max_interval").unwrap_or(base * 10.0);
            (each, "retry_back_off.max_interval")
        }
        (None, Some(policy)) => {
            (seconds(policy, "/per_try_timeout").unwrap_or(f64::INFINITY), "per_try_timeout")
        }
        (None, None) => {
            let what = "there are no retries: a request fails if a stopping replica drops it";
            return Finding::warn(CHECK, what, "set grpc_service: {retry_policy: …}, as in envoy/envoy.yaml");
        }
    };
    if each + f64::EPSILON < allowed_time(filter).min(LEAST_TIMEOUT) {
        let what = format!("each attempt times out after {each} s: Envoy uses {field} as its timeout");
        Finding::bad(CHECK, what, format!("set {field} to the timeout"))
    } else {
        Finding::ok(CHECK, "Envoy retries attempts without a connection")
    }
}

fn headers(filter: &Value, expected: &ExpectedConfig<'_>) -> Finding {
    const CHECK: &str = "envoy.key_header";
    let bearer = expected.bearer.then_some("authorization");
    for name in [expected.key_header].into_iter().chain(bearer) {
        if !is_sent(filter, name) {
            let what = format!(
                "Envoy does not send {name} to tenantgate: every request counts as one without a key"
            );
            return Finding::bad(
                CHECK,
                what,
                format!("set allowed_headers: {{patterns: [{{exact: {name}}}]}}"),
            );
        }
    }
    if filter.get("allowed_headers").is_none() {
        let what = "Envoy sends every header to tenantgate, including cookies";
        return Finding::warn(
            CHECK,
            what,
            format!("set allowed_headers to {} alone, which is faster", expected.key_header),
        );
    }
    Finding::ok(CHECK, format!("Envoy sends {} to tenantgate", expected.key_header))
}

/// Returns whether Envoy sends a header to tenantgate.
pub(super) fn is_sent(filter: &Value, name: &str) -> bool {
    filter.get("allowed_headers").is_none_or(|list| matches(list, name))
        && !filter.get("disallowed_headers").is_some_and(|list| matches(list, name))
}

/// Returns whether a `ListStringMatcher` matches a name. A regular expression counts as a match.
fn matches(list: &Value, name: &str) -> bool {
    items(list, "/patterns").any(|pattern| {
        let fold =
            |text: &str| if is_true(pattern, "/ignore_case") { text.to_lowercase() } else { text.to_owned() };
        let with = |field: &str, test: fn(&str, &str) -> bool| {
            text(pattern, field).is_some_and(|wanted| test(name, &fold(wanted)))
        };
        with("/exact", |name, wanted| name == wanted)
            || with("/prefix", |name, wanted| name.starts_with(wanted))
            || with("/suffix", |name, wanted| name.ends_with(wanted))
            || with("/contains", |name, wanted| name.contains(wanted))
            || pattern.get("safe_regex").is_some()
    })
}

fn raw_headers(filter: &Value) -> Finding {
    const CHECK: &str = "envoy.raw_headers";
    if is_true(filter, "/encode_raw_headers") {
        Finding::ok(CHECK, "headers reach tenantgate unchanged")
    } else {
        let what = "Envoy joins two headers of one name by a comma";
        Finding::warn(CHECK, what, "set encode_raw_headers: true")
    }
}

/// Checks which headers the response may set and remove.
fn mutations(filter: &Value, expected: &ExpectedConfig<'_>) -> Finding {
    const CHECK: &str = "envoy.mutations";
    let Some(rules) = filter.get("decoder_header_mutation_rules") else {
        let what = "a server at tenantgate's address may set any header, even :path";
        return Finding::warn(CHECK, what, "set decoder_header_mutation_rules, as in envoy/envoy.yaml");
    };
    let bearer = expected.bearer.then_some("authorization");
    let ours = expected.identity.iter().copied().chain([expected.key_header]).chain(bearer);
    let dropped: Vec<_> = ours.filter(|name| !may_change(rules, name)).collect();
    if !dropped.is_empty() {
        let what = format!(
            "Envoy drops what tenantgate sets or removes of {}, without an error",
            dropped.join(", ")
        );
        let remedy = format!(
            "set decoder_header_mutation_rules.allow_expression to a regular expression that matches all of {}, and \
             disallow_expression to none that does",
            dropped.join("|")
        );
        return Finding::bad(CHECK, what, remedy);
    }
    Finding::ok(CHECK, "tenantgate may set and remove its own headers")
}

/// Returns whether the rules let a response change a header, in the order in which Envoy reads them.
fn may_change(rules: &Value, name: &str) -> bool {
    // Envoy compares the whole name.
    let matches = |path: &str| {
        let pattern = text(rules, path).and_then(|regex| Regex::new(&format!("^(?:{regex})$")).ok());
        pattern.is_some_and(|pattern| pattern.is_match(name))
    };
    if matches("/disallow_expression/regex") {
        return false;
    }
    matches("/allow_expression/regex") || !is_true(rules, "/disallow_all")
}

/// Checks that every request is checked and the result enforced.
fn enforced(filter: &Value) -> Finding {
    const CHECK: &str = "envoy.enforced";
    if is_true(filter, "/shadow_mode") {
        return Finding::bad(
            CHECK,
            "shadow_mode: Envoy does not enforce rejections",
            "set shadow_mode: false once the shadow report shows no surprises",
        );
    }
    let share = filter.pointer("/filter_enabled/default_value").map(|share| {
        let whole = match text(share, "/denominator") {
            Some("TEN_THOUSAND") => 10_000,
            Some("MILLION") => 1_000_000,
            _ => 100,
        };
        share["numerator"].as_u64().unwrap_or(0) >= whole
    });
    let unless_decided = text(filter, "/filter_enabled_metadata/filter") == Some(super::module::NAMESPACE);
    let partly = share == Some(false) || filter.get("filter_enabled_metadata").is_some() && !unless_decided;
    let denied = filter.pointer("/deny_at_disable/default_value/value").is_some_and(|value| value == true);
    if partly && !denied {
        let what = "not every request is checked (filter_enabled): the others pass with any headers";
        return Finding::bad(CHECK, what, "remove filter_enabled, or set deny_at_disable");
    }
    if filter.get("enable_dynamic_metadata_ingestion") == Some(&Value::Bool(false)) {
        let what = "every request is checked, but the access log has no reasons and decision ids";
        return Finding::warn(CHECK, what, "remove enable_dynamic_metadata_ingestion: false");
    }
    Finding::ok(CHECK, "every request is checked and the result enforced")
}

fn body(filter: &Value) -> Option<Finding> {
    filter.get("with_request_body").map(|_| {
        let what =
            "Envoy buffers bodies and sends them to tenantgate, which ignores them: it is slow, and long bodies get 413";
        Finding::warn("envoy.body", what, "remove with_request_body")
    })
}
