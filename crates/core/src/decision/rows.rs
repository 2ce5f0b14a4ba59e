//! The table of outcomes.
//!
//! Each row has a number, a condition (in words and as a test of the facts) and a decision. The first row whose
//! condition holds gives the decision: [`decide`](super::decide) returns it, and [`walk`] shows people what each row
//! evaluated to.

use super::{
    Decision, Denial, Entrance, Facts, Fault, FoundKey, Freshness, Grant, Identity, Proof, Reason, RuleFact,
};
use crate::record::has_expired;
use crate::request::Credential;
use crate::tenant::TenantStatus;

/// Defines the rows, in the order in which they are evaluated.
macro_rules! rows {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A row of the table.
        #[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
        pub enum OutcomeRow {
            $($(#[$doc])* $name,)*
        }

        impl OutcomeRow {
            /// All rows, in the order of evaluation.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];

            /// Returns the first row that holds; `None` if the secret must be verified first. This is not a loop over
            /// [`OutcomeRow::ALL`], because a loop that is not unrolled takes more than twice the instructions.
            #[inline]
            pub(super) fn first(facts: &Facts<'_>) -> Option<Self> {
                $(if Self::$name.holds(facts)? {
                    return Some(Self::$name);
                })*
                None
            }
        }
    };
}

rows! {
    /// Envoy and the upstream could interpret the path differently.
    Ambiguous,
    /// Envoy's context extensions for the route are invalid.
    BadContext,
    /// The request needs no key.
    Public,
    /// The key is optional, and there is none.
    Anonymous,
    /// There is no key.
    Missing,
    /// The presented text is not a valid key, or there is more than one.
    Malformed,
    /// No poll of the database has succeeded yet.
    NeverLoaded,
    /// The last successful poll is older than `--max-staleness`.
    TooOld,
    /// No key has this prefix, but the snapshot is stale and the key may be new.
    UnknownWhileStale,
    /// No key has this prefix.
    Unknown,
    /// The verification of the secret could not be completed.
    Unproven,
    /// The secret is wrong.
    Mismatch,
    /// The key is revoked.
    Revoked,
    /// The key is disabled.
    Disabled,
    /// The key has expired.
    Expired,
    /// The key is not valid yet.
    NotYetValid,
    /// The row of the tenant is missing.
    TenantMissing,
    /// The tenant is not active.
    TenantInactive,
    /// The row of the tenant is damaged.
    TenantDamaged,
    /// Scopes, networks or plan of the key are damaged.
    KeyDamaged,
    /// The key may not be used from the client's address.
    Network,
    /// The row of the matching rule is damaged.
    RouteDamaged,
    /// No rule matches, and `--route-default` is `deny`.
    Route,
    /// The key lacks a needed scope.
    Scope,
    /// No other row holds: the request is allowed.
    Good,
}

/// The result of a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Its condition holds: it gives the decision.
    Held,
    /// Its condition does not hold: the next row is evaluated.
    Not,
    /// It was not evaluated: an earlier row held, or the secret must be verified first.
    NotReached,
}

impl OutcomeRow {
    /// Returns its number in the documented table of outcomes.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Public | Self::Anonymous => 1,
            Self::Missing => 2,
            Self::Ambiguous | Self::Malformed => 3,
            Self::Unknown
            | Self::Mismatch
            | Self::Revoked
            | Self::Disabled
            | Self::Expired
            | Self::NotYetValid => 4,
            Self::TenantInactive | Self::Network | Self::Route | Self::Scope => 5,
            Self::BadContext
            | Self::NeverLoaded
            | Self::TooOld
            | Self::UnknownWhileStale
            | Self::Unproven
            | Self::TenantMissing
            | Self::TenantDamaged
            | Self::KeyDamaged
            | Self::RouteDamaged => 6,
            Self::Good => 7,
        }
    }

    /// Returns its condition in words.
    #[must_use]
    pub fn condition(self) -> &'static str {
        match self {
            Self::Ambiguous => "the path is ambiguous",
            Self::BadContext => "Envoy's context extensions for the route are invalid",
            Self::Public => "the request is public",
            Self::Anonymous => "the key is optional, and there is none",
            Self::Missing => "there is no key",
            Self::Malformed => "the key is malformed, or there is more than one",
            Self::NeverLoaded => "nothing was loaded from the database yet",
            Self::TooOld => "the last successful poll of the database is too old",
            Self::UnknownWhileStale => "no key has this prefix, and the last successful poll is stale",
            Self::Unknown => "no key has this prefix",
            Self::Unproven => "the secret cannot be checked",
            Self::Mismatch => "the secret is wrong",
            Self::Revoked => "the key is revoked",
            Self::Disabled => "the key is disabled",
            Self::Expired => "the key has expired",
            Self::NotYetValid => "the key is not valid yet",
            Self::TenantMissing => "the row of the tenant is missing",
            Self::TenantInactive => "the tenant is not active",
            Self::TenantDamaged => "the row of the tenant is damaged",
            Self::KeyDamaged => "scopes, networks or plan of the key are damaged",
            Self::Network => "the address of the client is in none of the key's networks",
            Self::RouteDamaged => "the row of the rule is damaged",
            Self::Route => "no rule matches, and --route-default is deny",
            Self::Scope => "the key lacks a scope",
            Self::Good => "otherwise",
        }
    }

    /// Returns the reasons and faults that logs and metadata show for a decision by this row.
    #[must_use]
    pub fn reasons(self) -> &'static [&'static str] {
        match self {
            Self::Ambiguous => &["path_ambiguous"],
            Self::BadContext => &["bad_route_context"],
            Self::Public => &["public"],
            Self::Anonymous => &["anonymous"],
            Self::Missing => &["missing"],
            Self::Malformed => &["malformed"],
            Self::NeverLoaded => &["never_loaded"],
            Self::TooOld => &["too_old"],
            Self::UnknownWhileStale => &["unknown_while_stale"],
            Self::Unknown => &["unknown"],
            Self::Unproven => &["damaged_row", "deadline_too_short", "internal", "overloaded", "too_large"],
            Self::Mismatch => &["mismatch"],
            Self::Revoked => &["revoked"],
            Self::Disabled => &["disabled"],
            Self::Expired => &["expired"],
            Self::NotYetValid => &["not_yet_valid"],
            Self::TenantMissing | Self::TenantDamaged | Self::KeyDamaged => &["damaged_row"],
            Self::Network => &["network"],
            Self::RouteDamaged => &["damaged_route"],
            Self::Route => &["route"],
            Self::Scope => &["scope"],
            Self::TenantInactive => &["tenant_inactive"],
            Self::Good => &["ok"],
        }
    }

    /// Returns the first row with this reason or fault; `None` for an unknown one.
    #[must_use]
    pub fn named(reason: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.reasons().contains(&reason))
    }

    /// Returns whether its condition holds, given that no earlier row does; `None` if the secret must be verified
    /// first.
    #[expect(clippy::inline_always, reason = "with a known row, one comparison is left")]
    #[inline(always)]
    pub(super) fn holds(self, facts: &Facts<'_>) -> Option<bool> {
        let found = facts.found.as_ref();
        let tenant = found.and_then(|found| found.tenant);
        let proof = found.map(|found| found.proof);
        let access = found.map(|found| &found.access);
        if self > Self::Unknown && proof == Some(Proof::Pending) {
            return None;
        }
        let missing = matches!(facts.credential, Credential::Missing);
        let optional = facts.entrance == Entrance::Optional;
        Some(match self {
            Self::Ambiguous => facts.entrance == Entrance::Ambiguous,
            Self::BadContext => facts.entrance == Entrance::BadContext,
            Self::Public => facts.entrance == Entrance::Public,
            // The rules come from the snapshot, so they are used for as long as its keys are.
            Self::Anonymous => {
                missing && optional && matches!(facts.freshness, Freshness::Fresh | Freshness::Stale)
            }
            Self::Missing => missing && !(optional && facts.freshness == Freshness::TooOld),
            Self::Malformed => matches!(facts.credential, Credential::Malformed),
            Self::NeverLoaded => facts.freshness == Freshness::NeverLoaded,
            Self::TooOld => facts.freshness == Freshness::TooOld,
            Self::UnknownWhileStale => found.is_none() && facts.freshness == Freshness::Stale,
            Self::Unknown => found.is_none(),
            Self::Unproven => matches!(proof, Some(Proof::Impossible(_))),
            Self::Mismatch => proof == Some(Proof::Wrong),
            Self::Revoked => found.is_some_and(|found| found.key.revoked),
            Self::Disabled => found.is_some_and(|found| found.key.disabled),
            Self::Expired => found.is_some_and(|found| has_expired(found.key.expires_at.at(), facts.now)),
            Self::NotYetValid => found.is_some_and(|found| found.key.not_before > facts.now),
            Self::TenantMissing => tenant.is_none(),
            Self::TenantInactive => tenant.is_some_and(|tenant| tenant.status != TenantStatus::Active),
            Self::TenantDamaged => tenant.is_some_and(|tenant| !tenant.is_sound()),
            Self::KeyDamaged => access.is_some_and(|access| !access.sound),
            Self::Network => access.is_some_and(|access| !access.from_here),
            Self::RouteDamaged => access.is_some_and(|access| access.rule == RuleFact::Damaged),
            Self::Route => access.is_some_and(|access| access.rule == RuleFact::None),
            Self::Scope => access.and_then(|access| access.lacking).is_some_and(|lacking| !lacking.shadow),
            Self::Good => true,
        })
    }

    /// Returns its decision, given that it is the first row that holds.
    pub(super) fn answer<'a>(self, facts: &Facts<'a>) -> Decision<'a> {
        let identity = facts.found.map(|FoundKey { key, tenant, .. }| Identity { key, tenant });
        let lacking = facts.found.and_then(|found| found.access.lacking);
        let unproven = |reason| Decision::Deny(Denial { reason, identity: None, needs: None });
        let proven = |reason| Decision::Deny(Denial { reason, identity, needs: None });
        match self {
            Self::Ambiguous => unproven(Reason::PathAmbiguous),
            Self::BadContext => Decision::Unable(Fault::BadRouteContext, None),
            Self::Public => Decision::Allow(Grant::Public),
            Self::Anonymous => Decision::Allow(Grant::Anonymous),
            Self::Missing => unproven(Reason::Missing),
            Self::Malformed => unproven(Reason::Malformed),
            Self::NeverLoaded => Decision::Unable(Fault::NeverLoaded, None),
            Self::TooOld => Decision::Unable(Fault::TooOld, None),
            Self::UnknownWhileStale => Decision::Unable(Fault::UnknownWhileStale, None),
            Self::Unknown => unproven(Reason::Unknown),
            Self::Unproven => match facts.found.map(|found| found.proof) {
                Some(Proof::Impossible(fault)) => Decision::Unable(fault, None),
                _ => Decision::Unable(Fault::Internal, None),
            },
            Self::Mismatch => unproven(Reason::Mismatch),
            Self::Revoked => proven(Reason::Revoked),
            Self::Disabled => proven(Reason::Disabled),
            Self::Expired => proven(Reason::Expired),
            Self::NotYetValid => proven(Reason::NotYetValid),
            Self::TenantInactive => proven(Reason::TenantInactive),
            Self::TenantMissing | Self::TenantDamaged | Self::KeyDamaged => {
                Decision::Unable(Fault::DamagedRow, identity)
            }
            Self::Network => proven(Reason::Network),
            Self::RouteDamaged => Decision::Unable(Fault::DamagedRoute, identity),
            Self::Route => proven(Reason::Route),
            Self::Scope => Decision::Deny(denial(identity, lacking.map(|lacking| lacking.term))),
            Self::Good => match facts.found.map(|found| (found.key, found.tenant)) {
                Some((key, Some(tenant))) => Decision::Allow(match lacking {
                    None => Grant::Tenant(key, tenant),
                    Some(lacking) => Grant::RuleShadow(key, tenant, denial(identity, Some(lacking.term))),
                }),
                // Unreachable: the rows `Unknown` and `TenantMissing` come earlier.
                _ => Decision::Unable(Fault::Internal, identity),
            },
        }
    }
}

fn denial<'a>(identity: Option<Identity<'a>>, needs: Option<&'a str>) -> Denial<'a> {
    Denial { reason: Reason::Scope, identity, needs }
}

/// Evaluates the table: returns every row in order, with what it evaluated to.
#[must_use]
pub fn walk(facts: &Facts<'_>) -> [(OutcomeRow, Step); OutcomeRow::ALL.len()] {
    let mut over = false;
    OutcomeRow::ALL.map(|row| {
        let step = match row.holds(facts).filter(|_| !over) {
            Some(true) => Step::Held,
            Some(false) => Step::Not,
            None => Step::NotReached,
        };
        over |= step != Step::Not;
        (row, step)
    })
}

#[cfg(test)]
mod tests;
