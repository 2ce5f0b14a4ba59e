//! Does bcrypt say yes?
//!
//! The only room that speaks to the bcrypt crate, and only to the part of it
//! that does not truncate: what it would cut off never gets here, because
//! [`crate::key::format`] refuses longer keys. Slow on purpose; who may call it
//! and how often is settled in [`super`].

use crate::key::PlainKey;
use crate::record::SecretHash;

/// The cost of hashes we make: 2^12 rounds, about a quarter of a second.
pub const DEFAULT_COST: u32 = 12;

/// bcrypt could not do its work.
#[derive(Debug, thiserror::Error)]
#[error("bcrypt failed")]
pub struct Failed(#[from] bcrypt::BcryptError);

/// Hashes a whole key.
///
/// # Errors
///
/// The operating system has no randomness for the salt, or `cost` is not 4 to 31.
pub fn hash(key: &PlainKey, cost: u32) -> Result<String, Failed> {
    Ok(bcrypt::non_truncating_hash(key.expose(), cost)?)
}

/// Whether `hash` was made of `key`.
///
/// # Errors
///
/// The hash is no hash. This is never a "no": a damaged row must not look like a wrong key.
pub fn verify(key: &PlainKey, hash: &SecretHash) -> Result<bool, Failed> {
    Ok(bcrypt::non_truncating_verify(key.expose(), hash.text().as_str())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::format::parse;

    fn key(text: &str) -> PlainKey {
        parse(text.as_bytes()).unwrap().to_plain()
    }

    #[test]
    fn what_it_hashed_it_recognises_and_nothing_else() {
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
    fn what_is_not_read_as_a_hash_would_not_be_taken_for_one_by_bcrypt_either() {
        let good = hash(&key("llmk_demo_secret123"), 4).unwrap();
        for at in [28, 59] {
            let mut bad = good.clone().into_bytes();
            // The next digit of the alphabet sets a bit that means nothing.
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
}
