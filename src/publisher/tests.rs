//! Reads the published memory as a module in Envoy does: through the descriptor that it receives.

use tenantgate_snapshot::{Found, Reader};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use uuid::Uuid;

use super::*;
use crate::batch_writer::Schedule;
use crate::clock::ManualClock;
use crate::key::KeyId;
use crate::key::format::parse;
use crate::profile::ProfileRow;
use crate::record::{KeyRecord, SecretHash};
use crate::route::{RouteId, RouteRow};
use crate::store::SnapshotRow;
use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};
use crate::verify::memo::{Keyring, Peppers};
use crate::verify::{Provable as _, bcrypt};

const KEY: &str = "llmk_demo_4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj7Pg";
const OTHER: &str = "llmk_other_7Pg4fNq8Zr1Tb6Yw3Ks0Hd9Lm2Xc5Vj";
const WEAK: &str = "llmk_weak_abcdefgh";

/// A short response in the format of the real renderer.
struct Short;

impl Render for Short {
    fn render(&self, decision: &Decision<'_>, terms: Terms<'_>) -> Option<Rendered> {
        if terms.scopes.is_some() {
            return None;
        }
        Some(match decision {
            Decision::Allow(Grant::Tenant(_, tenant)) => {
                Rendered { set: vec![("x-tenant".into(), tenant.name.clone())], ..Rendered::default() }
            }
            Decision::Deny(_) => Rendered { status: 401, ..Rendered::default() },
            _ => return None,
        })
    }
}

/// A publisher and its dependencies.
struct House {
    clock: Arc<ManualClock>,
    replica: Replica,
    publisher: Publisher,
    hash: Option<SecretHash>,
    work: Option<JoinHandle<()>>,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop();
    }
}

impl House {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp(1_000_000_000)));
        clock.advance(Duration::from_secs(100));
        let replica = Replica::default();
        let last_used = LastUsed::new(Schedule::every(Duration::from_secs(30)));
        let usage = Some(Usage::new(Schedule::every(Duration::from_secs(30))));
        let options = Options {
            settings: Settings { key_header: "x-key".into(), ..Settings::default() },
            only_keys: true,
            max_staleness: Duration::from_mins(5),
            key: [7; 32],
            render: Arc::new(Short),
        };
        let same = Arc::<ManualClock>::clone(&clock);
        let publisher = Publisher::new(replica.clone(), last_used, usage, same, options);
        let hash = SecretHash::parse(&bcrypt::hash(&parse(KEY.as_bytes()).unwrap().to_plain(), 4).unwrap());
        let mut house = Self { clock, replica, publisher, hash, work: None };
        house.start();
        house
    }

    fn start(&mut self) {
        self.work = Some(tokio::spawn(self.publisher.clone().run()));
    }

    fn stop(&mut self) {
        if let Some(work) = self.work.take() {
            work.abort();
        }
    }

    fn key(&self, prefix: &str) -> KeyRecord {
        KeyRecord::new(
            KeyId(Uuid::from_u128(1 + u128::try_from(prefix.len()).unwrap())),
            TenantId(Uuid::from_u128(2)),
            prefix.into(),
            self.hash,
        )
    }

    fn sees(&self, rows: Vec<SnapshotRow>) {
        self.replica.sees(rows, self.clock.as_ref());
    }

    /// The key `llmk_demo` and its tenant.
    fn sees_demo(&self) {
        self.sees(vec![plain(self.key("llmk_demo")), SnapshotRow::Tenant(tenant())]);
    }

    /// As the gate does after a proof.
    fn proves(&self, key: &str) {
        let presented = parse(key.as_bytes()).unwrap();
        let entry = Arc::clone(self.replica.snapshot().key(presented.prefix()).unwrap());
        if let Some(hash) = entry.record().hash {
            let keyring = Keyring::new(Peppers::default()).unwrap();
            entry.proven().note(keyring.seal(entry.record(), &hash, presented.expose()));
        }
        ProofSink::proven(&self.publisher, &entry, presented);
    }

    /// Returns the memory that a module gets when it connects now.
    async fn reader(&self) -> Reader<Mapping> {
        let mut handles = self.publisher.handles();
        let handle = handles.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        Reader::new(Mapping::open(handle.memory.try_clone().unwrap()).unwrap(), handle.hello.key.clone())
            .unwrap()
    }

    fn word(&self, reader: &Reader<Mapping>, prefix: &str) -> &'static str {
        match reader.find(
            u64::try_from(self.clock.uptime().as_millis()).unwrap(),
            prefix.as_bytes(),
            &mut Vec::new(),
        ) {
            Found::Absent => "absent",
            Found::Known => "known",
            Found::Proven(proven) if proven.revoked => "revoked",
            Found::Proven(_) => "proven",
            Found::Doubt => "doubt",
        }
    }

    async fn becomes(&self, reader: &Reader<Mapping>, prefix: &str, word: &str) {
        // The clock of the runtime runs by itself as soon as every task waits.
        let same = async {
            while self.word(reader, prefix) != word {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let found = timeout(Duration::from_mins(1), same).await;
        assert!(found.is_ok(), "{prefix} is {}, not {word}", self.word(reader, prefix));
    }
}

fn plain(key: KeyRecord) -> SnapshotRow {
    SnapshotRow::Key(key, None, ProfileRow::default())
}

fn tenant() -> Tenant {
    Tenant {
        id: TenantId(Uuid::from_u128(2)),
        name: "Demo".into(),
        schema: "tenant_demo".into(),
        status: TenantStatus::Active,
        mode: None,
        created_at: Timestamp(0),
        plan: None,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_proven_is_published_and_follows_its_row() {
    let house = House::new();
    house.sees_demo();
    let reader = house.reader().await;
    house.becomes(&reader, "llmk_demo", "known").await;
    assert_eq!(house.word(&reader, "llmk_other"), "absent");
    house.proves(KEY);
    house.becomes(&reader, "llmk_demo", "proven").await;
    let mut bytes = Vec::new();
    let Found::Proven(proven) = reader.find(100_000, b"llmk_demo", &mut bytes) else {
        panic!("it is proven")
    };
    assert!(reader.is_of(&proven, KEY.as_bytes()) && !reader.is_of(&proven, OTHER.as_bytes()));
    assert_eq!(proven.set, [("x-tenant", "Demo")]);
    // The name of the tenant.
    house.sees(vec![
        plain(house.key("llmk_demo")),
        SnapshotRow::Tenant(Tenant { name: "New".into(), ..tenant() }),
    ]);
    house.becomes(&reader, "llmk_demo", "proven").await;
    let renamed = async {
        loop {
            if let Found::Proven(proven) = reader.find(100_000, b"llmk_demo", &mut Vec::new())
                && proven.set[0].1 == "New"
            {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_mins(1), renamed).await.expect("the new name is published");
    // A row that is gone.
    house.sees(vec![SnapshotRow::Tenant(tenant())]);
    house.becomes(&reader, "llmk_demo", "absent").await;
    // The same prefix with another hash was not proven.
    let hash = SecretHash::parse(&bcrypt::hash(&parse(KEY.as_bytes()).unwrap().to_plain(), 4).unwrap());
    house.sees(vec![plain(KeyRecord { hash, ..house.key("llmk_demo") }), SnapshotRow::Tenant(tenant())]);
    house.becomes(&reader, "llmk_demo", "known").await;
}

#[tokio::test(start_paused = true)]
async fn what_a_module_cannot_judge_is_published_as_known() {
    let house = House::new();
    let keys = || vec![plain(house.key("llmk_demo")), SnapshotRow::Tenant(tenant())];
    house.sees(keys());
    let reader = house.reader().await;
    house.proves(KEY);
    house.becomes(&reader, "llmk_demo", "proven").await;
    let profile = |scopes: Option<&str>, networks: Option<&str>| ProfileRow {
        scopes: scopes.map(Box::from),
        networks: networks.map(Box::from),
        ..ProfileRow::default()
    };
    let long = "n".repeat(9_000);
    for (what, row, of) in [
        (
            "networks",
            SnapshotRow::Key(house.key("llmk_demo"), None, profile(None, Some("10.0.0.0/8"))),
            tenant(),
        ),
        ("scopes", SnapshotRow::Key(house.key("llmk_demo"), None, profile(Some("a"), None)), tenant()),
        (
            "damaged scopes",
            SnapshotRow::Key(house.key("llmk_demo"), None, profile(Some("\u{7f}"), None)),
            tenant(),
        ),
        ("shadow mode", plain(house.key("llmk_demo")), Tenant { mode: Some(Mode::Shadow), ..tenant() }),
        ("a long name", plain(house.key("llmk_demo")), Tenant { name: long, ..tenant() }),
        ("a damaged hash", plain(KeyRecord { hash: None, ..house.key("llmk_demo") }), tenant()),
    ] {
        house.sees(vec![row, SnapshotRow::Tenant(of)]);
        house.becomes(&reader, "llmk_demo", "known").await;
        house.sees(keys());
        house.proves(KEY);
        let back = async { house.becomes(&reader, "llmk_demo", "proven").await };
        timeout(Duration::from_secs(90), back).await.unwrap_or_else(|_| panic!("{what}"));
    }
    // A secret that could be guessed from a hash.
    house.sees(vec![
        plain(house.key("llmk_weak")),
        plain(house.key("llmk_demo")),
        SnapshotRow::Tenant(tenant()),
    ]);
    house.proves(WEAK);
    house.proves(KEY);
    house.becomes(&reader, "llmk_weak", "known").await;
    house.becomes(&reader, "llmk_demo", "proven").await;
    sleep(BEAT * 5).await;
    assert_eq!(house.word(&reader, "llmk_weak"), "known", "although it was proven");
}

#[tokio::test(start_paused = true)]
async fn rules_and_what_envoy_tells_of_routes_end_all_of_it() {
    let house = House::new();
    let keys = || vec![plain(house.key("llmk_demo")), SnapshotRow::Tenant(tenant())];
    house.sees(keys());
    let reader = house.reader().await;
    house.proves(KEY);
    house.becomes(&reader, "llmk_demo", "proven").await;
    let rule = RouteRow {
        id: RouteId(Uuid::from_u128(5)),
        name: None,
        host: "*".into(),
        method: "*".into(),
        path: "/a".into(),
        mode: "required".into(),
        scopes: None,
        shadow: false,
    };
    house.sees([keys(), vec![SnapshotRow::Route(rule)]].concat());
    for prefix in ["llmk_demo", "llmk_none"] {
        house.becomes(&reader, prefix, "doubt").await;
    }
    house.sees(keys());
    house.becomes(&reader, "llmk_none", "absent").await;
    house.publisher.route_context();
    house.becomes(&reader, "llmk_none", "doubt").await;
    house.sees(keys());
    sleep(BEAT * 5).await;
    assert_eq!(house.word(&reader, "llmk_demo"), "doubt", "for good");
}

#[tokio::test(start_paused = true)]
async fn the_heartbeat_is_that_of_the_replica_and_ends_with_the_task() {
    let mut house = House::new();
    house.sees_demo();
    let reader = house.reader().await;
    house.becomes(&reader, "llmk_none", "absent").await;
    house.clock.advance(Duration::from_secs(1));
    sleep(BEAT * 5).await;
    assert_eq!(house.word(&reader, "llmk_none"), "absent", "a second is fresh");
    house.clock.advance(Duration::from_millis(1));
    sleep(BEAT * 5).await;
    assert_eq!(house.word(&reader, "llmk_none"), "doubt", "the replica has not looked since");
    house.sees_demo();
    house.becomes(&reader, "llmk_none", "absent").await;
    house.stop();
    house.becomes(&reader, "llmk_none", "doubt").await;
    // The next run makes a memory of its own; what was proven before has to be proven again.
    house.start();
    let mut handles = house.publisher.handles();
    handles.mark_unchanged();
    handles.changed().await.unwrap();
    let reader = house.reader().await;
    house.becomes(&reader, "llmk_demo", "known").await;
}

#[tokio::test(start_paused = true)]
async fn a_full_memory_is_replaced_and_the_old_one_ends() {
    let house = House::new();
    house.sees_demo();
    let first = house.reader().await;
    house.proves(KEY);
    house.becomes(&first, "llmk_demo", "proven").await;
    // Every change of the row is a new record, and records are never overwritten.
    let mut handles = house.publisher.handles();
    handles.mark_unchanged();
    let mut n = 0;
    while !handles.has_changed().unwrap() {
        n += 1;
        assert!(n < 100_000, "it never fills");
        house.sees(vec![
            plain(house.key("llmk_demo")),
            SnapshotRow::Tenant(Tenant { name: format!("{n}{}", "n".repeat(6_000)), ..tenant() }),
        ]);
        house.proves(KEY);
        sleep(BEAT).await;
    }
    let second = house.reader().await;
    house.becomes(&second, "llmk_demo", "proven").await;
    assert_eq!(house.word(&first, "llmk_demo"), "doubt");
}

#[tokio::test(start_paused = true)]
async fn valid_reports_are_counted_with_decisions_and_invalid_ones_are_ignored() {
    let house = House::new();
    house.sees_demo();
    let report = |prefix: &str, reason: &str, requests, at| Report {
        prefix: prefix.into(),
        reason: reason.into(),
        requests,
        at,
    };
    let now = house.clock.now();
    house.publisher.account(vec![
        report("llmk_demo", "ok", 3, now.0 - 5_000_000),
        // A clock that is wrong, by a little or by all there is.
        report("llmk_demo", "ok", 1, i64::MAX),
        report("llmk_demo", "ok", 1, i64::MIN),
        report("", "missing", 2, now.0),
        report("llmk_nobody", "revoked", 1, now.0),
        report("llmk_demo", "no such reason", 9, now.0),
    ]);
    let stats = house.publisher.stats();
    let denied: Vec<_> = Reason::ALL
        .into_iter()
        .zip(stats.denied.iter().map(Counter::value))
        .filter(|(_, n)| *n > 0)
        .collect();
    assert_eq!((stats.ok.value(), denied), (5, vec![(Reason::Missing, 2), (Reason::Revoked, 1)]));
    let entry = Arc::clone(house.replica.snapshot().key("llmk_demo").unwrap());
    assert_eq!(entry.last_use().1, now, "not in the future");
}
