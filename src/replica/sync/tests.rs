//! Does the sync task walk its states as drawn? With a scripted database and time held still.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::*;
use crate::clock::Timestamp;
use crate::decision::Freshness;
use crate::key::KeyId;
use crate::profile::ProfileRow;
use crate::record::{ExpiresAt, KeyRecord, SecretHash};
use crate::replica::tests::said;
use crate::store::{Announcement, NewMemo, Refusal, SchemaVersion, Shadowed, Used};
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
    /// Everything, after a while.
    Slow(Vec<&'static str>),
    /// Shows these keys.
    Load(Vec<&'static str>),
    /// Shows these keys of another database.
    Stranger(Vec<&'static str>),
    /// These keys changed.
    Changed(Vec<&'static str>),
    /// Somebody left a mark.
    Marked,
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
pub(crate) struct Script {
    sessions: Mutex<VecDeque<Vec<Step>>>,
    old_schema: bool,
    embedded: bool,
    migrated: AtomicBool,
    /// Whether it has every change that it had.
    remembers: bool,
    hint: Arc<Notify>,
    /// When sessions were asked for.
    asked: Mutex<Vec<Instant>>,
    /// What servers said of themselves: position, and how long each serves.
    pub(in crate::replica) announced: Mutex<Vec<(String, Duration)>>,
    pub(in crate::replica) refuses_announcements: AtomicBool,
    pub(in crate::replica) retracted: Mutex<Vec<Uuid>>,
    /// How much of the change log was to be kept, each time.
    pub(in crate::replica) pruned: Mutex<Vec<Duration>>,
    /// How much of usage was to be kept, each time.
    pub(in crate::replica) pruned_usage: Mutex<Vec<Duration>>,
    /// Counts that were added.
    pub(crate) usage: Mutex<Vec<Used>>,
    pub(crate) refuses_usage: AtomicBool,
}

struct Scripted {
    steps: VecDeque<Step>,
    remembers: bool,
    hint: Arc<Notify>,
}

fn key(prefix: &str) -> Row {
    let record = KeyRecord {
        id: KeyId(Uuid::nil()),
        tenant_id: TenantId(Uuid::nil()),
        prefix: prefix.into(),
        hash: None,
        expires_at: ExpiresAt::NEVER,
        revoked: false,
        not_before: Timestamp::MIN,
        disabled: false,
    };
    Row::Key(record, None, ProfileRow::default())
}

fn ours() -> Look {
    Look { identity: "ours".into(), newest_change: Some("7".into()), ..Look::default() }
}

fn broken() -> StoreError {
    StoreError::Unavailable("broken".into())
}

#[async_trait]
impl Session for Scripted {
    async fn load(&mut self, sink: &mut (dyn FnMut(Row) + Send)) -> Result<Look, StoreError> {
        let (keys, identity) = match self.steps.pop_front() {
            Some(Step::Load(keys)) => (keys, "ours"),
            Some(Step::Stranger(keys)) => (keys, "another"),
            Some(Step::Slow(keys)) => {
                sleep(Duration::from_secs(5)).await;
                (keys, "ours")
            }
            Some(Step::Silence) => std::future::pending().await,
            _ => return Err(broken()),
        };
        for prefix in keys {
            sink(key(prefix));
        }
        Ok(Look { identity: identity.into(), ..ours() })
    }

    async fn hint(&mut self) -> Result<(), StoreError> {
        self.hint.notified().await;
        Ok(())
    }

    async fn has(&mut self, _: &Look) -> Result<bool, StoreError> {
        Ok(self.remembers)
    }

    async fn changes(&mut self) -> Result<Changes, StoreError> {
        match self.steps.pop_front() {
            Some(Step::Changed(keys)) => {
                let rows = keys.into_iter().map(|prefix| Change::Now(key(prefix))).collect();
                Ok(Changes::Rows(rows, ours()))
            }
            Some(Step::Marked) => Ok(Changes::Rows(vec![Change::Mark], ours())),
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
        self.embedded
    }
    async fn session(&self) -> Result<Box<dyn Session>, StoreError> {
        self.asked.lock().unwrap().push(Instant::now());
        let steps = self.sessions.lock().unwrap().pop_front().ok_or_else(broken)?;
        let (steps, remembers, hint) = (steps.into(), self.remembers, Arc::clone(&self.hint));
        Ok(Box::new(Scripted { steps, remembers, hint }))
    }
    async fn schema_version(&self) -> Result<SchemaVersion, StoreError> {
        Ok(SchemaVersion { current: i64::from(!self.old_schema), needed: 1 })
    }
    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        self.migrated.store(true, Relaxed);
        Ok(vec![1])
    }
    async fn prune_changes(&self, keep: Duration) -> Result<u64, StoreError> {
        self.pruned.lock().unwrap().push(keep);
        Err(broken())
    }
    async fn announce(&self, said: &Announcement<'_>) -> Result<(), StoreError> {
        self.announced.lock().unwrap().push((said.position.to_owned(), said.serves_for));
        if self.refuses_announcements.load(Relaxed) { Err(broken()) } else { Ok(()) }
    }
    async fn retract(&self, id: Uuid) -> Result<(), StoreError> {
        self.retracted.lock().unwrap().push(id);
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
    async fn write_refusals(&self, _: &[Refusal]) -> Result<(), StoreError> {
        Err(broken())
    }
    async fn add_usage(&self, used: &[Used]) -> Result<(), StoreError> {
        if self.refuses_usage.load(Relaxed) {
            return Err(broken());
        }
        self.usage.lock().unwrap().extend(used);
        Ok(())
    }
    async fn prune_usage(&self, keep: Duration) -> Result<(), StoreError> {
        self.pruned_usage.lock().unwrap().push(keep);
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
    start_as(Options::default(), Replica::default(), script)
}

fn start_as(options: Options, replica: Replica, script: Script) -> Run {
    let (script, clock) = (Arc::new(script), Arc::new(TestClock(Instant::now())));
    let (store, same_clock) = (Arc::<Script>::clone(&script), Arc::<TestClock>::clone(&clock));
    let sync = Sync::new(replica.clone(), store, same_clock, options);
    Run { replica, clock, script, task: tokio::spawn(sync.run()) }
}

/// A task that was not begun.
fn idle() -> Sync {
    let (store, clock) = (Arc::new(Script::default()), Arc::new(TestClock(Instant::now())));
    Sync::new(Replica::default(), store, clock, Options::default())
}

impl Run {
    async fn generation(&self, wanted: u64) {
        let mut generation = self.replica.generation();
        let comes = timeout(Duration::from_mins(10), generation.wait_for(|g| *g >= wanted));
        comes.await.expect("it comes").unwrap();
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
    let differs = "WARN: the clock here differs from the database's, keys expire by the later one: mend it";
    let agrees = "INFO: the clock here agrees with the database's again";
    let mut sync = idle();
    let asked = sync.ask();
    tokio::time::advance(Duration::from_secs(1)).await;
    let asked = sync.answered(asked);
    assert_eq!(asked.answered.saturating_sub(asked.uptime), Duration::from_secs(1));
    let _ = said();
    for (database, skew, line) in [
        // Anything between asking and being answered is no difference.
        (asked.wall.after(Duration::from_millis(500)), 0, None),
        (asked.wall.after(Duration::from_secs(3)), -2_000_000, None),
        (asked.wall.after(Duration::from_millis(3_001)), -2_001_000, Some(differs)),
        (asked.wall.after(Duration::from_millis(3_002)), -2_002_000, None),
        (asked.wall, 0, Some(agrees)),
        (asked.wall, 0, None),
        (asked.wall.before(Duration::from_secs(5)), 5_000_000, Some(differs)),
    ] {
        sync.compare_clocks(&asked, &Look { now: Some(database), ..Look::default() });
        assert_eq!(sync.replica.clock_skew_micros(), skew);
        assert_eq!(said(), Vec::from_iter(line), "{skew}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_late_says_what_time_it_was_then() {
    let mut sync = idle();
    let asked = sync.ask();
    tokio::time::advance(Duration::from_secs(1)).await;
    let look = Look { now: Some(Timestamp(5_000_000)), ..ours() };
    sync.apply(Vec::new(), look, &sync.answered(asked));
    assert_eq!(sync.replica.age(sync.clock.as_ref()), Some(Duration::from_secs(1)));
    assert_eq!(sync.replica.now(sync.clock.as_ref()), Timestamp(5_000_000));
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_that_was_overcome_the_next_one_is_tried_at_as_quickly_as_the_first() {
    let mut sessions: Vec<_> = (0..8).map(|_| vec![Step::Broken]).collect();
    sessions.extend([vec![Step::Load(vec!["a"]), Step::Broken], vec![Step::Load(vec!["b"])]]);
    let run = run(sessions);
    run.generation(1).await;
    let loaded = Instant::now();
    run.generation(2).await;
    assert!(loaded.elapsed() < Duration::from_millis(200), "{:?}", loaded.elapsed());
}

#[tokio::test(start_paused = true)]
async fn old_tables_are_brought_up_to_date_where_that_is_asked_for_or_nobodys_decision() {
    for (old, embedded, migrate) in
        [(true, true, false), (true, false, true), (false, true, false), (false, false, true)]
    {
        let sessions = Mutex::new(vec![vec![Step::Load(vec!["a"])]].into());
        let script = Script { sessions, embedded, old_schema: old, ..Script::default() };
        let run = start_as(Options { migrate, ..Options::default() }, Replica::default(), script);
        run.generation(1).await;
        assert_eq!(run.script.migrated.load(Relaxed), old);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_is_doubted_as_long_as_what_the_file_said_may_be_served() {
    for (age_secs, doubted) in [(0, true), (60, true), (360, false)] {
        let replica = Replica::default();
        let mut reload = replica.snapshot().reload(replica.peppers());
        reload.add(key("a"));
        replica.restored(reload.finish(), ours(), Duration::from_secs(age_secs), Duration::ZERO);
        let sessions = vec![vec![Step::Stranger(vec!["b"])], vec![Step::Load(vec!["c"])]];
        let script = Script { sessions: Mutex::new(sessions.into()), ..Script::default() };
        let run = start_as(Options::default(), replica, script);
        run.generation(2).await;
        assert_eq!((run.knows("b"), run.knows("c")), (!doubted, doubted), "{age_secs}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_is_doubted_however_long_the_database_was_away() {
    let mut sessions = vec![vec![Step::Load(vec!["a"]), Step::Broken]];
    sessions.extend((0..400).map(|_| vec![Step::Broken]));
    sessions.extend([vec![Step::Stranger(vec!["b"])], vec![Step::Load(vec!["c"])]]);
    let run = run(sessions);
    run.generation(1).await;
    sleep(Duration::from_secs(390)).await;
    assert_eq!(run.freshness(), Freshness::TooOld);
    run.generation(2).await;
    assert!(run.knows("c") && !run.knows("b"));
}

#[tokio::test(start_paused = true)]
async fn an_empty_database_that_stays_empty_is_no_other_one() {
    let steps = vec![Step::Load(vec![]), Step::Everything, Step::Load(vec![]), Step::Changed(vec!["a"])];
    let run = run(vec![steps]);
    run.generation(3).await;
    assert!(run.knows("a"));
    assert_eq!(run.replica.stats().lost.value(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_database_that_forgot_a_change_is_believed_and_told_of() {
    for remembers in [true, false] {
        let sessions = vec![vec![Step::Load(vec!["a"]), Step::Broken], vec![Step::Load(vec!["b"])]];
        let script = Script { sessions: Mutex::new(sessions.into()), remembers, ..Script::default() };
        let run = start(script);
        run.generation(1).await;
        assert_eq!(run.replica.stats().went_back.value(), 0, "nothing was known before");
        run.generation(2).await;
        assert_eq!(run.replica.stats().went_back.value(), u64::from(!remembers));
        assert!(run.knows("b"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_took_long_is_caught_up_with_before_it_is_used() {
    let run = run(vec![vec![Step::Slow(vec!["a"]), Step::Changed(vec!["b"]), Step::Silence]]);
    run.generation(2).await;
    assert!(run.knows("a") && run.knows("b"));
    assert_eq!(run.freshness(), Freshness::Fresh, "an unknown key is unknown, not undecided");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_kept_until_no_reader_looks_at_it_and_not_longer() {
    let run = run(vec![vec![Step::Load(vec!["a"]), Step::Changed(vec!["b"])]]);
    run.generation(1).await;
    let held = Arc::clone(&run.replica.snapshot());
    run.generation(2).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(Arc::strong_count(&held), 2, "a reader's and the task's");
    let last = Arc::downgrade(&held);
    drop(held);
    assert!(last.upgrade().is_some(), "a reader lets go of what has still to be taken apart");
    sleep(Duration::from_secs(1)).await;
    assert!(last.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_mark_is_told_of_and_a_change_is_none() {
    let run = run(vec![vec![Step::Load(vec!["a"]), Step::Changed(vec!["b"]), Step::Marked]]);
    let mut marks = run.replica.marks();
    run.generation(1).await;
    assert_eq!(*marks.borrow_and_update(), 1, "it may have passed over some");
    run.generation(2).await;
    assert_eq!(*marks.borrow_and_update(), 1);
    run.generation(3).await;
    assert_eq!(*marks.borrow_and_update(), 2);
}

#[test]
fn not_having_the_database_is_said_once_for_each_reason() {
    let gone = |why: &str| StoreError::Unavailable(why.into());
    let other = |why: &str| StoreError::WrongDatabase(why.into());
    let mut sync = idle();
    let _ = said();
    let mut says = |loaded: bool, error: &StoreError| {
        sync.loaded = loaded;
        sync.say_lost(error);
        said().join("\n")
    };
    let never = "WARN: no database yet, trying again";
    let mended = "ERROR: the database is not what it was, known keys are served until that is mended";
    let lost = "WARN: lost the database, known keys are served while it is gone";
    let panicked = "ERROR: a part of the server panicked and is restarted";
    assert_eq!(says(false, &gone("refused")), never);
    assert_eq!(says(false, &gone("reset")), "", "how exactly is no news");
    assert_eq!(says(false, &other("a standby")), never);
    assert_eq!(says(false, &other("a standby")), "");
    assert_eq!(says(true, &gone("refused")), lost);
    assert_eq!(says(true, &gone("reset")), "");
    assert_eq!(says(true, &other("a standby")), mended);
    assert_eq!(says(true, &other("a standby")), "");
    assert_eq!(says(true, &other("another")), mended);
    assert_eq!(says(true, &gone(PANICKED)), panicked);
    assert_eq!(says(true, &gone(PANICKED)), panicked);
    assert_eq!(says(true, &gone("refused")), lost);
    assert_eq!(sync.replica.stats().lost.value(), 12);
}

#[test]
fn of_rows_that_can_serve_no_request_the_first_hundred_are_named() {
    let sound = KeyRecord {
        hash: SecretHash::parse("$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232"),
        prefix: "llmk_a".into(),
        id: KeyId(Uuid::nil()),
        tenant_id: TenantId(Uuid::nil()),
        expires_at: ExpiresAt::NEVER,
        revoked: false,
        not_before: Timestamp::MIN,
        disabled: false,
    };
    for (rows, named) in [(0, 0), (1, 1), (99, 99), (100, 100), (101, 100), (150, 100)] {
        let mut damaged = Damaged::default();
        damaged.look_at(&Row::Key(sound.clone(), None, ProfileRow::default()));
        (0..rows).for_each(|_| damaged.look_at(&key("llmk_b")));
        let _ = said();
        damaged.say();
        let lines = said();
        assert_eq!(lines.len(), named);
        assert!(lines.iter().all(|line| line.starts_with("WARN: damaged row of api_keys")), "{lines:?}");
    }
}
