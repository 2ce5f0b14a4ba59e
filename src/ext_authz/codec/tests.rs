//! Tests of the codec, compared with generated messages.

use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::ext_authz::proto::envoy::config::core::v3::{HeaderMap, HeaderValue};
use crate::ext_authz::proto::envoy::service::auth::v3::attribute_context::{
    HttpRequest, Request, TlsSession,
};
use crate::ext_authz::proto::envoy::service::auth::v3::{AttributeContext, CheckRequest};

#[derive(Default)]
struct Seen(Vec<(Vec<u8>, Vec<u8>)>, Vec<(Vec<u8>, Vec<u8>)>);

impl<'a> MessageVisitor<'a> for Seen {
    fn header(&mut self, name: &'a [u8], value: &'a [u8]) {
        self.0.push((name.to_vec(), value.to_vec()));
    }

    fn context(&mut self, name: &'a [u8], value: &'a [u8]) {
        self.1.push((name.to_vec(), value.to_vec()));
    }
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;
/// Method, path, headers, host, extensions.
type Walked = (Vec<u8>, Vec<u8>, Pairs, Vec<u8>, Pairs);

fn walked(message: &[u8]) -> Result<Walked, NotACheckRequest> {
    let mut seen = Seen::default();
    let target = walk(message, &mut seen)?;
    seen.0.sort();
    seen.1.sort();
    Ok((target.method.to_vec(), target.path.to_vec(), seen.0, target.host.to_vec(), seen.1))
}

/// The result of the generated decoder for the same bytes.
fn decoded(message: &[u8]) -> Option<Walked> {
    let request = CheckRequest::decode(message).ok()?;
    let attributes = request.attributes.unwrap_or_default();
    let extensions = attributes.context_extensions.into_iter();
    let mut context: Vec<_> = extensions.map(|(k, v)| (k.into_bytes(), v.into_bytes())).collect();
    context.sort();
    let http = attributes.request.unwrap_or_default().http.unwrap_or_default();
    let map = http.header_map.unwrap_or_default().headers.into_iter().map(|h| {
        let value = if h.raw_value.is_empty() { h.value.into_bytes() } else { h.raw_value };
        (h.key.into_bytes(), value)
    });
    let headers = http.headers.into_iter().map(|(k, v)| (k.into_bytes(), v.into_bytes()));
    let mut all: Vec<_> = headers.chain(map).collect();
    all.sort();
    Some((http.method.into_bytes(), http.path.into_bytes(), all, http.host.into_bytes(), context))
}

fn wrap(http: HttpRequest) -> CheckRequest {
    let request = Request { http: Some(http), ..Request::default() };
    CheckRequest {
        attributes: Some(AttributeContext { request: Some(request), ..AttributeContext::default() }),
    }
}

fn requests() -> impl Strategy<Value = CheckRequest> {
    let headers = proptest::collection::hash_map("[a-z:-]{0,12}", "\\PC{0,20}", 0..5);
    let value = proptest::collection::vec(any::<u8>(), 1..9);
    let map = proptest::option::of(proptest::collection::vec(("[a-z:-]{0,12}", value), 0..5));
    let context = proptest::collection::hash_map("[a-z.]{0,12}", "\\PC{0,20}", 0..3);
    let head = ("[A-Z]{0,7}", "\\PC{0,9}", "/\\PC{0,30}");
    (head, headers, map, "\\PC{0,9}", any::<i64>(), context).prop_map(
        |((method, host, path), headers, map, body, size, context)| {
            let header_map = map.map(|entries| HeaderMap {
                headers: entries
                    .into_iter()
                    .map(|(key, raw_value)| HeaderValue { key, raw_value, value: String::new() })
                    .collect(),
            });
            let http =
                HttpRequest { method, host, path, headers, header_map, body, size, ..HttpRequest::default() };
            let mut request = wrap(http);
            request.attributes.as_mut().unwrap().context_extensions = context;
            request
        },
    )
}

proptest! {
    #[test]
    fn it_agrees_with_the_generated_decoder(request in requests()) {
        let bytes = request.encode_to_vec();
        prop_assert_eq!(walked(&bytes).ok(), decoded(&bytes));
    }

    #[test]
    fn two_concatenated_messages_are_merged_as_by_the_generated_decoder(a in requests(), b in requests()) {
        let (a_names, b_names) = (names(&a), names(&b));
        prop_assume!(a_names.is_disjoint(&b_names));
        let bytes = [a.encode_to_vec(), b.encode_to_vec()].concat();
        prop_assert_eq!(walked(&bytes).ok(), decoded(&bytes));
    }

    #[test]
    fn it_accepts_every_damaged_message_that_the_generated_decoder_accepts(
        request in requests(), at in any::<prop::sample::Index>(), byte in any::<u8>(), keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = request.encode_to_vec();
        prop_assume!(!bytes.is_empty());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(keep.index(bytes.len() + 1));
        // The generated decoder also rejects errors in fields that we skip; the reverse never happens.
        if let (Some(theirs), ours) = (decoded(&bytes), walked(&bytes)) {
            let ours = ours.expect("the generated decoder accepts this");
            prop_assert!(ours.2.len() >= theirs.2.len() && ours.4.len() >= theirs.4.len());
            if ours.2.len() == theirs.2.len() && ours.4.len() == theirs.4.len() {
                prop_assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn no_bytes_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = walked(&bytes);
    }
}

fn names(request: &CheckRequest) -> std::collections::HashSet<String> {
    let attributes = request.attributes.clone().unwrap();
    let http = attributes.request.unwrap().http.unwrap();
    http.headers.into_keys().chain(attributes.context_extensions.into_keys()).collect()
}

#[test]
fn a_repeated_map_key_is_reported_twice() {
    let one = wrap(HttpRequest { headers: [("k".into(), "1".into())].into(), ..HttpRequest::default() });
    let two = wrap(HttpRequest { headers: [("k".into(), "2".into())].into(), ..HttpRequest::default() });
    let bytes = [one.encode_to_vec(), two.encode_to_vec()].concat();
    assert_eq!(walked(&bytes).unwrap().2.len(), 2);
    assert_eq!(decoded(&bytes).unwrap().2.len(), 1);
}

#[test]
fn a_header_with_both_values_is_reported_twice() {
    let header = HeaderValue { key: "k".into(), value: "a".into(), raw_value: b"b".to_vec() };
    let http =
        HttpRequest { header_map: Some(HeaderMap { headers: vec![header] }), ..HttpRequest::default() };
    assert_eq!(walked(&wrap(http).encode_to_vec()).unwrap().2.len(), 2);
}

#[test]
fn strings_that_are_not_utf_8_are_accepted() {
    let mut request =
        wrap(HttpRequest { method: "GET".into(), path: "/xx".into(), ..HttpRequest::default() });
    request.attributes.as_mut().unwrap().tls_session = Some(TlsSession { sni: "xx".into() });
    let bytes: Vec<u8> = request.encode_to_vec().iter().map(|b| if *b == b'x' { 0xff } else { *b }).collect();
    assert!(CheckRequest::decode(bytes.as_slice()).is_err());
    assert_eq!(walked(&bytes).unwrap().1, b"/\xff\xff");
}

#[test]
fn groups_and_numbers_are_skipped_and_invalid_ones_rejected() {
    let group = |inner: &[u8]| [&[0x4b], inner, &[0x4c]].concat();
    for good in [group(&[]), group(&group(&[0x10, 0x01])), vec![0x48, 0x7f], vec![0x4d, 1, 2, 3, 4]] {
        assert!(walked(&good).is_ok(), "{good:x?}");
        assert!(CheckRequest::decode(good.as_slice()).is_ok(), "{good:x?}");
    }
    let deep = (0..100_000).fold(Vec::new(), |mut bytes, _| {
        bytes.push(0x4b);
        bytes
    });
    for bad in [
        deep,
        vec![0x4b],
        vec![0x4c],
        vec![0x4b, 0x54],
        vec![0x00],
        vec![0x08, 0x01],
        vec![0x0a, 0x05, 0x00],
        vec![0x48, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
        vec![0x4e],
    ] {
        assert!(walked(&bad).is_err(), "{:x?}", &bad[..bad.len().min(12)]);
        assert!(CheckRequest::decode(bad.as_slice()).is_err());
    }
}
