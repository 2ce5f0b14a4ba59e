//! The check path: decides on one request.
//!
//! ```text
//! request ─► look up the key ─► recall its proof ─► decide ─► Verdict     (microseconds, nothing awaited)
//!               ▲                                     │
//!               └──────── prove (bcrypt) ◄── secret not verified yet
//! ```
//!
//! A [`Verdict`] borrows from the [`View`] that it was made on, without copies or reference counts: the caller renders
//! the response, and then [records](Gate::record) the verdict. The only async code is [`Gate::wait_for_verdict`], which
//! waits for what a verdict still needs. After a proof everything is looked up again, so a key that was revoked while
//! bcrypt ran is rejected.
//!
//! Until the first load, requests wait, up to their own deadline and for at most two seconds.
//!
//! Depends on: the replica and the verifier. It does not wait for the database, and does not know Envoy.

mod access;
mod stats;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::Guard;
use tokio::time::{Instant, timeout_at};

pub use self::access::{Terms, access};
pub use self::stats::Stats;
use crate::clock::{Clock, Moment, Timestamp};
use crate::decision::{Access, Decision, Facts, Fault, FoundKey, Freshness, Grant, Proof, decide};
use crate::key::PresentedKey;
use crate::last_used::LastUsed;
use crate::memo_writer::MemoWriter;
use crate::policy::{self, Routing};
use crate::replica::{KeyEntry, Replica, Snapshot, TenantEntry};
use crate::request::{AccessRequest, Credential};
use crate::tenant::Mode;
use crate::usage::Usage;
use crate::verify::{ClientNetwork, Verifier};

/// Options of the gate.
#[derive(Clone, Copy, Debug)]
pub struct GateOptions {
    /// The maximum age of the last successful poll for which known keys are allowed.
    pub max_staleness: Duration,
    /// Whether rejections are enforced.
    pub mode: Mode,
    /// How requests are matched with rules.
    pub policy: policy::PolicyOptions,
}

impl Default for GateOptions {
    fn default() -> Self {
        Self {
            max_staleness: Duration::from_mins(5),
            mode: Mode::Enforce,
            policy: policy::PolicyOptions::default(),
        }
    }
}

/// A decision, with the data that the response needs.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'v> {
    /// The decision.
    pub decision: Decision<'v>,
    /// The tenant of the key, with its cached response fragments.
    pub tenant: Option<&'v TenantEntry>,
    /// The terms of the key; empty until it is proven.
    pub terms: Terms<'v>,
    /// The time of the decision, by the wall clock.
    pub at: Timestamp,
    used: Option<(&'v Arc<KeyEntry>, PresentedKey<'v>)>,
}

/// The most rounds of [`Gate::wait_for_verdict`]: a row whose id, tenant or hash changes during a proof is proven
/// again.
const ROUNDS: usize = 4;

/// How long after its start a process lets requests wait for the first load. Loading a million keys takes as long.
const STARTING: Duration = Duration::from_secs(2);

/// The event that a verdict must wait for.
#[derive(Debug)]
pub enum Pending<'a> {
    /// The first load.
    Rows,
    /// A proof of this key.
    Proof(Arc<KeyEntry>, PresentedKey<'a>),
}

/// Receives proven keys, so that they can be published to the module inside Envoy.
pub trait ProofSink: Send + Sync {
    /// Receives a key that was proven for this row. Called once for each entry of the replica.
    fn proven(&self, entry: &Arc<KeyEntry>, presented: PresentedKey<'_>);

    /// Called when a Check has `context_extensions` on a route that the module may decide on: the configuration of the
    /// module is wrong.
    fn route_context(&self);
}

/// Decides on requests.
pub struct Gate {
    replica: Replica,
    verifier: Verifier,
    last_used: LastUsed,
    memos: MemoWriter,
    usage: Option<Usage>,
    proof_sink: Option<Arc<dyn ProofSink>>,
    clock: Arc<dyn Clock>,
    options: GateOptions,
    stats: Arc<Stats>,
    /// The uptime until which requests wait for the first load.
    starts_until: Duration,
}

impl Gate {
    /// Creates a gate.
    #[must_use]
    pub fn new(
        replica: Replica,
        verifier: Verifier,
        last_used: LastUsed,
        memos: MemoWriter,
        clock: Arc<dyn Clock>,
        options: GateOptions,
    ) -> Self {
        let starts_until = clock.uptime() + STARTING;
        let (usage, proof_sink, stats) = (None, None, Arc::default());
        Self { replica, verifier, last_used, memos, usage, proof_sink, clock, options, stats, starts_until }
    }

    /// Makes the gate also count requests by key and reason; not if `usage` is `None`.
    #[must_use]
    pub fn counting(self, usage: Option<Usage>) -> Self {
        Self { usage, ..self }
    }

    /// Returns the same gate, which passes proven keys to `proof_sink`.
    #[must_use]
    pub fn with_proof_sink(self, proof_sink: Option<Arc<dyn ProofSink>>) -> Self {
        Self { proof_sink, ..self }
    }

    /// Returns the counters.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Returns a view of the current snapshot and time. Must not be held across an await.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        // The clocks are read once for a verdict, and once more to measure its latency.
        let moment = Moment::of(self.clock.as_ref());
        self.view_since(moment, moment.uptime())
    }

    fn view_since(&self, moment: Moment, started: Duration) -> View<'_> {
        let (freshness, snapshot) = self.replica.view(&moment, self.options.max_staleness);
        View { gate: self, snapshot, freshness, moment, started, proven: None, unable: None }
    }

    /// Waits until `deadline` for what a verdict on `request` still needs. Returns a view whose [`View::judge`]
    /// succeeds for this request.
    pub async fn wait_for_verdict<'g>(
        &'g self,
        request: &AccessRequest<'_>,
        address: &(dyn Fn() -> Option<IpAddr> + Sync),
        deadline: Instant,
    ) -> View<'g> {
        let started = self.clock.uptime();
        let mut proven = None;
        for _ in 0..ROUNDS {
            let pending = {
                let view = View { proven, ..self.view_since(Moment::of(self.clock.as_ref()), started) };
                match view.judge(request, address).map(|_| ()) {
                    Ok(()) => return view,
                    Err(pending) => pending,
                }
            };
            proven = match pending {
                Pending::Rows if self.loaded(deadline).await => None,
                Pending::Rows => return self.unable(Fault::NeverLoaded, started),
                Pending::Proof(entry, presented) => {
                    let (subject, client) = (Arc::<KeyEntry>::clone(&entry), ClientNetwork::from(address()));
                    Some((entry, self.verifier.prove(subject, presented, client, deadline).await))
                }
            };
        }
        self.unable(Fault::Overloaded, started)
    }

    /// Waits for the first load. Returns whether it happened.
    async fn loaded(&self, deadline: Instant) -> bool {
        let left = self.starts_until.saturating_sub(self.clock.uptime());
        let mut generation = self.replica.generation();
        let first = generation.wait_for(|generation| *generation > 0);
        matches!(timeout_at(deadline.min(Instant::now() + left), first).await, Ok(Ok(_)))
    }

    fn unable(&self, fault: Fault, started: Duration) -> View<'_> {
        View { unable: Some(fault), ..self.view_since(Moment::of(self.clock.as_ref()), started) }
    }

    /// Returns the verdict on a request that could not be parsed. It is a rejection in every mode, because the
    /// headers to remove are unknown.
    #[must_use]
    pub fn undecidable_verdict(&self, fault: Fault) -> Verdict<'static> {
        let (decision, terms, at) = (Decision::Unable(fault, None), Terms::default(), self.clock.now());
        Verdict { decision, tenant: None, terms, at, used: None }
    }

    /// Records a verdict after the response was rendered: counters, the latency since `started`, the use of the key,
    /// a missing memo, and usage.
    pub fn record(&self, verdict: &Verdict<'_>, started: Duration) {
        if let (Decision::Allow(Grant::Tenant(..) | Grant::RuleShadow(..)), Some((entry, presented))) =
            (verdict.decision, verdict.used)
        {
            self.last_used.touch(entry, verdict.at);
            // The memo saves bcrypt in the next process.
            if entry.take_memo_due() {
                self.memos.note(entry.record(), presented);
            }
        }
        if let (Some(proof_sink), Some((entry, presented))) = (&self.proof_sink, verdict.used) {
            let known = verdict.decision.identity().is_some();
            if known && entry.take_publish_due() {
                proof_sink.proven(entry, presented);
            }
        }
        self.stats.count(&verdict.decision);
        if let Some(usage) = &self.usage {
            usage.count(&verdict.decision, verdict.at);
        }
        self.stats.latency.record(self.clock.uptime().saturating_sub(started));
    }
}

/// The snapshot and the time that a verdict is based on.
pub struct View<'g> {
    gate: &'g Gate,
    snapshot: Guard<Arc<Snapshot>>,
    freshness: Freshness,
    moment: Moment,
    started: Duration,
    /// The result of the proof that was just made for this request.
    proven: Option<(Arc<KeyEntry>, Proof)>,
    /// Why the request cannot be decided any more; then every verdict is this fault.
    unable: Option<Fault>,
}

impl View<'_> {
    /// Returns the uptime at which the decision on the request started.
    #[must_use]
    pub fn started(&self) -> Duration {
        self.started
    }

    /// Decides on a request. `address` returns the client's address; it is called only for keys that have networks.
    ///
    /// # Errors
    ///
    /// Returns what the verdict must wait for; [`Gate::wait_for_verdict`] waits for it.
    pub fn judge<'v, 'a: 'v>(
        &'v self,
        request: &AccessRequest<'a>,
        address: &dyn Fn() -> Option<IpAddr>,
    ) -> Result<Verdict<'v>, Pending<'a>> {
        if let Some(fault) = self.unable {
            return Ok(self.verdict(Decision::Unable(fault, None), Terms::default(), None, None));
        }
        let context = &request.context;
        if context.is_set()
            && !context.left_by_module
            && let Some(proof_sink) = &self.gate.proof_sink
        {
            proof_sink.route_context();
        }
        let routing = Routing::of(self.snapshot.routes(), self.gate.options.policy, request);
        let entry = named(&self.snapshot, request);
        let tenant = entry.and_then(|(entry, _)| self.snapshot.tenant(entry.record().tenant_id));
        let mut terms = Terms::default();
        let found = entry.map(|(entry, presented)| {
            let (tenant, proof) = (tenant.map(TenantEntry::tenant), self.proof(entry, presented));
            let mut found = FoundKey { key: entry.record(), tenant, proof, access: Access::FREE };
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
            (Some(Decision::Unable(Fault::NeverLoaded, _)), _) if self.is_starting() => Err(Pending::Rows),
            (Some(decision), _) => Ok(self.verdict(decision, terms, tenant, entry)),
            (None, Some((entry, presented))) => Err(Pending::Proof(Arc::clone(entry), presented)),
            // Unreachable: `decide` returns `None` only if a key was found.
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
        used: Option<(&'v Arc<KeyEntry>, PresentedKey<'v>)>,
    ) -> Verdict<'v> {
        let decision = decision.in_mode(self.gate.options.mode);
        Verdict { decision, tenant, terms, at: self.moment.now(), used }
    }

    fn is_starting(&self) -> bool {
        self.moment.uptime() < self.gate.starts_until
    }

    /// Returns whether the presented secret is right, as far as known from the row or from the proof for this
    /// request.
    fn proof(&self, entry: &KeyEntry, presented: PresentedKey<'_>) -> Proof {
        match (self.gate.verifier.recall(entry, presented), &self.proven) {
            (Proof::Pending, Some((before, proof))) if entry.inherit(before) => *proof,
            (recalled, _) => recalled,
        }
    }
}

/// Returns the entry with the presented prefix, and the presented key.
fn named<'s, 'a>(
    snapshot: &'s Snapshot,
    request: &AccessRequest<'a>,
) -> Option<(&'s Arc<KeyEntry>, PresentedKey<'a>)> {
    let Credential::Presented(presented) = request.credential else { return None };
    Some((snapshot.key(presented.prefix())?, presented))
}

#[cfg(test)]
mod tests;
