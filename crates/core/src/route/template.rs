//! Path templates of rules: literal segments, `{name}` for one segment, and `**` at the end for any number of them.

use std::fmt;

use crate::invalid::Invalid;
use crate::path::{Path, PathOptions};

/// The most bytes of a template.
const MAX_TEMPLATE_BYTES: usize = 1024;

const MAX_NAME_BYTES: usize = 32;

/// A segment of a template.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Segment {
    /// Exactly this segment, normalized as [`Path`] normalizes those of requests.
    Literal(Box<[u8]>),
    /// `{name}`: any one segment.
    One,
    /// `**`: any number of segments, also none.
    Rest,
}

/// A path template, such as `/models/{id}/**`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PathTemplate {
    text: Box<str>,
    segments: Box<[Segment]>,
}

const WHAT: &str = "path";

impl PathTemplate {
    /// Parses `tenantgate_route.path`, of at most 1024 bytes. Removes a slash at the end.
    ///
    /// # Errors
    ///
    /// Returns the first position where the template is invalid.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let inside =
            text.strip_prefix('/').ok_or_else(|| Invalid::new(WHAT, 0, "a path that begins with /"))?;
        if text.len() > MAX_TEMPLATE_BYTES {
            return Err(Invalid::new(WHAT, MAX_TEMPLATE_BYTES, "at most 1024 characters"));
        }
        let inside = inside.strip_suffix('/').unwrap_or(inside);
        let (mut segments, mut names, mut at) = (Vec::new(), Vec::new(), 1);
        for part in inside.split('/').filter(|_| text.len() > 1) {
            if segments.last() == Some(&Segment::Rest) {
                return Err(Invalid::new(WHAT, at - 1, "nothing after **"));
            }
            segments.push(segment(part, at, &mut names)?);
            at += part.len() + 1;
        }
        let text = if segments.is_empty() { "/" } else { text.strip_suffix('/').unwrap_or(text) };
        Ok(Self { text: text.into(), segments: segments.into() })
    }

    /// Returns whether both match the same paths. The names in `{name}` may differ.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.segments == other.segments
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

fn segment<'t>(part: &'t str, at: usize, names: &mut Vec<&'t str>) -> Result<Segment, Invalid> {
    let invalid = |offset: usize, expected: &'static str| Err(Invalid::new(WHAT, at + offset, expected));
    match part {
        "" => return invalid(0, "a segment between two slashes"),
        "." | ".." => return invalid(0, "a segment other than . and .., which requests never have"),
        "**" => return Ok(Segment::Rest),
        _ => {}
    }
    if let Some(name) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
        let good =
            |(at, b): (usize, u8)| b.is_ascii_lowercase() || at > 0 && (b.is_ascii_digit() || b == b'_');
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().enumerate().all(good) {
            return invalid(
                1,
                "a name of 1 to 32 lower-case letters, digits and _ that begins with a letter",
            );
        }
        if names.contains(&name) {
            return invalid(1, "a name that does not occur earlier in the path");
        }
        names.push(name);
        return Ok(Segment::One);
    }
    literal(part, at)
}

/// Returns whether a segment may contain `byte` unescaped: those of RFC 3986 §3.3, without `*` and `;`, which have
/// other meanings in templates or upstreams.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()+,=:@".contains(&byte)
}

/// The reserved characters of URIs (RFC 3986 §2.2).
const RESERVED: &[u8] = b":/?#[]@!$&'()*+,;=";

fn literal(part: &str, at: usize) -> Result<Segment, Invalid> {
    let bytes = part.as_bytes();
    let mut offset = 0;
    while let Some(&byte) = bytes.get(offset) {
        let expected = match byte {
            b'%' => match escape(bytes.get(offset + 1..offset + 3)) {
                Some(byte) if RESERVED.contains(&byte) => {
                    offset += 3;
                    continue;
                }
                Some(_) => "the character itself: only reserved characters may be escaped",
                None => "an escape with two digits in capitals, such as %3A",
            },
            _ if is_plain(byte) => {
                offset += 1;
                continue;
            }
            b'*' => "** as the last segment, or {name} for one segment",
            b'{' | b'}' => "{name} as a whole segment",
            b';' => "%3B, because ; begins a parameter",
            b'?' | b'#' => "a path without query and fragment",
            _ => "a character that paths may have",
        };
        return Err(Invalid::new(WHAT, at + offset, expected));
    }
    let keep = PathOptions { keep_encoded_slash: true, keep_parameters: true };
    let path = format!("/{part}");
    match Path::read(path.as_bytes(), keep) {
        Ok(read) => Ok(Segment::Literal(read.segments().flatten().copied().collect())),
        Err(_) => Err(Invalid::new(WHAT, at, "a segment without encoded dots or empty segments")),
    }
}

fn escape(digits: Option<&[u8]>) -> Option<u8> {
    let digits = digits.filter(|d| d.iter().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')))?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_parsed_and_shown() {
        for (text, shown) in [
            ("/", "/"),
            ("/**", "/**"),
            ("/a", "/a"),
            ("/a/", "/a"),
            ("/a/**/", "/a/**"),
            ("/a/{id}/b/{x_1}/**", "/a/{id}/b/{x_1}/**"),
            ("/v1/x:generate", "/v1/x:generate"),
            ("/a-._~!$&'()+,=:@", "/a-._~!$&'()+,=:@"),
            ("/a%3Ab%2Fc", "/a%3Ab%2Fc"),
            ("/...", "/..."),
            ("/pkg.Service/Method", "/pkg.Service/Method"),
            (&format!("/{{{}}}", "a".repeat(32)), &format!("/{{{}}}", "a".repeat(32))),
            (&format!("/{}", "a".repeat(1023)), &format!("/{}", "a".repeat(1023))),
        ] {
            let template = PathTemplate::parse(text).unwrap();
            assert_eq!(template.to_string(), shown);
            assert_eq!(PathTemplate::parse(shown), Ok(template));
        }
    }

    #[test]
    fn an_invalid_template_is_rejected_with_its_position_and_what_is_expected() {
        for (text, at, expected) in [
            ("", 1, "begins with /"),
            ("a", 1, "begins with /"),
            ("*", 1, "begins with /"),
            ("//", 2, "a segment"),
            ("/a//b", 4, "a segment"),
            ("/a//", 4, "a segment"),
            ("/a/./b", 4, "other than ."),
            ("/..", 2, "other than ."),
            ("/a/**/b", 6, "nothing after **"),
            ("/a/**/**", 6, "nothing after **"),
            ("/a*", 3, "** as the last segment"),
            ("/a/*", 4, "** as the last segment"),
            ("/***", 2, "** as the last segment"),
            ("/{}", 3, "a name"),
            ("/{A}", 3, "a name"),
            ("/{1a}", 3, "a name"),
            ("/{a-b}", 3, "a name"),
            (&format!("/{{{}}}", "a".repeat(33)), 3, "a name"),
            ("/{a}/{a}", 7, "does not occur earlier"),
            ("/a{b}", 3, "{name} as a whole"),
            ("/{a}b", 2, "{name} as a whole"),
            ("/a;b", 3, "%3B"),
            ("/a?b", 3, "without query"),
            ("/a#b", 3, "without query"),
            ("/a b", 3, "a character that paths may have"),
            ("/é", 2, "a character that paths may have"),
            ("/a\\b", 3, "a character that paths may have"),
            ("/a%3ab", 3, "two digits in capitals"),
            ("/a%3", 3, "two digits in capitals"),
            ("/a%zz", 3, "two digits in capitals"),
            ("/%41", 2, "the character itself"),
            ("/%20", 2, "the character itself"),
            ("/a%2F..", 2, "without encoded dots"),
            ("/%2Fa", 2, "without encoded dots"),
            ("/..%3Ba", 2, "without encoded dots"),
            (&format!("/{}", "a".repeat(1024)), 1025, "at most 1024"),
        ] {
            let error = PathTemplate::parse(text).unwrap_err();
            assert_eq!(error.position(), at, "{text}: {error}");
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn templates_that_differ_in_names_or_escapes_have_the_same_shape() {
        let same = |a, b| PathTemplate::parse(a).unwrap().is_same(&PathTemplate::parse(b).unwrap());
        assert!(same("/a/{x}", "/a/{y}") && same("/a", "/a/") && same("/x:y", "/x%3Ay"));
        assert!(!same("/a/{x}", "/a/x") && !same("/a", "/a/**") && !same("/a", "/A"));
    }
}
