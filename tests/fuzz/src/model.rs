//! The expected answer, by a literal and slow implementation of the contract.
//!
//! It shares no code with tenantgate: prost decodes the message into lists, the grammar of keys tries every split, and
//! a key is searched in a list and compared as text. A request passes only if its bytes contain exactly one key, the
//! key is live, and its tenant is active.

use prost::Message;

use crate::fixtures::{KEYS, Key, State};

/// The header that carries a key.
pub const KEY_HEADER: &str = "x-llmcore-api-key";

/// The expected result of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Passes without an identity.
    Public,
    /// Rejected for this reason, without an identity.
    Refused(&'static str),
    /// Has an identity, given as the index in [`KEYS`]; passes if the reason is `ok`.
    Proven(&'static str, usize),
}

/// The expected result, whether `Authorization` contains the beginning of a key, and whether Envoy's configuration
/// contains a context of the route, which the verdict does not consider.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Expected {
    pub verdict: Verdict,
    pub bearer: bool,
    pub context: bool,
}

#[derive(Clone, Message)]
struct Check {
    #[prost(message, optional, tag = "1")]
    attributes: Option<Attributes>,
}

#[derive(Clone, Message)]
struct Attributes {
    #[prost(message, optional, tag = "4")]
    request: Option<Request>,
    #[prost(message, repeated, tag = "10")]
    context_extensions: Vec<Entry>,
}

#[derive(Clone, Message)]
struct Request {
    #[prost(message, optional, tag = "2")]
    http: Option<Http>,
}

#[derive(Clone, Message)]
struct Http {
    #[prost(bytes = "vec", tag = "2")]
    method: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    headers: Vec<Entry>,
    #[prost(bytes = "vec", tag = "4")]
    path: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    host: Vec<u8>,
    #[prost(message, optional, tag = "13")]
    header_map: Option<HeaderMap>,
}

#[derive(Clone, Message)]
struct HeaderMap {
    #[prost(message, repeated, tag = "1")]
    headers: Vec<HeaderValue>,
}

#[derive(Clone, Message)]
struct Entry {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, Message)]
struct HeaderValue {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    raw_value: Vec<u8>,
}

/// Returns the expected result of a `CheckRequest`; `None` if the bytes are not one.
pub fn expected(message: &[u8]) -> Option<Expected> {
    let check = Check::decode(message).ok()?;
    let attributes = check.attributes.unwrap_or_default();
    let context = attributes.context_extensions.iter().any(|entry| entry.key.starts_with(b"tenantgate."));
    let http = attributes.request.unwrap_or_default().http.unwrap_or_default();
    let headers = headers(&http);
    let values_of = |name: &str| -> Vec<&[u8]> {
        headers
            .iter()
            .filter(|header| header.0 == name.as_bytes())
            .map(|header| header.1.as_slice())
            .collect()
    };
    let authorization = values_of("authorization");
    let bearer = authorization.iter().any(|value| is_ours(value));
    let verdict = if is_public(&http.method, &http.path) {
        Verdict::Public
    } else {
        match credential(&values_of(KEY_HEADER), bearer.then_some(authorization.as_slice())) {
            Err(reason) => Verdict::Refused(reason),
            Ok(presented) => holder(&presented),
        }
    };
    Some(Expected { verdict, bearer, context })
}

/// Returns every header as often as it occurs; one with two values counts twice.
fn headers(http: &Http) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all: Vec<_> = http.headers.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
    for header in http.header_map.iter().flat_map(|map| &map.headers) {
        let filled = [&header.value, &header.raw_value].into_iter().filter(|value| !value.is_empty()).count();
        match filled {
            0 => all.push((header.key.clone(), Vec::new())),
            1 => all.push((header.key.clone(), [&header.value[..], &header.raw_value[..]].concat())),
            _ => {
                all.push((header.key.clone(), header.value.clone()));
                all.push((header.key.clone(), header.raw_value.clone()));
            }
        }
    }
    all
}

fn is_public(method: &[u8], path: &[u8]) -> bool {
    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
    let path = &path[..end];
    (method == b"GET" || method == b"HEAD") && (path == b"/" || path == b"/health" || path == b"/docs")
}

/// Whether an `Authorization` value has one or several bearer tokens with the beginning of a key as a word.
fn is_ours(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|part| {
        let part = part.trim_ascii();
        let is_bearer = part.len() >= 6 && part[..6].to_ascii_lowercase() == b"bearer";
        let of_no_token = |byte: &u8| !byte.is_ascii_alphanumeric() && !b"-._~+/=".contains(byte);
        is_bearer && part[6..].split(of_no_token).any(|word| word.starts_with(b"llmk_"))
    })
}

/// Returns the only presented key, or why there is none.
fn credential(keys: &[&[u8]], bearers: Option<&[&[u8]]>) -> Result<String, &'static str> {
    let in_header = match keys {
        [] => None,
        [value] if value.is_empty() => None,
        [value] => Some(*value),
        _ => return Err("malformed"),
    };
    let in_bearer = match bearers {
        None => None,
        Some([value])
            if value.len() > 7 && value[6] == b' ' && value[..6].to_ascii_lowercase() == b"bearer" =>
        {
            Some(&value[7..])
        }
        Some(_) => return Err("malformed"),
    };
    match (in_header, in_bearer) {
        (None, None) => Err("missing"),
        (Some(value), None) | (None, Some(value)) => key(value).map(|key| key.0).ok_or("malformed"),
        (Some(_), Some(_)) => Err("malformed"),
    }
}

/// Returns a key and its prefix, if the bytes are a key: at most 71 bytes, and exactly one way to split them.
pub fn key(bytes: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8(bytes.to_vec()).ok().filter(|text| text.len() <= 71)?;
    let rest = text.strip_prefix("llmk_")?;
    let mut splits = Vec::new();
    for (at, _) in rest.match_indices('_') {
        let (prefix, secret) = (&rest[..at], &rest[at + 1..]);
        let of_prefix = |c: char| matches!(c, 'A'..='Z' | 'a'..='z' | '0'..='9' | '-');
        let of_secret = |c: char| of_prefix(c) || c == '_';
        if (1..=48).contains(&prefix.len())
            && (8..=57).contains(&secret.len())
            && prefix.chars().all(of_prefix)
            && secret.chars().all(of_secret)
        {
            splits.push(format!("llmk_{prefix}"));
        }
    }
    assert!(splits.len() <= 1, "a text that could be two keys: {text}");
    splits.pop().map(|prefix| (text, prefix))
}

/// Returns the holder of the key.
fn holder(presented: &str) -> Verdict {
    let (_, prefix) = key(presented.as_bytes()).expect("it was one");
    let Some(at) = KEYS.iter().position(|key| key.prefix() == prefix) else {
        return Verdict::Refused("unknown");
    };
    let known: &Key = &KEYS[at];
    if known.text != presented {
        return Verdict::Refused("mismatch");
    }
    Verdict::Proven(
        match (known.state, known.tenant().status) {
            (State::Revoked, _) => "revoked",
            (State::Expired, _) => "expired",
            (State::Live, "active") => "ok",
            (State::Live, _) => "tenant_inactive",
        },
        at,
    )
}
