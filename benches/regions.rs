//! Measures how long after its COMMIT on a publisher a revocation holds in another region.
//!
//! Two private clusters on the loopback; the second one subscribes to the first. A server beside each. Plain SQL
//! revokes and restores keys on the publisher. A time runs from the return of COMMIT until the server of the region has
//! answered accordingly. Then the publisher is stopped: the region must go on, and take changes once it is promoted.

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
use std::time::{Duration, Instant};

use self::dice::Dice;
use self::support::postgres::Cluster;
use self::support::region::subscribe;
use self::support::world::quick_hash;
use self::support::{Ask, Backend, Database, PATIENCE, Server};

const CHANGES: usize = 500;
const KEYS: u64 = 100;

fn main() {
    let publisher = Cluster::publisher().expect("this bench needs a Postgres");
    let region = Cluster::private().expect("a second cluster");
    for cluster in [&publisher, &region] {
        cluster.admin("CREATE DATABASE own");
    }
    let [origin, copy] =
        [&publisher, &region].map(|cluster| Database::at(Backend::Postgres, &cluster.url("own")));
    origin.cli(&["migrate", "--publication"]).ok();
    copy.cli(&["migrate"]).ok();
    origin.sql("INSERT INTO tenants (name, db_schema_name) VALUES ('Own', 'tenant_own')");
    let keys: Vec<String> = (0..KEYS).map(|n| format!("llmk_bench{n}_Secret-0123456789")).collect();
    for key in &keys {
        let (prefix, hash) = (prefix(key), quick_hash(key));
        origin.sql(&format!(
            "INSERT INTO api_keys (hashed_key, key_prefix, tenant_id) SELECT '{hash}', '{prefix}', id FROM tenants"
        ));
    }
    subscribe(&copy, &origin, "region", "tenantgate");
    let servers = [&origin, &copy].map(|database| Server::on(database).start());
    for (server, key) in servers.iter().flat_map(|server| keys.iter().map(move |key| (server, key))) {
        assert_eq!(server.row(Ask::with_key(key)), "200 ok");
    }
    let [here, there] = &servers;
    let (mut session, mut dice) = (origin.session(), Dice::of(1, 0, 0));
    let (mut near, mut far, mut revoked) = (Vec::new(), Vec::new(), vec![false; keys.len()]);
    for _ in 0..CHANGES {
        let chosen = usize::try_from(dice.below(KEYS)).expect("an index");
        revoked[chosen] = !revoked[chosen];
        let (set, wanted) = if revoked[chosen] { ("now()", "401 revoked") } else { ("NULL", "200 ok") };
        session.sql(&format!(
            "UPDATE api_keys SET revoked_at = {set} WHERE key_prefix = '{}'",
            prefix(&keys[chosen])
        ));
        let committed = Instant::now();
        here.row_becomes(wanted, PATIENCE, Ask::with_key(&keys[chosen]));
        near.push(committed.elapsed());
        there.row_becomes(wanted, PATIENCE, Ask::with_key(&keys[chosen]));
        far.push(committed.elapsed());
        std::thread::sleep(dice.millis(0, 40));
    }
    drop(session);
    publisher.stop();
    let still = keys.iter().zip(&revoked).filter(|(key, revoked)| {
        there.row(Ask::with_key(key)) == if **revoked { "401 revoked" } else { "200 ok" }
    });
    assert_eq!(still.count(), keys.len(), "the region goes on without its publisher");
    let away = Instant::now();
    copy.sql(
        "ALTER SUBSCRIPTION region DISABLE; ALTER SUBSCRIPTION region SET (slot_name = NONE); DROP SUBSCRIPTION region",
    );
    let live = keys.iter().zip(&revoked).find(|(_, revoked)| !**revoked).expect("a live key").0;
    copy.cli(&["key", "revoke", prefix(live), "--wait=10s"]).ok();
    there.row_becomes("401 revoked", PATIENCE, Ask::with_key(live));
    report(&mut near, &mut far, away.elapsed());
}

fn prefix(key: &str) -> &str {
    key.rsplit_once('_').expect("a prefix").0
}

/// Returns a percentile of the times, in milliseconds.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    times[(times.len() * percent).div_ceil(100).max(1) - 1].as_secs_f64() * 1000.0
}

/// Prints a table for people and a line of JSON for programs.
fn report(near: &mut [Duration], far: &mut [Duration], promoted: Duration) {
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout is writable");
    line(format!("{:<28}{:>10}{:>10}{:>10}", "from COMMIT, in ms", "p50", "p99", "max"));
    let mut times = serde_json::Map::new();
    for (name, row) in [("publisher", near), ("region", far)] {
        row.sort_unstable();
        let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(row, percent));
        line(format!("{name:<28}{p50:>10.1}{p99:>10.1}{max:>10.1}"));
        times.insert(name.into(), serde_json::json!({ "p50_ms": p50, "p99_ms": p99, "max_ms": max }));
    }
    let promoted = promoted.as_secs_f64() * 1000.0;
    line(format!("promoted, and a revocation made there holds: {promoted:.0} ms"));
    let json = serde_json::json!({ "bench": "regions", "changes": CHANGES, "times": times, "promoted_ms": promoted });
    line(json.to_string());
}
