//! Who runs bcrypt, and on what?
//!
//! Threads of its own, each with one job after the other, which a panic does not end. Who waits for a job, and why, is not
//! known here.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::TryRng as _;
use rand::rngs::SysRng;
use rustix::process::setpriority_process;
use tokio::sync::watch;
use tracing::error;

use super::memo::Seal;
use super::queue::FairQueue;
use super::wrong::WrongAttempts;
use super::{Options, Provable, Stats, bcrypt};
use crate::decision::{Fault, Proof};
use crate::key::PlainKey;
use crate::record::SecretHash;

/// What a thread that runs bcrypt gives way by: a proven key is answered at once, beside it or not, and where
/// the machine has nothing else to do bcrypt is as fast. A tenth of a core is left to it where all are busy.
/// <https://man7.org/linux/man-pages/man7/sched.7.html>
const NICE: i32 = 10;

/// How long a thread that panicked stands still: one that does nothing else must not take a core.
const PAUSE: Duration = Duration::from_millis(50);

/// A waiting proof.
pub(super) struct Job {
    pub(super) subject: Arc<dyn Provable>,
    pub(super) hash: SecretHash,
    pub(super) key: PlainKey,
    pub(super) seal: Seal,
    pub(super) verdict: watch::Sender<Option<Proof>>,
}

pub(super) struct Pool {
    state: Mutex<State>,
    work: Condvar,
    pub(super) stats: Arc<Stats>,
}

pub(super) struct State {
    queue: FairQueue<Job>,
    /// Proofs under way or waiting, by what they prove.
    pub(super) flights: HashMap<[u8; 32], watch::Receiver<Option<Proof>>>,
    pub(super) wrong: WrongAttempts,
    closed: bool,
}

impl Pool {
    /// Starts the threads.
    pub(super) fn start(options: Options) -> io::Result<Arc<Self>> {
        let state = State {
            queue: FairQueue::new(options.queue, options.queue_per_key),
            flights: HashMap::new(),
            wrong: WrongAttempts::new(options.wrong_attempts),
            closed: false,
        };
        let pool = Arc::new(Self { state: Mutex::new(state), work: Condvar::new(), stats: Arc::default() });
        for n in 0..options.threads.max(1) {
            let pool = Arc::clone(&pool);
            let thread = std::thread::Builder::new().name(format!("bcrypt-{n}"));
            thread.spawn(move || pool.work_until_closed())?;
        }
        Ok(pool)
    }

    /// The threads end when they have done what they are at.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
    }

    /// Puts a job into the queue, be it that another one has to go for it.
    pub(super) fn take_on(&self, mut state: MutexGuard<'_, State>, job: Job) {
        let id = job.subject.record().id;
        if let Some(shed) = state.queue.push(id, job, random()) {
            state.flights.remove(&shed.seal.as_map_key());
            self.stats.shed.add_one();
        }
        self.stats.queued.set(state.queue.len() as u64);
        drop(state);
        self.work.notify_one();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work_until_closed(&self) {
        // On Linux this is about the thread that asks. Where it is refused, proven keys wait a little longer.
        let _ = setpriority_process(None, NICE);
        // A panic between two jobs costs the one it was about: who waits for that is told that we cannot say.
        while catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            self.stats.panics.add_one();
            error!(part = "bcrypt", "a part of the server panicked and is restarted");
            std::thread::sleep(PAUSE);
        }
    }

    fn work(&self) {
        while let Some(job) = self.next_job() {
            let proof = self.run(&job);
            self.land(&job, proof);
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.queue.pop(random()) {
                self.stats.queued.set(state.queue.len() as u64);
                return Some(job);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs bcrypt. A panic in there is a failed proof, not a dead thread.
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

    fn land(&self, job: &Job, proof: Proof) {
        if proof == Proof::Right {
            job.subject.proven().note(job.seal);
        }
        let mut state = self.lock();
        if proof == Proof::Wrong {
            state.wrong.remember(&job.seal);
        }
        state.flights.remove(&job.seal.as_map_key());
        drop(state);
        job.verdict.send_replace(Some(proof));
    }
}

/// Fairness needs a number nobody can guess; without one the queue is still bounded.
fn random() -> u64 {
    SysRng.try_next_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn nobody_can_tell_who_is_drawn() {
        let drawn: HashSet<u64> = (0..10).map(|_| random()).collect();
        assert_eq!(drawn.len(), 10);
    }
}
