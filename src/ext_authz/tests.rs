//! Tests of decoding and encoding at bounds, byte by byte, and against the generated types.

use std::collections::BTreeMap;

use prost::Message as _;
use prost::encoding::encode_varint;
use uuid::Uuid;

use super::codec::{MessageVisitor, walk};
use super::proto::envoy::service::auth::v3::check_response::HttpResponse;
use super::proto::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use super::translate::{OnUnavailable, ResponseContent, ResponseOptions, read, write_response};
use super::wire::Message;
use crate::decision::{Decision, Denial, Fault, Reason};
use crate::request::{Credential, DEFAULT_KEY_HEADER, RequestOptions, Waived};

/// A length-delimited field.
fn field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_varint(number << 3 | 2, &mut bytes);
    encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// A `CheckRequest` with this in its `attributes.request.http`.
fn http(content: &[u8]) -> Vec<u8> {
    field(1, &field(4, &field(2, content)))
}

/// An entry of `headers`.
fn entry(name: &[u8], value: &[u8]) -> Vec<u8> {
    field(3, &[field(1, name), field(2, value)].concat())
}

/// An entry of `header_map` with these fields.
fn raw(fields: &[Vec<u8>]) -> Vec<u8> {
    field(13, &field(1, &fields.concat()))
}

#[derive(Default)]
struct Seen(Vec<(Vec<u8>, Vec<u8>)>);

impl<'a> MessageVisitor<'a> for Seen {
    fn header(&mut self, name: &'a [u8], value: &'a [u8]) {
        self.0.push((name.to_vec(), value.to_vec()));
    }
}

/// The headers in `attributes.request.http`; `None` if it is invalid.
fn seen(content: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut seen = Seen::default();
    walk(&http(content), &mut seen).ok()?;
    Some(seen.0)
}

fn one(name: &[u8], value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    vec![(name.to_vec(), value.to_vec())]
}

#[test]
fn a_value_of_any_length_is_decoded_completely() {
    for length in [0, 1, 127, 128, 129, 255, 256, 16_383, 16_384, 16_385, 70_000] {
        let value = vec![b'v'; length];
        assert_eq!(seen(&entry(b"k", &value)), Some(one(b"k", &value)), "{length}");
        let path = field(4, &value);
        let message = http(&path);
        assert_eq!(walk(&message, &mut Seen::default()).map(|target| target.path.len()), Ok(length));
    }
}

#[test]
fn a_header_is_reported_with_each_of_its_values_or_an_empty_one() {
    let (name, value, raw_value) = (field(1, b"k"), field(2, b"text"), field(3, b"raw"));
    assert_eq!(seen(&raw(&[name.clone(), value.clone()])), Some(one(b"k", b"text")));
    assert_eq!(seen(&raw(&[name.clone(), raw_value.clone()])), Some(one(b"k", b"raw")));
    assert_eq!(seen(&raw(std::slice::from_ref(&name))), Some(one(b"k", b"")));
    let both = [one(b"k", b"text"), one(b"k", b"raw")].concat();
    assert_eq!(seen(&raw(&[name, value, raw_value])), Some(both));
}

#[test]
fn a_map_entry_may_have_more_fields_but_must_not_be_truncated() {
    let name = field(1, b"k");
    for length in [0, 1, 127, 128, 133, 255, 16_383, 16_384] {
        // Bytes that could be mistaken for a part of the length.
        let (value, mut after) = (vec![1; length], Vec::new());
        for _ in 0..130 {
            let content = [&name[..], &field(2, &value), &field(3, &after)].concat();
            assert_eq!(seen(&field(3, &content)), Some(one(b"k", &value)), "{length}, {}", after.len());
            after.push(0);
        }
        // The value is shorter than its length says.
        let whole = [&name[..], &field(2, &value)].concat();
        for missing in [1, 2, 128, length].into_iter().filter(|missing| (1..=length).contains(missing)) {
            assert_eq!(seen(&field(3, &whole[..whole.len() - missing])), None, "{length}, {missing} missing");
        }
    }
    // The field number 0 is invalid, although these bytes resemble those of a name or value.
    for wrong in [0x00, 0x02] {
        assert_eq!(seen(&field(3, &[wrong, 1, b'k', 0x12, 1, b'v'])), None);
        assert_eq!(seen(&field(3, &[0x0a, 1, b'k', wrong, 1, b'v'])), None);
    }
}

#[test]
fn unknown_fields_are_skipped_and_invalid_ones_rejected() {
    let header = entry(b"k", b"v");
    let eight = [&[0x79][..], &[0xff; 8]].concat();
    let four = [&[0x7d][..], &[0xff; 4]].concat();
    let longest = [&[0x78][..], &[0xff; 9], &[0x01]].concat();
    let group =
        [&[0x7b, 0x12, 0x01, b'x', 0x09][..], &[0; 8], &[0x0d, 0, 0, 0, 0, 0x08, 0x80, 0x01, 0x7c]].concat();
    for skipped in [eight, four, longest, group, vec![0x78, 0x80, 0x01], field(500, b"later")] {
        for content in [[&skipped[..], &header].concat(), [&header[..], &skipped].concat()] {
            assert_eq!(seen(&content), Some(one(b"k", b"v")), "{skipped:x?}");
            assert!(CheckRequest::decode(&http(&content)[..]).is_ok(), "{skipped:x?}");
        }
    }
    let too_long = [&[0x78][..], &[0x80; 10], &[0x01]].concat();
    for bad in [vec![0x02, 0x00], vec![0x79, 0, 0], vec![0x7d, 0], vec![0x7e], vec![0x7f], too_long] {
        assert_eq!(seen(&bad), None, "{bad:x?}");
        assert!(CheckRequest::decode(&http(&bad)[..]).is_err(), "{bad:x?}");
    }
}

#[test]
fn groups_may_be_nested_as_deeply_as_in_the_generated_decoder() {
    for depth in [1, 50, 98, 99, 100, 101, 102, 200] {
        let message = [vec![0x7b; depth], vec![0x7c; depth]].concat();
        let ours = walk(&message, &mut Seen::default()).is_ok();
        assert_eq!(ours, CheckRequest::decode(&message[..]).is_ok(), "{depth}");
    }
}

#[test]
fn a_request_is_parsed_with_its_key_and_its_path() {
    let options = RequestOptions { accept_bearer: true, ..RequestOptions::default() };
    let key = DEFAULT_KEY_HEADER.as_bytes();
    let target = [field(2, b"GET"), field(4, b"/docs")].concat();
    let kind = |content: &[u8]| {
        let message = http(content);
        let asked = read(&message, &options).unwrap();
        let credential = match asked.credential {
            Credential::Missing => "missing".to_owned(),
            Credential::Malformed => "malformed".to_owned(),
            Credential::Presented(key) => key.prefix().to_owned(),
        };
        (asked.waived == Waived::Public, credential, asked.bearer)
    };
    assert_eq!(kind(&[]), (false, "missing".into(), false));
    assert_eq!(kind(&target), (true, "missing".into(), false));
    assert_eq!(kind(&entry(key, b"llmk_demo_secret123")), (false, "llmk_demo".into(), false));
    let bearer = entry(b"authorization", b"Bearer llmk_demo_secret123");
    assert_eq!(kind(&bearer), (false, "llmk_demo".into(), true));
    let twice = [entry(key, b""), raw(&[field(1, key)])].concat();
    assert_eq!(kind(&twice), (false, "malformed".into(), false));
    assert!(read(b"\x08\x01", &options).is_err());
    assert_eq!(read(b"", &options).unwrap().waived, Waived::No);
}

/// `status.code`, HTTP status, body and headers of a rejection.
type Refusal = (i32, i32, String, BTreeMap<String, String>);

fn refusal(decision: &Decision<'_>, on_unavailable: OnUnavailable) -> Refusal {
    let options = ResponseOptions {
        key_header: DEFAULT_KEY_HEADER.into(),
        on_unavailable,
        ..ResponseOptions::default()
    };
    let mut bytes = Vec::new();
    write_response(&mut bytes, &ResponseContent::of(decision), Uuid::from_u128(7), false, &options);
    let response = CheckResponse::decode(&bytes[..]).unwrap();
    let Some(HttpResponse::DeniedResponse(denied) | HttpResponse::ErrorResponse(denied)) =
        response.http_response
    else {
        panic!("not a rejection: {decision:?}")
    };
    let headers = denied.headers.into_iter().map(|option| option.header.unwrap());
    let headers = headers.map(|header| (header.key, header.value)).collect();
    (response.status.unwrap().code, denied.status.unwrap().code, denied.body, headers)
}

#[test]
fn every_rejection_has_the_response_of_the_contract() {
    let detail = |text: &str| format!("{{\"detail\":\"{text}\"}}");
    let headers = |more: &[(&str, &str)]| -> BTreeMap<String, String> {
        let always = [
            ("content-type", "application/json"),
            ("x-llmcore-decision-id", "00000000-0000-0000-0000-000000000007"),
        ];
        always.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let challenge = headers(&[("www-authenticate", "ApiKey realm=\"llmcore\"")]);
    let unauthorized = |text: &str| (16, 401, detail(text), challenge.clone());
    for reason in Reason::ALL {
        let expected = match reason {
            Reason::Missing => unauthorized("Missing API key"),
            Reason::Malformed => unauthorized("Invalid API key format"),
            Reason::Unknown
            | Reason::Mismatch
            | Reason::Revoked
            | Reason::Disabled
            | Reason::Expired
            | Reason::NotYetValid => unauthorized("Invalid API key"),
            Reason::PathAmbiguous => (7, 400, detail("Ambiguous path"), headers(&[])),
            Reason::Network => (7, 403, detail("API key is not allowed from this address"), headers(&[])),
            Reason::Route => (7, 403, detail("No rule allows this request"), headers(&[])),
            Reason::Scope => {
                let challenge = "ApiKey realm=\"llmcore\", error=\"insufficient_scope\", scope=\"a b\"";
                let headers = headers(&[("www-authenticate", challenge)]);
                (7, 403, detail("API key lacks a required scope"), headers)
            }
            Reason::TenantInactive => (7, 403, detail("Tenant account is inactive"), headers(&[])),
        };
        let decision = Decision::Deny(Denial { reason, identity: None, needs: Some("a  b ") });
        assert_eq!(refusal(&decision, OnUnavailable::Deny), expected);
    }
    for fault in Fault::ALL {
        // `failure_mode_allow` must not apply to faults that clients can cause.
        let ours = [Fault::DeadlineTooShort, Fault::Internal, Fault::Overloaded, Fault::TooLarge];
        let error = if ours.contains(&fault) { 7 } else { 14 };
        for (mode, code) in [(OnUnavailable::Deny, 7), (OnUnavailable::Error, error)] {
            let body = detail("Authentication service unavailable");
            let expected = (code, 503, body, headers(&[("retry-after", "1")]));
            assert_eq!(refusal(&Decision::Unable(fault, None), mode), expected);
        }
    }
}

#[test]
fn lengths_and_numbers_are_encoded_as_by_the_generated_encoder() {
    for length in [1, 126, 127, 128, 129, 16_382, 16_383, 16_384, 16_385, 2_097_151, 2_097_152] {
        let (text, mut written) = ("t".repeat(length), Vec::new());
        Message(&mut written).text(2, &text);
        assert!(written == field(2, text.as_bytes()), "{length}");
        let mut written = Vec::new();
        Message(&mut written).message(3, |message| message.text(2, &text));
        assert!(written == field(3, &field(2, text.as_bytes())), "{length}, within a message");
    }
    for number in [1, 0x7f, 0x80, 0xff, 0x100, 401, 403, 503, 0x3fff] {
        let (mut written, mut expected) = (Vec::new(), vec![5 << 3]);
        Message(&mut written).short(5, number);
        encode_varint(u64::from(number), &mut expected);
        assert_eq!(written, expected, "{number}");
    }
    let mut written = Vec::new();
    Message(&mut written).number(1, 0);
    Message(&mut written).short(1, 0);
    Message(&mut written).text(1, "");
    assert_eq!(written, b"", "empty values must be omitted");
}
