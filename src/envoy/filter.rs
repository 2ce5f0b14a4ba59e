//! Is the filter that asks set up well?

use serde_json::Value;

use super::Expected;
use super::json::{is_true, items, seconds, text};
use crate::diagnostics::Finding;

/// What Envoy waits for if nothing is said.
const DEFAULT_TIMEOUT: f64 = 0.2;

/// A first proof takes a third of a second on a free core.
const LEAST_TIMEOUT: f64 = 1.0;

/// Looks at the configuration of an `ext_authz` filter.
pub(super) fn examine(filter: &Value, expected: &Expected<'_>) -> Vec<Finding> {
    let found = [failure_mode(filter), status_on_error(filter), timeout(filter), retries(filter)];
    let more = [headers(filter, expected), raw_headers(filter), mutations(filter, expected), asked(filter)];
    found.into_iter().chain(more).chain(body(filter)).collect()
}

fn failure_mode(filter: &Value) -> Finding {
    const CHECK: &str = "envoy.failure_mode";
    if is_true(filter, "/failure_mode_allow") {
        let what = "failure_mode_allow: whoever can slow tenantgate down is let in, without a key";
        Finding::bad(CHECK, what, "failure_mode_allow: false")
    } else {
        Finding::ok(CHECK, "no answer, no entry")
    }
}

fn status_on_error(filter: &Value) -> Finding {
    const CHECK: &str = "envoy.status_on_error";
    match text(filter, "/status_on_error/code") {
        Some("ServiceUnavailable") => Finding::ok(CHECK, "503 while tenantgate cannot be asked"),
        other => {
            let what = format!(
                "{} while tenantgate cannot be asked, which looks like a bad key",
                other.unwrap_or("403")
            );
            Finding::warn(CHECK, what, "status_on_error: {code: ServiceUnavailable}")
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
        Finding::ok(CHECK, format!("Envoy waits {timeout} s for an answer"))
    } else {
        let what =
            format!("Envoy waits {timeout} s: the first proof of a key takes longer, its request gets 503");
        Finding::warn(CHECK, what, "grpc_service: {timeout: 2s}")
    }
}

/// Envoy takes the longest back-off for the timeout of a single try too.
fn retries(filter: &Value) -> Finding {
    const CHECK: &str = "envoy.retries";
    let Some(policy) = filter.pointer("/grpc_service/retry_policy") else {
        let what = "none: a request that a stopping replica drops fails";
        return Finding::warn(CHECK, what, "grpc_service: {retry_policy: …}, as in envoy/envoy.yaml");
    };
    let base = seconds(policy, "/retry_back_off/base_interval").unwrap_or(0.025);
    let each = seconds(policy, "/retry_back_off/max_interval").unwrap_or(base * 10.0);
    if each + f64::EPSILON < allowed_time(filter).min(LEAST_TIMEOUT) {
        let what = format!(
            "each try is cut off after {each} s: Envoy takes retry_back_off.max_interval for its timeout"
        );
        Finding::bad(CHECK, what, "make max_interval as long as the timeout")
    } else {
        Finding::ok(CHECK, "a try that gets no connection is made again")
    }
}

fn headers(filter: &Value, expected: &Expected<'_>) -> Finding {
    const CHECK: &str = "envoy.key_header";
    let bearer = expected.bearer.then_some("authorization");
    for name in [expected.key_header].into_iter().chain(bearer) {
        let allowed = filter.get("allowed_headers").is_none_or(|list| matches(list, name));
        if !allowed || filter.get("disallowed_headers").is_some_and(|list| matches(list, name)) {
            let what = format!("{name} is not sent to tenantgate: every request is one without a key");
            return Finding::bad(CHECK, what, format!("allowed_headers: {{patterns: [{{exact: {name}}}]}}"));
        }
    }
    if filter.get("allowed_headers").is_none() {
        let what = "every header is sent to tenantgate, cookies too";
        return Finding::warn(
            CHECK,
            what,
            format!("allowed_headers with {} alone: it is faster", expected.key_header),
        );
    }
    Finding::ok(CHECK, format!("{} is sent to tenantgate", expected.key_header))
}

/// Whether a `ListStringMatcher` matches a name. A regular expression is given the benefit of the doubt.
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
        Finding::ok(CHECK, "headers reach tenantgate as they came")
    } else {
        let what = "two headers of a name reach tenantgate as one, joined by a comma";
        Finding::warn(CHECK, what, "encode_raw_headers: true")
    }
}

/// What the answer may set and remove.
fn mutations(filter: &Value, expected: &Expected<'_>) -> Finding {
    const CHECK: &str = "envoy.mutations";
    let Some(rules) = filter.get("decoder_header_mutation_rules") else {
        let what = "whatever answers on tenantgate's address may set any header, :path too";
        return Finding::warn(CHECK, what, "decoder_header_mutation_rules, as in envoy/envoy.yaml");
    };
    let allowed = text(rules, "/allow_expression/regex").unwrap_or_default();
    let ours = expected.identity.iter().copied().chain([expected.key_header]);
    let refused: Vec<_> = ours.filter(|name| !allowed.contains(name)).collect();
    if is_true(rules, "/disallow_all") && !refused.is_empty() {
        let what = format!("Envoy does not let tenantgate set or remove {}", refused.join(", "));
        return Finding::bad(CHECK, what, "name it in decoder_header_mutation_rules.allow_expression");
    }
    Finding::ok(CHECK, "tenantgate may set and remove its own headers")
}

/// Whether every request is asked about, and the answer heeded.
fn asked(filter: &Value) -> Finding {
    const CHECK: &str = "envoy.enforced";
    if is_true(filter, "/shadow_mode") {
        return Finding::bad(
            CHECK,
            "shadow_mode: refusals are not heeded",
            "shadow_mode: false, when you are ready",
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
    let partly = share == Some(false) || filter.get("filter_enabled_metadata").is_some();
    let denied = filter.pointer("/deny_at_disable/default_value/value").is_some_and(|value| value == true);
    if partly && !denied {
        let what = "not every request is asked about (filter_enabled): the others pass, with what headers they bring";
        return Finding::bad(CHECK, what, "drop filter_enabled, or set deny_at_disable");
    }
    if filter.get("enable_dynamic_metadata_ingestion") == Some(&Value::Bool(false)) {
        let what = "enforced; but reasons and decision ids do not get into the access log";
        return Finding::warn(CHECK, what, "drop enable_dynamic_metadata_ingestion: false");
    }
    Finding::ok(CHECK, "every request is asked about, and the answer heeded")
}

fn body(filter: &Value) -> Option<Finding> {
    filter.get("with_request_body").map(|_| {
        let what =
            "bodies are buffered and sent to tenantgate, which reads none: slow, and 413 for long ones";
        Finding::warn("envoy.body", what, "drop with_request_body")
    })
}
