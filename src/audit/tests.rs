//! Tests of the audit log and its chain of hashes.

use uuid::Uuid;

use super::*;
use crate::clock::Timestamp;
use crate::tenant::{TenantId, TenantStatus};

fn tenant(status: TenantStatus) -> Tenant {
    Tenant {
        id: TenantId(Uuid::from_u128(7)),
        name: "Söhne, \"A\"".into(),
        schema: "tenant_s".into(),
        status,
        mode: None,
        created_at: Timestamp(0),
        plan: None,
    }
}

/// A log of three rows.
fn log() -> Vec<AuditEntry> {
    let (mut head, author) = (LogHead::default(), Author::from(Actor::new("alice").unwrap()));
    let (active, suspended) = (tenant(TenantStatus::Active), tenant(TenantStatus::Suspended));
    let drafts = [
        Draft::of_tenant(Action::TenantCreate, None, &active),
        Draft::of_tenant(Action::TenantSuspend, Some(&active), &suspended),
        Draft::of_tenant(Action::TenantActivate, Some(&suspended), &active),
    ];
    let mut at = Timestamp(1_764_000_000_000_001);
    let entries = drafts.into_iter().flatten().map(|draft| {
        at = Timestamp(at.0 + 1);
        head.append(at, &author, draft)
    });
    entries.collect()
}

fn verify(log: &[AuditEntry]) -> Result<LogHead, BrokenChain> {
    let mut head = LogHead::default();
    log.iter().try_for_each(|entry| head.follow(entry))?;
    Ok(head)
}

#[test]
fn an_unchanged_log_is_intact() {
    let log = log();
    assert_eq!(verify(&log), Ok(LogHead { seq: 3, hash: log[2].hash.clone() }));
    assert_eq!(verify(&[]), Ok(LogHead::default()));
}

#[test]
fn the_hash_is_the_documented_one() {
    // Computed with Python's hashlib, by the formula above.
    assert_eq!(log()[0].hash, "143fa954cf46bf32548c00c7b897379381b55e6450de16725114e085d59d2185");
    assert_eq!(log()[1].hash, "95edfe4833d5c22b9708a73c0326384a6aabc2e94d1d956590d23b91b001545c");
}

#[test]
fn the_origin_of_a_change_is_part_of_the_hash() {
    let draft = || Draft::of(Action::PlanCreate, "gold".into(), None::<&()>, &1);
    let hash = |request_id: Option<&str>, address: Option<&str>| {
        let author = Author {
            request_id: request_id.map(str::to_owned),
            address: address.map(str::to_owned),
            ..Author::from(Actor::new("alice").unwrap())
        };
        LogHead::default().append(Timestamp(0), &author, draft()).hash
    };
    // Computed with Python's hashlib, by the formula above.
    assert_eq!(hash(None, None), "9096f65d2090c985d345fccba134593a78f5339e10a877fcba9d63946341266c");
    assert_eq!(
        hash(Some("r1"), Some("192.0.2.1")),
        "fd5233587baf3febe88017ac51f769d8ed4f0be2af2aceef8e9dac737549af5a"
    );
    assert_eq!(hash(Some("r1"), None), "6e3a91cd7685516cd463aacc133ee0867f3064c4f8cf6a49d1fd7e4d480c43c7");
    let all = [hash(None, Some("r1")), hash(Some("r1"), None), hash(Some(""), None), hash(None, None)];
    assert_eq!(std::collections::BTreeSet::from(all).len(), 4);
}

#[test]
fn every_change_of_a_row_is_detected_at_that_row() {
    let changes: [fn(&mut AuditEntry); 9] = [
        |e| e.request_id = Some(String::new()),
        |e| e.address = Some("192.0.2.1".into()),
        |e| e.at = Timestamp(e.at.0 + 1),
        |e| e.actor = "mallory".into(),
        |e| e.action = "tenant.delete".into(),
        |e| e.subject.push(' '),
        |e| e.before = None,
        |e| e.after = Some("{}".into()),
        |e| (e.actor, e.action) = (format!("{}t", e.actor), e.action[1..].into()),
    ];
    for change in changes {
        let mut log = log();
        change(&mut log[1]);
        assert_eq!(verify(&log), Err(BrokenChain::Changed(2)), "{:?}", log[1]);
    }
    let mut without = log();
    without.remove(1);
    assert_eq!(verify(&without), Err(BrokenChain::Missing(2)));
    let mut swapped = log();
    swapped.swap(1, 2);
    assert_eq!(verify(&swapped), Err(BrokenChain::Missing(2)));
    let mut headless = log();
    headless.remove(0);
    assert_eq!(verify(&headless), Err(BrokenChain::Missing(1)));
}

#[test]
fn a_change_without_effect_has_no_draft() {
    let active = tenant(TenantStatus::Active);
    assert_eq!(Draft::of_tenant(Action::TenantActivate, Some(&active), &active), None);
}

#[test]
fn an_actor_is_one_line_without_a_key() {
    for good in ["alice", "Alice B. <a@example.org>", "jürgen", &"x".repeat(255)] {
        assert_eq!(Actor::new(good).unwrap().as_str(), good);
    }
    for bad in ["", "a\nb", &"x".repeat(256), "llmk_demo_secret123", "by llmk_demo_secret123."] {
        assert!(Actor::new(bad).is_err(), "{bad}");
    }
}
