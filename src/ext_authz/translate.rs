//! How does Envoy say it?
//!
//! The only room that knows HTTP status numbers and the names of the headers we
//! send. It turns bytes into an [`AccessRequest`] and a [`Decision`] into a
//! `CheckResponse`. What Envoy (1.40) does with each:
//!
//! | answer | Envoy |
//! |---|---|
//! | `status.code` 0 (also an *empty* response!) | lets the request pass; sets, then removes headers |
//! | code ≠ 0 with `denied_response` | refuses with our status, headers and body; `failure_mode_allow` does not matter |
//! | code ≠ 0 with `error_response` (1.37 and newer) | lets `failure_mode_allow` decide, else refuses as we say |
//! | a gRPC error | lets `failure_mode_allow` decide, else `status_on_error` |
//!
//! So every answer is built by [`answer`], which leaves no way to an empty one.

use std::collections::BTreeMap;

use prost_types::{Struct, Value, value::Kind};
use uuid::Uuid;

use super::codec::{NotACheckRequest, Visitor, walk};
use super::proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use super::proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use super::proto::envoy::service::auth::v3::check_response::HttpResponse;
use super::proto::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use super::proto::envoy::r#type::v3::{HttpStatus, StatusCode};
use super::proto::google::rpc::Status;
use crate::decision::{Decision, Denial, Grant, Identity, Reason};
use crate::record::KeyRecord;
use crate::request::{AUTHORIZATION, AccessRequest, Options, Reader};
use crate::tenant::Tenant;

/// What an upstream is told about a caller: set on every request that passes as a tenant, removed from every
/// other one.
pub const IDENTITY_HEADERS: [&str; 4] =
    ["x-llmcore-tenant-id", "x-llmcore-tenant-name", "x-llmcore-tenant-schema", "x-llmcore-key-id"];

/// Under which a client can name a refusal to the operator.
pub const DECISION_ID_HEADER: &str = "x-llmcore-decision-id";

/// gRPC status codes: <https://grpc.io/docs/guides/status-codes/>
mod grpc {
    pub(super) const OK: i32 = 0;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// Who decides about a request when we cannot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnUnavailable {
    /// We do: it is refused with 503, whatever Envoy is set to.
    #[default]
    Deny,
    /// Envoy does, by its `failure_mode_allow`.
    Error,
}

struct Headers<'o, 'a>(Reader<'o, 'a>);

impl<'a> Visitor<'a> for Headers<'_, 'a> {
    fn header(&mut self, name: &'a [u8], value: &'a [u8]) {
        self.0.header(name, value);
    }
}

/// Reads a `CheckRequest`. One without a request in it (the network filter sends such) has no key.
///
/// # Errors
///
/// The bytes are no `CheckRequest`.
pub fn read<'a>(message: &'a [u8], options: &Options) -> Result<AccessRequest<'a>, NotACheckRequest> {
    let mut headers = Headers(Reader::new(options));
    let target = walk(message, &mut headers)?;
    Ok(headers.0.finish(target.method, target.path))
}

/// How decisions are said.
#[derive(Clone, Debug, Default)]
pub struct Speech {
    /// The header that carried the key, which no upstream may see.
    pub key_header: String,
    /// Who decides when we cannot.
    pub on_unavailable: OnUnavailable,
}

/// Says a decision. `bearer` tells whether `Authorization` carried something of ours.
#[must_use]
pub fn answer(decision: &Decision<'_>, id: Uuid, bearer: bool, speech: &Speech) -> CheckResponse {
    let metadata = metadata(decision, id);
    let (code, http_response) = match decision {
        Decision::Allow(grant) => (grpc::OK, HttpResponse::OkResponse(allowed(grant, bearer, speech))),
        Decision::Deny(denial) => denied(denial, id),
        Decision::Unable(..) => unable(id, speech.on_unavailable),
    };
    CheckResponse {
        status: Some(Status { code, ..Status::default() }),
        http_response: Some(http_response),
        dynamic_metadata: Some(metadata),
    }
}

fn allowed(grant: &Grant<'_>, bearer: bool, speech: &Speech) -> OkHttpResponse {
    let mut headers_to_remove = vec![speech.key_header.clone()];
    if bearer {
        headers_to_remove.push(AUTHORIZATION.to_owned());
    }
    let headers = match grant {
        Grant::Public => {
            headers_to_remove.extend(IDENTITY_HEADERS.map(str::to_owned));
            Vec::new()
        }
        Grant::Tenant(key, tenant) => identity_headers(key, tenant),
    };
    OkHttpResponse { headers, headers_to_remove, ..OkHttpResponse::default() }
}

fn identity_headers(key: &KeyRecord, tenant: &Tenant) -> Vec<HeaderValueOption> {
    let values =
        [tenant.id.0.to_string(), percent_encoded(&tenant.name), tenant.schema.clone(), key.id.0.to_string()];
    IDENTITY_HEADERS.into_iter().zip(values).map(|(name, value)| header(name, value)).collect()
}

fn denied(denial: &Denial<'_>, id: Uuid) -> (i32, HttpResponse) {
    let (code, status, detail) = match denial.reason {
        Reason::Missing => (grpc::UNAUTHENTICATED, StatusCode::Unauthorized, "Missing API key"),
        Reason::Malformed => (grpc::UNAUTHENTICATED, StatusCode::Unauthorized, "Invalid API key format"),
        // One text for all of these: which of them it was is nobody's business but ours.
        Reason::Unknown | Reason::Mismatch | Reason::Revoked | Reason::Expired => {
            (grpc::UNAUTHENTICATED, StatusCode::Unauthorized, "Invalid API key")
        }
        Reason::TenantInactive => {
            (grpc::PERMISSION_DENIED, StatusCode::Forbidden, "Tenant account is inactive")
        }
    };
    let mut response = refusal(status, detail, id);
    if status == StatusCode::Unauthorized {
        // RFC 9110 §11.6.1: a 401 names the scheme it wants.
        response.headers.push(header("www-authenticate", "ApiKey realm=\"llmcore\"".into()));
    }
    (code, HttpResponse::DeniedResponse(response))
}

/// Seconds after which a caller may try again: what is wrong rarely passes sooner, and often by then.
const RETRY_AFTER: &str = "1";

fn unable(id: Uuid, on_unavailable: OnUnavailable) -> (i32, HttpResponse) {
    let mut response = refusal(StatusCode::ServiceUnavailable, "Authentication service unavailable", id);
    response.headers.push(header("retry-after", RETRY_AFTER.into()));
    match on_unavailable {
        OnUnavailable::Deny => (grpc::PERMISSION_DENIED, HttpResponse::DeniedResponse(response)),
        OnUnavailable::Error => (grpc::UNAVAILABLE, HttpResponse::ErrorResponse(response)),
    }
}

fn refusal(status: StatusCode, detail: &str, id: Uuid) -> DeniedHttpResponse {
    DeniedHttpResponse {
        status: Some(HttpStatus { code: status.into() }),
        headers: vec![
            header("content-type", "application/json".into()),
            header(DECISION_ID_HEADER, id.to_string()),
        ],
        body: format!("{{\"detail\":\"{detail}\"}}"),
    }
}

/// A header that takes the place of the client's own. `append` stays unset and `append_action` says so
/// explicitly: some Envoys read one and some the other.
fn header(name: &str, value: String) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: name.to_owned(), value, raw_value: Vec::new() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

/// A text that any header can carry: `%` and every byte outside 0x21–0x7E is percent-encoded (RFC 3986 §2.1).
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// `dynamic_metadata`, which Envoy puts into the namespace `envoy.filters.http.ext_authz`. Who the caller is
/// goes in only once it is proven.
fn metadata(decision: &Decision<'_>, id: Uuid) -> Struct {
    let (word, reason, identity) = match decision {
        Decision::Allow(Grant::Public) => ("allow", "public", None),
        Decision::Allow(Grant::Tenant(key, tenant)) => {
            ("allow", "ok", Some(Identity { key, tenant: Some(tenant) }))
        }
        Decision::Deny(denial) => ("deny", denial.reason.as_str(), denial.identity),
        Decision::Unable(_, identity) => ("unable", "unavailable", *identity),
    };
    let mut fields = BTreeMap::new();
    let mut put = |name: &str, value: String| {
        fields.insert(name.to_owned(), Value { kind: Some(Kind::StringValue(value)) });
    };
    put("decision", word.into());
    put("reason", reason.into());
    put("decision_id", id.to_string());
    if let Some(Identity { key, tenant }) = identity {
        put("key_id", key.id.0.to_string());
        put("key_prefix", key.prefix.to_string());
        if let Some(at) = key.expires_at.at() {
            put("key_expires_at", at.to_string());
        }
        if let Some(tenant) = tenant {
            put("tenant_id", tenant.id.0.to_string());
            put("tenant_name", tenant.name.clone());
            put("tenant_schema", tenant.schema.clone());
            put("tenant_status", tenant.status.to_string());
        }
    }
    Struct { fields }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::decision::Fault;
    use crate::key::KeyId;
    use crate::tenant::{TenantId, TenantStatus};

    fn key() -> KeyRecord {
        let (id, tenant_id) = (KeyId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
        let expires_at = Some(Timestamp(0)).into();
        KeyRecord { id, tenant_id, prefix: "llmk_demo".into(), hash: None, expires_at, revoked: false }
    }

    fn tenant() -> Tenant {
        Tenant {
            id: TenantId(Uuid::from_u128(2)),
            name: "Söhne & 100%".into(),
            schema: "tenant_demo".into(),
            status: TenantStatus::Active,
            created_at: Timestamp(0),
        }
    }

    fn speech(on_unavailable: OnUnavailable) -> Speech {
        Speech { key_header: "x-llmcore-api-key".into(), on_unavailable }
    }

    fn say(decision: &Decision<'_>) -> CheckResponse {
        answer(decision, Uuid::nil(), false, &speech(OnUnavailable::Deny))
    }

    fn every_refusal() -> Vec<Decision<'static>> {
        let deny = |reason| Decision::Deny(Denial { reason, identity: None });
        let unable = |fault| Decision::Unable(fault, None);
        Reason::ALL.into_iter().map(deny).chain(Fault::ALL.into_iter().map(unable)).collect()
    }

    #[test]
    fn nothing_but_an_allow_has_the_code_that_lets_pass() {
        for decision in every_refusal() {
            for mode in [OnUnavailable::Deny, OnUnavailable::Error] {
                let response = answer(&decision, Uuid::nil(), false, &speech(mode));
                assert_ne!(response.status.unwrap().code, 0, "{decision:?}");
                assert!(!matches!(response.http_response.unwrap(), HttpResponse::OkResponse(_)));
            }
        }
    }

    #[test]
    fn an_allow_sets_each_identity_header_once_and_never_empty() {
        let (key, tenant) = (key(), tenant());
        let response = say(&Decision::Allow(Grant::Tenant(&key, &tenant)));
        let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!() };
        let set: Vec<_> = ok
            .headers
            .iter()
            .map(|h| {
                assert_eq!(h.append_action, 2);
                let header = h.header.clone().unwrap();
                assert!(header.raw_value.is_empty() && !header.value.is_empty());
                (header.key, header.value)
            })
            .collect();
        assert_eq!(set.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(), IDENTITY_HEADERS);
        assert_eq!(set[1].1, "S%C3%B6hne%20&%20100%25");
        assert_eq!(ok.headers_to_remove, ["x-llmcore-api-key"]);
    }

    #[test]
    fn a_public_request_keeps_neither_identity_nor_key() {
        let response =
            answer(&Decision::Allow(Grant::Public), Uuid::nil(), true, &speech(OnUnavailable::Deny));
        let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!() };
        assert!(ok.headers.is_empty());
        assert_eq!(ok.headers_to_remove[..2], ["x-llmcore-api-key", "authorization"]);
        assert_eq!(ok.headers_to_remove[2..], IDENTITY_HEADERS);
    }

    #[test]
    fn metadata_names_the_caller_only_once_he_is_proven() {
        let (key, tenant) = (key(), tenant());
        let names = |decision: &Decision<'_>| {
            let fields = say(decision).dynamic_metadata.unwrap().fields;
            fields.into_keys().collect::<Vec<_>>().join(" ")
        };
        for decision in every_refusal() {
            assert_eq!(names(&decision), "decision decision_id reason");
        }
        assert_eq!(
            names(&Decision::Allow(Grant::Tenant(&key, &tenant))),
            "decision decision_id key_expires_at key_id key_prefix reason tenant_id tenant_name tenant_schema tenant_status"
        );
    }
}
