//! Checks that a request passes only if its bytes contain exactly one valid, live key, and that every answer equals the
//! model's.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::check_response::HttpResponse;
use tenantgate::ext_authz::proto::envoy::service::auth::v3::{CheckRequest, CheckResponse, OkHttpResponse};
use tenantgate_fuzz::fixtures::{KEYS, TENANTS};
use tenantgate_fuzz::model::{Expected, KEY_HEADER, Verdict, expected};
use tenantgate_fuzz::seeds;
use tenantgate_fuzz::server::House;
use uuid::Uuid;

static HOUSE: LazyLock<House> = LazyLock::new(House::build);

fuzz_target!(init: seeds::plant("check"), |message: &[u8]| {
    let (answer, expected) = (HOUSE.check(message), expected(message));
    let (Some(answer), Some(expected)) = (&answer, expected) else {
        assert_eq!(answer.is_some(), expected.is_some(), "whether it is a CheckRequest");
        assert!(CheckRequest::decode(message).is_err(), "the generated decoder reads it");
        return;
    };
    let response = CheckResponse::decode(answer.as_slice()).expect("a CheckResponse");
    assert_eq!(&response.encode_to_vec(), answer, "as the generated encoder writes it");
    if expected.context {
        assert_no_other_request_passes(&response, expected);
    } else {
        holds(&response, answer, expected);
    }
});

/// Whatever Envoy's configuration says of the route: an identity belongs to the holder of a live key, and a request
/// without identity passes only without a tenant.
fn assert_no_other_request_passes(response: &CheckResponse, expected: Expected) {
    let Some(HttpResponse::OkResponse(ok)) = &response.http_response else { return };
    let fields = &response.dynamic_metadata.as_ref().expect("always there").fields;
    let said = format!("{:?}", fields["reason"]);
    if said.contains("\"ok\"") {
        assert!(matches!(expected.verdict, Verdict::Proven("ok", _)), "{said}: {expected:?}");
        return passes(ok, expected);
    }
    assert!(ok.headers.is_empty(), "{said}: {:?}", ok.headers);
    let anonymous = said.contains("\"anonymous\"") && expected.verdict == Verdict::Refused("missing");
    assert!(anonymous || said.contains("\"public\""), "{said}: {expected:?}");
}

fn holds(response: &CheckResponse, bytes: &[u8], expected: Expected) {
    let (reason, proven) = match expected.verdict {
        Verdict::Public => ("public", None),
        Verdict::Refused(reason) => (reason, None),
        Verdict::Proven(reason, key) => (reason, Some(&KEYS[key])),
    };
    let fields = &response.dynamic_metadata.as_ref().expect("always there").fields;
    let said = format!("{:?}", fields["reason"]);
    assert!(said.contains(&format!("\"{reason}\"")), "{said}, not {reason}");
    let allowed = matches!(reason, "ok" | "public");
    let code = response.status.as_ref().expect("always there").code;
    let wanted = if allowed {
        0
    } else if reason == "tenant_inactive" {
        7
    } else {
        16
    };
    assert_eq!(code, wanted, "{reason}");
    match response.http_response.as_ref().expect("always there") {
        HttpResponse::OkResponse(ok) if allowed => passes(ok, expected),
        HttpResponse::DeniedResponse(denied) if !allowed => {
            let status = denied.status.as_ref().expect("a status").code;
            assert_eq!(status, if wanted == 7 { 403 } else { 401 });
        }
        other => panic!("{reason}: {other:?}"),
    }
    // The identity is revealed only after the proof.
    for tenant in &TENANTS {
        let id = Uuid::from_u128(tenant.id).to_string();
        let named = bytes.windows(id.len()).any(|window| window == id.as_bytes());
        assert_eq!(
            named,
            proven.is_some_and(|key| key.tenant().id == tenant.id),
            "{reason}: {}",
            tenant.name
        );
    }
}

fn passes(ok: &OkHttpResponse, expected: Expected) {
    let set: Vec<_> = ok.headers.iter().map(|option| option.header.clone().expect("a header")).collect();
    let set: Vec<_> = set.iter().map(|header| (header.key.as_str(), header.value.as_str())).collect();
    let mut removed = vec![KEY_HEADER];
    removed.extend(expected.bearer.then_some("authorization"));
    let names =
        ["x-llmcore-tenant-id", "x-llmcore-tenant-name", "x-llmcore-tenant-schema", "x-llmcore-key-id"];
    if let Verdict::Proven(_, at) = expected.verdict {
        let (key, tenant) = (&KEYS[at], KEYS[at].tenant());
        let (id, key_id) = (Uuid::from_u128(tenant.id).to_string(), Uuid::from_u128(key.id).to_string());
        let values = [id.as_str(), tenant.encoded_name, tenant.schema, key_id.as_str()];
        assert_eq!(set, names.into_iter().zip(values).collect::<Vec<_>>());
    } else {
        assert!(set.is_empty(), "{set:?}");
        removed.extend(names);
    }
    assert_eq!(ok.headers_to_remove, removed);
}
