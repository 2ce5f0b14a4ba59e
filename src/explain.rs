//! Explains why a request gets its answer.
//!
//! Collects the facts about one key as a server would have them, decides with the same function as requests
//! ([`decide`]) in the mode of the server and the tenant, and walks the outcome table beside it ([`rows`]). The same
//! code as in `serve` verifies the secret. If only a prefix is known, both cases are explained: the right secret and a
//! wrong one.
//!
//! ```text
//! prefix ─► row, memo, tenant, plans, rules ─► as of --at ─► recall / prove ─► decide ─► in_mode
//!                                                                         └──► rows::walk
//! ```
//!
//! The rows become a [`Snapshot`], so that profiles, plans and rules are compiled and matched as in a server.
//!
//! Nothing is changed: a proof made here is not stored. Depends on: no SQL, no HTTP, no output format.

mod explainer;

use std::net::IpAddr;
use std::sync::Arc;

pub use self::explainer::Explainer;
use crate::clock::Timestamp;
use crate::decision::rows::{self, OutcomeRow, Step};
use crate::decision::{Decision, Facts, Fault, FoundKey, Freshness, Proof, decide};
use crate::gate::{Terms, access};
use crate::policy::{self, Routing};
use crate::profile::ProfileRow;
use crate::record::KeyDetails;
use crate::replica::{Snapshot, TenantEntry};
use crate::request::{AccessRequest, Credential};
use crate::tenant::{Mode, Tenant};

/// The request to explain.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The request.
    pub request: AccessRequest<'a>,
    /// The address of its client.
    pub address: Option<IpAddr>,
    /// How requests are matched with rules.
    pub policy: policy::PolicyOptions,
    /// Whether only the prefix of its key is known, so that the secret is a placeholder.
    pub stand_in: bool,
    /// The time for which to decide; `None` for now.
    pub at: Option<Timestamp>,
    /// The assumed freshness of the replica.
    pub freshness: Freshness,
    /// The mode of the server.
    pub mode: Mode,
}

/// The presenter of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Presenter {
    /// There is no key.
    Nobody,
    /// The secret makes no difference.
    Anybody,
    /// The holder of the given key.
    Holder,
    /// A client with the right secret.
    RightSecret,
    /// A client with a wrong secret.
    WrongSecret,
}

impl Presenter {
    /// The text in output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "no key",
            Self::Anybody => "any secret",
            Self::Holder => "this key",
            Self::RightSecret => "the right secret",
            Self::WrongSecret => "a wrong secret",
        }
    }
}

/// The facts for one way to present the key.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// Its presenter.
    pub presenter: Presenter,
    question: Question<'a>,
    /// The rows that matter to the request.
    snapshot: Arc<Snapshot>,
    proof: Proof,
    now: Timestamp,
}

impl Case<'_> {
    fn facts(&self) -> (Facts<'_>, Terms<'_>) {
        let Question { request, address, policy, freshness, .. } = &self.question;
        let (snapshot, mut terms) = (&*self.snapshot, Terms::default());
        let routing = Routing::of(snapshot.routes(), *policy, request);
        let prefix = match request.credential {
            Credential::Presented(presented) => Some(presented.prefix()),
            Credential::Malformed | Credential::Missing => None,
        };
        let found = prefix.and_then(|prefix| snapshot.key(prefix)).map(|entry| {
            let tenant = snapshot.tenant(entry.record().tenant_id).map(TenantEntry::tenant);
            let (access, told) = access(snapshot, &routing, (entry, tenant), &|| *address);
            if self.proof == Proof::Right {
                terms = told;
            }
            FoundKey { key: entry.record(), tenant, proof: self.proof, access }
        });
        let (credential, freshness) = (request.credential, *freshness);
        (Facts { entrance: routing.entrance, credential, freshness, found, now: self.now }, terms)
    }

    /// Returns the decision in the mode of the server and the tenant, and the facts about the key that Envoy gets.
    pub fn decision(&self) -> (Decision<'_>, Terms<'_>) {
        let (facts, terms) = self.facts();
        // The fallback is not reached, because no proof is pending here.
        let decision = decide(&facts).unwrap_or(Decision::Unable(Fault::Overloaded, None));
        (decision.in_mode(self.question.mode), terms)
    }

    /// Returns every row of the outcome table with its result.
    #[must_use]
    pub fn rows(&self) -> [(OutcomeRow, Step); OutcomeRow::ALL.len()] {
        rows::walk(&self.facts().0)
    }

    /// Returns what in the request, and in the rule that wins for it, decided a row.
    fn because(&self, row: OutcomeRow) -> Option<String> {
        let Question { request, policy, .. } = &self.question;
        let routes = self.snapshot.routes();
        let rule = || {
            let entry = Routing::of(routes, *policy, request).entry?;
            Some((entry, entry.name.as_deref().map_or_else(|| entry.id.0.to_string(), str::to_owned)))
        };
        match row {
            OutcomeRow::Ambiguous => {
                policy::target(routes, *policy, request).err().map(|why| why.to_string())
            }
            OutcomeRow::BadContext => request
                .context
                .fault
                .map(|name| format!("{name} is unknown, repeated, or has an invalid value")),
            OutcomeRow::RouteDamaged => {
                let (entry, name) = rule()?;
                Some(match &entry.rule {
                    Err(damage) => format!("rule {name}: {damage}"),
                    Ok(_) => format!("rule {name} is valid"),
                })
            }
            OutcomeRow::Scope => {
                let by_rule = rule().map(|(entry, name)| match entry.needs() {
                    Some(needs) => format!("rule {name} needs {:?}", needs.to_string()),
                    None => format!("rule {name} needs no scope"),
                });
                let by_envoy = request
                    .context
                    .needs
                    .map(|needs| format!("tenantgate.scopes needs {:?}", needs.as_str()));
                let both: Vec<_> = by_rule.into_iter().chain(by_envoy).collect();
                Some(if both.is_empty() { "no rule matches".into() } else { both.join(", ") })
            }
            _ => None,
        }
    }
}

/// The facts about a key, and the resulting cases.
#[derive(Debug)]
pub struct Explanation<'a> {
    /// The time for which it was decided.
    pub judged_at: Timestamp,
    /// The key as it is now.
    pub key: Option<KeyDetails>,
    /// Its tenant as it is now.
    pub tenant: Option<Tenant>,
    /// The assumed address of the client.
    pub address: Option<IpAddr>,
    /// The cases.
    pub cases: Vec<Case<'a>>,
    /// Further remarks.
    pub notes: Vec<String>,
}

impl Explanation<'_> {
    /// Returns what decided a row of a case: values in the database, and parts of the request.
    #[must_use]
    pub fn because(&self, case: &Case<'_>, row: OutcomeRow, step: Step) -> Option<String> {
        // Of a row that does not hold, only the values of the key are of interest.
        let of_request = || case.because(row).filter(|_| step == Step::Held || row == OutcomeRow::Scope);
        let of_request = (step != Step::NotReached).then(of_request).flatten();
        let values: Vec<_> = self.of_key(row, step).into_iter().chain(of_request).collect();
        (!values.is_empty()).then(|| values.join("; "))
    }

    /// Returns the values in the database that decided a row.
    fn of_key(&self, row: OutcomeRow, step: Step) -> Option<String> {
        let key = self.key.as_ref().filter(|_| step != Step::NotReached)?;
        match row {
            OutcomeRow::Revoked => Some(match (key.revoked_at, &key.revocation_reason) {
                (None, _) => "revoked_at is NULL".into(),
                (Some(at), None) => format!("revoked_at {at}"),
                (Some(at), Some(why)) => format!("revoked_at {at}, {why:?}"),
            }),
            OutcomeRow::Expired => Some(match key.expires_at {
                None => "it never expires".into(),
                Some(at) => format!("expires_at {at}"),
            }),
            OutcomeRow::Disabled => Some(match key.disabled_at {
                None => "disabled_at is NULL".into(),
                Some(at) => format!("disabled_at {at}"),
            }),
            OutcomeRow::NotYetValid => Some(match key.terms.not_before {
                None => "not_before is NULL".into(),
                Some(at) => format!("not_before {at}"),
            }),
            OutcomeRow::Network => Some(match (&key.terms.networks, self.address) {
                (None, _) => "networks is NULL: anywhere".into(),
                (Some(networks), None) => {
                    format!("networks {networks}; the address is not known: give --client-address")
                }
                (Some(networks), Some(address)) => format!("networks {networks}, address {address}"),
            }),
            OutcomeRow::Scope => Some(match &key.terms.scopes {
                None => "scopes is NULL: everything".into(),
                Some(scopes) => format!("scopes {scopes:?}"),
            }),
            OutcomeRow::KeyDamaged => {
                Some(match (ProfileRow { unreadable: key.unreadable, ..key.terms.profile() }).compile() {
                    Err(damage) => damage.to_string(),
                    Ok(_) if step == Step::Held => {
                        let tenant = self.tenant.as_ref().and_then(|tenant| tenant.plan.as_deref());
                        format!("the plan {:?} is damaged or missing", key.terms.plan.as_deref().or(tenant)?)
                    }
                    Ok(_) => "all are valid".into(),
                })
            }
            OutcomeRow::TenantInactive => Some(format!("status {}", self.tenant.as_ref()?.status)),
            OutcomeRow::TenantDamaged => {
                Some(self.tenant.as_ref()?.damage().unwrap_or("its row is valid").into())
            }
            _ => None,
        }
    }
}
