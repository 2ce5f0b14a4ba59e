//! Extracts the origin of a request, and reduces large messages to the parts that are used.
//!
//! The origin is needed only for requests that are logged or reported. Extracting it walks the message a second
//! time, so that other requests do not pay for it.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue};

use super::codec::{MessageVisitor, NotACheckRequest, WireFields, walk};
use super::wire::Message;
use crate::client_address::{ClientAddress, address_from_the_right, only_address, parse_address};
use crate::request::{AUTHORIZATION, PREFLIGHT_HEADERS, RequestOptions};
use crate::route::context::CONTEXT_PREFIX;
use crate::shadow::RequestOrigin;
use crate::trace::TRACEPARENT;

const USER_AGENT: &[u8] = b"user-agent";

/// The user agent, and the lines of the header that has the client's address.
struct OriginVisitor<'a, 'o> {
    user_agent: &'a [u8],
    header: Option<&'o str>,
    lines: Vec<&'a [u8]>,
}

impl<'a> MessageVisitor<'a> for OriginVisitor<'a, '_> {
    fn header(&mut self, name: &'a [u8], value: &'a [u8]) {
        if name == USER_AGENT {
            self.user_agent = value;
        }
        if self.header.is_some_and(|header| header.as_bytes() == name) {
            self.lines.push(value);
        }
    }
}

/// Returns the origin of a `CheckRequest`. Parts that are missing or invalid are empty.
pub(super) fn origin<'a>(message: &'a [u8], metadata: &HeaderMap, from: &ClientAddress) -> RequestOrigin<'a> {
    let mut found = OriginVisitor { user_agent: &[], header: from.header(), lines: Vec::new() };
    let target = walk(message, &mut found).unwrap_or_default();
    let address = address_in(&found.lines, message, metadata, from);
    RequestOrigin { address, user_agent: found.user_agent, method: target.method, path: target.path }
}

/// Returns the address of the client. Walks the headers only if the address is in one of them.
pub(super) fn client_address(message: &[u8], metadata: &HeaderMap, from: &ClientAddress) -> Option<IpAddr> {
    if from.header().is_some() {
        return origin(message, metadata, from).address;
    }
    address_in(&[], message, metadata, from)
}

fn address_in(lines: &[&[u8]], message: &[u8], metadata: &HeaderMap, from: &ClientAddress) -> Option<IpAddr> {
    match from {
        ClientAddress::Source => parse_address(source_address(message)),
        ClientAddress::Metadata(name) => in_metadata(metadata, name),
        ClientAddress::XForwardedFor(n) => address_from_the_right(lines, *n),
        ClientAddress::Header(_) => only_address(lines),
    }
}

fn in_metadata(metadata: &HeaderMap, name: &str) -> Option<IpAddr> {
    let lines: Vec<_> = metadata.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    only_address(&lines)
}

/// The fields on the way to `AttributeContext.Peer.address`: CheckRequest.attributes = 1, AttributeContext.source =
/// 1, Peer.address = 1, `Address.socket_address` = 1, SocketAddress.address = 2.
const SOURCE_ADDRESS: [u8; 5] = [1, 1, 1, 1, 2];

fn source_address(message: &[u8]) -> &[u8] {
    SOURCE_ADDRESS.into_iter().try_fold(message, field).unwrap_or_default()
}

/// The module's metadata namespace, its field, and the value that means "only Checks decide on this route".
///
/// `CheckRequest`: attributes = 1; `AttributeContext`: `metadata_context` = 11; `Metadata`: `filter_metadata` = 1;
/// `Struct`: fields = 1; an entry of a map: key = 1, value = 2; `Value`: `string_value` = 3.
const MODULE: (&[u8], &[u8], &[u8]) = (b"envoy.tenantgate", b"route", b"checks");

/// Returns whether only Checks decide on the route, by the metadata of the module inside Envoy. The message contains it
/// if `metadata_context_namespaces` of the `ext_authz` filter lists the namespace.
pub(super) fn is_left_by_module(message: &[u8]) -> bool {
    let metadata = field(message, 1).and_then(|attributes| field(attributes, 11)).unwrap_or_default();
    let said = entry(metadata, MODULE.0).and_then(|fields| entry(fields, MODULE.1));
    said.and_then(|value| field(value, 3)) == Some(MODULE.2)
}

/// Returns the value of the last entry with this key, of a map that is field 1.
fn entry<'a>(message: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let (mut fields, mut found) = (WireFields(message), None);
    while let Some((number, value)) = fields.next().ok()? {
        let entry = value.bytes().ok();
        if let Some(entry) = entry.filter(|entry| number == 1 && field(entry, 1) == Some(key)) {
            found = field(entry, 2);
        }
    }
    found
}

/// Returns the last field with this number. That is right for scalars, which may be repeated; Envoy writes each
/// field once.
fn field(message: &[u8], number: u8) -> Option<&[u8]> {
    let (mut fields, mut found) = (WireFields(message), None);
    while let Some((field, value)) = fields.next().ok()? {
        if field == u32::from(number) {
            found = Some(value.bytes().ok()?);
        }
    }
    found
}

/// The headers and context extensions that are used.
struct CompactVisitor<'a, 'o> {
    names: [Option<&'o [u8]>; 6],
    headers: Vec<(&'a [u8], &'a [u8])>,
    context: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> MessageVisitor<'a> for CompactVisitor<'a, '_> {
    fn header(&mut self, name: &'a [u8], value: &'a [u8]) {
        if self.names.contains(&Some(name)) {
            self.headers.push((name, value));
        }
    }

    fn context(&mut self, name: &'a [u8], value: &'a [u8]) {
        if name.starts_with(CONTEXT_PREFIX.as_bytes()) {
            self.context.push((name, value));
        }
    }
}

/// Encodes a `CheckRequest` with only the parts that are used: without the body and other headers.
///
/// # Errors
///
/// Fails if `message` is not a valid `CheckRequest`.
pub(super) fn compact(
    message: &[u8],
    options: &RequestOptions,
    from: &ClientAddress,
) -> Result<Vec<u8>, NotACheckRequest> {
    let names = [options.key_header.as_str(), AUTHORIZATION].map(|name| Some(name.as_bytes()));
    let preflight = PREFLIGHT_HEADERS.map(|name| options.preflight.then_some(name.as_bytes()));
    let address = from.header().map(str::as_bytes);
    let names = [names[0], names[1], Some(USER_AGENT), address, preflight[0], preflight[1]];
    let mut kept = CompactVisitor { names, headers: Vec::new(), context: Vec::new() };
    let target = walk(message, &mut kept)?;
    let mut compact = Vec::new();
    // CheckRequest.attributes = 1; AttributeContext.source = 1, request = 4; Request.http = 2; `HttpRequest`: method =
    // 2, headers = 3, path = 4, host = 5. An entry of a map: key = 1, value = 2.
    Message(&mut compact).message(1, |attributes| {
        attributes.message(1, |peer| within(peer, &SOURCE_ADDRESS[2..], source_address(message)));
        attributes.message(4, |request| {
            request.message(2, |http| {
                http.bytes(2, target.method);
                for (name, value) in &kept.headers {
                    http.message(3, |entry| {
                        entry.bytes(1, name);
                        entry.bytes(2, value);
                    });
                }
                http.bytes(4, target.path);
                http.bytes(5, target.host);
            });
        });
        if !kept.context.is_empty() && is_left_by_module(message) {
            attributes.message(11, |metadata| {
                metadata.message(1, |entry| {
                    entry.bytes(1, MODULE.0);
                    entry.message(2, |fields| {
                        fields.message(1, |entry| {
                            entry.bytes(1, MODULE.1);
                            entry.message(2, |value| value.bytes(3, MODULE.2));
                        });
                    });
                });
            });
        }
        // AttributeContext.context_extensions = 10.
        for (name, value) in &kept.context {
            attributes.message(10, |entry| {
                entry.bytes(1, name);
                entry.bytes(2, value);
            });
        }
    });
    Ok(compact)
}

/// Copies the headers of a call that are used. Their values are copied, because a value may keep the memory of a
/// whole header list alive.
pub(super) fn compact_metadata(metadata: &HeaderMap, from: &ClientAddress) -> HeaderMap {
    let names = [Some(TRACEPARENT), from.metadata()];
    let mut compact = HeaderMap::new();
    for (name, value) in metadata.iter().filter(|(name, _)| names.contains(&Some(name.as_str()))) {
        // Two lines are enough: more than one is ambiguous anyway.
        if compact.get_all(name).iter().nth(1).is_none()
            && let Ok(value) = HeaderValue::from_bytes(value.as_bytes())
        {
            compact.append(name, value);
        }
    }
    compact
}

/// Writes `bytes` as the innermost field of a path of field numbers.
fn within(message: &mut Message<'_>, path: &[u8], bytes: &[u8]) {
    match path {
        [] => {}
        [last] => message.bytes(*last, bytes),
        [first, rest @ ..] => message.message(*first, |inner| within(inner, rest, bytes)),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use prost::Message as _;
    use prost_types::value::Kind;
    use prost_types::{Struct, Value};

    use super::*;
    use crate::ext_authz::proto::envoy::config::core::v3::Metadata;
    use crate::ext_authz::proto::envoy::service::auth::v3::{AttributeContext, CheckRequest};
    use crate::ext_authz::translate::read;

    const CAPTURED: [&str; 5] =
        ["http1_basic", "http2_grpc", "tls_client_cert", "raw_headers_dup_nonutf8", "body_partial_raw"];

    fn captured(file: &str) -> Vec<u8> {
        let path = format!("{}/tests/it/fixtures/{file}.bin", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap()
    }

    fn of<'a>(message: &'a [u8], from: &ClientAddress) -> RequestOrigin<'a> {
        origin(message, &HeaderMap::new(), from)
    }

    /// The files are requests of Envoy 1.40.
    #[test]
    fn the_origin_is_found_in_captured_requests() {
        for file in CAPTURED {
            let bytes = captured(file);
            let origin = of(&bytes, &ClientAddress::Source);
            assert!(origin.address.is_some(), "{origin:?}");
            assert!(origin.path.starts_with(b"/") && !origin.method.is_empty(), "{origin:?}");
            assert!(CheckRequest::decode(bytes.as_slice()).is_ok());
        }
    }

    #[test]
    fn an_empty_or_invalid_request_has_an_empty_origin() {
        for message in [&[][..], &[0x0a, 0x00], &[0xff], b"not protobuf"] {
            let origin = of(message, &ClientAddress::Source);
            assert!(origin.address.is_none() && origin.user_agent.is_empty() && origin.path.is_empty());
        }
    }

    #[test]
    fn the_address_is_taken_from_the_configured_source() {
        let header = |http: &mut Message<'_>, name: &[u8], value: &[u8]| {
            http.message(3, |entry| {
                entry.bytes(1, name);
                entry.bytes(2, value);
            });
        };
        let mut message = Vec::new();
        Message(&mut message).message(1, |attributes| {
            attributes.message(1, |peer| within(peer, &SOURCE_ADDRESS[2..], b"10.0.0.1"));
            attributes.message(4, |request| {
                request.message(2, |http| {
                    header(http, b"x-forwarded-for", b"6.6.6.6, 192.0.2.7, 10.0.0.2");
                    header(http, b"x-real-ip", b"192.0.2.8");
                });
            });
        });
        let mut metadata = HeaderMap::new();
        metadata.append("x-client", HeaderValue::from_static("[2001:db8::1]:9"));
        let from = |text: &str| {
            let from = ClientAddress::parse(text).unwrap();
            let alone = client_address(&message, &metadata, &from);
            assert_eq!(origin(&message, &metadata, &from).address, alone, "{text}");
            alone.map(|address| address.to_string())
        };
        assert_eq!(from("source").as_deref(), Some("10.0.0.1"));
        assert_eq!(from("xff:2").as_deref(), Some("192.0.2.7"));
        assert_eq!(from("header:x-real-ip").as_deref(), Some("192.0.2.8"));
        assert_eq!(from("metadata:x-client").as_deref(), Some("2001:db8::1"));
        for unknown in ["xff:4", "header:x-forwarded-for", "header:x-other", "metadata:x-other"] {
            assert_eq!(from(unknown), None, "{unknown}");
        }
        metadata.append("x-client", HeaderValue::from_static("192.0.2.9"));
        let twice = origin(&message, &metadata, &ClientAddress::parse("metadata:x-client").unwrap());
        assert_eq!(twice.address, None);
    }

    #[test]
    fn a_compact_message_is_parsed_like_the_whole_one() {
        let options = RequestOptions { accept_bearer: true, ..RequestOptions::default() };
        let from = ClientAddress::XForwardedFor(1);
        for file in CAPTURED.into_iter().chain(["http1_bearer", "http1_dup_key", "http1_no_key"]) {
            let whole = captured(file);
            let compact = compact(&whole, &options, &from).unwrap();
            assert!(compact.len() < whole.len() && CheckRequest::decode(compact.as_slice()).is_ok());
            let shown = |message: &[u8]| {
                let read = format!("{:?}", read(message, &options).unwrap());
                let origins = [&from, &ClientAddress::Source].map(|from| format!("{:?}", of(message, from)));
                (read, origins)
            };
            assert_eq!(shown(&compact), shown(&whole), "{file}");
        }
    }

    /// A request with metadata of the module, as the generated encoder writes it.
    fn of_route(namespace: &str, name: &str, value: &str, told: bool) -> Vec<u8> {
        let metadata = Metadata {
            filter_metadata: [(
                namespace.to_owned(),
                Struct {
                    fields: [
                        ("decided".to_owned(), Value { kind: Some(Kind::BoolValue(false)) }),
                        (name.to_owned(), Value { kind: Some(Kind::StringValue(value.to_owned())) }),
                    ]
                    .into(),
                },
            )]
            .into(),
            ..Metadata::default()
        };
        let mut attributes =
            AttributeContext { metadata_context: Some(metadata), ..AttributeContext::default() };
        if told {
            attributes.context_extensions.insert("tenantgate.mode".into(), "required".into());
        }
        CheckRequest { attributes: Some(attributes) }.encode_to_vec()
    }

    #[test]
    fn a_route_that_the_module_leaves_alone_is_known_by_its_metadata() {
        let options = RequestOptions::default();
        for (namespace, name, value, told, expected) in [
            ("envoy.tenantgate", "route", "checks", true, true),
            ("envoy.tenantgate", "route", "module", true, false),
            ("envoy.tenantgate", "route", "", true, false),
            ("envoy.tenantgate", "routes", "checks", true, false),
            ("envoy.other", "route", "checks", true, false),
            // No context extensions.
            ("envoy.tenantgate", "route", "checks", false, false),
        ] {
            let whole = of_route(namespace, name, value, told);
            let compact = compact(&whole, &options, &ClientAddress::Source).unwrap();
            for message in [&whole, &compact] {
                let context = read(message, &options).unwrap().context;
                assert_eq!(
                    (context.is_set(), context.left_by_module),
                    (told, expected),
                    "{namespace} {name} {value}"
                );
            }
        }
    }

    #[test]
    fn compact_metadata_keeps_only_what_is_used() {
        let mut metadata = HeaderMap::new();
        for (name, value) in [
            ("traceparent", "00-1"),
            ("tracestate", "large"),
            ("x-client", "192.0.2.1"),
            ("x-client", "192.0.2.2"),
            ("x-client", "192.0.2.3"),
        ] {
            metadata.append(name, HeaderValue::from_static(value));
        }
        let kept = |from: &str| {
            let compact = compact_metadata(&metadata, &ClientAddress::parse(from).unwrap());
            let fields = compact.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
            fields.collect::<Vec<_>>()
        };
        assert_eq!(kept("source"), ["traceparent: 00-1"]);
        assert_eq!(kept("metadata:x-client")[1..], ["x-client: 192.0.2.1", "x-client: 192.0.2.2"]);
    }
}
