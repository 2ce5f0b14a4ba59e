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
enum ByteKind {
    Plain,
    Slash,
    Escape,
    Parameter,
    /// Belongs in an escape, but Envoy and many upstreams also accept the character itself.
    Unescaped,
    Query,
    Refused,
}

const KINDS: [ByteKind; 256] = {
    let mut kinds = [ByteKind::Refused; 256];
    let mut byte = 0x21_u8;
    while byte < 0x7F {
        kinds[byte as usize] = match byte {
            b'/' => ByteKind::Slash,
            b'%' => ByteKind::Escape,
            b';' => ByteKind::Parameter,
            b'?' => ByteKind::Query,
            // Some programs treat the first as a slash, and the second as the end of the path.
            b'\\' | b'#' => ByteKind::Refused,
            // The printable characters that RFC 3986 §3.3 does not allow in a segment.
            b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => ByteKind::Unescaped,
            _ => ByteKind::Plain,
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
                ByteKind::Plain => {}
                ByteKind::Slash => {
                    judge(&path[start..at], at, false)?;
                    start = at + 1;
                }
                ByteKind::Query => {
                    path = &path[..at];
                    break;
                }
                ByteKind::Escape | ByteKind::Parameter | ByteKind::Unescaped => {
                    let end = path.iter().position(|byte| *byte == b'?').unwrap_or(path.len());
                    return Decoder::new(&path[..end], options).decode().map(Self);
                }
                ByteKind::Refused => {
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
            let escape = KINDS[usize::from(byte)] == ByteKind::Escape;
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
            ByteKind::Slash => {
                judge(&self.text[self.start..], at, false)?;
                self.text.push(byte);
                self.start = self.text.len();
            }
            ByteKind::Plain | ByteKind::Escape => self.text.push(byte),
            ByteKind::Unescaped => self.put_escape(byte),
            ByteKind::Parameter if self.options.keep_parameters => self.text.push(byte),
            ByteKind::Parameter => return Err(Ambiguous { at: at + 1, what: "a path parameter" }),
            // The path ends before the query.
            ByteKind::Query | ByteKind::Refused => {
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
mod tests;
