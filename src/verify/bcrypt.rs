//! Hashes and verifies keys with the bcrypt crate.
//!
//! Only this module uses the crate, and only its functions that do not truncate: [`crate::key::format`] rejects keys
//! that bcrypt would truncate. bcrypt is slow on purpose; [`super`] decides when and how often it runs.

use crate::key::PlainKey;
use crate::record::SecretHash;

/// The cost of new hashes: 2^12 rounds, about a quarter of a second.
pub const DEFAULT_COST: u32 = 12;

/// bcrypt returned an error.
#[derive(Debug, thiserror::Error)]
#[error("bcrypt failed")]
pub struct BcryptFailed(#[from] bcrypt::BcryptError);

/// Hashes a whole key.
///
/// # Errors
///
/// Fails if the operating system has no randomness for the salt, or `cost` is not 4 to 31.
pub fn hash(key: &PlainKey, cost: u32) -> Result<String, BcryptFailed> {
    Ok(bcrypt::non_truncating_hash(key.expose(), cost)?)
}

/// Returns whether `hash` is a hash of `key`.
///
/// # Errors
///
/// Fails if the hash is invalid. Callers must not treat this as a wrong key, because the row is damaged.
pub fn verify(key: &PlainKey, hash: &SecretHash) -> Result<bool, BcryptFailed> {
    Ok(bcrypt::non_truncating_verify(key.expose(), hash.text().as_str())?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::string::string_regex;

    use super::*;
    use crate::key::format::{MAX_KEY_BYTES, parse};

    fn key(text: &str) -> PlainKey {
        parse(text.as_bytes()).unwrap().to_plain()
    }

    #[test]
    fn a_hash_matches_its_key_and_no_other() {
        let hash = SecretHash::parse(&hash(&key("llmk_demo_secret123"), 4).unwrap()).unwrap();
        assert!(verify(&key("llmk_demo_secret123"), &hash).unwrap());
        for other in
            ["llmk_demo_secret124", "llmk_demo_secret1234", "llmk_Demo_secret123", "llmk_demo_secret12"]
        {
            assert!(!verify(&key(other), &hash).unwrap(), "{other}");
        }
    }

    #[test]
    fn hashes_of_other_libraries_are_recognised() {
        // By Python's bcrypt 5.0.0: bcrypt.hashpw(b"llmk_demo_secret123", bcrypt.gensalt(4)).
        let hash = SecretHash::parse("$2b$04$su2b.vqz4TpZE4efb02CmOdFIwDrm2LI8KtSjA93JDkMtHMX4hmb2").unwrap();
        assert!(verify(&key("llmk_demo_secret123"), &hash).unwrap());
    }

    #[test]
    fn a_text_that_is_not_parsed_as_a_hash_is_also_rejected_by_bcrypt() {
        let good = hash(&key("llmk_demo_secret123"), 4).unwrap();
        for at in [28, 59] {
            let mut bad = good.clone().into_bytes();
            // The next digit of the alphabet sets a bit that is not part of the hash.
            bad[at] = if bad[at] == b'.' { b'/' } else { bad[at] + 1 };
            let bad = String::from_utf8(bad).unwrap();
            assert!(SecretHash::parse(&bad).is_none(), "{bad}");
            assert!(!matches!(bcrypt::non_truncating_verify("llmk_demo_secret123", &bad), Ok(true)), "{bad}");
        }
    }

    #[test]
    fn the_last_byte_of_the_longest_key_counts() {
        let longest = format!("llmk_{}_{}", "p".repeat(48), "s".repeat(17));
        let hash = SecretHash::parse(&hash(&key(&longest), 4).unwrap()).unwrap();
        let other = format!("{}t", &longest[..longest.len() - 1]);
        assert!(verify(&key(&longest), &hash).unwrap() && !verify(&key(&other), &hash).unwrap());
    }

    /// Returns whether these bytes are accepted for this hash: by the grammar first, as in every request.
    fn accepts(hash: &SecretHash, presented: &[u8]) -> bool {
        parse(presented).is_ok_and(|presented| verify(&presented.to_plain(), hash).unwrap())
    }

    /// Keys of any length up to the longest.
    fn keys() -> impl Strategy<Value = String> {
        let longest = (1_usize..=48).prop_flat_map(|prefix| {
            let secret = (MAX_KEY_BYTES - "llmk__".len() - prefix).min(57);
            string_regex(&format!("llmk_[a-z]{{{prefix}}}_[A-Za-z0-9]{{{secret}}}")).unwrap()
        });
        prop_oneof!["llmk_[A-Za-z0-9-]{1,24}_[A-Za-z0-9_-]{8,41}", longest]
    }

    /// Near misses of `key`: changed bytes, and texts that bcrypt by itself would treat as equal.
    fn near_misses(key: &str, at: usize, byte: u8) -> Vec<Vec<u8>> {
        let (text, at) = (key.as_bytes(), at % key.len());
        let with = |change: fn(&mut Vec<u8>, usize, u8)| {
            let mut bytes = text.to_vec();
            change(&mut bytes, at, byte);
            bytes
        };
        let secret = 1 + key.match_indices('_').nth(1).unwrap().0;
        vec![
            with(|bytes, at, byte| bytes[at] ^= 1 << (byte % 8)),
            with(|bytes, at, byte| bytes[at] = byte),
            with(|bytes, at, byte| bytes.insert(at, byte)),
            with(|bytes, _, byte| bytes.push(byte)),
            with(|bytes, at, _| bytes.splice(at..=at, []).for_each(drop)),
            with(|bytes, _, _| bytes.truncate(bytes.len() - 1)),
            with(|bytes, at, _| bytes.truncate(at)),
            key.to_uppercase().into_bytes(),
            key.to_lowercase().into_bytes(),
            key.to_uppercase().replacen("LLMK", "llmk", 1).into_bytes(),
            // bcrypt repeats the key, with a NUL after each repetition, and reads at most 72 bytes.
            [text, b"\0"].concat(),
            [text, b"\0", text].concat(),
            [text, b"\0", text, b"\0"].concat(),
            text.repeat(2),
            [text, &[b'0'; 72][..]].concat(),
            [text, &[b'0'; 72][..]].concat()[..72].to_vec(),
            [text, &[b'0'; 72][..]].concat()[..MAX_KEY_BYTES].to_vec(),
            [b"\0", text].concat(),
            // Prefix and secret exchanged.
            [b"llmk_", &text[secret..], b"_", &text[5..secret - 1]].concat(),
        ]
    }

    proptest! {
        // Each case runs bcrypt about twenty times.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_near_miss_of_a_key_is_rejected(text in keys(), at in any::<usize>(), byte in any::<u8>()) {
            let hash = SecretHash::parse(&hash(&key(&text), 4).unwrap()).unwrap();
            prop_assert!(accepts(&hash, text.as_bytes()));
            for other in near_misses(&text, at, byte) {
                let same = other == text.as_bytes();
                prop_assert_eq!(accepts(&hash, &other), same, "{} for {}", other.escape_ascii(), text);
            }
        }

        #[test]
        fn the_prefix_of_one_key_with_the_secret_of_another_is_rejected(one in keys(), two in keys()) {
            let halves = |text: &str| {
                let at = text.match_indices('_').nth(1).unwrap().0;
                (text[..at].to_owned(), text[at..].to_owned())
            };
            let (of_one, of_two) = (halves(&one), halves(&two));
            let hash = SecretHash::parse(&hash(&key(&one), 4).unwrap()).unwrap();
            for mixed in [format!("{}{}", of_one.0, of_two.1), format!("{}{}", of_two.0, of_one.1), two.clone()] {
                prop_assert_eq!(accepts(&hash, mixed.as_bytes()), mixed == one, "{} for {}", mixed, one);
            }
        }
    }
}
