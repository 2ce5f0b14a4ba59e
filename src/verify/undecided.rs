//! Recognises attempts that are made again before they are decided.

use std::collections::{HashSet, VecDeque};

use super::memo::Seal;

/// The latest attempts that are not decided, also those that the queue dropped: the client of the right secret comes
/// again with the same one.
///
/// Suspicious attempts are remembered apart, so that a flood of them does not displace the others.
pub(super) struct UndecidedAttempts {
    suspicious: LatestSeals,
    others: LatestSeals,
}

impl UndecidedAttempts {
    /// Remembers at most `bound` attempts of either sort, 100 bytes each.
    pub(super) fn new(bound: usize) -> Self {
        Self { suspicious: LatestSeals::new(bound), others: LatestSeals::new(bound) }
    }

    /// Remembers an attempt. Returns whether it was made before.
    pub(super) fn remember(&mut self, seal: &Seal, is_suspicious: bool) -> bool {
        let seal = seal.as_map_key();
        let again = self.suspicious.seals.contains(&seal) || self.others.seals.contains(&seal);
        if !again {
            if is_suspicious { &mut self.suspicious } else { &mut self.others }.add(seal);
        }
        again
    }

    /// Forgets an attempt that is decided.
    pub(super) fn forget(&mut self, seal: &Seal) {
        for latest in [&mut self.suspicious, &mut self.others] {
            latest.seals.remove(&seal.as_map_key());
        }
    }
}

struct LatestSeals {
    seals: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
    bound: usize,
}

impl LatestSeals {
    fn new(bound: usize) -> Self {
        Self { seals: HashSet::new(), order: VecDeque::new(), bound }
    }

    fn add(&mut self, seal: [u8; 32]) {
        self.seals.insert(seal);
        // One that was decided and is made again is in the order twice, which only makes it forgotten earlier.
        self.order.push_back(seal);
        while self.order.len() > self.bound {
            if let Some(oldest) = self.order.pop_front() {
                self.seals.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::memo::tests::seals;

    #[test]
    fn an_attempt_is_recognised_until_it_is_decided() {
        let (mut undecided, seals) = (UndecidedAttempts::new(10), seals(2));
        let again = [0, 1, 0, 0].map(|at| undecided.remember(&seals[at], false));
        assert_eq!(again, [false, false, true, true]);
        assert!(undecided.remember(&seals[0], true), "it has become suspicious");
        undecided.forget(&seals[0]);
        assert_eq!([0, 1, 0].map(|at| undecided.remember(&seals[at], true)), [false, true, true]);
        undecided.forget(&seals[0]);
        assert!(!undecided.remember(&seals[0], true));
    }

    #[test]
    fn the_latest_ones_are_remembered() {
        let (mut undecided, seals) = (UndecidedAttempts::new(3), seals(5));
        for seal in &seals {
            assert!(!undecided.remember(seal, false));
            undecided.forget(&seals[4]);
        }
        assert_eq!([2, 3, 4].map(|at| undecided.remember(&seals[at], false)), [true, true, false]);
        assert!(undecided.others.seals.len() <= 3 && undecided.others.order.len() == 3);
    }

    #[test]
    fn suspicious_attempts_displace_no_others() {
        let (mut undecided, seals) = (UndecidedAttempts::new(3), seals(5));
        assert!(!undecided.remember(&seals[0], false));
        for seal in &seals[1..] {
            assert!(!undecided.remember(seal, true));
        }
        assert!(undecided.remember(&seals[0], false));
        assert!(!undecided.remember(&seals[1], true), "displaced by its like");
    }
}
