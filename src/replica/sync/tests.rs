//! Tests of the sync task with a scripted database and a paused clock.

mod script;

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use tokio::time::Instant;

pub(crate) use self::script::Script;
use self::script::{ScriptStep, key, known};
use super::*;
use crate::clock::Timestamp;
use crate::decision::Freshness;
use crate::record::KeyRecord;
use crate::replica::tests::logged;
use crate::store::SnapshotRow;

/// A clock that follows tokio's, which the tests pause.
struct TestClock(Instant);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(0).after(self.uptime())
    }
    fn uptime(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A running sync task and what it uses.
struct Run {
    replica: Replica,
    clock: Arc<TestClock>,
    script: Arc<Script>,
    task: tokio::task::JoinHandle<StoreError>,
}

fn run(sessions: Vec<Vec<ScriptStep>>) -> Run {
    start(Script { sessions: Mutex::new(sessions.into()), ..Script::default() })
}

fn start(script: Script) -> Run {
    start_as(SyncOptions::default(), Replica::default(), script)
}

fn start_as(options: SyncOptions, replica: Replica, script: Script) -> Run {
    let (script, clock) = (Arc::new(script), Arc::new(TestClock(Instant::now())));
    let (store, same_clock) = (Arc::<Script>::clone(&script), Arc::<TestClock>::clone(&clock));
    let sync = Sync::new(replica.clone(), store, same_clock, options);
    Run { replica, clock, script, task: tokio::spawn(sync.run()) }
}

/// A task that is not running.
fn idle() -> Sync {
    let (store, clock) = (Arc::new(Script::default()), Arc::new(TestClock(Instant::now())));
    Sync::new(Replica::default(), store, clock, SyncOptions::default())
}

impl Run {
    async fn generation(&self, wanted: u64) {
        let mut generation = self.replica.generation();
        let comes = timeout(Duration::from_mins(10), generation.wait_for(|g| *g >= wanted));
        comes.await.expect("the generation was not published").unwrap();
    }

    fn knows(&self, prefix: &str) -> bool {
        self.replica.snapshot().key(prefix).is_some()
    }

    fn freshness(&self) -> Freshness {
        self.replica.freshness(self.clock.as_ref(), Duration::from_mins(5))
    }
}

#[tokio::test(start_paused = true)]
async fn a_hint_causes_a_poll_at_once_and_the_tick_causes_one_without_a_hint() {
    let run = run(vec![vec![
        ScriptStep::Load(vec!["a"]),
        ScriptStep::Changed(vec!["b"]),
        ScriptStep::Changed(vec!["c"]),
    ]]);
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
async fn after_a_lost_session_all_rows_are_loaded_again() {
    let run =
        run(vec![vec![ScriptStep::Load(vec!["a"]), ScriptStep::Broken], vec![ScriptStep::Load(vec!["b"])]]);
    run.generation(1).await;
    let loaded = Instant::now();
    run.generation(2).await;
    assert!(loaded.elapsed() < Duration::from_millis(200), "{:?}", loaded.elapsed());
    assert!(!run.knows("a") && run.knows("b"));
    assert_eq!(run.replica.stats().lost.value(), 1);
}

#[tokio::test(start_paused = true)]
async fn if_the_change_log_is_not_enough_all_rows_are_loaded_in_the_same_session() {
    let run =
        run(vec![vec![ScriptStep::Load(vec!["a"]), ScriptStep::Everything, ScriptStep::Load(vec!["b"])]]);
    run.generation(2).await;
    assert!(run.knows("b") && !run.knows("a"));
    assert_eq!(run.replica.stats().lost.value(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_poll_without_answer_is_a_lost_session_and_makes_the_snapshot_stale() {
    let run =
        run(vec![vec![ScriptStep::Load(vec!["a"]), ScriptStep::Silence], vec![ScriptStep::Load(vec!["a"])]]);
    run.generation(1).await;
    assert_eq!(run.freshness(), Freshness::Fresh);
    tokio::time::advance(Duration::from_millis(1_500)).await;
    assert_eq!(run.freshness(), Freshness::Stale);
    run.generation(2).await;
    assert_eq!(run.freshness(), Freshness::Fresh);
}

#[tokio::test(start_paused = true)]
async fn without_a_database_attempts_back_off_to_two_a_second() {
    let run = run(Vec::new());
    sleep(Duration::from_mins(1)).await;
    let asked = run.script.asked.lock().unwrap().clone();
    let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] < Duration::from_millis(100), "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= Duration::from_millis(501)), "{gaps:?}");
    assert!(asked.len() < 130, "{} attempts in a minute", asked.len());
    assert_eq!(run.freshness(), Freshness::NeverLoaded);
    assert!(!run.replica.connected());
}

#[tokio::test(start_paused = true)]
async fn another_database_or_one_that_became_empty_is_rejected() {
    for impostor in [ScriptStep::Stranger(vec!["b"]), ScriptStep::Load(Vec::new())] {
        let ours = vec![ScriptStep::Load(vec!["a"]), ScriptStep::Broken];
        let run = run(vec![ours, vec![impostor], vec![ScriptStep::Load(vec!["c"])]]);
        run.generation(2).await;
        assert!(run.knows("c") && !run.knows("b"));
        assert_eq!(run.replica.stats().lost.value(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_database_is_accepted_at_the_start() {
    let run = run(vec![vec![ScriptStep::Load(Vec::new()), ScriptStep::Changed(vec!["a"])]]);
    run.generation(2).await;
    assert!(run.knows("a"));
}

#[tokio::test(start_paused = true)]
async fn an_old_schema_ends_the_task_before_the_first_load() {
    let run = start(Script { old_schema: true, ..Script::default() });
    assert!(matches!(run.task.await.unwrap(), StoreError::OldSchema { current: 0, needed: 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_clock_difference_is_logged_when_it_begins_and_ends() {
    let differs = "WARN: the clock here differs from the database's, keys expire by the later one: check NTP";
    let agrees = "INFO: the clock here agrees with the database's again";
    let mut sync = idle();
    let asked = sync.ask();
    tokio::time::advance(Duration::from_secs(1)).await;
    let asked = sync.answered(asked);
    assert_eq!(asked.answered.saturating_sub(asked.uptime), Duration::from_secs(1));
    let _ = logged();
    for (database, skew, line) in [
        // Any time between the start and the answer of the poll is no difference.
        (asked.wall.after(Duration::from_millis(500)), 0, None),
        (asked.wall.after(Duration::from_secs(3)), -2_000_000, None),
        (asked.wall.after(Duration::from_millis(3_001)), -2_001_000, Some(differs)),
        (asked.wall.after(Duration::from_millis(3_002)), -2_002_000, None),
        (asked.wall, 0, Some(agrees)),
        (asked.wall, 0, None),
        (asked.wall.before(Duration::from_secs(5)), 5_000_000, Some(differs)),
    ] {
        sync.compare_clocks(&asked, &SyncPoint { now: Some(database), ..SyncPoint::default() });
        assert_eq!(sync.replica.clock_skew_micros(), skew);
        assert_eq!(logged(), Vec::from_iter(line), "{skew}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_database_clock_is_taken_at_the_answer_and_the_age_from_the_start() {
    let mut sync = idle();
    let asked = sync.ask();
    tokio::time::advance(Duration::from_secs(1)).await;
    let point = SyncPoint { now: Some(Timestamp(5_000_000)), ..known() };
    sync.apply(Vec::new(), point, &sync.answered(asked));
    assert_eq!(sync.replica.age(sync.clock.as_ref()), Some(Duration::from_secs(1)));
    assert_eq!(sync.replica.now(sync.clock.as_ref()), Timestamp(5_000_000));
}

#[tokio::test(start_paused = true)]
async fn the_back_off_starts_again_after_a_successful_load() {
    let mut sessions: Vec<_> = (0..8).map(|_| vec![ScriptStep::Broken]).collect();
    sessions
        .extend([vec![ScriptStep::Load(vec!["a"]), ScriptStep::Broken], vec![ScriptStep::Load(vec!["b"])]]);
    let run = run(sessions);
    run.generation(1).await;
    let loaded = Instant::now();
    run.generation(2).await;
    assert!(loaded.elapsed() < Duration::from_millis(200), "{:?}", loaded.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_old_schema_is_migrated_on_request_or_if_embedded() {
    for (old, embedded, migrate) in
        [(true, true, false), (true, false, true), (false, true, false), (false, false, true)]
    {
        let sessions = Mutex::new(vec![vec![ScriptStep::Load(vec!["a"])]].into());
        let script = Script { sessions, embedded, old_schema: old, ..Script::default() };
        let run = start_as(SyncOptions { migrate, ..SyncOptions::default() }, Replica::default(), script);
        run.generation(1).await;
        assert_eq!(run.script.migrated.load(Relaxed), old);
    }
}

#[tokio::test(start_paused = true)]
async fn another_database_is_rejected_while_the_snapshot_file_may_be_served() {
    for (age_secs, rejected) in [(0, true), (60, true), (360, false)] {
        let replica = Replica::default();
        let mut reload = replica.snapshot().reload(replica.peppers());
        reload.add(key("a"));
        replica.restored(reload.finish(), known(), Duration::from_secs(age_secs), Duration::ZERO);
        let sessions = vec![vec![ScriptStep::Stranger(vec!["b"])], vec![ScriptStep::Load(vec!["c"])]];
        let script = Script { sessions: Mutex::new(sessions.into()), ..Script::default() };
        let run = start_as(SyncOptions::default(), replica, script);
        run.generation(2).await;
        assert_eq!((run.knows("b"), run.knows("c")), (!rejected, rejected), "{age_secs}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_database_is_rejected_after_an_outage_of_any_length() {
    let mut sessions = vec![vec![ScriptStep::Load(vec!["a"]), ScriptStep::Broken]];
    sessions.extend((0..800).map(|_| vec![ScriptStep::Broken]));
    sessions.extend([vec![ScriptStep::Stranger(vec!["b"])], vec![ScriptStep::Load(vec!["c"])]]);
    let run = run(sessions);
    run.generation(1).await;
    sleep(Duration::from_secs(390)).await;
    assert_eq!(run.freshness(), Freshness::TooOld);
    run.generation(2).await;
    assert!(run.knows("c") && !run.knows("b"));
}

#[tokio::test(start_paused = true)]
async fn a_database_that_stays_empty_is_accepted() {
    let steps = vec![
        ScriptStep::Load(vec![]),
        ScriptStep::Everything,
        ScriptStep::Load(vec![]),
        ScriptStep::Changed(vec!["a"]),
    ];
    let run = run(vec![steps]);
    run.generation(3).await;
    assert!(run.knows("a"));
    assert_eq!(run.replica.stats().lost.value(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_database_that_lost_a_change_is_used_and_counted() {
    for remembers in [true, false] {
        let sessions =
            vec![vec![ScriptStep::Load(vec!["a"]), ScriptStep::Broken], vec![ScriptStep::Load(vec!["b"])]];
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
async fn changes_during_a_long_load_are_applied_before_it_is_published() {
    let run =
        run(vec![vec![ScriptStep::Slow(vec!["a"]), ScriptStep::Changed(vec!["b"]), ScriptStep::Silence]]);
    run.generation(2).await;
    assert!(run.knows("a") && run.knows("b"));
    assert_eq!(run.freshness(), Freshness::Fresh, "an unknown key must get 401, not 503");
}

#[tokio::test(start_paused = true)]
async fn a_replaced_snapshot_is_dropped_by_the_task_once_no_reader_holds_it() {
    let run = run(vec![vec![ScriptStep::Load(vec!["a"]), ScriptStep::Changed(vec!["b"])]]);
    run.generation(1).await;
    let held = Arc::clone(&run.replica.snapshot());
    run.generation(2).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(Arc::strong_count(&held), 2, "references of the reader and the task");
    let last = Arc::downgrade(&held);
    drop(held);
    assert!(last.upgrade().is_some(), "the reader dropped the last reference");
    sleep(Duration::from_secs(1)).await;
    assert!(last.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn marks_and_loads_notify_and_changes_do_not() {
    let run =
        run(vec![vec![ScriptStep::Load(vec!["a"]), ScriptStep::Changed(vec!["b"]), ScriptStep::Marked]]);
    let mut marks = run.replica.marks();
    run.generation(1).await;
    assert_eq!(*marks.borrow_and_update(), 1, "a load may have skipped marks");
    run.generation(2).await;
    assert_eq!(*marks.borrow_and_update(), 1);
    run.generation(3).await;
    assert_eq!(*marks.borrow_and_update(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_valid_again_is_counted_if_the_tables_are_others_or_a_change_is_lost() {
    let row = |off: bool| match key("a") {
        SnapshotRow::Key(record, memo, profile) => {
            SnapshotRow::Key(KeyRecord { disabled: off, ..record }, memo, profile)
        }
        other => other,
    };
    for (tables, remembers, alarms) in [("1", true, 0), ("2", true, 1), ("1", false, 1)] {
        let mut sync = idle();
        let snapshot = Snapshot::of(vec![row(true)], sync.replica.peppers());
        sync.publish(snapshot);
        let next = Snapshot::of(vec![row(false)], sync.replica.peppers());
        let at = |tables: &str| SyncPoint { tables: tables.into(), ..known() };
        let script = Script { sessions: Mutex::new(vec![Vec::new()].into()), remembers, ..Script::default() };
        let mut session = script.session().await.unwrap();
        let _ = logged();
        let known = Some(at("1"));
        sync.check_for_lost_changes(known, &next, &at(tables), session.as_mut()).await.unwrap();
        assert_eq!(sync.replica.stats().went_back.value(), alarms, "{tables} {remembers}");
        let said = logged().join("\n");
        assert_eq!(said.contains("1 keys and tenants are active again"), alarms > 0, "{said}");
    }
}

#[test]
fn the_first_hundred_damaged_rows_are_logged() {
    for (rows, named) in [(0, 0), (1, 1), (99, 99), (100, 100), (101, 100), (150, 100)] {
        let mut damaged = DamagedRows::default();
        (0..rows).for_each(|_| damaged.add(&key("llmk_b")));
        let _ = logged();
        damaged.log();
        let lines = logged();
        assert_eq!(lines.len(), named);
        assert!(lines.iter().all(|line| line.starts_with("WARN: damaged row of api_keys")), "{lines:?}");
    }
}
