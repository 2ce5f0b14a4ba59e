//! Tests that first proofs are fair between the clients of one Envoy: a client that guesses at many keys keeps no other
//! client from its first proof.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::shared_connection::{Stops, fail_open, request};
use crate::support::ask::KEY_HEADER;
use crate::support::envoy::Envoy;
use crate::support::frames::{Frame, Raw, kind};
use crate::support::{PATIENCE, Server, World, eventually, http, wait};

/// The keys that the guesser knows the prefixes of: more than the queue of first proofs holds (64).
const KNOWN: usize = 120;

/// The guesses that it has under way: more than the queue holds, too, and fewer than Envoy accepts streams on a
/// connection.
const UNDER_WAY: usize = 90;

/// The keys that are proven for the first time meanwhile.
const FIRST: usize = 8;

fn guess(n: usize) -> String {
    format!("llmk_known-{}_Guess-{n:010}", n % KNOWN)
}

fn right(n: usize) -> String {
    format!("llmk_first-{n}_Secret-0123456789")
}

/// Inserts a key with the prefix of `text` and a hash of `secret`, for the tenant of `live`.
fn insert(world: &World, text: &str, secret: &str, cost: u32) {
    let hash = bcrypt::non_truncating_hash(secret, cost).expect("at most 71 bytes");
    let prefix = text.rsplit_once('_').expect("a prefix").0;
    let tenant = format!("(SELECT tenant_id FROM api_keys WHERE key_prefix = '{}')", world.live.prefix);
    let id = uuid::Uuid::new_v4();
    world.db.sql(&format!(
        "INSERT INTO api_keys (id, hashed_key, key_prefix, tenant_id) VALUES ('{id}', '{hash}', '{prefix}', {tenant})"
    ));
}

/// Guesses at known keys without a pause, many at a time, until it is stopped. Returns how many were answered.
fn guesses(envoy: &Envoy, stop: &AtomicBool) -> usize {
    let mut raw = Raw::to(&envoy.address);
    // The window fits all bodies together, so that flow control does not block the connection (RFC 9113 §6.9).
    let window = Frame::new(kind::WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes());
    raw.send(&window.bytes()).expect("sent");
    let send = |raw: &mut Raw, n: usize| {
        let stream = 2 * u32::try_from(n).expect("few") + 1;
        raw.send(&request(stream, "/v1/guessed", Some(&guess(n)))).expect("sent");
    };
    (0..UNDER_WAY).for_each(|n| send(&mut raw, n));
    let mut answered = 0;
    while !stop.load(Relaxed) {
        let frame = raw.next().expect("the connection stays open");
        if frame.kind == kind::HEADERS {
            send(&mut raw, UNDER_WAY + answered);
            answered += 1;
        }
    }
    answered
}

/// Sends a request from this address of the loopback. Returns the status.
fn status_from(envoy: &Envoy, client: &str, key: &str) -> u16 {
    let to: SocketAddr = envoy.address.parse().expect("an address");
    let mut stream: TcpStream = wait(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(format!("{client}:0").parse().expect("an address")).expect("an address of this machine");
        socket.connect(to).await.expect("envoy listens").into_std().expect("a socket")
    });
    stream.set_nonblocking(false).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!(
        "GET /v1/first HTTP/1.1\r\nhost: api.example.com\r\nconnection: close\r\n{KEY_HEADER}: {key}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    http::parse(&String::from_utf8_lossy(&answer)).status
}

fn shed(server: &Server) -> f64 {
    server.metric(&["tenantgate_bcrypt_shed_total"])
}

/// Proves keys for the first time from `client`, beside a guesser at 127.0.0.1 that fills the queue. Each first attempt
/// must succeed.
fn are_proven_beside_a_guesser(client: &str) {
    let world = World::somewhere();
    for n in 0..KNOWN {
        insert(&world, &guess(n), "nobody has this secret", 8);
    }
    for n in 0..FIRST {
        insert(&world, &right(n), &right(n), 4);
    }
    let server = Server::on(&world.db).start();
    let Some(envoy) = fail_open(&server).start() else { return };
    // The guesser was there before: every key that it knows has a wrong attempt.
    for n in 0..KNOWN {
        assert_eq!(envoy.send("GET", "/v1", &[(KEY_HEADER, &guess(n))]).page.status, 401);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| guesses(&envoy, &stop));
        let stops = Stops(&stop);
        eventually("the queue is full", PATIENCE, || {
            let shed = shed(&server);
            if shed >= 100.0 { Ok(()) } else { Err(shed) }
        });
        for n in 0..FIRST {
            let status = status_from(&envoy, client, &right(n));
            assert_eq!(status, 200, "key {n} from {client}:\n{}", envoy.story());
        }
        drop(stops);
        flood.join().expect("the guesser");
    });
}

#[test]
fn a_client_that_guesses_keeps_no_other_client_from_its_first_proof() {
    are_proven_beside_a_guesser("127.0.0.2");
}

#[test]
fn guesses_keep_no_other_key_from_its_first_proof_if_the_client_has_the_same_address() {
    are_proven_beside_a_guesser("127.0.0.1");
}
