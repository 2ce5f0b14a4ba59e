//! Tests of memos.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::key::KeyId;
use crate::key::format::parse;
use crate::tenant::TenantId;

const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";
const KEY: &[u8] = b"llmk_demo_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg";

fn record(id: u128, tenant: u128, hash: &str) -> KeyRecord {
    let (id, tenant_id) = (KeyId(Uuid::from_u128(id)), TenantId(Uuid::from_u128(tenant)));
    let (prefix, hash) = ("llmk_demo".into(), SecretHash::parse(hash));
    KeyRecord::new(id, tenant_id, prefix, hash)
}

fn keyring(peppers: &[&str]) -> Keyring {
    let peppers = peppers.iter().map(|text| Pepper::parse_all(text).unwrap().remove(0)).collect();
    Keyring::new(Peppers::new(peppers, MemoPolicy::Optional)).unwrap()
}

/// Two peppers, as in a file.
const OLD: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const NEW: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";

/// Different seals of one row.
pub(in crate::verify) fn seals(count: u8) -> Vec<Seal> {
    let (ring, row) = (keyring(&[]), record(1, 2, HASH));
    (0..count).map(|n| ring.seal(&row, &row.hash.unwrap(), &[n])).collect()
}

/// Returns whether this memo recognizes the key, after the memo was written as text and parsed again.
fn remembers(keyring: &Keyring, memo: &Memo, row: &KeyRecord, key: &[u8]) -> bool {
    let memo = Memo::parse(&memo.to_string()).unwrap();
    let seal = keyring.peppers().read(&memo, row);
    seal.is_some_and(|seal| keyring.knows(&seal, row, &row.hash.unwrap(), key))
}

#[test]
fn a_seal_is_void_for_another_process_id_tenant_hash_or_key() {
    let (ring, row) = (keyring(&[]), record(1, 2, HASH));
    let good = ring.seal(&row, &row.hash.unwrap(), KEY);
    let knows = |ring: &Keyring, row: &KeyRecord, key| ring.knows(&good, row, &row.hash.unwrap(), key);
    assert!(knows(&ring, &row, KEY));
    assert!(!knows(&keyring(&[]), &row, KEY));
    for other in [
        record(3, 2, HASH),
        record(1, 3, HASH),
        record(2, 1, HASH),
        record(1, 2, &HASH.replace("$12$", "$10$")),
    ] {
        assert!(!knows(&ring, &other, KEY));
    }
    for other in [&KEY[1..], &KEY[..KEY.len() - 1], b"llmk_demo_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Ph", b""] {
        assert!(!knows(&ring, &row, other));
    }
}

#[test]
fn a_memo_outlives_the_process_and_is_void_for_another_pepper_id_tenant_hash_or_key() {
    let row = record(1, 2, HASH);
    let memo = keyring(&[OLD]).peppers().memo(&row, parse(KEY).unwrap()).unwrap();
    assert!(remembers(&keyring(&[OLD]), &memo, &row, KEY));
    assert!(remembers(&keyring(&[NEW, OLD]), &memo, &row, KEY));
    assert!(!remembers(&keyring(&[NEW]), &memo, &row, KEY) && !remembers(&keyring(&[]), &memo, &row, KEY));
    let ring = keyring(&[OLD]);
    for other in [
        record(3, 2, HASH),
        record(1, 3, HASH),
        record(2, 1, HASH),
        record(1, 2, &HASH.replace("$12$", "$10$")),
    ] {
        assert!(ring.peppers().read(&memo, &other).is_none());
    }
    assert!(!remembers(&ring, &memo, &row, &KEY[..KEY.len() - 1]));
    assert!(ring.peppers().read(&memo, &KeyRecord { hash: None, ..row.clone() }).is_none());
    // The state of a key is not part of the memo.
    assert!(remembers(&ring, &memo, &KeyRecord { revoked: true, ..row }, KEY));
}

#[test]
fn the_first_pepper_writes_and_memos_of_others_are_replaced() {
    let (row, key) = (record(1, 2, HASH), parse(KEY).unwrap());
    let old = keyring(&[OLD]).peppers().memo(&row, key).unwrap();
    let both = keyring(&[NEW, OLD]);
    let seal = both.peppers().read(&old, &row).unwrap();
    assert!(!both.peppers().is_settled(Some(&seal)) && !both.peppers().is_settled(None));
    let new = both.peppers().memo(&row, key).unwrap();
    assert!(both.peppers().is_settled(both.peppers().read(&new, &row).as_ref()) && new.pepper != old.pepper);
    assert!(keyring(&[]).peppers().is_settled(None));
    assert_eq!(both.peppers().memo_of(&row, &seal).unwrap().to_string(), old.to_string());
    assert!(both.peppers().memo_of(&row, &both.seal(&row, &row.hash.unwrap(), KEY)).is_none());
    assert_eq!(both.peppers().list().iter().map(Pepper::id).collect::<Vec<_>>(), [new.pepper, old.pepper]);
}

#[test]
fn a_seal_and_a_token_match_their_key_and_no_other() {
    let (ring, row) = (keyring(&[]), record(1, 2, HASH));
    let other: &[u8] = b"llmk_demo_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Ph";
    let seal = |key| ring.seal(&row, &row.hash.unwrap(), key);
    assert!(seal(KEY).is(&seal(KEY)) && !seal(KEY).is(&seal(other)));
    let token = |key| ring.token(parse(key).unwrap());
    assert!(token(KEY).is(&token(KEY)) && !token(KEY).is(&token(other)));
    assert!(!token(KEY).is(&keyring(&[]).token(parse(KEY).unwrap())), "of another process");
    let cell = TokenCell::default();
    assert!(cell.get().is_none());
    cell.set(token(KEY));
    let found = cell.get().unwrap();
    assert!(found.is(&token(KEY)) && !found.is(&token(other)));
}

#[test]
fn a_secret_of_few_bits_gets_no_memo() {
    let (ring, row) = (keyring(&[OLD]), record(1, 2, HASH));
    for (key, memo) in [
        ("llmk_demo_secret123", false),
        ("llmk_demo_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ("llmk_demo_1234567890123456789012345678901", false),
        ("llmk_demo_0123456789abcdef01234567", false),
        ("llmk_demo_0123456789abcdef0123456789ab", true),
        ("llmk_demo_Rd3kQz8WfT2mVx7LpB", false),
        ("llmk_demo_Rd3kQz8WfT2mVx7LpB5", true),
    ] {
        assert_eq!(ring.peppers().memo(&row, parse(key.as_bytes()).unwrap()).is_some(), memo, "{key}");
    }
    let issued = crate::key::format::issue_with(&mut SysRng, "Acme").unwrap();
    assert!(ring.peppers().memo(&row, issued.as_presented()).is_some());
    assert!(keyring(&[]).peppers().memo(&row, issued.as_presented()).is_none());
}

#[test]
fn debug_shows_nothing() {
    let (ring, row) = (keyring(&[OLD]), record(1, 2, HASH));
    let seal = ring.seal(&row, &row.hash.unwrap(), KEY);
    let shown = format!("{ring:?} {seal:?} {:?}", ring.token(parse(KEY).unwrap()));
    assert!(shown.starts_with("Keyring { peppers: Peppers {") && !shown.contains("AAAA"), "{shown}");
    assert!(shown.ends_with(", .. } Seal { .. } Token { .. }"), "{shown}");
}

proptest! {
    #[test]
    fn one_flipped_bit_is_never_recognized(at in 0_usize..KEY.len(), bit in 0_u8..8) {
        let (ring, row) = (keyring(&[OLD]), record(1, 2, HASH));
        let (seal, memo) = (ring.seal(&row, &row.hash.unwrap(), KEY), ring.peppers().memo(&row, parse(KEY).unwrap()).unwrap());
        let mut other = KEY.to_vec();
        other[at] ^= 1 << bit;
        prop_assert!(!ring.knows(&seal, &row, &row.hash.unwrap(), &other));
        prop_assert!(!remembers(&ring, &memo, &row, &other));
    }

    #[test]
    fn a_changed_memo_accepts_no_key(at in 0_usize..96, with in any::<u8>()) {
        let (ring, row) = (keyring(&[OLD]), record(1, 2, HASH));
        let text = ring.peppers().memo(&row, parse(KEY).unwrap()).unwrap().to_string();
        let mut other = text.clone().into_bytes();
        let at = at % other.len();
        other[at] = with;
        if let Some(other) = String::from_utf8(other).ok().filter(|other| *other != text)
            && let Some(memo) = Memo::parse(&other)
            && let Some(seal) = ring.peppers().read(&memo, &row)
        {
            prop_assert!(!ring.knows(&seal, &row, &row.hash.unwrap(), KEY));
        }
    }
}
