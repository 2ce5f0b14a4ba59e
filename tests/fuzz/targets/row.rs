//! Checks that no content of a database row or of the file of peppers does harm.
//!
//! The first byte selects how the rest is interpreted.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::alphabet::BCRYPT;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use libfuzzer_sys::fuzz_target;
use tenantgate::key::KeyId;
use tenantgate::key::format::parse;
use tenantgate::record::{KeyRecord, Memo, SecretHash};
use tenantgate::tenant::{TenantId, TenantStatus, is_schema_name};
use tenantgate::verify::memo::{Keyring, MemoPolicy, Peppers};
use tenantgate::verify::pepper::Pepper;
use tenantgate_fuzz::seeds;
use uuid::Uuid;

const KEY: &[u8] = b"llmk_demo_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg";
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";
const PEPPER: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

static KEYRING: LazyLock<Keyring> = LazyLock::new(|| {
    let peppers = Pepper::parse_all(PEPPER).expect("a pepper");
    Keyring::new(Peppers::new(peppers, MemoPolicy::Optional)).expect("randomness")
});

fuzz_target!(init: seeds::plant("row"), |bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match kind % 4 {
        0 => hash(text),
        1 => memo(text),
        2 => peppers(text),
        _ => words(text),
    }
});

/// `hashed_key`: exactly the hashes that bcrypt can write at an accepted cost.
fn hash(text: &str) {
    let parsed = SecretHash::parse(text);
    assert_eq!(parsed.is_some(), is_hash(text), "{text:?}");
    let Some(hash) = parsed else { return };
    assert_eq!(hash.text().as_str(), text);
    assert!(!format!("{hash:?}").contains(&text[7..]));
    if text[4..6] == *"04" {
        // An accepted hash never causes an error of bcrypt, which would be a fault instead of a rejection.
        bcrypt::non_truncating_verify(KEY, text).expect("a hash");
    }
}

fn is_hash(text: &str) -> bool {
    let coding = GeneralPurpose::new(&BCRYPT, NO_PAD);
    let whole = |part: &str, bytes: usize| {
        coding.decode(part).is_ok_and(|decoded| decoded.len() == bytes && coding.encode(decoded) == part)
    };
    text.is_ascii()
        && text.len() == 60
        && ["$2a$", "$2b$", "$2y$"].contains(&&text[..4])
        && (4..=14).any(|cost| text[4..7] == format!("{cost:02}$"))
        && whole(&text[7..29], 16)
        && whole(&text[29..], 23)
}

fn record() -> KeyRecord {
    let (id, tenant_id) = (KeyId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
    let (prefix, hash) = ("llmk_demo".into(), SecretHash::parse(HASH));
    KeyRecord::new(id, tenant_id, prefix, hash)
}

/// `key_memo`: exactly one memo belongs to this row and accepts this key.
fn memo(text: &str) {
    let Some(memo) = Memo::parse(text) else { return };
    assert_eq!(memo.to_string(), text);
    let (row, key) = (record(), parse(KEY).expect("a key"));
    let peppers = KEYRING.peppers();
    let genuine = peppers.memo(&row, key).expect("a secret of many bits");
    let seal = peppers.read(&memo, &row);
    assert_eq!(seal.is_some(), (memo.pepper, memo.row) == (genuine.pepper, genuine.row));
    let known = seal.is_some_and(|seal| KEYRING.knows(&seal, &row, &row.hash.expect("a hash"), KEY));
    assert_eq!(known, text == genuine.to_string());
}

/// The errors about a file of peppers, without numbers. They contain nothing of the file.
const REFUSALS: [&str; 4] = [
    "line  is not a valid pepper ( bytes in baseurl): create one with `tenantgate pepper new`",
    "contains no pepper: create one with `tenantgate pepper new`",
    "contains  peppers, at most  are allowed: remove old ones",
    "contains the same pepper twice",
];

/// A file of peppers: parsing and writing it gives the same peppers, or an error that does not repeat it.
fn peppers(text: &str) {
    match Pepper::parse_all(text) {
        Ok(peppers) => {
            assert!((1..=16).contains(&peppers.len()));
            let written: Vec<_> = peppers.iter().map(|pepper| pepper.expose_line().to_string()).collect();
            let again = Pepper::parse_all(&written.join("\n")).expect("as it was written");
            assert!(again.iter().map(Pepper::id).eq(peppers.iter().map(Pepper::id)));
        }
        Err(why) => {
            let without_numbers: String = why.to_string().chars().filter(|c| !c.is_ascii_digit()).collect();
            assert!(REFUSALS.contains(&without_numbers.as_str()), "{why}");
        }
    }
}

/// The text columns of a tenant.
fn words(text: &str) {
    assert_eq!(TenantStatus::parse(text).as_str(), text);
    let bytes = text.as_bytes();
    let letters = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    let sound = (1..=63).contains(&bytes.len())
        && bytes.iter().all(letters)
        && !bytes[0].is_ascii_digit()
        && !text.starts_with("pg_")
        && !["public", "information_schema"].contains(&text);
    assert_eq!(is_schema_name(text), sound, "{text:?}");
}
