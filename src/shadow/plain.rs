//! Reduces text of clients to what may be stored.
//!
//! The result is short, printable, and contains neither personal data nor secrets: networks instead of addresses, paths
//! without query and without parts that look like identities, and no key.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::key::format::SCHEMES;

/// The maximum length of a user agent, in bytes.
pub(super) const USER_AGENT: usize = 128;
/// The maximum length of a method.
pub(super) const METHOD: usize = 16;
/// The maximum length of a path.
const PATH: usize = 256;

/// Returns the network of an address, in the size that one customer usually has: a /24 of IPv4, a /56 of IPv6.
pub(super) fn network(address: Option<IpAddr>) -> String {
    match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V4(v4)) => {
            let [a, b, c, _] = v4.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        Some(IpAddr::V6(v6)) => format!("{}/56", std::net::Ipv6Addr::from_bits(v6.to_bits() >> 72 << 72)),
        None => "unknown".into(),
    }
}

/// Returns the path without its query. Parts that look like an identity or a token become `*`, so that requests for
/// different objects of one kind are equal.
pub(super) fn path(path: &[u8]) -> String {
    let path = path.split(|b| *b == b'?' || *b == b'#').next().unwrap_or_default();
    let parts = path.split(|b| *b == b'/').map(|part| if is_identity(part) { b"*".as_slice() } else { part });
    text(&parts.collect::<Vec<_>>().join(b"/".as_slice()), PATH)
}

/// Returns whether a part is a number, or long with a digit in it, such as a UUID, a hash or a token.
fn is_identity(part: &[u8]) -> bool {
    let digits = part.iter().filter(|b| b.is_ascii_digit()).count();
    digits > 0 && (digits == part.len() || part.len() >= LONG)
}

const LONG: usize = 16;

/// Returns the text in visible ASCII (other bytes as `\xNN`), at most `longest` bytes, and up to the first key in it.
pub(super) fn text(bytes: &[u8], longest: usize) -> String {
    let mut text = String::with_capacity(bytes.len().min(longest));
    for byte in bytes {
        let start = text.len();
        match byte {
            b' '..=b'~' if *byte != b'\\' => text.push(char::from(*byte)),
            // Writing to a String cannot fail.
            other => drop(write!(text, "\\x{other:02x}")),
        }
        if text.len() > longest {
            text.truncate(start);
            break;
        }
    }
    for scheme in SCHEMES {
        if let Some(at) = text.find(scheme) {
            text.truncate(at + scheme.len());
            text.push_str("***");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_becomes_its_network() {
        for (address, expected) in [
            ("192.0.2.77", "192.0.2.0/24"),
            ("::ffff:192.0.2.77", "192.0.2.0/24"),
            ("2001:db8:1:2345:6789::1", "2001:db8:1:2300::/56"),
            ("::1", "::/56"),
        ] {
            assert_eq!(network(address.parse().ok()), expected, "{address}");
        }
        assert_eq!(network(None), "unknown");
    }

    #[test]
    fn a_path_loses_its_query_and_parts_that_look_like_an_identity() {
        for (given, expected) in [
            ("/v1/models?key=llmk_a_12345678", "/v1/models"),
            ("/users/42/orders/550e8400-e29b-41d4-a716-446655440000", "/users/*/orders/*"),
            ("/v2/chat/completions", "/v2/chat/completions"),
            ("/a_very_long_name_without_digits", "/a_very_long_name_without_digits"),
            ("/x/llmk_demo_secretsecret", "/x/llmk_***"),
            ("/%6c/\u{e9}\r\n", "/%6c/\\xc3\\xa9\\x0d\\x0a"),
            ("", ""),
        ] {
            assert_eq!(path(given.as_bytes()), expected, "{given}");
        }
        assert_eq!(path("/x".repeat(1_000).as_bytes()).len(), PATH);
    }

    #[test]
    fn a_key_in_a_user_agent_is_cut_off() {
        assert_eq!(text(b"curl/8 llmk_demo_secret123 x", USER_AGENT), "curl/8 llmk_***");
    }

    proptest! {
        #[test]
        fn the_result_is_short_and_printable_and_contains_no_key(
            before in proptest::collection::vec(any::<u8>(), 0..200), key in "llmk_[a-z]{1,9}_[A-Za-z]{8,20}", slash in any::<bool>(),
        ) {
            let given = [before.as_slice(), if slash { b"/" } else { b" " }, key.as_bytes()].concat();
            for (kept, longest) in [(text(&given, USER_AGENT), USER_AGENT), (path(&given), PATH)] {
                prop_assert!(kept.len() <= longest + 3);
                prop_assert!(kept.bytes().all(|b| (b' '..=b'~').contains(&b)));
                prop_assert!(!kept.contains(&key));
            }
        }
    }
}
