//! Measures how long checks of proven keys wait while clients flood the server with invalid keys.
//!
//! Valid, proven keys are checked 1,000 times a second, alone and beside 10,000 other checks a second: valid keys, for
//! comparison; wrong secrets of proven keys; wrong secrets of keys that are not proven, which need bcrypt; unknown
//! prefixes; malformed keys. Each of the 10,000 is different. The rounds are interleaved, and each is compared with the
//! two quiet ones beside it. The memory of the server, which should not grow, is recorded, too.
//!
//! The flood runs on the same machine and uses a part of it, which is why there is a flood of valid keys for
//! comparison.

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
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::load::cost::memory;
use self::load::keys::{text, unproven, with_memos};
use self::load::pace::{Asking, hot_p99, paced};
use self::load::{count, framed, median, millis};
use self::support::{Ask, Backend, Server, World};

const KEYS: usize = 1_000;
const HOT: usize = 100;
const PER_SECOND: u32 = 10_000;
const ROUNDS: usize = 10;
const ROUND: Duration = Duration::from_secs(2);
/// The time until a flood has reached its rate.
const RISE: Duration = Duration::from_millis(200);

/// The keys of a flood of 10,000 checks a second.
struct Flood {
    name: &'static str,
    key: fn(usize) -> String,
    allowed: bool,
}

const FLOODS: [Flood; 5] = [
    Flood { name: "right keys", key: |n| text(n % KEYS), allowed: true },
    Flood {
        name: "wrong secrets, proven keys",
        key: |n| format!("llmk_acmecorpinc1{:08}_wrong{n:030}", n % KEYS),
        allowed: false,
    },
    Flood {
        name: "wrong secrets, unproven keys",
        key: |n| format!("llmk_cold{}_wrong{n:030}", n % KEYS),
        allowed: false,
    },
    Flood { name: "unknown prefixes", key: |n| format!("llmk_nobody{n}_wrong{n:030}"), allowed: false },
    Flood { name: "malformed keys", key: |n| format!("llmk_acme {n}_wrong{n:030}"), allowed: false },
];

/// One flood in one round: latency of proven keys beside it and alone, in milliseconds, and the rate of the flood.
struct Seen {
    beside: f64,
    alone: f64,
    per_second: f64,
}

fn main() {
    let world = World::on(Backend::Postgres).expect("this bench needs a Postgres");
    let pepper = with_memos(&world, KEYS);
    unproven(&world, KEYS, 12);
    let server = Server::on(&world.db).args(&["--pepper-file", &pepper]).start();
    let hot: Vec<Bytes> = (0..HOT).map(|n| framed(&Ask::with_key(&text(n)).bytes())).collect();
    hot_p99(&server.grpc[0], &hot, ROUND);
    let mut resident = vec![memory(server.pid()).0];
    let mut seen: [Vec<Seen>; FLOODS.len()] = Default::default();
    let mut sent = 0;
    for round in 0..ROUNDS {
        for at in 0..FLOODS.len() {
            // The order changes, so that no candidate always follows the same one.
            let at = (at + round) % FLOODS.len();
            seen[at].push(look(&server, &FLOODS[at], &hot, &mut sent));
        }
        resident.push(memory(server.pid()).0);
    }
    report(&seen, &resident, &[&server.bcrypts().to_string(), &sent.to_string()]);
}

/// Runs one flood, with a quiet round before and after it.
fn look(server: &Server, flood: &'static Flood, hot: &[Bytes], sent: &mut usize) -> Seen {
    let address = &server.grpc[0];
    let before = hot_p99(address, hot, ROUND / 2);
    let (to, first) = (address.clone(), *sent);
    let messages = (first..).map(|n| framed(&Ask::with_key(&(flood.key)(n)).bytes()));
    let begun = Instant::now();
    let asking = Asking::start(move |stop| paced(to, PER_SECOND, messages, stop));
    std::thread::sleep(RISE);
    let beside = hot_p99(address, hot, ROUND);
    let heard = asking.stop();
    let took = begun.elapsed();
    assert!(heard.iter().all(|heard| heard.allowed == flood.allowed), "{}", flood.name);
    *sent += heard.len();
    let after = hot_p99(address, hot, ROUND / 2);
    let alone = millis(before).midpoint(millis(after));
    Seen { beside: millis(beside), alone, per_second: count(heard.len()) / took.as_secs_f64() }
}

/// Prints a table for people and a line of JSON for programs. Ratios are medians over rounds.
fn report(seen: &[Vec<Seen>; FLOODS.len()], resident: &[u64], [bcrypts, sent]: &[&str; 2]) {
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout is writable");
    line(format!(
        "{:<34}{:>10}{:>12}{:>12}{:>14}{:>16}",
        "1,000 right keys a second, beside", "a second", "p99 ms", "alone ms", "ratio", "to right keys"
    ));
    let mut rows = Vec::new();
    for (at, flood) in FLOODS.iter().enumerate() {
        let of = |what: fn(&Seen) -> f64| median(seen[at].iter().map(what).collect());
        let to_right = median(seen[at].iter().zip(&seen[0]).map(|(a, b)| a.beside / b.beside).collect());
        let ratio = of(|seen| seen.beside / seen.alone);
        let (rate, beside, alone) = (of(|s| s.per_second), of(|s| s.beside), of(|s| s.alone));
        line(format!(
            "{:<34}{rate:>10.0}{beside:>12.2}{alone:>12.2}{ratio:>14.2}{to_right:>16.2}",
            flood.name
        ));
        rows.push(serde_json::json!({
            "flood": flood.name, "per_second": rate, "hot_p99_ms": beside, "alone_p99_ms": alone,
            "ratio": ratio, "ratio_to_right_keys": to_right,
        }));
    }
    let [start, first, last] = [resident[0], resident[1], resident[resident.len() - 1]].map(|n| n >> 10);
    line(format!(
        "resident, KiB: {start} before, {first} after one round, {last} after {ROUNDS}, {sent} keys and {bcrypts} bcrypts"
    ));
    line(
        serde_json::json!({
            "bench": "flood", "floods": rows,
            "resident_kib": resident.iter().map(|n| n >> 10).collect::<Vec<_>>(),
        })
        .to_string(),
    );
}
