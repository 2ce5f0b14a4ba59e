//! Remembers recent wrong attempts: repeating one costs no bcrypt, and who made many waits longer.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

use super::attempt::{Attempt, ClientNetwork};
use super::memo::Seal;
use crate::key::KeyId;

/// A bounded set of the latest wrong attempts. It is separate from successful proofs, so that a flood of guesses
/// displaces only other guesses.
pub(super) struct WrongAttempts {
    seals: HashSet<[u8; 32]>,
    order: VecDeque<([u8; 32], Attempt)>,
    /// How many of them each client made, and how many were for each key.
    by_client: HashMap<ClientNetwork, u32>,
    by_key: HashMap<KeyId, u32>,
    bound: usize,
}

impl WrongAttempts {
    pub(super) fn new(bound: usize) -> Self {
        let (seals, order) = (HashSet::new(), VecDeque::new());
        Self { seals, order, by_client: HashMap::new(), by_key: HashMap::new(), bound }
    }

    pub(super) fn contains(&self, seal: &Seal) -> bool {
        self.seals.contains(&seal.as_map_key())
    }

    pub(super) fn remember(&mut self, seal: &Seal, attempt: Attempt) {
        if self.seals.insert(seal.as_map_key()) {
            self.order.push_back((seal.as_map_key(), attempt));
            *self.by_client.entry(attempt.client).or_default() += 1;
            *self.by_key.entry(attempt.key).or_default() += 1;
        }
        while self.order.len() > self.bound {
            if let Some((oldest, attempt)) = self.order.pop_front() {
                self.seals.remove(&oldest);
                forget_one(&mut self.by_client, attempt.client);
                forget_one(&mut self.by_key, attempt.key);
            }
        }
    }

    /// Returns how likely an attempt is a guess, by what is remembered: 0 without a wrong attempt of this client or
    /// for this key, and one more each time that the number of the client's doubles.
    ///
    /// That others guess at a key says little about its holder, so it counts 1, however many there were.
    pub(super) fn suspicion(&self, attempt: &Attempt) -> u32 {
        let of_client = self.by_client.get(&attempt.client).copied().unwrap_or(0);
        let guessed_at = self.by_key.contains_key(&attempt.key);
        (u32::BITS - of_client.leading_zeros()) + u32::from(guessed_at)
    }
}

fn forget_one<K: Eq + Hash>(counts: &mut HashMap<K, u32>, of: K) {
    if let Entry::Occupied(mut count) = counts.entry(of) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use uuid::Uuid;

    use super::*;

    use crate::verify::memo::tests::seals;

    fn attempt(client: u8, key: u128) -> Attempt {
        let client = ClientNetwork::from(Some(IpAddr::from([192, 0, 2, client])));
        Attempt { client, key: KeyId(Uuid::from_u128(key)) }
    }

    #[test]
    fn wrong_attempts_are_bounded() {
        let mut wrong = WrongAttempts::new(3);
        let seals = seals(5);
        for (seal, n) in seals.iter().zip(1..) {
            wrong.remember(seal, attempt(n, n.into()));
        }
        let known: Vec<_> = seals.iter().map(|seal| wrong.contains(seal)).collect();
        assert_eq!(known, [false, false, true, true, true]);
        assert_eq!((wrong.seals.len(), wrong.by_client.len(), wrong.by_key.len()), (3, 3, 3));
        let suspicions: Vec<_> = (1..=5).map(|n| wrong.suspicion(&attempt(n, n.into()))).collect();
        assert_eq!(suspicions, [0, 0, 2, 2, 2]);
    }

    #[test]
    fn suspicion_grows_with_the_wrong_attempts_of_the_client_and_not_with_those_at_the_key() {
        let mut wrong = WrongAttempts::new(100);
        let mut suspicions = Vec::new();
        for seal in seals(8) {
            wrong.remember(&seal, attempt(1, 1));
            wrong.remember(&seal, attempt(1, 1));
            suspicions.push(wrong.suspicion(&attempt(1, 2)));
        }
        assert_eq!(suspicions, [1, 2, 2, 3, 3, 3, 3, 4]);
        assert_eq!(wrong.suspicion(&attempt(1, 1)), 5);
        assert_eq!(wrong.suspicion(&attempt(2, 1)), 1);
        assert_eq!(wrong.suspicion(&attempt(2, 2)), 0);
    }
}
