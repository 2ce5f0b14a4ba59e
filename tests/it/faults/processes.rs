//! Faults of processes: one is stopped, paused, or its sessions are terminated by an administrator.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinSet;

use super::history::{Sort, Span};
use super::play::Plan;
use super::stage::{Stage, on_each_stage};
use crate::support::{Ask, Backend, PATIENCE, Server, World, eventually, runtime, wait};

on_each_stage!(
    the_server_is_held_still_for_longer_than_the_bound,
    a_backend_of_postgres_is_held_still,
    an_administrator_ends_every_session
);

/// The maximum duration of a stop.
const GOODBYE: Duration = Duration::from_secs(10);

/// Many Checks that wait for the first proof of a key, after all of them have reached the server.
fn in_flight(server: &Server, ask: &Ask) -> JoinSet<String> {
    let (mut flights, sent) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..100 {
        let (client, ask, sent) = (server.client().clone(), ask.clone(), Arc::clone(&sent));
        let flight = async move {
            sent.fetch_add(1, Relaxed);
            client.ask(ask).await.map_or_else(|status| format!("{status:?}"), |answer| answer.row())
        };
        flights.spawn_on(flight, runtime().handle());
    }
    eventually("all calls were sent", PATIENCE, || match sent.load(Relaxed) {
        100 => Ok(()),
        sent => Err(sent),
    });
    // On the same connection, so that it arrives after them.
    server.wait_until_proving(ask.clone());
    flights
}

#[test]
fn the_server_is_stopped_under_load() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let mut play = Plan::in_database(&world.db).begin();
    play.goes_on_for(Duration::from_secs(1));
    play.revoke("victim");
    let flights = in_flight(&play.server, &Ask::with_key(&world.issued.text));
    let (told, ()) = play.act(|play| play.server.signal("TERM"));
    play.history.goodbye = Some(told.begin);
    let rows = wait(flights.join_all());
    assert!(rows.iter().all(|row| row == "200 ok"), "all accepted calls are answered: {rows:?}");
    assert_eq!(play.server.exit_code(GOODBYE), Some(0));
    play.shows_error();
    let log = play.ends("told to go under load");
    let failed: Vec<_> = log.iter().filter(|entry| entry.row.starts_with("grpc")).collect();
    // A late call finds no listener, or a connection that is ending.
    let never_left = [
        "grpc Unavailable: tcp connect error",
        "grpc Cancelled: operation was canceled",
        "grpc refused by GOAWAY",
    ];
    let lost = failed.iter().filter(|entry| !never_left.iter().any(|why| entry.row.starts_with(why)));
    let lost: Vec<_> = lost.collect();
    assert!(lost.is_empty(), "accepted, but not answered: {lost:#?}");
}

/// Whether every thread of a process is stopped.
fn stands_still(pid: u32) -> Result<(), Vec<String>> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process exists").flatten();
    let stat = threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
    let moving: Vec<String> = stat.filter(|stat| !stat.contains(") T ")).collect();
    if moving.is_empty() { Ok(()) } else { Err(moving) }
}

/// Stopped for longer than `--max-staleness`: its data is too old when it continues, and must not be used even for the
/// first answers.
fn the_server_is_held_still_for_longer_than_the_bound(stage: &Stage) {
    let bound = Duration::from_millis(1_500);
    let mut play = Plan::on(stage).max_staleness(bound).begin();
    play.fault(Sort::Cut, |play| {
        play.server.signal("STOP");
        eventually("the process is paused", PATIENCE, || stands_still(play.server.pid()));
    });
    let (stopped, ()) = play.act(|_| ());
    play.revoke("victim");
    play.fickle_becomes("suspended", "403 tenant_inactive");
    play.goes_on_for(bound * 2);
    for key in ["victim", "fickle", "steady"] {
        play.many_ask(key);
    }
    let (goes_on, ()) = play.act(|_| ());
    play.history.stops.push(Span { begin: stopped.begin, end: goes_on.end });
    play.mend(|play| play.server.signal("CONT"));
    play.shows("victim", "401 revoked");
    play.shows("fickle", "403 tenant_inactive");
    play.shows("nobody", "401 unknown");
    play.ends("the server held still");
}

/// Returns the backends of Postgres that serve tenantgate in this database.
fn backends(stage: &Stage) -> Vec<String> {
    let sql = "SELECT pid::text FROM pg_stat_activity WHERE application_name = 'tenantgate'
        AND datname = current_database() AND query LIKE '%tenantgate_change%'";
    stage.here().texts(sql).into_iter().flatten().collect()
}

fn signal(name: &str, pid: &str) {
    let sent = Command::new("sh").args(["-c", r#"kill -"$0" "$1""#, name, pid]).status().expect("sh starts");
    assert!(sent.success(), "the signal {name} is delivered to {pid}");
}

/// Processes that are stopped until this is dropped.
struct Held(Vec<String>);

impl Held {
    fn still(pids: Vec<String>) -> Self {
        for pid in &pids {
            signal("STOP", pid);
        }
        Self(pids)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for pid in &self.0 {
            signal("CONT", pid);
        }
    }
}

/// The session stays open but does not respond: the server replaces it by another one.
fn a_backend_of_postgres_is_held_still(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    let held = play.fault(Sort::Doubtful, |_| Held::still(backends(stage)));
    play.revoke("victim");
    play.shows("nobody", "503 unavailable");
    play.shows("victim", "401 revoked");
    play.shows("nobody", "401 unknown");
    play.mend(|_| ());
    play.restore("victim");
    play.shows("victim", "200 ok");
    drop(held);
    play.ends("a backend held still");
}

fn an_administrator_ends_every_session(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'tenantgate' AND datname = current_database()";
    for _ in 0..3 {
        play.fault(Sort::Doubtful, |play| play.sql_here(end));
        play.mend(|_| ());
        play.revokes_and_sees("victim");
        play.restore("victim");
        play.shows("victim", "200 ok");
    }
    play.ends("sessions ended");
}
