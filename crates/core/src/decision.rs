//! Decides whether a request is allowed.
//!
//! [`rows`] holds the table of outcomes: an ordered list of rows. The first row whose condition holds gives the
//! decision. [`decide`] takes the [`Facts`] and walks the table. It does no I/O, reads no clock, and knows neither HTTP
//! nor Envoy.
//!
//! ```text
//!   ambiguous path ───────────────────────────► Deny
//!   Envoy's route context is invalid ─────────► Unable
//! 1 public ───────────────────────────────────► Allow(Public)
//! 1 optional, and no key ─────────────────────► Allow(Anonymous)
//! 2 no key, 3 malformed ──────────────────────► Deny
//! 6 never loaded, too old ────────────────────► Unable
//! 4 unknown prefix (6 if stale: may be new) ──► Deny / Unable
//!   ······· from here on the secret must be verified ·······
//! 4 wrong secret, revoked, disabled, expired, not yet valid ► Deny
//! 5 tenant not active ────────────────────────► Deny
//! 6 damaged row ──────────────────────────────► Unable
//! 5 address, rule, scopes ────────────────────► Deny (6 Unable if the rule is damaged)
//! 7 otherwise ────────────────────────────────► Allow(Tenant)
//! ```
//!
//! The numbers are those of the table in the documentation. The precise reason of a denial is for operators; the
//! response to the client is less specific.
//!
//! [`Decision::in_mode`] applies shadow mode, which allows rejected requests without an identity.

mod reason;
pub mod rows;

pub use self::reason::{Fault, Reason};
use self::rows::OutcomeRow;
use crate::clock::Timestamp;
use crate::record::KeyRecord;
use crate::request::Credential;
use crate::tenant::{Mode, Tenant};

/// How current the snapshot is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Freshness {
    /// The last successful poll of the database is at most a second old.
    Fresh,
    /// No poll has succeeded yet.
    NeverLoaded,
    /// The last successful poll is older than a second, but not older than `--max-staleness`.
    Stale,
    /// The last successful poll is older than `--max-staleness`.
    TooOld,
}

/// The result of verifying the secret of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Proof {
    /// It has not been verified yet.
    Pending,
    /// The verification could not be completed.
    Impossible(Fault),
    /// The secret is right.
    Right,
    /// The secret is wrong.
    Wrong,
}

/// The row of the key whose prefix the request has, from the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct FoundKey<'a> {
    /// The row of `api_keys`.
    pub key: &'a KeyRecord,
    /// Its row of `tenants`; `None` if the row is missing, which the database schema forbids.
    pub tenant: Option<&'a Tenant>,
    /// Whether the caller has the secret.
    pub proof: Proof,
    /// Whether the key may be used for this request.
    pub access: Access<'a>,
}

/// The results of checking a request against the rules, and against the networks, scopes and plan of its key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Access<'a> {
    /// Whether scopes, networks and plan of the key are valid, and the plan exists.
    pub sound: bool,
    /// Whether the key may be used from the client's address.
    pub from_here: bool,
    /// Whether a rule matches.
    pub rule: RuleFact,
    /// The scopes that the request needs and the key lacks; `None` if it lacks none.
    pub lacking: Option<MissingScopes<'a>>,
}

impl Access<'_> {
    /// Access of a key without scopes, networks and plan, when there are no rules.
    pub const FREE: Self = Self { sound: true, from_here: true, rule: RuleFact::Fine, lacking: None };
}

/// The result of matching a request with the rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RuleFact {
    /// A rule matches, or none is required to.
    Fine,
    /// No rule matches, and `--route-default` is `deny`.
    None,
    /// The row of the most specific matching rule is damaged.
    Damaged,
}

/// Needed scopes that a key lacks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MissingScopes<'a> {
    /// The first term of the needs, which the response names.
    pub term: &'a str,
    /// Whether the rule is in shadow mode: the request is allowed, and recorded.
    pub shadow: bool,
}

/// Whether a request needs a key, known before its key is looked up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entrance {
    /// Envoy and the upstream could interpret its path differently.
    Ambiguous,
    /// Envoy's context extensions for its route are invalid.
    BadContext,
    /// It needs no key.
    Public,
    /// It may come without a key; a key that comes must be valid.
    Optional,
    /// It needs a key.
    Required,
}

/// The input of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whether the request needs a key.
    pub entrance: Entrance,
    /// The key it carries.
    pub credential: Credential<'a>,
    /// How current the snapshot is.
    pub freshness: Freshness,
    /// The row with the presented prefix; `None` if the snapshot has none.
    pub found: Option<FoundKey<'a>>,
    /// The current time, by the later of the clocks of this machine and of the database.
    pub now: Timestamp,
}

/// The key and its tenant. Present only after the secret has been verified.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Identity<'a> {
    /// The row of `api_keys`.
    pub key: &'a KeyRecord,
    /// The row of `tenants`.
    pub tenant: Option<&'a Tenant>,
}

/// The result of a decision. The three kinds are separate, so that an error is never mistaken for a denial.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum Decision<'a> {
    /// The request is allowed.
    Allow(Grant<'a>),
    /// The request is denied because of what the caller sent, or what the key or tenant may do.
    Deny(Denial<'a>),
    /// tenantgate cannot decide, for a reason that is not the caller's fault.
    Unable(Fault, Option<Identity<'a>>),
}

impl<'a> Decision<'a> {
    /// Returns the owner of the key; `None` if the key was not proven.
    #[must_use]
    pub fn identity(&self) -> Option<Identity<'a>> {
        match self {
            Self::Allow(grant) => match grant.objection() {
                Some(objection) => objection.identity(),
                None => grant.identity().map(|(key, tenant)| Identity { key, tenant: Some(tenant) }),
            },
            Self::Deny(denial) => denial.identity,
            Self::Unable(_, identity) => *identity,
        }
    }

    /// Applies the mode: in shadow mode, a rejection becomes [`Grant::Shadow`].
    ///
    /// The tenant's own mode takes precedence over the server's, but only once the secret is verified: before that,
    /// any caller could claim to belong to the tenant.
    pub fn in_mode(self, server: Mode) -> Self {
        let objection = match self {
            // After an internal error the request may not be known, so its key could not be removed for the upstream.
            Self::Allow(_) | Self::Unable(Fault::Internal, _) => return self,
            Self::Deny(denial) => Objection::Denied(denial),
            Self::Unable(fault, identity) => Objection::Unable(fault, identity),
        };
        let tenant = objection.identity().and_then(|identity| identity.tenant);
        match tenant.and_then(|tenant| tenant.mode).unwrap_or(server) {
            Mode::Enforce => self,
            Mode::Shadow => Self::Allow(Grant::Shadow(objection)),
        }
    }
}

/// Why a request would have been rejected without shadow mode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Objection<'a> {
    /// It would have been denied.
    Denied(Denial<'a>),
    /// tenantgate could not have decided.
    Unable(Fault, Option<Identity<'a>>),
}

impl<'a> Objection<'a> {
    /// Returns the reason as metadata, metrics and the report name it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Denied(denial) => denial.reason.as_str(),
            Self::Unable(..) => "unavailable",
        }
    }

    /// Returns the identity, if the secret was verified. It is for operators, and is never sent upstream.
    #[must_use]
    pub fn identity(&self) -> Option<Identity<'a>> {
        match self {
            Self::Denied(denial) => denial.identity,
            Self::Unable(_, identity) => *identity,
        }
    }
}

/// With which identity a request is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Grant<'a> {
    /// Without an identity: it needs no key.
    Public,
    /// Without an identity: it has no key, and the key is optional.
    Anonymous,
    /// Without an identity: shadow mode allows it although it would be rejected.
    Shadow(Objection<'a>),
    /// As this key of this tenant.
    Tenant(&'a KeyRecord, &'a Tenant),
    /// As this key of this tenant: a rule in shadow mode allows it although it would be denied.
    RuleShadow(&'a KeyRecord, &'a Tenant, Denial<'a>),
}

impl<'a> Grant<'a> {
    /// How a request that passes as a tenant is spelled.
    pub const OK: &'static str = "ok";

    /// Returns the identity that is sent upstream.
    #[must_use]
    pub fn identity(&self) -> Option<(&'a KeyRecord, &'a Tenant)> {
        match self {
            Self::Tenant(key, tenant) | Self::RuleShadow(key, tenant, _) => Some((key, tenant)),
            Self::Public | Self::Anonymous | Self::Shadow(_) => None,
        }
    }

    /// Returns why the request would have been rejected without shadow mode; `None` if it would not.
    #[must_use]
    pub fn objection(&self) -> Option<Objection<'a>> {
        match self {
            Self::Shadow(objection) => Some(*objection),
            Self::RuleShadow(_, _, denial) => Some(Objection::Denied(*denial)),
            Self::Public | Self::Anonymous | Self::Tenant(..) => None,
        }
    }

    /// Returns the reason as metadata, logs and metrics name it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Anonymous => "anonymous",
            Self::Shadow(_) => "shadow",
            Self::Tenant(..) | Self::RuleShadow(..) => Self::OK,
        }
    }
}

/// A denial.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Denial<'a> {
    /// Why.
    pub reason: Reason,
    /// The identity, if the secret was verified.
    pub identity: Option<Identity<'a>>,
    /// The first term of the needs that the key does not meet, if that is the reason.
    pub needs: Option<&'a str>,
}

/// Returns the decision of the first row of the table that holds; `None` if the secret must be verified first.
#[must_use]
pub fn decide<'a>(facts: &Facts<'a>) -> Option<Decision<'a>> {
    OutcomeRow::first(facts).map(|row| row.answer(facts))
}

#[cfg(test)]
mod tests;
