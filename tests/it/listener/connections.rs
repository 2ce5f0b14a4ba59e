//! Tests the number, age and peers of connections.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;

use tonic_health::pb::health_check_response::ServingStatus;

use super::NO_ERROR;
use crate::support::frames::{Frame, PREFACE, Raw, kind};
use crate::support::{Ask, Client, PATIENCE, Server, World, eventually};

#[test]
fn beyond_the_limit_new_connections_are_closed_and_existing_ones_continue() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--max-connections", "50"]).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    let crowd: Vec<Raw> = (0..200).map(|_| Raw::silent(&server.grpc[0])).collect();
    eventually("connections beyond the limit are counted", PATIENCE, || {
        let refused = server.metric(&["tenantgate_connections_total", "no_room"]);
        if refused >= 150.0 { Ok(()) } else { Err(refused) }
    });
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "existing connections continue");
    drop(crowd);
    eventually("new connections are accepted again", PATIENCE, || {
        let asked = crate::support::wait(Client::to(&server.grpc[0]).ask(Ask::with_key(&world.live.text)));
        asked.map(|answer| assert_eq!(answer.row(), "200 ok"))
    });
    let said = server.stderr.text().matches("--max-connections are open").count();
    assert!((1..10).contains(&said), "one line a second, not one a connection: {said}");
}

#[test]
fn without_free_file_descriptors_it_continues() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as u64;
    limit_files(&server, open + 5);
    let crowd: Vec<Raw> = (0..20).map(|_| Raw::to(&server.grpc[0])).collect();
    eventually("no file descriptor is free", PATIENCE, || {
        let text = server.stderr.text();
        if text.contains("a connection could not be accepted") { Ok(()) } else { Err(text) }
    });
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok", "existing connections continue");
    drop(crowd);
    let new = Client::to(&server.grpc[0]);
    eventually("new connections are accepted again", PATIENCE, || {
        crate::support::wait(new.ask(Ask::get("/v1"))).map(|_| ())
    });
}

/// Sets the limit of open files of the server (`prlimit`, of util-linux).
fn limit_files(server: &Server, most: u64) {
    let args = ["--pid".to_owned(), server.pid().to_string(), format!("--nofile={most}:{most}")];
    assert!(std::process::Command::new("prlimit").args(args).status().unwrap().success());
}

#[test]
fn an_old_connection_is_closed_after_its_calls_are_answered() {
    let world = World::somewhere();
    let server = Server::on(&world.db).args(&["--max-connection-age", "300ms"]).start();
    let mut raw = Raw::to(&server.grpc[0]);
    raw.send(&Frame::check(1).bytes()).unwrap();
    let told = std::iter::from_fn(|| raw.next())
        .find(|frame| frame.kind == kind::GOAWAY)
        .expect("the server announces the end");
    assert_eq!(told.payload[4..8], NO_ERROR.to_be_bytes());
    let message = Ask::with_key(&world.live.text).bytes();
    let prefix = [&[0], u32::try_from(message.len()).unwrap().to_be_bytes().as_slice()].concat();
    let end_stream = 1;
    raw.send(&Frame::new(kind::DATA, end_stream, 1, &[prefix, message].concat()).bytes()).unwrap();
    let answer = std::iter::from_fn(|| raw.next()).find(|frame| frame.kind == kind::DATA).expect("an answer");
    assert!(answer.stream == 1 && answer.payload.len() > 100, "{answer:?}");
}

/// Envoy would no longer use a server that does not answer its health checks, although it is only busy.
#[test]
fn health_is_answered_while_no_further_call_may_wait() {
    let world = World::somewhere();
    let args = ["--max-pending-bytes", "1048576", "--request-timeout", "30s"];
    let server = Server::on(&world.db).args(&args).start();
    let mut raw = Raw::to(&server.grpc[0]);
    // Headers without a message: more than there is room for.
    let begun: Vec<u8> = (0..400).flat_map(|n| Frame::check(2 * n + 1).bytes()).collect();
    let (stream, end_stream) = (801, 1);
    let fields = [
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", "tenantgate"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let head = Frame::headers(stream, 0x4, &[0x83, 0x86], fields).bytes();
    let question = Frame::new(kind::DATA, end_stream, stream, &[0; 5]).bytes();
    raw.send(&[begun, head, question].concat()).unwrap();
    let mut frames = std::iter::from_fn(|| raw.next()).filter(|frame| frame.stream == stream);
    let answer = frames.find(|frame| frame.kind == kind::DATA || frame.flags & end_stream != 0);
    // HealthCheckResponse: SERVING.
    assert_eq!(answer.map(|frame| frame.payload), Some(vec![0, 0, 0, 0, 2, 8, 1]));
    assert!(server.metric(&["tenantgate_unavailable_total", "overloaded"]) >= 1.0, "there was no room");
}

#[test]
fn a_silently_lost_peer_is_detected() {
    let world = World::somewhere();
    let args = ["--keepalive-interval", "100ms", "--keepalive-timeout", "100ms"];
    let server = Server::on(&world.db).args(&args).start();
    // It reads everything and does not answer pings.
    let mut raw = Raw::to(&server.grpc[0]);
    let kinds: Vec<u8> = std::iter::from_fn(|| raw.next()).map(|frame| frame.kind).collect();
    assert!(kinds.contains(&kind::PING), "{kinds:?}");
    // A client that answers stays connected.
    assert_eq!(server.client().health("").unwrap(), ServingStatus::Serving);
}

#[test]
fn a_socket_has_the_configured_mode() {
    let world = World::somewhere();
    for (args, mode) in [(&[][..], 0o660), (&["--unix-mode", "0600"], 0o600)] {
        let path = world.db.dir().join(format!("mode-{mode:o}.sock"));
        let _server =
            Server::on(&world.db).args(&["--listen", &format!("unix:{}", path.display())]).args(args).start();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
    }
}

#[test]
fn a_user_who_may_not_use_the_socket_is_rejected() {
    let world = World::somewhere();
    let path = world.db.dir().join("peer.sock");
    let address = format!("unix:{}", path.display());
    let ours = std::fs::metadata("/proc/self").unwrap().uid();
    let plan = |uid: u32| {
        let args = ["--listen", &address, "--unix-peer-uid", &uid.to_string()].map(str::to_owned);
        Server::on(&world.db).args(&args.each_ref().map(String::as_str)).start()
    };
    let server = plan(ours);
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    drop(server);
    let server = plan(ours + 1);
    let mut stranger = UnixStream::connect(&path).unwrap();
    let _ = stranger.write_all(PREFACE);
    eventually("it is counted", PATIENCE, || {
        let turned_away = server.metric(&["tenantgate_connections_total", "turned_away"]);
        if turned_away >= 1.0 { Ok(()) } else { Err(turned_away) }
    });
    assert!(crate::support::wait(server.client().ask(Ask::with_key(&world.live.text))).is_err());
    assert!(server.stderr.text().contains("--unix-peer-uid"), "the log says so");
}

#[test]
fn a_listener_reachable_from_other_machines_without_tls_is_warned_about() {
    let world = World::somewhere();
    let said = |listen: &str| Server::on(&world.db).args(&["--listen", listen]).start().stderr.text();
    assert!(said("0.0.0.0:0").contains("is reachable from other machines"));
    assert!(!said("127.0.0.1:0").contains("is reachable"));
}
