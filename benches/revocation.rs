//! Measures how long after its COMMIT a revocation holds on every replica.
//!
//! Three servers use one private Postgres. Valid checks run on all of them, while plain SQL revokes and restores keys.
//! A time starts when COMMIT has returned, and ends when the last of the three servers has answered accordingly over
//! gRPC, as Envoy would call it. Each server is checked again a millisecond after its last response, over an open
//! connection, so a time is up to two milliseconds and a round trip too long. Without that pause, the checks would use
//! up a small machine, and the wait for a core would be measured.
//!
//! `benches/README.md` discusses the results.

#[expect(dead_code, reason = "the benches need only a part of the model test")]
#[path = "../tests/it/model/dice.rs"]
mod dice;
#[expect(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the benches need only a part of the test support"
)]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use self::dice::Dice;
use self::support::world::quick_hash;
use self::support::{Ask, Backend, Client, PATIENCE, Server, World, eventually, runtime, wait};

const REPLICAS: usize = 3;
const CHANGES: usize = 1000;
const KEYS: usize = 200;

/// The rate of valid checks on each replica.
const TRAFFIC: u32 = 200;

/// The pause before a server is checked again.
const PAUSE: Duration = Duration::from_millis(1);

/// The times of one kind of change, on all replicas.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    /// Returns a percentile of the times.
    fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1]
    }

    /// Name, p50, p99 and max in milliseconds.
    fn row(&mut self, name: &str) -> (String, [f64; 3]) {
        self.0.sort_unstable();
        let millis = [50, 99, 100].map(|percent| self.percentile(percent).as_secs_f64() * 1000.0);
        (format!("{name} ({})", self.0.len()), millis)
    }
}

fn main() {
    let world = World::on(Backend::Postgres).expect("this bench needs a Postgres");
    let keys: Vec<String> = (0..KEYS).map(|n| format!("llmk_bench{n}_Secret-0123456789")).collect();
    for key in &keys {
        let (prefix, hash, tenant) =
            (key.rsplit_once('_').expect("a prefix").0, quick_hash(key), &world.acme.id);
        world.db.sql(&format!(
            "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) VALUES ('{hash}', '{prefix}', '{tenant}')"
        ));
    }
    let servers = [(); REPLICAS].map(|()| Server::on(&world.db).start());
    // Each server proves every key first, so that bcrypt is not measured.
    for (server, key) in servers.iter().flat_map(|server| keys.iter().map(move |key| (server, key))) {
        assert_eq!(server.row(Ask::with_key(key)), "200 ok");
    }
    let traffic = Traffic::start(&servers, &world.live.text);
    let start = Instant::now();
    let (mut revoked, mut restored) = measure(&world, &servers, &keys);
    let (answered, seconds) = (traffic.stop(), start.elapsed().as_secs_f64());
    let mut rows = vec![revoked.row("refused on all three"), restored.row("allowed on all three")];
    load(&world, &servers);
    let (mut revoked, mut restored) = measure(&world, &servers, &keys);
    rows.push(revoked.row("refused, a million loaded"));
    rows.push(restored.row("allowed, a million loaded"));
    report(&rows, answered, seconds);
}

/// Copies a million keys at once. The change log has a row for each of them until it is pruned.
fn load(world: &World, servers: &[Server; REPLICAS]) {
    world.db.sql(&format!(
        "UPDATE api_keys SET revoked_at = NULL WHERE key_prefix LIKE 'llmk_bench%';
         INSERT INTO api_keys (hashed_key, key_prefix, tenant_id)
         SELECT 'hash' || n, 'llmk_loaded' || n, '{}' FROM generate_series(1, 1000000) n",
        world.acme.id
    ));
    for server in servers {
        eventually("the server has them", 10 * PATIENCE, || {
            let body = server.http("/readyz").body;
            let page: serde_json::Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
            if page["keys"].as_u64() > Some(1_000_000) { Ok(()) } else { Err(body) }
        });
    }
}

/// Changes keys, one after the other. Returns the times of revocations and of restorations.
fn measure(world: &World, servers: &[Server; REPLICAS], keys: &[String]) -> (Times, Times) {
    let (mut revoked, mut restored) = (Times::default(), Times::default());
    let mut is_revoked = vec![false; keys.len()];
    let mut session = world.db.session();
    let mut dice = Dice::of(1, 0, 0);
    for _ in 0..CHANGES {
        let chosen = usize::try_from(dice.below(KEYS as u64)).expect("an index");
        let key = &keys[chosen];
        let revoke = !is_revoked[chosen];
        is_revoked[chosen] = revoke;
        let (set, wanted, times) =
            if revoke { ("now()", "401 revoked", &mut revoked) } else { ("NULL", "200 ok", &mut restored) };
        let prefix = key.rsplit_once('_').expect("a prefix").0;
        session.sql(&format!("UPDATE api_keys SET revoked_at = {set} WHERE key_prefix = '{prefix}'"));
        let committed = Instant::now();
        wait(holds_on_all(servers, key, wanted));
        times.0.push(committed.elapsed());
        // Without a pause, replicas would always be awake.
        std::thread::sleep(dice.millis(0, 40));
    }
    (revoked, restored)
}

/// Returns when each server has given the wanted answer.
async fn holds_on_all(servers: &[Server; REPLICAS], key: &str, wanted: &'static str) {
    let mut asking = JoinSet::new();
    for server in servers {
        asking.spawn(holds_on(server.client().clone(), Ask::with_key(key), wanted));
    }
    while let Some(ended) = asking.join_next().await {
        ended.expect("no panic");
    }
}

async fn holds_on(client: Client, ask: Ask, wanted: &str) {
    let asking = async {
        while client.ask(ask.clone()).await.expect("an answer").row() != wanted {
            sleep(PAUSE).await;
        }
    };
    assert!(timeout(PATIENCE, asking).await.is_ok(), "never `{wanted}`");
}

/// Checks of a key that does not change.
struct Traffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    asking: JoinSet<()>,
}

impl Traffic {
    fn start(servers: &[Server; REPLICAS], key: &str) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut asking = JoinSet::new();
        for server in servers {
            // Its own connection, like another Envoy.
            let (client, ask) = (Client::to(&server.grpc[0]), Ask::with_key(key));
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            let checks = async move {
                let mut due = interval(Duration::from_secs(1) / TRAFFIC);
                due.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !stop.load(Relaxed) {
                    due.tick().await;
                    assert_eq!(client.ask(ask.clone()).await.expect("an answer").row(), "200 ok");
                    answered.fetch_add(1, Relaxed);
                }
            };
            asking.spawn_on(checks, runtime().handle());
        }
        Self { stop, answered, asking }
    }

    /// Returns the number of checks, all of which were allowed.
    fn stop(mut self) -> u64 {
        self.stop.store(true, Relaxed);
        wait(async {
            while let Some(ended) = self.asking.join_next().await {
                ended.expect("every check was allowed");
            }
        });
        self.answered.load(Relaxed)
    }
}

/// Prints a table for people and a line of JSON for programs.
fn report(rows: &[(String, [f64; 3])], answered: u64, seconds: f64) {
    let json = rows.iter().zip(["revoked", "restored", "revoked_loaded", "restored_loaded"]).map(
        |((_, [p50, p99, max]), name)| {
            (name.to_owned(), serde_json::json!({ "p50_ms": p50, "p99_ms": p99, "max_ms": max }))
        },
    );
    let json = serde_json::json!({
        "bench": "revocation",
        "replicas": REPLICAS,
        "changes": CHANGES,
        "checks": answered,
        "times": json.collect::<serde_json::Map<_, _>>(),
    });
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout is writable");
    line(format!("{:<28}{:>10}{:>10}{:>10}", "from COMMIT, in ms", "p50", "p99", "max"));
    for (name, [p50, p99, max]) in rows {
        line(format!("{name:<28}{p50:>10.1}{p99:>10.1}{max:>10.1}"));
    }
    line(format!("meanwhile {answered} valid checks in {seconds:.0} s, all allowed"));
    line(json.to_string());
}
