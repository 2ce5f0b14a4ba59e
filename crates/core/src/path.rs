//! Normalizes the path of a request, so that rules can be matched against it, and detects ambiguous paths.
//!
//! Envoy, proxies and upstreams interpret paths differently: they may merge slashes, resolve dots, decode escapes or
//! cut off parameters. A path on which they could differ is *ambiguous* and is rejected, because one rule could
//! allow it while the upstream serves what another rule protects. Other paths are normalized: escapes of characters
//! that a segment may contain unescaped (RFC 3986 §3.3) are decoded, the other characters are escaped, escapes have
//! capitals, and one slash at the end is removed. So a segment has one form, however it is spelled.
//!
//! Most paths have only characters that need no escape; these are parsed in one pass and borrowed.

use std::borrow::Cow;
use std::fmt;

/// Which special characters are ordinary bytes of their segment, for upstreams that do not interpret them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PathOptions {
    /// `%2F` is (`--encoded-slash keep`).
    pub keep_encoded_slash: bool,
    /// `;` and `%3B` are (`--path-parameters keep`).
    pub keep_parameters: bool,
}

/// Why a path or a host is ambiguous, with the position.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ambiguous {
    /// The offset in bytes of the character, or of the last byte of the segment.
    pub at: usize,
    /// The kind of ambiguity.
    pub what: &'static str,
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at position {}", self.what, self.at + 1)
    }
}

/// A normalized path without ambiguity: segments with a slash between them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Path<'a>(Cow<'a, [u8]>);

/// The kind of a byte in a path.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Plain,
    Slash,
    Escape,
    Parameter,
    /// Belongs in an escape, but Envoy and many upstreams also accept the character itself.
    Unescaped,
    Query,
    Refused,
}

const KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Refused; 256];
    let mut byte = 0x21_u8;
    while byte < 0x7F {
        kinds[byte as usize] = match byte {
            b'/' => Kind::Slash,
            b'%' => Kind::Escape,
            b';' => Kind::Parameter,
            b'?' => Kind::Query,
            // Some programs treat the first as a slash, and the second as the end of the path.
            b'\\' | b'#' => Kind::Refused,
            // The printable characters that RFC 3986 §3.3 does not allow in a segment.
            b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => Kind::Unescaped,
            _ => Kind::Plain,
        };
        byte += 1;
    }
    kinds
};

impl<'a> Path<'a> {
    /// Parses the path of a request. Ignores the query.
    ///
    /// # Errors
    ///
    /// Returns the first part that makes the path ambiguous.
    pub fn read(raw: &'a [u8], options: PathOptions) -> Result<Self, Ambiguous> {
        let Some(mut path) = raw.strip_prefix(b"/") else {
            return Err(Ambiguous { at: 0, what: "no slash at the start" });
        };
        let mut start = 0;
        for (at, byte) in path.iter().enumerate() {
            match KINDS[usize::from(*byte)] {
                Kind::Plain => {}
                Kind::Slash => {
                    judge(&path[start..at], at, false)?;
                    start = at + 1;
                }
                Kind::Query => {
                    path = &path[..at];
                    break;
                }
                Kind::Escape | Kind::Parameter | Kind::Unescaped => {
                    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
                    return Decoder::new(&path[..end], options).decode().map(Self);
                }
                Kind::Refused => {
                    return Err(Ambiguous { at: at + 1, what: "a character that paths may not have" });
                }
            }
        }
        judge(&path[start..], path.len(), true)?;
        Ok(Self(Cow::Borrowed(path.strip_suffix(b"/").unwrap_or(path))))
    }

    /// Returns the segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.rest();
        std::iter::from_fn(move || {
            let (segment, after) = split(rest?);
            rest = after;
            Some(segment)
        })
    }

    /// Returns all segments with slashes between them; `None` if there are none.
    pub(crate) fn rest(&self) -> Option<&[u8]> {
        Some(&*self.0).filter(|text| !text.is_empty())
    }
}

/// Splits off the first segment. The rest is `None` after the last segment.
pub(crate) fn split(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|byte| *byte == b'/') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// Rejects empty segments and dot segments. `at` is the offset of the end of `part` after the path's first slash;
/// `last` allows an empty one.
fn judge(part: &[u8], at: usize, last: bool) -> Result<(), Ambiguous> {
    let what = match part {
        [] if last => return Ok(()),
        [] => "an empty segment",
        [b'.'] | [b'.', b'.'] | [b'.', b';', ..] | [b'.', b'.', b';', ..] => "a dot segment",
        _ => return Ok(()),
    };
    Err(Ambiguous { at, what })
}

/// Parses a path that has escapes, parameters, or characters that should be escaped.
struct Decoder<'a> {
    path: &'a [u8],
    options: PathOptions,
    text: Vec<u8>,
    /// The offset in `text` where the current segment starts.
    start: usize,
    /// The current run of escaped bytes from 0x80 on, which must be UTF-8 together.
    beyond: Vec<u8>,
}

impl<'a> Decoder<'a> {
    fn new(path: &'a [u8], options: PathOptions) -> Self {
        Self { path, options, text: Vec::with_capacity(path.len()), start: 0, beyond: Vec::new() }
    }

    fn decode(mut self) -> Result<Cow<'a, [u8]>, Ambiguous> {
        let mut at = 0;
        while let Some(&byte) = self.path.get(at) {
            let escape = KINDS[usize::from(byte)] == Kind::Escape;
            let escaped = if escape { Some(self.escaped(at)?) } else { None };
            if escaped.is_none_or(|byte| byte.is_ascii()) {
                self.end_beyond(at)?;
            }
            match escaped {
                Some(byte) => self.put_escaped(byte, at)?,
                None => self.put(byte, at)?,
            }
            at += if escape { 3 } else { 1 };
        }
        self.end_beyond(at)?;
        judge(&self.text[self.start..], at, true)?;
        if self.text.last() == Some(&b'/') {
            self.text.pop();
        }
        Ok(Cow::Owned(self.text))
    }

    fn escaped(&self, at: usize) -> Result<u8, Ambiguous> {
        let digit = |offset: usize| {
            let byte = *self.path.get(at + offset)?;
            char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
        };
        let both = digit(1).zip(digit(2)).map(|(high, low)| high << 4 | low);
        both.ok_or(Ambiguous { at: at + 1, what: "an incomplete escape" })
    }

    fn put(&mut self, byte: u8, at: usize) -> Result<(), Ambiguous> {
        match KINDS[usize::from(byte)] {
            Kind::Slash => {
                judge(&self.text[self.start..], at, false)?;
                self.text.push(byte);
                self.start = self.text.len();
            }
            Kind::Plain | Kind::Escape => self.text.push(byte),
            Kind::Unescaped => self.put_escape(byte),
            Kind::Parameter if self.options.keep_parameters => self.text.push(byte),
            Kind::Parameter => return Err(Ambiguous { at: at + 1, what: "a path parameter" }),
            // The path ends before the query.
            Kind::Query | Kind::Refused => {
                return Err(Ambiguous { at: at + 1, what: "a character that paths may not have" });
            }
        }
        Ok(())
    }

    fn put_escaped(&mut self, byte: u8, at: usize) -> Result<(), Ambiguous> {
        match byte {
            // Characters that a segment may contain unescaped: many upstreams treat both forms alike.
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => self.text.push(byte),
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@' => {
                self.text.push(byte);
            }
            b';' => self.put(byte, at)?,
            b'/' if self.options.keep_encoded_slash => {
                judge(&self.text[self.start..], at, false)?;
                self.text.extend(b"%2F");
                self.start = self.text.len();
            }
            0 | b'/' | b'\\' => {
                return Err(Ambiguous { at: at + 1, what: "an escaped slash, backslash or NUL" });
            }
            _ => {
                self.put_escape(byte);
                if !byte.is_ascii() {
                    self.beyond.push(byte);
                }
            }
        }
        Ok(())
    }

    fn put_escape(&mut self, byte: u8) {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let digit = |digit: u8| DIGITS[usize::from(digit & 15)];
        self.text.extend([b'%', digit(byte >> 4), digit(byte)]);
    }

    fn end_beyond(&mut self, at: usize) -> Result<(), Ambiguous> {
        if std::str::from_utf8(&self.beyond).is_err() {
            return Err(Ambiguous { at, what: "escapes that are not UTF-8" });
        }
        self.beyond.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEEP: PathOptions = PathOptions { keep_encoded_slash: true, keep_parameters: true };

    fn read(path: &str, options: PathOptions) -> Option<String> {
        let path = Path::read(path.as_bytes(), options).ok()?;
        let segments = path.segments().flat_map(|segment| [b"/", segment].concat());
        Some(String::from_utf8_lossy(&segments.collect::<Vec<_>>()).into_owned())
    }

    #[test]
    fn paths_are_normalized() {
        for (path, form) in [
            ("/", ""),
            ("/a", "/a"),
            ("/a/", "/a"),
            ("/a/b?x=//../%2f", "/a/b"),
            ("/?x", ""),
            ("/%61dmin", "/admin"),
            ("/a%2Db%5Fc%7ed%2E", "/a-b_c~d."),
            ("/v1/x%3agenerate", "/v1/x:generate"),
            ("/a%2Bb%2a", "/a+b*"),
            ("/a%20b/%c3%a9", "/a%20b/%C3%A9"),
            ("/%25%36%31", "/%2561"),
            ("/a%3f%23", "/a%3F%23"),
            ("/...", "/..."),
            ("/.a/..b", "/.a/..b"),
            ("/A", "/A"),
            ("/a|b\"<>^`{}[]", "/a%7Cb%22%3C%3E%5E%60%7B%7D%5B%5D"),
            ("/v2/x[1]/%7e", "/v2/x%5B1%5D/~"),
        ] {
            assert_eq!(read(path, PathOptions::default()).as_deref(), Some(form), "{path}");
        }
    }

    #[test]
    fn paths_that_programs_interpret_differently_are_ambiguous() {
        for path in [
            "",
            "a",
            "*",
            "?",
            "http://h/a",
            "//",
            "//a",
            "/a//",
            "/a//b",
            "/.",
            "/..",
            "/a/.",
            "/a/./b",
            "/a/../b",
            "/a/..",
            "/%2e",
            "/%2E%2e/a",
            "/.%2e",
            "/a\\b",
            "/a%5cb",
            "/a%5Cb",
            "/a%2fb",
            "/a%2Fb",
            "/%00",
            "/a%",
            "/a%2",
            "/a%2/",
            "/a%zz",
            "/a%+1",
            "/a;b",
            "/a%3bb",
            "/a%3Bb",
            "/;",
            "/a#b",
            "/a b",
            "/a\tb",
            "/a\x7f",
            "/é",
            "/%c3",
            "/%c0%af",
            "/%c3/%a9",
            "/%c3a",
            "/%ff",
            "/%ed%a0%80",
            "/%c3%a9%c3",
        ] {
            assert_eq!(read(path, PathOptions::default()), None, "{path:?}");
        }
    }

    #[test]
    fn an_ambiguous_path_is_rejected_with_its_position() {
        let slash = PathOptions { keep_encoded_slash: true, ..PathOptions::default() };
        for (path, options, expected) in [
            ("ab", PathOptions::default(), "no slash at the start at position 1"),
            ("/ab//c", PathOptions::default(), "an empty segment at position 4"),
            ("/ab/../c", PathOptions::default(), "a dot segment at position 6"),
            ("/ab/..", PathOptions::default(), "a dot segment at position 6"),
            ("/ab#", PathOptions::default(), "a character that paths may not have at position 4"),
            ("/%61b#", PathOptions::default(), "a character that paths may not have at position 6"),
            ("/ab;", PathOptions::default(), "a path parameter at position 4"),
            ("/ab%2", PathOptions::default(), "an incomplete escape at position 4"),
            ("/ab%2fc", PathOptions::default(), "an escaped slash, backslash or NUL at position 4"),
            ("/ab%ffc", PathOptions::default(), "escapes that are not UTF-8 at position 6"),
            ("/%61/./c", PathOptions::default(), "a dot segment at position 6"),
            ("/%61/..", PathOptions::default(), "a dot segment at position 7"),
            ("/ab/..%2Fc", slash, "a dot segment at position 6"),
        ] {
            let error = Path::read(path.as_bytes(), options).unwrap_err();
            assert_eq!(error.to_string(), expected, "{path}");
        }
    }

    #[test]
    fn a_kept_encoded_slash_hides_neither_dots_nor_empty_segments() {
        let slash = PathOptions { keep_encoded_slash: true, ..PathOptions::default() };
        for (path, form) in [
            ("/a%2fb", Some("/a%2Fb")),
            ("/a%2Fb/c", Some("/a%2Fb/c")),
            ("/a%2F", Some("/a%2F")),
            ("/a%2F/", None),
            ("/a%2F/b", None),
            ("/%2Fa", None),
            ("/a%2F%2Fb", None),
            ("/a%2F..", None),
            ("/..%2Fa", None),
            ("/a%2F%2e/b", None),
            ("/a%5cb", None),
            ("/a;b", None),
        ] {
            assert_eq!(read(path, slash).as_deref(), form, "{path}");
        }
    }

    #[test]
    fn kept_parameters_hide_no_dots() {
        let parameters = PathOptions { keep_parameters: true, ..PathOptions::default() };
        for (path, form) in [
            ("/a;b", Some("/a;b")),
            ("/a%3Bb", Some("/a;b")),
            ("/;", Some("/;")),
            ("/..;/a", None),
            ("/.;x=1", None),
            ("/%2e%2e%3bx", None),
            ("/...;x", Some("/...;x")),
            ("/a%2Fb", None),
        ] {
            assert_eq!(read(path, parameters).as_deref(), form, "{path}");
        }
    }

    #[test]
    fn all_spellings_of_a_byte_are_the_same_segment() {
        for byte in 0..=u8::MAX {
            let spellings = [
                [&b"/a"[..], &[byte], b"b"].concat(),
                format!("/a%{byte:02X}b").into_bytes(),
                format!("/a%{byte:02x}b").into_bytes(),
            ];
            // Whether a slash is escaped makes a difference. Both spellings are judged, and dots between slashes too.
            let read = |raw: &Vec<u8>| Some(Path::read(raw, KEEP).ok()?.0.into_owned());
            let mut forms: Vec<_> =
                spellings.iter().filter(|_| !b"/?".contains(&byte)).filter_map(read).collect();
            forms.dedup();
            assert!(forms.len() <= 1, "{byte:#x}: {forms:?}");
        }
    }

    #[test]
    fn a_path_without_escapes_is_borrowed() {
        let borrowed = |path: &str| matches!(Path::read(path.as_bytes(), KEEP), Ok(Path(Cow::Borrowed(_))));
        assert!(borrowed("/v1/models/x:generate?a=%20") && !borrowed("/%61"));
    }

    /// A slow model that applies the rules one after the other.
    fn slow(raw: &str, options: PathOptions) -> Option<Vec<String>> {
        let path = raw.split('?').next()?;
        let segments = path.strip_prefix('/')?;
        if raw.bytes().take(path.len()).any(|b| b <= 0x20 || b >= 0x7f || b == b'\\' || b == b'#') {
            return None;
        }
        let mut pieces = Vec::new();
        let mut rest = segments;
        while let Some(c) = rest.chars().next() {
            let length = if c == '%' { 3 } else { 1 };
            let piece = rest.get(..length)?;
            if c == '%' && !piece.bytes().skip(1).all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            pieces.push(if c == '%' { u8::from_str_radix(&piece[1..], 16).ok()? } else { c as u8 });
            rest = &rest[length..];
        }
        // After decoding everything, as an upstream may, the path must be UTF-8 without empty segments and dots.
        let decoded = String::from_utf8(pieces).ok()?;
        if decoded.contains('\0') || decoded.contains('\\') {
            return None;
        }
        let lower = segments.to_ascii_lowercase();
        if lower.contains("%2f") && !options.keep_encoded_slash
            || decoded.contains(';') && !options.keep_parameters
        {
            return None;
        }
        let parts: Vec<_> = decoded.split('/').collect();
        for (at, part) in parts.iter().enumerate() {
            let name = part.split(';').next().unwrap();
            if name == "." || name == ".." || part.is_empty() && at + 1 < parts.len() {
                return None;
            }
        }
        let cut = segments.strip_suffix('/').unwrap_or(segments);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,=:@;".contains(c);
        let form = |segment: &str| {
            let mut form = String::new();
            let mut rest = segment;
            while let Some(c) = rest.chars().next() {
                if c == '%' {
                    let byte = u8::from_str_radix(&rest[1..3], 16).unwrap();
                    let c = char::from(byte);
                    let shown = if c.is_ascii() && plain(c) { c.to_string() } else { format!("%{byte:02X}") };
                    form.push_str(&shown);
                    rest = &rest[3..];
                } else {
                    let shown = if plain(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) };
                    form.push_str(&shown);
                    rest = &rest[1..];
                }
            }
            form
        };
        Some(cut.split('/').filter(|_| !cut.is_empty()).map(form).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn parsing_agrees_with_the_model(
            parts in proptest::collection::vec(proptest::sample::select(vec![
                "/", "/", "/", "a", "b", ".", "..", ";", "%2f", "%2F", "%2e", "%61", "%3b", "%5c", "%c3%a9", "%c3", "%a9", "%00",
                "%", "%20", "%25", "%3A", ":", "?", "#", " ", "\\", "é", "[", "%5B", "%5b", "|", "`", "{", "%7b", "~", "%7e",
            ]), 0..9),
            keep_encoded_slash: bool,
            keep_parameters: bool,
        ) {
            let raw = format!("/{}", parts.concat());
            let options = PathOptions { keep_encoded_slash, keep_parameters };
            let read = Path::read(raw.as_bytes(), options).ok();
            let read = read.map(|p| p.segments().map(|s| String::from_utf8(s.to_vec()).unwrap()).collect::<Vec<_>>());
            prop_assert_eq!(read, slow(&raw, options), "{}", raw);
        }

        #[test]
        fn normalizing_twice_changes_nothing(raw in "/[a/.;%0-9A-F:\\[|]{0,20}") {
            if let Some(form) = read(&raw, KEEP) {
                let again = if form.is_empty() { "/" } else { &form };
                prop_assert_eq!(read(again, KEEP), Some(form.clone()), "{}", raw);
            }
        }

        #[test]
        fn no_bytes_cause_a_panic(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Path::read(&raw, KEEP);
        }
    }
}
