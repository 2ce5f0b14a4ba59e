//! The hash of a management key.
//!
//! It is SHA-256. bcrypt makes it expensive to guess secrets that people choose, or that other programs made from little
//! randomness. A management key comes only from [`crate::key::format::issue_management_with`] and has 190 random bits, so
//! whoever reads the hash cannot guess the key at any speed. A slow hash would let a client that has no key keep the
//! processor busy.

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::audit::hex;
use crate::key::PresentedKey;

/// What `tenantgate_admin_key.hashed_key` holds of a management key.
#[must_use]
pub fn hash(key: PresentedKey<'_>) -> String {
    hex(&Sha256::digest(key.expose()))
}

/// Whether this hash is of this key. Takes as long wherever the two differ.
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
