//! Measures what a restart costs when every key must be proven again.
//!
//! A hundred thousand keys are each used once right after the start of the server: with memos, and therefore without
//! bcrypt. Then the same without a pepper, with a few keys and for a few seconds: the rate of bcrypt, and how long a
//! proven key waits beside it, compared with the same without it.

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
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::load::keys::{text, unproven, with_memos};
use self::load::pace::{Asking, hot_p99};
use self::load::{Line, count, framed, median, millis, percentile};
use self::support::{Ask, Backend, Server, World, wait};

const KEYS: usize = 100_000;
const LINES: usize = 2;
const STREAMS: usize = 50;

/// Keys of cost 12 that are not proven.
const UNPROVEN: usize = 400;
const ROUNDS: usize = 12;
const ROUND: Duration = Duration::from_secs(2);

fn main() {
    let (rate, spread) = by_memos();
    let (proofs, ratio, with, without) = by_bcrypt();
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout is writable");
    line(format!("{KEYS} keys, each used once after the start, by their memos: {rate:.0}/s"));
    line(format!("  p50 {:.1} ms, p99 {:.1} ms, slowest {:.1} ms", spread[0], spread[1], spread[2]));
    line(format!("without a pepper, cost 12: {proofs:.1} first proofs/s"));
    line(format!(
        "  a proven key beside them: p99 {with:.2} ms, alone {without:.2} ms, ratio {ratio:.2} (medians of {ROUNDS} rounds)"
    ));
    let json = serde_json::json!({
        "bench": "cold",
        "memo": { "keys": KEYS, "per_second": rate, "p50_ms": spread[0], "p99_ms": spread[1], "max_ms": spread[2] },
        "bcrypt": { "proofs_per_second": proofs, "hot_p99_ms": with, "hot_alone_p99_ms": without, "ratio": ratio },
    });
    line(json.to_string());
}

/// Returns the rate, and p50, p99 and the maximum in milliseconds.
fn by_memos() -> (f64, [f64; 3]) {
    let world = World::on(Backend::Postgres).expect("this bench needs a Postgres");
    let pepper = with_memos(&world, KEYS);
    let server = Server::on(&world.db).args(&["--pepper-file", &pepper]).start();
    let messages: Vec<Bytes> = (0..KEYS).map(|n| framed(&Ask::with_key(&text(n)).bytes())).collect();
    let begun = Instant::now();
    let mut times = wait(ask_all(&server.grpc[0], messages));
    let rate = count(times.len()) / begun.elapsed().as_secs_f64();
    assert_eq!(server.bcrypts(), 0, "no bcrypt ran");
    times.sort_unstable();
    (rate, [50.0, 99.0, 100.0].map(|p| millis(percentile(&times, p))))
}

/// Checks each key once, over a few connections with a few streams each. Returns the durations.
async fn ask_all(address: &str, messages: Vec<Bytes>) -> Vec<Duration> {
    let (messages, next) = (Arc::new(messages), Arc::new(AtomicUsize::new(0)));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..LINES {
        let line = Line::to(address).await;
        for _ in 0..STREAMS {
            let (line, messages, next) = (line.clone(), Arc::clone(&messages), Arc::clone(&next));
            asking.spawn(async move {
                let mut times = Vec::new();
                while let Some(message) = messages.get(next.fetch_add(1, Relaxed)) {
                    let heard = line.ask(message.clone()).await;
                    assert!(heard.allowed, "a memo replaces bcrypt");
                    times.push(heard.took);
                }
                times
            });
        }
    }
    asking.join_all().await.concat()
}

/// Returns first proofs a second; then the ratio of a proven key's p99 beside them to its p99 alone, and both values.
fn by_bcrypt() -> (f64, f64, f64, f64) {
    let world = World::on(Backend::Postgres).expect("this bench needs a Postgres");
    unproven(&world, UNPROVEN, 12);
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    let hot = [framed(&Ask::with_key(&world.live.text).bytes())];
    let p99 = || millis(hot_p99(&server.grpc[0], &hot, ROUND));
    p99();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let (before, mut busy) = (server.bcrypts(), Duration::ZERO);
    for round in 0..ROUNDS {
        let first = p99();
        let address = server.grpc[0].clone();
        let begun = Instant::now();
        let guesses = Asking::start(move |stop| guess(address, round, stop));
        with.push(p99());
        guesses.stop();
        busy += begun.elapsed();
        // Both are measured under the same conditions.
        without.push(first.midpoint(p99()));
    }
    let proofs = count(usize::try_from(server.bcrypts() - before).expect("few")) / busy.as_secs_f64();
    let ratios = with.iter().zip(&without).map(|(with, without)| with / without).collect();
    (proofs, median(ratios), median(with), median(without))
}

/// Keeps the queue full of keys that must be proven.
async fn guess(address: String, round: usize, stop: Arc<AtomicBool>) {
    let line = Line::to(&address).await;
    let mut asking = tokio::task::JoinSet::new();
    for stream in 0..32 {
        let (line, stop) = (line.clone(), Arc::clone(&stop));
        asking.spawn(async move {
            let mut n = stream;
            while !stop.load(Relaxed) {
                let key = format!("llmk_cold{}_wrong-{round}-{stream}-{n}", n % UNPROVEN);
                assert!(!line.ask(framed(&Ask::with_key(&key).bytes())).await.allowed);
                n += 32;
            }
        });
    }
    asking.join_all().await;
}
