//! Measures how long checks of proven keys wait while clients abuse the listener.
//!
//! Valid, proven keys are checked 1,000 times a second on their own connections, alone and beside each abuse of HTTP/2
//! and of connections: streams that are reset at once, headers that never end, meaningless frames, clients that stop
//! during the handshake, 10,000 idle connections. Each is compared with the quiet rounds before and after it. The
//! memory of the server is recorded, too.
//!
//! The abuse runs on the same machine and uses a part of it, so it pauses for a millisecond between bursts. How much
//! that part delays the checks is measured as well: the same abuse of another server, which shares with the measured
//! one only the machine.

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
use std::time::Duration;

use bytes::Bytes;

use self::load::cost::memory;
use self::load::keys::{text, with_memos};
use self::load::pace::hot_p99;
use self::load::{count, framed, median, millis};
use self::support::frames::{Frame, PREFACE, Raw, kind};
use self::support::{Ask, Backend, Server, World};

const HOT: usize = 100;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const IDLE: usize = 10_000;

/// One kind of abuse, repeated.
struct Abuse {
    name: &'static str,
    /// Runs once on its own connection, and counts its actions.
    burst: fn(&str, &mut Vec<Raw>) -> usize,
}

const ABUSES: [Abuse; 7] = [
    Abuse { name: "streams reset at once", burst: rapid_reset },
    Abuse { name: "headers that never end", burst: endless_headers },
    Abuse { name: "PING", burst: |to, _| flood(to, &Frame::new(kind::PING, 0, 0, &[7; 8]), &[]) },
    Abuse {
        name: "SETTINGS",
        burst: |to, _| flood(to, &Frame::new(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9]), &[]),
    },
    Abuse {
        name: "empty DATA",
        burst: |to, _| flood(to, &Frame::new(kind::DATA, 0, 1, &[]), &Frame::check(1).bytes()),
    },
    Abuse { name: "half a hello", burst: half_a_hello },
    Abuse { name: "idle connections", burst: idle },
];

fn rapid_reset(to: &str, _: &mut Vec<Raw>) -> usize {
    const STREAMS: u32 = 100;
    let cancel = 8_u32.to_be_bytes();
    let pair = |stream| {
        [Frame::check(stream).bytes(), Frame::new(kind::RST_STREAM, 0, stream, &cancel).bytes()].concat()
    };
    let mut raw = Raw::to(to);
    let _ = raw.send(&(0..STREAMS).flat_map(|n| pair(2 * n + 1)).collect::<Vec<u8>>());
    STREAMS as usize
}

fn endless_headers(to: &str, _: &mut Vec<Raw>) -> usize {
    let first = Frame { flags: 0, ..Frame::check(1) };
    let more = Frame::new(kind::CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'].repeat(200)).bytes();
    let mut raw = Raw::to(to);
    let _ = raw.send(&[first.bytes(), more.repeat(50)].concat());
    50
}

/// Sends a frame a thousand times, without reading responses.
fn flood(to: &str, frame: &Frame, before: &[u8]) -> usize {
    let mut raw = Raw::to(to);
    let _ = raw.send(&[before, &frame.bytes().repeat(1_000)].concat());
    1_000
}

fn half_a_hello(to: &str, held: &mut Vec<Raw>) -> usize {
    if held.len() < 1_000 {
        let mut raw = Raw::silent(to);
        let _ = raw.send(&PREFACE[..PREFACE.len() / 2]);
        held.push(raw);
    }
    1
}

/// Opens connections, a hundred at a time, until all are open.
fn idle(to: &str, held: &mut Vec<Raw>) -> usize {
    let more = 100.min(IDLE - held.len());
    held.extend((0..more).map(|_| Raw::to(to)));
    more
}

/// A thread that repeats the abuse until it is stopped.
struct Abuser {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<()>,
}

impl Abuser {
    fn start(abuse: &Abuse, to: &str) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted, burst, to) =
            (Arc::clone(&stop), Arc::clone(&done), abuse.burst, to.to_owned());
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            while !stopped.load(Relaxed) {
                counted.fetch_add(burst(&to, &mut held), Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, done, thread }
    }

    fn stop(self) -> usize {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("it ends");
        self.done.load(Relaxed)
    }
}

/// The result of one abuse in one round.
struct Seen {
    beside: f64,
    /// The same while another server is abused.
    elsewhere: f64,
    alone: f64,
    per_second: f64,
    resident: u64,
}

fn main() {
    let world = World::on(Backend::Sqlite).expect("SQLite needs no server");
    let pepper = with_memos(&world, HOT);
    let server =
        Server::on(&world.db).args(&["--pepper-file", &pepper, "--max-connections", "16384"]).start();
    let hot: Vec<Bytes> = (0..HOT).map(|n| framed(&Ask::with_key(&text(n)).bytes())).collect();
    let other = Server::on(&world.db).args(&["--max-connections", "16384"]).start();
    let (address, other) = (&server.grpc[0], &other.grpc[0]);
    hot_p99(address, &hot, ROUND);
    let before = memory(server.pid()).0;
    let mut seen: [Vec<Seen>; ABUSES.len()] = Default::default();
    for _ in 0..ROUNDS {
        for (abuse, seen) in ABUSES.iter().zip(&mut seen) {
            let quiet = hot_p99(address, &hot, ROUND / 2);
            let abuser = Abuser::start(abuse, other);
            std::thread::sleep(Duration::from_millis(500));
            let elsewhere = hot_p99(address, &hot, ROUND);
            abuser.stop();
            let abuser = Abuser::start(abuse, address);
            std::thread::sleep(Duration::from_millis(500));
            let beside = hot_p99(address, &hot, ROUND);
            let resident = memory(server.pid()).0;
            let per_second = count(abuser.stop()) / (ROUND.as_secs_f64() + 0.5);
            let after = hot_p99(address, &hot, ROUND / 2);
            let alone = millis(quiet).midpoint(millis(after));
            let (beside, elsewhere) = (millis(beside), millis(elsewhere));
            seen.push(Seen { beside, elsewhere, alone, per_second, resident });
        }
    }
    report(&seen, before);
}

/// Prints a table for people and a line of JSON for programs. Ratios are medians over rounds.
fn report(seen: &[Vec<Seen>; ABUSES.len()], before: u64) {
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout is writable");
    line(format!(
        "{:<34}{:>10}{:>10}{:>14}{:>10}{:>8}{:>16}",
        "1,000 right keys a second, beside",
        "a second",
        "p99 ms",
        "elsewhere ms",
        "alone ms",
        "ratio",
        "resident, MiB"
    ));
    let mut rows = Vec::new();
    for (abuse, seen) in ABUSES.iter().zip(seen) {
        let of = |what: fn(&Seen) -> f64| median(seen.iter().map(what).collect());
        let (rate, beside, alone) = (of(|s| s.per_second), of(|s| s.beside), of(|s| s.alone));
        let elsewhere = of(|s| s.elsewhere);
        let ratio = of(|s| s.beside / s.alone);
        let resident = seen.iter().map(|s| s.resident >> 20).max().unwrap_or_default();
        line(format!(
            "{:<34}{rate:>10.0}{beside:>10.2}{elsewhere:>14.2}{alone:>10.2}{ratio:>8.2}{resident:>16}",
            abuse.name
        ));
        rows.push(serde_json::json!({
            "abuse": abuse.name, "per_second": rate, "hot_p99_ms": beside, "elsewhere_p99_ms": elsewhere,
            "alone_p99_ms": alone, "ratio": ratio, "resident_mib": resident,
        }));
    }
    line(format!("resident before: {} MiB", before >> 20));
    line(
        serde_json::json!({ "bench": "abuse", "abuses": rows, "resident_before_mib": before >> 20 })
            .to_string(),
    );
}
