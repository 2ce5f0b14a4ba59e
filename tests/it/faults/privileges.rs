//! Faults by a database that shows fewer rows than it has: the server does not use the data, and logs it.

use std::time::Duration;

use super::history::Sort;
use super::play::{Plan, Play};
use super::stage::{Stage, on_each_stage};
use crate::support::link::Link;

on_each_stage!(a_policy_hides_every_row, a_right_is_taken_away, every_key_is_gone_after_an_outage);

/// A fault hides rows. Known keys continue to work, and a log line names the problem until it is corrected.
fn is_not_believed(play: &mut Play, hide: &str, line: &str, show: &str) {
    play.fault(Sort::Cut, |play| play.sql_here(hide));
    play.revoke("victim");
    play.says("ERROR", line);
    play.shows("nobody", "503 unavailable");
    play.shows("steady", "200 ok");
    play.goes_on_for(Duration::from_secs(1));
    play.mend(|play| play.sql_here(show));
    play.shows("victim", "401 revoked");
    play.shows("nobody", "401 unknown");
    play.restore("victim");
    play.shows("victim", "200 ok");
}

fn a_policy_hides_every_row(stage: &Stage) {
    let role = format!("{}_serve", stage.here().with_roles());
    let mut play = Plan::on(stage).user(&role).begin();
    for table in ["api_keys", "tenants"] {
        let hide = format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY");
        let show = format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY");
        is_not_believed(&mut play, &hide, &format!("row-level security policy for table \"{table}\""), &show);
    }
    play.ends("row-level security");
}

fn a_right_is_taken_away(stage: &Stage) {
    let role = format!("{}_serve", stage.here().with_roles());
    let mut play = Plan::on(stage).user(&role).begin();
    let column = |verb: &str| format!("{verb} SELECT (hashed_key) ON api_keys");
    is_not_believed(
        &mut play,
        &format!("{} FROM {role}", column("REVOKE")),
        "permission denied for table api_keys",
        &format!("{} TO {role}", column("GRANT")),
    );
    play.ends("a right taken away");
}

/// If all keys disappear at once, it is probably a wrong restore, and known keys continue to work.
fn every_key_is_gone_after_an_outage(stage: &Stage) {
    let mut play = Plan::on(stage).begin();
    play.sql("CREATE TABLE saved AS SELECT * FROM api_keys");
    play.cut_off(Link::slam);
    play.sql("DELETE FROM api_keys");
    play.arrives();
    play.link.mend();
    play.says("ERROR", "the database shows no keys at all");
    play.shows("nobody", "503 unavailable");
    play.shows("steady", "200 ok");
    play.mend(|play| {
        play.sql("INSERT INTO api_keys SELECT * FROM saved");
        play.arrives();
    });
    play.shows("nobody", "401 unknown");
    play.revokes_and_sees("victim");
    play.ends("every key gone");
}
