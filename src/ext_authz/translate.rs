//! Translates between Envoy's messages and decisions.
//!
//! It parses a `CheckRequest` into an [`AccessRequest`] and renders a [`Decision`] as a `CheckResponse`. Only this
//! module knows HTTP status numbers and the names of response headers. Envoy (1.40) treats responses as follows:
//!
//! | response | Envoy |
//! |---|---|
//! | `status.code` 0 (also an *empty* response!) | allows the request; sets headers, then removes headers |
//! | code ≠ 0 with `denied_response` | rejects with our status, headers and body, regardless of `failure_mode_allow` |
//! | code ≠ 0 with `error_response` (1.37 or later) | allows if `failure_mode_allow` is set, otherwise rejects as above |
//! | a gRPC error | allows if `failure_mode_allow` is set, otherwise rejects with `status_on_error` |
//!
//! Every response is therefore rendered by [`answer`], which never writes an empty one.

use std::borrow::Cow;

use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::codec::{NotACheckRequest, Visitor, walk};
use super::origin::is_left_by_module;
use super::told::{IdentityField, IdentityHeaders, MetadataField, MetadataFields};
use super::wire::Message;
use crate::decision::{Decision, Denial, Grant, Identity, Reason};
use crate::gate::Terms;
use crate::plan::{Limit, Plan};
use crate::record::KeyRecord;
use crate::replica::ResponseCache;
use crate::request::{AUTHORIZATION, AccessRequest, Options, Reader};
use crate::scope::Scopes;
use crate::tenant::Tenant;

/// The default identity headers: set on every request that is allowed as a tenant, and removed from every other
/// allowed request.
pub const IDENTITY_HEADERS: [&str; 4] =
    ["x-llmcore-tenant-id", "x-llmcore-tenant-name", "x-llmcore-tenant-schema", "x-llmcore-key-id"];

/// The response header with the id of the decision, which the client can report to the operator.
pub const DECISION_ID_HEADER: &str = "x-llmcore-decision-id";

/// The body of a rejection of a key that is used from outside of its networks.
pub const OUTSIDE_NETWORKS: &str = "{\"detail\":\"API key is not allowed from this address\"}";

/// gRPC status codes: <https://grpc.io/docs/guides/status-codes/>
mod grpc {
    pub(super) const OK: u8 = 0;
    pub(super) const PERMISSION_DENIED: u8 = 7;
    pub(super) const UNAVAILABLE: u8 = 14;
    pub(super) const UNAUTHENTICATED: u8 = 16;
}

/// What happens to a request that tenantgate cannot decide: `--on-unavailable`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnUnavailable {
    /// It is rejected with 503, regardless of Envoy's configuration.
    #[default]
    Deny,
    /// Envoy decides by its `failure_mode_allow`, unless clients can cause the fault
    /// ([`Fault::is_caused_by_clients`](crate::decision::Fault::is_caused_by_clients)).
    Error,
}

struct Headers<'o, 'a>(Reader<'o, 'a>);

impl<'a> Visitor<'a> for Headers<'_, 'a> {
    #[inline]
    fn header(&mut self, name: &'a [u8], value: &'a [u8]) {
        self.0.header(name, value);
    }

    fn context(&mut self, name: &'a [u8], value: &'a [u8]) {
        self.0.context(name, value);
    }
}

/// Parses a `CheckRequest`. A message without HTTP attributes, as the network filter sends it, has no key.
///
/// # Errors
///
/// Fails if `message` is not a valid `CheckRequest`.
pub fn read<'a>(message: &'a [u8], options: &Options) -> Result<AccessRequest<'a>, NotACheckRequest> {
    let mut headers = Headers(Reader::new(options));
    let target = walk(message, &mut headers)?;
    let mut request = headers.0.finish(target.method, target.host, target.path);
    if request.context.is_told() {
        request.context.left_by_module = is_left_by_module(message);
    }
    Ok(request)
}

/// Options of responses.
#[derive(Clone, Debug, Default)]
pub struct Speech {
    /// The header that carries the key, which is removed before the request goes upstream.
    pub key_header: String,
    /// Whether the key is kept on allowed requests, for a second filter.
    pub keep_key_header: bool,
    /// What happens to requests that cannot be decided.
    pub on_unavailable: OnUnavailable,
    /// The headers that identify the caller to the upstream.
    pub identity: IdentityHeaders,
    /// The optional metadata fields.
    pub metadata: MetadataFields,
}

/// The content of a response.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The decision.
    pub decision: &'a Decision<'a>,
    /// What the response says about the key, apart from its row.
    pub terms: Terms<'a>,
    /// The cache for the parts about the tenant, so that they are rendered only once.
    pub cache: Option<&'a ResponseCache>,
}

impl<'a> Answer<'a> {
    /// Creates a response without terms and cache.
    #[must_use]
    pub fn of(decision: &'a Decision<'a>) -> Self {
        Self { decision, terms: Terms::default(), cache: None }
    }
}

/// Renders a response: appends the bytes of a `CheckResponse` to `to`. `bearer` says whether `Authorization`
/// contains a key or an attempt at one, and is removed.
///
/// It writes directly into the buffer, because building the generated messages takes forty allocations.
pub fn answer(to: &mut Vec<u8>, content: &Answer<'_>, id: Uuid, bearer: bool, speech: &Speech) {
    let mut buffer = [0; Hyphenated::LENGTH];
    let id: &str = id.hyphenated().encode_lower(&mut buffer);
    let mut response = Message(to);
    // CheckResponse: denied_response = 2, ok_response = 3, dynamic_metadata = 4, error_response = 5.
    match content.decision {
        Decision::Allow(grant) => {
            status(&mut response, grpc::OK);
            response.message(3, |ok| allowed(ok, grant, content, bearer, speech));
        }
        Decision::Deny(denial) => {
            let (code, rejected) = rejection(denial);
            status(&mut response, code);
            response.message(2, |denied| write_rejection(denied, &rejected, id));
        }
        Decision::Unable(fault, _) => {
            let (code, field) = match speech.on_unavailable {
                OnUnavailable::Error if !fault.is_caused_by_clients() => (grpc::UNAVAILABLE, 5),
                OnUnavailable::Deny | OnUnavailable::Error => (grpc::PERMISSION_DENIED, 2),
            };
            status(&mut response, code);
            response.message(field, |error| write_rejection(error, &UNAVAILABLE, id));
        }
    }
    response.message(4, |fields| metadata(fields, content, id, speech));
}

/// A capacity in bytes that is enough for a usual response with a tenant.
pub const ROOM: usize = 1000;

/// `CheckResponse.status` = 1, which is written also if it is empty. `google.rpc.Status`: code = 1.
fn status(response: &mut Message<'_>, code: u8) {
    response.message(1, |status| status.number(1, code));
}

/// `OkHttpResponse`: headers = 2, `headers_to_remove` = 5.
fn allowed(ok: &mut Message<'_>, grant: &Grant<'_>, content: &Answer<'_>, bearer: bool, speech: &Speech) {
    let identity = grant.identity();
    if let Some((key, tenant)) = identity {
        of_tenant(ok, (tenant, content.cache), speech, 0);
        for (field, name) in speech.identity.iter().filter(|(field, _)| !field.is_of_tenant()) {
            key_header(ok, (field, name), key, &content.terms);
        }
    }
    if !speech.keep_key_header {
        ok.text(5, &speech.key_header);
        if bearer {
            ok.text(5, AUTHORIZATION);
        }
    }
    let is_set = |field| {
        identity.is_some()
            && match field {
                IdentityField::Scopes => content.terms.scopes.is_some(),
                IdentityField::Plan => plan(&content.terms).is_some(),
                _ => true,
            }
    };
    for (_, name) in speech.identity.iter().filter(|(field, _)| !is_set(*field)) {
        ok.text(5, name);
    }
}

/// The header value for an empty list of scopes, because Envoy drops empty headers. It is not a valid scope.
const NO_SCOPES: &str = "!";

/// Sets an identity header about the key, if it has a value.
fn key_header(
    ok: &mut Message<'_>,
    (field, name): (IdentityField, &str),
    key: &KeyRecord,
    terms: &Terms<'_>,
) {
    let text = match field {
        IdentityField::KeyId => return header(ok, name, |value| hyphenated(value, key.id.0)),
        IdentityField::KeyPrefix => Some(&*key.prefix),
        IdentityField::Scopes => terms.scopes.map(Scopes::as_str),
        IdentityField::Plan => plan(terms).map(|plan| plan.name.as_str()),
        IdentityField::TenantId | IdentityField::TenantName | IdentityField::TenantSchema => None,
    };
    if let Some(text) = text {
        let text = if text.is_empty() { NO_SCOPES } else { text };
        header(ok, name, |value| value.extend_from_slice(text.as_bytes()));
    }
}

fn plan<'a>(terms: &Terms<'a>) -> Option<&'a Plan> {
    terms.plan.and_then(|entry| entry.plan().ok())
}

/// Writes one of the two [`PIECES`], the parts of a response that depend only on the tenant. Uses the cache if there
/// is one.
fn of_tenant(
    to: &mut Message<'_>,
    (tenant, cache): (&Tenant, Option<&ResponseCache>),
    speech: &Speech,
    piece: usize,
) {
    let write = |piece: usize| {
        let mut written = Vec::new();
        PIECES[piece](&mut Message(&mut written), tenant, speech);
        written.into_boxed_slice()
    };
    match cache {
        Some(cache) => to.fields(&cache.get_or_init(|| [write(0), write(1)])[piece]),
        None => PIECES[piece](to, tenant, speech),
    }
}

const PIECES: [fn(&mut Message<'_>, &Tenant, &Speech); 2] = [tenant_headers, tenant_metadata];

fn tenant_headers(ok: &mut Message<'_>, tenant: &Tenant, speech: &Speech) {
    for (field, name) in speech.identity.iter() {
        match field {
            IdentityField::TenantId => header(ok, name, |value| hyphenated(value, tenant.id.0)),
            IdentityField::TenantName => header(ok, name, |value| percent_encoded(value, &tenant.name)),
            IdentityField::TenantSchema => {
                header(ok, name, |value| value.extend_from_slice(tenant.schema.as_bytes()));
            }
            _ => {}
        }
    }
}

fn tenant_metadata(fields: &mut Message<'_>, tenant: &Tenant, speech: &Speech) {
    let chosen = Chosen(speech.metadata);
    chosen.put(fields, MetadataField::TenantId, |value| hyphenated(value, tenant.id.0));
    chosen.text(fields, MetadataField::TenantName, &tenant.name);
    chosen.text(fields, MetadataField::TenantSchema, &tenant.schema);
    chosen.text(fields, MetadataField::TenantStatus, tenant.status.as_str());
}

/// The response to a rejected client.
struct Rejection {
    http: u16,
    body: &'static str,
    /// An additional header.
    header: Option<(&'static str, Cow<'static, str>)>,
}

/// The header that names the authentication scheme, which a 401 must have (RFC 9110 §11.6.1).
const CHALLENGE: (&str, &str) = ("www-authenticate", "ApiKey realm=\"llmcore\"");

/// The response if tenantgate cannot decide. `Retry-After` is one second, after which most faults have passed.
const UNAVAILABLE: Rejection = Rejection {
    http: 503,
    body: "{\"detail\":\"Authentication service unavailable\"}",
    header: Some(("retry-after", Cow::Borrowed("1"))),
};

fn rejection(denial: &Denial<'_>) -> (u8, Rejection) {
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
fn write_rejection(denied: &mut Message<'_>, rejection: &Rejection, id: &str) {
    denied.message(1, |status| status.short(1, rejection.http));
    header(denied, "content-type", |value| value.extend_from_slice(b"application/json"));
    header(denied, DECISION_ID_HEADER, |value| value.extend_from_slice(id.as_bytes()));
    if let Some((name, content)) = &rejection.header {
        header(denied, name, |value| value.extend_from_slice(content.as_bytes()));
    }
    denied.text(3, rejection.body);
}

/// Writes a header that replaces the client's. `append` is unset and `append_action` is explicit, because some
/// versions of Envoy read the one and some the other.
///
/// `headers` = 2 in both kinds of response. `HeaderValueOption`: header = 1, `append_action` = 3. `HeaderValue`:
/// key = 1, value = 2.
fn header(response: &mut Message<'_>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    const OVERWRITE_IF_EXISTS_OR_ADD: u8 = 2;
    response.message(2, |option| {
        option.message(1, |header| {
            header.text(1, name);
            header.text_of(2, value);
        });
        option.number(3, OVERWRITE_IF_EXISTS_OR_ADD);
    });
}

fn hyphenated(text: &mut Vec<u8>, id: Uuid) {
    text.extend_from_slice(id.hyphenated().encode_lower(&mut [0; Hyphenated::LENGTH]).as_bytes());
}

/// Appends `text` in a form that is valid in headers: `%` and all bytes outside 0x21–0x7E are percent-encoded (RFC
/// 3986 §2.1).
fn percent_encoded(to: &mut Vec<u8>, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            to.push(byte);
        } else {
            to.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0xf)]]);
        }
    }
}

/// Writes `dynamic_metadata`, which Envoy puts into the namespace `envoy.filters.http.ext_authz`. The identity is
/// included only if the key was proven.
fn metadata(fields: &mut Message<'_>, content: &Answer<'_>, id: &str, speech: &Speech) {
    let (word, reason, identity) = match content.decision {
        Decision::Allow(grant) => {
            let identity = grant.identity().map(|(key, tenant)| Identity { key, tenant: Some(tenant) });
            ("allow", grant.as_str(), identity)
        }
        Decision::Deny(denial) => ("deny", denial.reason.as_str(), denial.identity),
        Decision::Unable(_, identity) => ("unable", "unavailable", *identity),
    };
    let grant = if let Decision::Allow(grant) = content.decision { Some(grant) } else { None };
    let objection = grant.and_then(Grant::objection);
    let chosen = Chosen(speech.metadata);
    let terms = identity.map(|_| content.terms).unwrap_or_default();
    let plan = plan(&terms);
    // Limits are needed only for allowed requests.
    let limits = plan.filter(|_| grant.is_some());
    let limit = |limit: fn(&Plan) -> Option<Limit>| limits.and_then(limit);
    // In the order of their names.
    field(fields, "decision", |value| value.extend_from_slice(word.as_bytes()));
    field(fields, "decision_id", |value| value.extend_from_slice(id.as_bytes()));
    chosen.limit(fields, MetadataField::InputLimit, limit(|plan| plan.input));
    if let Some(Identity { key, .. }) = identity {
        if let Some(at) = key.expires_at.at() {
            chosen.put(fields, MetadataField::KeyExpiresAt, |value| at.write_rfc_3339(value));
        }
        chosen.put(fields, MetadataField::KeyId, |value| hyphenated(value, key.id.0));
        chosen.text(fields, MetadataField::KeyPrefix, &key.prefix);
    }
    chosen.limit(fields, MetadataField::OutputLimit, limit(|plan| plan.output));
    if let Some(plan) = plan {
        chosen.text(fields, MetadataField::Plan, plan.name.as_str());
    }
    field(fields, "reason", |value| value.extend_from_slice(reason.as_bytes()));
    chosen.limit(fields, MetadataField::RequestLimit, limit(|plan| plan.request));
    if let Some(route) = terms.route {
        chosen.text(fields, MetadataField::Route, route);
    }
    if let Some(scopes) = terms.scopes {
        chosen.list(fields, MetadataField::Scopes, scopes.iter());
    }
    if objection.is_some() {
        flag(fields, "shadow");
    }
    if let Some(tenant) = identity.and_then(|identity| identity.tenant) {
        of_tenant(fields, (tenant, content.cache), speech, 1);
    }
    chosen.limit(fields, MetadataField::TotalLimit, limit(|plan| plan.total));
    if let Some(objection) = objection {
        field(fields, "would_deny", |value| value.extend_from_slice(objection.as_str().as_bytes()));
    }
}

/// Writes only the fields that the operator chose.
#[derive(Clone, Copy)]
struct Chosen(MetadataFields);

impl Chosen {
    fn put(self, fields: &mut Message<'_>, name: MetadataField, value: impl FnOnce(&mut Vec<u8>)) {
        if self.0.has(name) {
            field(fields, name.as_str(), value);
        }
    }

    fn text(self, fields: &mut Message<'_>, name: MetadataField, value: &str) {
        self.put(fields, name, |text| text.extend_from_slice(value.as_bytes()));
    }

    /// `Value`: `list_value` = 6. `ListValue`: values = 1. `Value`: `string_value` = 3.
    fn list<'v>(self, fields: &mut Message<'_>, name: MetadataField, values: impl Iterator<Item = &'v str>) {
        if self.0.has(name) {
            entry(fields, name.as_str(), |content| {
                content.message(6, |list| {
                    for value in values {
                        list.message(1, |one| one.text(3, value));
                    }
                });
            });
        }
    }

    /// The form that Envoy's rate limit filter reads. `Value`: `struct_value` = 5, `number_value` = 2.
    fn limit(self, fields: &mut Message<'_>, name: MetadataField, limit: Option<Limit>) {
        let Some(limit) = limit.filter(|_| self.0.has(name)) else { return };
        entry(fields, name.as_str(), |content| {
            content.message(5, |limits| {
                entry(limits, "requests_per_unit", |number| number.double(2, limit.requests_per_unit.into()));
                field(limits, "unit", |unit| unit.extend_from_slice(limit.unit.as_str().as_bytes()));
            });
        });
    }
}

/// An entry of `google.protobuf.Struct.fields` = 1: key = 1, value = 2. `Value`: `string_value` = 3.
fn field(fields: &mut Message<'_>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    entry(fields, name, |content| content.text_of(3, value));
}

fn entry(fields: &mut Message<'_>, name: &str, value: impl FnOnce(&mut Message<'_>)) {
    fields.message(1, |entry| {
        entry.text(1, name);
        entry.message(2, value);
    });
}

/// An entry with `Value.bool_value` = 4, true.
fn flag(fields: &mut Message<'_>, name: &str) {
    entry(fields, name, |content| content.number(4, 1));
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
