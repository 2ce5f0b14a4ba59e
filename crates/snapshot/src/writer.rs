//! Writes what is published.

use std::fmt;

use crate::atomics::{AtomicU64, Memory, Ordering, fence};
use crate::layout::{FRESH_MS, GONE, Key, MAGIC, MOST_BYTES, OPEN, RECORD_HEAD, Slot, VERSION, header};
use crate::reader::record;
use crate::record::{Proven, Settings};

/// There is no room for a change. The memory stays closed for good: a larger one has to take its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shared memory is full")
    }
}

impl std::error::Error for Full {}

/// What is published about a prefix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State<'p> {
    /// No key has it.
    Absent,
    /// A key has it, and readers decide nothing about it.
    Known,
    /// A key has it, and was proven.
    Proven(&'p Proven),
}

/// The one writer of a memory.
#[derive(Debug)]
pub struct Writer<M> {
    memory: M,
    key: Key,
    mask: u64,
    /// Slots that are not empty.
    used: u64,
    /// The first word without a record.
    end: usize,
    failed: bool,
}

impl<M: Memory> Writer<M> {
    /// Makes an empty snapshot with `2^slots` slots in a memory of zeros. Readers decide nothing until
    /// [`Transaction::open`] and [`Writer::beat`].
    ///
    /// # Errors
    ///
    /// The memory is too small.
    pub fn new(memory: M, key: Key, slots: u32, settings: &Settings, fresh_ms: u64) -> Result<Self, Full> {
        let end = header::LEN + (1_usize << slots);
        let mut writer = Self { memory, key, mask: (1 << slots) - 1, used: 0, end, failed: false };
        if writer.memory.words().len() < end {
            return Err(Full);
        }
        let place = writer.append(&settings.encode())?;
        for (at, word) in [
            (header::SLOTS, u64::from(slots)),
            (header::SETTINGS, u64::from(place)),
            (header::FRESH, fresh_ms.min(FRESH_MS)),
            (header::AHEAD, i64::MIN.cast_unsigned()),
            (header::VERSION, VERSION),
            (header::MAGIC, MAGIC),
        ] {
            writer.head(at).store(word, Ordering::Release);
        }
        Ok(writer)
    }

    /// The memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Makes a change of any number of rows in one step. Readers have no answer while it is being made.
    ///
    /// # Errors
    ///
    /// There is no room. Readers have no answer any more.
    pub fn change(
        &mut self,
        make: impl FnOnce(&mut Transaction<'_, M>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        if self.failed {
            return Err(Full);
        }
        let before = self.head(header::SEQUENCE).load(Ordering::Relaxed);
        self.head(header::SEQUENCE).store(before.wrapping_add(1), Ordering::Relaxed);
        // Whoever sees a store that follows sees the odd number.
        fence(Ordering::Release);
        if make(&mut Transaction { writer: self }).is_err() {
            self.failed = true;
            return Err(Full);
        }
        self.head(header::SEQUENCE).store(before.wrapping_add(2), Ordering::Release);
        Ok(())
    }

    /// Says that everything published is as the database was when it was asked at this uptime of the machine, in
    /// milliseconds. `database_clock` is the database's clock less the uptime, in microseconds.
    pub fn beat(&self, uptime_ms: u64, database_clock: Option<i64>) {
        self.head(header::AHEAD).store(database_clock.unwrap_or(i64::MIN).cast_unsigned(), Ordering::Release);
        self.head(header::HEARTBEAT).store(uptime_ms, Ordering::Release);
    }

    /// Ends this memory: readers have no answer from now on.
    pub fn close(&self) {
        self.head(header::STATE).store(0, Ordering::Release);
        self.head(header::HEARTBEAT).store(0, Ordering::Release);
    }

    /// Whether so much room is taken that a new memory should take its place before a change finds none.
    #[must_use]
    pub fn is_nearly_full(&self) -> bool {
        let words = self.memory.words().len();
        let start = header::LEN + usize::try_from(self.mask + 1).unwrap_or(usize::MAX);
        self.failed || self.used * 4 > self.mask * 3 || (self.end - start) * 4 > (words - start) * 3
    }

    fn append(&mut self, bytes: &[u8]) -> Result<u32, Full> {
        let place = u32::try_from(self.end).map_err(|_| Full)?;
        let len = RECORD_HEAD + bytes.len().div_ceil(8);
        let room = self.memory.words().get(self.end..self.end + len).ok_or(Full)?;
        if bytes.len() > MOST_BYTES {
            return Err(Full);
        }
        let [low, high] = self.key.seal(place, bytes);
        let head = [u64::try_from(bytes.len()).unwrap_or(u64::MAX), low, high];
        let body = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        // The slot that names the record is stored afterwards, and orders these.
        for (place, word) in room.iter().zip(head.into_iter().chain(body)) {
            place.store(word, Ordering::Relaxed);
        }
        self.end += len;
        Ok(place)
    }

    /// Takes the seal off a record that is not true any more. A slot that comes to name it by damage then finds nothing.
    fn void(&self, place: u32) {
        let head = usize::try_from(place).ok().and_then(|at| self.memory.words().get(at..at + RECORD_HEAD));
        for word in head.unwrap_or_default() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// The slot in which a prefix stands. Keys without a record and with the same fingerprint are all alike, and any of
    /// their slots will do.
    fn slot_of(&self, prefix: &[u8], proven: bool) -> Option<usize> {
        let (first, fingerprint) = self.key.place(prefix);
        for step in 0..=self.mask {
            let at = header::LEN + usize::try_from(first.wrapping_add(step) & self.mask).ok()?;
            let word = self.memory.words()[at].load(Ordering::Relaxed);
            let slot = Slot::of(word);
            if word == 0 {
                return None;
            }
            if word == GONE || slot.fingerprint != fingerprint || (slot.record != 0) != proven {
                continue;
            }
            if !proven || self.is_about(slot.record, prefix) {
                return Some(at);
            }
        }
        None
    }

    fn is_about(&self, place: u32, prefix: &[u8]) -> bool {
        let proven = record(self.memory.words(), &self.key, place).and_then(|bytes| Proven::decode(&bytes));
        proven.is_some_and(|proven| proven.prefix.as_bytes() == prefix)
    }

    fn free_slot(&mut self, prefix: &[u8]) -> Result<usize, Full> {
        // An empty slot has to remain: it ends every search.
        if self.used >= self.mask {
            return Err(Full);
        }
        let (first, _) = self.key.place(prefix);
        for step in 0..=self.mask {
            let at = usize::try_from(first.wrapping_add(step) & self.mask).map_err(|_| Full)? + header::LEN;
            if self.memory.words()[at].load(Ordering::Relaxed) == 0 {
                self.used += 1;
                return Ok(at);
            }
        }
        Err(Full)
    }

    fn head(&self, at: usize) -> &AtomicU64 {
        &self.memory.words()[at]
    }
}

/// A change that is being made.
#[derive(Debug)]
pub struct Transaction<'w, M> {
    writer: &'w mut Writer<M>,
}

impl<M: Memory> Transaction<'_, M> {
    /// Lets readers decide, or not.
    pub fn open(&mut self, open: bool) {
        self.writer.head(header::STATE).store(if open { OPEN } else { 0 }, Ordering::Relaxed);
    }

    /// Publishes a state of a prefix that had the state `before`.
    ///
    /// # Errors
    ///
    /// There is no room, or the prefix did not have that state.
    pub fn set(&mut self, prefix: &str, before: State<'_>, next: State<'_>) -> Result<(), Full> {
        let (writer, prefix) = (&mut *self.writer, prefix.as_bytes());
        let record = match next {
            State::Proven(proven) => writer.append(&proven.encode())?,
            State::Absent | State::Known => 0,
        };
        let at = match before {
            State::Absent if matches!(next, State::Absent) => return Ok(()),
            State::Absent => writer.free_slot(prefix)?,
            State::Known => writer.slot_of(prefix, false).ok_or(Full)?,
            State::Proven(_) => {
                let at = writer.slot_of(prefix, true).ok_or(Full)?;
                writer.void(Slot::of(writer.memory.words()[at].load(Ordering::Relaxed)).record);
                at
            }
        };
        let word = match next {
            State::Absent => GONE,
            State::Known | State::Proven(_) => {
                Slot { fingerprint: writer.key.place(prefix).1, record }.word()
            }
        };
        writer.memory.words()[at].store(word, Ordering::Release);
        Ok(())
    }
}
