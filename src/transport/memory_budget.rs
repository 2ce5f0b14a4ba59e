//! Bounds the memory that peers can make the server hold.
//!
//! A call that is answered at once holds no memory afterwards. Other things do: a call whose message is still
//! arriving or that waits for a proof, an incomplete header list, a response that the peer has not read. All
//! connections share one [`MemoryBudget`] for these. Each connection also has a small allowance of its own, so that a
//! connection that uses up the shared part cannot starve the others.
//!
//! Two rules prevent one client of Envoy from affecting another one on the same connection:
//!
//! - Large calls (over [`LARGE`] bytes) may use three quarters of the budget. The rest is for ordinary calls, so
//!   that they are not rejected while large ones arrive.
//! - A full budget rejects or delays a single call. It never closes a connection, except for a peer that does not
//!   read its responses, which no client of Envoy can cause (CVE-2019-9517).
//!
//! Calls of the other services, such as health, are answered while the budget is full, because Envoy would stop using a
//! server that is only busy. Each connection may have [`OWN_OTHERS`] of them at a time besides.
//!
//! A header block blocks its whole connection until it is complete (RFC 9113 §4.3), so header blocks must not wait
//! for each other forever. One header block at a time may exceed the budget. It therefore always completes, and then
//! the next one may.
//!
//! Responses that cannot be sent because the peer opens no flow-control window stay inside `h2`. They are counted
//! until they are sent: see [`CountedBuf`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::Peer;

/// Bytes of a pending call besides its headers and its message: a task and a stream.
const CALL: usize = 4 * 1024;

/// A call with more bytes than this is large.
pub(super) const LARGE: usize = 64 * 1024;

/// Bytes of pending calls that each connection may hold regardless of the others.
const OWN_CALLS: usize = 8 * CALL;

/// Calls of other services that each connection may have at a time regardless of the budget. Each is small: see
/// [`call`](super::call).
const OWN_OTHERS: usize = 8;

/// Overhead of an unsent response in bytes.
const RESPONSE: usize = 2_500;

/// Bytes of unsent responses that each connection may hold regardless of the others.
const OWN_RESPONSES: usize = 64 * 1024;

/// Up to this many bytes of unsent responses, a connection is read from although the budget is used up, because the
/// frames that open the peer's flow-control window must be read.
const READ_WHILE_OVER: usize = 64 * 1024;

/// The lowest rate in bytes per second at which a header block may arrive.
const SLOWEST: u64 = 64 * 1024;

/// The bytes that all connections share.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    most: usize,
    used: AtomicUsize,
    /// Whether a header block exceeds the budget: at most one at a time.
    exceeded: AtomicBool,
}

impl MemoryBudget {
    /// Creates a budget of `most` bytes.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, used: AtomicUsize::new(0), exceeded: AtomicBool::new(false) })
    }

    /// Returns the bytes that large calls, header lists and responses may use. The rest is for ordinary calls.
    fn for_large(&self) -> usize {
        self.most - self.most / 4
    }
}

/// A reserved part of the budget, released on drop.
#[derive(Debug)]
struct Reservation {
    budget: Arc<MemoryBudget>,
    bytes: usize,
}

impl Reservation {
    fn empty(budget: &Arc<MemoryBudget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Changes the size, unless more than `most` bytes of the budget would be in use afterwards. Returns whether it
    /// was changed.
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

/// The memory that one connection holds.
pub(super) struct ConnectionBudget {
    /// The peer, for log lines.
    pub(super) peer: Peer,
    total: Arc<MemoryBudget>,
    /// Bytes of pending calls, up to [`OWN_CALLS`].
    own_calls: AtomicUsize,
    /// Calls of other services, up to [`OWN_OTHERS`].
    own_others: AtomicUsize,
    /// The bytes of unsent responses in the lower half, and the number of sent responses in the upper half. Both are
    /// in one number, so that they change atomically.
    responses: AtomicU64,
    /// Whether the budget has no room for the unsent responses.
    over: AtomicBool,
    header_block: Progress,
}

/// The header block that is arriving on a connection.
#[derive(Debug, Default)]
struct Progress {
    /// The number of earlier header blocks.
    number: AtomicU64,
    /// Its bytes so far; 0 if none is arriving.
    bytes: AtomicU64,
    /// Whether it waits for room in the budget, so that the peer is not to blame for the delay.
    waits: AtomicBool,
}

/// A header block that the peer has not finished.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Unfinished {
    /// Distinguishes the header blocks of a connection.
    pub(super) number: u64,
    /// Its bytes so far.
    bytes: u64,
}

impl Unfinished {
    /// Returns how long the peer may take for it: `patience`, plus the time for the received bytes at [`SLOWEST`].
    pub(super) fn time_allowed(self, patience: Duration) -> Duration {
        patience + Duration::from_secs(self.bytes / SLOWEST)
    }
}

/// One sent response in [`ConnectionBudget::responses`].
const ONE_SENT: u64 = 1 << 32;

impl ConnectionBudget {
    /// Creates the budget of a new connection.
    pub(super) fn new(total: &Arc<MemoryBudget>, peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            peer,
            total: Arc::clone(total),
            own_calls: AtomicUsize::new(0),
            own_others: AtomicUsize::new(0),
            responses: AtomicU64::new(0),
            over: AtomicBool::new(false),
            header_block: Progress::default(),
        })
    }

    /// Admits a pending call whose header list takes `headers` bytes. `None` if there is no room for it.
    pub(super) fn admit(self: &Arc<Self>, headers: usize) -> Option<PendingCall> {
        let reservation = Reservation::empty(&self.total);
        let mut call = PendingCall { budget: Arc::clone(self), own: 0, bytes: 0, fixed: 0, reservation };
        let admitted = call.grow(CALL + headers);
        call.fixed = call.bytes;
        admitted.then_some(call)
    }

    /// Admits a call of another service that takes at most `bytes` besides its task. `None` if there is no room for it,
    /// and [`OWN_OTHERS`] of this connection are open.
    pub(super) fn admit_other(self: &Arc<Self>, bytes: usize) -> Option<OtherCall> {
        let more = |open: usize| (open < OWN_OTHERS).then_some(open + 1);
        match self.own_others.fetch_update(Relaxed, Relaxed, more) {
            Ok(_) => Some(OtherCall::Own(Arc::clone(self))),
            Err(_) => self.admit(bytes).map(|call| OtherCall::Shared { _call: call }),
        }
    }

    /// Creates the account of the unsent responses beyond [`OWN_RESPONSES`].
    pub(super) fn backlog(self: &Arc<Self>) -> ResponseBacklog {
        ResponseBacklog { budget: Arc::clone(self), reservation: Reservation::empty(&self.total) }
    }

    fn excess(&self) -> usize {
        let bytes = usize::try_from(self.responses.load(Relaxed) % ONE_SENT).unwrap_or(usize::MAX);
        bytes.saturating_sub(OWN_RESPONSES)
    }

    /// Returns the number of sent responses, which changes as long as the peer reads; `None` if there is no backlog.
    pub(super) fn stuck_at(&self) -> Option<u64> {
        (self.excess() > 0).then(|| self.responses.load(Relaxed) / ONE_SENT)
    }

    /// Returns the header block that the peer has not finished; `None` if there is none, or if it waits for room.
    pub(super) fn unfinished_header_block(&self) -> Option<Unfinished> {
        let Progress { number, bytes, waits } = &self.header_block;
        let unfinished = Unfinished { number: number.load(Relaxed), bytes: bytes.load(Relaxed) };
        (unfinished.bytes > 0 && !waits.load(Relaxed)).then_some(unfinished)
    }

    /// Returns whether at least half of the shared budget is in use.
    pub(super) fn is_scarce(&self) -> bool {
        self.total.used.load(Relaxed) >= self.total.most / 2
    }

    /// Returns whether the budget has no room for the backlog of responses.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    /// Returns whether further calls may be read.
    pub(super) fn may_read(&self) -> bool {
        !self.is_over() || self.excess() <= READ_WHILE_OVER
    }
}

/// The memory of a pending call, released on drop.
pub(super) struct PendingCall {
    budget: Arc<ConnectionBudget>,
    own: usize,
    bytes: usize,
    /// The part of `bytes` that is not for the message.
    fixed: usize,
    reservation: Reservation,
}

impl PendingCall {
    /// Returns the peer of its connection.
    pub(super) fn peer(&self) -> &Peer {
        &self.budget.peer
    }

    /// Adds bytes to the call. Returns whether there was room; otherwise nothing changes.
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

    /// Releases memory, given that the message takes only `message` bytes from now on.
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

/// The place of a call of another service, released on drop.
pub(super) enum OtherCall {
    /// One of [`OWN_OTHERS`].
    Own(Arc<ConnectionBudget>),
    /// In the budget.
    Shared { _call: PendingCall },
}

impl Drop for OtherCall {
    fn drop(&mut self) {
        if let Self::Own(budget) = self {
            budget.own_others.fetch_sub(1, Relaxed);
        }
    }
}

/// The memory of a header block that is still arriving, released on drop.
pub(super) struct HeaderBlock {
    budget: Arc<ConnectionBudget>,
    reservation: Reservation,
    /// Whether it is the one that may exceed the budget.
    exceeds: bool,
}

impl HeaderBlock {
    /// Creates an empty header block.
    pub(super) fn new(budget: &Arc<ConnectionBudget>) -> Self {
        Self { budget: Arc::clone(budget), reservation: Reservation::empty(&budget.total), exceeds: false }
    }

    /// Records that `arrived` bytes of it have arrived, which take at most `memory` bytes. Returns whether there is
    /// room: in the budget, or because no other header block exceeds the budget.
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

/// The unsent responses of a connection beyond its own allowance.
pub(super) struct ResponseBacklog {
    budget: Arc<ConnectionBudget>,
    reservation: Reservation,
}

impl ResponseBacklog {
    /// Accounts for the current unsent responses, and updates [`ConnectionBudget::is_over`].
    pub(super) fn account(&mut self) {
        let most = self.reservation.budget.for_large();
        let fits = self.reservation.resize(self.budget.excess(), most);
        if self.budget.is_over() == fits {
            self.budget.over.store(!fits, Relaxed);
        }
    }
}

/// Bytes to be sent, counted until they are dropped.
pub(super) struct CountedBuf {
    bytes: Bytes,
    counted: Option<(Arc<ConnectionBudget>, u64)>,
}

impl CountedBuf {
    /// Creates the bytes of a response, which are counted until they are sent or discarded.
    pub(super) fn response(bytes: Bytes, budget: Arc<ConnectionBudget>) -> Self {
        let weight = u64::try_from(bytes.len() + RESPONSE).unwrap_or(0);
        budget.responses.fetch_add(weight, Relaxed);
        Self { bytes, counted: Some((budget, weight)) }
    }
}

/// Creates bytes that are not counted, because they belong to a pending call, which is.
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
mod tests;
