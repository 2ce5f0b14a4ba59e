//! A persistent hash table for a million entries.
//!
//! The table is a list of reference-counted shards. A change to a clone copies only the affected shards (about 200
//! references each) and shares the others with the original. Readers can therefore keep the original, and changing
//! one entry takes microseconds, while copying the whole table would take 100 ms.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

/// An entry of a [`Table`].
pub(super) trait Keyed {
    /// Returns the key of the entry.
    fn key(&self) -> &[u8];
}

/// A hash table that is cheap to clone. Changes to a clone do not affect the original.
#[derive(Debug)]
pub(super) struct Table<V> {
    shards: Vec<Arc<HashTable<Arc<V>>>>,
    hasher: DefaultHashBuilder,
    len: usize,
}

impl<V> Clone for Table<V> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone(), hasher: self.hasher.clone(), len: self.len }
    }
}

/// The average number of entries in a shard of a new table: few enough to copy in microseconds, and many enough that
/// the list of shards is short. A hash table with 256 buckets holds 224 entries; about one shard in a hundred gets
/// more.
const SHARD_ENTRIES: usize = 192;

impl<V: Keyed> Table<V> {
    /// Creates a table of these entries. If two have the same key, the last one replaces the others.
    pub(super) fn new(entries: Vec<Arc<V>>) -> Self {
        let count = entries.len().div_ceil(SHARD_ENTRIES).max(1);
        let mut table =
            Self { shards: vec![Arc::default(); count], hasher: DefaultHashBuilder::default(), len: 0 };
        for entry in entries {
            let _ = table.put(entry);
        }
        for shard in &mut table.shards {
            let hasher = &table.hasher;
            Arc::make_mut(shard).shrink_to_fit(|v| hasher.hash_one(v.key()));
        }
        table
    }

    /// Returns the number of entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the entry with this key.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Arc<V>> {
        let hash = self.hasher.hash_one(key);
        self.shards[self.shard_of(hash)].find(hash, |v| v.key() == key)
    }

    /// Adds an entry. Returns the entry with the same key that it replaces, if any.
    pub(super) fn put(&mut self, entry: Arc<V>) -> Option<Arc<V>> {
        let before = self.remove(entry.key());
        let hash = self.hasher.hash_one(entry.key());
        let at = self.shard_of(hash);
        let hasher = &self.hasher;
        Arc::make_mut(&mut self.shards[at]).insert_unique(hash, entry, |v| hasher.hash_one(v.key()));
        self.len += 1;
        before
    }

    /// Removes and returns the entry with this key.
    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Arc<V>> {
        self.get(key)?;
        let hash = self.hasher.hash_one(key);
        let at = self.shard_of(hash);
        let entry = Arc::make_mut(&mut self.shards[at]).find_entry(hash, |v| v.key() == key).ok()?;
        self.len -= 1;
        Some(entry.remove().0)
    }

    /// Returns whether the shards have four times the entries that they were made for, so that the table should be
    /// made again.
    pub(super) fn outgrown(&self) -> bool {
        self.len > self.shards.len() * SHARD_ENTRIES * 4
    }

    /// Returns all entries, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<V>> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// Returns the keys whose entries differ between the two tables. Shards that both tables share are skipped.
    pub(super) fn differences<'t>(&'t self, before: &'t Self) -> Vec<&'t [u8]> {
        // Shards can be compared only if both tables have the same hasher. A rebuilt table has a new one, and shares no
        // shard.
        let alike = self.shards.len() == before.shards.len();
        let shared = |at: usize| alike && Arc::ptr_eq(&self.shards[at], &before.shards[at]);
        let side = |table: &'t Self, other: &'t Self| {
            let shards = table.shards.iter().enumerate().filter(move |(at, _)| !shared(*at));
            shards
                .flat_map(|(_, shard)| shard.iter())
                .filter(move |entry| other.get(entry.key()).is_none_or(|same| !Arc::ptr_eq(entry, same)))
        };
        let mut keys: Vec<_> =
            side(self, before).chain(side(before, self)).map(|entry| entry.key()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Returns the index of the shard. Uses the bits in the middle of the hash, because the shard itself uses the
    /// top seven and the lowest ones.
    fn shard_of(&self, hash: u64) -> usize {
        let middle = u128::from((hash << 8) >> 32);
        usize::try_from((middle * self.shards.len() as u128) >> 32).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Word(String, u32);

    impl Keyed for Word {
        fn key(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }

    fn word(n: u32, value: u32) -> Arc<Word> {
        Arc::new(Word(format!("word-{n}"), value))
    }

    #[test]
    fn changes_to_a_clone_do_not_affect_the_original() {
        let before = Table::new((0..10_000).map(|n| word(n, n)).collect());
        let mut after = before.clone();
        after.put(word(7, 70));
        after.remove(b"word-8");
        assert_eq!((before.len(), after.len()), (10_000, 9_999));
        assert_eq!((before.get(b"word-7").unwrap().1, after.get(b"word-7").unwrap().1), (7, 70));
        assert!(before.get(b"word-8").is_some() && after.get(b"word-8").is_none());
        let copied = before.shards.iter().zip(&after.shards).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!(copied <= 2 && before.shards.len() > 16, "{copied} of {} copied", before.shards.len());
    }

    #[test]
    fn shards_are_filled_evenly() {
        let table = Table::new((0..100_000).map(|n| word(n, n)).collect());
        let longest = table.shards.iter().map(|s| s.len()).max().unwrap();
        assert!(longest < 2 * 100_000 / table.shards.len(), "{longest}");
    }

    #[test]
    fn the_entries_of_a_shard_spread_over_its_buckets() {
        let table = Table::new((0..100_000).map(|n| word(n, n)).collect());
        let places = table.shards[0].iter().map(|word| table.hasher.hash_one(word.key()) % 256);
        let places: BTreeSet<_> = places.collect();
        assert!(places.len() > 100, "{} entries in {} buckets", table.shards[0].len(), places.len());
    }

    #[test]
    fn a_table_is_outgrown_with_more_than_four_times_the_entries_it_was_made_for() {
        for (made_for, bound) in [(0, 768), (1_000, 4_608)] {
            let mut table = Table::new((0..made_for).map(|n| word(n, n)).collect());
            for n in made_for..bound {
                assert!(!table.outgrown(), "{n} of {bound}");
                table.put(word(n, n));
            }
            assert!(!table.outgrown(), "{bound}");
            table.put(word(bound, bound));
            assert!(table.outgrown(), "more than {bound}");
        }
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_map(changes in proptest::collection::vec((0_u32..50, proptest::option::of(any::<u32>())), 0..300)) {
            let (mut table, mut model) = (Table::new(Vec::new()), BTreeMap::new());
            for (n, value) in changes {
                if let Some(value) = value {
                    table.put(word(n, value));
                    model.insert(format!("word-{n}"), value);
                } else {
                    table.remove(format!("word-{n}").as_bytes());
                    model.remove(&format!("word-{n}"));
                }
            }
            let seen: BTreeMap<_, _> = table.iter().map(|w| (w.0.clone(), w.1)).collect();
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(seen, model);
        }
    }
}
