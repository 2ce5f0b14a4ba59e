//! The headers `If-Match` (RFC 9110, section 13.1.1) and `Prefer` (RFC 7240).

use std::time::Duration;

use axum::Json;
use axum::http::header::{ETAG, IF_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::problem::{FieldError, Problem};
use crate::admin::ExpectedVersion;

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The longest wait in seconds that a client can request; less than the timeout of a request.
const LONGEST_WAIT: u64 = 60;

/// Formats a version as a strong entity tag.
pub(super) fn entity_tag(version: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("\"{version}\"")).ok()
}

/// An object with its version.
pub(super) struct Tagged<T>(pub(super) T, pub(super) String);

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.0).into_response();
        if let Some(tag) = entity_tag(&self.1) {
            response.headers_mut().insert(ETAG, tag);
        }
        response
    }
}

/// Returns the versions that `If-Match` names; `None` without this header.
///
/// The comparison is strong, so a weak tag matches no version.
///
/// # Errors
///
/// The header is not a list of entity tags.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<ExpectedVersion>, Problem> {
    let mut versions = Vec::new();
    let mut any = false;
    let lines: Vec<_> = headers.get_all(IF_MATCH).iter().collect();
    for line in &lines {
        let text = line.to_str().map_err(|_| not_a_list())?;
        for tag in text.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            let (weak, opaque) = tag.strip_prefix("W/").map_or((false, tag), |opaque| (true, opaque));
            let inner = opaque.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            match inner {
                _ if tag == "*" => any = true,
                Some(inner) if !inner.contains('"') => versions.extend((!weak).then(|| inner.to_owned())),
                _ => return Err(not_a_list()),
            }
        }
    }
    if any && (lines.len() > 1 || lines.iter().any(|line| line.as_bytes().trim_ascii() != b"*")) {
        // `*` stands alone.
        return Err(not_a_list());
    }
    Ok(match (lines.is_empty(), any) {
        (true, _) => None,
        (false, true) => Some(ExpectedVersion::Any),
        (false, false) => Some(ExpectedVersion::OneOf(versions)),
    })
}

fn not_a_list() -> Problem {
    let detail = "If-Match is not valid: expected values of ETag, such as \"…\", or *";
    Problem::invalid(vec![FieldError::new(String::new(), "invalid_header", detail)])
}

/// Returns how long the client wants to wait until all servers have applied the change: `Prefer: wait=N`, in seconds,
/// at most 60. Invalid preferences are ignored, as the standard requires.
pub(super) fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers.get_all(PREFER).iter().filter_map(|line| line.to_str().ok());
    let mut wanted = lines.flat_map(|line| line.split([',', ';'])).filter_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        let same = name.trim().eq_ignore_ascii_case("wait");
        same.then(|| value.trim().trim_matches('"').parse::<u64>().ok()).flatten()
    });
    wanted.next().map(|seconds| Duration::from_secs(seconds.min(LONGEST_WAIT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &HeaderName, lines: &[&'static str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), HeaderValue::from_static(line))).collect()
    }

    #[test]
    fn tags_are_compared_strongly() {
        let read = |lines: &[&'static str]| if_match(&headers(&IF_MATCH, lines));
        let some =
            |list: &[&str]| Some(ExpectedVersion::OneOf(list.iter().map(|tag| (*tag).to_owned()).collect()));
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&["\"a\""]).unwrap(), some(&["a"]));
        assert_eq!(read(&["\"a\" , W/\"b\"", "\"c\""]).unwrap(), some(&["a", "c"]));
        assert_eq!(read(&["W/\"a\""]).unwrap(), some(&[]));
        assert_eq!(read(&[""]).unwrap(), some(&[]));
        assert_eq!(read(&["*"]).unwrap(), Some(ExpectedVersion::Any));
        for bad in ["*, \"a\"", "\"a\", *", "a", "\"a", "'a'", "\"a\"b\"", "W/a"] {
            assert!(read(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wait_is_found_among_other_preferences() {
        let read = |lines: &[&'static str]| preferred_wait(&headers(&PREFER, lines));
        for (line, seconds) in [
            ("wait=5", Some(5)),
            ("respond-async, Wait = 7", Some(7)),
            ("return=minimal; wait=\"3\"", Some(3)),
            ("wait=999999", Some(60)),
            ("wait=0", Some(0)),
            ("wait", None),
            ("wait=-1", None),
            ("wait=soon", None),
            ("awaited=5", None),
        ] {
            assert_eq!(read(&[line]), seconds.map(Duration::from_secs), "{line}");
        }
        assert_eq!(read(&["x=1", "wait=2"]), Some(Duration::from_secs(2)));
    }
}
