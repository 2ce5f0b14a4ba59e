//! Tests of the snapshot file.

use uuid::Uuid;

use super::*;
use crate::clock::ManualClock;
use crate::decision::Freshness;
use crate::key::KeyId;
use crate::key::format::parse;
use crate::plan::PlanRow;
use crate::profile::{ProfileRow, Unreadable};
use crate::record::{KeyRecord, SecretHash};
use crate::replica::tests::logged;
use crate::route::{RouteId, RouteRow};
use crate::store::SnapshotRow;
use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};
use crate::verify::memo::{MemoPolicy, Peppers};
use crate::verify::pepper::Pepper;

const BOUND: Duration = Duration::from_mins(5);
const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";

/// A machine with a clock and a folder for the file.
struct Machine {
    clock: Arc<ManualClock>,
    peppers: Peppers,
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp(1_000_000_000_000_000)));
        let peppers = Peppers::new(vec![Pepper::random().unwrap()], MemoPolicy::Optional);
        Self { clock, peppers, folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, replica: &Replica) -> SnapshotFile {
        let path = self.folder.path().join("snapshot");
        let options = SnapshotFileOptions { path, interval: Duration::from_secs(10), max_staleness: BOUND };
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&self.clock);
        SnapshotFile::new(replica.clone(), clock, "postgres://here/own".into(), options)
    }

    /// A server polls, and writes its file some time later.
    async fn leaves_a_file(&self, later: Duration) {
        let replica = Replica::new(self.peppers.clone());
        let tenant = Tenant {
            id: TenantId(Uuid::from_u128(2)),
            name: "Acme".into(),
            schema: "acme".into(),
            status: TenantStatus::Suspended,
            mode: Some(Mode::Shadow),
            created_at: Timestamp(5),
            plan: Some("gold".into()),
        };
        let mut reload = replica.snapshot().reload(&self.peppers);
        for row in [SnapshotRow::Key(record(), None, profile()), SnapshotRow::Tenant(tenant), plan(), rule()]
        {
            reload.add(row);
        }
        let _ = replica.publish(reload.finish());
        let point = SyncPoint {
            now: Some(Timestamp(2_000_000_000_000_000)),
            identity: "own".into(),
            ..SyncPoint::default()
        };
        replica.record_sync(self.clock.uptime(), self.clock.uptime(), point);
        self.clock.advance(later);
        self.file(&replica).write().await;
    }

    fn restored(&self) -> Result<Replica, UnusableFile> {
        let replica = Replica::new(self.peppers.clone());
        self.file(&replica).read()?;
        self.file(&replica).restore();
        Ok(replica)
    }
}

fn profile() -> ProfileRow {
    ProfileRow {
        scopes: Some("a".into()),
        networks: Some("::/0".into()),
        plan: Some("gold".into()),
        unreadable: Some(Unreadable::NotBefore),
    }
}

fn plan() -> SnapshotRow {
    let limits = [Some("1/DAY".into()), Some("2/DAY".into()), None, Some("x".into())];
    SnapshotRow::Plan(PlanRow { name: "gold".into(), limits })
}

fn rule() -> SnapshotRow {
    SnapshotRow::Route(RouteRow {
        id: RouteId(Uuid::from_u128(3)),
        name: Some("r".into()),
        host: "h".into(),
        method: "GET".into(),
        path: "/a".into(),
        mode: "optional".into(),
        scopes: Some("a".into()),
        shadow: true,
    })
}

fn record() -> KeyRecord {
    KeyRecord {
        id: KeyId(Uuid::from_u128(1)),
        tenant_id: TenantId(Uuid::from_u128(2)),
        prefix: "llmk_a".into(),
        hash: SecretHash::parse(HASH),
        expires_at: Some(Timestamp(-7)).into(),
        revoked: true,
        not_before: Timestamp(-9),
        disabled: true,
    }
}

#[tokio::test]
async fn a_restored_snapshot_is_complete_and_as_old_as_its_last_poll() {
    let machine = Machine::new();
    machine.leaves_a_file(Duration::from_secs(20)).await;
    machine.clock.advance(Duration::from_mins(2));
    let replica = machine.restored().unwrap();
    let clock = machine.clock.as_ref();
    assert_eq!(replica.age(clock), Some(Duration::from_secs(140)));
    assert_eq!(replica.freshness(clock, BOUND), Freshness::Stale);
    assert_eq!(replica.now(clock), Timestamp(2_000_000_000_000_000).after(Duration::from_secs(140)));
    let snapshot = replica.snapshot();
    let entry = snapshot.key("llmk_a").unwrap();
    assert_eq!((entry.record(), snapshot.profile(entry.profile()).row()), (&record(), &profile()));
    assert!(matches!(plan(), SnapshotRow::Plan(plan) if snapshot.plans().eq([&plan])));
    assert!(matches!(rule(), SnapshotRow::Route(rule) if snapshot.rules().eq([&rule])));
    assert!(snapshot.plan("gold").unwrap().plan().is_err() && !snapshot.routes().is_empty());
    let tenant = snapshot.tenant(TenantId(Uuid::from_u128(2))).unwrap().tenant();
    assert_eq!((tenant.name.as_str(), &tenant.status), ("Acme", &TenantStatus::Suspended));
    assert_eq!((tenant.mode, tenant.plan.as_deref()), (Some(Mode::Shadow), Some("gold")));
    assert_eq!(replica.sync_point().identity, "own");
}

#[tokio::test]
async fn memos_are_restored_and_a_file_written_with_an_older_pepper_is_read() {
    let (old, new) = (Pepper::random().unwrap(), Pepper::random().unwrap());
    let peppers =
        |list: &[&Pepper]| Peppers::new(list.iter().copied().cloned().collect(), MemoPolicy::Optional);
    let mut machine = Machine { peppers: peppers(&[&old]), ..Machine::new() };
    let replica = Replica::new(machine.peppers.clone());
    let key = parse(b"llmk_a_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg").unwrap();
    let memo = machine.peppers.memo(&record(), key).unwrap();
    replica.sees(vec![SnapshotRow::Key(record(), Some(memo), ProfileRow::default())], machine.clock.as_ref());
    machine.file(&replica).write().await;
    for (list, known) in [(&[&old][..], true), (&[&new, &old], true), (&[&new], false), (&[], false)] {
        machine.peppers = peppers(list);
        let remembered = machine.restored().map(|replica| replica.snapshot().remembered);
        assert_eq!(remembered.ok(), known.then_some(1));
    }
}

#[tokio::test]
async fn a_file_that_is_too_old_or_from_the_future_is_rejected() {
    let machine = Machine::new();
    machine.leaves_a_file(Duration::ZERO).await;
    let written = machine.clock.now();
    machine.clock.set_wall(written.before(SLACK));
    assert!(machine.restored().is_ok(), "clocks may differ by this much");
    machine.clock.set_wall(written.after(BOUND));
    assert!(machine.restored().is_ok(), "exactly at the bound");
    machine.clock.set_wall(written.before(Duration::from_secs(3)));
    assert!(matches!(machine.restored(), Err(UnusableFile::Future(at)) if at == written));
    // The wall clock is set back, but the uptime counts.
    machine.clock.advance(BOUND + Duration::from_secs(1));
    machine.clock.set_wall(written);
    assert!(matches!(machine.restored(), Err(UnusableFile::TooOld(_))));
    // The uptime is short, but the wall clock counts.
    let machine = Machine::new();
    machine.leaves_a_file(Duration::ZERO).await;
    machine.clock.set_wall(written.after(BOUND + Duration::from_secs(1)));
    assert!(matches!(machine.restored(), Err(UnusableFile::TooOld(_))));
}

#[tokio::test]
async fn a_write_is_due_after_a_change_but_not_all_the_time() {
    let machine = Machine::new();
    let replica = Replica::new(machine.peppers.clone());
    let mut file = machine.file(&replica);
    assert!(!file.is_due(), "no poll yet");
    let _ = replica.publish(replica.snapshot().reload(&machine.peppers).finish());
    replica.record_sync(machine.clock.uptime(), machine.clock.uptime(), SyncPoint::default());
    replica.set_connected(true);
    assert!(file.is_due());
    file.write().await;
    assert!(!file.is_due());
    let _ = replica.publish(replica.snapshot().changed(Vec::new(), &machine.peppers));
    assert!(!file.is_due(), "a change has to wait");
    replica.set_connected(false);
    assert!(file.is_due(), "but not without the database");
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_is_retried_after_a_pause_also_without_a_database() {
    for connected in [true, false] {
        let machine = Machine::new();
        let replica = Replica::new(machine.peppers.clone());
        replica.sees(Vec::new(), machine.clock.as_ref());
        replica.set_connected(connected);
        let mut file = machine.file(&replica);
        file.options.path = machine.folder.path().join("missing").join("snapshot");
        file.write().await;
        // Advances tokio's clock and the manual clock together.
        let advance = async |millis| {
            tokio::time::advance(Duration::from_millis(millis)).await;
            machine.clock.advance(Duration::from_millis(millis));
        };
        assert!(!file.is_due(), "not at once");
        advance(9_999).await;
        assert!(!file.is_due());
        advance(20_000).await;
        assert!(file.is_due());
        file.options.path = machine.folder.path().join("snapshot");
        file.write().await;
        advance(20_000).await;
        assert!(!file.is_due(), "written, and nothing has changed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_is_due_a_pause_after_a_change_and_before_the_file_gets_too_old() {
    // Whether the database is connected, whether the data changed, and in milliseconds: the time since the last
    // write, the age of the snapshot then and now, and the duration of the write.
    for (connected, changed, elapsed, age_then, age, took, due) in [
        (true, true, 9_999, 0, 0, 0, false),
        (true, true, 10_000, 0, 0, 0, true),
        (true, true, 19_999, 0, 0, 1_000, false),
        (true, true, 20_000, 0, 0, 1_000, true),
        (true, false, 20_000, 0, 0, 0, false),
        (true, false, 74_999, 0, 0, 0, false),
        (true, false, 75_000, 0, 0, 0, true),
        (true, false, 75_000, 0, 1, 0, false),
        (true, false, 74_000, 1_000, 0, 0, true),
        (false, true, 0, 0, 0, 0, true),
        (false, false, 2_000, 0, 0, 0, false),
        (false, false, 2_001, 0, 0, 0, true),
        (false, false, 0, 2_001, 0, 0, true),
        (false, false, 60_000, 0, 60_000, 0, false),
    ] {
        let (machine, millis) = (Machine::new(), Duration::from_millis);
        let replica = Replica::new(machine.peppers.clone());
        replica.sees(Vec::new(), machine.clock.as_ref());
        replica.set_connected(connected);
        machine.clock.advance(millis(age));
        let mut file = machine.file(&replica);
        let (generation, at) = (u64::from(!changed), Instant::now());
        file.written = Some(Written { generation, age_then: millis(age_then), at, took: millis(took) });
        tokio::time::advance(millis(elapsed)).await;
        let case = (connected, changed, elapsed, age_then, age, took);
        assert_eq!(file.is_due(), due, "{case:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_load_is_written_and_a_failure_is_logged_once() {
    let machine = Machine::new();
    let replica = Replica::new(machine.peppers.clone());
    let running = tokio::spawn(machine.file(&replica).run());
    replica.sees(Vec::new(), machine.clock.as_ref());
    replica.set_connected(true);
    let written = async {
        while replica.stats().kept.value() == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_mins(1), written).await.unwrap();
    running.abort();
    let mut file = machine.file(&replica);
    let there = file.options.path.clone();
    let lost = "WARN: the snapshot file cannot be written, a restart without the database would serve old data or nothing";
    let _ = logged();
    for (path, line) in [
        (there.join("below"), Some(lost)),
        (there.join("below"), None),
        (there.clone(), None),
        (there.join("below"), Some(lost)),
    ] {
        file.options.path = path;
        file.write().await;
        assert_eq!(logged(), Vec::from_iter(line));
    }
    assert_eq!((replica.stats().kept.value(), replica.stats().not_kept.value()), (2, 3));
}

#[test]
fn a_missing_file_is_not_logged_and_a_rejected_one_is() {
    let (machine, replica) = (Machine::new(), Replica::default());
    let file = machine.file(&replica);
    let _ = logged();
    file.restore();
    assert_eq!(logged(), [] as [String; 0]);
    fs::write(&file.options.path, "nonsense").unwrap();
    file.restore();
    assert_eq!(logged(), ["WARN: the snapshot file is not used"]);
    fs::remove_file(&file.options.path).unwrap();
    fs::create_dir(&file.options.path).unwrap();
    file.restore();
    assert_eq!(logged(), ["WARN: the snapshot file is not used"]);
}
