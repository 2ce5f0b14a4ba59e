//! What may callers make us keep?
//!
//! A call that is answered at once leaves nothing behind. One that waits does: for the rest of its message, for
//! a proof, for its caller to take the answer. All that wait, on all connections, share a [`Room`] that has an end; but
//! each connection has a little of its own, so that nobody who has filled the room is in the way of others.
//!
//! An answer that cannot be sent, because the peer opens no window for it, waits inside of `h2`, which has no bound
//! but the number of streams (CVE-2019-9517). So answers are counted until they have left: see [`Parcel`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use bytes::{Buf, Bytes};

/// Bytes that a call takes that waits, besides its message: a task, a stream, headers.
pub(super) const CALL: usize = 4 * 1024;

/// Bytes of calls that may wait on each connection, whoever has filled the room.
const FREE_CALLS: usize = 8 * CALL;

/// Bytes that an answer takes that waits, besides itself.
const ANSWER: usize = 2_500;

/// Bytes of answers that may wait on each connection, as they do on their way to a peer with small windows.
const FREE_ANSWERS: usize = 64 * 1024;

/// Bytes that callers may make us keep.
pub(super) struct Room {
    most: usize,
    taken: AtomicUsize,
}

impl Room {
    /// A room for so many bytes.
    pub(super) fn of(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: AtomicUsize::new(0) })
    }
}

/// A part of the room, until it is dropped.
struct Place {
    room: Arc<Room>,
    bytes: usize,
}

impl Place {
    fn empty(room: &Arc<Room>) -> Self {
        Self { room: Arc::clone(room), bytes: 0 }
    }

    /// Makes it so big. Returns whether there was room for that.
    #[must_use]
    fn resize(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes {
            let by = bytes - self.bytes;
            let grown = |taken: usize| taken.checked_add(by).filter(|taken| *taken <= self.room.most);
            if self.room.taken.fetch_update(Relaxed, Relaxed, grown).is_err() {
                return false;
            }
        } else if bytes < self.bytes {
            self.room.taken.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Relaxed);
    }
}

/// What one connection makes us keep.
pub(super) struct Share {
    room: Arc<Room>,
    /// Bytes of calls that wait, up to [`FREE_CALLS`].
    free_calls: AtomicUsize,
    /// Answers that have not left: their bytes in the lower half, how many others have left in the upper one. One
    /// number, so that both change in one step.
    answers: AtomicU64,
}

/// An answer that has left.
const ONE_LEFT: u64 = 1 << 32;

impl Share {
    /// That of a new connection.
    pub(super) fn of(room: &Arc<Room>) -> Arc<Self> {
        let room = Arc::clone(room);
        Arc::new(Self { room, free_calls: AtomicUsize::new(0), answers: AtomicU64::new(0) })
    }

    /// Lets a call wait, if there is room for one more.
    pub(super) fn wait(self: &Arc<Self>) -> Option<Waiting> {
        let mut waiting = Waiting { share: Arc::clone(self), free: 0, place: Place::empty(&self.room) };
        waiting.grow(CALL).then_some(waiting)
    }

    /// Where the answers wait that are too many.
    pub(super) fn backlog(self: &Arc<Self>) -> Backlog {
        Backlog { share: Arc::clone(self), place: Place::empty(&self.room) }
    }

    /// Bytes of answers that wait beyond what is usual.
    fn excess(&self) -> usize {
        let bytes = usize::try_from(self.answers.load(Relaxed) % ONE_LEFT).unwrap_or(usize::MAX);
        bytes.saturating_sub(FREE_ANSWERS)
    }

    /// Another number once an answer has left; nothing while no more wait than usual.
    pub(super) fn stuck_at(&self) -> Option<u64> {
        (self.excess() > 0).then(|| self.answers.load(Relaxed) / ONE_LEFT)
    }
}

/// A call that waits, until it is dropped.
pub(super) struct Waiting {
    share: Arc<Share>,
    free: usize,
    place: Place,
}

impl Waiting {
    /// It takes so many bytes more. Returns whether there was room for that.
    #[must_use]
    pub(super) fn grow(&mut self, by: usize) -> bool {
        let free_calls = &self.share.free_calls;
        let more = |taken: usize| Some((taken + by).min(FREE_CALLS));
        let before = free_calls.fetch_update(Relaxed, Relaxed, more).unwrap_or(FREE_CALLS);
        let free = by.min(FREE_CALLS - before);
        let fits = self.place.resize(self.place.bytes + (by - free));
        if fits {
            self.free += free;
        } else {
            free_calls.fetch_sub(free, Relaxed);
        }
        fits
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.share.free_calls.fetch_sub(self.free, Relaxed);
    }
}

/// Answers of a connection that wait for the peer to take them, beyond what is usual.
pub(super) struct Backlog {
    share: Arc<Share>,
    place: Place,
}

impl Backlog {
    /// Whether there is room for them, as many as there are now.
    #[must_use]
    pub(super) fn fits(&mut self) -> bool {
        self.place.resize(self.share.excess())
    }
}

/// Bytes on their way out.
pub(super) struct Parcel {
    bytes: Bytes,
    counted: Option<(Arc<Share>, u64)>,
}

impl Parcel {
    /// An answer that is counted until it has left, or never will.
    pub(super) fn counted(bytes: Bytes, share: Arc<Share>) -> Self {
        let weight = u64::try_from(bytes.len() + ANSWER).unwrap_or(0);
        share.answers.fetch_add(weight, Relaxed);
        Self { bytes, counted: Some((share, weight)) }
    }
}

/// What is of a call that waits is counted with that.
impl From<Bytes> for Parcel {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, counted: None }
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        if let Some((share, weight)) = &self.counted {
            share.answers.fetch_add(ONE_LEFT - weight, Relaxed);
        }
    }
}

impl Buf for Parcel {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, cnt: usize) {
        self.bytes.advance(cnt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_has_an_end_and_gets_back_what_was_taken() {
        let room = Room::of(100);
        let [mut one, mut other] = [(); 2].map(|()| Place::empty(&room));
        assert!(one.resize(60) && !one.resize(101) && !other.resize(41) && other.resize(40));
        assert!(!one.resize(61) && one.resize(10) && other.resize(90) && !one.resize(11));
        drop(other);
        assert!(one.resize(100) && !one.resize(usize::MAX));
        drop(one);
        assert_eq!(room.taken.load(Relaxed), 0);
    }

    #[test]
    fn a_connection_that_has_filled_the_room_is_in_nobodys_way() {
        let room = Room::of(10 * CALL);
        let [greedy, other] = [(); 2].map(|()| Share::of(&room));
        let all: Vec<_> = std::iter::from_fn(|| greedy.wait()).collect();
        assert_eq!(all.len(), 8 + 10);
        let mut theirs: Vec<_> = std::iter::from_fn(|| other.wait()).collect();
        assert_eq!(theirs.len(), 8);
        assert!(!theirs[0].grow(1), "no more");
        drop(all);
        assert!(theirs[0].grow(10 * CALL) && !theirs[1].grow(1));
        drop(theirs);
        assert!(greedy.free_calls.load(Relaxed) == 0 && other.free_calls.load(Relaxed) == 0);
        assert_eq!(room.taken.load(Relaxed), 0);
    }

    #[test]
    fn an_answer_is_counted_until_it_has_left() {
        let (room, count) = (Room::of(3_000), 40);
        let share = Share::of(&room);
        let mut backlog = share.backlog();
        let parcel = || Parcel::counted(Bytes::from(vec![0; 100]), Arc::clone(&share));
        let mut parcels: Vec<_> = (0..count).map(|_| parcel()).collect();
        let expected = count * (ANSWER + 100) - FREE_ANSWERS;
        assert_eq!((share.excess(), share.stuck_at()), (expected, Some(0)));
        assert!(!backlog.fits(), "{expected}");
        let mut last = parcels.remove(0);
        last.advance(100);
        drop(Parcel::from(Bytes::from_static(b"not counted")));
        assert_eq!(share.excess(), expected, "it has not left yet");
        drop(last);
        assert_eq!(share.stuck_at(), Some(1));
        parcels.truncate(26);
        assert!(share.excess() > 0 && backlog.fits() && room.taken.load(Relaxed) == share.excess());
        drop(parcels);
        assert_eq!((share.excess(), share.stuck_at()), (0, None));
        assert!(backlog.fits() && room.taken.load(Relaxed) == 0);
    }
}
