//! A fixed thread pool for bcrypt that survives panicking jobs.
//!
//! Each thread runs one job after the other. Callers and their deadlines belong to [`super`].

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::TryRng as _;
use rand::rngs::SysRng;
use rustix::process::{getpriority_process, setpriority_process};
use tokio::sync::watch;
use tracing::error;

use super::attempt::Attempt;
use super::memo::Seal;
use super::queue::{FairQueue, Rank, Waiting};
use super::undecided::UndecidedAttempts;
use super::wrong::WrongAttempts;
use super::{Provable, Stats, VerifyOptions, bcrypt};
use crate::decision::{Fault, Proof};
use crate::key::PlainKey;
use crate::record::SecretHash;

/// By how much bcrypt threads are nicer than the others, so that checks of proven keys are not delayed. On an idle
/// machine bcrypt is as fast as without it; when all cores are busy it still gets about a tenth of a core.
/// <https://man7.org/linux/man-pages/man7/sched.7.html>
const NICE: i32 = 10;

/// The pause after a panic, so that repeated panics do not use a whole core.
const PAUSE: Duration = Duration::from_millis(50);

/// A waiting proof.
pub(super) struct Job {
    pub(super) subject: Arc<dyn Provable>,
    pub(super) hash: SecretHash,
    pub(super) key: PlainKey,
    pub(super) seal: Seal,
    pub(super) verdict: watch::Sender<Option<Proof>>,
}

pub(super) struct BcryptPool {
    state: Mutex<PoolState>,
    work: Condvar,
    pub(super) stats: Arc<Stats>,
}

pub(super) struct PoolState {
    queue: FairQueue<Job>,
    /// Proofs that run or wait, by the seal of row and key.
    pub(super) flights: HashMap<[u8; 32], watch::Receiver<Option<Proof>>>,
    pub(super) wrong: WrongAttempts,
    pub(super) undecided: UndecidedAttempts,
    closed: bool,
}

impl PoolState {
    fn new(options: VerifyOptions) -> Self {
        Self {
            queue: FairQueue::new(options.queue, options.queue_per_key),
            flights: HashMap::new(),
            wrong: WrongAttempts::new(options.wrong_attempts),
            undecided: UndecidedAttempts::new(options.wrong_attempts),
            closed: false,
        }
    }

    /// Returns the rank of an attempt that is made now: those that are less likely guesses come first, then those that
    /// were made before.
    ///
    /// How often it was made before does not count: clients could keep others out by numbers.
    pub(super) fn rank(&mut self, seal: &Seal, attempt: &Attempt, now: Instant) -> Rank {
        self.wrong.forget_old(now);
        let suspicion = self.wrong.suspicion(attempt);
        (suspicion, Reverse(self.undecided.remember(seal, suspicion > 0)))
    }

    /// Records that the proof of a waiting attempt is also awaited by this one. It counts for the less suspicious
    /// client.
    pub(super) fn join(&mut self, seal: &Seal, attempt: Attempt, rank: Rank) {
        if let Some(waiting) = self.queue.iter_mut().find(|waiting| waiting.job.seal.is(seal)) {
            if rank.0 < waiting.rank.0 {
                (waiting.attempt, waiting.rank.0) = (attempt, rank.0);
            }
            // Also if a flood has displaced the memory of it.
            waiting.rank.1 = Reverse(true);
        }
    }

    /// Remembers a wrong attempt, and by it ranks those that wait.
    fn was_wrong(&mut self, seal: &Seal, attempt: Attempt, now: Instant) {
        self.wrong.remember(seal, attempt, now);
        for waiting in self.queue.iter_mut() {
            waiting.rank.0 = self.wrong.suspicion(&waiting.attempt);
        }
    }
}

impl BcryptPool {
    /// Starts the threads.
    pub(super) fn start(options: VerifyOptions) -> io::Result<Arc<Self>> {
        let state = Mutex::new(PoolState::new(options));
        let pool = Arc::new(Self { state, work: Condvar::new(), stats: Arc::default() });
        for n in 0..options.threads.max(1) {
            let pool = Arc::clone(&pool);
            let thread = std::thread::Builder::new().name(format!("bcrypt-{n}"));
            thread.spawn(move || pool.work_until_closed())?;
        }
        Ok(pool)
    }

    /// Ends the threads after their current jobs.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
    }

    /// Adds a job to the queue, which may drop another one for it.
    pub(super) fn add(&self, mut state: MutexGuard<'_, PoolState>, waiting: Waiting<Job>) {
        if let Some(shed) = state.queue.push(waiting, random()) {
            state.flights.remove(&shed.job.seal.as_map_key());
            self.stats.shed.add_one();
        }
        self.stats.queued.set(state.queue.len() as u64);
        drop(state);
        self.work.notify_one();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work_until_closed(&self) {
        // On Linux this applies to the calling thread. If it fails, proven keys may wait a little longer.
        let _ = getpriority_process(None).and_then(|nice| setpriority_process(None, nice + NICE));
        // A panic outside of bcrypt loses the current job; its callers get `Overloaded`.
        while catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            self.stats.panics.add_one();
            error!(part = "bcrypt", "a part of the server panicked and is restarted");
            std::thread::sleep(PAUSE);
        }
    }

    fn work(&self) {
        while let Some((attempt, job)) = self.next_job() {
            let proof = self.run(&job);
            self.finish(attempt, &job, proof);
        }
    }

    fn next_job(&self) -> Option<(Attempt, Job)> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(Waiting { attempt, job, .. }) = state.queue.pop(random()) {
                self.stats.queued.set(state.queue.len() as u64);
                return Some((attempt, job));
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs bcrypt. A panic inside is a failed proof, and the thread continues.
    fn run(&self, job: &Job) -> Proof {
        let started = Instant::now();
        let verdict = catch_unwind(AssertUnwindSafe(|| bcrypt::verify(&job.key, &job.hash)));
        self.stats.bcrypt.record(started.elapsed());
        let (index, proof) = match verdict {
            Ok(Ok(true)) => (0, Proof::Right),
            Ok(Ok(false)) => (1, Proof::Wrong),
            Ok(Err(_)) | Err(_) => (2, Proof::Impossible(Fault::DamagedRow)),
        };
        self.stats.verdicts[index].add_one();
        proof
    }

    fn finish(&self, attempt: Attempt, job: &Job, proof: Proof) {
        if proof == Proof::Right {
            job.subject.proven().note(job.seal);
        }
        let mut state = self.lock();
        if proof == Proof::Wrong {
            state.was_wrong(&job.seal, attempt, Instant::now());
        }
        state.flights.remove(&job.seal.as_map_key());
        state.undecided.forget(&job.seal);
        drop(state);
        job.verdict.send_replace(Some(proof));
    }
}

/// Returns a number for the fairness of the queue that clients cannot guess; 0 if the system has no randomness, which
/// keeps the queue bounded.
fn random() -> u64 {
    SysRng.try_next_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::IpAddr;

    use super::*;
    use crate::key::format::parse;
    use crate::verify::ClientNetwork;
    use crate::verify::memo::tests::seals;
    use crate::verify::tests::{KEY, row};

    #[test]
    fn an_attempt_that_a_second_client_makes_counts_for_the_less_suspicious_one() {
        let [guesser, other] = [1, 2].map(|n| ClientNetwork::from(Some(IpAddr::from([192, 0, n, 1]))));
        let (seals, subject, now) = (seals(5), row(4), Instant::now());
        let (key, hash) = (subject.record().id, subject.record().hash.unwrap());
        let by = |client| Attempt { client, key };
        let mut state = PoolState::new(VerifyOptions::default());
        for seal in &seals[1..] {
            state.was_wrong(seal, by(guesser), now);
        }
        let seal = seals[0];
        let plain = parse(KEY).unwrap().to_plain();
        let job = Job { subject, hash, key: plain, seal, verdict: watch::Sender::new(None) };
        let rank = state.rank(&seal, &by(guesser), now);
        assert_eq!(rank, (2, Reverse(false)));
        assert!(state.queue.push(Waiting { attempt: by(guesser), rank, job }, 0).is_none());
        let mut after = |client| {
            state.undecided.forget(&seal);
            let rank = state.rank(&seal, &by(client), now);
            assert_eq!(rank.1, Reverse(false));
            state.join(&seal, by(client), rank);
            let waiting = state.queue.iter_mut().next().unwrap();
            (waiting.attempt.client, waiting.rank)
        };
        assert_eq!(after(guesser), (guesser, (2, Reverse(true))));
        assert_eq!(after(other), (other, (1, Reverse(true))));
        assert_eq!(after(guesser), (other, (1, Reverse(true))));
    }

    #[test]
    fn numbers_cannot_be_predicted() {
        let drawn: HashSet<u64> = (0..10).map(|_| random()).collect();
        assert_eq!(drawn.len(), 10);
    }
}
