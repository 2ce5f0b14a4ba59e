//! Measures what one check costs, compared with a server that allows everything.
//!
//! All servers get the same request of 1.2 kB, as Envoy encodes it. `stock` is a plain release build of tonic and the
//! generated types, over TCP. `stock, same` is the same program with the build flags and the socket of tenantgate.
//! tenantgate must find the key, verify its token, decide and respond; it runs over a Unix socket with one worker, as
//! the others, with two workers (which must not slow each other down), and over TCP.
//!
//! Callgrind counts instructions after a warm-up. CPU is the time that the kernel has recorded, in interleaved rounds.

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

use bytes::Bytes;

use self::load::peer::{Peer, Running};
use self::load::{ask, count, framed, median, realistic};
use self::support::{Ask, World, wait};

const ROUNDS: usize = 8;
/// The number of connections, of streams on each, and of checks in a round.
const BATCHED: (usize, usize, usize) = (2, 100, 40_000);
const PING_PONG: (usize, usize, usize) = (1, 1, 10_000);
/// The number of checks during which instructions are counted.
const COUNTED: usize = 8_000;

fn main() {
    let world = World::somewhere();
    let peers = [
        Peer::stock("stock, TCP", "release", "127.0.0.1:0"),
        Peer::stock("stock, same flags and socket", "same", "unix:socket"),
        Peer::tenantgate("tenantgate", world.db.url(), &["--listen", "unix:socket"]),
        Peer::tenantgate_of(2, "tenantgate, 2 workers", world.db.url(), &["--listen", "unix:socket"]),
        Peer::tenantgate("tenantgate, TCP", world.db.url(), &["--listen", "127.0.0.1:0"]),
    ];
    let asked = realistic();
    let asked =
        asked.iter().fold(Ask::with_key(&world.live.text), |ask, (name, value)| ask.header(name, value));
    let message = framed(&asked.bytes());
    // Each worker gets a connection.
    let lines = [1, 1, 1, 2, 1];
    let each = peers.iter().zip(lines);
    let instructions: Vec<f64> = each.map(|(peer, lines)| instructions(peer, lines, &message)).collect();
    let [batched, ping_pong] = [BATCHED, PING_PONG].map(|load| cpu(&peers, load, &message));
    report(&peers, message.len(), &instructions, &batched, &ping_pong);
}

/// Returns instructions per check.
fn instructions(peer: &Peer, lines: usize, message: &Bytes) -> f64 {
    let server = Running::start_countable(peer);
    server.warm_up(std::slice::from_ref(message));
    let instructions = server.instructions(lines, COUNTED, std::slice::from_ref(message));
    server.stop();
    instructions
}

/// Returns microseconds of CPU per check, for each peer and round.
fn cpu(peers: &[Peer], load: (usize, usize, usize), message: &Bytes) -> Vec<Vec<f64>> {
    let mut rounds = vec![Vec::new(); peers.len()];
    let servers: Vec<Running> = peers.iter().map(Running::start).collect();
    for server in &servers {
        server.warm_up(std::slice::from_ref(message));
    }
    for _ in 0..ROUNDS {
        for (server, times) in servers.iter().zip(&mut rounds) {
            let before = server.cpu();
            wait(ask(server.address(), load, message));
            times.push((server.cpu() - before) / count(load.2));
        }
    }
    servers.into_iter().for_each(Running::stop);
    rounds
}

/// Prints a table for people and a line of JSON for programs. Ratios of CPU are medians over rounds, each against the
/// same round.
fn report(peers: &[Peer], bytes: usize, instructions: &[f64], batched: &[Vec<f64>], ping_pong: &[Vec<f64>]) {
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout is writable");
    let ratio = |of: &[Vec<f64>], peer: usize| {
        median(of[peer].iter().zip(&of[0]).map(|(ours, theirs)| ours / theirs).collect())
    };
    line(format!(
        "a check of {bytes} bytes{:>12}{:>8}{:>14}{:>8}{:>16}{:>8}",
        "instr.", "ratio", "batched µs", "ratio", "ping-pong µs", "ratio"
    ));
    let mut rows = Vec::new();
    for (at, peer) in peers.iter().enumerate() {
        let (cpu, alone) = (median(batched[at].clone()), median(ping_pong[at].clone()));
        let ratios = [instructions[at] / instructions[0], ratio(batched, at), ratio(ping_pong, at)];
        line(format!(
            "{:<21}{:>13.0}{:>8.2}{cpu:>14.1}{:>8.2}{alone:>16.1}{:>8.2}",
            peer.name, instructions[at], ratios[0], ratios[1], ratios[2]
        ));
        rows.push(serde_json::json!({
            "peer": peer.name, "instructions": instructions[at], "batched_us": cpu, "ping_pong_us": alone,
            "ratio_instructions": ratios[0], "ratio_batched": ratios[1], "ratio_ping_pong": ratios[2],
        }));
    }
    line(format!(
        "same flags and socket: tenantgate takes {:.2} of the instructions",
        instructions[2] / instructions[1]
    ));
    let two = batched[3].iter().zip(&batched[2]).map(|(two, one)| two / one).collect();
    line(format!("two workers: {:.2} of the CPU of one, batched", median(two)));
    line(serde_json::json!({ "bench": "check", "peers": rows }).to_string());
}
