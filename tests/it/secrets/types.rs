//! Checks that secrets cannot be printed, compared or left in memory by accident.
//!
//! The compiler checks the traits that a type must not implement: this file does not build if one is added. The places
//! that use a plain text, and comparisons that an attacker could time, are checked in the text of the sources.

use std::fmt::{Display, LowerHex};
use std::hash::Hash;

use serde::Serialize;
use sha2::Sha256;
use tenantgate::admin::{Issued, IssuedAdminKey};
use tenantgate::key::{PlainKey, PresentedKey};
use tenantgate::record::Memo;
use tenantgate::verify::memo::{Keyring, Peppers, Seal};
use tenantgate::verify::pepper::Pepper;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::architecture::sources;

/// Does not compile if the type implements any of the traits, because the implementation of `Never`
/// would then be ambiguous.
macro_rules! never {
    ($type:ty: $($trait:path),+ $(,)?) => {{
        $({
            struct Implemented;
            trait Never<T> {
                fn checked() {}
            }
            impl<T: ?Sized> Never<()> for T {}
            impl<T: ?Sized + $trait> Never<Implemented> for T {}
            <$type as Never<_>>::checked();
        })+
    }};
}

#[test]
fn secrets_cannot_be_displayed_or_compared() {
    never!(PlainKey: Display, Serialize, LowerHex, PartialEq, Eq, PartialOrd, Hash, Clone, AsRef<str>, AsRef<[u8]>);
    never!(PresentedKey<'static>: Display, Serialize, LowerHex, PartialEq, Eq, PartialOrd, Hash, AsRef<str>, AsRef<[u8]>);
    never!(Pepper: Display, Serialize, LowerHex, PartialEq, Eq, PartialOrd, Hash, AsRef<str>, AsRef<[u8]>);
    never!(Peppers: Display, Serialize, PartialEq, Hash);
    never!(Keyring: Display, Serialize, PartialEq, Hash);
    never!(Seal: Display, Serialize, LowerHex, PartialEq, Eq, PartialOrd, Hash, AsRef<[u8]>);
    never!(Memo: Serialize, PartialEq, Eq, PartialOrd, Hash);
    never!(Issued: Display, Serialize, PartialEq, Clone);
    never!(IssuedAdminKey: Display, Serialize, PartialEq, Clone);
}

#[test]
fn types_with_secrets_are_zeroized() {
    fn wipes<T: ZeroizeOnDrop>() {}
    // The content of PlainKey and Pepper.
    wipes::<Zeroizing<String>>();
    wipes::<Zeroizing<[u8; 32]>>();
    // HMAC stores two such states of a pepper.
    wipes::<Sha256>();
}

/// The only places that use a plain text: to hash it, or to show it once (also in a link or a cookie).
const EXPOSED: [&str; 10] = [
    "key",
    "key/format",
    "admin/view",
    "cli/admin_key",
    "cli/pepper",
    "publisher",
    "server/manage/page/cookie",
    "verify",
    "verify/bcrypt",
    "verify/management",
];

#[test]
fn plain_texts_are_exposed_in_few_places() {
    for source in sources() {
        let looked = source.code.contains("expose()") || source.code.contains("expose_line()");
        let home = EXPOSED.contains(&source.module.as_str()) || source.module == "verify/memo";
        assert!(!looked || home, "src/{}.rs exposes a plain text", source.module);
    }
}

/// Names of values that are secrets or codes.
const SECRET: [&str; 12] = [
    "expose",
    "secret",
    "plain",
    "pepper.bytes",
    "self.bytes",
    ".mac",
    "_mac(",
    "memo.key",
    "memo.row",
    "seal",
    "presented",
    "as_map_key",
];

/// Comparisons whose duration depends on the position of a difference.
const COMPARISONS: [&str; 8] =
    ["==", "!=", ".eq(", ".ne(", ".cmp(", ".starts_with(", ".ends_with(", "assert_eq!("];

/// Exceptions: the number of a pepper, a length, a policy, a state.
const HARMLESS: [&str; 11] = [
    "explain",
    "rest.get(prefix) == ",
    "secret >= *SECRET_BYTES",
    "seal.by == ",
    ".len() == ",
    ".id() == ",
    ".id == ",
    "policy() == ",
    "proof == Proof::",
    "secret_bits() >= ",
    "at.elapsed()",
];

fn measurable(line: &str) -> bool {
    let line = HARMLESS.iter().fold(line.to_owned(), |line, harmless| line.replace(harmless, ""));
    let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
    has(&COMPARISONS) && has(&SECRET)
}

#[test]
fn secrets_are_compared_in_constant_time() {
    for line in [
        "if key.expose() == other.expose() {",
        "self.mac != other.mac",
        "seal == *proven",
        "memo.row.eq(&row_mac(pepper, record, hash))",
        "presented.expose().starts_with(known)",
        "row_mac(&self.list[at], record, hash) == memo.row",
    ] {
        assert!(measurable(line), "the rule must find: {line}");
    }
    let modules =
        ["key", "verify", "gate", "ext_authz", "replica", "memo_writer", "admin", "request", "server"];
    let mut found = Vec::new();
    for source in sources() {
        if modules.contains(&source.module.split('/').next().unwrap_or_default()) {
            let lines = source.code.lines().filter(|line| measurable(line));
            found.extend(lines.map(|line| format!("src/{}.rs: {}", source.module, line.trim())));
        }
    }
    assert!(
        found.is_empty(),
        "use subtle::ConstantTimeEq, or say in HARMLESS why not:\n{}",
        found.join("\n")
    );
}
