//! Removes keys and passwords from text before it is printed.
//!
//! This is the last line of defence. The program itself prints neither, but a library at its most verbose level might,
//! or a person may have typed a secret into the wrong place.

use std::borrow::Cow;

use crate::key::format::SCHEMES;

/// Replaces the secret part of everything that looks like a key, and the password of every URL, by `***`.
#[must_use]
pub fn scrub(text: &str) -> Cow<'_, str> {
    if first_scheme(text).is_none() && !text.contains("://") {
        return Cow::Borrowed(text);
    }
    Cow::Owned(without_passwords(&without_keys(text)))
}

/// Returns the position of the first possible key, and its scheme.
fn first_scheme(text: &str) -> Option<(usize, &'static str)> {
    SCHEMES.iter().filter_map(|scheme| Some((text.find(scheme)?, *scheme))).min()
}

fn without_keys(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, scheme)) = first_scheme(rest) {
        let (before, found) = rest.split_at(at);
        let prefix = scheme.len() + run(&found[scheme.len()..], |b| b.is_ascii_alphanumeric() || b == b'-');
        clean.push_str(before);
        clean.push_str(&found[..prefix]);
        rest = &found[prefix..];
        let secret = run(rest, |b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if secret > 1 {
            clean.push_str("_***");
            rest = &rest[secret..];
        }
    }
    clean.push_str(rest);
    clean
}

/// Handles `scheme://user:password@host` (RFC 3986 §3.2.1). The password may contain a `@` that is not encoded, so the
/// last one before the path counts.
fn without_passwords(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, found) = rest.split_at(at + 3);
        clean.push_str(before);
        let authority = run(found, |b| !b.is_ascii_whitespace() && !b"/?#\"'`".contains(&b));
        rest = found;
        let user_info = found[..authority].rfind('@');
        let password = user_info.and_then(|end| Some((end, found[..end].find(':')?)));
        // The placeholder of a password in a message is kept.
        if let Some((end, colon)) = password.filter(|(end, colon)| &found[colon + 1..*end] != "PASSWORD") {
            clean.push_str(&found[..colon]);
            clean.push_str(":***");
            rest = &found[end..];
        }
    }
    clean.push_str(rest);
    clean
}

/// Returns the number of bytes at the start of `text` that are `wanted`. Stops at the first byte of a wider character
/// unless that is wanted, too.
fn run(text: &str, wanted: impl Fn(u8) -> bool) -> usize {
    text.bytes().position(|b| !wanted(b)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_and_passwords_are_replaced_and_the_rest_stays() {
        for (text, clean) in [
            ("nothing to see", "nothing to see"),
            ("prefix llmk_demo alone", "prefix llmk_demo alone"),
            ("key=llmk_demo_secret123,", "key=llmk_demo_***,"),
            ("llmk_a_b_c llmk_d_e", "llmk_a_*** llmk_d_***"),
            ("llmk__x", "llmk__***"),
            ("llma_ops_secret123 llmk_a_b, llma_c_d", "llma_ops_*** llmk_a_***, llma_c_***"),
            ("write postgres://USER:PASSWORD@HOST", "write postgres://USER:PASSWORD@HOST"),
            ("postgres://u:p%40ss@h/db x", "postgres://u:***@h/db x"),
            ("postgres://u:p@ss@h/db", "postgres://u:***@h/db"),
            ("'postgres://u@h/db' https://h:80/", "'postgres://u@h/db' https://h:80/"),
            ("sqlite://tenantgate.db", "sqlite://tenantgate.db"),
        ] {
            assert_eq!(scrub(text), clean);
        }
    }

    proptest! {
        #[test]
        fn no_key_survives_anywhere(before in "\\PC{0,9}", p in "[A-Za-z0-9-]{1,9}", s in "[A-Za-z0-9_-]{8,20}", after in "\\PC{0,9}") {
            let key = format!("llmk_{p}_{s}");
            let text = format!("{before}{key}{after}");
            prop_assert!(!scrub(&text).contains(&key));
        }
    }
}
