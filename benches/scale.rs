//! Measures what many keys cost: start, memory, checks and changes.
//!
//! For each number of keys, a server starts on a private Postgres that has this many. Measured are: the time from its
//! start to `ready`; its memory, minus that of a server with few keys; the time from the COMMIT of a change of a tenth
//! of the keys (at most 100,000) until it holds; the latency of the slowest valid check during the change; and
//! instructions per check, of a hundred keys in turn, so that the position of a key in the table does not matter.
//!
//! `benches/README.md` discusses the results.

#[expect(dead_code, reason = "each bench needs only a part")]
#[path = "load/mod.rs"]
mod load;
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
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::load::cost::memory;
use self::load::framed;
use self::load::peer::{Peer, Running};
use self::support::world::quick_hash;
use self::support::{Ask, Backend, Client, Server, World, runtime, wait};

const SIZES: [u64; 3] = [1_000, 100_000, 1_000_000];

/// The number of valid keys, and of checks during which instructions are counted.
const RIGHT: usize = 100;
const COUNTED: usize = 8_000;

/// The maximum number of keys in one change.
const CHANGED: u64 = 100_000;

/// The cost of a server with one number of keys.
struct Cost {
    keys: u64,
    ready: Duration,
    resident: u64,
    peak: u64,
    changed: u64,
    applied: Duration,
    /// The latency of the slowest valid check before the change, and during it.
    quiet: Duration,
    busy: Duration,
    /// Instructions per check.
    instructions: f64,
}

fn main() {
    let sizes: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if sizes.is_empty() { SIZES.to_vec() } else { sizes };
    let costs: Vec<Cost> = sizes.into_iter().map(measure).collect();
    report(&costs);
}

fn measure(keys: u64) -> Cost {
    let world = World::on(Backend::Postgres).expect("this bench needs a Postgres");
    fill(&world, keys);
    let start = Instant::now();
    let server = Server::on(&world.db).start();
    let ready = start.elapsed();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    assert_eq!(server.row(Ask::with_key(&world.other.text)), "200 ok");
    let (resident, peak) = memory(server.pid());
    let quiet = Checks::start(&server, &world.live.text);
    std::thread::sleep(Duration::from_secs(2));
    let quiet = quiet.slowest();
    let changed = CHANGED.min(keys / 10);
    let mut session = world.db.session();
    session.sql(&format!(
        "BEGIN; UPDATE api_keys SET revoked_at = now() WHERE key_prefix = '{}' OR id IN \
         (SELECT id FROM api_keys WHERE key_prefix LIKE 'llmk_acmecorpinc1%' LIMIT {changed})",
        world.other.prefix
    ));
    let checks = Checks::start(&server, &world.live.text);
    session.sql("COMMIT");
    let committed = Instant::now();
    server.row_becomes("401 revoked", Duration::from_mins(1), Ask::with_key(&world.other.text));
    let applied = committed.elapsed();
    std::thread::sleep(Duration::from_millis(200));
    let busy = checks.slowest();
    drop(server);
    let instructions = instructions(&world);
    Cost { keys, ready, resident, peak, changed, applied, quiet, busy, instructions }
}

/// Returns instructions per check.
fn instructions(world: &World) -> f64 {
    let keys: Vec<String> = (0..RIGHT).map(|n| format!("llmk_right{n:03}_Secret-0123456789")).collect();
    let row = |key: &String| {
        let prefix = key.rsplit_once('_').expect("a prefix").0;
        format!("('{}', '{prefix}', '{}')", quick_hash(key), world.acme.id)
    };
    let rows = keys.iter().map(row).collect::<Vec<_>>().join(",");
    world.db.sql(&format!("INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) VALUES {rows}"));
    let messages: Vec<Bytes> = keys.iter().map(|key| framed(&Ask::with_key(key).bytes())).collect();
    let peer = Peer::tenantgate("tenantgate", world.db.url(), &["--listen", "unix:socket"]);
    let server = Running::start_countable(&peer);
    server.warm_up(&messages);
    let instructions = server.instructions(1, COUNTED, &messages);
    server.stop();
    instructions
}

/// Creates keys that look like issued ones, of a thousand tenants, with hashes that match no key.
fn fill(world: &World, keys: u64) {
    world.db.sql(&format!(
        "ALTER TABLE api_keys DISABLE TRIGGER tenantgate_key_came_or_went;
         INSERT INTO tenants (name, db_schema_name) SELECT 'Tenant ' || n, 'tenant_' || n FROM generate_series(1, 1000) n;
         INSERT INTO api_keys (hashed_key, key_prefix, tenant_id, expires_at)
         SELECT '$2b$12$' || substr(md5(n::text), 1, 21) || 'u' || substr(md5('x' || n), 1, 30) || 'u', 'llmk_acmecorpinc1' || lpad(n::text, 8, '0'),
                t.id, now() + interval '90 days'
         FROM generate_series(1, {keys}) n
         JOIN (SELECT id, row_number() OVER () AS row FROM tenants WHERE name LIKE 'Tenant %') t ON t.row = 1 + n % 1000;
         ALTER TABLE api_keys ENABLE ALWAYS TRIGGER tenantgate_key_came_or_went;
         ANALYZE api_keys"
    ));
}

/// Sends valid checks, one after the other.
struct Checks {
    stop: Arc<AtomicBool>,
    asking: tokio::task::JoinHandle<Duration>,
}

impl Checks {
    fn start(server: &Server, key: &str) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (client, ask, told) = (Client::to(&server.grpc[0]), Ask::with_key(key), Arc::clone(&stop));
        // Opens the connection before anything is measured.
        wait(client.ask(ask.clone())).expect("an answer");
        let asking = runtime().spawn(async move {
            let mut slowest = Duration::ZERO;
            while !told.load(Relaxed) {
                let asked = Instant::now();
                assert_eq!(client.ask(ask.clone()).await.expect("an answer").row(), "200 ok");
                slowest = slowest.max(asked.elapsed());
            }
            slowest
        });
        Self { stop, asking }
    }

    fn slowest(self) -> Duration {
        self.stop.store(true, Relaxed);
        wait(self.asking).expect("every check was allowed")
    }
}

/// Prints a table for people and a line of JSON for programs.
fn report(costs: &[Cost]) {
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout is writable");
    let millis = |span: Duration| span.as_secs_f64() * 1000.0;
    let base = costs.first().map_or(0, |cost| cost.resident);
    let few = costs.first().map_or(0, |cost| cost.keys);
    #[expect(clippy::cast_precision_loss, reason = "a rounded number is what is wanted")]
    let each = |cost: &Cost| cost.resident.saturating_sub(base) as f64 / (cost.keys - few).max(1) as f64;
    let ratio = |cost: &Cost| cost.instructions / costs[0].instructions;
    line(format!(
        "{:>10}{:>11}{:>10}{:>10}{:>13}{:>11}{:>12}{:>16}{:>16}{:>11}{:>7}",
        "keys",
        "ready s",
        "RSS MiB",
        "peak MiB",
        "bytes a key",
        "changed",
        "applied ms",
        "slowest ms",
        "meanwhile ms",
        "instr.",
        "ratio"
    ));
    for cost in costs {
        line(format!(
            "{:>10}{:>11.2}{:>10}{:>10}{:>13.0}{:>11}{:>12.0}{:>16.1}{:>16.1}{:>11.0}{:>7.3}",
            cost.keys,
            cost.ready.as_secs_f64(),
            cost.resident >> 20,
            cost.peak >> 20,
            each(cost),
            cost.changed,
            millis(cost.applied),
            millis(cost.quiet),
            millis(cost.busy),
            cost.instructions,
            ratio(cost),
        ));
    }
    let rows: Vec<_> = costs
        .iter()
        .map(|cost| {
            serde_json::json!({
                "keys": cost.keys,
                "ready_s": cost.ready.as_secs_f64(),
                "resident_bytes": cost.resident,
                "peak_bytes": cost.peak,
                "bytes_a_key": each(cost),
                "changed": cost.changed,
                "applied_ms": millis(cost.applied),
                "slowest_quiet_ms": millis(cost.quiet),
                "slowest_meanwhile_ms": millis(cost.busy),
                "instructions": cost.instructions,
                "ratio_instructions": ratio(cost),
            })
        })
        .collect();
    line(serde_json::json!({ "bench": "scale", "sizes": rows }).to_string());
}
