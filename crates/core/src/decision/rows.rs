//! Which rows of the table hold?
//!
//! The same table as [`decide`](super::decide) walks, spelled out for people: each
//! row with its number in the contract, its condition in words, and whether it
//! holds. `decide` stays the one that judges; a test goes through every
//! combination of facts there is and holds the two against each other.

use super::{Facts, Freshness, Proof};
use crate::record::has_expired;
use crate::request::Credential;
use crate::tenant::TenantStatus;

/// A row of the table.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Row {
    /// The request needs no key.
    Public,
    /// It has none.
    Missing,
    /// It has something that is none, or more than one.
    Malformed,
    /// There was no look at the database yet.
    NeverLoaded,
    /// The last look is too old.
    TooOld,
    /// No such prefix, but it may be new.
    UnknownWhileStale,
    /// No such prefix.
    Unknown,
    /// Possession could not be proven, nor the opposite.
    Unproven,
    /// The secret is wrong.
    Mismatch,
    /// The key was taken back.
    Revoked,
    /// Its time is over.
    Expired,
    /// Its tenant's row is missing.
    TenantMissing,
    /// Its tenant is not served.
    TenantInactive,
    /// Its tenant's row makes no sense.
    TenantDamaged,
    /// Nothing is wrong.
    Good,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Its condition holds: it is the answer.
    Held,
    /// Its condition does not hold: the next row is asked.
    Not,
    /// The answer was found before, or possession has to be proven first.
    NotReached,
}

impl Row {
    /// All of them, in the order in which they are asked.
    pub const ALL: [Self; 15] = [
        Self::Public,
        Self::Missing,
        Self::Malformed,
        Self::NeverLoaded,
        Self::TooOld,
        Self::UnknownWhileStale,
        Self::Unknown,
        Self::Unproven,
        Self::Mismatch,
        Self::Revoked,
        Self::Expired,
        Self::TenantMissing,
        Self::TenantInactive,
        Self::TenantDamaged,
        Self::Good,
    ];

    /// Its number in the table of outcomes.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Public => 1,
            Self::Missing => 2,
            Self::Malformed => 3,
            Self::Unknown | Self::Mismatch | Self::Revoked | Self::Expired => 4,
            Self::TenantInactive => 5,
            Self::NeverLoaded
            | Self::TooOld
            | Self::UnknownWhileStale
            | Self::Unproven
            | Self::TenantMissing
            | Self::TenantDamaged => 6,
            Self::Good => 7,
        }
    }

    /// Its condition, in words.
    #[must_use]
    pub fn condition(self) -> &'static str {
        match self {
            Self::Public => "the path is public",
            Self::Missing => "there is no key",
            Self::Malformed => "the key is malformed, or there is more than one",
            Self::NeverLoaded => "nothing was loaded from the database yet",
            Self::TooOld => "the last good look at the database is too old",
            Self::UnknownWhileStale => "no key has this prefix, and the last good look is stale",
            Self::Unknown => "no key has this prefix",
            Self::Unproven => "the secret cannot be checked",
            Self::Mismatch => "the secret is wrong",
            Self::Revoked => "the key is revoked",
            Self::Expired => "the key has expired",
            Self::TenantMissing => "the row of the tenant is missing",
            Self::TenantInactive => "the tenant is not active",
            Self::TenantDamaged => "the row of the tenant is damaged",
            Self::Good => "otherwise",
        }
    }

    /// The words by which logs and metadata name an answer by this row.
    #[must_use]
    pub fn reasons(self) -> &'static [&'static str] {
        match self {
            Self::Public => &["public"],
            Self::Missing => &["missing"],
            Self::Malformed => &["malformed"],
            Self::NeverLoaded => &["never_loaded"],
            Self::TooOld => &["too_old"],
            Self::UnknownWhileStale => &["unknown_while_stale"],
            Self::Unknown => &["unknown"],
            Self::Unproven => &["damaged_row", "deadline_too_short", "internal", "overloaded", "too_large"],
            Self::Mismatch => &["mismatch"],
            Self::Revoked => &["revoked"],
            Self::Expired => &["expired"],
            Self::TenantMissing | Self::TenantDamaged => &["damaged_row"],
            Self::TenantInactive => &["tenant_inactive"],
            Self::Good => &["ok"],
        }
    }

    /// The first row that logs name so; nothing for a word that is none of ours.
    #[must_use]
    pub fn named(reason: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.reasons().contains(&reason))
    }

    /// Whether its condition holds, given that no row before it did; nothing while possession is to be proven.
    fn holds(self, facts: &Facts<'_>) -> Option<bool> {
        let found = facts.found.as_ref();
        let tenant = found.and_then(|found| found.tenant);
        let proof = found.map(|found| found.proof);
        if self > Self::Unknown && proof == Some(Proof::Pending) {
            return None;
        }
        Some(match self {
            Self::Public => facts.public,
            Self::Missing => matches!(facts.credential, Credential::Missing),
            Self::Malformed => matches!(facts.credential, Credential::Malformed),
            Self::NeverLoaded => facts.freshness == Freshness::NeverLoaded,
            Self::TooOld => facts.freshness == Freshness::TooOld,
            Self::UnknownWhileStale => found.is_none() && facts.freshness == Freshness::Stale,
            Self::Unknown => found.is_none(),
            Self::Unproven => matches!(proof, Some(Proof::Impossible(_))),
            Self::Mismatch => proof == Some(Proof::Wrong),
            Self::Revoked => found.is_some_and(|found| found.key.revoked),
            Self::Expired => found.is_some_and(|found| has_expired(found.key.expires_at.at(), facts.now)),
            Self::TenantMissing => tenant.is_none(),
            Self::TenantInactive => tenant.is_some_and(|tenant| tenant.status != TenantStatus::Active),
            Self::TenantDamaged => tenant.is_some_and(|tenant| !tenant.is_sound()),
            Self::Good => true,
        })
    }
}

/// Walks the table: every row in order, and what became of it.
#[must_use]
pub fn walk(facts: &Facts<'_>) -> [(Row, Step); Row::ALL.len()] {
    let mut over = false;
    Row::ALL.map(|row| {
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
mod tests {
    use std::collections::BTreeSet;

    use super::super::tests::{NOW, facts, key, tenant, word};
    use super::super::{Fault, Found, Reason, decide};
    use super::*;
    use crate::clock::Timestamp;
    use crate::key::format::parse;
    use crate::record::KeyRecord;
    use crate::tenant::Tenant;

    const PROOFS: [Proof; 6] = [
        Proof::Pending,
        Proof::Impossible(Fault::DamagedRow),
        Proof::Impossible(Fault::DeadlineTooShort),
        Proof::Impossible(Fault::Overloaded),
        Proof::Right,
        Proof::Wrong,
    ];

    fn keys() -> Vec<KeyRecord> {
        let expiries = [None, Some(NOW), Some(Timestamp(NOW.0 + 1))];
        let both = expiries.into_iter().flat_map(|expires_at| [false, true].map(|r| (expires_at, r)));
        both.map(|(expires_at, revoked)| KeyRecord { expires_at: expires_at.into(), revoked, ..key() })
            .collect()
    }

    fn tenants() -> Vec<Option<Tenant>> {
        let damaged = |status| Tenant { schema: "x\"; drop".into(), ..tenant(status) };
        let sound = ["active", "suspended", "pending_provisioning", "deleted", "frozen"].map(tenant);
        sound.into_iter().chain(["active", "suspended"].map(damaged)).map(Some).chain([None]).collect()
    }

    /// Calls `with` for every combination of facts there is.
    fn for_all_facts(with: impl Fn(&Facts<'_>)) {
        let presented = Credential::Presented(parse(b"llmk_demo_secret123").unwrap());
        let (keys, tenants) = (keys(), tenants());
        let mut all_found = vec![None];
        for (key, tenant) in keys.iter().flat_map(|key| tenants.iter().map(move |tenant| (key, tenant))) {
            all_found.extend(PROOFS.map(|proof| Some(Found { key, tenant: tenant.as_ref(), proof })));
        }
        for public in [true, false] {
            for credential in [Credential::Missing, Credential::Malformed, presented] {
                for freshness in
                    [Freshness::Fresh, Freshness::NeverLoaded, Freshness::Stale, Freshness::TooOld]
                {
                    for found in &all_found {
                        with(&Facts { public, credential, freshness, ..facts(*found) });
                    }
                }
            }
        }
    }

    #[test]
    fn the_row_that_holds_is_the_decision_whatever_the_facts() {
        for_all_facts(|facts| {
            let steps = walk(facts);
            let held: Vec<_> = steps.iter().filter(|(_, step)| *step == Step::Held).collect();
            let word = word(decide(facts));
            match held.as_slice() {
                [] => assert_eq!(word, "prove", "{facts:?}"),
                [(row, _)] => {
                    let said = word.strip_prefix("unable ").unwrap_or(&word);
                    let said = said.strip_suffix(" proven").unwrap_or(said);
                    assert!(row.reasons().contains(&said), "{row:?}, {word}: {facts:?}");
                    assert_eq!(row.number() == 6, word.starts_with("unable"), "{row:?}, {word}");
                    assert_eq!([1, 7].contains(&row.number()), ["public", "ok"].contains(&said));
                }
                more => panic!("{more:?}"),
            }
        });
    }

    #[test]
    fn before_the_row_that_holds_none_does_and_after_it_none_is_reached() {
        for_all_facts(|facts| {
            let steps = walk(facts).map(|(_, step)| step);
            let end = steps.iter().position(|step| *step != Step::Not).unwrap();
            assert!(steps[end + 1..].iter().all(|step| *step == Step::NotReached), "{steps:?}");
        });
    }

    #[test]
    fn possession_is_asked_for_after_the_rows_that_need_none() {
        let (key, tenant) = (key(), tenant("active"));
        let found = Found { key: &key, tenant: Some(&tenant), proof: Proof::Pending };
        let (before, after) = Row::ALL.split_at(7);
        let expected = before.iter().map(|row| (*row, Step::Not));
        let expected = expected.chain(after.iter().map(|row| (*row, Step::NotReached)));
        assert_eq!(walk(&facts(Some(found))).to_vec(), expected.collect::<Vec<_>>());
        assert_eq!(before.last(), Some(&Row::Unknown));
    }

    #[test]
    fn every_row_has_a_condition_of_its_own() {
        let conditions: BTreeSet<_> = Row::ALL.map(Row::condition).into_iter().collect();
        assert_eq!(conditions.len(), Row::ALL.len());
        assert_eq!(Row::Revoked.condition(), "the key is revoked");
    }

    #[test]
    fn every_reason_and_every_fault_names_a_row() {
        for reason in Reason::ALL.map(Reason::as_str).into_iter().chain(Fault::ALL.map(Fault::as_str)) {
            assert!(Row::named(reason).is_some(), "{reason}");
        }
        assert_eq!(Row::named("ok"), Some(Row::Good));
        assert_eq!(Row::named("nonsense"), None);
    }
}
