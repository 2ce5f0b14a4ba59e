//! Verifies keys with bcrypt, once per key and process.
//!
//! bcrypt takes a quarter of a second, a request a few microseconds. The verdict is therefore kept *in the row that
//! it is about* ([`Proven`]). When the row changes, a new row without a verdict replaces it, and a proof that was in
//! progress ends in the old row, which is no longer used.
//!
//! ```text
//! recall   the row has a verdict?   ── same token or seal ──► Right   0.1 µs, no lock
//!                                   └─ another one ─────────► Wrong   (guesses cost no bcrypt)
//! prove    the same guess was wrong before? ──────────────► Wrong
//!          the same proof is in progress? ── wait for it
//!          else ── queue (bounded, fair) ── own threads ── bcrypt
//! ```
//!
//! A proof continues when its callers have left, because the client's retry needs the verdict. A full queue is
//! [`Fault::Overloaded`], never a rejection. Clients that guess wait behind those that do not, and keys that nobody
//! guesses at come before the others.
//!
//! Depends on: nothing of requests, states of tenants, or databases.

mod attempt;
pub mod bcrypt;
pub mod derived;
pub mod management;
pub mod memo;
pub mod pepper;
mod pool;
mod queue;
pub mod token;
mod undecided;
mod wrong;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::watch;

use self::attempt::Attempt;
pub use self::attempt::ClientNetwork;
use self::memo::{Keyring, MemoPolicy, Seal, TokenCell};
use self::pool::{BcryptPool, Job};
use self::queue::Waiting;
use crate::decision::{Fault, Proof};
use crate::key::PresentedKey;
use crate::record::KeyRecord;
use crate::stats::{Counter, Gauge, Histogram};

/// The limits of first proofs.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Threads that run bcrypt. Defaults to one fewer than there are cores, which leaves one for proven keys.
    pub threads: usize,
    /// The maximum number of waiting proofs. With four proofs a second per thread, 64 take 16 seconds; further ones
    /// would exceed the timeout of their requests.
    pub queue: usize,
    /// The maximum number of waiting proofs of one key: different secrets, of which at most one is right.
    pub queue_per_key: usize,
    /// The number of wrong attempts that are remembered, 400 bytes each, and of undecided ones, 200 bytes each.
    pub wrong_attempts: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads: (cores - 1).max(1), queue: 64, queue_per_key: 8, wrong_attempts: 4_096 }
    }
}

/// The verdict on a row: empty until a key was proven against it, then final.
#[derive(Debug, Default)]
pub struct Proven {
    seal: OnceLock<Seal>,
    /// The token of the key that was proven, once it was presented again.
    token: TokenCell,
}

impl Proven {
    /// Returns the seal of the key that was proven.
    #[must_use]
    pub fn seal(&self) -> Option<&Seal> {
        self.seal.get()
    }

    /// Stores a proof. The first one stays; a second one for the same row could only be equal.
    pub fn note(&self, seal: Seal) {
        let _ = self.seal.set(seal);
    }
}

impl From<Option<Seal>> for Proven {
    fn from(seal: Option<Seal>) -> Self {
        Self { seal: seal.map_or_else(OnceLock::new, OnceLock::from), token: TokenCell::default() }
    }
}

/// A row that keys can be proven against.
pub trait Provable: Send + Sync {
    /// Returns the row.
    fn record(&self) -> &KeyRecord;
    /// Returns the verdict on the row.
    fn proven(&self) -> &Proven;
}

/// Counts and durations of proofs, for operators.
#[derive(Debug, Default)]
pub struct Stats {
    /// Time in bcrypt.
    pub bcrypt: Histogram,
    /// Proofs that wait for a thread.
    pub queued: Gauge,
    /// Proofs rejected because the queue was full.
    pub shed: Counter,
    /// Verdicts of bcrypt: right, wrong, failed.
    pub verdicts: [Counter; 3],
    /// Threads that were restarted after a panic.
    pub panics: Counter,
}

/// Verifies keys. Cheap to clone; the threads end with the last clone.
#[derive(Clone)]
pub struct Verifier {
    keyring: Keyring,
    pool: Arc<BcryptPool>,
    /// Ends the threads when the last clone is dropped.
    _open: Arc<PoolGuard>,
}

struct PoolGuard(Arc<BcryptPool>);

impl Drop for PoolGuard {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Verifier {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// Fails if the operating system cannot start a thread.
    pub fn start(options: VerifyOptions, keyring: Keyring) -> std::io::Result<Self> {
        let pool = BcryptPool::start(options)?;
        Ok(Self { keyring, _open: Arc::new(PoolGuard(Arc::clone(&pool))), pool })
    }

    /// Returns the counts and durations so far.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.pool.stats)
    }

    /// Returns the keyring for seals and tokens.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Returns the verdict of the row, if there is one. Takes no lock and does not allocate.
    ///
    /// If memos are required, a row without one is rejected without bcrypt, because its hash may be written by a
    /// database user without the pepper.
    ///
    /// # Security
    ///
    /// A row with a verdict rejects every other key without bcrypt. That is sound: bcrypt treats two keys as equal
    /// only beyond 71 bytes or around NUL, and neither passes the grammar of a key.
    #[must_use]
    pub fn recall(&self, subject: &dyn Provable, presented: PresentedKey<'_>) -> Proof {
        let record = subject.record();
        let Some(hash) = &record.hash else { return Proof::Impossible(Fault::DamagedRow) };
        let proven = subject.proven();
        let Some(seal) = proven.seal() else {
            let required = self.keyring.peppers().policy() == MemoPolicy::Required;
            return if required { Proof::Wrong } else { Proof::Pending };
        };
        let token = self.keyring.token(presented);
        let by_seal = || {
            let known = self.keyring.knows(seal, record, hash, presented.expose());
            if known {
                proven.token.set(token);
            }
            known
        };
        let known = proven.token.get().map_or_else(by_seal, |ours| ours.is(&token));
        if known { Proof::Right } else { Proof::Wrong }
    }

    /// Waits for the verdict of bcrypt on a key that `client` presents, until `deadline`.
    ///
    /// # Cancel safety
    ///
    /// The proof continues when the caller leaves.
    pub async fn prove(
        &self,
        subject: Arc<dyn Provable>,
        presented: PresentedKey<'_>,
        client: ClientNetwork,
        deadline: tokio::time::Instant,
    ) -> Proof {
        let mut flight = match self.board(subject, presented, client) {
            Ok(flight) => flight,
            Err(known) => return known,
        };
        let landed = tokio::time::timeout_at(deadline, flight.wait_for(Option::is_some)).await;
        match landed {
            Ok(Ok(verdict)) => verdict.unwrap_or(Proof::Impossible(Fault::Overloaded)),
            Ok(Err(_)) => Proof::Impossible(Fault::Overloaded),
            Err(_) => Proof::Impossible(Fault::DeadlineTooShort),
        }
    }

    /// Joins a proof of the same row and key, or starts one.
    fn board(
        &self,
        subject: Arc<dyn Provable>,
        presented: PresentedKey<'_>,
        client: ClientNetwork,
    ) -> Result<watch::Receiver<Option<Proof>>, Proof> {
        let Some(hash) = subject.record().hash else { return Err(Proof::Impossible(Fault::DamagedRow)) };
        let seal = self.keyring.seal(subject.record(), &hash, presented.expose());
        let mut state = self.pool.lock();
        // A proof may have ended since the caller checked; it stores its verdict before it leaves the map.
        match self.recall(subject.as_ref(), presented) {
            Proof::Pending => {}
            known => return Err(known),
        }
        if state.wrong.contains(&seal) {
            return Err(Proof::Wrong);
        }
        let attempt = Attempt { client, key: subject.record().id };
        let rank = state.rank(&seal, &attempt, Instant::now());
        // A proof without a sender was lost when its thread panicked.
        let in_progress = |flight: &&watch::Receiver<_>| flight.has_changed().is_ok();
        if let Some(flight) = state.flights.get(&seal.as_map_key()).filter(in_progress).cloned() {
            state.join(&seal, attempt, rank);
            return Ok(flight);
        }
        let (verdict, flight) = watch::channel(None);
        state.flights.insert(seal.as_map_key(), flight.clone());
        let job = Job { subject, hash, key: presented.to_plain(), seal, verdict };
        self.pool.add(state, Waiting { attempt, rank, job });
        Ok(flight)
    }
}

#[cfg(test)]
mod tests;
