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
//! Every response is therefore rendered by [`write_response`], which never writes an empty one.

use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::codec::{MessageVisitor, NotACheckRequest, walk};
use super::header::{header, hyphenated, percent_encoded};
use super::origin::is_left_by_module;
use super::rejection::{UNAVAILABLE, grpc, rejection, write_rejection};
use super::response_fields::{IdentityField, IdentityHeaders, MetadataField, MetadataFields};
use super::wire::Message;
use crate::decision::{Decision, Grant, Identity};
use crate::gate::Terms;
use crate::plan::{Limit, Plan};
use crate::record::KeyRecord;
use crate::replica::{PlanEntry, ResponseCache};
use crate::request::{AUTHORIZATION, AccessRequest, RequestOptions, RequestReader};
use crate::scope::Scopes;
use crate::tenant::Tenant;

/// The default identity headers: set on every request that is allowed as a tenant, and removed from every other
/// allowed request.
pub const IDENTITY_HEADERS: [&str; 4] =
    ["x-llmcore-tenant-id", "x-llmcore-tenant-name", "x-llmcore-tenant-schema", "x-llmcore-key-id"];

/// The response to a request that tenantgate cannot decide: `--on-unavailable`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnUnavailable {
    /// It is rejected with 503, regardless of Envoy's configuration.
    #[default]
    Deny,
    /// Envoy decides by its `failure_mode_allow`, unless clients can cause the fault
    /// ([`Fault::is_caused_by_clients`](crate::decision::Fault::is_caused_by_clients)).
    Error,
}

struct Headers<'o, 'a>(RequestReader<'o, 'a>);

impl<'a> MessageVisitor<'a> for Headers<'_, 'a> {
    #[expect(clippy::inline_always, reason = "a call for each header costs 1 % of a check")]
    #[inline(always)]
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
pub fn read<'a>(message: &'a [u8], options: &RequestOptions) -> Result<AccessRequest<'a>, NotACheckRequest> {
    let mut headers = Headers(RequestReader::new(options));
    let target = walk(message, &mut headers)?;
    let mut request = headers.0.finish(target.method, target.host, target.path);
    if request.context.is_set() {
        request.context.left_by_module = is_left_by_module(message);
    }
    Ok(request)
}

/// Options of responses.
#[derive(Clone, Debug, Default)]
pub struct ResponseOptions {
    /// The header that carries the key, which is removed before the request goes upstream.
    pub key_header: String,
    /// Whether the key is kept on allowed requests, for a second filter.
    pub keep_key_header: bool,
    /// The response to requests that cannot be decided.
    pub on_unavailable: OnUnavailable,
    /// The headers that identify the caller to the upstream.
    pub identity: IdentityHeaders,
    /// The optional metadata fields.
    pub metadata: MetadataFields,
}

/// The content of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseContent<'a> {
    /// The decision.
    pub decision: &'a Decision<'a>,
    /// The terms of the key: the data for the response that is not in its row.
    pub terms: Terms<'a>,
    /// The cache for the parts about the tenant, so that they are rendered only once.
    pub cache: Option<&'a ResponseCache>,
}

impl<'a> ResponseContent<'a> {
    /// Creates a response without terms and cache.
    #[must_use]
    pub fn of(decision: &'a Decision<'a>) -> Self {
        Self { decision, terms: Terms::default(), cache: None }
    }
}

/// Renders a response: appends the bytes of a `CheckResponse` to `to`. `bearer`: whether `Authorization` contains a key
/// or an attempt at one, and is removed.
///
/// It writes directly into the buffer, because building the generated messages takes forty allocations.
pub fn write_response(
    to: &mut Vec<u8>,
    content: &ResponseContent<'_>,
    id: Uuid,
    bearer: bool,
    options: &ResponseOptions,
) {
    let mut buffer = [0; Hyphenated::LENGTH];
    let id: &str = id.hyphenated().encode_lower(&mut buffer);
    let mut response = Message(to);
    // CheckResponse: denied_response = 2, ok_response = 3, dynamic_metadata = 4, error_response = 5.
    match content.decision {
        Decision::Allow(grant) => {
            status(&mut response, grpc::OK);
            response.message(3, |ok| allowed(ok, grant, content, bearer, options));
        }
        Decision::Deny(denial) => {
            let (code, rejected) = rejection(denial);
            status(&mut response, code);
            response.message(2, |denied| write_rejection(denied, &rejected, id));
        }
        Decision::Unable(fault, _) => {
            let (code, field) = match options.on_unavailable {
                OnUnavailable::Error if !fault.is_caused_by_clients() => (grpc::UNAVAILABLE, 5),
                OnUnavailable::Deny | OnUnavailable::Error => (grpc::PERMISSION_DENIED, 2),
            };
            status(&mut response, code);
            response.message(field, |error| write_rejection(error, &UNAVAILABLE, id));
        }
    }
    response.message(4, |fields| metadata(fields, content, id, options));
}

/// A capacity in bytes that is enough for a usual response with a tenant.
pub const ROOM: usize = 1000;

/// `CheckResponse.status` = 1, which is written also if it is empty. `google.rpc.Status`: code = 1.
fn status(response: &mut Message<'_>, code: u8) {
    response.message(1, |status| status.number(1, code));
}

/// `OkHttpResponse`: headers = 2, `headers_to_remove` = 5.
fn allowed(
    ok: &mut Message<'_>,
    grant: &Grant<'_>,
    content: &ResponseContent<'_>,
    bearer: bool,
    options: &ResponseOptions,
) {
    let identity = grant.identity();
    if let Some((key, tenant)) = identity {
        of_tenant(ok, (tenant, content.cache), options, 0);
        for (field, name) in options.identity.iter().filter(|(field, _)| !field.is_of_tenant()) {
            key_header(ok, (field, name), key, &content.terms);
        }
    }
    if !options.keep_key_header {
        ok.text(5, &options.key_header);
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
    for (_, name) in options.identity.iter().filter(|(field, _)| !is_set(*field)) {
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
    options: &ResponseOptions,
    piece: usize,
) {
    let write = |piece: usize| rendered(|to| PIECES[piece](to, tenant, options));
    match cache {
        Some(cache) => to.fields(&cache.get_or_init(|| [write(0), write(1)])[piece]),
        None => PIECES[piece](to, tenant, options),
    }
}

const PIECES: [fn(&mut Message<'_>, &Tenant, &ResponseOptions); 2] = [tenant_headers, tenant_metadata];

fn tenant_headers(ok: &mut Message<'_>, tenant: &Tenant, options: &ResponseOptions) {
    for (field, name) in options.identity.iter() {
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

/// Writes `dynamic_metadata`, which Envoy puts into the namespace `envoy.filters.http.ext_authz`. The identity is
/// included only if the key was proven.
fn metadata(fields: &mut Message<'_>, content: &ResponseContent<'_>, id: &str, options: &ResponseOptions) {
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
    let chosen = Chosen(options.metadata);
    let terms = identity.map(|_| content.terms).unwrap_or_default();
    let plan = terms.plan.and_then(|entry| plan_metadata(entry, chosen));
    // Limits are needed only for allowed requests.
    let limits = plan.filter(|_| grant.is_some());
    let limit = |fields: &mut Message<'_>, at: usize| {
        if let Some(parts) = limits {
            fields.fields(&parts[at]);
        }
    };
    // In the order of their names.
    field(fields, "decision", |value| value.extend_from_slice(word.as_bytes()));
    field(fields, "decision_id", |value| value.extend_from_slice(id.as_bytes()));
    limit(fields, 0);
    if let Some(Identity { key, .. }) = identity {
        if let Some(at) = key.expires_at.at() {
            chosen.put(fields, MetadataField::KeyExpiresAt, |value| at.write_rfc_3339(value));
        }
        chosen.put(fields, MetadataField::KeyId, |value| hyphenated(value, key.id.0));
        chosen.text(fields, MetadataField::KeyPrefix, &key.prefix);
    }
    limit(fields, 1);
    if let Some([_, _, name, ..]) = plan {
        fields.fields(name);
    }
    field(fields, "reason", |value| value.extend_from_slice(reason.as_bytes()));
    limit(fields, 3);
    if let Some(route) = terms.route {
        chosen.text(fields, MetadataField::Route, route);
    }
    if let Some(scopes) = terms.scopes {
        let write = |fields: &mut Message<'_>| chosen.list(fields, MetadataField::Scopes, scopes.iter());
        match terms.cache {
            Some(cache) => fields.fields(&cache.get_or_init(|| [rendered(write)])[0]),
            None => write(fields),
        }
    }
    if objection.is_some() {
        flag(fields, "shadow");
    }
    if let Some(tenant) = identity.and_then(|identity| identity.tenant) {
        of_tenant(fields, (tenant, content.cache), options, 1);
    }
    limit(fields, 4);
    if let Some(objection) = objection {
        field(fields, "would_deny", |value| value.extend_from_slice(objection.as_str().as_bytes()));
    }
}

/// Returns the metadata of a plan, in the order of the names: limits, and the name in the middle. It is rendered once.
fn plan_metadata(entry: &PlanEntry, chosen: Chosen) -> Option<&[Box<[u8]>; 5]> {
    let plan = entry.plan().ok()?;
    let limit = |name, limit| rendered(|fields| chosen.limit(fields, name, limit));
    Some(entry.responses().get_or_init(|| {
        [
            limit(MetadataField::InputLimit, plan.input),
            limit(MetadataField::OutputLimit, plan.output),
            rendered(|fields| chosen.text(fields, MetadataField::Plan, plan.name.as_str())),
            limit(MetadataField::RequestLimit, plan.request),
            limit(MetadataField::TotalLimit, plan.total),
        ]
    }))
}

fn rendered(write: impl FnOnce(&mut Message<'_>)) -> Box<[u8]> {
    let mut written = Vec::new();
    write(&mut Message(&mut written));
    written.into_boxed_slice()
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

/// Writes the fields that depend only on the tenant.
fn tenant_metadata(fields: &mut Message<'_>, tenant: &Tenant, options: &ResponseOptions) {
    let chosen = Chosen(options.metadata);
    chosen.put(fields, MetadataField::TenantId, |value| hyphenated(value, tenant.id.0));
    chosen.text(fields, MetadataField::TenantName, &tenant.name);
    chosen.text(fields, MetadataField::TenantSchema, &tenant.schema);
    chosen.text(fields, MetadataField::TenantStatus, tenant.status.as_str());
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
