//! Faults of the network to the database, in every way in which networks fail.

use std::time::Duration;

use super::checker::Entry;
use super::history::Sort;
use super::play::{Plan, Play};
use super::stage::{Stage, on_each_stage};
use crate::support::link::Link;
use crate::support::{PATIENCE, eventually};

on_each_stage!(
    the_network_refuses,
    the_network_takes_every_connection_and_ends_it,
    the_network_swallows_every_byte,
    the_database_is_away_at_the_start,
    the_database_is_away_for_longer_than_the_bound,
    the_network_takes_five_seconds,
    the_network_takes_a_tenth_of_a_second,
    the_network_breaks_in_the_middle_of_a_message,
    the_network_comes_and_goes,
);

/// Long enough for stale data, and below all limits.
const A_WHILE: Duration = Duration::from_millis(2_500);

/// Breaks the link in this way, makes changes meanwhile, and restores it.
fn cut_off_and_back(play: &mut Play, cut: impl FnOnce(&Link)) {
    play.cut_off(cut);
    play.revoke("victim");
    play.fickle_becomes("suspended", "403 tenant_inactive");
    play.shows("nobody", "503 unavailable");
    play.shows("steady", "200 ok");
    play.goes_on_for(A_WHILE);
    play.link_again();
    play.shows("victim", "401 revoked");
    play.shows("fickle", "403 tenant_inactive");
    play.shows("nobody", "401 unknown");
    play.restore("victim");
    play.shows("victim", "200 ok");
}

fn the_network_refuses(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    cut_off_and_back(&mut play, Link::cut);
    play.ends("refused");
}

fn the_network_takes_every_connection_and_ends_it(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    cut_off_and_back(&mut play, Link::slam);
    assert!((1..=20).contains(&play.link.attempts()), "with back-off: {}", play.link.attempts());
    play.ends("slammed");
}

fn the_network_swallows_every_byte(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    cut_off_and_back(&mut play, Link::freeze);
    play.ends("half-open");
}

fn the_database_is_away_at_the_start(stage: &Stage) {
    let mut play = Plan::on(stage).begin_with(Link::cut);
    play.shows("steady", "503 unavailable");
    play.shows("nobody", "503 unavailable");
    play.revoke("victim");
    play.says("WARN", "no database yet, trying again");
    assert_eq!(play.server.http("/readyz").status, 503);
    play.goes_on_for(Duration::from_secs(1));
    play.link_again();
    play.server.wait_until_ready();
    play.shows("steady", "200 ok");
    play.shows("victim", "401 revoked");
    play.ends("away at the start");
}

fn the_database_is_away_for_longer_than_the_bound(stage: &Stage) {
    let mut play = Plan::on(stage).max_staleness(Duration::from_secs(2)).begin();
    play.cut_off(Link::cut);
    play.revoke("victim");
    play.shows("nobody", "503 unavailable");
    play.shows("steady", "503 unavailable");
    assert_eq!(play.server.http("/readyz").status, 503);
    play.goes_on_for(Duration::from_secs(1));
    play.link_again();
    play.shows("steady", "200 ok");
    play.shows("victim", "401 revoked");
    play.shows("nobody", "401 unknown");
    play.says("INFO", "connected to the database, everything loaded");
    play.ends("away for longer than the bound");
}

fn the_network_takes_five_seconds(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    cut_off_and_back(&mut play, |link| link.delay(Duration::from_secs(5)));
    let log = play.ends("five seconds of latency");
    let slowest = log.iter().map(Entry::took).max();
    assert!(slowest < Some(Duration::from_secs(1)), "a request waits for the database: {slowest:?}");
}

/// A poll takes two round trips, and its age counts from its start: far below a second.
fn the_network_takes_a_tenth_of_a_second(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    play.link.delay(Duration::from_millis(100));
    for _ in 0..3 {
        play.revokes_and_sees("victim");
        play.restore("victim");
        play.shows("victim", "200 ok");
    }
    play.ends("a tenth of a second of latency");
}

fn the_network_breaks_in_the_middle_of_a_message(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    // During a poll, during the handshake, and during a load.
    for bytes in [20, 300, 1_500, 3_000] {
        play.fault(Sort::Doubtful, |play| play.link.tear(bytes));
        play.revoke("victim");
        play.revoke("second");
        play.goes_on_for(Duration::from_millis(600));
        play.link_again();
        play.shows("victim", "401 revoked");
        play.commit(
            "UPDATE api_keys SET revoked_at = NULL WHERE key_prefix IN ('llmk_play-victim', 'llmk_play-second')",
            &[("victim", "200 ok"), ("second", "200 ok")],
        );
        play.shows("second", "200 ok");
    }
    play.ends("torn messages");
}

/// Returns the number of tenantgate's connections to this database, and of the server's open files.
fn held(stage: &Stage, play: &Play) -> (usize, usize) {
    let sessions = "SELECT pid::text FROM pg_stat_activity
        WHERE application_name = 'tenantgate' AND datname = current_database()";
    let files = std::fs::read_dir(format!("/proc/{}/fd", play.server.pid())).expect("it runs").count();
    (stage.here().texts(sessions).len(), files)
}

fn the_network_comes_and_goes(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    let (_, files_before) = held(stage, &play);
    play.fault(Sort::Doubtful, |_| ());
    for round in 0..6 {
        play.link.slam();
        play.goes_on_for(Duration::from_millis(300));
        let change = [Play::revoke, Play::restore][round % 2];
        change(&mut play, "victim");
        play.link.mend();
        play.goes_on_for(Duration::from_millis(300));
    }
    play.mend(|_| ());
    play.revokes_and_sees("victim");
    play.shows("nobody", "401 unknown");
    // One polls for changes; another may exist briefly for the heartbeat.
    eventually("no session and no file is left behind", PATIENCE, || match held(stage, &play) {
        (sessions, files) if sessions <= 2 && files <= files_before + 1 => Ok(()),
        seen => Err((seen, files_before)),
    });
    play.ends("a network that comes and goes");
}
