//! The reader of the shared memory.

use crate::atomics::{AtomicU64, Memory, Ordering, fence};
use crate::layout::{
    FRESH_MS, GONE, MAGIC, MOST_BYTES, MOST_SLOTS, MemoryKey, OPEN, RECORD_HEAD, Slot, VERSION, header,
};
use crate::record::{Proven, Settings};

/// The published state of a prefix.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found<'b> {
    /// There is no key with this prefix.
    Absent,
    /// There is a key with this prefix, and only the server can judge it.
    Known,
    /// There is a key with this prefix, and it was proven.
    Proven(Box<Proven<&'b str>>),
    /// There is no answer: the memory is stale, closed or damaged, or is being changed.
    Doubt,
}

/// The most slots that a search reads, so that no table can hold up a request.
const MOST_STEPS: u64 = 4_096;

/// The state of a prefix in the table.
enum State {
    Absent,
    Known,
    /// Its record was copied.
    Proven,
}

/// Reads a memory that another process writes.
#[derive(Debug)]
pub struct Reader<M> {
    memory: M,
    key: MemoryKey,
    mask: u64,
}

impl<M: Memory> Reader<M> {
    /// Returns a reader of this memory; `None` if it has another version or an invalid size.
    #[must_use]
    pub fn new(memory: M, key: MemoryKey) -> Option<Self> {
        let words = memory.words();
        let head = |at: usize| Some(words.get(at)?.load(Ordering::Acquire));
        let slots = head(header::SLOTS).filter(|slots| *slots <= MOST_SLOTS)?;
        let fits = usize::try_from(1_u64 << slots).ok()?.checked_add(header::LEN)? <= words.len();
        let ours = head(header::MAGIC)? == MAGIC && head(header::VERSION)? == VERSION && fits;
        let mask = (1 << slots) - 1;
        ours.then_some(Self { memory, key, mask })
    }

    /// Returns the settings by which requests are read and rejected; `None` if they are damaged.
    #[must_use]
    pub fn settings(&self) -> Option<Settings> {
        let place = u32::try_from(self.head(header::SETTINGS).load(Ordering::Acquire)).ok()?;
        let mut bytes = Vec::new();
        self.record(place, &mut bytes)?;
        Settings::decode(&bytes)
    }

    /// Returns whether the memory is fresh at this uptime of the machine, in milliseconds, and readers may decide.
    #[must_use]
    pub fn is_fresh(&self, uptime_ms: u64) -> bool {
        self.begin(uptime_ms).is_some()
    }

    /// Returns the last heartbeat: the uptime of the machine then, in milliseconds, as the writer's clock has it; 0 before
    /// the first.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        self.head(header::HEARTBEAT).load(Ordering::Acquire)
    }

    /// Returns the clock of the database minus the uptime of the machine, in microseconds; `None` if it is unknown.
    #[must_use]
    pub fn database_clock(&self) -> Option<i64> {
        let ahead = self.head(header::AHEAD).load(Ordering::Acquire).cast_signed();
        (ahead != i64::MIN).then_some(ahead)
    }

    /// Returns whether this is the key that was proven. Compares in constant time.
    #[must_use]
    pub fn is_of<T>(&self, proven: &Proven<T>, presented: &[u8]) -> bool {
        blake3::Hash::from_bytes(self.key.digest(presented)) == blake3::Hash::from_bytes(proven.digest)
    }

    /// Returns the published state of a prefix, as of one instant at which the memory was fresh. The record of a proven
    /// key is copied into `bytes`.
    #[must_use]
    pub fn find<'b>(&self, uptime_ms: u64, prefix: &[u8], bytes: &'b mut Vec<u8>) -> Found<'b> {
        let Some(sequence) = self.begin(uptime_ms) else { return Found::Doubt };
        let state = self.search(prefix, bytes);
        match (state, self.is_unchanged_since(sequence)) {
            (Some(State::Absent), true) => Found::Absent,
            (Some(State::Known), true) => Found::Known,
            (Some(State::Proven), true) => {
                Proven::decode(bytes).map_or(Found::Doubt, |proven| Found::Proven(Box::new(proven)))
            }
            _ => Found::Doubt,
        }
    }

    /// Returns the sequence number; `None` if there can be no answer now.
    fn begin(&self, uptime_ms: u64) -> Option<u64> {
        // The heartbeat is read before the rows, so that the rows are at least as new.
        let beat = self.heartbeat();
        let fresh = self.head(header::FRESH).load(Ordering::Relaxed).min(FRESH_MS);
        // A heartbeat in the future is not from the clock of this machine.
        let alive = beat != 0 && uptime_ms.checked_sub(beat).is_some_and(|age| age <= fresh);
        let sequence = self.head(header::SEQUENCE).load(Ordering::Acquire);
        let open = self.head(header::STATE).load(Ordering::Relaxed) == OPEN;
        (alive && sequence.is_multiple_of(2) && open && self.is_unchanged_since(sequence)).then_some(sequence)
    }

    fn is_unchanged_since(&self, sequence: u64) -> bool {
        // All words that were read belong to this number if the number is still the same afterwards.
        fence(Ordering::Acquire);
        self.head(header::SEQUENCE).load(Ordering::Relaxed) == sequence
    }

    /// Searches for a prefix; `None` if the memory is damaged. The record of a proven key is copied into `bytes`.
    fn search(&self, prefix: &[u8], bytes: &mut Vec<u8>) -> Option<State> {
        let (first, fingerprint) = self.key.place(prefix);
        for step in 0..=self.mask.min(MOST_STEPS) {
            let at = usize::try_from(first.wrapping_add(step) & self.mask).ok()?;
            match self.word(header::LEN + at)?.load(Ordering::Acquire) {
                0 => return Some(State::Absent),
                GONE => {}
                word if Slot::of(word).fingerprint != fingerprint => {}
                word if Slot::of(word).record == 0 => return Some(State::Known),
                word => {
                    self.record(Slot::of(word).record, bytes)?;
                    // Otherwise another prefix has the same fingerprint.
                    if Proven::is_about(bytes, prefix) {
                        return Some(State::Proven);
                    }
                }
            }
        }
        // The writer always leaves an empty slot, so this table is damaged, or too full to be searched.
        None
    }

    /// Copies the record at a place; `None` if it is not what the writer wrote there.
    fn record(&self, place: u32, bytes: &mut Vec<u8>) -> Option<()> {
        record(self.memory.words(), &self.key, place, bytes)
    }

    fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.memory.words().get(at)
    }

    fn head(&self, at: usize) -> &AtomicU64 {
        // `new` has checked that the header is complete.
        &self.memory.words()[at]
    }
}

/// Replaces `bytes` by the record at a place; `None` if its hash is wrong.
pub(crate) fn record(words: &[AtomicU64], key: &MemoryKey, place: u32, bytes: &mut Vec<u8>) -> Option<()> {
    let start = usize::try_from(place).ok()?;
    let head = words.get(start..start.checked_add(RECORD_HEAD)?)?;
    let [len, low, high] = [0, 1, 2].map(|at| head[at].load(Ordering::Relaxed));
    let len = usize::try_from(len).ok().filter(|len| *len <= MOST_BYTES)?;
    let body = words.get(start + RECORD_HEAD..)?.get(..len.div_ceil(8))?;
    bytes.clear();
    bytes.reserve(body.len() * 8);
    for word in body {
        bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    bytes.truncate(len);
    (key.seal(place, bytes) == [low, high]).then_some(())
}
