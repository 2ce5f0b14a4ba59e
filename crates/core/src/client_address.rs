//! Finds the address of the client.
//!
//! Behind a load balancer the peer of the connection is the balancer, and a client can forge `x-forwarded-for`. Only
//! the operator knows which source is trustworthy, so it is an option (`--client-address`). If the address is
//! missing, not unique or invalid, it is unknown; it is never guessed.

use std::net::IpAddr;

use crate::invalid::InvalidValue;

/// The header to which proxies append addresses.
pub const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// The source of the client's address.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ClientAddress {
    /// `source.address` of the `CheckRequest`: the peer of Envoy's connection.
    #[default]
    Source,
    /// This metadata of the gRPC call, in lower case. Envoy sets it with `initial_metadata`; clients cannot forge it.
    Metadata(String),
    /// The n-th address from the right of all `x-forwarded-for` lines together; 1 is the last one. At most 32.
    XForwardedFor(usize),
    /// This header of the request, in lower case.
    Header(String),
}

impl ClientAddress {
    /// Parses the value of `--client-address`.
    ///
    /// # Errors
    ///
    /// Returns why `text` is invalid, or which values are valid.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        match text.split_once(':') {
            None if text == "source" => Ok(Self::Source),
            Some(("metadata", name)) if is_of_envoy(&name.to_ascii_lowercase()) => Err(format!(
                "metadata:{name} cannot be trusted, because Envoy sets it itself, or copies it from the client: choose \
                 another name, such as metadata:x-tenantgate-client-address"
            ).into()),
            Some(("metadata", name)) => metadata_name(name).map(Self::Metadata),
            Some(("header", name)) => header_name(name).map(Self::Header),
            Some(("xff", n)) => match n.parse() {
                Ok(n @ 1..=32) if !text.contains('+') => Ok(Self::XForwardedFor(n)),
                _ => Err(format!("invalid position {n:?} in xff:N: expected a whole number from 1 to 32").into()),
            },
            _ => Err(format!("invalid value {text:?}: expected source, metadata:NAME, xff:N or header:NAME").into()),
        }
    }

    /// Returns the name of the request header that has the address, in lower case; `None` if it is not in a header.
    #[must_use]
    pub fn header(&self) -> Option<&str> {
        match self {
            Self::Source | Self::Metadata(_) => None,
            Self::XForwardedFor(_) => Some(X_FORWARDED_FOR),
            Self::Header(name) => Some(name),
        }
    }

    /// Returns the name of the gRPC metadata that has the address, in lower case; `None` if it is not in metadata.
    #[must_use]
    pub fn metadata(&self) -> Option<&str> {
        if let Self::Metadata(name) = self { Some(name) } else { None }
    }
}

/// Returns whether Envoy's gRPC client or its tracers set this metadata, perhaps to what the client has sent.
fn is_of_envoy(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        X_FORWARDED_FOR,
        "b3",
        "baggage",
        "content-type",
        "sw8",
        "te",
        "traceparent",
        "tracestate",
        "uber-trace-id",
        "user-agent",
        "x-amzn-trace-id",
        "x-cloud-trace-context",
        "x-ot-span-context",
        "x-request-id",
    ];
    let prefixes = ["x-envoy-", "x-b3-", "x-datadog-"];
    NAMES.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Checks that `name` is a token (RFC 9110 §5.6.2), and returns it in lower case.
fn header_name(name: &str) -> Result<String, InvalidValue> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("invalid header name {name:?}").into());
    }
    Ok(name.to_ascii_lowercase())
}

/// Checks a name of gRPC metadata. Values of names that end in `-bin` are Base64, and names that begin with `grpc-`
/// are reserved, so both are rejected.
fn metadata_name(name: &str) -> Result<String, InvalidValue> {
    let name = header_name(name)?;
    if name.ends_with("-bin") || name.starts_with("grpc-") {
        return Err(format!("invalid metadata name {name:?}: choose one without grpc- and -bin").into());
    }
    Ok(name)
}

/// Parses an address, with or without a port or brackets. Converts IPv4-mapped addresses to IPv4. `None` if `text` is
/// invalid.
#[must_use]
pub fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    let plain = || text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().ok();
    plain().or_else(with_port).or_else(|| in_brackets().map(IpAddr::V6)).map(|address| address.to_canonical())
}

/// Returns the address in `lines`, the lines of a header; `None` if there is not exactly one line, or it is invalid.
#[must_use]
pub fn only_address(lines: &[&[u8]]) -> Option<IpAddr> {
    if let [line] = lines { parse_address(line) } else { None }
}

/// Returns the `n`-th address from the right in the lines of `x-forwarded-for`, which are in the order of the
/// request; 1 is the last one. `None` if there are fewer, or the address is invalid.
#[must_use]
pub fn address_from_the_right(lines: &[&[u8]], n: usize) -> Option<IpAddr> {
    let mut from_the_right = lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
    parse_address(from_the_right.nth(n.checked_sub(1)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_has_the_documented_forms() {
        for (text, expected) in [
            ("source", ClientAddress::Source),
            (
                "metadata:X-Tenantgate-Client-Address",
                ClientAddress::Metadata("x-tenantgate-client-address".into()),
            ),
            ("xff:1", ClientAddress::XForwardedFor(1)),
            ("xff:32", ClientAddress::XForwardedFor(32)),
            ("header:X-Envoy-External-Address", ClientAddress::Header("x-envoy-external-address".into())),
        ] {
            assert_eq!(ClientAddress::parse(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "Source",
            "source:",
            "xff",
            "xff:",
            "xff:0",
            "xff:33",
            "xff:-1",
            "xff:+1",
            "header",
            "header:",
            "header:a b",
            "metadata:",
            "metadata:x-forwarded-for",
            "metadata:X-Forwarded-For",
            "metadata:tracestate",
            "metadata:Traceparent",
            "metadata:x-b3-traceid",
            "metadata:x-envoy-internal",
            "metadata:user-agent",
            "metadata:a-bin",
            "metadata:grpc-timeout",
            "leftmost",
        ] {
            assert!(ClientAddress::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_address_is_in_at_most_one_header_or_metadata() {
        for (text, header, metadata) in [
            ("source", None, None),
            ("metadata:x-address", None, Some("x-address")),
            ("xff:2", Some("x-forwarded-for"), None),
            ("header:x-address", Some("x-address"), None),
        ] {
            let option = ClientAddress::parse(text).unwrap();
            assert_eq!((option.header(), option.metadata()), (header, metadata), "{text}");
        }
    }

    #[test]
    fn an_address_may_have_a_port_or_brackets() {
        for (text, expected) in [
            ("192.0.2.7", Some("192.0.2.7")),
            (" 192.0.2.7\t", Some("192.0.2.7")),
            ("192.0.2.7:443", Some("192.0.2.7")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("::ffff:192.0.2.7", Some("192.0.2.7")),
            ("[::ffff:192.0.2.7]:1", Some("192.0.2.7")),
            ("", None),
            ("unknown", None),
            ("192.0.2.7:", None),
            ("192.0.2.7:99999", None),
            ("[192.0.2.7]", None),
            ("192.0.2.7, 192.0.2.8", None),
            ("192.0.2.07", None),
            ("/run/envoy.sock", None),
        ] {
            let expected = expected.map(|address| address.parse().unwrap());
            assert_eq!(parse_address(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(parse_address(b"192.0.2.7\xff"), None);
    }

    #[test]
    fn forwarded_addresses_count_from_the_right_over_all_lines() {
        let lines: [&[u8]; 3] = [b"6.6.6.6, 1.1.1.1", b"2.2.2.2", b"3.3.3.3,, 4.4.4.4"];
        let at = |n| address_from_the_right(&lines, n).map(|address| address.to_string());
        assert_eq!(at(1).as_deref(), Some("4.4.4.4"));
        assert_eq!(at(2), None, "an empty entry is not skipped");
        assert_eq!(at(3).as_deref(), Some("3.3.3.3"));
        assert_eq!(at(4).as_deref(), Some("2.2.2.2"));
        assert_eq!((at(6).as_deref(), at(7), at(0)), (Some("6.6.6.6"), None, None));
        assert_eq!(address_from_the_right(&[], 1), None);
        assert_eq!(
            only_address(&[b"1.1.1.1"]).map(|address| address.to_string()).as_deref(),
            Some("1.1.1.1")
        );
        assert_eq!((only_address(&[]), only_address(&[b"1.1.1.1", b"1.1.1.1"])), (None, None));
    }
}
