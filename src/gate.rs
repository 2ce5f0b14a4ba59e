//! Checks one request.
//!
//! ```text
//! request ─► look up ─► recall the verdict ─► decide ─► Verdict     (microseconds, nothing awaited)
//!               ▲                                │
//!               └──── prove (bcrypt) ◄── possession not proven yet
//! ```
//!
//! A [`Verdict`] borrows from the [`View`] that it was judged on, and nothing is copied or counted up for it: the
//! caller renders the response, then has it [recorded](Gate::record). The only code that is async here waits for what
//! a verdict still needs ([`Gate::settle`]). After a proof everything is looked up again: a key that was revoked while
//! bcrypt was running is revoked.
//!
//! Until the first load, requests wait, up to their own deadline and for two seconds at most.
//!
//! Depends on: the replica, the verifier. Awaits no database, does not know what Envoy is.

mod access;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::Guard;
use tokio::time::{Instant, timeout_at};

pub use self::access::Terms;
pub(crate) use self::access::access;
use crate::clock::{Clock, Moment, Timestamp};
use crate::decision::{
    Access, Decision, Facts, Fault, Found, Freshness, Grant, Objection, Proof, Reason, decide,
};
use crate::key::PresentedKey;
use crate::last_used::LastUsed;
use crate::memo_writer::MemoWriter;
use crate::policy::{self, Routing};
use crate::replica::{Entry, Replica, Snapshot, TenantEntry};
use crate::request::{AccessRequest, Credential};
use crate::route::Context;
use crate::stats::{Counter, Histogram};
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
    /// How requests are matched with rules.
    pub policy: policy::Options,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_staleness: Duration::from_mins(5),
            mode: Mode::Enforce,
            policy: policy::Options::default(),
        }
    }
}

/// What was decided, and how long it took.
#[derive(Debug, Default)]
pub struct Stats {
    /// Allowed as a tenant.
    pub ok: Counter,
    /// Allowed as nobody.
    pub public: Counter,
    /// Allowed as nobody, without a key where one is optional.
    pub anonymous: Counter,
    /// Allowed as a tenant, though a rule in shadow mode was to refuse it; part of [`Stats::ok`].
    pub spared: Counter,
    /// Allowed as nobody in shadow mode, in the order of [`Reason::ALL`] and the undecided ones after them.
    pub shadow: [Counter; Reason::ALL.len() + 1],
    /// Denied, in the order of [`Reason::ALL`].
    pub denied: [Counter; Reason::ALL.len()],
    /// Not decided, in the order of [`Fault::ALL`]; [`Stats::excused`] of them passed all the same.
    pub unable: [Counter; Fault::ALL.len()],
    /// From having read the request to having made the answer.
    pub latency: Histogram,
}

impl Stats {
    /// Requests that could not be decided and passed in shadow mode.
    #[must_use]
    pub fn excused(&self) -> &Counter {
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
            Decision::Allow(Grant::Spared(..)) => {
                self.ok.add_one();
                self.spared.add_one();
            }
            Decision::Allow(Grant::Public) => self.public.add_one(),
            Decision::Allow(Grant::Anonymous) => self.anonymous.add_one(),
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

/// A judgement, with what is needed to respond by it.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'v> {
    /// What was decided.
    pub decision: Decision<'v>,
    /// The tenant that the key belongs to, with the response fragments cached for it.
    pub tenant: Option<&'v TenantEntry>,
    /// What is told of the key, once it is proven.
    pub terms: Terms<'v>,
    /// When, by the wall clock.
    pub at: Timestamp,
    used: Option<(&'v Arc<Entry>, PresentedKey<'v>)>,
}

/// A row that changes its key, tenant or hash while it is being proven is proven again, but not for ever.
const ROUNDS: usize = 4;

/// How long after its start a process lets requests wait for the first load: that of a million keys takes as long.
const STARTING: Duration = Duration::from_secs(2);

/// What a verdict has to wait for.
#[derive(Debug)]
pub enum Lacking<'a> {
    /// The first load.
    Rows,
    /// A proof of this key.
    Proof(Arc<Entry>, PresentedKey<'a>),
}

/// Is told what is proven, so that it can be repeated elsewhere.
pub trait Witness: Send + Sync {
    /// The key was proven for this row. Called once for each entry of the replica.
    fn proven(&self, entry: &Arc<Entry>, presented: PresentedKey<'_>);

    /// Envoy's configuration says something of the route of a request.
    fn route_context(&self);
}

/// Checks requests.
pub struct Gate {
    replica: Replica,
    verifier: Verifier,
    last_used: LastUsed,
    memos: MemoWriter,
    usage: Option<Usage>,
    witness: Option<Arc<dyn Witness>>,
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
        last_used: LastUsed,
        memos: MemoWriter,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Self {
        let starts_until = clock.uptime() + STARTING;
        let (usage, witness, stats) = (None, None, Arc::default());
        Self { replica, verifier, last_used, memos, usage, witness, clock, options, stats, starts_until }
    }

    /// The same gate, which counts requests by key and reason, too.
    #[must_use]
    pub fn counting(mut self, usage: Usage) -> Self {
        self.usage = Some(usage);
        self
    }

    /// The same gate, which tells what is proven.
    #[must_use]
    pub fn with_witness(self, witness: Option<Arc<dyn Witness>>) -> Self {
        Self { witness, ..self }
    }

    /// What was decided so far.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// The state of everything that requests are judged by, as of now. Do not hold it across an await.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        // The clocks are read once for a verdict, and once more for how long it took.
        let moment = Moment::of(self.clock.as_ref());
        self.view_since(moment, moment.uptime())
    }

    fn view_since(&self, moment: Moment, started: Duration) -> View<'_> {
        let (freshness, snapshot) = self.replica.view(&moment, self.options.max_staleness);
        View { gate: self, snapshot, freshness, moment, started, proven: None, unable: None }
    }

    /// Waits for whatever a request still needs, until `deadline`, and returns a view that has a verdict on it.
    pub async fn settle<'g>(
        &'g self,
        request: &AccessRequest<'_>,
        address: &(dyn Fn() -> Option<IpAddr> + Sync),
        deadline: Instant,
    ) -> View<'g> {
        let started = self.clock.uptime();
        let mut proven = None;
        for _ in 0..ROUNDS {
            let lacking = {
                let view = View { proven, ..self.view_since(Moment::of(self.clock.as_ref()), started) };
                match view.judge(request, address).map(|_| ()) {
                    Ok(()) => return view,
                    Err(lacking) => lacking,
                }
            };
            proven = match lacking {
                Lacking::Rows if self.loaded(deadline).await => None,
                Lacking::Rows => return self.unable(Fault::NeverLoaded, started),
                Lacking::Proof(entry, presented) => {
                    let proof = self.verifier.prove(Arc::<Entry>::clone(&entry), presented, deadline).await;
                    Some((entry, proof))
                }
            };
        }
        self.unable(Fault::Overloaded, started)
    }

    /// Waits for the first load. Returns whether it came.
    async fn loaded(&self, deadline: Instant) -> bool {
        let left = self.starts_until.saturating_sub(self.clock.uptime());
        let mut generation = self.replica.generation();
        let first = generation.wait_for(|generation| *generation > 0);
        matches!(timeout_at(deadline.min(Instant::now() + left), first).await, Ok(Ok(_)))
    }

    fn unable(&self, fault: Fault, started: Duration) -> View<'_> {
        View { unable: Some(fault), ..self.view_since(Moment::of(self.clock.as_ref()), started) }
    }

    /// The verdict on a request that was not read. It refuses in every mode, because no header of such a request could
    /// be removed.
    #[must_use]
    pub fn unread(&self, fault: Fault) -> Verdict<'static> {
        let (decision, terms, at) = (Decision::Unable(fault, None), Terms::default(), self.clock.now());
        Verdict { decision, tenant: None, terms, at, used: None }
    }

    /// Records a verdict once the response is rendered: counters, latency since `started`, the use of the key, usage.
    pub fn record(&self, verdict: &Verdict<'_>, started: Duration) {
        if let (Decision::Allow(Grant::Tenant(..) | Grant::Spared(..)), Some((entry, presented))) =
            (verdict.decision, verdict.used)
        {
            self.last_used.touch(entry, verdict.at);
            // So that the next process need not ask bcrypt.
            if entry.take_memo_due() {
                self.memos.note(entry.record(), presented);
            }
        }
        if let (Some(witness), Some((entry, presented))) = (&self.witness, verdict.used) {
            let known = verdict.decision.identity().is_some();
            if known && entry.take_witness_due() {
                witness.proven(entry, presented);
            }
        }
        self.stats.count(&verdict.decision);
        if let Some(usage) = &self.usage {
            usage.count(&verdict.decision, verdict.at);
        }
        self.stats.latency.record(self.clock.uptime().saturating_sub(started));
    }
}

/// What requests are judged by, as of one instant.
pub struct View<'g> {
    gate: &'g Gate,
    snapshot: Guard<Arc<Snapshot>>,
    freshness: Freshness,
    moment: Moment,
    started: Duration,
    /// A proof that was made for this request a moment ago.
    proven: Option<(Arc<Entry>, Proof)>,
    /// Why no verdict can be reached any more.
    unable: Option<Fault>,
}

impl View<'_> {
    /// The uptime at which the request was first looked at.
    #[must_use]
    pub fn started(&self) -> Duration {
        self.started
    }

    /// Judges a request.
    ///
    /// # Errors
    ///
    /// What has to be waited for first: see [`Gate::settle`].
    pub fn judge<'v, 'a: 'v>(
        &'v self,
        request: &AccessRequest<'a>,
        address: &dyn Fn() -> Option<IpAddr>,
    ) -> Result<Verdict<'v>, Lacking<'a>> {
        if let Some(fault) = self.unable {
            return Ok(self.verdict(Decision::Unable(fault, None), Terms::default(), None, None));
        }
        if let Some(witness) = self.gate.witness.as_ref().filter(|_| request.context != Context::default()) {
            witness.route_context();
        }
        let routing = Routing::of(self.snapshot.routes(), self.gate.options.policy, request);
        let entry = named(&self.snapshot, request);
        let tenant = entry.and_then(|(entry, _)| self.snapshot.tenant(entry.record().tenant_id));
        let mut terms = Terms::default();
        let found = entry.map(|(entry, presented)| {
            let (tenant, proof) = (tenant.map(TenantEntry::tenant), self.proof(entry, presented));
            let mut found = Found { key: entry.record(), tenant, proof, access: Access::FREE };
            if proof == Proof::Right {
                (found.access, terms) = access(&self.snapshot, &routing, (entry, tenant), address);
            }
            found
        });
        let facts = Facts {
            entrance: routing.entrance,
            credential: request.credential,
            freshness: self.freshness,
            found,
            now: self.gate.replica.now(&self.moment),
        };
        match (decide(&facts), entry) {
            (Some(Decision::Unable(Fault::NeverLoaded, _)), _) if self.is_starting() => Err(Lacking::Rows),
            (Some(decision), _) => Ok(self.verdict(decision, terms, tenant, entry)),
            (None, Some((entry, presented))) => Err(Lacking::Proof(Arc::clone(entry), presented)),
            // Only the proof of a key that was found can be missing.
            (None, None) => {
                Ok(self.verdict(Decision::Unable(Fault::Internal, None), Terms::default(), None, None))
            }
        }
    }

    fn verdict<'v>(
        &self,
        decision: Decision<'v>,
        terms: Terms<'v>,
        tenant: Option<&'v TenantEntry>,
        used: Option<(&'v Arc<Entry>, PresentedKey<'v>)>,
    ) -> Verdict<'v> {
        let decision = decision.in_mode(self.gate.options.mode);
        Verdict { decision, tenant, terms, at: self.moment.now(), used }
    }

    fn is_starting(&self) -> bool {
        self.moment.uptime() < self.gate.starts_until
    }

    /// Whether the caller holds this key, as far as that is known; also by a proof made for this request.
    fn proof(&self, entry: &Entry, presented: PresentedKey<'_>) -> Proof {
        match (self.gate.verifier.recall(entry, presented), &self.proven) {
            (Proof::Pending, Some((before, proof))) if entry.inherit(before) => *proof,
            (recalled, _) => recalled,
        }
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
