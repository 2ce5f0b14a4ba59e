//! Does the sync task walk its states as drawn? With a scripted database and time held still.

use std::collections::VecDeque;
use std::sync::Mutex;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::*;
use crate::clock::Timestamp;
use crate::decision::Freshness;
use crate::key::KeyId;
use crate::record::{ExpiresAt, KeyRecord};
use crate::store::{Announcement, NewMemo, SchemaVersion, Shadowed};
use crate::tenant::TenantId;

/// A clock that runs with tokio's, which the tests hold still.
struct TestClock(Instant);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(0).after(self.uptime())
    }
    fn uptime(&self) -> Duration {
        self.0.elapsed()
    }
}

/// What a session does at its next look.
enum Step {
    /// Shows these keys.
    Load(Vec<&'static str>),
    /// Shows these keys of another database.
    Stranger(Vec<&'static str>),
    /// These keys changed.
    Changed(Vec<&'static str>),
    /// It cannot be told what changed.
    Everything,
    /// The connection breaks.
    Broken,
    /// Nothing comes back.
    Silence,
}

/// A database that follows a script: one list of steps for each session. After the last step of the last
/// session nothing changes any more.
#[derive(Default)]
struct Script {
    sessions: Mutex<VecDeque<Vec<Step>>>,
    old_schema: bool,
    hint: Arc<Notify>,
    /// When sessions were asked for.
    asked: Mutex<Vec<Instant>>,
}

struct Scripted(VecDeque<Step>, Arc<Notify>);

fn key(prefix: &str) -> Row {
    let record = KeyRecord {
        id: KeyId(Uuid::nil()),
        tenant_id: TenantId(Uuid::nil()),
        prefix: prefix.into(),
        hash: None,
        expires_at: ExpiresAt::NEVER,
        revoked: false,
    };
    Row::Key(record, None)
}

fn ours() -> Look {
    Look { identity: "ours".into(), ..Look::default() }
}

fn broken() -> StoreError {
    StoreError::Unavailable("broken".into())
}

#[async_trait]
impl Session for Scripted {
    async fn load(&mut self, sink: &mut (dyn FnMut(Row) + Send)) -> Result<Look, StoreError> {
        let (keys, identity) = match self.0.pop_front() {
            Some(Step::Load(keys)) => (keys, "ours"),
            Some(Step::Stranger(keys)) => (keys, "another"),
            Some(Step::Silence) => std::future::pending().await,
            _ => return Err(broken()),
        };
        for prefix in keys {
            sink(key(prefix));
        }
        Ok(Look { identity: identity.into(), ..Look::default() })
    }

    async fn hint(&mut self) -> Result<(), StoreError> {
        self.1.notified().await;
        Ok(())
    }

    async fn has(&mut self, _: &str) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn changes(&mut self) -> Result<Changes, StoreError> {
        match self.0.pop_front() {
            Some(Step::Changed(keys)) => {
                let rows = keys.into_iter().map(|prefix| Change::Now(key(prefix))).collect();
                Ok(Changes::Rows(rows, ours()))
            }
            Some(Step::Everything) => Ok(Changes::Everything),
            Some(Step::Silence) => std::future::pending().await,
            Some(_) => Err(broken()),
            None => Ok(Changes::Rows(Vec::new(), ours())),
        }
    }
}

#[async_trait]
impl Store for Script {
    fn kind(&self) -> &'static str {
        "script"
    }
    fn address(&self) -> String {
        "script".into()
    }
    fn embedded(&self) -> bool {
        false
    }
    async fn session(&self) -> Result<Box<dyn Session>, StoreError> {
        self.asked.lock().unwrap().push(Instant::now());
        let steps = self.sessions.lock().unwrap().pop_front().ok_or_else(broken)?;
        Ok(Box::new(Scripted(steps.into(), Arc::clone(&self.hint))))
    }
    async fn schema_version(&self) -> Result<SchemaVersion, StoreError> {
        Ok(SchemaVersion { current: i64::from(!self.old_schema), needed: 1 })
    }
    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        Err(broken())
    }
    async fn prune_changes(&self, _: Duration) -> Result<u64, StoreError> {
        Err(broken())
    }
    async fn announce(&self, _: &Announcement<'_>) -> Result<(), StoreError> {
        Err(broken())
    }
    async fn retract(&self, _: Uuid) -> Result<(), StoreError> {
        Err(broken())
    }
    async fn touch_keys(&self, _: &[(KeyId, Timestamp)]) -> Result<Vec<KeyId>, StoreError> {
        Err(broken())
    }
    async fn write_memos(&self, _: &[NewMemo]) -> Result<(), StoreError> {
        Err(broken())
    }
    async fn write_shadowed(&self, _: &[Shadowed]) -> Result<(), StoreError> {
        Err(broken())
    }
}

/// A running sync and what it works on.
struct Run {
    replica: Replica,
    clock: Arc<TestClock>,
    script: Arc<Script>,
    task: tokio::task::JoinHandle<StoreError>,
}

fn run(sessions: Vec<Vec<Step>>) -> Run {
    start(Script { sessions: Mutex::new(sessions.into()), ..Script::default() })
}

fn start(script: Script) -> Run {
    let (replica, clock) = (Replica::default(), Arc::new(TestClock(Instant::now())));
    let script = Arc::new(script);
    let (store, same_clock) = (Arc::<Script>::clone(&script), Arc::<TestClock>::clone(&clock));
    let sync = Sync::new(replica.clone(), store, same_clock, Options::default());
    Run { replica, clock, script, task: tokio::spawn(sync.run()) }
}

impl Run {
    async fn generation(&self, wanted: u64) {
        self.replica.generation().wait_for(|g| *g >= wanted).await.unwrap();
    }

    fn knows(&self, prefix: &str) -> bool {
        self.replica.snapshot().key(prefix).is_some()
    }

    fn freshness(&self) -> Freshness {
        self.replica.freshness(self.clock.as_ref(), Duration::from_mins(5))
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_followed_at_once_and_the_tick_does_without() {
    let run = run(vec![vec![Step::Load(vec!["a"]), Step::Changed(vec!["b"]), Step::Changed(vec!["c"])]]);
    run.generation(1).await;
    let loaded = Instant::now();
    run.script.hint.notify_one();
    run.generation(2).await;
    assert_eq!(loaded.elapsed(), Duration::ZERO);
    run.generation(3).await;
    assert!(loaded.elapsed() <= Duration::from_millis(51), "{:?}", loaded.elapsed());
    assert!(run.knows("a") && run.knows("b") && run.knows("c"));
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_made_good_by_a_full_load_while_the_old_state_serves() {
    let run = run(vec![vec![Step::Load(vec!["a"]), Step::Broken], vec![Step::Load(vec!["b"])]]);
    run.generation(1).await;
    let loaded = Instant::now();
    run.generation(2).await;
    assert!(loaded.elapsed() < Duration::from_millis(200), "{:?}", loaded.elapsed());
    assert!(!run.knows("a") && run.knows("b"));
    assert_eq!(run.replica.stats().lost.value(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_told_is_loaded_again_in_the_same_session() {
    let run = run(vec![vec![Step::Load(vec!["a"]), Step::Everything, Step::Load(vec!["b"])]]);
    run.generation(2).await;
    assert!(run.knows("b") && !run.knows("a"));
    assert_eq!(run.replica.stats().lost.value(), 0);
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_lost_session_and_the_age_says_so_meanwhile() {
    let run = run(vec![vec![Step::Load(vec!["a"]), Step::Silence], vec![Step::Load(vec!["a"])]]);
    run.generation(1).await;
    assert_eq!(run.freshness(), Freshness::Fresh);
    tokio::time::advance(Duration::from_millis(1_500)).await;
    assert_eq!(run.freshness(), Freshness::Stale);
    run.generation(2).await;
    assert_eq!(run.freshness(), Freshness::Fresh);
}

#[tokio::test(start_paused = true)]
async fn without_a_database_it_tries_again_ever_slower_but_at_least_every_second() {
    let run = run(Vec::new());
    sleep(Duration::from_mins(1)).await;
    let asked = run.script.asked.lock().unwrap().clone();
    let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] < Duration::from_millis(100), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= Duration::from_millis(1_001)), "{gaps:?}");
    assert!(asked.len() < 70, "{} tries in a minute", asked.len());
    assert_eq!(run.freshness(), Freshness::NeverLoaded);
    assert!(!run.replica.connected());
}

#[tokio::test(start_paused = true)]
async fn a_stranger_or_an_empty_database_is_not_the_database() {
    for impostor in [Step::Stranger(vec!["b"]), Step::Load(Vec::new())] {
        let ours = vec![Step::Load(vec!["a"]), Step::Broken];
        let run = run(vec![ours, vec![impostor], vec![Step::Load(vec!["c"])]]);
        run.generation(2).await;
        assert!(run.knows("c") && !run.knows("b"));
        assert_eq!(run.replica.stats().lost.value(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_database_is_fine_to_begin_with() {
    let run = run(vec![vec![Step::Load(Vec::new()), Step::Changed(vec!["a"])]]);
    run.generation(2).await;
    assert!(run.knows("a"));
}

#[tokio::test(start_paused = true)]
async fn old_tables_end_it_before_anything_was_loaded() {
    let run = start(Script { old_schema: true, ..Script::default() });
    assert!(matches!(run.task.await.unwrap(), StoreError::OldSchema { current: 0, needed: 1 }));
}

#[tokio::test(start_paused = true)]
async fn clocks_that_differ_are_noticed_and_ones_that_agree_again_too() {
    let (replica, clock) = (Replica::default(), Arc::new(TestClock(Instant::now())));
    let store: Arc<dyn Store> = Arc::new(Script::default());
    let mut sync = Sync::new(replica.clone(), store, Arc::<TestClock>::clone(&clock), Options::default());
    let asked = sync.ask();
    tokio::time::advance(Duration::from_secs(1)).await;
    for (database, skew, differ) in [
        // Anything between asking and being answered is no difference.
        (asked.wall.after(Duration::from_millis(500)), 0, false),
        (asked.wall.after(Duration::from_secs(3)), -2_000_000, false),
        (asked.wall.after(Duration::from_millis(3_001)), -2_001_000, true),
        (asked.wall, 0, false),
        (asked.wall.before(Duration::from_secs(5)), 5_000_000, true),
    ] {
        sync.compare_clocks(&asked, &Look { now: Some(database), ..Look::default() });
        assert_eq!((replica.clock_skew_micros(), sync.clocks_differ), (skew, differ));
    }
}
