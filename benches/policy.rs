//! Measures what scopes, networks, plans and rules add to a check, and what a change of many rules costs.
//!
//! Callgrind counts the instructions of the same request of 1.2 kB: without rules and terms, with 500 and 5,000 rules,
//! and with 5,000 rules for a key with scopes, eight networks and a plan. Then 5,000 rules are applied to a server
//! under load: measured are the time of the command, the time from the commit until they are in force, and the slowest
//! check meanwhile. The memory per key is measured with a million keys that have 2,000 distinct profiles.

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
use self::load::peer::{Peer, Running};
use self::load::{framed, realistic};
use self::support::{Ask, Backend, Client, Server, World, runtime, wait};

/// The number of checks during which instructions are counted.
const COUNTED: usize = 8_000;

/// The number of rules of the large table.
const MANY: usize = 5_000;

/// The number of keys, and of distinct profiles among them.
const KEYS: (u64, u64) = (1_000_000, 2_000);

fn main() {
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout is writable");
    line(format!("{:<52}{:>10}{:>10}", "a check", "instr.", "more"));
    let mut rows = Vec::new();
    let world = World::somewhere();
    let mut base = None;
    for (name, rules, terms) in [
        ("nothing in force", 0, &[][..]),
        ("500 rules, a key without terms", 500, &[]),
        ("5,000 rules, a key without terms", MANY, &[]),
        ("5,000 rules, scopes", MANY, &["--scopes", "models.* invoices:read"]),
        ("5,000 rules, scopes, 8 networks, a plan", MANY, &["--networks", NETWORKS, "--plan", "gold"]),
    ] {
        apply(&world, rules);
        if terms.contains(&"gold") {
            world.db.json(&["plan", "create", "gold", "--request-limit", "100/MINUTE"]);
        }
        if !terms.is_empty() {
            world.db.json(&[&["key", "update", &world.live.id], terms].concat());
        }
        let instructions = instructions(&world);
        let more = instructions - *base.get_or_insert(instructions);
        line(format!("{name:<52}{instructions:>10.0}{more:>10.0}"));
        rows.push(serde_json::json!({ "name": name, "instructions": instructions, "more": more }));
    }
    let Change { command, in_force, slowest, quiet } = change();
    line(format!(
        "{MANY} rules: the command takes {command:.1?}; in force {in_force:.1?} after the commit; slowest check meanwhile \
         {slowest:.1?}, in quiet {quiet:.1?}"
    ));
    let bytes = bytes_a_key();
    line(format!("{} keys with {} profiles: {bytes:.0} bytes a key", KEYS.0, KEYS.1));
    let [command, in_force, slowest, quiet] =
        [command, in_force, slowest, quiet].map(|time| time.as_secs_f64() * 1e3);
    line(
        serde_json::json!({
            "bench": "policy", "checks": rows, "command_ms": command, "in_force_ms": in_force, "slowest_ms": slowest,
            "slowest_in_quiet_ms": quiet, "bytes_a_key": bytes,
        })
        .to_string(),
    );
}

const NETWORKS: &str = "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 \
                        100.64.0.0/10 192.0.2.0/24";

/// Replaces all rules by this many; one of them is for the request of [`message`].
fn apply(world: &World, rules: usize) {
    let rule = |n: usize| {
        serde_json::json!({
            "host": "*", "method": "GET", "path": format!("/v1/service{n}/{{id}}/items"), "mode": "required",
            "scopes": format!("service{n}.read"), "shadow": false, "name": null,
        })
    };
    let ours = serde_json::json!({
        "host": "*", "method": "GET", "path": "/v1/**", "mode": "required", "scopes": "models.read", "shadow": false,
        "name": "models",
    });
    let table: Vec<_> = (1..rules).map(rule).chain((rules > 0).then_some(ours)).collect();
    let file = world.db.dir().join("rules.json");
    std::fs::write(&file, serde_json::json!(table).to_string()).expect("written");
    world.db.json(&["route", "apply", file.to_str().expect("a path")]);
}

/// The request whose instructions are counted.
fn message(world: &World) -> Bytes {
    let ask = Ask::get("/v1/models/gpt/items").key(&world.live.text).from("192.0.2.44");
    let ask = realistic().iter().fold(ask, |ask, (name, value)| ask.header(name, value));
    framed(&ask.bytes())
}

fn instructions(world: &World) -> f64 {
    let peer = Peer::tenantgate("tenantgate", world.db.url(), &["--listen", "unix:socket"]);
    let server = Running::start_countable(&peer);
    let message = [message(world)];
    server.warm_up(&message);
    let instructions = server.instructions(1, COUNTED, &message);
    server.stop();
    instructions
}

/// What a change of many rules costs.
struct Change {
    /// From the start of `route apply` to its end.
    command: Duration,
    /// From the commit to the first check that is judged by the new rules.
    in_force: Duration,
    /// The slowest check meanwhile.
    slowest: Duration,
    /// The slowest of as many checks without a change.
    quiet: Duration,
}

/// Applies a large table of rules to a server that is being asked: first by the command, then by one statement, whose
/// end is the commit.
fn change() -> Change {
    let world = &World::on(Backend::Postgres).expect("this bench needs a Postgres");
    // A key without scopes would be allowed by every rule.
    world.db.json(&["key", "update", &world.live.id, "--scopes", "models.read"]);
    let server = Server::on(&world.db).start();
    let ask = || Ask::get("/v1/service7/1/items").key(&world.live.text).from("192.0.2.44");
    let becomes = |row: &str| server.row_becomes(row, Duration::from_mins(1), ask());
    becomes("200 ok");
    let began = Instant::now();
    apply(world, MANY);
    let command = began.elapsed();
    becomes("403 scope");
    apply(world, 0);
    becomes("200 ok");
    let other = Ask::get("/docs");
    let slowest_of = |number: usize, told: Arc<AtomicBool>| {
        let (client, other) = (Client::to(&server.grpc[0]), other.clone());
        runtime().spawn(async move {
            let (mut slowest, mut asked) = (Duration::ZERO, 0);
            while asked < number && !told.load(Relaxed) {
                let began = Instant::now();
                client.ask(other.clone()).await.expect("an answer");
                (slowest, asked) = (slowest.max(began.elapsed()), asked + 1);
            }
            (slowest, asked)
        })
    };
    let stop = Arc::<AtomicBool>::default();
    let asking = slowest_of(usize::MAX, Arc::clone(&stop));
    world.db.sql(&format!(
        "INSERT INTO tenantgate_route (id, host, method, path, mode, scopes, shadow)
         SELECT gen_random_uuid(), '*', 'GET', '/v1/service' || n || '/{{id}}/items', 'required',
                'service' || n || '.read', false
         FROM generate_series(1, {MANY}) n"
    ));
    let in_force = becomes("403 scope");
    stop.store(true, Relaxed);
    let (slowest, asked) = wait(asking).expect("every check was answered");
    let (quiet, _) = wait(slowest_of(asked, Arc::default())).expect("every check was answered");
    Change { command, in_force, slowest, quiet }
}

/// Returns the memory that a key takes, among a million with many profiles.
fn bytes_a_key() -> f64 {
    let resident = |keys: u64| {
        let world = World::on(Backend::Postgres).expect("this bench needs a Postgres");
        fill(&world, keys);
        let server = Server::on(&world.db).start();
        assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
        memory(server.pid()).0
    };
    let (few, many) = (resident(1_000), resident(KEYS.0));
    #[expect(clippy::cast_precision_loss, reason = "a rounded number is what is wanted")]
    let each = many.saturating_sub(few) as f64 / (KEYS.0 - 1_000) as f64;
    each
}

/// Creates keys that look like issued ones, of a thousand tenants, with hashes that match no key, and many profiles.
fn fill(world: &World, keys: u64) {
    let profiles = KEYS.1;
    world.db.sql(&format!(
        "ALTER TABLE api_keys DISABLE TRIGGER tenantgate_key_came_or_went;
         INSERT INTO tenants (name, db_schema_name) SELECT 'Tenant ' || n, 'tenant_' || n FROM generate_series(1, 1000) n;
         INSERT INTO api_keys (hashed_key, key_prefix, tenant_id, expires_at, scopes, networks)
         SELECT '$2b$12$' || substr(md5(n::text), 1, 21) || 'u' || substr(md5('x' || n), 1, 30) || 'u', 'llmk_acmecorpinc1' || lpad(n::text, 8, '0'),
                t.id, now() + interval '90 days', 'models.read team' || n % {profiles} || '.*', '10.' || n % 200 || '.0.0/16'
         FROM generate_series(1, {keys}) n
         JOIN (SELECT id, row_number() OVER () AS row FROM tenants WHERE name LIKE 'Tenant %') t ON t.row = 1 + n % 1000;
         ALTER TABLE api_keys ENABLE ALWAYS TRIGGER tenantgate_key_came_or_went;
         ANALYZE api_keys"
    ));
}
