//! Checks that a part of the server that panics is restarted, that the other parts continue, and that no request passes
//! because of it.
//!
//! The panics come from a database and a clock that panic on demand. The server runs in a process of its own, because
//! the panic hook belongs to the whole process, and because the tests read its log afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tenantgate::batch_writer::Schedule;
use tenantgate::clock::{Clock, SystemClock, Timestamp};
use tenantgate::key::KeyId;
use tenantgate::replica::{prune, snapshot_file};
use tenantgate::server::{ListenAddress, ServerSettings, serve};
use tenantgate::store::sqlite::SqliteStore;
use tenantgate::store::{
    Announcement, Changes, Management as _, NewMemo, Refusal, Session, Shadowed, SnapshotRow, Store,
    StoreError, SyncPoint, Touched, Used,
};
use tenantgate::telemetry::{self, LogFormat, panics};
use tenantgate::verify::memo::{MemoPolicy, Peppers};
use tenantgate::verify::pepper::Pepper;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::support::link::free_port;
use crate::support::{Ask, Client, PATIENCE, World, eventually, http, runtime, wait};

/// Set in the process that runs the server.
const INSIDE: &str = "TENANTGATE_TEST_PANICS";

/// The key in the text of the panics. No part of it may be logged, not even the end, which no pattern would recognize.
const ABOUT: &str = "llmk_panicked_SecretInAPanic0123456789";
const OFTEN: Duration = Duration::from_millis(100);

#[test]
fn a_part_that_panics_is_restarted_and_its_values_are_not_logged() {
    let program = std::env::current_exe().expect("this program");
    let test = "panics::in_a_separate_process";
    let mut child = Command::new(program);
    child.args([test, "--exact", "--nocapture"]).env(INSIDE, "1").env_remove("RUST_BACKTRACE");
    let said = child.output().expect("it starts");
    let all = [said.stdout, said.stderr].map(|all| String::from_utf8_lossy(&all).into_owned()).join("\n");
    assert!(said.status.success() && all.contains("1 passed"), "{all}");
    for part in ["announce", "bcrypt", "health", "keep", "memos", "prune", "replica", "usage"] {
        let begun_again =
            |line: &str| line.contains("is restarted") && line.contains(&format!("part=\"{part}\""));
        assert_eq!(all.lines().any(begun_again), part != "bcrypt", "{part}: {all}");
    }
    assert!(
        all.contains("panic, a defect of tenantgate: please report it at=\"tests/it/panics.rs:"),
        "{all}"
    );
    assert!(!all.contains("SecretInAPanic") && !all.contains("panicked at"), "{all}");
}

/// Where to panic.
#[derive(Default)]
struct Springs {
    /// Each of these panics once.
    once: Mutex<BTreeSet<&'static str>>,
    /// Each of these panics every time.
    always: Mutex<BTreeSet<&'static str>>,
    calls: Mutex<BTreeMap<&'static str, usize>>,
}

impl Springs {
    fn step_on(&self, what: &'static str) {
        *self.calls.lock().unwrap().entry(what).or_default() += 1;
        let sprung = self.once.lock().unwrap().remove(what) || self.always.lock().unwrap().contains(what);
        assert!(!sprung, "{what} is about {ABOUT}");
    }

    fn calls(&self, what: &str) -> usize {
        self.calls.lock().unwrap().get(what).copied().unwrap_or_default()
    }
}

/// A clock that panics for the tasks that run beside requests, and not for the replica.
struct TrappedClock(Arc<Springs>);

impl Clock for TrappedClock {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn uptime(&self) -> Duration {
        if std::thread::current().name() != Some("replica") {
            self.0.step_on("uptime");
        }
        SystemClock.uptime()
    }

    fn boot(&self) -> String {
        SystemClock.boot()
    }
}

struct Trap {
    store: SqliteStore,
    springs: Arc<Springs>,
}

struct TrappedSession {
    session: Box<dyn Session>,
    springs: Arc<Springs>,
}

#[async_trait]
impl Session for TrappedSession {
    async fn load(&mut self, sink: &mut (dyn FnMut(SnapshotRow) + Send)) -> Result<SyncPoint, StoreError> {
        self.springs.step_on("load");
        self.session.load(sink).await
    }

    async fn hint(&mut self) -> Result<(), StoreError> {
        self.session.hint().await
    }

    async fn changes(&mut self) -> Result<Changes, StoreError> {
        self.springs.step_on("changes");
        self.session.changes().await
    }

    async fn has(&mut self, change: &SyncPoint) -> Result<bool, StoreError> {
        self.session.has(change).await
    }
}

#[async_trait]
impl Store for Trap {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    fn address(&self) -> String {
        self.store.address()
    }

    fn embedded(&self) -> bool {
        self.store.embedded()
    }

    async fn session(&self) -> Result<Box<dyn Session>, StoreError> {
        self.springs.step_on("session");
        let session = self.store.session().await?;
        Ok(Box::new(TrappedSession { session, springs: Arc::clone(&self.springs) }))
    }

    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        self.store.migrate().await
    }

    async fn prune_changes(&self, keep: Duration) -> Result<u64, StoreError> {
        self.springs.step_on("prune");
        self.store.prune_changes(keep).await
    }

    async fn announce(&self, announcement: &Announcement<'_>) -> Result<(), StoreError> {
        self.springs.step_on("announce");
        self.store.announce(announcement).await
    }

    async fn retract(&self, id: Uuid) -> Result<(), StoreError> {
        self.store.retract(id).await
    }

    async fn touch_keys(&self, used: &[(KeyId, Timestamp)]) -> Result<Touched, StoreError> {
        self.springs.step_on("usage");
        self.store.touch_keys(used).await
    }

    async fn write_shadowed(&self, shadowed: &[Shadowed]) -> Result<(), StoreError> {
        self.store.write_shadowed(shadowed).await
    }

    async fn write_refusals(&self, refusals: &[Refusal]) -> Result<(), StoreError> {
        self.springs.step_on("refusals");
        self.store.write_refusals(refusals).await
    }

    async fn add_usage(&self, used: &[Used]) -> Result<(), StoreError> {
        self.springs.step_on("usage_counts");
        self.store.add_usage(used).await
    }

    async fn prune_usage(&self, keep: Duration) -> Result<(), StoreError> {
        self.store.prune_usage(keep).await
    }

    async fn write_memos(&self, memos: &[NewMemo]) -> Result<(), StoreError> {
        self.springs.step_on("memos");
        self.store.write_memos(memos).await
    }
}

/// The server and a client.
struct Stage {
    springs: Arc<Springs>,
    client: Client,
    ops: String,
}

impl Stage {
    /// How often a part was restarted; `None` while the metrics page itself panics.
    fn restarts(&self, part: &str) -> Option<f64> {
        let page = http::get(&self.ops, "/metrics").ok().filter(|page| page.status == 200)?;
        let name = format!("tenantgate_restarts_total{{part=\"{part}\"}}");
        Some(http::samples(&page.body)[&name])
    }

    /// Lets an action of a part panic once, and waits until the part was restarted and repeats the action.
    #[track_caller]
    fn panics_once(&self, what: &'static str, part: &str, nudge: impl Fn()) {
        let before = self.restarts(part).expect("the page is there");
        self.springs.once.lock().unwrap().insert(what);
        eventually(&format!("{part} is restarted"), PATIENCE, || {
            nudge();
            self.restarts(part).filter(|n| *n > before).ok_or(())
        });
        let calls = self.springs.calls(what);
        eventually(&format!("{part} works again"), PATIENCE, || {
            nudge();
            if self.springs.calls(what) > calls { Ok(()) } else { Err(calls) }
        });
    }

    #[track_caller]
    fn becomes(&self, wanted: &str, key: &str) {
        eventually(&format!("{key}: {wanted}"), PATIENCE, || {
            match wait(self.client.ask(Ask::with_key(key))).map(|answer| answer.row()) {
                Ok(row) if row == wanted => Ok(()),
                seen => Err(seen),
            }
        });
    }
}

fn settings(world: &World, springs: &Arc<Springs>, dir: &Path) -> ServerSettings {
    let store = SqliteStore::new(world.db.url()).unwrap();
    let mut settings = ServerSettings::on(Arc::new(Trap { store, springs: Arc::clone(springs) }));
    settings.clock = Arc::new(TrappedClock(Arc::clone(springs)));
    settings.last_used = Schedule::every(OFTEN);
    settings.memos = Schedule::every(OFTEN);
    settings.usage = Schedule::every(OFTEN);
    settings.prune = prune::PruneOptions { interval: OFTEN, ..prune::PruneOptions::default() };
    settings.peppers = Peppers::new(vec![Pepper::random().unwrap()], MemoPolicy::Optional);
    let (path, max_staleness) = (dir.join("snapshot"), Duration::from_mins(5));
    settings.snapshot_file =
        Some(snapshot_file::SnapshotFileOptions { path, interval: OFTEN, max_staleness });
    settings
}

/// Runs the server for the test above. Does nothing if the variable is not set.
#[test]
fn in_a_separate_process() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let world = World::somewhere();
    panics::hide_secrets();
    telemetry::start_logging("trace".parse().unwrap(), LogFormat::Text);
    let springs = Arc::new(Springs::default());
    let mut settings = settings(&world, &springs, world.db.dir());
    let (address, ops) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    settings.listen.listen = vec![ListenAddress::Tcp(address.clone())];
    settings.ops_listen.clone_from(&ops);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = runtime().spawn(serve(settings, async move {
        let _ = stopped.await;
    }));
    let stage = Stage { springs, client: Client::to(&address), ops };
    let (live, other) = (&world.live.text, &world.other.text);
    stage.becomes("200 ok", live);

    let use_it = || stage.becomes("200 ok", live);
    stage.panics_once("usage", "usage", use_it);
    stage.panics_once("usage_counts", "usage_counts", use_it);
    stage.panics_once("prune", "prune", || ());
    let mark = SqliteStore::new(world.db.url()).unwrap();
    stage.panics_once("announce", "announce", || drop(wait(mark.mark())));
    // A memo is written once for a key, and lost here.
    stage.springs.once.lock().unwrap().insert("memos");
    stage.becomes("200 ok", other);
    eventually("memos is restarted", PATIENCE, || stage.restarts("memos").filter(|n| *n > 0.0).ok_or(()));
    stage.becomes("403 tenant_inactive", &world.of_sleepy.text);
    stage.becomes("200 ok", &world.issued.text);
    let memo = format!("SELECT key_memo FROM api_keys WHERE id = '{}'", world.issued.id);
    eventually("memos are written again", PATIENCE, || world.db.text(&memo).map(drop).ok_or(()));
    // The time is read by two tasks and by the metrics page itself.
    for part in ["health", "keep"] {
        eventually(&format!("{part} is restarted"), PATIENCE, || {
            stage.springs.once.lock().unwrap().insert("uptime");
            stage.restarts(part).filter(|n| *n > 0.0).ok_or(())
        });
    }
    stage.springs.once.lock().unwrap().clear();

    stage.panics_once("changes", "replica", || ());
    let lose_the_session = || {
        stage.springs.once.lock().unwrap().insert("changes");
    };
    stage.panics_once("load", "replica", lose_the_session);
    stage.springs.once.lock().unwrap().clear();
    stage.springs.always.lock().unwrap().insert("session");
    lose_the_session();
    stage.becomes("503 unavailable", "llmk_nobody_12345678");
    stage.becomes("200 ok", live);
    world.db.json(&["key", "revoke", &world.live.id]);
    stage.springs.always.lock().unwrap().clear();
    stage.becomes("401 revoked", live);
    stage.becomes("401 unknown", "llmk_nobody_12345678");
    stage.becomes("200 ok", other);
    drop(stop);
    wait(server).expect("no panic").expect("it stops gracefully");
}
