//! Tests of the rows of the decision.

use std::collections::BTreeSet;

use super::super::tests::{NOW, facts, key, tenant, word};
use super::super::{Access, MissingScopes, decide};
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
    let both = expiries.into_iter().flat_map(|expires_at| (0..6).map(move |n| (expires_at, n)));
    both.map(|(expires_at, n)| KeyRecord {
        expires_at: expires_at.into(),
        revoked: n & 1 == 1,
        disabled: n == 2 || n == 3,
        not_before: Timestamp(if n > 3 { NOW.0 + 1 } else { NOW.0 }),
        ..key()
    })
    .collect()
}

fn tenants() -> Vec<Option<Tenant>> {
    let damaged = |status| Tenant { schema: "x\"; drop".into(), ..tenant(status) };
    let sound = ["active", "suspended", "pending_provisioning", "deleted", "frozen"].map(tenant);
    sound.into_iter().chain(["active", "suspended"].map(damaged)).map(Some).chain([None]).collect()
}

fn accesses() -> Vec<Access<'static>> {
    let lacking = |shadow| Some(MissingScopes { term: "a", shadow });
    let mut all = vec![Access::FREE, Access { lacking: lacking(true), ..Access::FREE }];
    for rule in [RuleFact::Fine, RuleFact::None, RuleFact::Damaged] {
        for (sound, from_here) in [(true, true), (true, false), (false, false)] {
            all.push(Access { sound, from_here, rule, lacking: lacking(false) });
        }
    }
    all
}

/// A model of the documented table, as nested conditions.
fn contract(facts: &Facts<'_>) -> String {
    let optional = facts.entrance == Entrance::Optional;
    match (facts.entrance, facts.credential) {
        (Entrance::Ambiguous, _) => return "path_ambiguous".into(),
        (Entrance::BadContext, _) => return "unable bad_route_context".into(),
        (Entrance::Public, _) => return "public".into(),
        (_, Credential::Missing) => {
            return match facts.freshness {
                Freshness::Fresh | Freshness::Stale if optional => "anonymous".into(),
                Freshness::TooOld if optional => "unable too_old".into(),
                _ => "missing".into(),
            };
        }
        (_, Credential::Malformed) => return "malformed".into(),
        (_, Credential::Presented(_)) => {}
    }
    let found = match (facts.freshness, facts.found) {
        (Freshness::NeverLoaded, _) => return "unable never_loaded".into(),
        (Freshness::TooOld, _) => return "unable too_old".into(),
        (Freshness::Stale, None) => return "unable unknown_while_stale".into(),
        (Freshness::Fresh, None) => return "unknown".into(),
        (_, Some(found)) => found,
    };
    match found.proof {
        Proof::Pending => return "prove".into(),
        Proof::Impossible(fault) => return format!("unable {}", fault.as_str()),
        Proof::Wrong => return "mismatch".into(),
        Proof::Right => {}
    }
    let key = found.key;
    let state = if key.revoked {
        Some("revoked")
    } else if key.disabled {
        Some("disabled")
    } else if key.expires_at.at().is_some_and(|at| at <= facts.now) {
        Some("expired")
    } else if facts.now < key.not_before {
        Some("not_yet_valid")
    } else {
        None
    };
    if let Some(state) = state {
        return format!("{state} proven");
    }
    match found.tenant {
        None => return "unable damaged_row".into(),
        Some(tenant) if tenant.status != TenantStatus::Active => return "tenant_inactive proven".into(),
        Some(tenant) if !tenant.is_sound() => return "unable damaged_row".into(),
        Some(_) => {}
    }
    let Access { sound, from_here, rule, lacking } = found.access;
    match (sound, from_here, rule, lacking.map(|lacking| lacking.shadow)) {
        (false, ..) => "unable damaged_row".into(),
        (_, false, ..) => "network proven".into(),
        (_, _, RuleFact::Damaged, _) => "unable damaged_route".into(),
        (_, _, RuleFact::None, _) => "route proven".into(),
        (_, _, RuleFact::Fine, Some(false)) => "scope proven".into(),
        (_, _, RuleFact::Fine, Some(true)) => "rule_shadow scope".into(),
        (_, _, RuleFact::Fine, None) => "ok".into(),
    }
}

/// Calls `with` for every combination of facts.
fn for_all_facts(with: impl Fn(&Facts<'_>)) {
    let presented = Credential::Presented(parse(b"llmk_demo_secret123").unwrap());
    let (keys, tenants) = (keys(), tenants());
    let mut all_found = vec![None];
    for (key, tenant) in keys.iter().flat_map(|key| tenants.iter().map(move |tenant| (key, tenant))) {
        let tenant = tenant.as_ref();
        for access in accesses() {
            all_found.extend(PROOFS.map(|proof| Some(FoundKey { key, tenant, proof, access })));
        }
    }
    for entrance in
        [Entrance::Ambiguous, Entrance::BadContext, Entrance::Public, Entrance::Optional, Entrance::Required]
    {
        for credential in [Credential::Missing, Credential::Malformed, presented] {
            for freshness in [Freshness::Fresh, Freshness::NeverLoaded, Freshness::Stale, Freshness::TooOld] {
                for found in &all_found {
                    with(&Facts { entrance, credential, freshness, ..facts(*found) });
                }
            }
        }
    }
}

#[test]
fn the_first_row_that_holds_agrees_with_the_contract_for_all_facts() {
    for_all_facts(|facts| {
        let word = word(decide(facts));
        assert_eq!(word, contract(facts), "{facts:?}");
        let steps = walk(facts);
        let held: Vec<_> = steps.iter().filter(|(_, step)| *step == Step::Held).collect();
        match held.as_slice() {
            [] => assert_eq!(word, "prove", "{facts:?}"),
            [(row, _)] => {
                let reason = word.strip_prefix("unable ").unwrap_or(&word);
                let reason = reason.strip_suffix(" proven").unwrap_or(reason);
                let reason = if reason == "rule_shadow scope" { "ok" } else { reason };
                assert!(row.reasons().contains(&reason), "{row:?}, {word}: {facts:?}");
                assert_eq!(row.number() == 6, word.starts_with("unable"), "{row:?}, {word}");
                let allowed = ["public", "anonymous", "ok"].contains(&reason);
                assert_eq!([1, 7].contains(&row.number()), allowed);
            }
            more => panic!("{more:?}"),
        }
    });
}

#[test]
fn rows_after_the_one_that_holds_are_not_reached() {
    for_all_facts(|facts| {
        let steps = walk(facts).map(|(_, step)| step);
        let end = steps.iter().position(|step| *step != Step::Not).unwrap();
        assert!(steps[end + 1..].iter().all(|step| *step == Step::NotReached), "{steps:?}");
    });
}

#[test]
fn the_secret_is_verified_after_the_rows_that_do_not_depend_on_it() {
    let (key, tenant) = (key(), tenant("active"));
    let found = FoundKey { key: &key, tenant: Some(&tenant), proof: Proof::Pending, access: Access::FREE };
    let (before, after) = OutcomeRow::ALL.split_at(10);
    let expected = before.iter().map(|row| (*row, Step::Not));
    let expected = expected.chain(after.iter().map(|row| (*row, Step::NotReached)));
    assert_eq!(walk(&facts(Some(found))).to_vec(), expected.collect::<Vec<_>>());
    assert_eq!(before.last(), Some(&OutcomeRow::Unknown));
}

#[test]
fn every_row_has_a_distinct_condition() {
    let conditions: BTreeSet<_> = OutcomeRow::ALL.map(OutcomeRow::condition).into_iter().collect();
    assert_eq!(conditions.len(), OutcomeRow::ALL.len());
    assert_eq!(OutcomeRow::Revoked.condition(), "the key is revoked");
}

#[test]
fn every_reason_and_every_fault_has_a_row() {
    for reason in Reason::ALL.map(Reason::as_str).into_iter().chain(Fault::ALL.map(Fault::as_str)) {
        assert!(OutcomeRow::named(reason).is_some(), "{reason}");
    }
    assert_eq!(OutcomeRow::named("ok"), Some(OutcomeRow::Good));
    assert_eq!(OutcomeRow::named("nonsense"), None);
}
