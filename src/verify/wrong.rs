//! Remembers recent wrong attempts, so that repeating one costs no bcrypt.

use std::collections::{HashSet, VecDeque};

use super::memo::Seal;

/// A bounded set of the latest wrong attempts. It is separate from successful proofs, so that a flood of guesses
/// displaces only other guesses.
pub(super) struct WrongAttempts {
    seals: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
    bound: usize,
}

impl WrongAttempts {
    pub(super) fn new(bound: usize) -> Self {
        Self { seals: HashSet::new(), order: VecDeque::new(), bound }
    }

    pub(super) fn contains(&self, seal: &Seal) -> bool {
        self.seals.contains(&seal.as_map_key())
    }

    pub(super) fn remember(&mut self, seal: &Seal) {
        if self.seals.insert(seal.as_map_key()) {
            self.order.push_back(seal.as_map_key());
        }
        while self.order.len() > self.bound {
            if let Some(oldest) = self.order.pop_front() {
                self.seals.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    use crate::key::KeyId;
    use crate::record::{KeyRecord, SecretHash};
    use crate::tenant::TenantId;
    use crate::verify::memo::{Keyring, Peppers};

    #[test]
    fn wrong_attempts_are_bounded() {
        let keyring = Keyring::new(Peppers::default()).unwrap();
        let hash = SecretHash::parse("$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232");
        let (id, tenant_id) = (KeyId(Uuid::nil()), TenantId(Uuid::nil()));
        let row = KeyRecord::new(id, tenant_id, "llmk_demo".into(), hash);
        let mut wrong = WrongAttempts::new(3);
        let seals: Vec<_> = (0_u8..5).map(|n| keyring.seal(&row, &hash.unwrap(), &[n])).collect();
        for seal in &seals {
            wrong.remember(seal);
        }
        let known: Vec<_> = seals.iter().map(|seal| wrong.contains(seal)).collect();
        assert_eq!(known, [false, false, true, true, true]);
        assert_eq!(wrong.seals.len(), 3);
    }
}
