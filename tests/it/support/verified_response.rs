//! Checks every answer in every test against the documented table of outcomes.
//!
//! A [`VerifiedResponse`] is always verified against the contract: its reason determines status, code, body, headers
//! and the exact metadata keys. A test that compares `401 mismatch` has therefore compared all of them.

use std::collections::BTreeMap;
use std::fmt;

use prost_types::value::Kind;
use tenantgate::ext_authz::proto::envoy::config::core::v3::HeaderValueOption;
use tenantgate::ext_authz::proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::check_response::HttpResponse;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::{
    CheckResponse, DeniedHttpResponse, OkHttpResponse,
};

/// The headers that the upstream gets, which clients cannot set.
pub(crate) const IDENTITY: [&str; 4] =
    ["x-llmcore-key-id", "x-llmcore-tenant-id", "x-llmcore-tenant-name", "x-llmcore-tenant-schema"];

/// The metadata before a key is proven.
pub(crate) const UNPROVEN: [&str; 3] = ["decision", "decision_id", "reason"];

/// The further metadata once it is proven; `key_expires_at` only for a key that expires.
pub(crate) const PROVEN: [&str; 6] =
    ["key_id", "key_prefix", "tenant_id", "tenant_name", "tenant_schema", "tenant_status"];

/// The metadata of a proven key that is present only if it has a value.
const OPTIONAL: [&str; 4] = ["key_expires_at", "plan", "route", "scopes"];

/// The limits of a plan, only if the request is allowed.
const LIMITS: [&str; 4] = ["request_limit", "total_limit", "input_limit", "output_limit"];

/// The reasons of a proven key.
const OF_PROVEN: [&str; 9] =
    ["ok", "revoked", "disabled", "expired", "not_yet_valid", "tenant_inactive", "network", "route", "scope"];

/// The further metadata of a request that passes only because of shadow mode.
const SHADOWED: [&str; 2] = ["shadow", "would_deny"];

/// reason, decision, HTTP status, `status.code`, body.
type Row = (&'static str, &'static str, i32, i32, &'static str);

/// The row of the table for a reason, with 200 and no body for "allowed".
const ROWS: [Row; 18] = [
    ("ok", "allow", 200, 0, ""),
    ("public", "allow", 200, 0, ""),
    ("anonymous", "allow", 200, 0, ""),
    ("shadow", "allow", 200, 0, ""),
    ("missing", "deny", 401, 16, r#"{"detail":"Missing API key"}"#),
    ("malformed", "deny", 401, 16, r#"{"detail":"Invalid API key format"}"#),
    ("unknown", "deny", 401, 16, r#"{"detail":"Invalid API key"}"#),
    ("mismatch", "deny", 401, 16, r#"{"detail":"Invalid API key"}"#),
    ("revoked", "deny", 401, 16, r#"{"detail":"Invalid API key"}"#),
    ("expired", "deny", 401, 16, r#"{"detail":"Invalid API key"}"#),
    ("disabled", "deny", 401, 16, r#"{"detail":"Invalid API key"}"#),
    ("not_yet_valid", "deny", 401, 16, r#"{"detail":"Invalid API key"}"#),
    ("path_ambiguous", "deny", 400, 7, r#"{"detail":"Ambiguous path"}"#),
    ("network", "deny", 403, 7, r#"{"detail":"API key is not allowed from this address"}"#),
    ("route", "deny", 403, 7, r#"{"detail":"No rule allows this request"}"#),
    ("scope", "deny", 403, 7, r#"{"detail":"API key lacks a required scope"}"#),
    ("tenant_inactive", "deny", 403, 7, r#"{"detail":"Tenant account is inactive"}"#),
    ("unavailable", "unable", 503, 7, r#"{"detail":"Authentication service unavailable"}"#),
];

/// A `CheckResponse` that fulfils the contract.
#[derive(Clone)]
pub(crate) struct VerifiedResponse {
    pub(crate) response: CheckResponse,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl VerifiedResponse {
    /// Verifies a response against the contract.
    #[track_caller]
    pub(crate) fn of(response: CheckResponse) -> Self {
        let fields = response.dynamic_metadata.iter().flat_map(|metadata| &metadata.fields);
        let metadata = fields.map(|(name, value)| (name.clone(), text(value.kind.as_ref())));
        let answer = Self { metadata: metadata.collect(), response };
        let row = ROWS.iter().find(|row| row.0 == answer.reason());
        let row = row.unwrap_or_else(|| panic!("the contract has no such reason: {answer:#?}"));
        answer.keeps(row);
        answer
    }

    /// HTTP status and reason, `401 mismatch`; 200 stands for "allowed".
    pub(crate) fn row(&self) -> String {
        format!("{} {}", self.http_status(), self.reason())
    }

    /// The precise reason, from the metadata.
    pub(crate) fn reason(&self) -> &str {
        self.meta("reason")
    }

    /// A value of the metadata, empty when absent.
    pub(crate) fn meta(&self, name: &str) -> &str {
        self.metadata.get(name).map_or("", String::as_str)
    }

    /// The names in the metadata, in order.
    pub(crate) fn meta_names(&self) -> Vec<&str> {
        self.metadata.keys().map(String::as_str).collect()
    }

    /// `status.code`.
    pub(crate) fn code(&self) -> i32 {
        self.response
            .status
            .as_ref()
            .expect("a status is required, because Envoy allows a response without one")
            .code
    }

    /// The status for the client, 200 if the request passes.
    pub(crate) fn http_status(&self) -> i32 {
        self.refusal().map_or(200, |refusal| refusal.status.as_ref().expect("a rejection has a status").code)
    }

    /// The body for the client, empty if the request passes.
    pub(crate) fn body(&self) -> &str {
        self.refusal().map_or("", |refusal| &refusal.body)
    }

    /// The headers set: for the upstream if allowed, for the client if rejected.
    pub(crate) fn headers(&self) -> BTreeMap<&str, &str> {
        let headers = self.allowed().map(|ok| &ok.headers).or(self.refusal().map(|refusal| &refusal.headers));
        let headers = headers.into_iter().flatten().filter_map(|option| option.header.as_ref());
        headers.map(|header| (header.key.as_str(), header.value.as_str())).collect()
    }

    /// The headers removed from the request, in order.
    pub(crate) fn removed(&self) -> Vec<&str> {
        let mut removed: Vec<&str> =
            self.allowed().into_iter().flat_map(|ok| &ok.headers_to_remove).map(String::as_str).collect();
        removed.sort_unstable();
        removed
    }

    /// Whether it is an `error_response`, for which Envoy's own policy decides.
    pub(crate) fn is_error_response(&self) -> bool {
        matches!(self.response.http_response, Some(HttpResponse::ErrorResponse(_)))
    }

    fn allowed(&self) -> Option<&OkHttpResponse> {
        match self.response.http_response.as_ref()? {
            HttpResponse::OkResponse(ok) => Some(ok),
            _ => None,
        }
    }

    fn refusal(&self) -> Option<&DeniedHttpResponse> {
        match self.response.http_response.as_ref()? {
            HttpResponse::OkResponse(_) => None,
            HttpResponse::DeniedResponse(refusal) | HttpResponse::ErrorResponse(refusal) => Some(refusal),
        }
    }

    #[track_caller]
    fn keeps(&self, (reason, decision, http, code, body): &Row) {
        let code = if self.is_error_response() && *reason == "unavailable" { &14 } else { code };
        assert_eq!((self.meta("decision"), self.code()), (*decision, *code), "{self:#?}");
        assert_eq!((self.http_status(), self.body()), (*http, *body), "{self:#?}");
        assert!(self.response.http_response.is_some(), "a bare status has no headers: {self:#?}");
        let id = uuid::Uuid::parse_str(self.meta("decision_id")).expect("decision_id is a UUID");
        assert_eq!(id.get_version_num(), 7, "decision_id is a UUIDv7: {self:#?}");
        self.has_metadata_of(reason);
        match self.allowed() {
            Some(ok) => self.sets_identity(ok, *reason == "ok"),
            None => self.tells_the_client(*http),
        }
    }

    #[track_caller]
    fn has_metadata_of(&self, reason: &str) {
        if reason == "unavailable" {
            // The row of a proven key may be damaged so that it cannot be allowed; the metadata then has what is known.
            let told = [&UNPROVEN[..], &PROVEN, &OPTIONAL].concat();
            assert!(UNPROVEN.iter().all(|name| self.metadata.contains_key(*name)), "{self:#?}");
            assert!(self.meta_names().iter().all(|name| told.contains(name)), "{self:#?}");
            return;
        }
        let proven = OF_PROVEN.contains(&reason);
        // A rule in shadow mode lets a request pass as the tenant.
        let shadow = reason == "shadow" || (reason == "ok" && self.meta("would_deny") == "scope");
        let mut names: Vec<&str> = UNPROVEN.to_vec();
        names.extend(PROVEN.iter().filter(|_| proven));
        names.extend(SHADOWED.iter().filter(|_| shadow));
        names.extend(OPTIONAL.iter().filter(|name| proven && self.metadata.contains_key(**name)));
        names.extend(LIMITS.iter().filter(|name| reason == "ok" && self.metadata.contains_key(**name)));
        names.sort_unstable();
        assert_eq!(self.meta_names(), names, "the metadata keys of `{reason}`: {self:#?}");
    }

    #[track_caller]
    fn sets_identity(&self, ok: &OkHttpResponse, identity: bool) {
        let names: Vec<&str> = self.headers().into_keys().collect();
        let wanted: &[&str] = if identity { &IDENTITY } else { &[] };
        assert_eq!(names, wanted, "the headers for the upstream: {self:#?}");
        assert_eq!(ok.headers.len(), wanted.len(), "each once: {self:#?}");
        let overwrite = i32::from(HeaderAppendAction::OverwriteIfExistsOrAdd);
        assert!(ok.headers.iter().all(|option| option.append_action == overwrite), "{self:#?}");
        assert!(ok.headers.iter().all(plain), "not empty, not raw, `append` unset: {self:#?}");
        let removed = self.removed();
        let kept = if identity { names } else { Vec::new() };
        assert!(kept.iter().all(|name| !removed.contains(name)), "Envoy removes after it sets: {self:#?}");
        let absent = IDENTITY.iter().filter(|_| !identity);
        assert!(absent.clone().all(|name| removed.contains(name)), "a forged header would pass: {self:#?}");
        assert!(ok.response_headers_to_add.is_empty(), "{self:#?}");
        assert!(
            ok.query_parameters_to_set.is_empty() && ok.query_parameters_to_remove.is_empty(),
            "{self:#?}"
        );
    }

    #[track_caller]
    fn tells_the_client(&self, http: i32) {
        let headers: BTreeMap<String, &str> =
            self.headers().into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
        let mut names = vec!["content-type", "x-llmcore-decision-id"];
        names.extend(Some("www-authenticate").filter(|_| http == 401 || self.reason() == "scope"));
        names.extend(Some("retry-after").filter(|_| http == 503));
        names.sort_unstable();
        assert_eq!(headers.keys().map(String::as_str).collect::<Vec<_>>(), names, "{self:#?}");
        assert_eq!(headers["content-type"], "application/json", "{self:#?}");
        assert_eq!(headers["x-llmcore-decision-id"], self.meta("decision_id"), "{self:#?}");
        let challenge = headers.get("www-authenticate").copied();
        if self.reason() == "scope" {
            let told = challenge.unwrap_or_default();
            let begins = told.starts_with(r#"ApiKey realm="llmcore", error="insufficient_scope", scope=""#);
            assert!(begins && told.ends_with('"'), "{self:#?}");
        } else {
            assert_eq!(challenge, (http == 401).then_some(r#"ApiKey realm="llmcore""#));
        }
        let seconds =
            headers.get("retry-after").map(|value| value.parse::<u32>().expect("Retry-After in seconds"));
        assert!(seconds.is_none_or(|seconds| seconds > 0), "{self:#?}");
        let options = &self.refusal().expect("refused").headers;
        assert_eq!(options.len(), headers.len(), "each once: {self:#?}");
        assert!(options.iter().all(plain), "Envoy drops headers with `append`: {self:#?}");
    }
}

impl fmt::Debug for VerifiedResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { response, metadata } = self;
        write!(f, "{:?} {:?} metadata {metadata:?}", response.status, response.http_response)
    }
}

/// A header that Envoy sets unchanged: a value, not raw, not appended.
fn plain(option: &HeaderValueOption) -> bool {
    #[expect(deprecated, reason = "the test checks that it is unset")]
    let appended = option.append.is_some();
    let header = option.header.as_ref().expect("a header option has a header");
    !appended && !header.key.is_empty() && !header.value.is_empty() && header.raw_value.is_empty()
}

fn text(kind: Option<&Kind>) -> String {
    match kind {
        Some(Kind::StringValue(text)) => text.clone(),
        Some(Kind::BoolValue(flag)) => flag.to_string(),
        Some(Kind::NumberValue(number)) => number.to_string(),
        Some(Kind::ListValue(list)) => {
            list.values.iter().map(|value| text(value.kind.as_ref())).collect::<Vec<_>>().join(" ")
        }
        Some(Kind::StructValue(limit)) => {
            let field = |name: &str| limit.fields.get(name).map(|value| text(value.kind.as_ref()));
            let number = field("requests_per_unit").expect("a limit has a number");
            format!("{number}/{}", field("unit").expect("a limit has a unit"))
        }
        other => panic!("metadata must not have a value such as {other:?}"),
    }
}
