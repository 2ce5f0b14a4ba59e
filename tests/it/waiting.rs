//! Tests requests that wait for bcrypt: none waits longer than its timeout, and no proof is lost.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::support::{Ask, Backend, Client, PATIENCE, Server, World, eventually, on_every_store, wait};

/// A cost at which bcrypt takes far longer than [`IMPATIENT`].
const SLOW: u32 = 12;

/// The timeout of an impatient caller; Envoy's default is 200 ms.
const IMPATIENT: Duration = Duration::from_millis(100);

on_every_store![hundreds_of_requests_share_the_one_proof_of_a_key];

fn hundreds_of_requests_share_the_one_proof_of_a_key(world: &World) {
    let server = Server::on(&world.db).start();
    let rows = all_at_once(server.client(), 300, &world.issued.text);
    assert_eq!(rows.iter().filter(|row| *row == "200 ok").count(), 300, "{rows:?}");
    assert_eq!(server.bcrypts(), 1, "one bcrypt for all");
}

fn all_at_once(client: &Client, callers: usize, key: &str) -> Vec<String> {
    wait(async {
        let mut flights = JoinSet::new();
        for _ in 0..callers {
            let (client, ask) = (client.clone(), Ask::with_key(key));
            flights.spawn(async move {
                client.ask(ask).await.map_or_else(|status| format!("{status:?}"), |answer| answer.row())
            });
        }
        flights.join_all().await
    })
}

/// Waits for the WARN about a call that waited in vain: its peer, its reason, and what to do.
#[track_caller]
pub(crate) fn is_warned_of(server: &Server, reason: &str, advice: &str) {
    let line = server.stderr.wait_for(reason, PATIENCE, |lines| {
        lines.iter().find(|line| line.contains("call not decided: ") && line.contains(advice)).cloned()
    });
    let told = ["WARN", "peer=127.0.0.1:", &format!("reason=\"{reason}\"")];
    assert!(told.iter().all(|part| line.contains(part)), "{line}");
}

#[test]
fn a_call_with_a_short_timeout_is_answered_in_time_and_its_retry_finds_the_proof() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let ask = Ask::with_key(&world.issued.text);
    let hurried = || wait(server.client().ask_within(IMPATIENT, ask.clone()));
    // Opens the connection before the clock starts.
    assert_eq!(server.row(Ask::get("/v1")), "401 missing");
    let answer = hurried().expect("an answer before the deadline, not an expired call");
    assert_eq!(answer.row(), "503 unavailable");
    is_warned_of(&server, "deadline_too_short", "set timeout: 2s in Envoy's grpc_service");
    eventually("the proof goes on and ends", PATIENCE, || match server.bcrypts() {
        1 => Ok(()),
        other => Err(other),
    });
    let start = Instant::now();
    assert_eq!(hurried().expect("an answer").row(), "200 ok");
    assert!(start.elapsed() < IMPATIENT);
    assert_eq!(server.bcrypts(), 1, "the first proof served the retry");
}

#[test]
fn a_cancelled_call_does_not_cancel_the_proof() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    let ask = Ask::with_key(&world.issued.text);
    let left = wait(async {
        tokio::time::timeout(Duration::from_millis(20), server.client().ask(ask.clone())).await
    });
    assert!(left.is_err(), "bcrypt of cost {SLOW} takes longer than 20 ms");
    eventually("the proof goes on and ends", PATIENCE, || match server.bcrypts() {
        1 => Ok(()),
        other => Err(other),
    });
    assert_eq!(wait(server.client().ask_within(IMPATIENT, ask)).expect("an answer").row(), "200 ok");
}

#[test]
fn known_keys_do_not_wait_for_the_unknown_secrets_of_others() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    assert_eq!(server.row(Ask::with_key(&world.live.text)), "200 ok");
    let prefix = world.issued.prefix.clone();
    let client = server.client().clone();
    let flood = crate::support::runtime().spawn(async move {
        let mut flights = JoinSet::new();
        for number in 0..200 {
            let (client, ask) = (client.clone(), Ask::with_key(&format!("{prefix}_Wrong{number:08}")));
            flights.spawn(async move { client.ask_within(Duration::from_secs(2), ask).await });
        }
        flights.join_all().await
    });
    for _ in 0..100 {
        // The flood takes a minute of bcrypt; the limit is a second, for a loaded machine.
        let answer =
            wait(server.client().ask_within(Duration::from_secs(1), Ask::with_key(&world.live.text)));
        assert_eq!(answer.expect("an answer in time").row(), "200 ok");
    }
    is_warned_of(&server, "overloaded", "find the client that is guessing");
    flood.abort();
}

#[test]
fn a_right_secret_is_not_locked_out_by_wrong_ones() {
    let world = World::somewhere();
    let server = Server::on(&world.db).start();
    for number in 0..50 {
        let row = server.row(Ask::with_key(&format!("{}_Wrong{number:08}", world.live.prefix)));
        assert!(["401 mismatch", "503 unavailable"].contains(&row.as_str()), "{row}");
    }
    server.row_becomes("200 ok", PATIENCE, Ask::with_key(&world.live.text));
}

#[test]
fn unavailability_can_be_left_to_envoys_own_policy() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    world.db.sql(&format!(
        "UPDATE api_keys SET hashed_key = '$2x$04$damaged' WHERE key_prefix = '{}'",
        world.live.prefix
    ));
    let ask = Ask::with_key(&world.live.text);
    let denying = Server::on(&world.db).start();
    let answer = denying.check(ask.clone());
    assert_eq!(
        (answer.row().as_str(), answer.code(), answer.is_error_response()),
        ("503 unavailable", 7, false)
    );
    let erring = Server::on(&world.db).args(&["--on-unavailable", "error"]).start();
    let answer = erring.check(ask);
    assert_eq!(
        (answer.row().as_str(), answer.code(), answer.is_error_response()),
        ("503 unavailable", 14, true)
    );
    // Rejections stay rejections.
    let refused = erring.check(Ask::with_key(&world.revoked.text));
    assert_eq!((refused.row().as_str(), refused.is_error_response()), ("401 revoked", false));
}
