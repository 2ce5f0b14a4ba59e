//! The writer of the shared memory.

use std::fmt;

use crate::atomics::{AtomicU64, Memory, Ordering, fence};
use crate::layout::{FRESH_MS, GONE, MAGIC, MOST_BYTES, MemoryKey, OPEN, RECORD_HEAD, Slot, VERSION, header};
use crate::reader::record;
use crate::record::{Proven, Settings};

/// The error for a change that does not fit. The memory stays closed: a larger one must replace it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shared memory is full")
    }
}

impl std::error::Error for Full {}

/// The published state of a prefix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State<'p> {
    /// There is no key with this prefix.
    Absent,
    /// There is a key with this prefix, and readers must ask the server about it.
    Known,
    /// There is a key with this prefix, and it was proven.
    Proven(&'p Proven),
}

/// The only writer of a memory.
#[derive(Debug)]
pub struct Writer<M> {
    memory: M,
    key: MemoryKey,
    mask: u64,
    /// The number of slots that are not empty.
    used: u64,
    /// The index of the first word after the records.
    end: usize,
    failed: bool,
}

impl<M: Memory> Writer<M> {
    /// Creates an empty snapshot with `2^slots` slots in a memory of zeros. Readers give no answer until
    /// [`Transaction::open`] and [`Writer::beat`]. `fresh_ms` is the maximum age of a heartbeat in milliseconds, at
    /// most [`FRESH_MS`].
    ///
    /// # Errors
    ///
    /// The memory is too small.
    pub fn new(
        memory: M,
        key: MemoryKey,
        slots: u32,
        settings: &Settings,
        fresh_ms: u64,
    ) -> Result<Self, Full> {
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

    /// Returns the memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Changes any number of rows in one step. Readers give no answer meanwhile.
    ///
    /// # Errors
    ///
    /// There is no room. Readers give no answer from now on.
    pub fn change(
        &mut self,
        make: impl FnOnce(&mut Transaction<'_, M>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        if self.failed {
            return Err(Full);
        }
        let before = self.head(header::SEQUENCE).load(Ordering::Relaxed);
        self.head(header::SEQUENCE).store(before.wrapping_add(1), Ordering::Relaxed);
        // A reader that sees a later store also sees the odd number.
        fence(Ordering::Release);
        if make(&mut Transaction { writer: self }).is_err() {
            self.failed = true;
            return Err(Full);
        }
        self.head(header::SEQUENCE).store(before.wrapping_add(2), Ordering::Release);
        Ok(())
    }

    /// Records that the memory equals the database as of this uptime of the machine, in milliseconds. `database_clock`
    /// is the clock of the database minus the uptime, in microseconds.
    pub fn beat(&self, uptime_ms: u64, database_clock: Option<i64>) {
        self.head(header::AHEAD).store(database_clock.unwrap_or(i64::MIN).cast_unsigned(), Ordering::Release);
        self.head(header::HEARTBEAT).store(uptime_ms, Ordering::Release);
    }

    /// Closes this memory: readers give no answer from now on.
    pub fn close(&self) {
        self.head(header::STATE).store(0, Ordering::Release);
        self.head(header::HEARTBEAT).store(0, Ordering::Release);
    }

    /// Returns whether the memory is so full that a new one should replace it before a change does not fit.
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
        // The slot of the record is stored afterwards, with release ordering.
        for (place, word) in room.iter().zip(head.into_iter().chain(body)) {
            place.store(word, Ordering::Relaxed);
        }
        self.end += len;
        Ok(place)
    }

    /// Removes the seal of a replaced record, so that a damaged slot that leads to it finds nothing.
    fn void(&self, place: u32) {
        let head = usize::try_from(place).ok().and_then(|at| self.memory.words().get(at..at + RECORD_HEAD));
        for word in head.unwrap_or_default() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Returns the slot of a prefix. Keys without a record that have the same fingerprint are indistinguishable, so any
    /// of their slots is returned.
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
        let mut bytes = Vec::new();
        let is_whole = record(self.memory.words(), &self.key, place, &mut bytes).is_some();
        is_whole && Proven::is_about(&bytes, prefix)
    }

    fn free_slot(&mut self, prefix: &[u8]) -> Result<usize, Full> {
        // One slot must stay empty, because an empty slot ends a search.
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

/// A change in progress.
#[derive(Debug)]
pub struct Transaction<'w, M> {
    writer: &'w mut Writer<M>,
}

impl<M: Memory> Transaction<'_, M> {
    /// Sets whether readers may decide.
    pub fn open(&mut self, open: bool) {
        self.writer.head(header::STATE).store(if open { OPEN } else { 0 }, Ordering::Relaxed);
    }

    /// Replaces the state `before` of a prefix by another one.
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
