//! How is one request checked?
//!
//! ```text
//! request ─► look up ─► recall the verdict ─► decide ─► answer      (microseconds, nothing awaited)
//!               ▲                                │
//!               └──── prove (bcrypt) ◄── possession not proven yet
//! ```
//!
//! The only place that strings these together, and the only async on the way. A
//! decision borrows from the snapshot it was made on, so the answer is made
//! before the snapshot is let go, and nothing is copied or counted up for it.
//! After a proof everything is looked up again: what was revoked while bcrypt was
//! running is revoked.
//!
//! A process that has only just started has not loaded anything yet, and will have in a moment: then who asks is
//! let wait for that, as long as he can.
//!
//! Nothing here awaits a database or knows what Envoy is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::clock::{Clock, Moment, Timestamp};
use crate::decision::{Decision, Facts, Fault, Found, Freshness, Grant, Objection, Proof, Reason, decide};
use crate::key::PresentedKey;
use crate::memos::Memos;
use crate::replica::{Entry, Replica, Said, Snapshot, TenantEntry};
use crate::request::{AccessRequest, Credential};
use crate::stats::{Count, Spread};
use crate::tenant::Mode;
use crate::usage::Usage;
use crate::verify::Verifier;

/// How requests are judged.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How old the last good look at the database may be for known keys to pass.
    pub max_staleness: Duration,
    /// What becomes of requests that are to be refused.
    pub mode: Mode,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_staleness: Duration::from_mins(5), mode: Mode::Enforce }
    }
}

/// What was decided, and how long it took.
#[derive(Debug, Default)]
pub struct Stats {
    /// Allowed as a tenant.
    pub ok: Count,
    /// Allowed as nobody.
    pub public: Count,
    /// Allowed as nobody in shadow mode, in the order of [`Reason::ALL`] and the undecided ones after them.
    pub shadow: [Count; Reason::ALL.len() + 1],
    /// Denied, in the order of [`Reason::ALL`].
    pub denied: [Count; Reason::ALL.len()],
    /// Not decided, in the order of [`Fault::ALL`]; [`Stats::excused`] of them passed all the same.
    pub unable: [Count; Fault::ALL.len()],
    /// From having read the request to having made the answer.
    pub latency: Spread,
}

impl Stats {
    /// Requests that could not be decided and passed in shadow mode.
    #[must_use]
    pub fn excused(&self) -> &Count {
        &self.shadow[Reason::ALL.len()]
    }

    /// The number of decisions so far.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.latency.buckets().map(|(_, count)| count).sum()
    }

    fn count(&self, decision: &Decision<'_>) {
        match decision {
            Decision::Allow(Grant::Tenant(..)) => self.ok.add_one(),
            Decision::Allow(Grant::Public) => self.public.add_one(),
            Decision::Allow(Grant::Shadow(Objection::Denied(denial))) => {
                self.shadow[place(&Reason::ALL, &denial.reason)].add_one();
            }
            Decision::Allow(Grant::Shadow(Objection::Unable(fault, _))) => {
                self.unable[place(&Fault::ALL, fault)].add_one();
                self.shadow[Reason::ALL.len()].add_one();
            }
            Decision::Deny(denial) => self.denied[place(&Reason::ALL, &denial.reason)].add_one(),
            Decision::Unable(fault, _) => self.unable[place(&Fault::ALL, fault)].add_one(),
        }
    }
}

fn place<T: PartialEq>(all: &[T], one: &T) -> usize {
    all.iter().position(|other| other == one).unwrap_or(0)
}

/// A decision, for who says it.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// What was decided.
    pub decision: &'a Decision<'a>,
    /// What was said before of the tenant that the key belongs to.
    pub said: Option<&'a Said>,
    /// When, by the wall clock.
    pub at: Timestamp,
}

/// A row that changes its key, tenant or hash while it is being proven is proven again, but not for ever.
const ROUNDS: usize = 4;

/// How long after its start a process lets requests wait for the first load: that of a million keys takes as long.
const STARTING: Duration = Duration::from_secs(2);

/// What a decision has to wait for.
enum Lacking<'a> {
    /// The first load.
    Rows,
    /// A proof of this key.
    Proof(Arc<Entry>, PresentedKey<'a>),
    /// Nothing that would come.
    Nothing,
}

/// Checks requests.
pub struct Gate {
    replica: Replica,
    verifier: Verifier,
    usage: Usage,
    memos: Memos,
    clock: Arc<dyn Clock>,
    options: Options,
    stats: Arc<Stats>,
    /// Until when it starts, by the uptime.
    starts_until: Duration,
}

impl Gate {
    /// A gate on these machines.
    #[must_use]
    pub fn new(
        replica: Replica,
        verifier: Verifier,
        usage: Usage,
        memos: Memos,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Self {
        let starts_until = clock.uptime() + STARTING;
        Self { replica, verifier, usage, memos, clock, options, stats: Arc::default(), starts_until }
    }

    /// What was decided so far.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Checks a request and lets `answer` say the decision; nothing when that must wait for something.
    pub fn check_now<R>(
        &self,
        request: &AccessRequest<'_>,
        answer: impl FnOnce(&Judged<'_>) -> R,
    ) -> Option<R> {
        let now = self.moment();
        self.attempt(request, now, now.uptime(), None, answer).ok()
    }

    /// Checks a request and lets `answer` say the decision. A first load or proof is waited for until `deadline`.
    pub async fn check<R>(
        &self,
        request: &AccessRequest<'_>,
        deadline: Instant,
        answer: impl Fn(&Judged<'_>) -> R,
    ) -> R {
        let started = self.clock.uptime();
        let mut proven: Option<(Arc<Entry>, Proof)> = None;
        for _ in 0..ROUNDS {
            let lacking = match self.attempt(request, self.moment(), started, proven.as_ref(), &answer) {
                Ok(answer) => return answer,
                Err(lacking) => lacking,
            };
            match lacking {
                Lacking::Rows if self.loaded(deadline).await => {}
                Lacking::Rows => return self.unable(Fault::NeverLoaded, answer),
                Lacking::Proof(entry, presented) => {
                    let proof = self.verifier.prove(Arc::<Entry>::clone(&entry), presented, deadline).await;
                    proven = Some((entry, proof));
                }
                Lacking::Nothing => break,
            }
        }
        self.unable(Fault::Overloaded, answer)
    }

    /// Waits for the first load. Returns whether it came.
    async fn loaded(&self, deadline: Instant) -> bool {
        let left = self.starts_until.saturating_sub(self.clock.uptime());
        let mut generation = self.replica.generation();
        let first = generation.wait_for(|generation| *generation > 0);
        matches!(timeout_at(deadline.min(Instant::now() + left), first).await, Ok(Ok(_)))
    }

    /// What is answered when not even the request is known: never yes, in no mode, since nothing could be taken off it.
    pub fn unread<R>(&self, fault: Fault, answer: impl FnOnce(&Judged<'_>) -> R) -> R {
        let (now, decision) = (self.moment(), Decision::Unable(fault, None));
        self.say(now.uptime(), Judged { decision: &decision, said: None, at: now.now() }, answer)
    }

    fn unable<R>(&self, fault: Fault, answer: impl FnOnce(&Judged<'_>) -> R) -> R {
        let (now, decision) = (self.moment(), Decision::Unable(fault, None));
        self.finish(None, now.uptime(), Judged { decision: &decision, said: None, at: now.now() }, answer)
    }

    /// The clocks are asked once for a decision, and once more for how long it took.
    fn moment(&self) -> Moment {
        Moment::of(self.clock.as_ref())
    }

    /// The answer, or what it has to wait for.
    fn attempt<'a, R>(
        &self,
        request: &AccessRequest<'a>,
        now: Moment,
        started: Duration,
        proven: Option<&(Arc<Entry>, Proof)>,
        answer: impl FnOnce(&Judged<'_>) -> R,
    ) -> Result<R, Lacking<'a>> {
        let (freshness, snapshot) = self.replica.view(&now, self.options.max_staleness);
        let entry = named(&snapshot, request);
        let tenant = entry.and_then(|(entry, _)| snapshot.tenant(entry.record().tenant_id));
        let found = entry.map(|(entry, presented)| {
            let proof = self.proof(entry, presented, proven);
            Found { key: entry.record(), tenant: tenant.map(TenantEntry::tenant), proof }
        });
        match decide(&self.facts(request, now, freshness, found)) {
            Some(Decision::Unable(Fault::NeverLoaded, _)) if now.uptime() < self.starts_until => {
                Err(Lacking::Rows)
            }
            Some(decision) => {
                let said = tenant.map(TenantEntry::said);
                Ok(self.finish(entry, started, Judged { decision: &decision, said, at: now.now() }, answer))
            }
            None => Err(entry
                .map_or(Lacking::Nothing, |(entry, presented)| Lacking::Proof(Arc::clone(entry), presented))),
        }
    }

    fn facts<'a>(
        &self,
        request: &AccessRequest<'a>,
        now: Moment,
        freshness: Freshness,
        found: Option<Found<'a>>,
    ) -> Facts<'a> {
        Facts {
            public: request.public,
            credential: request.credential,
            freshness,
            found,
            now: self.replica.now(&now),
        }
    }

    /// What is known of the caller's holding this key, also by a proof that was made for him a moment ago.
    fn proof(
        &self,
        entry: &Entry,
        presented: PresentedKey<'_>,
        proven: Option<&(Arc<Entry>, Proof)>,
    ) -> Proof {
        match (self.verifier.recall(entry, presented), proven) {
            (Proof::Pending, Some((before, proof))) if entry.inherit(before) => *proof,
            (recalled, _) => recalled,
        }
    }

    fn finish<R>(
        &self,
        entry: Option<(&Arc<Entry>, PresentedKey<'_>)>,
        started: Duration,
        judged: Judged<'_>,
        answer: impl FnOnce(&Judged<'_>) -> R,
    ) -> R {
        if let (Decision::Allow(Grant::Tenant(..)), Some((entry, presented))) = (judged.decision, entry) {
            self.usage.touch(entry, judged.at);
            // So that the next process need not ask bcrypt.
            if entry.take_memo_due() {
                self.memos.note(entry.record(), presented);
            }
        }
        let decision = &judged.decision.in_mode(self.options.mode);
        self.say(started, Judged { decision, ..judged }, answer)
    }

    /// Has a decision said that is final.
    fn say<R>(&self, started: Duration, judged: Judged<'_>, answer: impl FnOnce(&Judged<'_>) -> R) -> R {
        self.stats.count(judged.decision);
        let answer = answer(&judged);
        self.stats.latency.record(self.clock.uptime().saturating_sub(started));
        answer
    }
}

/// The key that a request names, and what it presents for it.
fn named<'s, 'a>(
    snapshot: &'s Snapshot,
    request: &AccessRequest<'a>,
) -> Option<(&'s Arc<Entry>, PresentedKey<'a>)> {
    let Credential::Presented(presented) = request.credential else { return None };
    Some((snapshot.key(presented.prefix())?, presented))
}

#[cfg(test)]
mod tests;
