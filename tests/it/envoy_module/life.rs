//! Tests changes, restarts and failures while Envoy runs.

use super::*;
use crate::support::Backend;
use crate::support::link::Link;

#[test]
fn changes_are_seen_within_the_promised_time() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &["--sync-interval", "10ms"]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    let becomes = |key: &str, reason: &str| {
        let status = match reason {
            "ok" => b"200",
            "tenant_inactive" => b"403",
            _ => b"401",
        };
        // The response shows when the change is in force. The access log, which Envoy writes later, shows who decided.
        let (headers, start) = ([(KEY_HEADER, key.as_bytes())], Instant::now());
        let took = eventually(reason, PATIENCE, || {
            // Reads only the status line, because Envoy closes the connection a second after a filter has rejected at
            // once.
            let mut line = [0; 12];
            envoy.open("GET", &path(), &headers, "close").read_exact(&mut line).expect("an answer");
            if line.ends_with(status) { Ok(start.elapsed()) } else { Err(line) }
        });
        assert_eq!(by_module(&envoy, &headers).1["reason"], reason);
        took
    };
    let bound = Duration::from_secs(1);
    becomes(&world.live.text, "ok");
    becomes(&world.other.text, "ok");
    world.db.json(&["key", "revoke", &world.other.id]);
    assert!(becomes(&world.other.text, "revoked") < bound);
    world.db.json(&["tenant", "suspend", &world.acme.id]);
    assert!(becomes(&world.live.text, "tenant_inactive") < bound);
    world.db.json(&["tenant", "activate", &world.acme.id]);
    becomes(&world.live.text, "ok");
    world.db.json(&["key", "disable", &world.live.id]);
    assert!(becomes(&world.live.text, "disabled") < bound);
    world.db.json(&["key", "enable", &world.live.id]);
    becomes(&world.live.text, "ok");
    // A new hash invalidates the proof.
    let hash = crate::support::world::quick_hash("llmk_live_another-Secret-0123456789");
    world.db.sql(&format!("UPDATE api_keys SET hashed_key = '{hash}' WHERE id = '{}'", world.live.id));
    eventually("the old key is refused", PATIENCE, || {
        let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
        if outcome.page.status == 401 && said["via"].is_null() { Ok(()) } else { Err(said) }
    });
    // A prefix that was unknown.
    let made = world.db.json(&["key", "create", &world.acme.id]);
    becomes(made["key"].as_str().expect("a key"), "ok");
}

#[test]
fn without_a_server_nothing_passes_and_a_new_one_is_found() {
    let world = World::somewhere();
    let (mut server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    server.signal("KILL");
    server.exit_code(PATIENCE);
    let key = [(KEY_HEADER, world.live.text.as_bytes())];
    let start = Instant::now();
    eventually("the memory is stale", PATIENCE, || {
        let (outcome, said) = ask(&envoy, &path(), &key);
        if outcome.page.status == 503 { Ok(()) } else { Err(Box::new((outcome, said))) }
    });
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    for headers in [&key[..], &[]] {
        let (outcome, said) = ask(&envoy, &path(), headers);
        assert_eq!((outcome.page.status, outcome.seen.is_none()), (503, true), "{said}");
    }
    // Another server process on the same sockets, with another random key.
    let listen = server.grpc[0].clone();
    let address = format!("unix:{}", socket.display());
    let _next = Server::on(&world.db).args(&["--listen", &listen, "--publish", &address]).start();
    with_key(&envoy, &world.live.text);
}

#[test]
fn a_suspended_server_is_trusted_for_at_most_a_second() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    server.signal("STOP");
    let passed = eventually("the memory is stale", PATIENCE, || {
        let before = Instant::now();
        let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
        if said["via"].is_null() { Ok((before, outcome)) } else { Err(said) }
    });
    server.signal("CONT");
    assert_ne!(passed.1.page.status, 200, "{:?}", passed.1);
    with_key(&envoy, &world.live.text);
}

#[test]
fn envoy_may_start_first() {
    let world = World::somewhere();
    let (server, socket, directory) = publishing(&world, &[]);
    let elsewhere = directory.path().join("later.sock");
    let Some(envoy) = with_module(&server, &elsewhere).start() else { return };
    let (outcome, said) = ask(&envoy, &path(), &[]);
    assert_eq!((outcome.page.status, &said["via"]), (401, &Value::Null));
    // Another program that listens on the socket is not a server.
    let foreign = std::os::unix::net::UnixListener::bind(&elsewhere).expect("bound");
    let (mut stream, _) = foreign.accept().expect("the module tries");
    std::io::Write::write_all(&mut stream, &[0x41; 48]).expect("sent");
    let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
    assert_eq!((outcome.page.status, &said["via"]), (200, &Value::Null));
    drop((foreign, stream));
    std::fs::remove_file(&elsewhere).expect("removed");
    std::os::unix::fs::symlink(&socket, &elsewhere).expect("linked");
    with_key(&envoy, &world.live.text);
}

#[test]
fn decisions_in_envoy_are_counted_where_those_of_checks_are() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    by_module(&envoy, &[]);
    let module = |reason: &str| {
        server.metric(&["tenantgate_decisions_total", "path=\"module\"", &format!("reason=\"{reason}\"")])
    };
    for reason in ["ok", "missing"] {
        eventually(reason, PATIENCE, || if module(reason) >= 1.0 { Ok(()) } else { Err(module(reason)) });
    }
    let before = server.metric(&["tenantgate_decisions_total"]);
    for _ in 0..100 {
        let (outcome, _) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
        assert_eq!(outcome.page.status, 200);
    }
    eventually("all of them are counted", PATIENCE, || {
        let now = server.metric(&["tenantgate_decisions_total"]);
        if now >= before + 100.0 { Ok(()) } else { Err(now - before) }
    });
    assert!(envoy.stat("dynamicmodulescustom.tenantgate_allowed") >= 100);
    server.signal("TERM");
    eventually("the use is written", PATIENCE, || {
        let shown = world.db.json(&["key", "show", &world.live.id]);
        if shown["last_used_at"].is_string() { Ok(()) } else { Err(shown) }
    });
}

#[test]
fn once_envoy_tells_of_a_route_the_module_decides_nothing() {
    let world = World::somewhere();
    let (server, socket, _directory) = publishing(&world, &[]);
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    let mut request = Ask::with_key(&world.live.text).request();
    let attributes = request.attributes.as_mut().expect("a request");
    attributes.context_extensions.insert("tenantgate.mode".into(), "required".into());
    server.check(request);
    eventually("the module asks", PATIENCE, || {
        let (_, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
        if said["via"].is_null() { Ok(()) } else { Err(said) }
    });
}

#[test]
fn without_the_database_every_request_is_left_to_checks() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let (link, seen) = Link::before(&world.db);
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("publish.sock");
    let server = Server::on(&seen).args(&["--publish", &format!("unix:{}", socket.display())]).start();
    let Some(envoy) = with_module(&server, &socket).start() else { return };
    with_key(&envoy, &world.live.text);
    link.cut();
    // A Check knows how long it may go on without a database (--max-staleness). The module does not try to.
    let said = eventually("the memory is stale", PATIENCE, || {
        let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, world.live.text.as_bytes())]);
        if said["via"].is_null() { Ok((outcome.page.status, said)) } else { Err(said) }
    });
    assert_eq!((said.0, &said.1["reason"]), (200, &"ok".into()), "{}", said.1);
    let (outcome, said) = ask(&envoy, &path(), &[(KEY_HEADER, b"llmk_nobody_12345678")]);
    assert_eq!((outcome.page.status, &said["via"]), (503, &Value::Null));
    link.mend();
    with_key(&envoy, &world.live.text);
}
