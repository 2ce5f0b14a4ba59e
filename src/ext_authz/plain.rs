//! Renders a response as strings, for the module inside Envoy.
//!
//! Encodes a `CheckResponse` with [`write_response`] and decodes it again, so that both paths share one renderer. It
//! costs microseconds, and is done once for a key, not once for a request.

use prost::Message as _;
use uuid::Uuid;

use super::header::DECISION_ID_HEADER;
use super::proto::envoy::config::core::v3::HeaderValueOption;
use super::proto::envoy::service::auth::v3::CheckResponse;
use super::proto::envoy::service::auth::v3::check_response::HttpResponse;
use super::translate::{ROOM, ResponseContent, ResponseOptions, write_response};
use crate::publisher::Rendered;

/// The fields of metadata that the module adds itself.
const BY_DECISION: [&str; 3] = ["decision", "decision_id", "reason"];

/// Returns the response as strings; `None` if a metadata field is not a string, such as a list or a limit.
#[must_use]
pub fn plain(content: &ResponseContent<'_>, options: &ResponseOptions) -> Option<Rendered> {
    let id = Uuid::nil();
    let mut bytes = Vec::with_capacity(ROOM);
    write_response(&mut bytes, content, id, false, options);
    let response = CheckResponse::decode(&*bytes).ok()?;
    let headers = |options: Vec<HeaderValueOption>| {
        let pairs = options.into_iter().filter_map(|option| option.header);
        pairs.map(|pair| (pair.key, pair.value)).collect::<Vec<_>>()
    };
    let mut plain = match response.http_response? {
        HttpResponse::OkResponse(ok) => {
            Rendered { set: headers(ok.headers), remove: ok.headers_to_remove, ..Rendered::default() }
        }
        HttpResponse::DeniedResponse(denied) | HttpResponse::ErrorResponse(denied) => Rendered {
            status: u16::try_from(denied.status?.code).ok()?,
            set: headers(denied.headers)
                .into_iter()
                .map(
                    |(name, value)| {
                        if name == DECISION_ID_HEADER { (name, String::new()) } else { (name, value) }
                    },
                )
                .collect(),
            body: denied.body,
            ..Rendered::default()
        },
    };
    for (name, value) in response.dynamic_metadata?.fields {
        if BY_DECISION.contains(&name.as_str()) {
            continue;
        }
        let prost_types::value::Kind::StringValue(text) = value.kind? else { return None };
        plain.metadata.push((name, text));
    }
    plain.metadata.sort();
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::decision::{Decision, Denial, Grant, Reason};
    use crate::gate::Terms;
    use crate::key::KeyId;
    use crate::record::KeyRecord;
    use crate::scope::Scopes;
    use crate::tenant::{Tenant, TenantId, TenantStatus};

    fn texts(pairs: &[(String, String)]) -> Vec<&str> {
        pairs.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// A key and its tenant.
    fn rows(key: Uuid, tenant: Uuid, name: &str) -> (KeyRecord, Tenant) {
        let id = TenantId(tenant);
        let key = KeyRecord::new(KeyId(key), id, "llmk_a".into(), None);
        let (name, schema, status) = (name.into(), "tenant_acme".into(), TenantStatus::Active);
        (key, Tenant { id, name, schema, status, mode: None, created_at: Timestamp(0), plan: None })
    }

    #[test]
    fn a_refusal_is_its_status_headers_and_body() {
        let decision = Decision::Deny(Denial { reason: Reason::Unknown, identity: None, needs: None });
        let plain = plain(&ResponseContent::of(&decision), &ResponseOptions::default()).unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (401, "{\"detail\":\"Invalid API key\"}"));
        let id = plain.set.iter().find(|(_, value)| value.is_empty()).unwrap();
        assert_eq!((id.0.as_str(), plain.metadata), ("x-llmcore-decision-id", vec![]));
    }

    #[test]
    fn a_row_with_the_id_zero_is_rendered_like_any_other() {
        let (key, tenant) = rows(Uuid::nil(), Uuid::nil(), "Acme");
        let decision = Decision::Allow(Grant::Tenant(&key, &tenant));
        let said = plain(&ResponseContent::of(&decision), &ResponseOptions::default()).unwrap();
        let zero = Uuid::nil().to_string();
        for name in ["x-llmcore-tenant-id", "x-llmcore-key-id"] {
            assert!(said.set.contains(&(name.into(), zero.clone())), "{said:?}");
        }
    }

    #[test]
    fn a_key_that_passes_has_its_headers_and_metadata_and_one_with_a_list_has_no_such_form() {
        let (key, tenant) = rows(Uuid::from_u128(1), Uuid::from_u128(2), "Acme é");
        let decision = Decision::Allow(Grant::Tenant(&key, &tenant));
        let options = ResponseOptions { key_header: "x-key".into(), ..ResponseOptions::default() };
        let said = plain(&ResponseContent::of(&decision), &options).unwrap();
        assert_eq!((said.status, said.remove), (0, vec!["x-key".to_owned()]));
        assert!(said.set.contains(&("x-llmcore-tenant-name".into(), "Acme%20%C3%A9".into())));
        let names = ["key_id", "key_prefix", "tenant_id", "tenant_name", "tenant_schema", "tenant_status"];
        assert_eq!(texts(&said.metadata), names);
        let scopes = Scopes::parse("a b").unwrap();
        let terms = Terms { scopes: Some(&scopes), ..Terms::default() };
        assert_eq!(plain(&ResponseContent { terms, ..ResponseContent::of(&decision) }, &options), None);
    }
}
