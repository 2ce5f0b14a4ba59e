//! Host patterns of rules, and the normalized host of a request.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;

use crate::invalid::Invalid;
use crate::path::Ambiguous;

/// The most bytes of a host name (RFC 1035 §2.3.4).
pub(crate) const MAX_HOST_BYTES: usize = 253;

/// The hosts that a rule matches.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum HostPattern {
    /// `*`: every host.
    Any,
    /// `*.example.com`: every host below `example.com` at any depth, but not `example.com` itself.
    Below(Box<str>),
    /// Exactly this host.
    Exact(Box<str>),
}

impl HostPattern {
    /// Parses `tenantgate_route.host`, and converts it to lower case.
    ///
    /// # Errors
    ///
    /// Returns the first character that is not allowed in a host, an empty label, or that the host is too long.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.strip_prefix("*.") {
            Some(below) => name(below).map(Self::Below).map_err(|error| error.moved(2)),
            None if text.starts_with('[') => literal(text).map(Self::Exact),
            None => name(text).map(Self::Exact),
        }
    }
}

const WHAT: &str = "host";

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

fn name(text: &str) -> Result<Box<str>, Invalid> {
    if let Some(at) = text.bytes().position(|byte| !is_name_byte(byte)) {
        let expected = match text.as_bytes()[at] {
            b':' => "a host without a port",
            b'*' => "* only as the whole host, or in front as in *.example.com",
            _ => "letters, digits, - _ or . (write an internationalized name as xn--…)",
        };
        return Err(Invalid::new(WHAT, at, expected));
    }
    let mut at = 0;
    for label in text.split('.') {
        if label.is_empty() {
            return Err(Invalid::new(WHAT, at, "a name before and after each dot"));
        }
        at += label.len() + 1;
    }
    if text.len() > MAX_HOST_BYTES {
        return Err(Invalid::new(WHAT, MAX_HOST_BYTES, "at most 253 characters"));
    }
    Ok(text.to_ascii_lowercase().into())
}

/// Parses an IPv6 address in brackets, and normalizes it.
fn literal(text: &str) -> Result<Box<str>, Invalid> {
    let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address: Option<Ipv6Addr> = inside.and_then(|text| text.parse().ok());
    let address =
        address.ok_or_else(|| Invalid::new(WHAT, 0, "an IPv6 address in brackets, without a port"))?;
    Ok(format!("[{address}]").into())
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Exact(name) => f.write_str(name),
        }
    }
}

/// Normalizes the host of a request: lower case, without port, without a dot at the end, and IPv6 addresses in their
/// shortest form.
#[must_use]
pub fn request_host(raw: &[u8]) -> Cow<'_, [u8]> {
    // Nearly every host is in this form. Without an early end, the loop takes an instruction or two a byte.
    // An address in brackets has colons, too.
    let special = |byte: u8| byte.is_ascii_uppercase() || byte == b':';
    if !raw.iter().fold(false, |found, byte| found | special(*byte)) {
        return Cow::Borrowed(raw.strip_suffix(b".").unwrap_or(raw));
    }
    let (host, port) = match raw.iter().rposition(|byte| *byte == b':') {
        Some(at) if raw[at + 1..].iter().all(u8::is_ascii_digit) => (&raw[..at], true),
        _ => (raw, false),
    };
    // The last part of an address without brackets is not a port.
    let host = if port && host.contains(&b':') && !host.ends_with(b"]") { raw } else { host };
    let host = host.strip_suffix(b".").unwrap_or(host);
    if host.starts_with(b"[") {
        let text = std::str::from_utf8(host).ok().and_then(|text| literal(text).ok());
        return text.map_or(Cow::Borrowed(host), |text| Cow::Owned(text.into_string().into_bytes()));
    }
    if host.iter().any(u8::is_ascii_uppercase) {
        return Cow::Owned(host.to_ascii_lowercase());
    }
    Cow::Borrowed(host)
}

/// Normalizes the host of a request as [`request_host`] does, and rejects one that is neither a name nor an address.
///
/// Proxies and upstreams may take such a host for another one: they split lists at commas, or cut off a user name,
/// a second dot or a port that is not a number. An empty host is not rejected, because it has nothing to interpret.
///
/// # Errors
///
/// Returns the first part that makes the host ambiguous.
pub fn unambiguous_host(raw: &[u8]) -> Result<Cow<'_, [u8]>, Ambiguous> {
    let ambiguous = |at, what| Err(Ambiguous { at, what });
    let host = request_host(raw);
    if raw.is_empty() {
        return Ok(host);
    }
    if host.starts_with(b"[") {
        let read = std::str::from_utf8(&host).ok().and_then(|text| literal(text).ok());
        return if read.is_some() { Ok(host) } else { ambiguous(0, "a host that is not an IPv6 address") };
    }
    if let Some(at) = host.iter().position(|byte| !is_name_byte(*byte)) {
        return ambiguous(at, "a host with a character that names may not have");
    }
    let mut at = 0;
    for label in host.split(|byte| *byte == b'.') {
        if label.is_empty() {
            return ambiguous(at, "a host with an empty part");
        }
        at += label.len() + 1;
    }
    if host.len() > MAX_HOST_BYTES {
        return ambiguous(MAX_HOST_BYTES, "a host that is too long");
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_parsed_and_converted_to_lower_case() {
        for (text, shown) in [
            ("*", "*"),
            ("Example.COM", "example.com"),
            ("*.Example.com", "*.example.com"),
            ("localhost", "localhost"),
            ("192.0.2.7", "192.0.2.7"),
            ("a_b-c.d", "a_b-c.d"),
            ("[2001:DB8:0::1]", "[2001:db8::1]"),
            (&"a".repeat(253), &"a".repeat(253)),
        ] {
            let host = HostPattern::parse(text).unwrap();
            assert_eq!(host.to_string(), shown);
            assert_eq!(HostPattern::parse(shown), Ok(host));
        }
    }

    #[test]
    fn an_invalid_pattern_is_rejected_with_its_position_and_what_is_expected() {
        for (bad, at, expected) in [
            ("", 1, "before and after each dot"),
            ("*.", 3, "before and after each dot"),
            ("**", 1, "* only as the whole host"),
            ("*example.com", 1, "* only as the whole host"),
            ("a.*.com", 3, "* only as the whole host"),
            ("a..b", 3, "before and after each dot"),
            ("a.", 3, "before and after each dot"),
            (".a", 1, "before and after each dot"),
            ("a:80", 2, "a host without a port"),
            ("a b", 2, "letters, digits"),
            ("é", 1, "letters, digits"),
            ("a/b", 2, "letters, digits"),
            ("[::1", 1, "an IPv6 address in brackets"),
            ("[::1]:80", 1, "an IPv6 address in brackets"),
            ("[::g]", 1, "an IPv6 address in brackets"),
            (&"a".repeat(254), 254, "at most 253"),
        ] {
            let error = HostPattern::parse(bad).unwrap_err();
            assert_eq!(error.position(), at, "{bad}: {error}");
            assert!(error.to_string().contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn the_host_of_a_request_is_normalized() {
        for (raw, form) in [
            ("example.com", "example.com"),
            ("EXAMPLE.com:443", "example.com"),
            ("EXample.com", "example.com"),
            ("example.com.", "example.com"),
            ("example.com.:8080", "example.com"),
            ("example.com:", "example.com"),
            ("example.com..", "example.com."),
            ("example.com:x", "example.com:x"),
            ("[2001:DB8:0:0::1]:443", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
            ("[::x]:1", "[::x]"),
            ("2001:db8::1", "2001:db8::1"),
            ("", ""),
            (":80", ""),
            (":", ""),
        ] {
            assert_eq!(request_host(raw.as_bytes()), form.as_bytes(), "{raw}");
        }
        assert!(matches!(request_host(b"example.com:443"), Cow::Borrowed(_)));
        assert_eq!(&*request_host(b"\xff:1"), b"\xff");
    }

    #[test]
    fn a_host_that_is_neither_a_name_nor_an_address_is_ambiguous() {
        for (raw, form) in [
            ("api.example.com", "api.example.com"),
            ("API.example.com.:443", "api.example.com"),
            ("a_b-c", "a_b-c"),
            ("192.0.2.7:80", "192.0.2.7"),
            ("[2001:DB8:0::1]:443", "[2001:db8::1]"),
            ("example.com:", "example.com"),
            ("", ""),
        ] {
            let host = unambiguous_host(raw.as_bytes());
            assert_eq!(host.as_deref(), Ok(form.as_bytes()), "{raw}");
        }
        for (raw, at) in [
            ("api.example.com..", 17),
            ("api.example.com..:80", 17),
            (".api.example.com", 1),
            ("api..example.com", 5),
            ("u@api.example.com", 2),
            ("api.example.com:abc", 16),
            ("api.example.com:1:2", 16),
            ("api.example.com,x", 16),
            ("adm.test,x.test", 9),
            ("api.example.com ", 16),
            ("%61pi.example.com", 1),
            ("ap\u{456}.example.com", 3),
            ("api.example.com/x", 16),
            ("http://api.example.com", 5),
            ("*.example.com", 1),
            ("2001:db8::1", 5),
            ("[::x]", 1),
            ("[::1", 1),
            ("[::1]x", 1),
            ("[fe80::1%25eth0]", 1),
            (":80", 1),
            (".", 1),
            (&"a".repeat(254), 254),
        ] {
            let error = unambiguous_host(raw.as_bytes()).unwrap_err();
            assert_eq!(error.at + 1, at, "{raw}: {error}");
        }
        let error = unambiguous_host(b"a,b").unwrap_err().to_string();
        assert_eq!(error, "a host with a character that names may not have at position 2");
    }
}
