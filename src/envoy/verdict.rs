//! Determines which program answered a request that was sent through Envoy.
//!
//! Rejections of tenantgate carry the id of the decision. Envoy's own responses are recognized by status and text (as
//! observed with 1.40). All others come from the upstream.

use super::http::HttpResponse;

/// The program that answered a request, the meaning, and the next check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attribution {
    /// The program that answered.
    pub by: Answerer,
    /// The meaning of the response.
    pub what: String,
    /// The next thing to check.
    pub next: String,
}

/// A program that can answer a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answerer {
    /// Envoy, by itself.
    Envoy,
    /// tenantgate, through Envoy.
    Tenantgate,
    /// The upstream behind Envoy.
    Upstream,
}

impl Answerer {
    /// Returns the word in text and JSON output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Tenantgate => "tenantgate",
            Self::Upstream => "upstream",
        }
    }
}

/// Determines which program sent a response. `decision_id` is the header that marks rejections of tenantgate.
#[must_use]
pub fn of(response: &HttpResponse, decision_id: &str) -> Attribution {
    let verdict = |by, what: &str, next: &str| Attribution { by, what: what.into(), next: next.into() };
    if let Some(id) = response.header(decision_id) {
        let next =
            format!("search {id} in the logs, or run `tenantgate explain --decision-id {id} --log FILE`");
        return verdict(Answerer::Tenantgate, "tenantgate rejected it", &next);
    }
    if let Some((_, _, what, next)) = OWN.iter().find(|(status, text, ..)| {
        response.status == *status
            && if text.is_empty() { response.body.is_empty() } else { response.body.starts_with(text) }
    }) {
        return verdict(Answerer::Envoy, what, next);
    }
    verdict(
        Answerer::Upstream,
        "it passed, and the upstream answered",
        "the path may be public, or the route exempt from the check: see decision and reason in Envoy's access log",
    )
}

/// Envoy's own responses: status, beginning of the body (empty for none), meaning, and what to check.
const OWN: [(u16, &str, &str, &str); 12] = [
    (
        400,
        "",
        "Envoy rejected the request as malformed, without a check",
        "check for headers with underscores, escaped slashes or an invalid host; see the details in its access log",
    ),
    (403, "RBAC", "Envoy's RBAC filter rejected it", "check the rules of that filter"),
    (
        403,
        "",
        "Envoy got no answer of tenantgate, and status_on_error is not set; or the upgrade is not enabled",
        "see flags UAEX and details ext_authz_error in its access log; run `tenantgate doctor --envoy-admin ADDR`",
    ),
    (
        404,
        "",
        "Envoy has no route for this host and path; there was no check",
        "check its routes and the Host header; see details route_not_found in its access log",
    ),
    (
        413,
        "",
        "the body is larger than Envoy accepts",
        "check with_request_body.max_request_bytes and the buffer filter",
    ),
    (426, "", "Envoy does not accept HTTP/1.0", "set accept_http_10"),
    (431, "", "the headers are larger than Envoy accepts", "raise max_request_headers_kb"),
    (
        500,
        "",
        "Envoy could not apply the answer of tenantgate to the request",
        "check decoder_header_mutation_rules and the limits of headers; see details ext_authz_invalid in its access log",
    ),
    (
        503,
        "",
        "Envoy got no answer of tenantgate: it was down, too slow, or there were too many concurrent checks",
        "see flags UAEX and details ext_authz_error in its access log; run `tenantgate doctor --envoy-admin ADDR`",
    ),
    (
        503,
        "no healthy upstream",
        "it passed, but no host of the upstream is healthy",
        "check the cluster of the route",
    ),
    (
        503,
        "upstream connect error",
        "it passed, but the host of the upstream does not respond",
        "check the cluster of the route",
    ),
    (
        504,
        "upstream request timeout",
        "it passed, but the host of the upstream took too long",
        "check the timeout of the route",
    ),
];

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn by(status: u16, body: &str, id: bool) -> Answerer {
        let mut headers = HeaderMap::new();
        if id {
            headers.insert("x-id", "1".parse().unwrap());
        }
        of(&HttpResponse { status, headers, body: body.into() }, "x-id").by
    }

    #[test]
    fn answers_are_attributed_by_decision_id_status_and_body() {
        assert_eq!(by(401, "{}", true), Answerer::Tenantgate);
        assert_eq!(by(503, "", true), Answerer::Tenantgate);
        for (status, body) in [(200, ""), (404, "no such model"), (503, "{}"), (401, "")] {
            assert_eq!(by(status, body, false), Answerer::Upstream, "{status} {body:?}");
        }
        for (status, body) in
            [(404, ""), (503, ""), (403, "RBAC: access denied"), (503, "no healthy upstream")]
        {
            assert_eq!(by(status, body, false), Answerer::Envoy, "{status} {body:?}");
        }
    }
}
