//! Tests the limits of the listener, and that no peer can exceed them at the cost of others.
//!
//! The tests send raw HTTP/2 that no library writes. After each abuse, another client gets answers on its own
//! connection, and the server uses no more memory.

mod connections;

use crate::support::frames::{Frame, PREFACE, Raw, kind};
use crate::support::{Ask, Client, PATIENCE, Server, World, eventually};
use crate::waiting::is_warned_of;

/// Errors of HTTP/2 (RFC 9113 §7).
const NO_ERROR: u32 = 0;
const FRAME_SIZE_ERROR: u32 = 6;

/// Resident memory in MiB.
fn resident(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Runs an abuse beside an ordinary client, and checks the server afterwards.
#[track_caller]
fn survives(server: &Server, world: &World, abuse: impl FnOnce()) {
    let before = resident(server);
    abuse();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "on the existing connection");
    let new = Client::to(&server.grpc[0]);
    assert_eq!(new.check(Ask::with_key(&world.live.text)).row(), "200 ok", "on a new connection");
    let after = resident(server);
    assert!(after < before + 64, "it grew from {before} to {after} MiB");
}

/// `SETTINGS_MAX_CONCURRENT_STREAMS` is not among them: a stream that is refused is a request that passes under
/// Envoy's `failure_mode_allow`.
#[test]
fn the_limits_are_in_the_settings_that_a_connection_begins_with() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let settings = Raw::to(&server.grpc[0]).settings();
    // SETTINGS_MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE, _MAX_HEADER_LIST_SIZE (RFC 9113 §6.5.2).
    assert_eq!(
        (settings.get(&3), settings.get(&4), settings.get(&6)),
        (None, Some(&262_144), Some(&(15 << 20)))
    );
    let server = Server::on(&world.db).args(&["--max-header-bytes", "33554432"]).start();
    let settings = Raw::to(&server.grpc[0]).settings();
    assert_eq!(
        settings.get(&6),
        Some(&(37 << 20)),
        "5 MiB above the limit, because the library itself rejects larger lists"
    );
}

#[test]
fn invalid_limits_are_all_named_at_once() {
    let world = World::somewhere();
    let said = world
        .db
        .cli(&[
            "serve",
            "--check-config",
            "--workers",
            "0",
            "--max-connections",
            "many",
            "--client-address",
            "metadata:x-forwarded-for",
            "--max-message-bytes",
            "1",
            "--request-timeout",
            "5",
            "--max-connection-age",
            "0s",
            "--unix-mode",
            "rw",
            "--unix-peer-uid",
            "root",
            "--client-san",
            "spiffe://x/y",
        ])
        .usage();
    for option in [
        "--workers",
        "--max-connections",
        "--client-address",
        "--max-message-bytes",
        "--request-timeout",
        "--max-connection-age",
        "--unix-mode",
        "--unix-peer-uid",
        "--client-san",
    ] {
        assert!(said.contains(option), "{option} is not in: {said}");
    }
}

/// Envoy resets calls of clients that hang up: other calls on the same connection continue.
#[test]
fn calls_that_are_reset_early_do_not_end_the_connection() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    survives(&server, &world, || {
        let mut raw = Raw::to(&server.grpc[0]);
        let cancel = 8_u32.to_be_bytes();
        let pairs = (0..20_000_u32).flat_map(|n| {
            let stream = 2 * n + 1;
            [Frame::check(stream).bytes(), Frame::new(kind::RST_STREAM, 0, stream, &cancel).bytes()].concat()
        });
        let innocent = 2 * 20_000 + 1;
        let all = [pairs.collect::<Vec<u8>>(), whole_check(innocent, &world.live.text)].concat();
        raw.send(&all).unwrap();
        let frames = std::iter::from_fn(|| raw.next());
        let mut others = frames.take_while(|frame| frame.kind != kind::DATA || frame.stream != innocent);
        assert!(
            others.all(|frame| frame.kind != kind::GOAWAY),
            "the server announces the end of the connection"
        );
    });
}

/// A server that stood still answers calls for which Envoy no longer waits. Nothing but the reset shows it.
#[test]
fn a_call_that_is_reset_while_it_is_answered_is_counted() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    let mut raw = Raw::to(&server.grpc[0]);
    let reset = Frame::new(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes()).bytes();
    raw.send(&[whole_check(1, &world.live.text), reset, whole_check(3, &world.live.text)].concat()).unwrap();
    let answered =
        std::iter::from_fn(|| raw.next()).any(|frame| frame.kind == kind::DATA && frame.stream == 3);
    assert!(answered, "the other call is answered");
    let counted = server.metric(&["tenantgate_call_resets_total"]);
    assert!((counted - 1.0).abs() < f64::EPSILON, "{counted}");
}

/// Messages that are longer than announced, which Envoy never sends; each is rejected separately.
#[test]
fn calls_that_end_by_an_error_do_not_end_the_connection() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    survives(&server, &world, || {
        let mut raw = Raw::to(&server.grpc[0]);
        let too_long = |stream: u32| {
            let data = Frame::new(kind::DATA, 0, stream, &[0, 0, 0, 0, 1, 7, 7]).bytes();
            [Frame::check(stream).bytes(), data.repeat(3)].concat()
        };
        let innocent = 2 * 1_000 + 1;
        let bad = (0..1_000_u32).flat_map(|n| too_long(2 * n + 1)).collect::<Vec<u8>>();
        raw.send(&[bad, whole_check(innocent, &world.live.text)].concat()).unwrap();
        let frames = std::iter::from_fn(|| raw.next());
        let mut others = frames.take_while(|frame| frame.kind != kind::DATA || frame.stream != innocent);
        assert!(
            others.all(|frame| frame.kind != kind::GOAWAY),
            "the server announces the end of the connection"
        );
    });
    // The complete call was answered before the last failures were counted.
    eventually("all are counted", PATIENCE, || {
        let counted = server.metric(&["tenantgate_call_failures_total", "invalid_framing"]);
        if counted >= 1_000.0 { Ok(()) } else { Err(counted) }
    });
}

/// More calls than any limit: Envoy sends them before it has read the settings.
#[test]
fn any_number_of_concurrent_calls_is_accepted() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    survives(&server, &world, || {
        let mut raw = Raw::to(&server.grpc[0]);
        let begun: Vec<u8> = (0..5_000).flat_map(|n| Frame::check(2 * n + 1).bytes()).collect();
        raw.send(&[begun, whole_check(10_001, &world.live.text)].concat()).unwrap();
        let mut frames = std::iter::from_fn(|| raw.next());
        let reset = frames.find(|frame| {
            let ours = frame.kind == kind::DATA && frame.stream == 10_001;
            ours || [kind::RST_STREAM, kind::GOAWAY].contains(&frame.kind)
        });
        assert_eq!(reset.map(|frame| frame.kind), Some(kind::DATA));
    });
}

#[test]
fn endless_headers_end_the_connection() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    survives(&server, &world, || {
        let mut raw = Raw::to(&server.grpc[0]);
        let first = Frame { flags: 0, ..Frame::check(1) };
        let more = Frame::new(kind::CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'].repeat(1_000)).bytes();
        let _ = raw.send(&[first.bytes(), more.repeat(2_000)].concat());
        assert!(raw.goodbye().is_none_or(|code| code != NO_ERROR));
    });
}

#[test]
fn floods_of_meaningless_frames_are_survived() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let floods = [
        ("PING", Vec::new(), Frame::new(kind::PING, 0, 0, &[7; 8])),
        ("SETTINGS", Vec::new(), Frame::new(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])),
        ("empty DATA", Frame::check(1).bytes(), Frame::new(kind::DATA, 0, 1, &[])),
        ("a byte of DATA at a time", Frame::check(1).bytes(), Frame::new(kind::DATA, 0, 1, &[0])),
        ("a frame of a kind that is none", Vec::new(), Frame::new(0xfa, 0, 0, &[0; 64])),
    ];
    for (what, before, frame) in floods {
        survives(&server, &world, || {
            let mut raw = Raw::to(&server.grpc[0]);
            let all = [before, frame.bytes().repeat(20_000)].concat();
            // Nothing is read meanwhile: answers collect in the network, not in the server.
            let sent = raw.send(&all);
            assert!(sent.is_ok() || raw.next().is_some(), "{what}: the server read at least a part");
        });
    }
}

#[test]
fn a_frame_that_is_too_long_ends_the_connection() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    survives(&server, &world, || {
        let mut raw = Raw::to(&server.grpc[0]);
        let _ = raw.send(&Frame::new(kind::DATA, 0, 1, &vec![0; 1 << 20]).bytes());
        assert_eq!(raw.goodbye(), Some(FRAME_SIZE_ERROR));
    });
}

#[test]
fn a_client_that_stops_during_the_handshake_is_disconnected() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--handshake-timeout", "200ms"]).start();
    survives(&server, &world, || {
        let mut beginnings: Vec<Raw> = (1..PREFACE.len())
            .map(|said| {
                let mut raw = Raw::silent(&server.grpc[0]);
                raw.send(&PREFACE[..said]).unwrap();
                raw
            })
            .collect();
        for raw in &mut beginnings {
            // The server sends its settings and then closes the connection.
            let _ = raw.goodbye();
        }
    });
}

/// Calls of clients that hung up before Envoy had a connection.
#[test]
fn a_client_that_has_sent_no_call_yet_can_still_send_one() {
    let world = World::somewhere();
    let mut server = Server::on(&world.db).args(&["--handshake-timeout", "100ms"]).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    let mut raw = Raw::silent(&server.grpc[0]);
    // A connection that has sent data is closed, so the time is over.
    let mut begun = Raw::silent(&server.grpc[0]);
    begun.send(&PREFACE[..5]).unwrap();
    let _ = begun.goodbye();
    raw.send(
        &[PREFACE, &Frame::new(kind::SETTINGS, 0, 0, &[]).bytes(), &whole_check(1, &world.live.text)]
            .concat(),
    )
    .unwrap();
    assert!(std::iter::from_fn(|| raw.next()).any(|frame| frame.kind == kind::DATA && frame.stream == 1));
    let _silent = Raw::silent(&server.grpc[0]);
    server.signal("TERM");
    assert_eq!(server.exit_code(PATIENCE), Some(0), "it does not prevent the server from stopping");
}

#[test]
fn a_message_that_does_not_arrive_times_out() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--request-timeout", "200ms"]).start();
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(&world.live.text));
    survives(&server, &world, || {
        let mut raw = Raw::to(&server.grpc[0]);
        raw.send(&Frame::check(1).bytes()).unwrap();
        let mut frames = std::iter::from_fn(|| raw.next());
        let answer = frames.find(|frame| frame.kind == kind::DATA && frame.stream == 1).expect("a response");
        assert!(answer.payload.windows(19).any(|part| part == b"service unavailable"), "{answer:?}");
    });
    assert!(server.metric(&["tenantgate_unavailable_total", "deadline_too_short"]) >= 1.0);
}

/// A header list without an end holds memory until its connection ends.
#[test]
fn a_header_list_that_does_not_arrive_times_out() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--request-timeout", "200ms"]).start();
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(&world.live.text));
    survives(&server, &world, || {
        let mut raw = Raw::to(&server.grpc[0]);
        let first = Frame { flags: 0, ..Frame::check(1) };
        let more = Frame::new(kind::CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y'].repeat(2_000));
        raw.send(&[first.bytes(), more.bytes()].concat()).unwrap();
        let _ = raw.goodbye();
    });
    assert!(server.metric(&["tenantgate_connection_failures_total", "slow_headers"]) >= 1.0);
}

/// A complete Check of this key: headers, and a message that ends it.
fn whole_check(stream: u32, key: &str) -> Vec<u8> {
    let message = Ask::with_key(key).bytes();
    let prefix = [&[0], u32::try_from(message.len()).unwrap().to_be_bytes().as_slice()].concat();
    let end_stream = 1;
    let data = Frame::new(kind::DATA, end_stream, stream, &[prefix, message].concat());
    [Frame::check(stream).bytes(), data.bytes()].concat()
}

/// Answers that cannot be sent collect if the client continues to send calls (CVE-2019-9517).
#[test]
fn a_client_that_opens_no_window_for_answers_is_disconnected() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--max-pending-bytes", "1048576"]).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    // SETTINGS_INITIAL_WINDOW_SIZE = 4, nothing (RFC 9113 §6.5.2).
    let no_window = Frame::new(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).bytes();
    // As many as fit into the initial window of the connection; each answer would take 3 KB.
    let checks: Vec<u8> = (0..200).flat_map(|n| whole_check(2 * n + 1, &world.live.text)).collect();
    survives(&server, &world, || {
        let greedy = || {
            let mut raw = Raw::silent(&server.grpc[0]);
            raw.send(&[PREFACE, &no_window, &checks].concat()).unwrap();
            raw
        };
        let _crowd: Vec<Raw> = (0..200).map(|_| greedy()).collect();
        eventually("most of the connections are closed", PATIENCE, || {
            let hung_up = server.metric(&["tenantgate_connections_total", "not_taking"]);
            if hung_up >= 190.0 { Ok(()) } else { Err(hung_up) }
        });
    });
    assert!(server.stderr.text().contains("--max-pending-bytes"), "the log says so");
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let (most, mut sent) = (10_000, 0);
    survives(&server, &world, || {
        let mut raw = Raw::impatient(&server.grpc[0]);
        // None of them is a stream, so no limit of streams applies.
        let pings = Frame::new(kind::PING, 0, 0, &[7; 8]).bytes().repeat(1_000);
        sent = (0..most).take_while(|_| raw.send(&pings).is_ok()).count();
    });
    assert!(sent < most, "the server stops answering a client that does not read");
}

#[test]
fn waiting_calls_are_limited_by_their_memory() {
    let world = World::somewhere();
    let args = ["--max-pending-bytes", "1048576", "--request-timeout", "30s"];
    let server = Server::on(&world.db).args(&args).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    survives(&server, &world, || {
        let mut raw = Raw::to(&server.grpc[0]);
        // Headers without a message: 4 KB each, and 32 KB for the connection.
        let begun: Vec<u8> = (0..300).flat_map(|n| Frame::check(2 * n + 1).bytes()).collect();
        raw.send(&begun).unwrap();
        let answers = std::iter::from_fn(|| raw.next()).filter(|frame| frame.kind == kind::DATA);
        for frame in answers.take(300 - 256 - 8) {
            assert!(frame.payload.windows(19).any(|part| part == b"service unavailable"), "{frame:?}");
        }
        assert_eq!(
            server.row(Ask::with_key(&world.live.text)),
            "200 ok",
            "other connections have memory of their own"
        );
    });
    assert!(server.metric(&["tenantgate_unavailable_total", "overloaded"]) >= 36.0);
    is_warned_of(&server, "overloaded", "--max-pending-bytes: raise it");
    let lines = server.stderr.text().matches("call not decided").count();
    assert!((1..20).contains(&lines), "one line a second, not one a call: {lines}");
}

/// A field that is an index into the compression table is one byte to send and a hundred to keep (RFC 7541 §6.1).
#[test]
fn waiting_calls_do_not_keep_their_headers_in_memory() {
    const FIELDS: usize = 10_000;
    let world = World::somewhere();
    let args = ["--max-pending-bytes", "1048576", "--request-timeout", "30s"];
    let server = Server::on(&world.db).args(&args).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    survives(&server, &world, || {
        let mut raw = Raw::to(&server.grpc[0]);
        // `accept-encoding: gzip, deflate` (RFC 7541 appendix A).
        let indexed = [0x90; FIELDS];
        let begun = (0..300_u32).flat_map(|n| {
            let mut check = Frame::check(2 * n + 1);
            check.payload.extend(indexed);
            check.bytes()
        });
        raw.send(&begun.collect::<Vec<u8>>()).unwrap();
        let refused = std::iter::from_fn(|| raw.next()).filter(|frame| frame.kind == kind::DATA);
        assert_eq!(refused.take(300 - 256 - 8).count(), 36, "the others wait");
    });
}
