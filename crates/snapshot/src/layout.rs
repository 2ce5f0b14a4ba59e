//! The layout of the memory.

use std::fmt;

/// The version of the layout, in the header and in the handshake. Readers and writers of different versions do not work
/// together.
pub const VERSION: u64 = 1;

/// The maximum age of a heartbeat, in milliseconds: one second, after which a replica is stale, too.
pub const FRESH_MS: u64 = 1_000;

pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"tgsnap\0\0");

/// The indices of words in the header.
pub(crate) mod header {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 1;
    /// The binary logarithm of the number of slots.
    pub(crate) const SLOTS: usize = 2;
    /// Odd while a change is being made.
    pub(crate) const SEQUENCE: usize = 4;
    /// The uptime of the machine at the last successful poll of the database, in milliseconds; 0 for never.
    pub(crate) const HEARTBEAT: usize = 5;
    /// The clock of the database minus the uptime, in microseconds, as a signed number; `i64::MIN` if it is unknown.
    pub(crate) const AHEAD: usize = 6;
    /// [`OPEN`](super::OPEN) while readers may decide.
    pub(crate) const STATE: usize = 7;
    /// The place of the record of the settings.
    pub(crate) const SETTINGS: usize = 8;
    /// The maximum age of a heartbeat in milliseconds, if it is less than [`FRESH_MS`](super::FRESH_MS).
    pub(crate) const FRESH: usize = 9;
    /// The length of the header.
    pub(crate) const LEN: usize = 16;
}

/// The value of [`header::STATE`] that lets readers decide.
pub(crate) const OPEN: u64 = u64::from_le_bytes(*b"decides\0");

/// The binary logarithm of the maximum number of slots.
pub(crate) const MOST_SLOTS: u64 = 30;

/// The maximum number of bytes of a record.
pub(crate) const MOST_BYTES: usize = 8_192;

/// The number of words of a record before its bytes: the length, and the hash.
pub(crate) const RECORD_HEAD: usize = 3;

/// The value of a slot that was used and is free again. It does not end a search.
pub(crate) const GONE: u64 = 1;

/// Returns the words of a memory with `2^slots` slots and room for `room` words of records.
#[must_use]
pub fn words_for(slots: u32, room: usize) -> usize {
    header::LEN + (1 << slots) + room
}

/// A slot, as a word: the fingerprint of a prefix, and the place of the record. A key that is not proven has no record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot {
    pub(crate) fingerprint: u32,
    pub(crate) record: u32,
}

impl Slot {
    pub(crate) fn of(word: u64) -> Self {
        let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
        Self { fingerprint: half(word >> 32), record: half(word) }
    }

    pub(crate) fn word(self) -> u64 {
        u64::from(self.fingerprint) << 32 | u64::from(self.record)
    }
}

/// The secret that readers get over the socket. Hashes under it are useless without it.
#[derive(Clone)]
pub struct MemoryKey([u8; 32]);

impl From<[u8; 32]> for MemoryKey {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for MemoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryKey").finish_non_exhaustive()
    }
}

impl MemoryKey {
    /// Returns the bytes, for the handshake.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the digest of a presented key.
    #[must_use]
    pub fn digest(&self, presented: &[u8]) -> [u8; 32] {
        *self.hash(*b"key\0", &[presented]).as_bytes()
    }

    /// Returns where the search for a prefix begins (to be reduced modulo the number of slots), and its fingerprint.
    pub(crate) fn place(&self, prefix: &[u8]) -> (u64, u32) {
        let hash = self.hash(*b"slot", &[prefix]);
        let [place, other] = halves(&hash);
        // Never 0, which marks empty and formerly used slots.
        (place, Slot::of(other).record | 1)
    }

    /// Returns the hash of the record at `place`. The place is hashed, too, so that a copy elsewhere is invalid.
    pub(crate) fn seal(&self, place: u32, bytes: &[u8]) -> [u64; 2] {
        let hash = self.hash(*b"row\0", &[&place.to_le_bytes(), bytes]);
        halves(&hash)
    }

    fn hash(&self, domain: [u8; 4], parts: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&domain);
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    }
}

/// Returns the first half of a hash, as two words.
fn halves(hash: &blake3::Hash) -> [u64; 2] {
    [0, 8].map(|start| u64::from_le_bytes(std::array::from_fn(|at| hash.as_bytes()[start + at])))
}
