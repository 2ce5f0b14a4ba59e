//! Counts decisions.

use crate::decision::{Decision, Fault, Grant, Objection, Reason};
use crate::stats::{Counter, Histogram};

/// Counts of decisions, and their latency.
#[derive(Debug, Default)]
pub struct Stats {
    /// Allowed as a tenant.
    pub ok: Counter,
    /// Allowed without an identity.
    pub public: Counter,
    /// Allowed without an identity: the key is optional and missing.
    pub anonymous: Counter,
    /// Allowed as a tenant although a rule in shadow mode would deny it. Part of [`Stats::ok`].
    pub rule_shadow: Counter,
    /// Allowed by shadow mode: one counter for each of [`Reason::ALL`] in its order, then one for undecided requests.
    pub shadow: [Counter; Reason::ALL.len() + 1],
    /// Denied: one counter for each of [`Reason::ALL`], in its order.
    pub denied: [Counter; Reason::ALL.len()],
    /// Undecided: one counter for each of [`Fault::ALL`], in its order. Includes [`Stats::shadow_undecided`].
    pub unable: [Counter; Fault::ALL.len()],
    /// The time from the parsed request to the rendered response.
    pub latency: Histogram,
}

impl Stats {
    /// Returns the counter of undecided requests that shadow mode allowed.
    #[must_use]
    pub fn shadow_undecided(&self) -> &Counter {
        &self.shadow[Reason::ALL.len()]
    }

    /// Returns the number of decisions so far.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.latency.buckets().map(|(_, count)| count).sum()
    }

    pub(super) fn count(&self, decision: &Decision<'_>) {
        match decision {
            Decision::Allow(Grant::Tenant(..)) => self.ok.add_one(),
            Decision::Allow(Grant::RuleShadow(..)) => {
                self.ok.add_one();
                self.rule_shadow.add_one();
            }
            Decision::Allow(Grant::Public) => self.public.add_one(),
            Decision::Allow(Grant::Anonymous) => self.anonymous.add_one(),
            Decision::Allow(Grant::Shadow(Objection::Denied(denial))) => {
                self.shadow[index_of(&Reason::ALL, &denial.reason)].add_one();
            }
            Decision::Allow(Grant::Shadow(Objection::Unable(fault, _))) => {
                self.unable[index_of(&Fault::ALL, fault)].add_one();
                self.shadow[Reason::ALL.len()].add_one();
            }
            Decision::Deny(denial) => self.denied[index_of(&Reason::ALL, &denial.reason)].add_one(),
            Decision::Unable(fault, _) => self.unable[index_of(&Fault::ALL, fault)].add_one(),
        }
    }
}

fn index_of<T: PartialEq>(all: &[T], one: &T) -> usize {
    all.iter().position(|other| other == one).unwrap_or(0)
}
