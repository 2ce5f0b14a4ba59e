//! Who answered a request that was sent through Envoy?
//!
//! tenantgate's refusals carry the id of the decision. Envoy's own answers have texts
//! and gaps of their own (1.40, as observed); whatever is neither came from behind it.

use super::http::Answer;

/// Who it was, what that means, and where to look next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Who answered.
    pub by: Answerer,
    /// What that means.
    pub what: String,
    /// Where to look next.
    pub look: String,
}

/// Who can answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answerer {
    /// Envoy, by itself.
    Envoy,
    /// tenantgate, through Envoy.
    Tenantgate,
    /// What is behind Envoy.
    Upstream,
}

impl Answerer {
    /// As people and programs read it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Tenantgate => "tenantgate",
            Self::Upstream => "upstream",
        }
    }
}

/// Tells who gave an answer. `decision_id` is the header by which tenantgate's are known.
#[must_use]
pub fn of(answer: &Answer, decision_id: &str) -> Verdict {
    let verdict = |by, what: &str, look: &str| Verdict { by, what: what.into(), look: look.into() };
    if let Some(id) = answer.header(decision_id) {
        let look = format!("grep {id} in the logs, and `tenantgate explain --decision-id {id} --log FILE`");
        return verdict(Answerer::Tenantgate, "tenantgate refused it", &look);
    }
    if let Some((_, _, what, look)) = OWN.iter().find(|(status, text, ..)| {
        answer.status == *status
            && if text.is_empty() { answer.body.is_empty() } else { answer.body.starts_with(text) }
    }) {
        return verdict(Answerer::Envoy, what, look);
    }
    verdict(
        Answerer::Upstream,
        "it passed, and what is behind Envoy answered",
        "a path may be public, a route exempt from the check: see decision and reason in Envoy's access log",
    )
}

/// What Envoy answers by itself: status, how the body begins (empty: there is none), what it means, where to look.
const OWN: [(u16, &str, &str, &str); 12] = [
    (
        400,
        "",
        "Envoy took the request for malformed and asked nobody",
        "headers with underscores, escaped slashes or a bad host? see details in its access log",
    ),
    (403, "RBAC", "Envoy's RBAC filter refused it", "see its rules"),
    (
        403,
        "",
        "tenantgate could not be asked, and status_on_error is not set; or the upgrade is not enabled",
        "flags UAEX and details ext_authz_error in its access log; `tenantgate doctor --envoy-admin ADDR`",
    ),
    (
        404,
        "",
        "no route of Envoy's has this host and path, and nobody was asked",
        "its routes; the Host header; details route_not_found in its access log",
    ),
    (
        413,
        "",
        "the body is longer than Envoy takes",
        "with_request_body.max_request_bytes, or the buffer filter",
    ),
    (426, "", "Envoy does not take HTTP/1.0", "accept_http_10"),
    (431, "", "the headers are longer than Envoy takes", "max_request_headers_kb"),
    (
        500,
        "",
        "tenantgate's answer could not be applied to the request",
        "decoder_header_mutation_rules, limits of headers; details ext_authz_invalid in its access log",
    ),
    (
        503,
        "",
        "tenantgate could not be asked, not in time, or too much was asked at once",
        "flags UAEX and details ext_authz_error in its access log; `tenantgate doctor --envoy-admin ADDR`",
    ),
    (
        503,
        "no healthy upstream",
        "it passed, and no host behind Envoy is healthy",
        "the cluster of the route",
    ),
    (
        503,
        "upstream connect error",
        "it passed, and the host behind Envoy does not answer",
        "the cluster of the route",
    ),
    (
        504,
        "upstream request timeout",
        "it passed, and the host behind Envoy took too long",
        "the timeout of the route",
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
        of(&Answer { status, headers, body: body.into() }, "x-id").by
    }

    #[test]
    fn an_answer_with_a_decision_is_tenantgates_and_one_with_a_body_of_its_own_the_upstreams() {
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
