//! How much memory peers may make the server hold.
//!
//! A call that is answered at once holds nothing afterwards. Others do: a call whose message is still arriving, one
//! that waits for a proof, a header list that is not complete, a response that the peer has not taken. All
//! connections share one [`MemoryBudget`] for these, and each connection has a small allowance of its own, so that a
//! connection that uses up the shared part cannot starve the others.
//!
//! Two rules keep one client of Envoy from hurting another one on the same connection:
//!
//! - Large calls (over [`LARGE`] bytes) may use three quarters of the budget; the rest is for ordinary calls, which
//!   are therefore not refused while large ones arrive.
//! - A full budget refuses or delays a single call. It never closes a connection, with one exception: a peer that
//!   takes no responses, which no client of Envoy can cause (CVE-2019-9517).
//!
//! A header block holds up its whole connection until it is complete (RFC 9113 §4.3), so header blocks must not wait
//! for each other without end. One of them at a time may exceed the budget, which therefore always completes and lets
//! the next one go on.
//!
//! Responses that cannot be sent, because the peer opens no flow-control window, stay inside `h2`, so they are counted
//! until they have left: see [`CountedBuf`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::Peer;

/// Bytes that a pending call takes besides its headers and its message: a task, a stream.
const CALL: usize = 4 * 1024;

/// Bytes from which on a call counts as large.
pub(super) const LARGE: usize = 64 * 1024;

/// Bytes of pending calls that each connection may hold whatever the others hold.
const OWN_CALLS: usize = 8 * CALL;

/// Bytes that an unsent response takes besides itself.
const RESPONSE: usize = 2_500;

/// Bytes of unsent responses that each connection may hold whatever the others hold.
const OWN_RESPONSES: usize = 64 * 1024;

/// Bytes of unsent responses up to which a connection is read from although the budget is used up: what opens the
/// peer's flow-control window has to be read.
const READ_WHILE_OVER: usize = 64 * 1024;

/// The slowest rate, in bytes a second, at which a header block may arrive.
const SLOWEST: u64 = 64 * 1024;

/// A number of bytes shared by all connections.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    most: usize,
    used: AtomicUsize,
    /// Whether a header block exceeds the budget: at most one at a time.
    exceeded: AtomicBool,
}

impl MemoryBudget {
    /// A budget of `most` bytes.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, used: AtomicUsize::new(0), exceeded: AtomicBool::new(false) })
    }

    /// What large calls, header lists and responses may use: the rest is kept for ordinary calls.
    fn for_large(&self) -> usize {
        self.most - self.most / 4
    }
}

/// A part of the budget, returned when it is dropped.
#[derive(Debug)]
struct Reservation {
    budget: Arc<MemoryBudget>,
    bytes: usize,
}

impl Reservation {
    fn empty(budget: &Arc<MemoryBudget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Changes its size, as long as no more than `most` bytes of the budget are used then. Returns whether it did.
    #[must_use]
    fn resize(&mut self, bytes: usize, most: usize) -> bool {
        if bytes > self.bytes {
            let by = bytes - self.bytes;
            let grown = |used: usize| used.checked_add(by).filter(|used| *used <= most);
            if self.budget.used.fetch_update(Relaxed, Relaxed, grown).is_err() {
                return false;
            }
        } else if bytes < self.bytes {
            self.budget.used.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
    }
}

/// What one connection holds, and whose connection it is.
pub(super) struct ConnectionBudget {
    /// The peer, for log lines.
    pub(super) peer: Peer,
    total: Arc<MemoryBudget>,
    /// Bytes of pending calls, up to [`OWN_CALLS`].
    own_calls: AtomicUsize,
    /// Unsent responses: their bytes in the lower half, the number of those that were sent in the upper one. One
    /// number, so that both change in one step.
    responses: AtomicU64,
    /// Whether the unsent responses found no room in the budget.
    over: AtomicBool,
    header_block: Progress,
}

/// How far the header block is that is arriving on a connection.
#[derive(Debug, Default)]
struct Progress {
    /// The number of header blocks that were accounted for before it.
    number: AtomicU64,
    /// Its bytes so far; 0 while none is arriving.
    bytes: AtomicU64,
    /// Whether it waits for room in the budget: the server's fault, not the peer's.
    waits: AtomicBool,
}

/// A header block that the peer has not finished yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Unfinished {
    /// Another number for each header block of a connection.
    pub(super) number: u64,
    /// Its bytes so far.
    bytes: u64,
}

impl Unfinished {
    /// How long the peer may have kept the server waiting for it: `patience`, and more for what has arrived.
    pub(super) fn time_allowed(self, patience: Duration) -> Duration {
        patience + Duration::from_secs(self.bytes / SLOWEST)
    }
}

/// A response that was sent.
const ONE_SENT: u64 = 1 << 32;

impl ConnectionBudget {
    /// The budget of a new connection.
    pub(super) fn new(total: &Arc<MemoryBudget>, peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            peer,
            total: Arc::clone(total),
            own_calls: AtomicUsize::new(0),
            responses: AtomicU64::new(0),
            over: AtomicBool::new(false),
            header_block: Progress::default(),
        })
    }

    /// Admits a pending call whose header list takes `headers` bytes. `None` if there is no room for another one.
    pub(super) fn admit(self: &Arc<Self>, headers: usize) -> Option<PendingCall> {
        let reservation = Reservation::empty(&self.total);
        let mut call = PendingCall { budget: Arc::clone(self), own: 0, bytes: 0, fixed: 0, reservation };
        let admitted = call.grow(CALL + headers);
        call.fixed = call.bytes;
        admitted.then_some(call)
    }

    /// The unsent responses beyond [`OWN_RESPONSES`].
    pub(super) fn backlog(self: &Arc<Self>) -> ResponseBacklog {
        ResponseBacklog { budget: Arc::clone(self), reservation: Reservation::empty(&self.total) }
    }

    fn excess(&self) -> usize {
        let bytes = usize::try_from(self.responses.load(Relaxed) % ONE_SENT).unwrap_or(usize::MAX);
        bytes.saturating_sub(OWN_RESPONSES)
    }

    /// A number that changes with each response that is sent; `None` unless responses pile up.
    pub(super) fn stuck_at(&self) -> Option<u64> {
        (self.excess() > 0).then(|| self.responses.load(Relaxed) / ONE_SENT)
    }

    /// The header block that the peer has not finished; `None` if there is none, or if it waits for room.
    pub(super) fn unfinished_header_block(&self) -> Option<Unfinished> {
        let Progress { number, bytes, waits } = &self.header_block;
        let unfinished = Unfinished { number: number.load(Relaxed), bytes: bytes.load(Relaxed) };
        (unfinished.bytes > 0 && !waits.load(Relaxed)).then_some(unfinished)
    }

    /// Whether half of what all connections share is in use.
    pub(super) fn is_scarce(&self) -> bool {
        self.total.used.load(Relaxed) >= self.total.most / 2
    }

    /// Whether responses pile up for which the budget has no room.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    /// Whether further calls may be read.
    pub(super) fn may_read(&self) -> bool {
        !self.is_over() || self.excess() <= READ_WHILE_OVER
    }
}

/// The memory of a pending call, returned when it is dropped.
pub(super) struct PendingCall {
    budget: Arc<ConnectionBudget>,
    own: usize,
    bytes: usize,
    /// Those of `bytes` that are no part of the message.
    fixed: usize,
    reservation: Reservation,
}

impl PendingCall {
    /// Adds bytes to the call. Returns whether there was room for them.
    #[must_use]
    pub(super) fn grow(&mut self, by: usize) -> bool {
        let own_calls = &self.budget.own_calls;
        let more = |used: usize| Some((used + by).min(OWN_CALLS));
        let before = own_calls.fetch_update(Relaxed, Relaxed, more).unwrap_or(OWN_CALLS);
        let own = by.min(OWN_CALLS - before);
        let total = &self.budget.total;
        let most = if self.bytes + by > LARGE { total.for_large() } else { total.most };
        let fits = self.reservation.resize(self.reservation.bytes + (by - own), most);
        if fits {
            self.own += own;
            self.bytes += by;
        } else {
            own_calls.fetch_sub(own, Relaxed);
        }
        fits
    }

    /// Returns what the call does not need any more, if its message takes `message` bytes from now on.
    pub(super) fn shrink_to(&mut self, message: usize) {
        let freed = self.bytes.saturating_sub(self.fixed + message).min(self.reservation.bytes);
        if self.reservation.resize(self.reservation.bytes - freed, usize::MAX) {
            self.bytes -= freed;
        }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.budget.own_calls.fetch_sub(self.own, Relaxed);
    }
}

/// The memory of a header block that is still arriving, returned when it is dropped.
pub(super) struct HeaderBlock {
    budget: Arc<ConnectionBudget>,
    reservation: Reservation,
    /// Whether it is the one that exceeds the budget.
    exceeds: bool,
}

impl HeaderBlock {
    /// A header block of no bytes.
    pub(super) fn new(budget: &Arc<ConnectionBudget>) -> Self {
        Self { budget: Arc::clone(budget), reservation: Reservation::empty(&budget.total), exceeds: false }
    }

    /// Records that `arrived` bytes of it have arrived, which may take `memory` bytes. Returns whether there is room:
    /// the budget has some, or no other header block exceeds the budget.
    #[must_use]
    pub(super) fn resize(&mut self, arrived: usize, memory: usize) -> bool {
        let budget = Arc::clone(&self.budget);
        let (total, progress) = (&budget.total, &budget.header_block);
        let arrived = u64::try_from(arrived).unwrap_or(u64::MAX);
        if progress.bytes.swap(arrived, Relaxed) > arrived {
            progress.number.fetch_add(1, Relaxed);
        }
        let fits = self.reservation.resize(memory, total.for_large());
        if !fits && !self.exceeds {
            self.exceeds = total.exceeded.compare_exchange(false, true, Relaxed, Relaxed).is_ok();
        } else if fits && memory == 0 {
            self.release();
        }
        let has_room = fits || (self.exceeds && self.reservation.resize(memory, usize::MAX));
        progress.waits.store(!has_room, Relaxed);
        has_room
    }

    fn release(&mut self) {
        if std::mem::take(&mut self.exceeds) {
            self.budget.total.exceeded.store(false, Relaxed);
        }
    }
}

impl Drop for HeaderBlock {
    fn drop(&mut self) {
        self.release();
    }
}

/// Responses of a connection that wait for the peer to take them.
pub(super) struct ResponseBacklog {
    budget: Arc<ConnectionBudget>,
    reservation: Reservation,
}

impl ResponseBacklog {
    /// Accounts for the responses that wait now: see [`ConnectionBudget::is_over`].
    pub(super) fn account(&mut self) {
        let most = self.reservation.budget.for_large();
        let fits = self.reservation.resize(self.budget.excess(), most);
        if self.budget.is_over() == fits {
            self.budget.over.store(!fits, Relaxed);
        }
    }
}

/// Bytes to be sent, counted until they are.
pub(super) struct CountedBuf {
    bytes: Bytes,
    counted: Option<(Arc<ConnectionBudget>, u64)>,
}

impl CountedBuf {
    /// A response, counted until it is sent or discarded.
    pub(super) fn response(bytes: Bytes, budget: Arc<ConnectionBudget>) -> Self {
        let weight = u64::try_from(bytes.len() + RESPONSE).unwrap_or(0);
        budget.responses.fetch_add(weight, Relaxed);
        Self { bytes, counted: Some((budget, weight)) }
    }
}

/// Not counted: what belongs to a pending call is counted with the call.
impl From<Bytes> for CountedBuf {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, counted: None }
    }
}

impl Drop for CountedBuf {
    fn drop(&mut self) {
        if let Some((budget, weight)) = &self.counted {
            budget.responses.fetch_add(ONE_SENT - weight, Relaxed);
        }
    }
}

impl Buf for CountedBuf {
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

    fn connection(budget: &Arc<MemoryBudget>) -> Arc<ConnectionBudget> {
        ConnectionBudget::new(budget, Peer::Unknown)
    }

    #[test]
    fn a_budget_has_an_end_and_gets_back_what_was_reserved() {
        let budget = MemoryBudget::new(100);
        let [mut one, mut other] = [(); 2].map(|()| Reservation::empty(&budget));
        assert!(
            one.resize(60, 100) && !one.resize(101, 100) && !other.resize(41, 100) && other.resize(40, 100)
        );
        assert!(!one.resize(61, 100) && one.resize(10, 100) && other.resize(90, 100) && !one.resize(11, 100));
        drop(other);
        assert!(!one.resize(91, 90) && one.resize(100, 100) && !one.resize(usize::MAX, 100));
        drop(one);
        assert_eq!(budget.used.load(Relaxed), 0);
    }

    #[test]
    fn a_connection_that_uses_up_the_budget_does_not_starve_the_others() {
        let budget = MemoryBudget::new(10 * CALL);
        let [greedy, other] = [(); 2].map(|()| connection(&budget));
        let all: Vec<_> = std::iter::from_fn(|| greedy.admit(0)).collect();
        assert_eq!(all.len(), 8 + 10);
        let mut theirs: Vec<_> = std::iter::from_fn(|| other.admit(0)).collect();
        assert_eq!(theirs.len(), 8);
        assert!(!theirs[0].grow(1), "no more");
        drop(all);
        assert!(theirs[0].grow(10 * CALL) && !theirs[1].grow(1));
        drop(theirs);
        assert!(greedy.own_calls.load(Relaxed) == 0 && other.own_calls.load(Relaxed) == 0);
        assert_eq!(budget.used.load(Relaxed), 0);
    }

    #[test]
    fn large_calls_leave_room_for_ordinary_ones() {
        let budget = MemoryBudget::new(16 * LARGE);
        let connection = connection(&budget);
        let _own: Vec<_> = (0..8).map(|_| connection.admit(0).unwrap()).collect();
        let mut large: Vec<_> = (0..12).map(|_| connection.admit(0).unwrap()).collect();
        let grown = large.iter_mut().filter_map(|call| call.grow(LARGE).then_some(())).count();
        assert_eq!(grown, 11, "three quarters of sixteen, less what the twelve took before");
        assert!(!large[0].grow(LARGE), "no more large ones");
        let ordinary: Vec<_> = std::iter::from_fn(|| connection.admit(0)).collect();
        assert!(ordinary.len() > 50, "{}", ordinary.len());
        large[0].shrink_to(0);
        assert!(large[1].grow(LARGE - 2 * CALL) || budget.used.load(Relaxed) > budget.for_large());
        drop((large, ordinary));
        assert_eq!(budget.used.load(Relaxed), 0);
    }

    #[test]
    fn one_header_block_at_a_time_may_exceed_the_budget_so_that_one_always_completes() {
        let budget = MemoryBudget::new(1000);
        let connections = [(); 3].map(|()| connection(&budget));
        let [mut one, mut two, mut three] = connections.each_ref().map(HeaderBlock::new);
        assert!(one.resize(300, 300) && two.resize(300, 300), "both have room");
        assert!(one.resize(500, 500), "exceeds 750");
        assert!(!two.resize(310, 310) && !three.resize(1, 1), "they wait");
        assert!(one.resize(100_000, 100_000), "goes on to its end");
        let unfinished = connections.each_ref().map(|c| c.unfinished_header_block().map(|u| u.bytes));
        assert_eq!(unfinished, [Some(100_000), None, None], "those that wait are not the peer's fault");
        assert!(
            one.resize(0, 0) && two.resize(310, 310) && three.resize(600, 600),
            "the next one exceeds it"
        );
        assert!(!one.resize(1000, 1000) && !two.resize(320, 320));
        drop(three);
        assert!(two.resize(320, 320) && one.resize(1000, 1000));
        drop((one, two));
        assert_eq!((budget.used.load(Relaxed), budget.exceeded.load(Relaxed)), (0, false));
    }

    #[test]
    fn a_header_block_has_a_number_and_time_for_what_has_arrived() {
        let connection = connection(&MemoryBudget::new(1 << 20));
        let mut block = HeaderBlock::new(&connection);
        assert!(connection.unfinished_header_block().is_none());
        assert!(block.resize(10, 10) && block.resize(128 * 1024, 20));
        let first = connection.unfinished_header_block().unwrap();
        assert_eq!(first.time_allowed(Duration::from_secs(10)), Duration::from_secs(12));
        assert!(block.resize(0, 0) && connection.unfinished_header_block().is_none());
        assert!(block.resize(5, 5));
        let second = connection.unfinished_header_block().unwrap();
        assert!(second.number != first.number);
        assert_eq!(second.time_allowed(Duration::from_secs(10)), Duration::from_secs(10));
    }

    #[test]
    fn a_response_is_counted_until_it_is_sent() {
        let (budget, count) = (MemoryBudget::new(4_000), 40);
        let connection = connection(&budget);
        let mut backlog = connection.backlog();
        let response = || CountedBuf::response(Bytes::from(vec![0; 100]), Arc::clone(&connection));
        let mut responses: Vec<_> = (0..count).map(|_| response()).collect();
        let expected = count * (RESPONSE + 100) - OWN_RESPONSES;
        assert_eq!((connection.excess(), connection.stuck_at()), (expected, Some(0)));
        backlog.account();
        assert!(connection.is_over() && connection.may_read());
        let mut last = responses.remove(0);
        last.advance(100);
        drop(CountedBuf::from(Bytes::from_static(b"not counted")));
        assert_eq!(connection.excess(), expected, "it is not sent yet");
        drop(last);
        assert_eq!(connection.stuck_at(), Some(1));
        responses.truncate(26);
        backlog.account();
        assert!(connection.excess() > 0 && !connection.is_over());
        assert_eq!(budget.used.load(Relaxed), connection.excess());
        responses.extend((0..READ_WHILE_OVER / RESPONSE).map(|_| response()));
        assert!(connection.may_read(), "not accounted for yet");
        backlog.account();
        assert!(!connection.may_read(), "no peer that reads has so many");
        drop(responses);
        assert_eq!((connection.excess(), connection.stuck_at()), (0, None));
        backlog.account();
        assert!(
            !connection.is_over()
                && connection.may_read()
                && !connection.is_scarce()
                && budget.used.load(Relaxed) == 0
        );
    }
}
