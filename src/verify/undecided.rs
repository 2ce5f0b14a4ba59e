//! Recognises attempts that are made again before they are decided.

use std::collections::{HashSet, VecDeque};

use super::memo::Seal;

/// The latest attempts that are not decided, also those that the queue dropped: the client of the right secret comes
/// again with the same one, and a guess is worth nothing a second time.
pub(super) struct UndecidedAttempts {
    seals: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
    bound: usize,
}

impl UndecidedAttempts {
    /// Remembers at most `bound` attempts, 100 bytes each.
    pub(super) fn new(bound: usize) -> Self {
        Self { seals: HashSet::new(), order: VecDeque::new(), bound }
    }

    /// Remembers an attempt. Returns whether it was made before.
    pub(super) fn remember(&mut self, seal: &Seal) -> bool {
        let seal = seal.as_map_key();
        let again = !self.seals.insert(seal);
        if !again {
            self.order.push_back(seal);
        }
        // An attempt that was decided and is made again is in the order twice, which only makes it forgotten earlier.
        while self.order.len() > self.bound {
            if let Some(oldest) = self.order.pop_front() {
                self.seals.remove(&oldest);
            }
        }
        again
    }

    /// Forgets an attempt that is decided.
    pub(super) fn forget(&mut self, seal: &Seal) {
        self.seals.remove(&seal.as_map_key());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::memo::tests::seals;

    #[test]
    fn an_attempt_is_recognised_until_it_is_decided() {
        let (mut undecided, seals) = (UndecidedAttempts::new(10), seals(2));
        let again = [0, 1, 0, 0].map(|at| undecided.remember(&seals[at]));
        assert_eq!(again, [false, false, true, true]);
        undecided.forget(&seals[0]);
        assert_eq!([0, 1, 0].map(|at| undecided.remember(&seals[at])), [false, true, true]);
    }

    #[test]
    fn the_latest_ones_are_remembered() {
        let (mut undecided, seals) = (UndecidedAttempts::new(3), seals(5));
        for seal in &seals {
            assert!(!undecided.remember(seal));
            undecided.forget(&seals[4]);
        }
        assert_eq!([2, 3, 4].map(|at| undecided.remember(&seals[at])), [true, true, false]);
        assert!(undecided.seals.len() <= 3 && undecided.order.len() == 3);
    }
}
