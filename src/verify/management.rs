//! Hashes management keys with SHA-256.
//!
//! bcrypt makes it expensive to guess secrets with little randomness. A management key comes only from
//! [`crate::key::format::issue_management_with`] and has 190 random bits, so an attacker who knows the hash cannot
//! guess the key at any speed. A slow hash would let clients without a key keep the CPU busy.

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::audit::hex;
use crate::key::PresentedKey;

/// Returns the value of `tenantgate_admin_key.hashed_key` for a key: SHA-256 in hexadecimal.
#[must_use]
pub fn hash(key: PresentedKey<'_>) -> String {
    hex(&Sha256::digest(key.expose()))
}

/// Returns whether `stored` is the hash of `key`. Compares in constant time.
#[must_use]
pub fn matches(key: PresentedKey<'_>, stored: &str) -> bool {
    hash(key).as_bytes().ct_eq(stored.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::format::parse_management;

    #[test]
    fn the_hash_is_sha_256_of_the_whole_key() {
        let key = parse_management(b"llma_ops_secret123").unwrap();
        // By `printf llma_ops_secret123 | sha256sum`.
        assert_eq!(hash(key), "e2d3960158a97b856bde607ac3e8c7fcb6da2e3993d1cf1d40f158bac10262e1");
        assert!(matches(key, &hash(key)));
        assert!(!matches(parse_management(b"llma_ops_secret124").unwrap(), &hash(key)));
        assert!(!matches(key, "") && !matches(key, &hash(key)[1..]));
    }
}
