//! Did we already check exactly this?
//!
//! A [`Seal`] records that bcrypt said yes: HMAC-SHA-256 under a random key of
//! this process, over the key's id, its tenant, its bcrypt hash and the whole
//! key that was presented. To know one again takes a quarter of a microsecond.
//!
//! ```text
//! seal = HMAC(process key, "tenantgate verified v1\0" ‖ key id ‖ tenant id ‖ hashed_key ‖ presented key)
//! ```
//!
//! Everything before the presented key has a fixed length, so no two inputs run
//! together. A row that gets another hash or another tenant makes another seal,
//! and the old one is worth nothing.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng;
use rand::rngs::{SysError, SysRng};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::record::{KeyRecord, SecretHash};

const DOMAIN: &[u8] = b"tenantgate verified v1\0";

/// Makes seals. One per process; its key never leaves it.
#[derive(Clone)]
pub struct Sealer(Hmac<Sha256>);

impl Sealer {
    /// A sealer with a random key from the operating system.
    ///
    /// # Errors
    ///
    /// The operating system has no randomness to give.
    pub fn random() -> Result<Self, SysError> {
        let mut key = Zeroizing::new([0_u8; 64]);
        SysRng.try_fill_bytes(key.as_mut())?;
        Ok(Self::with_key(&key))
    }

    /// 64 bytes are one block of SHA-256, the longest key that HMAC takes as it is (RFC 2104 §3).
    fn with_key(key: &[u8; 64]) -> Self {
        Self(Hmac::new(key.into()))
    }

    /// The seal of `presented` for this very row.
    #[must_use]
    pub fn seal(&self, record: &KeyRecord, hash: &SecretHash, presented: &[u8]) -> Seal {
        let mut mac = self.0.clone();
        mac.update(DOMAIN);
        mac.update(record.id.0.as_bytes());
        mac.update(record.tenant_id.0.as_bytes());
        mac.update(hash.as_str().as_bytes());
        mac.update(presented);
        Seal(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

/// What [`Sealer::seal`] makes.
#[derive(Clone, Copy)]
pub struct Seal([u8; 32]);

impl Seal {
    /// Whether two seals are the same, in a time that does not tell where they differ.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// The seal as a key of a map: what an attacker cannot compute, he cannot steer to collide.
    #[must_use]
    pub fn as_map_key(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::key::KeyId;
    use crate::tenant::TenantId;

    const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";
    const KEY: &[u8] = b"llmk_demo_secret123";

    fn record(id: u128, tenant: u128) -> KeyRecord {
        let (id, tenant_id) = (KeyId(Uuid::from_u128(id)), TenantId(Uuid::from_u128(tenant)));
        KeyRecord { id, tenant_id, prefix: "llmk_demo".into(), hash: None, expires_at: None, revoked: false }
    }

    fn seal(sealer: &Sealer, id: u128, tenant: u128, hash: &str, presented: &[u8]) -> Seal {
        sealer.seal(&record(id, tenant), &SecretHash::parse(hash).unwrap(), presented)
    }

    #[test]
    fn a_seal_is_void_for_another_process_id_tenant_hash_or_key() {
        let sealer = Sealer::random().unwrap();
        let good = seal(&sealer, 1, 2, HASH, KEY);
        assert!(good.is(&seal(&sealer, 1, 2, HASH, KEY)));
        for other in [
            seal(&Sealer::random().unwrap(), 1, 2, HASH, KEY),
            seal(&sealer, 3, 2, HASH, KEY),
            seal(&sealer, 1, 3, HASH, KEY),
            seal(&sealer, 2, 1, HASH, KEY),
            seal(&sealer, 1, 2, &HASH.replace("$12$", "$10$"), KEY),
            seal(&sealer, 1, 2, HASH, b"llmk_demo_secret124"),
            seal(&sealer, 1, 2, HASH, b""),
        ] {
            assert!(!good.is(&other));
        }
    }

    #[test]
    fn debug_shows_nothing() {
        let sealer = Sealer::random().unwrap();
        assert_eq!(format!("{sealer:?} {:?}", seal(&sealer, 1, 2, HASH, KEY)), "Sealer { .. } Seal { .. }");
    }

    proptest! {
        #[test]
        fn one_flipped_bit_makes_another_seal(at in 0_usize..KEY.len(), bit in 0_u8..8) {
            let sealer = Sealer::with_key(&[7; 64]);
            let mut other = KEY.to_vec();
            other[at] ^= 1 << bit;
            prop_assert!(!seal(&sealer, 1, 2, HASH, KEY).is(&seal(&sealer, 1, 2, HASH, &other)));
        }
    }
}
