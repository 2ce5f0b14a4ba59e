//! Tests the connection of Envoy that many clients share: no client can affect another one on it, or make a request
//! pass under `failure_mode_allow: true`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::support::ask::KEY_HEADER;
use crate::support::envoy::{Envoy, Plan, RETRIES};
use crate::support::frames::{Frame, PREFACE, Raw, kind};
use crate::support::{Ask, PATIENCE, Server, World};

/// Configures `failure_mode_allow`, so that a failed Check becomes visible because its request passes.
pub(crate) fn fail_open(server: &Server) -> Plan {
    Envoy::before(server)
        .with("failure_mode_allow: false", "failure_mode_allow: true")
        .with(RETRIES, "")
        // A test build on a busy machine decodes megabytes slowly.
        .with("                timeout: 2s\n", "                timeout: 20s\n")
        .with(
            "connection_keepalive: {interval: 10s, timeout: 2s}",
            "connection_keepalive: {interval: 10s, timeout: 20s}",
        )
        .with("    connect_timeout: 0.25s\n", "    connect_timeout: 20s\n")
        .with(
            "  - name: api\n    type: STATIC\n    connect_timeout: 1s\n",
            "  - name: api\n    type: STATIC\n    connect_timeout: 20s\n",
        )
}

const MANAGER: &str = "          stat_prefix: edge\n";

/// Configures Envoy to copy the trace headers of its clients into its calls.
pub(crate) fn tracing(plan: Plan) -> Plan {
    let tracing = "          tracing:
            provider:
              name: envoy.tracers.opentelemetry
              typed_config:
                \"@type\": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                grpc_service: {envoy_grpc: {cluster_name: api_grpc}, timeout: 1s}
          max_request_headers_kb: 8192
";
    plan.with(MANAGER, &format!("{tracing}{MANAGER}"))
}

pub(crate) const TRACE: (&str, &str) =
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");

/// Returns a request of an HTTP/2 client, with `END_STREAM` and `END_HEADERS` (RFC 9113 §6.2).
pub(crate) fn request(stream: u32, path: &str, key: Option<&str>) -> Vec<u8> {
    let key = key.map(|key| (KEY_HEADER, key));
    let headers = [(":path", path), (":authority", "api.example.com")].into_iter().chain(key);
    Frame::headers(stream, 0x5, b"\x82\x86", headers).bytes()
}

/// Sends requests with a valid key one after the other on one connection until it is stopped. The upstream must respond
/// to every one. Returns their number.
pub(crate) fn innocent(envoy: &Envoy, key: &str, stop: &AtomicBool) -> usize {
    let mut raw = Raw::to(&envoy.address);
    // The window fits all bodies together, so that flow control does not block the connection (RFC 9113 §6.9).
    let window = Frame::new(kind::WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.saturating_sub(65_535).to_be_bytes());
    raw.send(&window.bytes()).expect("sent");
    let mut sent = 0;
    while !stop.load(Relaxed) || sent < 50 {
        let stream = 2 * u32::try_from(sent).expect("few") + 1;
        raw.send(&request(stream, "/v1/innocent", Some(key))).expect("sent");
        let mut frames = std::iter::from_fn(|| raw.next());
        let head = frames.find(|frame| frame.kind == kind::HEADERS && frame.stream == stream);
        // `:status: 200` is one byte, from the static table (RFC 7541 appendix A).
        let head = head.unwrap_or_else(|| panic!("the connection ended after {sent} requests"));
        assert_eq!(head.payload.first(), Some(&0x88), "request {sent}: {head:?}");
        sent += 1;
    }
    sent
}

/// Stops the innocent client when it is dropped.
pub(crate) struct Stops<'s>(pub(crate) &'s AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Runs `attacks` beside an innocent client.
#[track_caller]
pub(crate) fn hurts_nobody(envoy: &Envoy, key: &str, attacks: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let others = scope.spawn(|| innocent(envoy, key, &stop));
        // Also if an attack panics: otherwise the innocent client would continue forever.
        let stops = Stops(&stop);
        attacks();
        drop(stops);
        others.join().expect("the innocent client")
    });
    assert!(sent >= 50);
    for (stat, what) in [
        ("cluster.tenantgate.upstream_cx_destroy_remote", "a connection was closed"),
        ("cluster.tenantgate.upstream_rq_rx_reset", "a call was refused"),
        ("http.edge.ext_authz.failure_mode_allowed", "a request passed"),
        ("http.edge.ext_authz.error", "a Check failed"),
    ] {
        assert_eq!(envoy.stat(stat), 0, "{what}:\n{}", envoy.story());
    }
}

#[test]
fn a_client_that_cancels_many_requests_at_once_does_not_affect_others() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = fail_open(&server).start() else { return };
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    let burst = |count: u32, reset: bool| {
        let mut all = [PREFACE, &Frame::new(kind::SETTINGS, 0, 0, &[]).bytes()].concat();
        for n in 0..count {
            all.extend(request(2 * n + 1, "/v1/left", None));
        }
        for n in (0..count).filter(|_| reset) {
            all.extend(Frame::new(kind::RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes()).bytes());
        }
        let mut stream = TcpStream::connect(&envoy.address).expect("envoy listens");
        stream.write_all(&all).expect("sent");
        stream
    };
    hurts_nobody(&envoy, &world.live.text, || {
        for round in 0..10 {
            for count in [33, 90, 100] {
                drop(burst(count, round % 2 == 0));
            }
            // Several connections: more than any fixed number of resets.
            drop((0..8).map(|_| burst(100, round % 2 == 0)).collect::<Vec<_>>());
        }
    });
    assert_eq!(server.http("/livez").status, 200);
}

#[test]
fn more_requests_at_once_than_any_limit_of_streams_are_all_answered() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let plan = fail_open(&server).with("max_concurrent_streams: 100\n", "max_concurrent_streams: 100000\n");
    let Some(envoy) = plan.start() else { return };
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "proven");
    // All are sent in one write, before Envoy has a connection to tenantgate and therefore before it has read any
    // settings.
    let mut raw = Raw::silent(&envoy.address);
    let all = (0..3_000).flat_map(|n| request(2 * n + 1, "/v1/many", None)).collect::<Vec<_>>();
    raw.send(&[PREFACE, &Frame::new(kind::SETTINGS, 0, 0, &[]).bytes(), &all].concat()).expect("sent");
    let answered = std::iter::from_fn(|| raw.next()).filter(|frame| frame.kind == kind::HEADERS).take(3_000);
    assert_eq!(answered.count(), 3_000);
    assert_eq!(envoy.stat("http.edge.ext_authz.denied"), 3_000);
    hurts_nobody(&envoy, &world.live.text, || {});
}

#[test]
fn no_trace_header_changes_whether_a_request_passes() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = tracing(fail_open(&server)).start() else { return };
    for size in [0, 100, 8_000, 9_000, 70_000, 1_000_000, 2_000_000] {
        let state = "v".repeat(size);
        let headers = [TRACE, ("tracestate", state.as_str())];
        let outcome = envoy.send("GET", "/v1", &headers);
        outcome.is_refused(401, r#"{"detail":"Missing API key"}"#);
        let outcome = envoy.send("GET", "/v1", &[&headers[..], &[(KEY_HEADER, &world.live.text)]].concat());
        outcome.is_allowed_as(&world.acme, &world.live);
    }
    assert_eq!(envoy.stat("http.edge.ext_authz.error"), 0);
}

#[test]
fn no_byte_in_a_trace_header_makes_a_request_pass() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = tracing(fail_open(&server)).start() else { return };
    for byte in 1..=255_u8 {
        let state = [b"vendor=a", &[byte][..], b"b"].concat();
        let headers: [(&str, &[u8]); 2] = [(TRACE.0, TRACE.1.as_bytes()), ("tracestate", &state)];
        let mut stream = envoy.open("GET", "/v1/bytes", &headers, "close");
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response);
        let status = String::from_utf8_lossy(&response).get(9..12).unwrap_or_default().to_owned();
        assert!(["400", "401"].contains(&status.as_str()), "byte {byte:#04x}: {status:?}");
    }
    assert_eq!(envoy.stat("http.edge.ext_authz.failure_mode_allowed"), 0);
    assert_eq!(envoy.stat("http.edge.ext_authz.error"), 0);
}

/// Sends a request with a body. Returns the status.
pub(crate) fn post(envoy: &Envoy, headers: &[(&str, &str)], body: usize) -> u16 {
    let length = body.to_string();
    let headers: Vec<(&str, &[u8])> = headers
        .iter()
        .chain(&[("content-length", length.as_str())])
        .map(|(n, v)| (*n, v.as_bytes()))
        .collect();
    let mut stream = envoy.open("POST", "/v1/body", &headers, "close");
    let _ = stream.write_all(&vec![b'b'; body]);
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    String::from_utf8_lossy(&response).get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0)
}

const FILTER: &str = "              encode_raw_headers: true\n";

const ALLOWED: &str = "              allowed_headers:
                patterns:
                - {exact: x-llmcore-api-key, ignore_case: true}
                - {exact: authorization, ignore_case: true}
";

/// Sends bodies and all headers to tenantgate, which is never needed.
pub(crate) fn with_everything(plan: Plan) -> Plan {
    let body = "              with_request_body: {max_request_bytes: 4194304, allow_partial_message: true}\n";
    tracing(plan).with(FILTER, &format!("{body}{FILTER}")).with(ALLOWED, "").with(
        "per_connection_buffer_limit_bytes: 32768\n    filter_chains",
        "per_connection_buffer_limit_bytes: 16777216\n    filter_chains",
    )
}

#[test]
fn no_size_changes_whether_a_request_passes() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let Some(envoy) = with_everything(fail_open(&server)).start() else { return };
    let key = (KEY_HEADER, world.live.text.as_str());
    for size in [0, 1_000, 300_000, 1_500_000, 4_000_000] {
        assert_eq!(post(&envoy, &[], size), 401, "a body of {size} bytes and no key");
        assert_eq!(post(&envoy, &[key], size), 200, "a body of {size} bytes and a key");
    }
    for size in [60_000, 2_000_000, 4_000_000] {
        let cookie = "c".repeat(size);
        envoy.send("GET", "/v1", &[("cookie", &cookie)]).is_refused(401, r#"{"detail":"Missing API key"}"#);
        envoy.send("GET", "/v1", &[("cookie", &cookie), key]).is_allowed_as(&world.acme, &world.live);
    }
    assert_eq!(envoy.stat("http.edge.ext_authz.error"), 0);
    assert_eq!(envoy.stat("http.edge.ext_authz.failure_mode_allowed"), 0);
}

#[test]
fn requests_beyond_the_limits_are_rejected_counted_and_logged() {
    let world = World::somewhere();
    let args = ["--max-header-bytes", "1024", "--max-message-bytes", "4096"];
    let server = Server::on(&world.db).args(&args).start();
    let Some(envoy) = with_everything(fail_open(&server)).start() else { return };
    let unavailable = r#"{"detail":"Authentication service unavailable"}"#;
    let big = "v".repeat(2_000);
    envoy.send("GET", "/v1", &[TRACE, ("tracestate", &big)]).is_refused(503, unavailable);
    assert_eq!(post(&envoy, &[], 100_000), 503);
    let key = (KEY_HEADER, world.live.text.as_str());
    envoy.send("GET", "/v1", &[key, ("cookie", &"c".repeat(5_000))]).is_refused(503, unavailable);
    envoy.send("GET", "/v1", &[key]).is_allowed_as(&world.acme, &world.live);
    assert!((server.metric(&["tenantgate_unavailable_total", "too_large"]) - 3.0).abs() < f64::EPSILON);
    server.stderr.wait_for("a line", PATIENCE, |lines| {
        let line =
            |option: &str| lines.iter().any(|line| line.contains(option) && line.contains("peer=127.0.0.1:"));
        (line("larger than --max-header-bytes") || line("larger than --max-message-bytes")).then_some(())
    });
    assert_eq!(envoy.stat("http.edge.ext_authz.failure_mode_allowed"), 0);
}
