//! Tests of the table of decisions.

use uuid::Uuid;

use super::*;
use crate::key::KeyId;
use crate::key::format::parse;
use crate::tenant::{TenantId, TenantStatus};

pub(super) const NOW: Timestamp = Timestamp(1_000);

pub(super) fn key() -> KeyRecord {
    let (id, tenant_id) = (KeyId(Uuid::nil()), TenantId(Uuid::nil()));
    KeyRecord::new(id, tenant_id, "llmk_demo".into(), None)
}

pub(super) fn tenant(status: &str) -> Tenant {
    Tenant {
        id: TenantId(Uuid::nil()),
        name: "Demo".into(),
        schema: "tenant_demo".into(),
        status: TenantStatus::parse(status),
        mode: None,
        created_at: NOW,
        plan: None,
    }
}

pub(super) fn facts(found: Option<FoundKey<'_>>) -> Facts<'_> {
    let credential = Credential::Presented(parse(b"llmk_demo_secret123").unwrap());
    Facts { entrance: Entrance::Required, credential, freshness: Freshness::Fresh, found, now: NOW }
}

/// Describes a decision in a few words.
pub(super) fn word(decision: Option<Decision<'_>>) -> String {
    match decision {
        None => "prove".into(),
        Some(Decision::Allow(Grant::Public)) => "public".into(),
        Some(Decision::Allow(Grant::Shadow(objection))) => format!("shadow {}", objection.as_str()),
        Some(Decision::Allow(Grant::Anonymous)) => "anonymous".into(),
        Some(Decision::Allow(Grant::Tenant(..))) => "ok".into(),
        Some(Decision::Allow(Grant::RuleShadow(_, _, denial))) => {
            format!("rule_shadow {}", denial.reason.as_str())
        }
        Some(Decision::Deny(Denial { reason, identity, .. })) => {
            format!("{}{}", reason.as_str(), if identity.is_some() { " proven" } else { "" })
        }
        Some(Decision::Unable(fault, _)) => format!("unable {}", fault.as_str()),
    }
}

#[test]
fn public_missing_and_malformed_come_before_the_state_of_the_snapshot() {
    for freshness in [Freshness::NeverLoaded, Freshness::TooOld, Freshness::Stale, Freshness::Fresh] {
        for (entrance, credential, expected) in [
            (Entrance::Ambiguous, Credential::Missing, "path_ambiguous"),
            (Entrance::BadContext, Credential::Malformed, "unable bad_route_context"),
            (Entrance::Public, Credential::Missing, "public"),
            (Entrance::Public, Credential::Malformed, "public"),
            (Entrance::Required, Credential::Missing, "missing"),
            (Entrance::Required, Credential::Malformed, "malformed"),
            (Entrance::Optional, Credential::Malformed, "malformed"),
        ] {
            let facts = Facts { entrance, credential, freshness, ..facts(None) };
            assert_eq!(word(decide(&facts)), expected, "{freshness:?}");
        }
    }
}

#[test]
fn the_age_of_the_snapshot_decides_about_unknown_and_known_keys() {
    let (key, tenant) = (key(), tenant("active"));
    for (freshness, unknown, known) in [
        (Freshness::NeverLoaded, "unable never_loaded", "unable never_loaded"),
        (Freshness::TooOld, "unable too_old", "unable too_old"),
        (Freshness::Stale, "unable unknown_while_stale", "ok"),
        (Freshness::Fresh, "unknown", "ok"),
    ] {
        let found = FoundKey { key: &key, tenant: Some(&tenant), proof: Proof::Right, access: Access::FREE };
        assert_eq!(word(decide(&Facts { freshness, ..facts(None) })), unknown);
        assert_eq!(word(decide(&Facts { freshness, ..facts(Some(found)) })), known);
    }
}

#[test]
fn the_state_of_a_key_is_hidden_until_the_secret_is_verified() {
    let key = KeyRecord { revoked: true, expires_at: Some(NOW).into(), ..key() };
    let tenant = tenant("suspended");
    for (proof, expected) in [
        (Proof::Pending, "prove"),
        (Proof::Wrong, "mismatch"),
        (Proof::Impossible(Fault::Overloaded), "unable overloaded"),
        (Proof::Right, "revoked proven"),
    ] {
        let found = FoundKey { key: &key, tenant: Some(&tenant), proof, access: Access::FREE };
        assert_eq!(word(decide(&facts(Some(found)))), expected);
    }
}

#[test]
fn after_proof_the_first_row_that_holds_decides() {
    let bad_schema = |status| Tenant { schema: "x\"; drop".into(), ..tenant(status) };
    for (revoked, expires_at, tenant, expected) in [
        (true, Some(NOW), Some(tenant("suspended")), "revoked proven"),
        (false, Some(NOW), Some(tenant("suspended")), "expired proven"),
        (false, Some(Timestamp(1_001)), Some(tenant("suspended")), "tenant_inactive proven"),
        (false, None, Some(tenant("pending_provisioning")), "tenant_inactive proven"),
        (false, None, Some(tenant("deleted")), "tenant_inactive proven"),
        (false, None, Some(tenant("frozen")), "tenant_inactive proven"),
        (false, None, Some(bad_schema("suspended")), "tenant_inactive proven"),
        (false, None, Some(bad_schema("active")), "unable damaged_row"),
        (false, None, None, "unable damaged_row"),
        (false, Some(Timestamp(1_001)), Some(tenant("active")), "ok"),
        (false, None, Some(tenant("active")), "ok"),
    ] {
        let key = KeyRecord { expires_at: expires_at.into(), revoked, ..key() };
        let found =
            FoundKey { key: &key, tenant: tenant.as_ref(), proof: Proof::Right, access: Access::FREE };
        assert_eq!(word(decide(&facts(Some(found)))), expected);
    }
}

#[test]
fn shadow_mode_allows_rejected_requests_and_changes_nothing_else() {
    let (key, active) = (key(), tenant("active"));
    let right = FoundKey { key: &key, tenant: Some(&active), proof: Proof::Right, access: Access::FREE };
    for (facts, enforced, shadowed) in [
        (Facts { entrance: Entrance::Public, ..facts(None) }, "public", "public"),
        (facts(Some(right)), "ok", "ok"),
        (Facts { credential: Credential::Missing, ..facts(None) }, "missing", "shadow missing"),
        (Facts { credential: Credential::Malformed, ..facts(None) }, "malformed", "shadow malformed"),
        (facts(None), "unknown", "shadow unknown"),
        (facts(Some(FoundKey { proof: Proof::Wrong, ..right })), "mismatch", "shadow mismatch"),
        (
            Facts { freshness: Freshness::NeverLoaded, ..facts(None) },
            "unable never_loaded",
            "shadow unavailable",
        ),
    ] {
        let decision = decide(&facts).unwrap();
        assert_eq!(word(Some(decision.in_mode(Mode::Enforce))), enforced);
        assert_eq!(word(Some(decision.in_mode(Mode::Shadow))), shadowed);
    }
}

#[test]
fn a_tenants_own_mode_applies_only_after_the_secret_is_verified() {
    let key = KeyRecord { revoked: true, ..key() };
    for (own, server, proof, expected) in [
        (None, Mode::Enforce, Proof::Right, "revoked proven"),
        (None, Mode::Shadow, Proof::Right, "shadow revoked"),
        (Some(Mode::Shadow), Mode::Enforce, Proof::Right, "shadow revoked"),
        (Some(Mode::Enforce), Mode::Shadow, Proof::Right, "revoked proven"),
        (Some(Mode::Shadow), Mode::Enforce, Proof::Wrong, "mismatch"),
        (Some(Mode::Enforce), Mode::Shadow, Proof::Wrong, "shadow mismatch"),
        (Some(Mode::Shadow), Mode::Enforce, Proof::Impossible(Fault::Overloaded), "unable overloaded"),
    ] {
        let tenant = Tenant { mode: own, ..tenant("active") };
        let found = FoundKey { key: &key, tenant: Some(&tenant), proof, access: Access::FREE };
        let decision = decide(&facts(Some(found))).unwrap();
        assert_eq!(word(Some(decision.in_mode(server))), expected, "{own:?} {server:?} {proof:?}");
    }
}

#[test]
fn a_decision_has_an_identity_only_after_the_secret_is_verified() {
    let (good, active) = (key(), tenant("active"));
    let revoked = KeyRecord { revoked: true, ..key() };
    let found = |key, tenant, proof| Some(FoundKey { key, tenant, proof, access: Access::FREE });
    for (found, expected) in [
        (found(&good, Some(&active), Proof::Right), Some((&good, Some(&active)))),
        (found(&good, None, Proof::Right), Some((&good, None))),
        (found(&good, Some(&active), Proof::Wrong), None),
        (found(&good, Some(&active), Proof::Impossible(Fault::Overloaded)), None),
        (found(&revoked, Some(&active), Proof::Right), Some((&revoked, Some(&active)))),
        (None, None),
    ] {
        let decision = decide(&facts(found)).unwrap();
        for mode in Mode::ALL {
            let identity = decision.in_mode(mode).identity();
            assert_eq!(identity.map(|identity| (identity.key, identity.tenant)), expected, "{decision:?}");
        }
    }
    assert_eq!(Decision::Allow(Grant::Public).identity(), None);
}

#[test]
fn clients_can_cause_only_these_faults() {
    let caused = Fault::ALL.into_iter().filter(|fault| fault.is_caused_by_clients());
    let expected = [Fault::DeadlineTooShort, Fault::Internal, Fault::Overloaded, Fault::TooLarge];
    assert_eq!(caused.collect::<Vec<_>>(), expected);
}

#[test]
fn an_optional_key_may_be_missing_unless_the_snapshot_is_too_old() {
    for (freshness, expected) in [
        (Freshness::Fresh, "anonymous"),
        (Freshness::Stale, "anonymous"),
        (Freshness::TooOld, "unable too_old"),
        (Freshness::NeverLoaded, "missing"),
    ] {
        let facts =
            Facts { entrance: Entrance::Optional, credential: Credential::Missing, freshness, ..facts(None) };
        assert_eq!(word(decide(&facts)), expected, "{freshness:?}");
    }
    assert_eq!(word(decide(&Facts { entrance: Entrance::Optional, ..facts(None) })), "unknown");
}

#[test]
fn the_states_of_a_key_are_checked_in_order() {
    let tenant = tenant("suspended");
    for (revoked, disabled, expires_at, not_before, expected) in [
        (true, true, Some(NOW), Timestamp(1_001), "revoked proven"),
        (false, true, Some(NOW), Timestamp(1_001), "disabled proven"),
        (false, false, Some(NOW), Timestamp(1_001), "expired proven"),
        (false, false, None, Timestamp(1_001), "not_yet_valid proven"),
        (false, false, None, NOW, "tenant_inactive proven"),
    ] {
        let key = KeyRecord { revoked, disabled, expires_at: expires_at.into(), not_before, ..key() };
        let found = FoundKey { key: &key, tenant: Some(&tenant), proof: Proof::Right, access: Access::FREE };
        assert_eq!(word(decide(&facts(Some(found)))), expected);
    }
}

#[test]
fn access_is_checked_in_order_after_the_state_of_the_tenant() {
    let (key, active, suspended) = (key(), tenant("active"), tenant("suspended"));
    let worst = Access {
        sound: false,
        from_here: false,
        rule: RuleFact::None,
        lacking: Some(MissingScopes { term: "a b", shadow: false }),
    };
    let rule_shadow = Access { lacking: Some(MissingScopes { term: "a", shadow: true }), ..Access::FREE };
    for (tenant, access, expected) in [
        (&suspended, worst, "tenant_inactive proven"),
        (&active, worst, "unable damaged_row"),
        (&active, Access { sound: true, ..worst }, "network proven"),
        (&active, Access { sound: true, from_here: true, ..worst }, "route proven"),
        (&active, Access { rule: RuleFact::Damaged, sound: true, ..worst }, "network proven"),
        (
            &active,
            Access { rule: RuleFact::Damaged, sound: true, from_here: true, ..worst },
            "unable damaged_route",
        ),
        (&active, Access { lacking: worst.lacking, ..Access::FREE }, "scope proven"),
        (&active, rule_shadow, "rule_shadow scope"),
        (&active, Access::FREE, "ok"),
    ] {
        let found = FoundKey { key: &key, tenant: Some(tenant), proof: Proof::Right, access };
        let decision = decide(&facts(Some(found)));
        assert_eq!(word(decision), expected);
        if let Some(Decision::Deny(denial)) = decision {
            let needs = (denial.reason == Reason::Scope).then_some("a b");
            assert_eq!(denial.needs, needs);
        }
        let wrong = FoundKey { proof: Proof::Wrong, ..found };
        assert_eq!(word(decide(&facts(Some(wrong)))), "mismatch");
    }
}

#[test]
fn a_rule_in_shadow_mode_allows_the_request_as_its_tenant_in_every_mode() {
    let (key, tenant) = (key(), tenant("active"));
    let access = Access { lacking: Some(MissingScopes { term: "a", shadow: true }), ..Access::FREE };
    let found = FoundKey { key: &key, tenant: Some(&tenant), proof: Proof::Right, access };
    for mode in Mode::ALL {
        let Some(Decision::Allow(grant)) = decide(&facts(Some(found))).map(|d| d.in_mode(mode)) else {
            panic!()
        };
        assert_eq!((grant.as_str(), grant.identity()), ("ok", Some((&key, &tenant))));
        assert_eq!(grant.objection().map(|objection| objection.as_str()), Some("scope"));
    }
    assert_eq!((Grant::Anonymous.as_str(), Grant::Anonymous.identity()), ("anonymous", None));
    assert_eq!(Grant::Public.objection(), None);
}
