//! What does one check cost, against a server that says yes to everything?
//!
//! Three servers are asked the same request, 1.2 kB as Envoy writes it: `stock`, a plain
//! release build of tonic and the generated types, over TCP; `stock, same`, the same program
//! with the flags and the socket of tenantgate; and tenantgate, over a Unix
//! socket, with a key that it has to find, prove by its seal, judge and answer for.
//!
//! Instructions are counted by cachegrind: the difference of a long and a short run, so that
//! starting up counts for nothing. CPU is what the kernel has booked, in interleaved rounds.

#[expect(dead_code, reason = "a part of what the benches need")]
#[path = "load/mod.rs"]
mod load;
#[expect(dead_code, unused_imports, unused_macros, reason = "a part of what the tests need")]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;

use self::load::{Line, framed, median};
use self::support::transcript::{Transcript, field, says};
use self::support::{Ask, PATIENCE, World, eventually, wait};

const ROUNDS: usize = 8;
/// Connections, streams on each, and checks in a round.
const BATCHED: (usize, usize, usize) = (2, 100, 40_000);
const PING_PONG: (usize, usize, usize) = (1, 1, 10_000);
/// Checks under cachegrind, in the short run and in the long one.
const COUNTED: (usize, usize) = (1_000, 9_000);

/// Who is asked: a name, its program and its arguments.
struct Peer {
    name: &'static str,
    program: String,
    args: Vec<String>,
}

fn main() {
    let world = World::somewhere();
    let dir = world.db.dir();
    let socket = |name: &str| format!("unix:{}", dir.join(name).display());
    let own = [
        "serve",
        "--database-url",
        world.db.url(),
        "--ops-listen",
        "127.0.0.1:0",
        // Looking at the database is no part of a check.
        "--sync-interval",
        "1s",
        "--listen",
        &socket("own"),
    ];
    let stock = |profile: &str| format!("{}/target/stock/{profile}/stock", env!("CARGO_MANIFEST_DIR"));
    let peers = [
        Peer { name: "stock, TCP", program: stock("release"), args: vec!["127.0.0.1:0".into()] },
        Peer { name: "stock, same flags and socket", program: stock("same"), args: vec![socket("same")] },
        Peer {
            name: "tenantgate",
            program: env!("CARGO_BIN_EXE_tenantgate").into(),
            args: own.map(str::to_owned).to_vec(),
        },
    ];
    let message = framed(&realistic(&world.live.text).bytes());
    let instructions: Vec<f64> = peers.iter().map(|peer| instructions(peer, dir, &message)).collect();
    let [batched, ping_pong] = [BATCHED, PING_PONG].map(|load| cpu(&peers, dir, load, &message));
    report(&peers, message.len(), &instructions, &batched, &ping_pong);
}

/// What a browser's request is to Envoy.
fn realistic(key: &str) -> Ask {
    let cookie = "session=".to_owned() + &"0123456789abcdef".repeat(20);
    Ask::with_key(key)
        .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36")
        .header("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8")
        .header("accept-language", "en-GB,en;q=0.9,de;q=0.8")
        .header("accept-encoding", "gzip, deflate, br, zstd")
        .header("cookie", &cookie)
        .header("referer", "https://console.example.com/projects/4711/models")
        .header("x-forwarded-for", "192.0.2.44, 198.51.100.7")
        .header("x-forwarded-proto", "https")
        .header("x-request-id", "3f0c3b9e-6b0e-4a3c-9f6e-0b8f6c1d2e3a")
        .header("x-envoy-expected-rq-timeout-ms", "15000")
        .header("sec-fetch-dest", "empty")
        .header("sec-fetch-mode", "cors")
        .header("sec-fetch-site", "same-origin")
        .header("cache-control", "no-cache")
}

/// A server that runs, perhaps under cachegrind.
struct Running {
    child: Child,
    address: String,
}

impl Running {
    fn start(peer: &Peer, dir: &Path, counted_to: Option<&Path>) -> Self {
        for socket in ["own", "same"] {
            let _ = std::fs::remove_file(dir.join(socket));
        }
        let mut command = match counted_to {
            Some(file) => {
                let mut valgrind = Command::new("valgrind");
                valgrind
                    .args(["--tool=cachegrind", "--cache-sim=no"])
                    .arg(format!("--cachegrind-out-file={}", file.display()));
                valgrind.arg(&peer.program);
                valgrind
            }
            None => Command::new(&peer.program),
        };
        // As many as the stock server has.
        command.env("TOKIO_WORKER_THREADS", "1").args(&peer.args).current_dir(dir).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let said = Transcript::of(child.stdout.take().expect("piped"));
        let logged = Transcript::of(child.stderr.take().expect("piped"));
        let address = eventually("it listens", PATIENCE * 4, || {
            let ours = logged
                .lines()
                .into_iter()
                .find(|line| says(line, "listening") && field(line, "listener") == Some("grpc"));
            let ours = ours.and_then(|line| field(&line, "address").map(str::to_owned));
            let stock =
                || said.lines().first().and_then(|line| line.strip_prefix("listening ").map(str::to_owned));
            ours.or_else(stock).ok_or_else(|| logged.text())
        });
        Self { child, address }
    }

    /// Asks until the answer is yes: the key is proven, and everything has been set up once.
    async fn warm_up(&self, message: &Bytes) {
        let line = Line::to(&self.address).await;
        while !line.ask(message.clone()).await.allowed {}
    }

    /// CPU time so far, in microseconds.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        let ticks: f64 = fields[11..13].iter().map(|n| n.parse::<f64>().expect("a number")).sum();
        // USER_HZ is 100 on every Linux.
        ticks * 10_000.0
    }

    fn stop(mut self) {
        let stopped =
            Command::new("sh").args(["-c", r#"kill -TERM "$0""#, &self.child.id().to_string()]).status();
        assert!(stopped.expect("sh starts").success());
        self.child.wait().expect("it ends");
    }
}

/// Instructions of a check.
fn instructions(peer: &Peer, dir: &Path, message: &Bytes) -> f64 {
    let [short, long] = [COUNTED.0, COUNTED.1].map(|checks| {
        let file = dir.join("cachegrind.out");
        let server = Running::start(peer, dir, Some(&file));
        wait(async {
            server.warm_up(message).await;
            ask(&server.address, (1, 1, checks), message).await;
        });
        server.stop();
        let text = std::fs::read_to_string(&file).expect("cachegrind wrote it");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
        line.and_then(|total| total.trim().parse::<f64>().ok()).expect("a total")
    });
    (long - short) / count(COUNTED.1 - COUNTED.0)
}

/// Microseconds of CPU a check, of each peer, in each round.
fn cpu(peers: &[Peer], dir: &Path, load: (usize, usize, usize), message: &Bytes) -> Vec<Vec<f64>> {
    let mut rounds = vec![Vec::new(); peers.len()];
    let servers: Vec<Running> = peers.iter().map(|peer| Running::start_beside(peer, dir)).collect();
    for server in &servers {
        wait(server.warm_up(message));
    }
    for _ in 0..ROUNDS {
        for (server, times) in servers.iter().zip(&mut rounds) {
            let before = server.cpu();
            wait(ask(&server.address, load, message));
            times.push((server.cpu() - before) / count(load.2));
        }
    }
    servers.into_iter().for_each(Running::stop);
    rounds
}

impl Running {
    /// Beside the others: their sockets stay.
    fn start_beside(peer: &Peer, dir: &Path) -> Self {
        let own = dir.join(format!("beside-{}", peer.name.len()));
        std::fs::create_dir_all(&own).expect("made");
        let args = peer.args.iter().map(|arg| match arg.strip_prefix("unix:") {
            Some(_) => format!("unix:{}", own.join("socket").display()),
            None => arg.clone(),
        });
        let peer = Peer { name: peer.name, program: peer.program.clone(), args: args.collect() };
        let _ = std::fs::remove_file(own.join("socket"));
        Self::start(&peer, &own, None)
    }
}

async fn ask(address: &str, (lines, streams, checks): (usize, usize, usize), message: &Bytes) {
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..lines {
        let line = Line::to(address).await;
        for _ in 0..streams {
            let (line, message) = (line.clone(), message.clone());
            asking.spawn(async move {
                for _ in 0..checks / lines / streams {
                    assert!(line.ask(message.clone()).await.allowed);
                }
            });
        }
    }
    asking.join_all().await;
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).expect("few"))
}

/// A table for people and a line for programs. Ratios of CPU are medians over rounds, each against the same round.
fn report(peers: &[Peer], bytes: usize, instructions: &[f64], batched: &[Vec<f64>], ping_pong: &[Vec<f64>]) {
    let mut out = std::io::stdout();
    let mut line = |line: String| writeln!(out, "{line}").expect("stdout takes it");
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
    line(serde_json::json!({ "bench": "check", "peers": rows }).to_string());
}
