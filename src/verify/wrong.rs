//! Remembers recent wrong attempts: repeating one costs no bcrypt, and who made many waits longer.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::attempt::{Attempt, ClientNetwork, Site};
use super::memo::Seal;
use crate::key::KeyId;

/// For how long wrong attempts make others suspicious: an address has other users by and by.
const MEMORY: Duration = Duration::from_mins(10);

/// How many wrong attempts make a client suspicious. Anybody may try an old key, or one of another environment.
const TOLERATED: u32 = 4;

/// The same for a site, whose clients may have nothing to do with each other.
const TOLERATED_OF_SITE: u32 = 32;

/// A bounded set of the latest wrong attempts. It is separate from successful proofs, so that a flood of guesses
/// displaces only other guesses.
pub(super) struct WrongAttempts {
    seals: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
    /// The latest of them that make others suspicious, and when they were made.
    counted: VecDeque<(Attempt, Instant)>,
    by_client: HashMap<ClientNetwork, u32>,
    by_site: HashMap<Site, u32>,
    by_key: HashMap<KeyId, u32>,
    bound: usize,
}

impl WrongAttempts {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            seals: HashSet::new(),
            order: VecDeque::new(),
            counted: VecDeque::new(),
            by_client: HashMap::new(),
            by_site: HashMap::new(),
            by_key: HashMap::new(),
            bound,
        }
    }

    pub(super) fn contains(&self, seal: &Seal) -> bool {
        self.seals.contains(&seal.as_map_key())
    }

    pub(super) fn remember(&mut self, seal: &Seal, attempt: Attempt, now: Instant) {
        if !self.seals.insert(seal.as_map_key()) {
            return;
        }
        self.order.push_back(seal.as_map_key());
        while self.order.len() > self.bound {
            if let Some(oldest) = self.order.pop_front() {
                self.seals.remove(&oldest);
            }
        }
        self.counted.push_back((attempt, now));
        *self.by_client.entry(attempt.client).or_default() += 1;
        *self.by_site.entry(attempt.client.site()).or_default() += 1;
        *self.by_key.entry(attempt.key).or_default() += 1;
        self.forget_old(now);
    }

    /// Forgets what makes others suspicious after [`MEMORY`].
    pub(super) fn forget_old(&mut self, now: Instant) {
        let is_over = |at: Instant| now.saturating_duration_since(at) > MEMORY;
        while self.counted.len() > self.bound || self.counted.front().is_some_and(|(_, at)| is_over(*at)) {
            let Some((attempt, _)) = self.counted.pop_front() else { return };
            forget_one(&mut self.by_client, attempt.client);
            forget_one(&mut self.by_site, attempt.client.site());
            forget_one(&mut self.by_key, attempt.key);
        }
    }

    /// Returns how likely an attempt is a guess, by what is remembered: 0 for a client with few wrong attempts and a key
    /// without any; one more each time that the number of the client's, or of its site's, doubles.
    ///
    /// That others guess at a key says little about its holder, so it counts 1, however many there were.
    pub(super) fn suspicion(&self, attempt: &Attempt) -> u32 {
        let doublings = |count: Option<&u32>, tolerated: u32| {
            u32::BITS - (count.copied().unwrap_or(0) / tolerated).leading_zeros()
        };
        doublings(self.by_client.get(&attempt.client), TOLERATED)
            + doublings(self.by_site.get(&attempt.client.site()), TOLERATED_OF_SITE)
            + u32::from(self.by_key.contains_key(&attempt.key))
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

    fn attempt(client: [u8; 4], key: u128) -> Attempt {
        Attempt { client: ClientNetwork::from(Some(IpAddr::from(client))), key: KeyId(Uuid::from_u128(key)) }
    }

    #[test]
    fn wrong_attempts_are_bounded() {
        let (mut wrong, now) = (WrongAttempts::new(3), Instant::now());
        let seals = seals(5);
        for (seal, n) in seals.iter().zip(1..) {
            wrong.remember(seal, attempt([192, 0, n, 1], n.into()), now);
        }
        let known: Vec<_> = seals.iter().map(|seal| wrong.contains(seal)).collect();
        assert_eq!(known, [false, false, true, true, true]);
        assert_eq!((wrong.seals.len(), wrong.counted.len()), (3, 3));
        assert_eq!((wrong.by_client.len(), wrong.by_site.len(), wrong.by_key.len()), (3, 3, 3));
        let suspicions: Vec<_> = (1..=5).map(|n| wrong.suspicion(&attempt([10, 0, 0, 1], n))).collect();
        assert_eq!(suspicions, [0, 0, 1, 1, 1]);
    }

    #[test]
    fn suspicion_grows_with_the_wrong_attempts_of_the_client_and_not_with_those_at_the_key() {
        let (mut wrong, now) = (WrongAttempts::new(100), Instant::now());
        let mut suspicions = Vec::new();
        for seal in seals(64) {
            // The same one again is none.
            wrong.remember(&seal, attempt([192, 0, 2, 1], 1), now);
            wrong.remember(&seal, attempt([192, 0, 2, 1], 1), now);
            suspicions.push([1, 2].map(|host| wrong.suspicion(&attempt([192, 0, 2, host], 2))));
        }
        let after = [1, 3, 4, 7, 8, 16, 31, 32, 64].map(|count: usize| suspicions[count - 1]);
        assert_eq!(after, [[0, 0], [0, 0], [1, 0], [1, 0], [2, 0], [3, 0], [3, 0], [5, 1], [7, 2]]);
        assert_eq!(wrong.suspicion(&attempt([192, 0, 3, 1], 1)), 1);
        assert_eq!(wrong.suspicion(&attempt([192, 0, 3, 1], 2)), 0);
    }

    #[test]
    fn suspicion_ends_with_time_and_the_attempts_stay_wrong() {
        let (mut wrong, now) = (WrongAttempts::new(100), Instant::now());
        let seals = seals(8);
        for seal in &seals {
            wrong.remember(seal, attempt([192, 0, 2, 1], 1), now);
        }
        let suspicion_after = |wrong: &mut WrongAttempts, time: Duration| {
            wrong.forget_old(now + time);
            wrong.suspicion(&attempt([192, 0, 2, 1], 1))
        };
        assert_eq!(suspicion_after(&mut wrong, MEMORY), 3);
        assert_eq!(suspicion_after(&mut wrong, MEMORY + Duration::from_secs(1)), 0);
        assert!(wrong.by_client.is_empty() && wrong.by_site.is_empty() && wrong.by_key.is_empty());
        assert!(seals.iter().all(|seal| wrong.contains(seal)));
    }
}
