//! Counts how often an attempt was made that is not decided yet.

use std::collections::{HashMap, VecDeque};

use super::memo::Seal;

/// The counts of the latest undecided attempts, also of those that the queue dropped: the client of the right secret
/// comes again with the same one, and a guess is worth nothing a second time.
pub(super) struct Asked {
    counts: HashMap<[u8; 32], u32>,
    order: VecDeque<[u8; 32]>,
    bound: usize,
}

impl Asked {
    /// Counts at most `bound` attempts, 100 bytes each.
    pub(super) fn new(bound: usize) -> Self {
        Self { counts: HashMap::new(), order: VecDeque::new(), bound }
    }

    /// Counts one call. Returns how many calls made this attempt.
    pub(super) fn count(&mut self, seal: &Seal) -> u32 {
        let seal = seal.as_map_key();
        let count = self.counts.entry(seal).or_default();
        *count = count.saturating_add(1);
        let count = *count;
        if count == 1 {
            self.order.push_back(seal);
        }
        // An attempt that was decided and is made again is in the order twice, which only makes it forgotten earlier.
        while self.order.len() > self.bound {
            if let Some(oldest) = self.order.pop_front() {
                self.counts.remove(&oldest);
            }
        }
        count
    }

    /// Forgets an attempt that is decided.
    pub(super) fn decided(&mut self, seal: &Seal) {
        self.counts.remove(&seal.as_map_key());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::memo::tests::seals;

    #[test]
    fn attempts_are_counted_until_they_are_decided() {
        let (mut asked, seals) = (Asked::new(10), seals(2));
        let mut count = |at: usize| asked.count(&seals[at]);
        assert_eq!([count(0), count(1), count(0)], [1, 1, 2]);
        asked.decided(&seals[0]);
        assert_eq!((asked.count(&seals[0]), asked.count(&seals[1])), (1, 2));
    }

    #[test]
    fn the_counts_are_bounded() {
        let (mut asked, seals) = (Asked::new(3), seals(5));
        for seal in seals.iter().chain(&seals).chain(&seals) {
            asked.count(seal);
            asked.decided(&seals[4]);
        }
        assert!(asked.counts.len() <= 3 && asked.order.len() <= 3);
    }
}
