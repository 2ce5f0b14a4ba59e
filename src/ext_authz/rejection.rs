//! The response to a rejected client: status, headers and body for each reason.

use std::borrow::Cow;

use super::header::{DECISION_ID_HEADER, header};
use super::wire::Message;
use crate::decision::{Denial, Reason};

/// The body of a rejection of a key that is used from outside of its networks.
pub const OUTSIDE_NETWORKS: &str = "{\"detail\":\"API key is not allowed from this address\"}";

/// gRPC status codes: <https://grpc.io/docs/guides/status-codes/>
pub(super) mod grpc {
    pub(in super::super) const OK: u8 = 0;
    pub(in super::super) const PERMISSION_DENIED: u8 = 7;
    pub(in super::super) const UNAVAILABLE: u8 = 14;
    pub(in super::super) const UNAUTHENTICATED: u8 = 16;
}

/// The response to a rejected client.
pub(super) struct Rejection {
    http: u16,
    body: &'static str,
    /// An additional header.
    header: Option<(&'static str, Cow<'static, str>)>,
}

/// The header that names the authentication scheme, which a 401 must have (RFC 9110 §11.6.1).
const CHALLENGE: (&str, &str) = ("www-authenticate", "ApiKey realm=\"llmcore\"");

/// The response if tenantgate cannot decide. `Retry-After` is one second, after which most faults have passed.
pub(super) const UNAVAILABLE: Rejection = Rejection {
    http: 503,
    body: "{\"detail\":\"Authentication service unavailable\"}",
    header: Some(("retry-after", Cow::Borrowed("1"))),
};

/// Returns the gRPC status of a denial, and the response to the client.
pub(super) fn rejection(denial: &Denial<'_>) -> (u8, Rejection) {
    let (name, challenge) = CHALLENGE;
    let unauthorized = |body| {
        let header = Some((name, Cow::Borrowed(challenge)));
        (grpc::UNAUTHENTICATED, Rejection { http: 401, body, header })
    };
    let forbidden = |body, header| (grpc::PERMISSION_DENIED, Rejection { http: 403, body, header });
    match denial.reason {
        Reason::Missing => unauthorized("{\"detail\":\"Missing API key\"}"),
        Reason::Malformed => unauthorized("{\"detail\":\"Invalid API key format\"}"),
        // All of these have the same text, so that clients cannot distinguish them.
        Reason::Unknown
        | Reason::Mismatch
        | Reason::Revoked
        | Reason::Disabled
        | Reason::Expired
        | Reason::NotYetValid => unauthorized("{\"detail\":\"Invalid API key\"}"),
        Reason::TenantInactive => forbidden("{\"detail\":\"Tenant account is inactive\"}", None),
        Reason::Network => forbidden(OUTSIDE_NETWORKS, None),
        Reason::Route => forbidden("{\"detail\":\"No rule allows this request\"}", None),
        Reason::Scope => {
            let challenge = Some((name, Cow::Owned(insufficient(challenge, denial.needs))));
            forbidden("{\"detail\":\"API key lacks a required scope\"}", challenge)
        }
        Reason::PathAmbiguous => {
            let body = "{\"detail\":\"Ambiguous path\"}";
            (grpc::PERMISSION_DENIED, Rejection { http: 400, body, header: None })
        }
    }
}

/// Returns the challenge of RFC 6750 §3.1 for our scheme. Scopes have no characters that need quoting.
fn insufficient(challenge: &str, needs: Option<&str>) -> String {
    let scope = needs.unwrap_or_default().split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    format!("{challenge}, error=\"insufficient_scope\", scope=\"{scope}\"")
}

/// `DeniedHttpResponse`: status = 1, headers = 2, body = 3. `HttpStatus`: code = 1.
pub(super) fn write_rejection(denied: &mut Message<'_>, rejection: &Rejection, id: &str) {
    denied.message(1, |status| status.short(1, rejection.http));
    header(denied, "content-type", |value| value.extend_from_slice(b"application/json"));
    header(denied, DECISION_ID_HEADER, |value| value.extend_from_slice(id.as_bytes()));
    if let Some((name, content)) = &rejection.header {
        header(denied, name, |value| value.extend_from_slice(content.as_bytes()));
    }
    denied.text(3, rejection.body);
}
