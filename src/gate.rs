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
//! Nothing here awaits a database or knows what Envoy is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;
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

/// A row that changes its key, tenant or hash while it is being proven is proven again, but not for ever.
const ROUNDS: usize = 3;

/// Checks requests.
pub struct Gate {
    replica: Replica,
    verifier: Verifier,
    usage: Usage,
    memos: Memos,
    clock: Arc<dyn Clock>,
    options: Options,
    stats: Arc<Stats>,
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
        Self { replica, verifier, usage, memos, clock, options, stats: Arc::default() }
    }

    /// What was decided so far.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Checks a request and lets `answer` say the decision, with what it has already made of the tenant at hand;
    /// nothing when possession must be proven first.
    pub fn check_now<R>(
        &self,
        request: &AccessRequest<'_>,
        answer: impl FnOnce(&Decision<'_>, Option<&Said>) -> R,
    ) -> Option<R> {
        self.attempt(request, Instant::now(), None, answer).ok()
    }

    /// Checks a request and lets `answer` say the decision. A first proof is waited for until `deadline`.
    pub async fn check<R>(
        &self,
        request: &AccessRequest<'_>,
        deadline: Instant,
        answer: impl Fn(&Decision<'_>, Option<&Said>) -> R,
    ) -> R {
        let started = Instant::now();
        let mut proven: Option<(Arc<Entry>, Proof)> = None;
        for _ in 0..ROUNDS {
            let unproven = match self.attempt(request, started, proven.as_ref(), &answer) {
                Ok(answer) => return answer,
                Err(unproven) => unproven,
            };
            let Some((entry, presented)) = unproven else { break };
            let proof = self.verifier.prove(Arc::<Entry>::clone(&entry), presented, deadline).await;
            proven = Some((entry, proof));
        }
        self.unable(Fault::Overloaded, answer)
    }

    /// What is answered when answering itself went wrong: never yes.
    pub fn unable<R>(&self, fault: Fault, answer: impl FnOnce(&Decision<'_>, Option<&Said>) -> R) -> R {
        self.finish(None, Instant::now(), &Decision::Unable(fault, None), |decision| answer(decision, None))
    }

    /// The answer, or the key whose possession must be proven first.
    fn attempt<'a, R>(
        &self,
        request: &AccessRequest<'a>,
        started: Instant,
        proven: Option<&(Arc<Entry>, Proof)>,
        answer: impl FnOnce(&Decision<'_>, Option<&Said>) -> R,
    ) -> Result<R, Option<(Arc<Entry>, PresentedKey<'a>)>> {
        let (freshness, snapshot) = self.replica.view(self.clock.as_ref(), self.options.max_staleness);
        let entry = named(&snapshot, request);
        let tenant = entry.and_then(|(entry, _)| snapshot.tenant(entry.record().tenant_id));
        let found = entry.map(|(entry, presented)| {
            let proof = self.proof(entry, presented, proven);
            Found { key: entry.record(), tenant: tenant.map(TenantEntry::tenant), proof }
        });
        match decide(&self.facts(request, freshness, found)) {
            Some(decision) => {
                let said = tenant.map(TenantEntry::said);
                Ok(self.finish(entry, started, &decision, |decision| answer(decision, said)))
            }
            None => Err(entry.map(|(entry, presented)| (Arc::clone(entry), presented))),
        }
    }

    fn facts<'a>(
        &self,
        request: &AccessRequest<'a>,
        freshness: Freshness,
        found: Option<Found<'a>>,
    ) -> Facts<'a> {
        Facts {
            public: request.public,
            credential: request.credential,
            freshness,
            found,
            now: self.replica.now(self.clock.as_ref()),
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
        started: Instant,
        decision: &Decision<'_>,
        answer: impl FnOnce(&Decision<'_>) -> R,
    ) -> R {
        if let (Decision::Allow(Grant::Tenant(..)), Some((entry, presented))) = (decision, entry) {
            self.usage.touch(entry, self.clock.now());
            // So that the next process need not ask bcrypt.
            if entry.take_memo_due() {
                self.memos.note(entry.record(), presented);
            }
        }
        let decision = &decision.in_mode(self.options.mode);
        self.stats.count(decision);
        let answer = answer(decision);
        self.stats.latency.record(started.elapsed());
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
