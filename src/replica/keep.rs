//! What if we start while the database is away?
//!
//! Then we serve what we knew: every server with a snapshot file writes its snapshot
//! there now and then, and reads it once, at its start. The file is authenticated with
//! a pepper, so that nobody can put keys into it; it carries the time of the look it is
//! of, so that it counts as no younger than it is; and it is refused when it is older
//! than the replica may be, from another database, or from the future. There is no
//! plaintext in it: bcrypt hashes and memos, as in the database.
//!
//! What comes from the file is doubted as if it were our own last look: a database that
//! shows something quite different has to wait until the file is too old to serve from.

mod file;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use self::file::{Head, open, save};
use super::{Replica, Snapshot};
use crate::clock::{Clock, Timestamp};
use crate::store::Look;

/// What two clocks may differ by without one of them being wrong.
const SLACK: Duration = Duration::from_secs(2);

/// How the snapshot is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub path: PathBuf,
    /// How soon after a change. A write of a million keys takes a second or two of one core.
    pub interval: Duration,
    /// How old a snapshot may be to be served.
    pub max_staleness: Duration,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is not there, or not to be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is not one of ours, or not whole.
    #[error("it is not a whole snapshot file of this version")]
    Malformed,
    /// It was not written with one of our peppers, or was changed since.
    #[error("it was written with another pepper, or changed by somebody since")]
    NotOurs,
    /// It is of another database.
    #[error("it is of the database {0}")]
    OtherDatabase(String),
    /// It is of a look that has not been made yet.
    #[error("it is from the future: {0}")]
    Future(Timestamp),
    /// The look it is of is longer ago than we may serve.
    #[error("it is {0:?} old, older than --max-staleness")]
    TooOld(Duration),
}

/// Keeps the snapshot of a replica in a file. Cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    replica: Replica,
    clock: Arc<dyn Clock>,
    /// The database, as its store names it.
    source: String,
    options: Options,
    written: Option<Written>,
    failing: bool,
}

/// What was written last.
#[derive(Clone, Copy)]
struct Written {
    generation: u64,
    age_then: Duration,
    at: Instant,
    took: Duration,
}

impl Keeper {
    /// A keeper of this replica, whose database its store calls `source`.
    #[must_use]
    pub fn new(replica: Replica, clock: Arc<dyn Clock>, source: String, options: Options) -> Self {
        Self { replica, clock, source, options, written: None, failing: false }
    }

    /// Serves from the file, if it may be served from. Call it before the first look at the database.
    pub fn restore(&self) {
        match self.read() {
            Ok((snapshot, look, age)) => {
                let (keys, tenants) = (snapshot.key_count(), snapshot.tenant_count());
                info!(
                    keys,
                    tenants,
                    age_ms = age.as_millis(),
                    "serving from the snapshot file until there is a database"
                );
                self.replica.restored(snapshot, look, age, self.clock.uptime());
            }
            Err(Refused::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => {
                debug!("no snapshot file yet");
            }
            Err(why) => warn!(file = %self.options.path.display(), %why, "the snapshot file is not used"),
        }
    }

    fn read(&self) -> Result<(Snapshot, Look, Duration), Refused> {
        let bytes = fs::read(&self.options.path)?;
        let (head, body) = open(&bytes, self.replica.peppers())?;
        if head.source != self.source {
            return Err(Refused::OtherDatabase(head.source));
        }
        let age = self.age(&head)?;
        let mut reload = self.replica.snapshot().reload(self.replica.peppers());
        file::rows(&head, body, |row| reload.add(row))?;
        let snapshot = reload.finish();
        Ok((snapshot, head.look(), age))
    }

    /// How long ago the look was: by the wall clock, and by the uptime if the machine still runs. The longer
    /// one: a wall clock set back makes nothing young.
    fn age(&self, head: &Head) -> Result<Duration, Refused> {
        let (looked_at, now) = (Timestamp(head.looked_at), self.clock.now());
        if looked_at > now.after(SLACK) {
            return Err(Refused::Future(looked_at));
        }
        let same_boot = head.boot == self.clock.boot();
        let uptime = Duration::from_millis(head.uptime_ms);
        let by_uptime = if same_boot { self.clock.uptime().saturating_sub(uptime) } else { Duration::ZERO };
        let age = now.since(looked_at).max(by_uptime);
        if age > self.options.max_staleness { Err(Refused::TooOld(age)) } else { Ok(age) }
    }

    /// Writes when there is something to write, for ever.
    pub async fn run(mut self) {
        let mut generation = self.replica.generation();
        loop {
            // A new snapshot or the time being up are all the same here.
            let _ = timeout(Duration::from_secs(1), generation.changed()).await;
            if self.is_due() {
                self.write().await;
            }
        }
    }

    /// Whether the file is too far behind. Not after every change: a busy database would have us write all
    /// the time.
    fn is_due(&self) -> bool {
        let Some(age) = self.replica.age(self.clock.as_ref()) else { return false };
        let Some(written) = &self.written else { return self.replica.connected() };
        let changed = self.replica.snapshot().generation != written.generation;
        let rested = written.at.elapsed() >= self.options.interval.max(written.took * 20);
        let behind = (written.at.elapsed() + written.age_then).saturating_sub(age);
        // While the database is away the last look gets no better, and is worth having whole.
        let last = !self.replica.connected() && (changed || behind > SLACK);
        // What could not be written is tried again, changed or not.
        last || (changed || self.failing) && rested || behind >= self.options.max_staleness / 4
    }

    /// Writes the snapshot in use.
    pub async fn write(&mut self) {
        // Its age first: a snapshot that comes later is newer than its age says, and never older.
        let Some(age) = self.replica.age(self.clock.as_ref()) else { return };
        let head = self.head(age);
        let snapshot = Arc::clone(&self.replica.snapshot());
        let (generation, at) = (snapshot.generation, Instant::now());
        let (path, peppers) = (self.options.path.clone(), self.replica.peppers().clone());
        let work = move || save(&path, head, &snapshot, &peppers);
        // What a panic says may be about anything, and is said without that elsewhere.
        let panicked = |_| Err(io::Error::other("a panic while it was written"));
        let result = tokio::task::spawn_blocking(work).await.unwrap_or_else(panicked);
        self.written = Some(Written { generation, age_then: age, at, took: at.elapsed() });
        self.say(result);
    }

    fn head(&self, age: Duration) -> Head {
        let look = self.replica.look();
        let (now, uptime) = (self.clock.now(), self.clock.uptime());
        Head {
            looked_at: now.before(age).0,
            boot: self.clock.boot(),
            uptime_ms: u64::try_from(uptime.saturating_sub(age).as_millis()).unwrap_or(u64::MAX),
            source: self.source.clone(),
            database_now: look.now.map(|now| now.0),
            identity: look.identity,
            place: look.place,
            position: look.position,
            newest_change: look.newest_change,
            keys: 0,
            tenants: 0,
            plans: 0,
            rules: 0,
        }
    }

    /// One line for each change of state.
    fn say(&mut self, result: io::Result<u64>) {
        let stats = self.replica.stats();
        match result {
            Ok(bytes) => {
                stats.kept.add_one();
                debug!(bytes, "snapshot file written");
                self.failing = false;
            }
            Err(error) => {
                stats.not_kept.add_one();
                if !std::mem::replace(&mut self.failing, true) {
                    let file = self.options.path.display();
                    warn!(%file, %error, "the snapshot file cannot be written, a restart without the database would serve nothing new");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clock::ManualClock;
    use crate::decision::Freshness;
    use crate::key::KeyId;
    use crate::key::format::parse;
    use crate::plan::PlanRow;
    use crate::profile::ProfileRow;
    use crate::record::{KeyRecord, SecretHash};
    use crate::replica::tests::said;
    use crate::route::{RouteId, RouteRow};
    use crate::store::Row;
    use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};
    use crate::verify::memo::{Peppers, Policy};
    use crate::verify::pepper::Pepper;

    const BOUND: Duration = Duration::from_mins(5);
    const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";

    /// A machine on which a server may run, and the file that it leaves.
    struct Machine {
        clock: Arc<ManualClock>,
        peppers: Peppers,
        folder: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::at(Timestamp(1_000_000_000_000_000)));
            let peppers = Peppers::new(vec![Pepper::random().unwrap()], Policy::Optional);
            Self { clock, peppers, folder: tempfile::tempdir().unwrap() }
        }

        fn keeper(&self, replica: &Replica) -> Keeper {
            let path = self.folder.path().join("snapshot");
            let options = Options { path, interval: Duration::from_secs(10), max_staleness: BOUND };
            let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&self.clock);
            Keeper::new(replica.clone(), clock, "postgres://here/own".into(), options)
        }

        /// A server looks, and writes its file some time later.
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
            for row in [Row::Key(record(), None, profile()), Row::Tenant(tenant), plan(), rule()] {
                reload.add(row);
            }
            let _ = replica.publish(reload.finish());
            let look = Look {
                now: Some(Timestamp(2_000_000_000_000_000)),
                identity: "own".into(),
                ..Look::default()
            };
            replica.looked(self.clock.uptime(), self.clock.uptime(), look);
            self.clock.advance(later);
            self.keeper(&replica).write().await;
        }

        fn restored(&self) -> Result<Replica, Refused> {
            let replica = Replica::new(self.peppers.clone());
            self.keeper(&replica).read()?;
            self.keeper(&replica).restore();
            Ok(replica)
        }
    }

    fn profile() -> ProfileRow {
        ProfileRow { scopes: Some("a".into()), networks: Some("::/0".into()), plan: Some("gold".into()) }
    }

    fn plan() -> Row {
        let limits = [Some("1/DAY".into()), Some("2/DAY".into()), None, Some("x".into())];
        Row::Plan(PlanRow { name: "gold".into(), limits })
    }

    fn rule() -> Row {
        Row::Route(RouteRow {
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
    async fn what_was_known_is_known_and_is_as_old_as_its_look() {
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
        assert!(matches!(plan(), Row::Plan(plan) if snapshot.plans().eq([&plan])));
        assert!(matches!(rule(), Row::Route(rule) if snapshot.rules().eq([&rule])));
        assert!(snapshot.plan("gold").unwrap().plan().is_err() && !snapshot.routes().is_empty());
        let tenant = snapshot.tenant(TenantId(Uuid::from_u128(2))).unwrap().tenant();
        assert_eq!((tenant.name.as_str(), &tenant.status), ("Acme", &TenantStatus::Suspended));
        assert_eq!((tenant.mode, tenant.plan.as_deref()), (Some(Mode::Shadow), Some("gold")));
        assert_eq!(replica.look().identity, "own");
    }

    #[tokio::test]
    async fn what_was_proven_is_known_to_be_and_a_file_by_an_older_pepper_is_read() {
        let (old, new) = (Pepper::random().unwrap(), Pepper::random().unwrap());
        let peppers =
            |list: &[&Pepper]| Peppers::new(list.iter().copied().cloned().collect(), Policy::Optional);
        let mut machine = Machine { peppers: peppers(&[&old]), ..Machine::new() };
        let replica = Replica::new(machine.peppers.clone());
        let key = parse(b"llmk_a_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg").unwrap();
        let memo = machine.peppers.memo(&record(), key).unwrap();
        replica.sees(vec![Row::Key(record(), Some(memo), ProfileRow::default())], machine.clock.as_ref());
        machine.keeper(&replica).write().await;
        for (list, known) in [(&[&old][..], true), (&[&new, &old], true), (&[&new], false), (&[], false)] {
            machine.peppers = peppers(list);
            let remembered = machine.restored().map(|replica| replica.snapshot().remembered);
            assert_eq!(remembered.ok(), known.then_some(1));
        }
    }

    #[tokio::test]
    async fn beyond_the_bound_and_from_the_future_it_is_refused() {
        let machine = Machine::new();
        machine.leaves_a_file(Duration::ZERO).await;
        let written = machine.clock.now();
        machine.clock.set_wall(written.before(SLACK));
        assert!(machine.restored().is_ok(), "clocks may differ by so much");
        machine.clock.set_wall(written.after(BOUND));
        assert!(machine.restored().is_ok(), "at the bound and not beyond");
        machine.clock.set_wall(written.before(Duration::from_secs(3)));
        assert!(matches!(machine.restored(), Err(Refused::Future(at)) if at == written));
        // A wall clock that is set back makes nothing young: the uptime counts on.
        machine.clock.advance(BOUND + Duration::from_secs(1));
        machine.clock.set_wall(written);
        assert!(matches!(machine.restored(), Err(Refused::TooOld(_))));
        // Nor does a wall clock that is right make up for an uptime that is not.
        let machine = Machine::new();
        machine.leaves_a_file(Duration::ZERO).await;
        machine.clock.set_wall(written.after(BOUND + Duration::from_secs(1)));
        assert!(matches!(machine.restored(), Err(Refused::TooOld(_))));
    }

    #[tokio::test]
    async fn it_is_written_when_there_is_something_new_and_not_all_the_time() {
        let machine = Machine::new();
        let replica = Replica::new(machine.peppers.clone());
        let mut keeper = machine.keeper(&replica);
        assert!(!keeper.is_due(), "nothing was looked at yet");
        let _ = replica.publish(replica.snapshot().reload(&machine.peppers).finish());
        replica.looked(machine.clock.uptime(), machine.clock.uptime(), Look::default());
        replica.set_connected(true);
        assert!(keeper.is_due());
        keeper.write().await;
        assert!(!keeper.is_due());
        let _ = replica.publish(replica.snapshot().changed(Vec::new(), &machine.peppers));
        assert!(!keeper.is_due(), "a change has to wait");
        replica.set_connected(false);
        assert!(keeper.is_due(), "but not when nothing better is to be had");
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_written_is_tried_again_after_a_rest_also_without_a_database() {
        for connected in [true, false] {
            let machine = Machine::new();
            let replica = Replica::new(machine.peppers.clone());
            replica.sees(Vec::new(), machine.clock.as_ref());
            replica.set_connected(connected);
            let mut keeper = machine.keeper(&replica);
            keeper.options.path = machine.folder.path().join("missing").join("snapshot");
            keeper.write().await;
            // The time of the test and that of the machine go on together.
            let go_on = async |millis| {
                tokio::time::advance(Duration::from_millis(millis)).await;
                machine.clock.advance(Duration::from_millis(millis));
            };
            assert!(!keeper.is_due(), "not at once");
            go_on(9_999).await;
            assert!(!keeper.is_due());
            go_on(20_000).await;
            assert!(keeper.is_due());
            keeper.options.path = machine.folder.path().join("snapshot");
            keeper.write().await;
            go_on(20_000).await;
            assert!(!keeper.is_due(), "written, and nothing has changed");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_due_after_a_rest_with_a_change_and_without_one_before_it_gets_too_old() {
        // Whether there is a database, whether something changed, and in milliseconds: how long ago it was
        // written, how old it was then, how old what we have is now, and how long the writing took.
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
            let mut keeper = machine.keeper(&replica);
            let (generation, at) = (u64::from(!changed), Instant::now());
            keeper.written = Some(Written { generation, age_then: millis(age_then), at, took: millis(took) });
            tokio::time::advance(millis(elapsed)).await;
            let case = (connected, changed, elapsed, age_then, age, took);
            assert_eq!(keeper.is_due(), due, "{case:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_written_once_there_is_something_and_told_of_when_it_cannot_be() {
        let machine = Machine::new();
        let replica = Replica::new(machine.peppers.clone());
        let running = tokio::spawn(machine.keeper(&replica).run());
        replica.sees(Vec::new(), machine.clock.as_ref());
        replica.set_connected(true);
        let written = async {
            while replica.stats().kept.value() == 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_mins(1), written).await.unwrap();
        running.abort();
        let mut keeper = machine.keeper(&replica);
        let there = keeper.options.path.clone();
        let lost = "WARN: the snapshot file cannot be written, a restart without the database would serve nothing new";
        let _ = said();
        for (path, line) in [
            (there.join("below"), Some(lost)),
            (there.join("below"), None),
            (there.clone(), None),
            (there.join("below"), Some(lost)),
        ] {
            keeper.options.path = path;
            keeper.write().await;
            assert_eq!(said(), Vec::from_iter(line));
        }
        assert_eq!((replica.stats().kept.value(), replica.stats().not_kept.value()), (2, 3));
    }

    #[test]
    fn a_file_that_is_not_there_is_no_news_and_one_that_is_not_used_is() {
        let (machine, replica) = (Machine::new(), Replica::default());
        let keeper = machine.keeper(&replica);
        let _ = said();
        keeper.restore();
        assert_eq!(said(), [] as [String; 0]);
        fs::write(&keeper.options.path, "nonsense").unwrap();
        keeper.restore();
        assert_eq!(said(), ["WARN: the snapshot file is not used"]);
        fs::remove_file(&keeper.options.path).unwrap();
        fs::create_dir(&keeper.options.path).unwrap();
        keeper.restore();
        assert_eq!(said(), ["WARN: the snapshot file is not used"]);
    }
}
