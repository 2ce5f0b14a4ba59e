//! Tests that many silent or slow clients do not keep other clients out of management.

use std::io::Write as _;
use std::net::TcpStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::manage::{Manage, owner};
use crate::manage_process::{Encrypted, metric};
use crate::support::{Backend, World};

/// The number of connections: far more than management accepts at the same time.
const CROWD: u64 = 10_000;

/// The number of crowds that may be there at once: one for each test of this file.
const CROWDS: u64 = 3;

/// The number of open files that other tests of this process need.
const FILES_OF_OTHERS: u64 = 2_000;

/// The number of connections between two clients with a key: fewer than fit into the backlog of the listener.
const AT_ONCE: u64 = 500;

/// Returns how many connections this process can open, at most [`CROWD`].
fn crowd() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = CROWDS * CROWD + FILES_OF_OTHERS;
    let most = limit.maximum.unwrap_or(wanted).min(wanted);
    if limit.current.is_some_and(|current| current < most) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit })
            .expect("a process may have what it may have");
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(most);
    (current.saturating_sub(FILES_OF_OTHERS) / CROWDS).min(CROWD)
}

/// Opens many connections that each send one of `words`. Calls `somebody` after each group of them.
fn besiege(address: &str, words: &[&[u8]], somebody: impl Fn()) {
    let mut crowd_so_far = Vec::new();
    for (at, word) in (1..=crowd()).zip(words.iter().cycle()) {
        let mut stream = TcpStream::connect(address).expect("the kernel takes it");
        // The connection may be closed already.
        let _ = stream.write_all(word);
        crowd_so_far.push(stream);
        if at % AT_ONCE == 0 {
            somebody();
        }
    }
    assert!(crowd_so_far.len() > 1_000, "raise the limit of open files: {}", crowd_so_far.len());
    drop(crowd_so_far);
    somebody();
}

#[test]
fn clients_that_send_nothing_lock_no_other_client_out() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let key = owner(&world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    besiege(&manage.address, &[b"", b"GET /v1/whoami HTTP/1.1\r\nhost:"], || {
        assert_eq!(manage.get("/v1/whoami", &key).status, 200);
    });
    assert!(metric(&manage, "tenantgate_manage_connections_crowded_total") >= 1.0);
}

#[test]
fn clients_with_no_or_half_a_handshake_lock_no_other_client_out() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let key = owner(&world);
    let encrypted = Encrypted::on(&world.db);
    // The second client announces a record of 512 bytes and sends nothing more.
    besiege(&encrypted.address, &[b"", b"\x16\x03\x01\x02\x00\x01"], || {
        assert_eq!(encrypted.get("/v1/whoami", &key).status, 200);
    });
    assert!(metric(&encrypted.manage, "tenantgate_manage_connections_crowded_total") >= 1.0);
}

#[test]
fn clients_whose_bodies_do_not_arrive_lock_no_other_client_out() {
    let world = World::on(Backend::Sqlite).expect("a world");
    let key = owner(&world);
    let manage = Manage::on(&world.db, "127.0.0.1:0");
    let sign_in =
        b"POST /sign-in HTTP/1.1\r\nhost: a\r\nsec-fetch-site: same-origin\r\ncontent-length: 99\r\n\r\nkey=";
    let chunked = b"POST /sign-in HTTP/1.1\r\nhost: a\r\nsec-fetch-site: same-origin\r\ntransfer-encoding: chunked\r\n\r\n4\r\nkey=";
    besiege(&manage.address, &[sign_in, chunked], || {
        assert_eq!(manage.get("/v1/whoami", &key).status, 200);
    });
    assert!(metric(&manage, "tenantgate_manage_connections_crowded_total") >= 1.0);
}
