//! Tests of snapshots, against a model in property tests.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::key::format::parse;
use crate::record::SecretHash;
use crate::verify::memo::MemoPolicy;
use crate::verify::pepper::Pepper;

const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";

fn peppers() -> Peppers {
    Peppers::new(
        Pepper::parse_all("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap(),
        MemoPolicy::Optional,
    )
}

fn key(n: u128, sound: bool, remembered: bool) -> SnapshotRow {
    let (id, tenant_id) = (KeyId(Uuid::from_u128(n)), TenantId(Uuid::from_u128(n)));
    let hash = SecretHash::parse(if sound { HASH } else { "" });
    let prefix = format!("llmk_{n}").as_str().into();
    let record = KeyRecord::new(id, tenant_id, prefix, hash);
    let memo = peppers().memo(&record, parse(b"llmk_a_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg").unwrap());
    let scopes = ["a.*", "b", "é"].get(usize::try_from(n).unwrap_or(9)).map(|&scopes| scopes.into());
    let profile = ProfileRow { scopes: scopes.filter(|_| remembered), ..ProfileRow::default() };
    SnapshotRow::Key(record, memo.filter(|_| remembered), profile)
}

fn plan(n: u128, sound: bool) -> SnapshotRow {
    let limits = [Some(if sound { "1/DAY" } else { "1/WEEK" }.to_owned()), None, None, None];
    SnapshotRow::Plan(PlanRow { name: format!("plan-{n}"), limits })
}

fn route(n: u128, sound: bool) -> SnapshotRow {
    let rule = RouteRow {
        id: RouteId(Uuid::from_u128(n)),
        name: None,
        host: "*".into(),
        method: "*".into(),
        path: format!("/{n}"),
        mode: if sound { "required" } else { "off" }.into(),
        scopes: Some("a.x | b".into()),
        shadow: false,
    };
    SnapshotRow::Route(rule)
}

fn tenant(n: u128, sound: bool) -> SnapshotRow {
    SnapshotRow::Tenant(Tenant {
        id: TenantId(Uuid::from_u128(n)),
        name: if sound { format!("Tenant {n}") } else { String::new() },
        schema: "tenant_demo".into(),
        status: TenantStatus::Active,
        mode: None,
        created_at: Timestamp(0),
        plan: None,
    })
}

/// All rows and counts of a snapshot as sorted texts.
fn shown(snapshot: &Snapshot) -> (Vec<String>, Vec<String>, Vec<String>, [usize; 4]) {
    let key = |entry: &Arc<KeyEntry>| {
        let profile = snapshot.profile(entry.profile());
        let granted = profile.granted().map(|granted| {
            snapshot.routes().entries().iter().map(|rule| rule.is_met_by(granted)).collect::<Vec<_>>()
        });
        let (record, remembered) = (entry.record(), entry.is_remembered());
        format!("{record:?} {remembered} {:?} {granted:?}", profile.row())
    };
    let mut keys: Vec<_> = snapshot.keys().map(key).collect();
    let mut policy: Vec<_> = snapshot.plans().map(|plan| format!("{plan:?}")).collect();
    policy.extend(snapshot.rules().map(|rule| format!("{rule:?}")));
    let mut tenants: Vec<_> = snapshot.tenants().map(|tenant| format!("{tenant:?}")).collect();
    keys.sort();
    tenants.sort();
    let counts = [snapshot.key_count(), snapshot.tenant_count(), snapshot.damaged, snapshot.remembered];
    (keys, tenants, policy, counts)
}

fn changes() -> impl Strategy<Value = Vec<(u128, Change)>> {
    let change = (0_u128..4, 0..11, any::<bool>()).prop_map(|(n, kind, flag)| {
        let change = match kind {
            0 | 1 => Change::Now(key(n, flag, kind == 1)),
            2 | 3 => Change::Now(tenant(n, flag)),
            4 => Change::NoKey(format!("llmk_{n}").into()),
            5 => Change::NoTenant(TenantId(Uuid::from_u128(n))),
            6 => Change::Now(plan(n, flag)),
            7 => Change::NoPlan(format!("plan-{n}").into()),
            8 => Change::Now(route(n, flag)),
            9 => Change::NoRoute(RouteId(Uuid::from_u128(n))),
            _ => Change::Mark,
        };
        (n, change)
    });
    proptest::collection::vec(change, 0..30)
}

proptest! {
    #[test]
    fn changes_lead_to_the_same_snapshot_as_a_load(batches in proptest::collection::vec(changes(), 0..4)) {
        let (peppers, mut snapshot) = (peppers(), Arc::new(Snapshot::empty()));
        let (mut keys, mut tenants) = (BTreeMap::new(), BTreeMap::new());
        let (mut plans, mut routes) = (BTreeMap::new(), BTreeMap::new());
        for batch in batches {
            for (n, change) in &batch {
                match change {
                    Change::Now(row @ SnapshotRow::Key(..)) => drop(keys.insert(*n, row.clone())),
                    Change::Now(row @ SnapshotRow::Tenant(_)) => drop(tenants.insert(*n, row.clone())),
                    Change::NoKey(_) => drop(keys.remove(n)),
                    Change::NoTenant(_) => drop(tenants.remove(n)),
                    Change::Now(row @ SnapshotRow::Plan(_)) => drop(plans.insert(*n, row.clone())),
                    Change::NoPlan(_) => drop(plans.remove(n)),
                    Change::Now(row @ SnapshotRow::Route(_)) => drop(routes.insert(*n, row.clone())),
                    Change::NoRoute(_) => drop(routes.remove(n)),
                    Change::Mark => {}
                }
            }
            let before = snapshot.generation;
            let batch = batch.into_iter().map(|(_, change)| change).collect();
            snapshot = Arc::new(snapshot.changed(batch, &peppers));
            let mut reload = snapshot.reload(&peppers);
            prop_assert!(!reload.has_keys());
            let policy = plans.values().chain(routes.values());
            keys.values().chain(tenants.values()).chain(policy).for_each(|row| reload.add(row.clone()));
            prop_assert_eq!(reload.has_keys(), !keys.is_empty());
            let whole = reload.finish();
            prop_assert_eq!((snapshot.generation, whole.generation), (before + 1, before + 2));
            prop_assert_eq!(shown(&snapshot), shown(&whole));
            prop_assert_eq!(snapshot.key_count(), keys.len());
            prop_assert_eq!(snapshot.tenant_count(), tenants.len());
        }
    }
}

#[test]
fn an_unchanged_row_is_shared_with_the_previous_snapshot() {
    let peppers = peppers();
    let rows = [key(1, true, true), key(2, true, false), tenant(1, true)];
    let load = |before: &Arc<Snapshot>| {
        let mut reload = before.reload(&peppers);
        for row in &rows {
            reload.add(row.clone());
        }
        Arc::new(reload.finish())
    };
    let first = load(&Arc::new(Snapshot::empty()));
    let second = load(&first);
    let third = second.changed(vec![Change::Now(key(1, true, false))], &peppers);
    let same =
        |a: &Snapshot, b: &Snapshot, prefix| Arc::ptr_eq(a.key(prefix).unwrap(), b.key(prefix).unwrap());
    assert!(same(&first, &second, "llmk_1") && same(&first, &second, "llmk_2"));
    assert!(!same(&second, &third, "llmk_1") && same(&second, &third, "llmk_2"));
}

#[test]
fn cached_responses_are_kept_until_the_tenant_changes() {
    let (peppers, id) = (peppers(), TenantId(Uuid::from_u128(1)));
    let cached = |snapshot: &Snapshot| snapshot.tenant(id).map(|entry| entry.responses().get().is_some());
    let before = Snapshot::empty().changed(vec![Change::Now(tenant(1, true))], &peppers);
    before.tenant(id).unwrap().responses().set(Default::default()).unwrap();
    let other = before.changed(vec![Change::Now(tenant(2, true))], &peppers);
    let after = other.changed(vec![Change::Now(tenant(1, false))], &peppers);
    assert_eq!([&before, &other, &after].map(cached), [Some(true), Some(true), Some(false)]);
}

#[test]
fn a_table_that_grew_by_changes_is_made_again() {
    let (peppers, empty) = (peppers(), Snapshot::empty());
    let grown = |kind: fn(u128) -> SnapshotRow| {
        let changes = (0..1_025).map(|n| Change::Now(kind(n))).collect();
        empty.changed(changes, &peppers)
    };
    let (keys, tenants) = (grown(|n| key(n, true, false)), grown(|n| tenant(n, true)));
    assert!(!keys.keys.outgrown() && !tenants.tenants.outgrown());
    assert_eq!((keys.key_count(), tenants.tenant_count()), (1_025, 1_025));
}

#[test]
fn a_damaged_row_is_found_alike_whether_its_profile_is_known_or_not() {
    let rows: Vec<SnapshotRow> = (0..4)
        .flat_map(|n| [key(n, true, true), key(n, false, true), key(n, true, false)])
        .chain([plan(1, true), plan(1, false)])
        .collect();
    let none = Snapshot::empty();
    let all = Snapshot::of(rows.clone(), &peppers());
    let (first, again) =
        (Arc::new(none.clone()).reload(&peppers()), Arc::new(all.clone()).reload(&peppers()));
    for row in &rows {
        let found = [none.finds_damaged(row), all.finds_damaged(row)];
        assert_eq!(found, [row.damage().is_some(); 2], "{row:?}");
        assert_eq!([first.finds_damaged(row), again.finds_damaged(row)], found, "{row:?}");
    }
    assert!(rows.iter().filter(|row| row.damage().is_some()).count() == 6, "four hashes, a scope and a plan");
}

/// What is allocated and freed between two entries can leave holes between them, which take memory for each key.
#[test]
fn a_key_with_a_known_profile_is_loaded_with_one_allocation() {
    let mut reload = Arc::new(Snapshot::empty()).reload(&Peppers::default());
    let row = |n: u32| {
        let SnapshotRow::Key(record, ..) = key(0, true, false) else { unreachable!() };
        let prefix = format!("llmk_{n}").as_str().into();
        let networks = Some("10.0.0.0/8 192.0.2.0/24".into());
        SnapshotRow::Key(
            KeyRecord { prefix, ..record },
            None,
            ProfileRow { networks, ..ProfileRow::default() },
        )
    };
    reload.add(row(0));
    reload.keys.reserve(2);
    let known = row(1);
    let counted = allocation_counter::measure(|| {
        assert!(!reload.finds_damaged(&known));
        reload.add(known);
    });
    assert_eq!(counted.count_total, 1, "the entry alone");
}
