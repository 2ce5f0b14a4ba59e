//! What of a stranger's words may be kept?
//!
//! Little, printable, and nothing that tells one person from another or opens a door:
//! networks in place of addresses, paths without their query and without parts that look
//! like identities, and no key, wherever somebody pasted it.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::key::format::SCHEME;

/// How much is kept of a user agent, in bytes.
pub(super) const USER_AGENT: usize = 128;
/// How much is kept of a method.
pub(super) const METHOD: usize = 16;
/// How much is kept of a path.
const PATH: usize = 256;

/// The network of an address: what one customer usually has, a /24 of IPv4 and a /56 of IPv6.
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

/// The path without its query; parts that look like an identity or a token become `*`, so that requests for
/// different things of one kind are alike.
pub(super) fn path(path: &[u8]) -> String {
    let path = path.split(|b| *b == b'?' || *b == b'#').next().unwrap_or_default();
    let parts = path.split(|b| *b == b'/').map(|part| if is_identity(part) { b"*".as_slice() } else { part });
    text(&parts.collect::<Vec<_>>().join(b"/".as_slice()), PATH)
}

/// Numbers, and anything long with a digit in it: UUIDs, hashes, tokens.
fn is_identity(part: &[u8]) -> bool {
    let digits = part.iter().filter(|b| b.is_ascii_digit()).count();
    digits > 0 && (digits == part.len() || part.len() >= LONG)
}

const LONG: usize = 16;

/// As it is, but in visible ASCII (other bytes as `\xNN`), at most so long, and up to the first key in it.
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
    if let Some(at) = text.find(SCHEME) {
        text.truncate(at + SCHEME.len());
        text.push_str("***");
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
    fn a_path_loses_its_query_and_whatever_looks_like_an_identity() {
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
        fn what_is_kept_is_short_printable_and_no_key(
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
