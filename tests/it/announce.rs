//! Checks that `--wait` returns when every server has applied the change, and not earlier.

use crate::support::ask::Ask;
use crate::support::{PATIENCE, Server, World, eventually, on_every_store};

on_every_store! {
    a_revocation_with_wait_holds_on_every_server_when_the_command_returns,
    a_suspension_with_wait_holds_on_every_server_when_the_command_returns,
    waiting_for_a_change_without_effect_returns,
    a_server_that_was_killed_is_named,
    a_server_that_stopped_gracefully_is_not_waited_for,
    without_a_server_there_is_nothing_to_wait_for,
}

/// Two servers with a heartbeat.
fn two_servers(world: &World) -> [Server; 2] {
    let servers = [(); 2].map(|()| Server::on(&world.db).start());
    announced(world, 2);
    servers
}

fn announced(world: &World, count: usize) {
    eventually("every server has a heartbeat", PATIENCE, || {
        let rows = world.db.texts("SELECT name FROM tenantgate_replica");
        if rows.len() == count { Ok(()) } else { Err(rows) }
    });
}

fn a_revocation_with_wait_holds_on_every_server_when_the_command_returns(world: &World) {
    let servers = two_servers(world);
    let key = Ask::with_key(&world.live.text);
    for server in &servers {
        assert_eq!(server.row(key.clone()), "200 ok");
    }
    let revoked = world.db.json(&["key", "revoke", &world.live.id, "--wait"]);
    assert_eq!(revoked["status"], "revoked");
    for server in &servers {
        assert_eq!(server.row(key.clone()), "401 revoked");
    }
}

fn a_suspension_with_wait_holds_on_every_server_when_the_command_returns(world: &World) {
    let servers = two_servers(world);
    let key = Ask::with_key(&world.live.text);
    for server in &servers {
        assert_eq!(server.row(key.clone()), "200 ok");
    }
    world.db.json(&["tenant", "suspend", &world.acme.id, "--wait=20s"]);
    for server in &servers {
        assert_eq!(server.row(key.clone()), "403 tenant_inactive");
    }
}

fn waiting_for_a_change_without_effect_returns(world: &World) {
    let _servers = two_servers(world);
    world.db.json(&["key", "revoke", &world.revoked.id, "--wait"]);
}

fn a_server_that_was_killed_is_named(world: &World) {
    let [mut killed, _other] = two_servers(world);
    killed.signal("KILL");
    killed.exit_code(PATIENCE);
    let line = world.db.cli(&["key", "revoke", &world.live.id, "--wait=1s"]).refused();
    assert!(line.contains(&format!(":{} ", killed.pid())), "{line}");
    assert_eq!(
        world.db.json(&["key", "show", &world.live.id])["status"],
        "revoked",
        "the key is revoked nevertheless"
    );
}

fn a_server_that_stopped_gracefully_is_not_waited_for(world: &World) {
    let [mut stopped, _other] = two_servers(world);
    stopped.signal("TERM");
    assert_eq!(stopped.exit_code(PATIENCE), Some(0));
    announced(world, 1);
    world.db.json(&["key", "revoke", &world.live.id, "--wait"]);
}

fn without_a_server_there_is_nothing_to_wait_for(world: &World) {
    world.db.json(&["key", "revoke", &world.live.id, "--wait"]);
    world.db.cli(&["key", "revoke", &world.live.id, "--wait=soon"]).usage();
}
