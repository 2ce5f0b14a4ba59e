//! Measures lists of keys over HTTP with many keys.
//!
//! `tenantgate manage` runs on a private Postgres with a million keys of a thousand tenants. For each filter, pages of
//! 100 keys are requested one after the other over one connection, by their page tokens, and from the start again after
//! the last one. Reports the median and the 99th percentile of the time of a page, and the memory of the process.
//!
//! Then `tenantgate key list` prints all keys, on Postgres and on SQLite. Reports the time of the first row and of all
//! rows, and the memory of the process after a thousand rows and at its peak.

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

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use self::load::cost::memory;
use self::load::count;
use self::support::transcript::{Transcript, field, says};
use self::support::world::string;
use self::support::{Backend, PATIENCE, World};

const KEYS: u64 = 1_000_000;

/// Pages of each filter.
const PAGES: usize = 300;

/// The filters, with frequent matches, rare ones and none.
const FILTERS: [(&str, &str); 13] = [
    ("none", ""),
    ("of one tenant", "tenant=tenant_7"),
    ("active", "status=active"),
    ("revoked: one in a thousand", "status=revoked"),
    ("disabled: none", "status=disabled"),
    ("expired: none", "status=expired"),
    ("name: one in a thousand", "name=nightly%20007"),
    ("name: one", "name=number%20999999"),
    ("scope: one in ten", "scope=models.read"),
    ("label: one in seven", "label=env%3Dprod"),
    ("label: none", "label=env%3Dnone"),
    ("expires soon: one in ten", "expires_before=2030-02-01T00:00:00Z"),
    ("unused for a day, of one tenant", "unused_for=1d&tenant=tenant_7"),
];

/// Writes a line to standard output.
macro_rules! say {
    ($($part:tt)*) => { writeln!(std::io::stdout(), $($part)*).expect("written") };
}

fn main() {
    let keys = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(KEYS);
    let world = World::on(Backend::Postgres).expect("this bench needs a Postgres");
    fill(&world, keys);
    let key = string(&world.db.json(&["admin-key", "create", "bench", "--role", "owner"]), "key");
    let manage = Manage::on(&world);
    let mut client = Client::to(&manage.address, key);
    client.page("");
    let (before, _) = memory(manage.child.id());
    say!("{keys} keys, pages of 100             p50 ms   p99 ms   most ms   keys a page");
    let mut rows = Vec::new();
    for (name, filter) in FILTERS {
        let (mut times, mut token, mut seen) = (Vec::with_capacity(PAGES), String::new(), 0);
        for _ in 0..PAGES {
            let asked = Instant::now();
            let page = client.page(&format!("{filter}&page_token={token}"));
            times.push(asked.elapsed());
            seen += page["items"].as_array().map_or(0, Vec::len);
            token = string(&page, "next_page_token");
        }
        times.sort_unstable();
        let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
        let (median, slow, most) = (at(50), at(99), at(100));
        let each = count(seen) / count(PAGES);
        say!("{name:<34} {median:>7.2}  {slow:>7.2}   {most:>7.2}   {each:>7.1}");
        rows.push(serde_json::json!({ "filter": name, "p50_ms": median, "p99_ms": slow, "max_ms": most }));
    }
    let (after, peak) = memory(manage.child.id());
    say!("memory: {} MiB before, {} after, {} at its peak", before >> 20, after >> 20, peak >> 20);
    drop((client, manage));
    let sqlite = World::on(Backend::Sqlite).expect("SQLite is always there");
    fill_sqlite(&sqlite, keys);
    let commands = [("Postgres", &world), ("SQLite", &sqlite)].map(|(store, world)| listed(store, world));
    let all = serde_json::json!({
        "bench": "manage", "keys": keys, "lists": rows, "peak_bytes": peak, "commands": commands,
    });
    say!("{all}");
}

/// Lists all keys with a command, and reads its output as fast as it comes.
fn listed(store: &str, world: &World) -> Value {
    const EARLY: u64 = 1_000;
    let binary =
        std::env::var_os("TENANTGATE_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_tenantgate").into());
    let start = Instant::now();
    let mut child = Command::new(binary)
        .args(["key", "list", "--output", "json", "--database-url", world.db.url()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let (mut rows, mut first, mut early, mut peak) = (0_u64, Duration::ZERO, 0, 0);
    for line in lines {
        line.expect("a line");
        rows += 1;
        if rows == 1 {
            first = start.elapsed();
        }
        if rows.is_multiple_of(EARLY) {
            // None is left once the process has ended; the last rows still wait in the pipe then.
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let highest = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let highest = highest.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            peak = highest.unwrap_or(peak);
            early = if rows == EARLY { peak } else { early };
        }
    }
    assert!(child.wait().expect("it ends").success());
    let [first, whole] = [first, start.elapsed()].map(|time| time.as_secs_f64() * 1e3);
    say!("key list on {store}: first row after {first:.0} ms, {rows} rows after {whole:.0} ms");
    say!("memory: {early} KiB after {EARLY} rows, {peak} KiB at its peak");
    serde_json::json!({ "store": store, "rows": rows, "first_ms": first, "all_ms": whole, "peak_kib": peak })
}

/// The same keys in SQLite.
fn fill_sqlite(world: &World, keys: u64) {
    world.db.sql(&format!(
        "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {keys})
         INSERT INTO api_keys (hashed_key, key_prefix, tenant_id, name, created_at)
         SELECT 'hash of ' || n, 'llmk_acmecorpinc1' || printf('%08d', n), '{}', 'nightly ' || n % 1000,
                strftime('%Y-%m-%dT%H:%M:%SZ', 1704067200 + n, 'unixepoch')
         FROM s",
        world.acme.id
    ));
}

/// Creates keys that look like issued ones, of a thousand tenants, created one second apart.
fn fill(world: &World, keys: u64) {
    world.db.sql(&format!(
        "ALTER TABLE api_keys DISABLE TRIGGER tenantgate_key_came_or_went;
         INSERT INTO tenants (name, db_schema_name) SELECT 'Tenant ' || n, 'tenant_' || n FROM generate_series(1, 1000) n;
         INSERT INTO api_keys (hashed_key, key_prefix, tenant_id, name, created_at, expires_at, scopes, labels, revoked_at)
         SELECT '$2b$12$' || substr(md5(n::text), 1, 21) || 'u' || substr(md5('x' || n), 1, 30) || 'u', 'llmk_acmecorpinc1' || lpad(n::text, 8, '0'),
                t.id, CASE WHEN n = 999999 THEN 'number ' || n ELSE 'nightly ' || lpad((n % 1000)::text, 3, '0') END,
                '2024-01-01'::timestamptz + n * interval '1 second', CASE WHEN n % 10 = 0 THEN '2030-01-01'::timestamptz END,
                CASE WHEN n % 10 = 1 THEN 'models.read files.*' END, CASE WHEN n % 7 = 0 THEN '{{\"env\":\"prod\"}}'::jsonb END,
                CASE WHEN n % 1000 = 999 THEN now() END
         FROM generate_series(1, {keys}) n
         JOIN (SELECT id, row_number() OVER () AS row FROM tenants WHERE name LIKE 'Tenant %') t ON t.row = 1 + n % 1000;
         ALTER TABLE api_keys ENABLE ALWAYS TRIGGER tenantgate_key_came_or_went;
         ANALYZE api_keys"
    ));
}

/// A running `tenantgate manage`.
struct Manage {
    child: Child,
    address: String,
}

impl Manage {
    fn on(world: &World) -> Self {
        let binary =
            std::env::var_os("TENANTGATE_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_tenantgate").into());
        let mut child = Command::new(binary)
            .args([
                "manage",
                "--database-url",
                world.db.url(),
                "--listen",
                "127.0.0.1:0",
                "--ops-listen",
                "127.0.0.1:0",
            ])
            .args(["--log-level", "warn,tenantgate::server=info"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = Transcript::of(child.stderr.take().expect("piped"));
        let address = stderr.wait_for("ready", PATIENCE, |lines| {
            lines.iter().find(|line| says(line, "ready"))?;
            let bound = lines.iter().find(|line| says(line, "listening"))?;
            field(bound, "address").map(str::to_owned)
        });
        Self { child, address }
    }
}

impl Drop for Manage {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection.
struct Client {
    stream: BufReader<TcpStream>,
    key: String,
}

impl Client {
    fn to(address: &str, key: String) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(Duration::from_mins(1))).expect("a socket");
        Self { stream: BufReader::new(stream), key }
    }

    fn page(&mut self, query: &str) -> Value {
        let query = query.trim_start_matches('&');
        write!(
            self.stream.get_mut(),
            "GET /v1/keys?{query} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {}\r\n\r\n",
            self.key
        )
        .expect("sent");
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("a head");
            if let Some(text) = line.to_lowercase().strip_prefix("content-length: ") {
                length = text.trim().parse().expect("a number");
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("a body");
        serde_json::from_slice(&body).expect("JSON")
    }
}
