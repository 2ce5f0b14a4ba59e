//! Tests of the response to each decision.

use prost::Message as _;
use prost_types::value::Kind;

use super::*;
use crate::clock::Timestamp;
use crate::decision::{Denial, Fault, Reason};
use crate::ext_authz::proto::envoy::service::auth::v3::CheckResponse;
use crate::ext_authz::proto::envoy::service::auth::v3::check_response::HttpResponse;
use crate::key::KeyId;
use crate::plan::PlanRow;
use crate::replica::ResponseParts;
use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};

fn key() -> KeyRecord {
    let (id, tenant_id) = (KeyId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
    let expires_at = Some(Timestamp(0)).into();
    KeyRecord { expires_at, ..KeyRecord::new(id, tenant_id, "llmk_demo".into(), None) }
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

fn options(on_unavailable: OnUnavailable) -> ResponseOptions {
    ResponseOptions { key_header: "x-llmcore-api-key".into(), on_unavailable, ..ResponseOptions::default() }
}

fn render(decision: &Decision<'_>) -> CheckResponse {
    render_as(decision, false, OnUnavailable::Deny)
}

/// Renders a response, and checks that the generated encoder writes the same bytes.
fn render_as(decision: &Decision<'_>, bearer: bool, mode: OnUnavailable) -> CheckResponse {
    render_by(decision, bearer, &options(mode))
}

fn render_by(decision: &Decision<'_>, bearer: bool, options: &ResponseOptions) -> CheckResponse {
    render_of(&ResponseContent::of(decision), bearer, options)
}

fn render_of(content: &ResponseContent<'_>, bearer: bool, options: &ResponseOptions) -> CheckResponse {
    let (cache, parts, mut bytes) = (ResponseCache::new(), ResponseParts::new(), Vec::new());
    write_response(&mut bytes, content, Uuid::nil(), bearer, options);
    for time in ["first", "next"] {
        let mut again = Vec::new();
        let terms = Terms { cache: Some(&parts), ..content.terms };
        let cached = ResponseContent { decision: content.decision, terms, cache: Some(&cache) };
        write_response(&mut again, &cached, Uuid::nil(), bearer, options);
        assert_eq!(again, bytes, "the {time} response with caches");
    }
    let response = CheckResponse::decode(bytes.as_slice()).unwrap();
    assert_eq!(response.encode_to_vec(), bytes);
    response
}

fn every_rejection() -> Vec<Decision<'static>> {
    let deny = |reason| Decision::Deny(Denial { reason, identity: None, needs: None });
    let unable = |fault| Decision::Unable(fault, None);
    Reason::ALL.into_iter().map(deny).chain(Fault::ALL.into_iter().map(unable)).collect()
}

#[test]
fn only_an_allow_has_status_code_0() {
    for decision in every_rejection() {
        for mode in [OnUnavailable::Deny, OnUnavailable::Error] {
            let response = render_as(&decision, false, mode);
            assert_ne!(response.status.unwrap().code, 0, "{decision:?}");
            assert!(!matches!(response.http_response.unwrap(), HttpResponse::OkResponse(_)));
        }
    }
}

#[test]
fn an_allow_sets_each_identity_header_once_to_a_value_that_is_not_empty() {
    let (key, tenant) = (key(), tenant());
    let response = render(&Decision::Allow(Grant::Tenant(&key, &tenant)));
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
fn a_public_request_loses_identity_headers_and_key() {
    let response = render_as(&Decision::Allow(Grant::Public), true, OnUnavailable::Deny);
    let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!() };
    assert!(ok.headers.is_empty());
    assert_eq!(ok.headers_to_remove[..2], ["x-llmcore-api-key", "authorization"]);
    assert_eq!(ok.headers_to_remove[2..], IDENTITY_HEADERS);
}

#[test]
fn keep_key_header_keeps_the_key_but_not_identity_headers() {
    let options = ResponseOptions { keep_key_header: true, ..options(OnUnavailable::Deny) };
    let (key, tenant) = (key(), tenant());
    for (grant, removed) in [(Grant::Tenant(&key, &tenant), &[][..]), (Grant::Public, &IDENTITY_HEADERS[..])]
    {
        let response = render_by(&Decision::Allow(grant), true, &options);
        let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!() };
        assert_eq!(ok.headers_to_remove, removed);
    }
}

#[test]
fn metadata_has_the_identity_only_after_proof() {
    let (key, tenant) = (key(), tenant());
    let names = |decision: &Decision<'_>| {
        let fields = render(decision).dynamic_metadata.unwrap().fields;
        fields.into_keys().collect::<Vec<_>>().join(" ")
    };
    for decision in every_rejection() {
        assert_eq!(names(&decision), "decision decision_id reason");
    }
    assert_eq!(
        names(&Decision::Allow(Grant::Tenant(&key, &tenant))),
        "decision decision_id key_expires_at key_id key_prefix reason tenant_id tenant_name tenant_schema tenant_status"
    );
}

#[test]
fn metadata_of_a_request_in_shadow_mode_has_the_reason_for_the_rejection() {
    for (decision, reason) in every_rejection().into_iter().zip(Reason::ALL.map(Reason::as_str)) {
        let Decision::Allow(grant @ Grant::Shadow(_)) = decision.in_mode(Mode::Shadow) else { panic!() };
        let fields = render(&Decision::Allow(grant)).dynamic_metadata.unwrap().fields;
        assert_eq!(
            fields.keys().cloned().collect::<Vec<_>>().join(" "),
            "decision decision_id reason shadow would_deny"
        );
        assert_eq!(fields["shadow"].kind, Some(Kind::BoolValue(true)));
        assert_eq!(fields["would_deny"].kind, Some(Kind::StringValue(reason.to_owned())));
    }
}

/// The metadata fields of a response, as text.
fn fields(response: &CheckResponse) -> Vec<String> {
    let all = response.dynamic_metadata.clone().unwrap().fields;
    let mut all: Vec<_> = all.into_iter().map(|(name, value)| format!("{name}={}", shown(value))).collect();
    all.sort();
    all
}

fn shown(value: prost_types::Value) -> String {
    match value.kind {
        Some(Kind::StringValue(text)) => text,
        Some(Kind::NumberValue(number)) => number.to_string(),
        Some(Kind::ListValue(list)) => {
            format!("{:?}", list.values.into_iter().map(shown).collect::<Vec<_>>())
        }
        Some(Kind::StructValue(fields)) => {
            let fields = fields.fields.into_iter().map(|(name, value)| format!("{name}: {}", shown(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

fn gold() -> PlanEntry {
    let limits = [Some("0/SECOND"), None, Some("4294967295/YEAR"), Some("7/DAY")];
    PlanEntry::of(PlanRow { name: "gold".into(), limits: limits.map(|limit| limit.map(str::to_owned)) })
}

#[test]
fn metadata_has_scopes_plan_and_route_in_the_forms_that_envoy_reads() {
    let (key, tenant, plan) = (key(), tenant(), gold());
    let scopes = Scopes::parse("a b.*").unwrap();
    let terms = Terms { scopes: Some(&scopes), plan: Some(&plan), route: Some("orders"), cache: None };
    let decision = Decision::Allow(Grant::Tenant(&key, &tenant));
    let content = ResponseContent { terms, ..ResponseContent::of(&decision) };
    let all = fields(&render_of(&content, false, &options(OnUnavailable::Deny)));
    for field in [
        "scopes=[\"a\", \"b.*\"]",
        "plan=gold",
        "route=orders",
        "request_limit={requests_per_unit: 0, unit: SECOND}",
        "input_limit={requests_per_unit: 4294967295, unit: YEAR}",
        "output_limit={requests_per_unit: 7, unit: DAY}",
    ] {
        assert!(all.iter().any(|one| one == field), "{field} in {all:?}");
    }
    assert!(!all.iter().any(|field| field.starts_with("total_limit")));
    let mut chosen = ResponseOptions { metadata: MetadataFields::none(), ..options(OnUnavailable::Deny) };
    chosen.metadata.add("plan").unwrap();
    // The fragments of a plan are rendered once, for the choice of the process.
    let plan = gold();
    let content = ResponseContent { terms: Terms { plan: Some(&plan), ..terms }, ..content };
    let names: Vec<_> =
        render_of(&content, false, &chosen).dynamic_metadata.unwrap().fields.into_keys().collect();
    assert_eq!(names.join(" "), "decision decision_id plan reason");
}

#[test]
fn chosen_headers_are_set_if_they_have_a_value_and_otherwise_removed() {
    let (key, tenant, plan) = (key(), tenant(), gold());
    let (scopes, none) = (Scopes::parse("a b.*").unwrap(), Scopes::default());
    let decision = Decision::Allow(Grant::Tenant(&key, &tenant));
    let mut chosen = ResponseOptions { identity: IdentityHeaders::none(), ..options(OnUnavailable::Deny) };
    for field in ["scopes=x-scopes", "plan", "key-prefix"] {
        chosen.identity.add(field).unwrap();
    }
    let whole = Terms { scopes: Some(&scopes), plan: Some(&plan), ..Terms::default() };
    for (terms, set, removed) in [
        (whole, "x-scopes:a b.* x-llmcore-plan:gold x-llmcore-key-prefix:llmk_demo", &[][..]),
        (
            Terms { scopes: Some(&none), ..Terms::default() },
            "x-scopes:! x-llmcore-key-prefix:llmk_demo",
            &["x-llmcore-plan"],
        ),
        (Terms::default(), "x-llmcore-key-prefix:llmk_demo", &["x-scopes", "x-llmcore-plan"]),
    ] {
        let response =
            render_of(&ResponseContent { terms, ..ResponseContent::of(&decision) }, false, &chosen);
        let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!() };
        let headers = ok.headers.into_iter().map(|option| option.header.unwrap());
        let headers: Vec<_> = headers.map(|header| format!("{}:{}", header.key, header.value)).collect();
        assert_eq!(headers.join(" "), set);
        assert_eq!(ok.headers_to_remove[0], "x-llmcore-api-key");
        assert_eq!(ok.headers_to_remove[1..], *removed);
    }
    let public = Decision::Allow(Grant::Public);
    let response = render_of(&ResponseContent::of(&public), false, &chosen);
    let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!() };
    assert_eq!(ok.headers_to_remove[1..], ["x-scopes", "x-llmcore-plan", "x-llmcore-key-prefix"]);
}

#[test]
fn metadata_has_limits_only_on_an_allow_and_terms_only_after_proof() {
    let (key, tenant, plan) = (key(), tenant(), gold());
    let terms = Terms { plan: Some(&plan), route: Some("r"), ..Terms::default() };
    let identity = Some(Identity { key: &key, tenant: Some(&tenant) });
    let denied = Denial { reason: Reason::Scope, identity, needs: Some("a") };
    for (decision, told, limited) in [
        (Decision::Deny(denied), true, false),
        (Decision::Deny(Denial { identity: None, ..denied }), false, false),
        (Decision::Allow(Grant::Public), false, false),
        (Decision::Allow(Grant::Anonymous), false, false),
        (Decision::Allow(Grant::RuleShadow(&key, &tenant, denied)), true, true),
    ] {
        let content = ResponseContent { terms, ..ResponseContent::of(&decision) };
        let all = fields(&render_of(&content, false, &options(OnUnavailable::Deny)));
        let has = |name: &str| all.iter().any(|field| field.starts_with(name));
        assert_eq!(
            (has("plan="), has("route="), has("request_limit=")),
            (told, told, limited),
            "{decision:?}"
        );
        let rule_shadow = matches!(decision, Decision::Allow(Grant::RuleShadow(..)));
        assert_eq!((has("shadow="), has("would_deny=scope")), (rule_shadow, rule_shadow));
    }
}
