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

use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::codec::{NotACheckRequest, Visitor, walk};
use super::wire::Message;
use crate::decision::{Decision, Grant, Identity, Reason};
use crate::replica::ResponseCache;
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
    pub(super) const OK: u8 = 0;
    pub(super) const PERMISSION_DENIED: u8 = 7;
    pub(super) const UNAVAILABLE: u8 = 14;
    pub(super) const UNAUTHENTICATED: u8 = 16;
}

/// Who decides about a request when we cannot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnUnavailable {
    /// We do: it is refused with 503, whatever Envoy is set to.
    #[default]
    Deny,
    /// Envoy does, by its `failure_mode_allow`, unless a client can cause it ([`Fault::is_caused_by_clients`](crate::decision::Fault::is_caused_by_clients)).
    Error,
}

struct Headers<'o, 'a>(Reader<'o, 'a>);

impl<'a> Visitor<'a> for Headers<'_, 'a> {
    #[inline]
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
    /// Whether the key stays on requests that pass all the same, for a second filter.
    pub keep_key_header: bool,
    /// Who decides when we cannot.
    pub on_unavailable: OnUnavailable,
}

/// Says a decision: appends the bytes of a `CheckResponse`. `bearer` tells whether `Authorization` carried
/// something of ours.
///
/// Written straight into one buffer: building the generated messages first takes forty allocations. What an
/// answer says of the tenant is written once and kept with the tenant, in `cache`.
pub fn answer(
    to: &mut Vec<u8>,
    (decision, cache): (&Decision<'_>, Option<&ResponseCache>),
    id: Uuid,
    bearer: bool,
    speech: &Speech,
) {
    let mut buffer = [0; Hyphenated::LENGTH];
    let id: &str = id.hyphenated().encode_lower(&mut buffer);
    let mut response = Message(to);
    // CheckResponse: denied_response = 2, ok_response = 3, dynamic_metadata = 4, error_response = 5.
    match decision {
        Decision::Allow(grant) => {
            status(&mut response, grpc::OK);
            response.message(3, |ok| allowed(ok, grant, cache, bearer, speech));
        }
        Decision::Deny(denial) => {
            let (code, refusal) = refused(denial.reason);
            status(&mut response, code);
            response.message(2, |denied| refuse(denied, &refusal, id));
        }
        Decision::Unable(fault, _) => {
            let (code, field) = match speech.on_unavailable {
                OnUnavailable::Error if !fault.is_caused_by_clients() => (grpc::UNAVAILABLE, 5),
                OnUnavailable::Deny | OnUnavailable::Error => (grpc::PERMISSION_DENIED, 2),
            };
            status(&mut response, code);
            response.message(field, |refusal| refuse(refusal, &UNAVAILABLE, id));
        }
    }
    response.message(4, |fields| metadata(fields, decision, cache, id));
}

/// What an answer with a tenant takes, with a little to spare.
pub const ROOM: usize = 1000;

/// `CheckResponse.status` = 1, which is there even where it says nothing. `google.rpc.Status`: code = 1.
fn status(response: &mut Message<'_>, code: u8) {
    response.message(1, |status| status.number(1, code));
}

/// `OkHttpResponse`: headers = 2, `headers_to_remove` = 5.
fn allowed(
    ok: &mut Message<'_>,
    grant: &Grant<'_>,
    cache: Option<&ResponseCache>,
    bearer: bool,
    speech: &Speech,
) {
    if let Grant::Tenant(key, tenant) = grant {
        of_tenant(ok, tenant, cache, 0);
        header(ok, IDENTITY_HEADERS[3], |value| hyphenated(value, key.id.0));
    }
    if !speech.keep_key_header {
        ok.text(5, &speech.key_header);
        if bearer {
            ok.text(5, AUTHORIZATION);
        }
    }
    if matches!(grant, Grant::Public | Grant::Shadow(_)) {
        for name in IDENTITY_HEADERS {
            ok.text(5, name);
        }
    }
}

/// One of the two [`PIECES`] of an answer that are about the tenant alone.
fn of_tenant(to: &mut Message<'_>, tenant: &Tenant, cache: Option<&ResponseCache>, piece: usize) {
    let write = |piece: usize| {
        let mut written = Vec::new();
        PIECES[piece](&mut Message(&mut written), tenant);
        written.into_boxed_slice()
    };
    match cache {
        Some(cache) => to.fields(&cache.get_or_init(|| [write(0), write(1)])[piece]),
        None => PIECES[piece](to, tenant),
    }
}

const PIECES: [fn(&mut Message<'_>, &Tenant); 2] = [tenant_headers, tenant_metadata];

fn tenant_headers(ok: &mut Message<'_>, tenant: &Tenant) {
    let [id, name, schema, _] = IDENTITY_HEADERS;
    header(ok, id, |value| hyphenated(value, tenant.id.0));
    header(ok, name, |value| percent_encoded(value, &tenant.name));
    header(ok, schema, |value| value.extend_from_slice(tenant.schema.as_bytes()));
}

fn tenant_metadata(fields: &mut Message<'_>, tenant: &Tenant) {
    field(fields, "tenant_id", |value| hyphenated(value, tenant.id.0));
    field(fields, "tenant_name", |value| value.extend_from_slice(tenant.name.as_bytes()));
    field(fields, "tenant_schema", |value| value.extend_from_slice(tenant.schema.as_bytes()));
    field(fields, "tenant_status", |value| value.extend_from_slice(tenant.status.as_str().as_bytes()));
}

/// What a client is told that is not let in.
struct Refusal {
    http: u16,
    body: &'static str,
    /// A header that goes with the status.
    header: Option<(&'static str, &'static str)>,
}

/// RFC 9110 §11.6.1: a 401 names the scheme it wants.
const CHALLENGE: Option<(&str, &str)> = Some(("www-authenticate", "ApiKey realm=\"llmcore\""));

/// Seconds after which a caller may try again: what is wrong rarely passes sooner, and often by then.
const UNAVAILABLE: Refusal = Refusal {
    http: 503,
    body: "{\"detail\":\"Authentication service unavailable\"}",
    header: Some(("retry-after", "1")),
};

fn refused(reason: Reason) -> (u8, Refusal) {
    let unauthorized = |body| (grpc::UNAUTHENTICATED, Refusal { http: 401, body, header: CHALLENGE });
    match reason {
        Reason::Missing => unauthorized("{\"detail\":\"Missing API key\"}"),
        Reason::Malformed => unauthorized("{\"detail\":\"Invalid API key format\"}"),
        // One text for all of these: which of them it was is nobody's business but ours.
        Reason::Unknown | Reason::Mismatch | Reason::Revoked | Reason::Expired => {
            unauthorized("{\"detail\":\"Invalid API key\"}")
        }
        Reason::TenantInactive => {
            let body = "{\"detail\":\"Tenant account is inactive\"}";
            (grpc::PERMISSION_DENIED, Refusal { http: 403, body, header: None })
        }
    }
}

/// `DeniedHttpResponse`: status = 1, headers = 2, body = 3. `HttpStatus`: code = 1.
fn refuse(denied: &mut Message<'_>, refusal: &Refusal, id: &str) {
    denied.message(1, |status| status.short(1, refusal.http));
    header(denied, "content-type", |value| value.extend_from_slice(b"application/json"));
    header(denied, DECISION_ID_HEADER, |value| value.extend_from_slice(id.as_bytes()));
    if let Some((name, content)) = refusal.header {
        header(denied, name, |value| value.extend_from_slice(content.as_bytes()));
    }
    denied.text(3, refusal.body);
}

/// A header that takes the place of the client's own. `append` stays unset and `append_action` says so
/// explicitly: some Envoys read one and some the other.
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

/// A text that any header can carry: `%` and every byte outside 0x21–0x7E is percent-encoded (RFC 3986 §2.1).
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

/// `dynamic_metadata`, which Envoy puts into the namespace `envoy.filters.http.ext_authz`. Who the caller is
/// goes in only once it is proven.
fn metadata(fields: &mut Message<'_>, decision: &Decision<'_>, cache: Option<&ResponseCache>, id: &str) {
    let (word, reason, identity) = match decision {
        Decision::Allow(Grant::Public) => ("allow", "public", None),
        Decision::Allow(Grant::Shadow(_)) => ("allow", "shadow", None),
        Decision::Allow(Grant::Tenant(key, tenant)) => {
            ("allow", "ok", Some(Identity { key, tenant: Some(tenant) }))
        }
        Decision::Deny(denial) => ("deny", denial.reason.as_str(), denial.identity),
        Decision::Unable(_, identity) => ("unable", "unavailable", *identity),
    };
    // In the order of their names.
    field(fields, "decision", |value| value.extend_from_slice(word.as_bytes()));
    field(fields, "decision_id", |value| value.extend_from_slice(id.as_bytes()));
    if let Some(Identity { key, .. }) = identity {
        if let Some(at) = key.expires_at.at() {
            field(fields, "key_expires_at", |value| at.write_rfc_3339(value));
        }
        field(fields, "key_id", |value| hyphenated(value, key.id.0));
        field(fields, "key_prefix", |value| value.extend_from_slice(key.prefix.as_bytes()));
    }
    field(fields, "reason", |value| value.extend_from_slice(reason.as_bytes()));
    let shadow =
        if let Decision::Allow(Grant::Shadow(objection)) = decision { Some(objection) } else { None };
    if shadow.is_some() {
        flag(fields, "shadow");
    }
    if let Some(tenant) = identity.and_then(|identity| identity.tenant) {
        of_tenant(fields, tenant, cache, 1);
    }
    if let Some(objection) = shadow {
        field(fields, "would_deny", |value| value.extend_from_slice(objection.as_str().as_bytes()));
    }
}

/// An entry of `google.protobuf.Struct.fields` = 1: key = 1, value = 2. `Value`: `string_value` = 3.
fn field(fields: &mut Message<'_>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    fields.message(1, |entry| {
        entry.text(1, name);
        entry.message(2, |content| content.text_of(3, value));
    });
}

/// The same with `Value.bool_value` = 4, true.
fn flag(fields: &mut Message, name: &str) {
    fields.message(1, |entry| {
        entry.text(1, name);
        entry.message(2, |content| content.number(4, 1));
    });
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::value::Kind;

    use super::*;
    use crate::clock::Timestamp;
    use crate::decision::{Denial, Fault};
    use crate::ext_authz::proto::envoy::service::auth::v3::CheckResponse;
    use crate::ext_authz::proto::envoy::service::auth::v3::check_response::HttpResponse;
    use crate::key::KeyId;
    use crate::record::KeyRecord;
    use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};

    fn key() -> KeyRecord {
        let (id, tenant_id) = (KeyId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
        let expires_at = Some(Timestamp(0)).into();
        KeyRecord {
            id,
            tenant_id,
            prefix: "llmk_demo".into(),
            hash: None,
            expires_at,
            revoked: false,
            not_before: Timestamp::MIN,
            disabled: false,
        }
    }

    fn tenant() -> Tenant {
        Tenant {
            id: TenantId(Uuid::from_u128(2)),
            name: "Söhne & 100%".into(),
            schema: "tenant_demo".into(),
            status: TenantStatus::Active,
            mode: None,
            created_at: Timestamp(0),
            plan: None,
        }
    }

    fn speech(on_unavailable: OnUnavailable) -> Speech {
        Speech { key_header: "x-llmcore-api-key".into(), keep_key_header: false, on_unavailable }
    }

    fn say(decision: &Decision<'_>) -> CheckResponse {
        say_as(decision, false, OnUnavailable::Deny)
    }

    /// What is written is what the generated encoder writes of it, to the byte.
    fn say_as(decision: &Decision<'_>, bearer: bool, mode: OnUnavailable) -> CheckResponse {
        say_by(decision, bearer, &speech(mode))
    }

    fn say_by(decision: &Decision<'_>, bearer: bool, speech: &Speech) -> CheckResponse {
        let (cache, mut bytes) = (ResponseCache::new(), Vec::new());
        answer(&mut bytes, (decision, None), Uuid::nil(), bearer, speech);
        for time in ["first", "next"] {
            let mut again = Vec::new();
            answer(&mut again, (decision, Some(&cache)), Uuid::nil(), bearer, speech);
            assert_eq!(again, bytes, "the {time} time that it is said of a tenant");
        }
        let response = CheckResponse::decode(bytes.as_slice()).unwrap();
        assert_eq!(response.encode_to_vec(), bytes);
        response
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
                let response = say_as(&decision, false, mode);
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
        let response = say_as(&Decision::Allow(Grant::Public), true, OnUnavailable::Deny);
        let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!() };
        assert!(ok.headers.is_empty());
        assert_eq!(ok.headers_to_remove[..2], ["x-llmcore-api-key", "authorization"]);
        assert_eq!(ok.headers_to_remove[2..], IDENTITY_HEADERS);
    }

    #[test]
    fn a_key_that_is_to_stay_stays_and_identity_headers_do_not() {
        let speech = Speech { keep_key_header: true, ..speech(OnUnavailable::Deny) };
        let (key, tenant) = (key(), tenant());
        for (grant, removed) in
            [(Grant::Tenant(&key, &tenant), &[][..]), (Grant::Public, &IDENTITY_HEADERS[..])]
        {
            let response = say_by(&Decision::Allow(grant), true, &speech);
            let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!() };
            assert_eq!(ok.headers_to_remove, removed);
        }
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

    #[test]
    fn metadata_says_of_a_request_that_passed_in_shadow_mode_why_it_would_not_have() {
        for (decision, reason) in every_refusal().into_iter().zip(Reason::ALL.map(Reason::as_str)) {
            let Decision::Allow(grant @ Grant::Shadow(_)) = decision.in_mode(Mode::Shadow) else { panic!() };
            let fields = say(&Decision::Allow(grant)).dynamic_metadata.unwrap().fields;
            assert_eq!(
                fields.keys().cloned().collect::<Vec<_>>().join(" "),
                "decision decision_id reason shadow would_deny"
            );
            assert_eq!(fields["shadow"].kind, Some(Kind::BoolValue(true)));
            assert_eq!(fields["would_deny"].kind, Some(Kind::StringValue(reason.to_owned())));
        }
    }
}
