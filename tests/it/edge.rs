//! Tests what single clients of Envoy can do to tenantgate, with numbers and sizes beyond every plausible limit.
//!
//! [`shared_connection`](crate::shared_connection) contains the same attacks at the sizes at which they were found.
//! Here they are larger: more streams than any fixed number of resets, hundreds of too large calls, every byte.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::shared_connection::{TRACE, fail_open, hurts_nobody, post, request, tracing, with_everything};
use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, Plan};
use crate::support::frames::{Frame, MAX_FRAME, PREFACE, Raw, header_frames, kind, literal};
use crate::support::{Ask, PATIENCE, Server, World, eventually};

const MISSING: &str = r#"{"detail":"Missing API key"}"#;

/// Allows more streams on one connection than any limit in Envoy's own file.
fn many_streams(plan: Plan) -> Plan {
    plan.with("max_concurrent_streams: 100\n", "max_concurrent_streams: 10000\n")
}

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leave {
    /// It resets every stream.
    Resets,
    /// It resets every other stream and closes.
    ResetsHalf,
    /// It closes the connection, as a browser does with a tab.
    Closes,
}

/// Opens `count` requests without a key in one write and leaves in this way. The connection stays open until the caller
/// drops it.
fn leave(envoy: &Envoy, count: u32, how: Leave) -> TcpStream {
    let mut all = [PREFACE, &Frame::new(kind::SETTINGS, 0, 0, &[]).bytes()].concat();
    for n in 0..count {
        all.extend(request(2 * n + 1, "/v1/left", None));
    }
    let reset = |n: u32| match how {
        Leave::Resets => true,
        Leave::ResetsHalf => n.is_multiple_of(2),
        Leave::Closes => false,
    };
    for n in (0..count).filter(|n| reset(*n)) {
        all.extend(Frame::new(kind::RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes()).bytes());
    }
    let mut stream = TcpStream::connect(&envoy.address).expect("envoy listens");
    // Envoy itself may close the connection of a client that resets too many streams.
    let _ = stream.write_all(&all);
    stream
}

/// Lets several clients leave at once, then checks that tenantgate still rejects a request without a key. That check
/// also ensures that only one burst is in progress at a time, so that Envoy is not short of CPU.
#[track_caller]
fn leave_in_turn(envoy: &Envoy, rounds: usize, connections: usize, count: u32, how: Leave) {
    for _ in 0..rounds {
        drop((0..connections).map(|_| leave(envoy, count, how)).collect::<Vec<_>>());
        let mut response = Vec::new();
        envoy.open("GET", "/v1/next", &[], "close").read_to_end(&mut response).expect("a response");
        let status = String::from_utf8_lossy(&response).get(..12).unwrap_or_default().to_owned();
        let told = || envoy.story();
        assert_eq!(status, "HTTP/1.1 401", "{connections} connections of {count}, {how:?}:\n{}", told());
    }
}

/// Envoy resets a call for each cancelled request. By default it closes a connection on which more than 1,000 resets
/// wait to be written (`max_outbound_control_frames`): eleven browsers that are closed at once are enough for that.
#[test]
fn many_clients_that_leave_at_once_do_not_affect_others() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = fail_open(&server).start() else { return };
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    hurts_nobody(&envoy, &world.live.text, || {
        for how in [Leave::Closes, Leave::Resets] {
            leave_in_turn(&envoy, 10, 16, 100, how);
        }
    });
}

#[test]
fn any_number_of_cancelled_requests_does_not_affect_other_clients() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = many_streams(fail_open(&server)).start() else { return };
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    hurts_nobody(&envoy, &world.live.text, || {
        for how in [Leave::Closes, Leave::Resets, Leave::ResetsHalf] {
            for (connections, count) in [(1, 90), (1, 512), (1, 1_100), (1, 3_000), (4, 512), (4, 1_024)] {
                leave_in_turn(&envoy, 3, connections, count, how);
            }
        }
    });
    assert_eq!(server.http("/livez").status, 200);
}

/// Waits until a metric has exactly this value.
#[track_caller]
fn counted(server: &Server, metric: &[&str], wanted: u32) {
    let seen = server.metric(metric);
    assert!((seen - f64::from(wanted)).abs() < 0.5, "{metric:?}: {seen}, not {wanted}");
}

/// Returns the frames of a Check without a key: headers, and a message that ends it.
fn whole_check(stream: u32) -> Vec<u8> {
    let message = Ask::get("/v1").bytes();
    let prefix = [&[0], u32::try_from(message.len()).unwrap().to_be_bytes().as_slice()].concat();
    let data = Frame::new(kind::DATA, 1, stream, &[prefix, message].concat());
    [Frame::check(stream).bytes(), data.bytes()].concat()
}

#[test]
fn a_first_burst_of_any_number_of_calls_is_answered_completely() {
    const CALLS: u32 = 5_000;
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let mut raw = Raw::silent(&server.grpc[0]);
    // The connection window fits all responses, so that only tenantgate can hold them back (RFC 9113 §6.9).
    let window = Frame::new(kind::WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes()).bytes();
    let begin = [PREFACE, &Frame::new(kind::SETTINGS, 0, 0, &[]).bytes(), &window].concat();
    let calls = (0..CALLS).flat_map(|n| whole_check(2 * n + 1)).collect::<Vec<u8>>();
    // The client sends all calls before it reads the server's settings.
    raw.send(&[begin, calls].concat()).expect("the connection accepts all calls");
    let mut answered = BTreeSet::new();
    while answered.len() < CALLS as usize {
        let frame =
            raw.next().unwrap_or_else(|| panic!("the connection ended after {} responses", answered.len()));
        assert!(![kind::RST_STREAM, kind::GOAWAY].contains(&frame.kind), "{frame:?}");
        if frame.kind == kind::DATA && frame.payload.len() > 5 {
            answered.insert(frame.stream);
        }
    }
    counted(&server, &["tenantgate_decisions_total", "missing"], CALLS);
}

#[test]
fn any_number_of_incomplete_calls_leaves_room_for_complete_ones() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    let mut raw = Raw::to(&server.grpc[0]);
    let half = (0..4_000_u32).flat_map(|n| Frame::check(2 * n + 1).bytes()).collect::<Vec<u8>>();
    raw.send(&half).expect("sent");
    let last = 2 * 4_000 + 1;
    raw.send(&whole_check(last)).expect("sent");
    let mut frames = std::iter::from_fn(|| raw.next());
    let answer = frames.find(|frame| frame.stream == last || frame.kind == kind::GOAWAY);
    assert!(answer.is_some_and(|frame| frame.kind == kind::HEADERS), "the complete call is answered");
}

#[test]
fn trace_headers_of_any_size_do_not_reject_valid_keys_if_envoy_fails_closed() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = tracing(Envoy::before(&server)).start() else { return };
    for size in [0, 9_000, 1_000_000] {
        let state = "v".repeat(size);
        let headers = [TRACE, ("tracestate", state.as_str()), (KEY_HEADER, world.live.text.as_str())];
        envoy.send("GET", "/v1", &headers).is_allowed_as(&world.acme, &world.live);
        envoy.send("GET", "/v1", &headers[..2]).is_refused(401, MISSING);
    }
    assert_eq!(envoy.stat("http.edge.ext_authz.error"), 0);
}

/// Sends `count` requests on each of `connections` at once, and waits for a response to each. None may be 200.
fn flood(envoy: &Envoy, connections: usize, count: u32, part: impl Fn(u32) -> Vec<u8>) {
    let open = |_| {
        let mut raw = Raw::to(&envoy.address);
        let all = (0..count).flat_map(|n| part(2 * n + 1)).collect::<Vec<u8>>();
        raw.send(&all).expect("sent");
        raw
    };
    for mut raw in (0..connections).map(open).collect::<Vec<_>>() {
        let mut answered = BTreeSet::new();
        while answered.len() < count as usize {
            let frame = raw
                .next()
                .unwrap_or_else(|| panic!("the connection ended after {} responses", answered.len()));
            assert!(frame.kind != kind::GOAWAY, "{frame:?}");
            if frame.kind == kind::HEADERS {
                // `:status: 200` is one byte, from the static table (RFC 7541 appendix A).
                assert_ne!(frame.payload.first(), Some(&0x88), "a request without a key passed: {frame:?}");
                answered.insert(frame.stream);
            }
        }
    }
}

/// The headers of a request of a client that speaks HTTP/2.
fn block(method: u8, more: &[(&str, &[u8])]) -> Vec<u8> {
    // `:method` and `:scheme: http` from the static table.
    let mut block = vec![method, 0x86];
    literal(&mut block, b":path", b"/v1");
    literal(&mut block, b":authority", b"api.example.com");
    for (name, value) in more {
        literal(&mut block, name.as_bytes(), value);
    }
    block
}

const GET: u8 = 0x82;
const POST: u8 = 0x83;

#[test]
fn hundreds_of_too_large_bodies_do_not_affect_others_and_are_counted() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--max-message-bytes", "4096"]).start();
    let Some(envoy) = many_streams(with_everything(fail_open(&server))).start() else { return };
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    let body = vec![b'b'; 6_000];
    hurts_nobody(&envoy, &world.live.text, || {
        for _ in 0..4 {
            // 54 kB, within the initial connection window of a client of 65,535 bytes.
            flood(&envoy, 20, 9, |stream| {
                let head = header_frames(stream, false, &block(POST, &[]), MAX_FRAME);
                [head, Frame::new(kind::DATA, 1, stream, &body).bytes()].concat()
            });
        }
    });
    counted(&server, &["tenantgate_unavailable_total", "too_large"], 720);
}

#[test]
fn hundreds_of_too_large_header_lists_do_not_affect_others_and_are_counted() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--max-header-bytes", "1024"]).start();
    let Some(envoy) = many_streams(tracing(fail_open(&server))).start() else { return };
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    let state = vec![b'v'; 3_000];
    hurts_nobody(&envoy, &world.live.text, || {
        for _ in 0..4 {
            flood(&envoy, 4, 200, |stream| {
                let more = [(TRACE.0, TRACE.1.as_bytes()), ("tracestate", &state[..])];
                header_frames(stream, true, &block(GET, &more), MAX_FRAME)
            });
        }
    });
    counted(&server, &["tenantgate_unavailable_total", "too_large"], 3_200);
}

/// Returns the type of the first frame that decides about the request of stream 1.
fn fate(raw: &mut Raw) -> Option<u8> {
    let ends = [kind::HEADERS, kind::RST_STREAM, kind::GOAWAY];
    std::iter::from_fn(|| raw.next()).find(|frame| ends.contains(&frame.kind)).map(|frame| frame.kind)
}

/// Sends a request without a key and with this byte in `tracestate` through Envoy, which must not pass. Returns whether
/// the byte ends a connection to tenantgate when it is sent directly.
fn ends_connection(server: &Server, envoy: &Envoy, byte: u8) -> bool {
    for state in [&[b'a', byte, b'b'][..], &[byte]] {
        let more = [(TRACE.0, TRACE.1.as_bytes()), ("tracestate", state)];
        let mut raw = Raw::to(&envoy.address);
        raw.send(&header_frames(1, true, &block(GET, &more), MAX_FRAME)).expect("sent");
        let _ = fate(&mut raw);
        // Over HTTP/1.1, these bytes end a line or a request.
        if [b'\r', b'\n', 0].contains(&byte) {
            continue;
        }
        let mut response = Vec::new();
        let _ = envoy.open("GET", "/v1/bytes", &more, "close").read_to_end(&mut response);
        let status = String::from_utf8_lossy(&response).get(9..12).unwrap_or_default().to_owned();
        assert!(["400", "401"].contains(&status.as_str()), "byte {byte:#04x} over HTTP/1.1: {status:?}");
    }
    let mut list = Frame::check(1).payload;
    literal(&mut list, b"tracestate", &[byte]);
    let mut direct = Raw::to(&server.grpc[0]);
    direct.send(&Frame::new(kind::HEADERS, 0x5, 1, &list).bytes()).expect("sent");
    fate(&mut direct) != Some(kind::HEADERS)
}

/// The HTTP/2 library of tenantgate closes the *connection* for some bytes in a header value. Envoy copies trace
/// headers of clients into its calls, so Envoy must not forward any of these bytes, whichever version of HTTP the
/// client used.
#[test]
fn envoy_stops_bytes_that_would_end_its_connection_to_tenantgate() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = tracing(fail_open(&server)).start() else { return };
    // All bytes are tried concurrently, because Envoy takes two seconds to close an invalid connection.
    let ends: BTreeSet<u8> = std::thread::scope(|scope| {
        let (server, envoy) = (&server, &envoy);
        let lane = move |first: u8| {
            (first..=u8::MAX).step_by(32).filter(|byte| ends_connection(server, envoy, *byte))
        };
        let lanes: Vec<_> = (0..32).map(|n| scope.spawn(move || lane(n).collect::<Vec<u8>>())).collect();
        lanes.into_iter().flat_map(|lane| lane.join().expect("no byte passes")).collect()
    });
    for (stat, what) in [
        ("http.edge.ext_authz.failure_mode_allowed", "passed"),
        ("http.edge.ext_authz.error", "failed"),
        ("cluster.tenantgate.upstream_cx_destroy_remote", "ended the connection"),
    ] {
        assert_eq!(envoy.stat(stat), 0, "{what}; bytes that end a connection: {ends:?}");
    }
    assert!(envoy.http_seen().is_empty(), "a request without a key reached the upstream");
    // Otherwise this test would prove nothing.
    assert!(ends.contains(&0x7f), "{ends:?}");
}

#[test]
fn bodies_are_rejected_alike_whether_or_not_envoy_sends_parts_of_them() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let key = (KEY_HEADER, world.live.text.as_str());
    for (partial, at_most, beyond) in [("true", (401, 200), (401, 200)), ("false", (401, 200), (413, 413))] {
        let plan = with_everything(fail_open(&server)).with(
            "{max_request_bytes: 4194304, allow_partial_message: true}",
            &format!("{{max_request_bytes: 1600000, allow_partial_message: {partial}}}"),
        );
        let Some(envoy) = plan.start() else { return };
        for (size, wanted) in [(1_500_000, at_most), (3_000_000, beyond)] {
            let seen = (post(&envoy, &[], size), post(&envoy, &[key], size));
            assert_eq!(seen, wanted, "{size} bytes, allow_partial_message: {partial}");
        }
        assert_eq!(envoy.stat("http.edge.ext_authz.failure_mode_allowed"), 0);
    }
}

/// All header data of a call counts against one memory budget. A client that uses it up must not make other clients
/// wait until Envoy's timeout.
#[test]
fn long_trace_headers_of_many_clients_do_not_affect_others() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = tracing(fail_open(&server)).start() else { return };
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    let state = vec![b'v'; 200_000];
    hurts_nobody(&envoy, &world.live.text, || {
        let headers = [(TRACE.0, TRACE.1.as_bytes()), ("tracestate", &state[..])];
        let open: Vec<_> =
            (0..40).map(|n| envoy.open("GET", &format!("/v1/{n}"), &headers, "close")).collect();
        for (n, mut stream) in open.into_iter().enumerate() {
            let mut response = Vec::new();
            stream.read_to_end(&mut response).expect("a response");
            assert!(response.starts_with(b"HTTP/1.1 401"), "{n}: {}", String::from_utf8_lossy(&response));
        }
    });
    eventually("the memory is released", PATIENCE, || match server.http("/livez").status {
        200 => Ok(()),
        status => Err(status),
    });
}

/// An incomplete header list blocks its whole connection. Header lists of several connections that are together larger
/// than the memory budget must be completed one after the other, without closing any connection.
#[test]
fn header_lists_beyond_the_memory_budget_on_several_connections_do_not_affect_others() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--max-pending-bytes", "16777216"]).start();
    let Some(envoy) = tracing(fail_open(&server)).workers(4).start() else { return };
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    hurts_nobody(&envoy, &world.live.text, || {
        std::thread::scope(|scope| {
            for n in 0..8 {
                let envoy = &envoy;
                scope.spawn(move || {
                    let state = vec![b'v'; 1_000_000 + 500_000 * n];
                    let headers = [(TRACE.0, TRACE.1.as_bytes()), ("tracestate", &state[..])];
                    for _ in 0..3 {
                        let mut response = Vec::new();
                        let mut stream = envoy.open("GET", "/v1/long", &headers, "close");
                        stream.read_to_end(&mut response).expect("a response");
                        let head =
                            String::from_utf8_lossy(&response).get(..12).unwrap_or_default().to_owned();
                        assert!(["HTTP/1.1 401", "HTTP/1.1 503"].contains(&head.as_str()), "{head}");
                    }
                });
            }
        });
    });
}
