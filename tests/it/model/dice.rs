//! Reproducible random choices: a seed determines all of them.
//!
//! It does not know what is chosen. (`SplitMix64`: <https://prng.di.unimi.it/splitmix64.c>)

use std::time::Duration;

pub(crate) struct Dice(u64);

impl Dice {
    /// The random choices of one writer, the same in every run with this seed.
    pub(crate) fn of(seed: u64, round: u64, player: u64) -> Self {
        let mut dice = Self(seed);
        dice.0 = dice.number() ^ round;
        dice.0 = dice.number() ^ player;
        dice
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns one of `0..end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(least * 1000 + self.below((most - least) * 1000 + 1))
    }
}
