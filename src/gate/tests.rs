//! Tests of the gate with rows in memory and paused clocks.

use tokio::join;
use uuid::Uuid;

use super::*;
use crate::batch_writer::Schedule;
use crate::clock::ManualClock;
use crate::decision::Denial;
use crate::decision::{Objection, Reason};
use crate::key::KeyId;
use crate::key::format::parse;
use crate::plan::PlanRow;
use crate::profile::ProfileRow;
use crate::record::{KeyRecord, SecretHash};
use crate::request::Waived;
use crate::route::{Context, RouteId, RouteRow};
use crate::scope::Scopes;
use crate::stats::Counter;
use crate::store::SnapshotRow;
use crate::tenant::{Tenant, TenantId, TenantStatus};
use crate::verify::memo::{Keyring, Peppers};
use crate::verify::{self, bcrypt};

const KEY: &str = "llmk_demo_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg";
const WRONG: &str = "llmk_demo_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Ph";

/// A gate with its replica and clock.
struct Setup {
    clock: Arc<ManualClock>,
    replica: Replica,
    gate: Gate,
}

impl Setup {
    fn new(mode: Mode) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp(1_000_000_000)));
        let replica = Replica::default();
        let keyring = Keyring::new(Peppers::default()).unwrap();
        let verifier = Verifier::start(verify::VerifyOptions::default(), keyring).unwrap();
        let memos = MemoWriter::new(Peppers::default(), Schedule::every(Duration::from_secs(1)));
        let (same, options) =
            (Arc::<ManualClock>::clone(&clock), GateOptions { mode, ..GateOptions::default() });
        let gate = Gate::new(
            replica.clone(),
            verifier,
            LastUsed::new(Schedule::every(Duration::from_secs(30))),
            memos,
            same,
            options,
        );
        Self { clock, replica, gate }
    }

    fn sees(&self, rows: Vec<SnapshotRow>) {
        self.replica.sees(rows, self.clock.as_ref());
    }

    /// Records the verdict and returns it as text; `None` if it must wait.
    fn now(&self, key: &str) -> Option<String> {
        self.on(&self.gate.view(), key)
    }

    async fn soon(&self, key: &str) -> String {
        self.by(key, Instant::now() + Duration::from_mins(1)).await
    }

    async fn by(&self, key: &str, deadline: Instant) -> String {
        let view = self.gate.wait_for_verdict(&presenting(key), &|| None, deadline).await;
        self.on(&view, key).expect("a settled view has a verdict")
    }

    fn on(&self, view: &View<'_>, key: &str) -> Option<String> {
        let verdict = view.judge(&presenting(key), &|| None).ok()?;
        self.gate.record(&verdict, view.started());
        Some(word(&verdict))
    }

    /// Decides after this result of a proof of this entry; `None` if another proof is needed.
    fn after(&self, entry: &Arc<KeyEntry>, proof: Proof) -> Option<String> {
        let view = View { proven: Some((Arc::clone(entry), proof)), ..self.gate.view() };
        self.on(&view, KEY)
    }

    fn entry(&self) -> Arc<KeyEntry> {
        Arc::clone(self.replica.snapshot().key("llmk_demo").unwrap())
    }
}

fn presenting(key: &str) -> AccessRequest<'_> {
    let credential = Credential::Presented(parse(key.as_bytes()).unwrap());
    let (method, host, path): (&[u8], &[u8], &[u8]) = (b"GET", b"h", b"/a");
    let (context, waived, patterns) = (Context::default(), Waived::No, false);
    AccessRequest { waived, patterns, method, host, path, context, credential, bearer: false }
}

fn word(verdict: &Verdict<'_>) -> String {
    match verdict.decision {
        Decision::Allow(Grant::Shadow(objection)) => format!("shadow {}", objection.as_str()),
        Decision::Allow(Grant::RuleShadow(_, _, denial)) => format!("rule_shadow {}", denial.reason.as_str()),
        Decision::Allow(grant) => grant.as_str().to_owned(),
        Decision::Deny(denial) => denial.reason.as_str().to_owned(),
        Decision::Unable(fault, _) => fault.as_str().to_owned(),
    }
}

/// The row of [`KEY`], with another salt at each call.
fn key() -> KeyRecord {
    let hash = bcrypt::hash(&parse(KEY.as_bytes()).unwrap().to_plain(), 4).unwrap();
    KeyRecord::new(
        KeyId(Uuid::from_u128(1)),
        TenantId(Uuid::from_u128(2)),
        "llmk_demo".into(),
        SecretHash::parse(&hash),
    )
}

fn rows(key: KeyRecord) -> Vec<SnapshotRow> {
    let tenant = Tenant {
        id: TenantId(Uuid::from_u128(2)),
        name: "Demo".into(),
        schema: "tenant_demo".into(),
        status: TenantStatus::Active,
        mode: None,
        created_at: Timestamp(0),
        plan: None,
    };
    vec![SnapshotRow::Key(key, None, ProfileRow::default()), SnapshotRow::Tenant(tenant)]
}

#[tokio::test]
async fn a_key_is_proven_once_and_then_decided_without_waiting() {
    let setup = Setup::new(Mode::Enforce);
    setup.sees(rows(key()));
    assert_eq!(setup.now(KEY), None);
    assert_eq!(setup.soon(WRONG).await, "mismatch");
    assert_eq!(setup.soon(KEY).await, "ok");
    assert_eq!(setup.now(KEY).as_deref(), Some("ok"));
    assert_eq!(setup.now(WRONG).as_deref(), Some("mismatch"));
    assert_eq!(setup.now("llmk_other_secret123").as_deref(), Some("unknown"));
    assert_eq!(setup.entry().last_use().1, setup.clock.now());
    let stats = setup.gate.stats();
    let denied = Reason::ALL.into_iter().zip(stats.denied.iter().map(Counter::value)).filter(|(_, n)| *n > 0);
    let denied: Vec<_> = denied.collect();
    assert_eq!((stats.ok.value(), denied), (2, vec![(Reason::Mismatch, 2), (Reason::Unknown, 1)]));
}

#[test]
fn a_proof_is_valid_for_its_row_after_a_change_of_state() {
    let setup = Setup::new(Mode::Enforce);
    let row = key();
    setup.sees(rows(row.clone()));
    let before = setup.entry();
    assert_eq!(setup.after(&before, Proof::Wrong).as_deref(), Some("mismatch"));
    assert_eq!(setup.after(&before, Proof::Right).as_deref(), Some("ok"));
    setup.sees(rows(KeyRecord { revoked: true, ..row.clone() }));
    assert_eq!(setup.after(&before, Proof::Right).as_deref(), Some("revoked"));
    for other in [
        key(),
        KeyRecord { id: KeyId(Uuid::from_u128(9)), ..row.clone() },
        KeyRecord { tenant_id: TenantId(Uuid::from_u128(9)), ..row },
    ] {
        setup.sees(rows(other));
        assert_eq!(setup.after(&before, Proof::Right), None);
        assert_eq!(setup.after(&before, Proof::Wrong), None);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_the_first_load() {
    let setup = Setup::new(Mode::Enforce);
    assert_eq!(setup.now(KEY), None);
    let load = async { setup.sees(Vec::new()) };
    let started = Instant::now();
    assert_eq!(join!(setup.soon(KEY), load), ("unknown".to_owned(), ()));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_the_first_load_until_their_deadline_and_at_most_two_seconds() {
    let setup = Setup::new(Mode::Enforce);
    for (patience, waits) in [(20, 20), (60_000, 2_000)] {
        let started = Instant::now();
        let deadline = started + Duration::from_millis(patience);
        assert_eq!(setup.by(KEY, deadline).await, "never_loaded");
        let waited = started.elapsed();
        assert!((waits..waits + 2).contains(&waited.as_millis()), "{waited:?}");
    }
    setup.clock.advance(Duration::from_millis(1_999));
    assert_eq!(setup.now(KEY), None);
    setup.clock.advance(Duration::from_millis(1));
    assert_eq!(setup.now(KEY).as_deref(), Some("never_loaded"));
    setup.clock.advance(Duration::from_millis(1));
    assert_eq!(setup.now(KEY).as_deref(), Some("never_loaded"));
}

#[test]
fn shadow_mode_applies_to_verdicts_and_counters() {
    let setup = Setup::new(Mode::Shadow);
    setup.sees(Vec::new());
    assert_eq!(setup.now(KEY).as_deref(), Some("shadow unknown"));
    let view = setup.gate.unable(Fault::Overloaded, Duration::ZERO);
    assert_eq!(setup.on(&view, KEY).as_deref(), Some("shadow unavailable"));
    let stats = setup.gate.stats();
    assert_eq!(
        stats.shadow.iter().map(Counter::value).collect::<Vec<_>>(),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    );
    assert_eq!(stats.shadow_undecided().value(), 1);
    assert_eq!(stats.latency.buckets().map(|(_, n)| n).sum::<u64>(), 2);
}

#[test]
fn every_decision_has_its_own_counter() {
    let stats = Stats::default();
    for (at, reason) in Reason::ALL.into_iter().enumerate() {
        let denial = Denial { reason, identity: None, needs: None };
        for _ in 0..=at {
            stats.count(&Decision::Deny(denial));
            stats.count(&Decision::Allow(Grant::Shadow(Objection::Denied(denial))));
        }
    }
    for (at, fault) in Fault::ALL.into_iter().enumerate() {
        (0..=at).for_each(|_| stats.count(&Decision::Unable(fault, None)));
    }
    stats.count(&Decision::Allow(Grant::Shadow(Objection::Unable(Fault::TooOld, None))));
    stats.count(&Decision::Allow(Grant::Public));
    let values = |counts: &[Counter]| counts.iter().map(Counter::value).collect::<Vec<_>>();
    assert_eq!(values(&stats.denied), (1..=13).collect::<Vec<_>>());
    assert_eq!(values(&stats.shadow), (1..=13).chain([1]).collect::<Vec<_>>());
    assert_eq!(values(&stats.unable), [1, 2, 3, 4, 5, 6, 7, 8, 10, 10]);
    assert_eq!((stats.public.value(), stats.ok.value()), (1, 0));
}

/// Rows of the key with this profile, a plan with this limit, and a rule.
fn governed(profile: [Option<&str>; 3], limit: &str) -> Vec<SnapshotRow> {
    let [scopes, networks, plan] = profile.map(|text| text.map(Into::into));
    let mut all = rows(key());
    if let SnapshotRow::Key(_, _, profile) = &mut all[0] {
        *profile = ProfileRow { scopes, networks, plan, unreadable: None };
    }
    all.push(SnapshotRow::Plan(PlanRow {
        name: "gold".into(),
        limits: [Some(limit.into()), None, None, None],
    }));
    all.push(SnapshotRow::Route(RouteRow {
        id: RouteId(Uuid::from_u128(3)),
        name: Some("a".into()),
        host: "*".into(),
        method: "GET".into(),
        path: "/a".into(),
        mode: "required".into(),
        scopes: Some("a.read".into()),
        shadow: false,
    }));
    all
}

#[tokio::test]
async fn the_profile_of_a_key_is_checked_after_its_secret() {
    let near = Some("192.0.2.7".parse().unwrap());
    for (profile, limit, address, expected) in [
        ([None, None, None], "1/DAY", None, "ok"),
        ([Some("a.*"), None, None], "1/DAY", None, "ok"),
        ([Some("b"), None, None], "1/DAY", None, "scope"),
        ([None, Some("192.0.2.0/24"), None], "1/DAY", near, "ok"),
        ([None, Some("10.0.0.0/8"), None], "1/DAY", near, "network"),
        ([Some("b"), Some("10.0.0.0/8"), None], "1/DAY", None, "network"),
        ([None, None, Some("gold")], "1/DAY", None, "ok"),
        ([None, None, Some("gold")], "1/WEEK", None, "damaged_row"),
        ([None, None, Some("silver")], "1/DAY", None, "damaged_row"),
        ([Some("a,b"), None, None], "1/DAY", None, "damaged_row"),
        ([None, Some(""), None], "1/DAY", near, "damaged_row"),
    ] {
        let setup = Setup::new(Mode::Enforce);
        setup.sees(governed(profile, limit));
        let deadline = Instant::now() + Duration::from_mins(1);
        for (key, expected) in [(WRONG, "mismatch"), (KEY, expected)] {
            let (asked, address) = (presenting(key), || address);
            let view = setup.gate.wait_for_verdict(&asked, &address, deadline).await;
            let verdict = view.judge(&asked, &address).unwrap();
            assert_eq!(word(&verdict), expected, "{profile:?} {limit}");
            if expected == "ok" {
                let terms = verdict.terms;
                assert_eq!((terms.scopes.map(Scopes::as_str), terms.route), (profile[0], Some("a")));
                assert_eq!(terms.plan.map(|plan| plan.plan().unwrap().name.as_str()), profile[2]);
            }
        }
    }
}

#[tokio::test]
async fn a_changed_rule_applies_with_the_next_snapshot() {
    let setup = Setup::new(Mode::Enforce);
    let mut all = governed([Some("b"), None, None], "1/DAY");
    setup.sees(all.clone());
    assert_eq!(setup.soon(KEY).await, "scope");
    for (shadow, scopes, expected) in [
        (true, "a.read", "rule_shadow scope"),
        (false, "b", "ok"),
        (false, "a", "scope"),
        (false, "*", "damaged_route"),
    ] {
        if let Some(SnapshotRow::Route(rule)) = all.last_mut() {
            *rule = RouteRow { shadow, scopes: Some(scopes.into()), ..rule.clone() };
        }
        setup.sees(all.clone());
        assert_eq!(setup.now(KEY).as_deref(), Some(expected));
    }
    let stats = setup.gate.stats();
    assert_eq!((stats.ok.value(), stats.rule_shadow.value()), (2, 1));
}

#[tokio::test]
async fn a_key_without_plan_has_the_plan_of_its_tenant() {
    for (own, expected) in [(None, "gold"), (Some("silver"), "silver")] {
        let setup = Setup::new(Mode::Enforce);
        let mut all = governed([None, None, own], "1/DAY");
        all.push(SnapshotRow::Plan(PlanRow { name: "silver".into(), limits: [const { None }; 4] }));
        if let SnapshotRow::Tenant(tenant) = &mut all[1] {
            tenant.plan = Some("gold".into());
        }
        setup.sees(all);
        assert_eq!(setup.soon(KEY).await, "ok");
        let (view, asked) = (setup.gate.view(), presenting(KEY));
        let terms = view.judge(&asked, &|| None).unwrap().terms;
        assert_eq!(terms.plan.map(|plan| plan.plan().unwrap().name.as_str()), Some(expected));
    }
}
