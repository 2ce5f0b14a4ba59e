//! Sends random requests through a real Envoy that lets requests pass whose Check fails, and checks one property:
//!
//! *if the upstream saw a request, the request had exactly one valid live key, or its path is public.*
//!
//! Meanwhile an innocent client must always get 200. `TENANTGATE_ORACLE_SECONDS` sets the duration,
//! `TENANTGATE_ORACLE_SEED` repeats a run.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tenantgate::clock::{Clock as _, SystemClock};

use crate::envoy_module::{adding_module, publishing};
use crate::model::dice::Dice;
use crate::shared_connection::{fail_open, innocent, with_everything};
use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, Plan, Seen};
use crate::support::frames::{Frame, PREFACE, kind};
use crate::support::{Ask, Server, World};

/// The number of concurrent attackers.
const ATTACKERS: u64 = 3;

/// The number of findings that ends a run.
const ENOUGH: usize = 10;

/// The number of requests that are remembered, which is more than are in flight at any time.
const REMEMBERED: usize = 200_000;

/// What the upstream may see of a request with this number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Expected {
    Nothing,
    Tenant,
    Nobody,
}

/// A run: the requests that were sent, and the findings.
struct Run<'r> {
    envoy: &'r Envoy,
    world: &'r World,
    next: AtomicU64,
    expected: Mutex<BTreeMap<u64, (Expected, String)>>,
    findings: Mutex<Vec<String>>,
    kinds: Mutex<BTreeMap<&'static str, u64>>,
}

/// A request before it is encoded.
struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, Vec<u8>)>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a run is and what it repeats is told by the environment"
)]
pub(crate) fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn pick<T: Copy>(dice: &mut Dice, all: &[T]) -> T {
    all[usize::try_from(dice.below(all.len() as u64)).expect("few")]
}

/// Returns a mostly small size, sometimes up to `most`.
fn size(dice: &mut Dice, most: u64) -> usize {
    let scale = dice.below(most.ilog2().into());
    usize::try_from(dice.below(2 << scale).min(most)).expect("it fits")
}

impl Run<'_> {
    /// Returns a request with random headers, and what the upstream may see of it.
    fn request(&self, dice: &mut Dice) -> Request {
        let number = self.next.fetch_add(1, Relaxed);
        let method =
            pick(dice, &["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"]);
        let path = pick(
            dice,
            &[
                "/v1",
                "/v1",
                "/v1",
                "/docs",
                "/health",
                "/docs/",
                "/Docs",
                "/docsx",
                "/health/../v1",
                "/%64ocs/x",
            ],
        );
        let public = ["GET", "HEAD"].contains(&method) && ["/docs", "/health"].contains(&path);
        let (keys, what) = self.keys(dice);
        let right = keys.len() == 1 && keys[0] == self.world.live.text;
        let mut headers: Vec<_> =
            keys.into_iter().map(|key| (KEY_HEADER.to_owned(), key.into_bytes())).collect();
        Self::decorate(dice, &mut headers);
        let expected = match (public, right) {
            (true, _) => Expected::Nobody,
            (false, true) => Expected::Tenant,
            (false, false) => Expected::Nothing,
        };
        let path = format!("{path}?o={number}");
        let shown = format!("{method} {path}, {what}, seed of its attacker");
        let mut all = self.expected.lock().expect("no panic");
        all.insert(number, (expected, shown));
        // Requests sent so long ago have arrived or never will.
        while all.len() > REMEMBERED {
            all.pop_first();
        }
        drop(all);
        Request { method, path, headers }
    }

    /// Returns some keys, and their kind.
    fn keys(&self, dice: &mut Dice) -> (Vec<String>, &'static str) {
        let world = self.world;
        let long = format!("llmk_live_{}", "s".repeat(size(dice, 100_000)));
        match dice.below(12) {
            0..=2 => (vec![world.live.text.clone()], "a live key"),
            3 => (vec![world.revoked.text.clone()], "a revoked key"),
            4 => (vec![world.expired.text.clone()], "an expired key"),
            5 => (vec![world.live.with_wrong_secret()], "a wrong secret"),
            6 => (vec![world.of_sleepy.text.clone()], "a suspended tenant"),
            7 => (vec![long], "a long key"),
            8 => (vec![world.live.text.clone(); 2], "a live key twice"),
            9 => (vec![world.live.text.clone(), world.revoked.text.clone()], "two keys"),
            10 => (vec![format!("{},x", world.live.text)], "a key and a comma"),
            _ => (vec![], "no key"),
        }
    }

    /// Adds headers that should have no effect.
    fn decorate(dice: &mut Dice, headers: &mut Vec<(String, Vec<u8>)>) {
        let names = [
            "tracestate",
            "traceparent",
            "baggage",
            "b3",
            "x-b3-traceid",
            "user-agent",
            "cookie",
            "x-forwarded-for",
            "x-llmcore-tenant-id",
            "x-llmcore-key-id",
            "x-envoy-retry-on",
            "x-request-id",
            "grpc-timeout",
            "te",
        ];
        for _ in 0..dice.below(5) {
            let name = pick(dice, &names);
            let most = if dice.one_in(40) { 1_500_000 } else { 20_000 };
            let byte = if dice.one_in(4) { u8::try_from(dice.below(256)).expect("a byte") } else { b'v' };
            let mut value = vec![b'v'; size(dice, most)];
            if let Some(middle) = value.get_mut(1) {
                *middle = byte;
            }
            headers.push((name.to_owned(), value));
        }
        if dice.one_in(3) {
            let traceparent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
            headers.push(("traceparent".into(), traceparent.to_vec()));
        }
        if dice.one_in(20) {
            headers.extend((0..dice.below(90)).map(|n| (format!("x-many-{n}"), vec![b'm'; 50])));
        }
        // A line end inside a value would start another request, which is not tested here.
        headers.retain(|(_, value)| !value.iter().any(|byte| [b'\r', b'\n', 0].contains(byte)));
    }

    fn count(&self, kind: &'static str) {
        *self.kinds.lock().expect("no panic").entry(kind).or_default() += 1;
    }

    /// Acts as one client on one connection.
    fn attack(&self, dice: &mut Dice) {
        match dice.below(8) {
            0..=2 => self.http1(dice, "HTTP/1.1", false),
            3 => self.http1(dice, "HTTP/1.1 given up", true),
            4 => self.body(dice),
            5 => self.upgrade(dice),
            _ => self.http2(dice),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.envoy.address).expect("envoy listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        stream.set_write_timeout(Some(Duration::from_secs(10))).expect("a socket");
        stream
    }

    fn head(request: &Request, more: &str) -> Vec<u8> {
        let mut head =
            format!("{} {} HTTP/1.1\r\nhost: api.example.com\r\n{more}", request.method, request.path)
                .into_bytes();
        for (name, value) in &request.headers {
            head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        head.extend(b"\r\n");
        head
    }

    fn http1(&self, dice: &mut Dice, kind: &'static str, give_up: bool) {
        self.count(kind);
        let mut stream = self.connect();
        let mut bytes = Self::head(&self.request(dice), "");
        if dice.one_in(4) {
            bytes.extend(Self::head(&self.request(dice), "connection: close\r\n"));
        } else {
            bytes = Self::head(&self.request(dice), "connection: close\r\n");
        }
        if give_up {
            bytes.truncate(usize::try_from(dice.below(bytes.len() as u64 + 1)).expect("it fits"));
            let _ = stream.write_all(&bytes);
            return;
        }
        // Envoy may have responded and closed before it has read everything.
        if stream.write_all(&bytes).is_ok() && dice.one_in(10) {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let _ = stream.read_to_end(&mut Vec::new());
    }

    fn body(&self, dice: &mut Dice) {
        let (length, chunked) = (size(dice, 3_000_000), dice.one_in(2));
        self.count(if chunked { "a body in chunks" } else { "a body" });
        let request = self.request(dice);
        let (mut more, body) = (String::from("connection: close\r\n"), vec![b'b'; length]);
        if chunked {
            more += "transfer-encoding: chunked\r\n";
        } else {
            more.extend(["content-length: ", &length.to_string(), "\r\n"]);
        }
        if dice.one_in(5) {
            more += "expect: 100-continue\r\n";
        }
        let mut bytes = Self::head(&request, &more);
        if chunked {
            for part in body.chunks(70_000) {
                bytes.extend(format!("{:x}\r\n", part.len()).bytes());
                bytes.extend([part, b"\r\n"].concat());
            }
            bytes.extend(b"0\r\nx-trailer: t\r\n\r\n");
        } else {
            bytes.extend(&body);
        }
        if dice.one_in(4) {
            bytes.truncate(bytes.len() / 2);
        }
        let mut stream = self.connect();
        if stream.write_all(&bytes).is_ok() && !dice.one_in(4) {
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }

    fn upgrade(&self, dice: &mut Dice) {
        self.count("an upgrade");
        let upgrade = pick(dice, &["websocket", "h2c", "tls/1.3"]);
        let more = format!(
            "connection: upgrade, http2-settings\r\nupgrade: {upgrade}\r\nhttp2-settings: AAMAAABk\r\n"
        );
        let mut stream = self.connect();
        let _ = stream.write_all(&Self::head(&self.request(dice), &more));
        let _ = stream.read(&mut [0; 4096]);
    }

    /// Sends many requests in one write, resets some of them, and may close the connection.
    fn http2(&self, dice: &mut Dice) {
        self.count("a burst over HTTP/2");
        let mut bytes = [PREFACE, &Frame::new(kind::SETTINGS, 0, 0, &[]).bytes()].concat();
        let most = if dice.one_in(5) { 400 } else { 40 };
        let streams = 1 + dice.below(most);
        let (reset, close) = (dice.one_in(2), dice.one_in(2));
        for n in 0..u32::try_from(streams).expect("few") {
            let Request { method, path, headers } = self.request(dice);
            let short = |(name, value): &(String, Vec<u8>)| {
                let text =
                    String::from_utf8(value.clone()).ok().filter(|text| text.len() < 0x7f && text.is_ascii());
                Some((name.clone(), text?))
            };
            let own: Vec<_> = headers.iter().filter_map(short).collect();
            // A header that does not fit is omitted; without its key, the request is a different one.
            let keys = |name: &str| name == KEY_HEADER;
            let number = self.next.load(Relaxed);
            if own.iter().filter(|(name, _)| keys(name)).count()
                != headers.iter().filter(|(name, _)| keys(name)).count()
            {
                self.forget(&path);
                continue;
            }
            let _ = number;
            let pseudo = [(":method", method), (":path", path.as_str()), (":authority", "api.example.com")];
            let fields =
                pseudo.into_iter().chain(own.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            // `:scheme: http` from the static table.
            let frame = Frame::headers(2 * n + 1, 0x5, b"\x86", fields);
            bytes.extend(frame.bytes());
            if reset && dice.one_in(2) {
                bytes.extend(Frame::new(kind::RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes()).bytes());
            }
        }
        let mut stream = self.connect();
        let _ = stream.write_all(&bytes);
        if !close {
            stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
            let _ = stream.read(&mut vec![0; 1 << 16]);
        }
    }

    /// Forgets a request that was not sent.
    fn forget(&self, path: &str) {
        let number = path.rsplit_once("o=").and_then(|(_, number)| number.parse().ok()).expect("a number");
        self.expected.lock().expect("no panic").remove(&number);
    }

    /// Compares the requests that the upstream saw with the expected ones.
    fn examine(&self) -> u64 {
        let seen = self.envoy.http_seen();
        let count = seen.len() as u64;
        for seen in seen {
            self.hold(&seen);
        }
        count
    }

    fn hold(&self, seen: &Seen) {
        let number =
            seen.line.split("o=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        let Some(number) = number else {
            // Requests of the innocent client have no number.
            return;
        };
        let expected = self.expected.lock().expect("no panic").get(&number).cloned();
        let tenant = seen.values("x-llmcore-tenant-id");
        let fine = match expected.as_ref().map(|(expected, _)| *expected) {
            Some(Expected::Tenant) => tenant == [self.world.acme.id.as_str()],
            Some(Expected::Nobody) => seen.names("x-llmcore-").is_empty(),
            Some(Expected::Nothing) | None => false,
        };
        if !fine || !seen.values(KEY_HEADER).is_empty() {
            let mut findings = self.findings.lock().expect("no panic");
            findings.push(format!("{number}: {expected:?} arrived as {} with {tenant:?}", seen.line));
        }
    }
}

#[test]
fn only_valid_requests_reach_the_upstream_and_innocent_clients_get_no_error() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = plan(&server).start() else { return };
    run(&world, &server, &envoy);
}

#[test]
fn the_same_holds_with_the_module_inside_envoy() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = adding_module(plan(&server), &socket).workers(2).start() else { return };
    run(&world, &server, &envoy);
    for decided in ["allowed", "denied"] {
        let count = envoy.stat(&format!("dynamicmodulescustom.tenantgate_{decided}"));
        assert!(count > 100, "the module has {decided} {count}");
    }
}

fn plan(server: &Server) -> Plan {
    with_everything(fail_open(server)).with("max_concurrent_streams: 100\n", "max_concurrent_streams: 1000\n")
}

/// A run, with an Envoy that asks this server.
fn run(world: &World, server: &Server, envoy: &Envoy) {
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    let seconds = variable("TENANTGATE_ORACLE_SECONDS").unwrap_or(30);
    let seed = variable("TENANTGATE_ORACLE_SEED").unwrap_or_else(|| SystemClock.now().0.unsigned_abs());
    let run = Run {
        envoy,
        world,
        next: AtomicU64::new(0),
        expected: Mutex::default(),
        findings: Mutex::default(),
        kinds: Mutex::default(),
    };
    let (stop, until) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(seconds));
    let goes_on = || Instant::now() < until && run.findings.lock().expect("no panic").len() < ENOUGH;
    let mut arrived = 0;
    let answered = std::thread::scope(|scope| {
        let others = scope.spawn(|| innocent(envoy, &world.live.text, &stop));
        let attackers: Vec<_> = (0..ATTACKERS)
            .map(|attacker| {
                let run = &run;
                scope.spawn(move || {
                    let (mut round, mut arrived) = (0, 0);
                    while goes_on() {
                        run.attack(&mut Dice::of(seed, round, attacker));
                        round += 1;
                        arrived += if round % 16 == 0 { run.examine() } else { 0 };
                    }
                    arrived
                })
            })
            .collect();
        for attacker in attackers {
            arrived += attacker.join().expect("no attacker panics");
        }
        stop.store(true, Relaxed);
        others.join().expect("the innocent client saw an error")
    });
    arrived += run.examine();
    let sent = run.next.load(Relaxed);
    let (findings, kinds) =
        (run.findings.into_inner().expect("no panic"), run.kinds.into_inner().expect("no panic"));
    #[expect(clippy::print_stdout, reason = "the result of a run")]
    {
        println!(
            "oracle: seed {seed}, {sent} requests ({kinds:?}), {arrived} arrived, {answered} of an innocent client"
        );
    }
    assert!(findings.is_empty(), "seed {seed}: {findings:#?}");
    // Those of the innocent client arrive, too.
    assert!(arrived > 100 && sent + answered as u64 > arrived, "enough requests arrive: {arrived} of {sent}");
    assert_eq!(envoy.stat("http.edge.ext_authz.failure_mode_allowed"), 0, "seed {seed}");
    assert_eq!(envoy.stat("cluster.tenantgate.upstream_rq_rx_reset"), 0, "seed {seed}");
}
