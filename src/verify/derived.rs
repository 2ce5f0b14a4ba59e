//! Reproducible randomness for new keys, derived from a pepper.
//!
//! A client that repeats a request with the same `Idempotency-Key` must get the same response, including the new key,
//! although the key is not stored. The key is therefore generated from
//!
//! ```text
//! HMAC(pepper, "tenantgate-derived-key/v1\0" ‖ attempt ‖ counter)        counter = 0, 1, 2 … in 8 bytes, big-endian
//! ```
//!
//! `attempt` is a random UUID, which the database keeps for a day. Without the pepper it reveals nothing about the
//! key.

use hmac::{Hmac, Mac as _};
use rand::TryRng;
use rand::rngs::{SysError, SysRng};
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::memo::Peppers;
use crate::record::PepperId;

const DOMAIN: &[u8] = b"tenantgate-derived-key/v1\0";

/// The source of the keys of one attempt.
#[derive(Clone, Debug)]
pub struct Derivation {
    pepper: PepperId,
    keyed: KeyedHmac,
}

/// An HMAC that has consumed the pepper, the domain and the attempt. Its `Debug` hides the state.
#[derive(Clone)]
struct KeyedHmac(Hmac<Sha256>);

impl std::fmt::Debug for KeyedHmac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keyed(…)")
    }
}

impl Derivation {
    /// Creates the derivation of a new attempt with the first pepper; `None` without peppers.
    #[must_use]
    pub fn first(peppers: &Peppers, attempt: Uuid) -> Option<Self> {
        peppers.list().first().map(|pepper| Self::by(pepper, attempt))
    }

    /// Creates the derivation of an earlier attempt with the pepper that has this id; `None` if it was removed.
    #[must_use]
    pub fn again(peppers: &Peppers, pepper: &str, attempt: Uuid) -> Option<Self> {
        let same = |one: &&super::pepper::Pepper| one.id().to_string() == pepper;
        peppers.list().iter().find(same).map(|pepper| Self::by(pepper, attempt))
    }

    fn by(pepper: &super::pepper::Pepper, attempt: Uuid) -> Self {
        let mut keyed = pepper.mac(DOMAIN);
        keyed.update(attempt.as_bytes());
        Self { pepper: pepper.id(), keyed: KeyedHmac(keyed) }
    }

    /// Returns the id of the pepper.
    #[must_use]
    pub fn pepper(&self) -> PepperId {
        self.pepper
    }
}

/// The source of randomness for a key.
pub enum Randomness {
    /// The operating system.
    System,
    /// A derivation, and the number of its blocks that were used.
    Derived(Box<Derivation>, u64),
}

impl From<Option<Derivation>> for Randomness {
    fn from(derivation: Option<Derivation>) -> Self {
        derivation.map_or(Self::System, |derivation| Self::Derived(Box::new(derivation), 0))
    }
}

impl TryRng for Randomness {
    type Error = SysError;

    fn try_next_u32(&mut self) -> Result<u32, SysError> {
        let mut bytes = Zeroizing::new([0; 4]);
        self.try_fill_bytes(bytes.as_mut())?;
        Ok(u32::from_be_bytes(*bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, SysError> {
        let mut bytes = Zeroizing::new([0; 8]);
        self.try_fill_bytes(bytes.as_mut())?;
        Ok(u64::from_be_bytes(*bytes))
    }

    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), SysError> {
        let Self::Derived(derivation, used) = self else { return SysRng.try_fill_bytes(to) };
        for chunk in to.chunks_mut(32) {
            let mut block = derivation.keyed.0.clone();
            block.update(&used.to_be_bytes());
            *used += 1;
            let block = Zeroizing::new(<[u8; 32]>::from(block.finalize().into_bytes()));
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::format::issue_with;
    use crate::verify::memo::MemoPolicy;
    use crate::verify::pepper::Pepper;

    #[test]
    fn the_same_attempt_and_pepper_give_the_same_key() {
        let (one, two) = (Pepper::random().unwrap(), Pepper::random().unwrap());
        let peppers =
            |list: &[&Pepper]| Peppers::new(list.iter().copied().cloned().collect(), MemoPolicy::Optional);
        let attempt = Uuid::from_u128(7);
        let key = |derivation: Option<Derivation>| {
            issue_with(&mut Randomness::from(derivation), "acme").unwrap().expose().to_owned()
        };
        let first = key(Derivation::first(&peppers(&[&one]), attempt));
        let id = one.id().to_string();
        // The pepper was replaced meanwhile.
        assert_eq!(first, key(Derivation::again(&peppers(&[&two, &one]), &id, attempt)));
        assert_ne!(first, key(Derivation::first(&peppers(&[&two]), attempt)));
        assert_ne!(first, key(Derivation::first(&peppers(&[&one]), Uuid::from_u128(8))));
        assert!(Derivation::again(&peppers(&[&two]), &id, attempt).is_none());
        assert!(Derivation::first(&peppers(&[]), attempt).is_none());
        assert_ne!(key(None), key(None));
    }

    #[test]
    fn the_bytes_are_the_documented_ones() {
        let pepper = Pepper::parse_all(&"A".repeat(43)).unwrap().remove(0);
        let peppers = Peppers::new(vec![pepper], MemoPolicy::Optional);
        let mut derived = Randomness::from(Derivation::first(&peppers, Uuid::from_u128(1)));
        let mut bytes = [0; 40];
        derived.try_fill_bytes(&mut bytes).unwrap();
        // Computed with Python's hmac: 32 bytes of block 0, then 8 of block 1.
        assert_eq!(
            crate::audit::hex(&bytes),
            "485535090519ae798a1648a8b994ce8bd7c101710c999ae9d205f92d551027a6a4c10b842e84d2fe"
        );
    }
}
