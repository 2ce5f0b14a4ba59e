//! Runs a fault: a server behind a link, constant traffic, and a record of all acts.
//!
//! A play records the history of its database: every act goes through [`Play`], which takes the instants before and
//! after. At the end, [`Play::ends`] passes log and history to the checker, which does not know how they were created.

use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tenantgate::clock::{Clock as _, SystemClock, Timestamp};

use super::checker::{Entry, judge, lateness};
use super::history::{By, History, Sort, Span};
use super::pulse::Pulse;
use super::stage::{Stage, Way};
use super::traffic::Traffic;
use crate::support::database::Session;
use crate::support::link::Link;
use crate::support::world::quick_hash;
use crate::support::{Ask, Database, PATIENCE, Server, eventually, tell};

/// All keys of a play, with their rows at its start.
const CAST: [(&str, &str); 14] = [
    ("steady", "200 ok"),
    ("victim", "200 ok"),
    ("nobody", "401 unknown"),
    ("second", "200 ok"),
    ("fickle", "200 ok"),
    ("steady2", "200 ok"),
    ("fickle2", "200 ok"),
    ("doomed", "200 ok"),
    ("revoked", "401 revoked"),
    ("wrong", "401 mismatch"),
    ("asleep", "403 tenant_inactive"),
    ("brief", "200 ok"),
    ("late", "401 unknown"),
    ("nothing", "401 missing"),
];

/// The keys in the database, with their tenants.
const KEYS: [(&str, &str); 10] = [
    ("steady", "calm"),
    ("steady2", "calm"),
    ("victim", "calm"),
    ("second", "calm"),
    ("revoked", "calm"),
    ("brief", "calm"),
    ("fickle", "fickle"),
    ("fickle2", "fickle"),
    ("doomed", "doomed"),
    ("asleep", "asleep"),
];

/// The lifetime of `brief`, which expires in the middle of most plays.
const BRIEF: Duration = Duration::from_secs(4);

/// Converts between the clock of the machine and the instants of a play.
const CLOCKS: Duration = Duration::from_millis(50);

/// The default of `--max-staleness`, which no play reaches.
const MAX_STALENESS: Duration = Duration::from_mins(5);

/// The minimum number of answers for a meaningful play.
const ENOUGH: usize = 500;

fn text(key: &str) -> String {
    format!("llmk_play-{key}_Secret-0123456789")
}

fn hash(key: &str) -> String {
    static HASHES: LazyLock<Vec<(&str, String)>> =
        LazyLock::new(|| KEYS.map(|(key, _)| key).into_iter().chain(["late"]).map(hashed).collect());
    HASHES.iter().find(|(known, _)| *known == key).expect("a key of the cast").1.clone()
}

fn hashed(key: &str) -> (&str, String) {
    (key, quick_hash(&text(key)))
}

fn ask(key: &str) -> Ask {
    match key {
        "nothing" => Ask::get("/v1/items"),
        "wrong" => Ask::with_key("llmk_play-steady_Wrong-0123456789"),
        key => Ask::with_key(&text(key)),
    }
}

/// Statements that insert the keys and tenants of a play.
pub(super) fn cast_sql() -> String {
    let mut sql = "INSERT INTO tenants (name, db_schema_name, status) VALUES ('Calm', 'calm', 'active'),
        ('Fickle', 'fickle', 'active'), ('Doomed', 'doomed', 'active'), ('Asleep', 'asleep', 'suspended');"
        .to_owned();
    for (key, tenant) in KEYS {
        sql += &insert(key, tenant);
    }
    let expires = format!("expires_at = now() + interval '{} ms'", BRIEF.as_millis());
    [sql, set("revoked", "revoked_at = now()"), set("brief", &expires)].join(";")
}

/// The statement that inserts a key.
pub(super) fn insert(key: &str, tenant: &str) -> String {
    format!(
        "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id)
         SELECT '{}', 'llmk_play-{key}', id FROM tenants WHERE db_schema_name = '{tenant}';",
        hash(key)
    )
}

/// The statement that changes a column of a key.
pub(super) fn set(key: &str, what: &str) -> String {
    format!("UPDATE api_keys SET {what} WHERE key_prefix = 'llmk_play-{key}'")
}

/// The options of a play.
pub(super) struct Plan<'a> {
    way: Way<'a>,
    max_staleness: Duration,
    user: Option<String>,
}

impl<'a> Plan<'a> {
    /// On a stage without the keys of a play.
    pub(super) fn on(stage: &'a Stage) -> Self {
        Self::along(Way::of(stage))
    }

    /// On one database with tables and without the keys of a play.
    pub(super) fn in_database(database: &'a Database) -> Self {
        Self::along(Way::between(database, database))
    }

    /// With acts at one end, and the server at the other.
    pub(super) fn along(way: Way<'a>) -> Self {
        way.origin.sql(&cast_sql());
        Self { way, max_staleness: MAX_STALENESS, user: None }
    }

    /// With this `--max-staleness`.
    pub(super) fn max_staleness(self, max_staleness: Duration) -> Self {
        Self { max_staleness, ..self }
    }

    /// Without a key that expires.
    pub(super) fn nobody_expires(self) -> Self {
        self.way.origin.sql(&set("brief", "expires_at = now() + interval '1 hour'"));
        self
    }

    /// The server uses this role instead of the owner of the tables.
    pub(super) fn user(self, user: &str) -> Self {
        Self { user: Some(user.to_owned()), ..self }
    }

    /// Starts the server and waits until it is ready and all answers are right.
    pub(super) fn begin(self) -> Play<'a> {
        let play = self.open(|_| (), wait_until_fresh);
        for (key, row) in CAST.iter().filter(|(key, _)| *key != "brief") {
            // First proofs wait for bcrypt; the play starts when all keys are proven.
            play.shows(key, row);
        }
        play
    }

    /// Breaks the link, then starts the server.
    pub(super) fn begin_with(self, fault: impl FnOnce(&Link)) -> Play<'a> {
        let mut play = self.open(fault, |_| ());
        let start = Span { begin: Duration::ZERO, end: Duration::ZERO };
        play.history.outage(Sort::Unloaded, start);
        play
    }

    fn open(self, fault: impl FnOnce(&Link), wait: impl FnOnce(&Server)) -> Play<'a> {
        self.way.arrives();
        let (link, mut seen) = Link::before(self.way.here);
        fault(&link);
        if let Some(user) = &self.user {
            seen = Database::at(seen.backend, &seen.url().replace("//tenantgate:", &format!("//{user}:")));
        }
        let staleness = format!("{}ms", self.max_staleness.as_millis());
        // No lines for rejections, because the tests read the log for lines about the database.
        let levels = ["--log-level", "info,tenantgate::ext_authz=warn"];
        let server = Server::on(&seen).args(&["--max-staleness", &staleness]).args(&levels).start_unready();
        wait(&server);
        let start = Instant::now();
        let mut history = History::of(self.max_staleness, &CAST);
        let expires = expiry(self.way.here, start);
        history.change("brief", "401 expired", expires, By::Clock);
        let asks = CAST.map(|(key, _)| (key, ask(key)));
        let traffic = Traffic::to(&server.grpc[0], start, &asks);
        let (session, pulse) = (self.way.origin.session(), Pulse::since(start, self.way.here));
        Play { link, server, history, start, way: self.way, session, traffic, pulse }
    }
}

/// After a long first load the server is ready, but its data is stale until the second poll.
fn wait_until_fresh(server: &Server) {
    server.wait_until_ready();
    eventually("the server is fresh", PATIENCE, || {
        let said = server.http("/readyz").body;
        if said.contains(r#""status":"ready""#) { Ok(()) } else { Err(said) }
    });
}

/// Returns when `brief` expires, for a play that starts now.
fn expiry(database: &Database, start: Instant) -> Span {
    let sql = "SELECT (extract(epoch FROM expires_at) * 1e6)::bigint::text FROM api_keys
        WHERE key_prefix = 'llmk_play-brief'";
    let micros = database.text(sql).and_then(|micros| micros.parse().ok()).expect("an instant");
    let at = start.elapsed() + Timestamp(micros).since(SystemClock.now());
    Span { begin: at.saturating_sub(CLOCKS), end: at + CLOCKS }
}

/// Returns the log with one wrong answer: a key that is always valid was revoked.
fn with_a_lie(log: &[Entry]) -> Vec<Entry> {
    let mut log = log.to_vec();
    let told = log.iter_mut().find(|entry| entry.key == "steady" && entry.row == "200 ok");
    "401 revoked".clone_into(&mut told.expect("some answer allows it").row);
    log
}

/// A running play.
pub(super) struct Play<'a> {
    pub(super) link: Link,
    pub(super) server: Server,
    pub(super) history: History,
    start: Instant,
    way: Way<'a>,
    session: Session,
    traffic: Traffic,
    pulse: Pulse,
}

impl<'a> Play<'a> {
    /// Performs an act. Returns the instants before and after it.
    pub(super) fn act<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> (Span, T) {
        let begin = self.start.elapsed();
        let outcome = act(self);
        (Span { begin, end: self.start.elapsed() }, outcome)
    }

    /// Waits, as a part of the scenario.
    #[expect(clippy::unused_self, reason = "waiting is a part of the scenario")]
    pub(super) fn goes_on_for(&self, time: Duration) {
        sleep(time);
    }

    /// Performs acts in another database from now on, or in the same one after an outage.
    pub(super) fn acts_on(&mut self, database: &'a Database) {
        self.acts_along(Way::between(database, database));
    }

    /// The same, with a subscriber.
    pub(super) fn acts_along(&mut self, way: Way<'a>) {
        self.session = way.origin.session();
        self.way = way;
    }

    /// Runs SQL that changes no key.
    pub(super) fn sql(&mut self, sql: &str) {
        self.session.sql(sql);
    }

    /// Runs SQL that changes no key, in the database that the server reads.
    pub(super) fn sql_here(&self, sql: &str) {
        self.way.here.sql(sql);
    }

    /// Waits until the server's database has what was committed.
    pub(super) fn arrives(&self) {
        self.way.arrives();
    }

    /// Commits statements that set these keys to these rows.
    pub(super) fn commit(&mut self, sql: &str, changes: &[(&'static str, &'static str)]) {
        let (since, ()) = self.act(|play| {
            play.session.sql(sql);
            play.arrives();
        });
        self.history.commit(since, changes);
    }

    /// Commits in another session.
    pub(super) fn commit_in(&mut self, session: &mut Session, changes: &[(&'static str, &'static str)]) {
        let (since, ()) = self.act(|play| {
            session.sql("COMMIT");
            play.arrives();
        });
        self.history.commit(since, changes);
    }

    /// Revokes a key.
    pub(super) fn revoke(&mut self, key: &'static str) {
        self.commit(&set(key, "revoked_at = now()"), &[(key, "401 revoked")]);
    }

    /// Undoes a revocation.
    pub(super) fn restore(&mut self, key: &'static str) {
        self.commit(&set(key, "revoked_at = NULL"), &[(key, "200 ok")]);
    }

    /// Sets the status of the tenant that has `fickle` and `fickle2`.
    pub(super) fn fickle_becomes(&mut self, status: &str, row: &'static str) {
        let sql = format!("UPDATE tenants SET status = '{status}' WHERE db_schema_name = 'fickle'");
        self.commit(&sql, &[("fickle", row), ("fickle2", row)]);
    }

    /// Revokes a key and waits until the server has applied it.
    pub(super) fn revokes_and_sees(&mut self, key: &'static str) {
        self.revoke(key);
        self.shows(key, "401 revoked");
    }

    /// Starts a fault during which the server may not, or cannot, read the database.
    pub(super) fn fault<T>(&mut self, sort: Sort, fault: impl FnOnce(&mut Self) -> T) -> T {
        let (span, outcome) = self.act(fault);
        self.history.outage(sort, span);
        outcome
    }

    /// Ends the fault.
    pub(super) fn mend<T>(&mut self, mend: impl FnOnce(&mut Self) -> T) -> T {
        let (span, outcome) = self.act(mend);
        self.history.outage_ends(span);
        outcome
    }

    /// Disconnects the server from the database.
    pub(super) fn cut_off(&mut self, cut: impl FnOnce(&Link)) {
        self.fault(Sort::Cut, |play| cut(&play.link));
    }

    /// Restores the link.
    pub(super) fn link_again(&mut self) {
        self.mend(|play| play.link.mend());
    }

    /// Waits until a Check sent from now on gets this row.
    #[track_caller]
    pub(super) fn shows(&self, key: &str, row: &str) {
        let now = self.start.elapsed();
        let wanted = |entry: &Entry| entry.key == key && entry.sent >= now && entry.row == row;
        eventually(&format!("`{row}` for {key}"), PATIENCE, || {
            if self.traffic.has(wanted) { Ok(()) } else { Err(self.server.stderr.lines().pop()) }
        });
    }

    /// Sends many concurrent Checks of this key.
    pub(super) fn many_ask(&mut self, key: &'static str) {
        self.traffic.burst(key, &ask(key), 50);
    }

    /// Waits until a Check gets no answer.
    #[track_caller]
    pub(super) fn shows_error(&self) {
        eventually("a call gets no answer", PATIENCE, || {
            if self.traffic.has(|entry| entry.row.starts_with("grpc")) { Ok(()) } else { Err(()) }
        });
    }

    /// Waits for a line of the log.
    #[track_caller]
    pub(super) fn says(&self, level: &str, what: &str) {
        let found = |lines: &[String]| {
            let line = lines.iter().find(|line| line.contains(level) && line.contains(what));
            line.map(|_| ())
        };
        self.server.stderr.wait_for(what, PATIENCE, found);
    }

    /// Ends the traffic, checks every answer, and prints the numbers.
    #[track_caller]
    pub(super) fn ends(self, name: &str) -> Vec<Entry> {
        eventually("enough answers", PATIENCE, || match self.traffic.count() {
            ENOUGH.. => Ok(()),
            count => Err(count),
        });
        let (mut history, log) = (self.history, self.traffic.end());
        history.stalls = self.pulse.stalls();
        let wrong = judge(&history, &log);
        let changes = history.transactions.iter().map(|change| lateness(&history, &log, change));
        let latest = changes.max().unwrap_or_default();
        let slowest = log.iter().map(Entry::took).max().unwrap_or_default();
        let (answers, shown) = (log.len(), wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n"));
        assert!(wrong.is_empty(), "{name}: {} of {answers} answers are wrong:\n{shown}", wrong.len());
        assert!(!judge(&history, &with_a_lie(&log)).is_empty(), "{name}: the checker would explain anything");
        tell(&format!(
            "faults: {name}: {answers} answers, none wrong; the last from before a commit {} ms after it; \
             slowest answer {} ms; the machine stood still {} times",
            latest.as_millis(),
            slowest.as_millis(),
            history.stalls.len()
        ));
        log
    }
}
