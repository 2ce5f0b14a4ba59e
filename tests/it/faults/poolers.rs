//! Faults by a pooler in transaction mode at the address of the database.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};

use super::history::Sort;
use super::play::Plan;
use super::stage::{Stage, on_each_stage};
use crate::support::pooler::Pooler;
use crate::support::{Database, PATIENCE, eventually, runtime};

on_each_stage!(the_address_is_a_poolers_from_the_start, the_address_is_suddenly_a_poolers);

/// Other clients of the pooler, so that each transaction gets another backend.
struct Crowd(Vec<tokio::task::AbortHandle>);

impl Crowd {
    fn at(pooler: &Pooler, database: &Database) -> Self {
        let [direct, through] = [database.port(), pooler.port()].map(|port| format!(":{port}/"));
        let url = database.url().replace(&direct, &through);
        let members = (0..5).map(|_| runtime().spawn(go_on_working(url.clone())).abort_handle());
        Self(members.collect())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for member in &self.0 {
            member.abort();
        }
    }
}

async fn go_on_working(url: String) {
    let mut session = PgConnection::connect(&url).await.expect("the pooler lets everybody in");
    loop {
        let work = "BEGIN; SELECT pg_sleep(random() * 0.02); COMMIT";
        sqlx::raw_sql(work).execute(&mut session).await.expect("work is done");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

fn the_address_is_a_poolers_from_the_start(stage: &Stage) {
    let Some(pooler) = Pooler::before(stage.here()) else { return };
    let home = stage.here().port();
    let mut play = Plan::on(stage).begin_with(|link| link.lead_to(pooler.port()));
    // The log must name the pooler, not the statement that reached the wrong backend.
    play.says("WARN", "no database yet, trying again");
    play.says("WARN", "not to a pooler");
    play.shows("steady", "503 unavailable");
    play.goes_on_for(Duration::from_secs(2));
    assert!(play.server.http("/readyz").body.contains("starting"), "not ready behind a pooler");
    eventually("it keeps trying", PATIENCE, || {
        let tries = play.server.metric(&["replica_lost_sessions_total"]);
        if tries > 3.0 { Ok(()) } else { Err(tries) }
    });
    play.mend(|play| play.link.lead_to(home));
    play.server.wait_until_ready();
    play.shows("steady", "200 ok");
    play.revokes_and_sees("victim");
    play.ends("a pooler from the start");
}

fn the_address_is_suddenly_a_poolers(stage: &Stage) {
    let Some(pooler) = Pooler::before(stage.here()) else { return };
    let home = stage.here().port();
    let mut play = Plan::on(stage).begin();
    let crowd = Crowd::at(&pooler, stage.here());
    play.fault(Sort::Doubtful, |play| play.link.lead_to(pooler.port()));
    play.says("ERROR", "the database is not usable");
    play.says("ERROR", "not to a pooler");
    play.revoke("victim");
    play.shows("steady", "200 ok");
    play.goes_on_for(Duration::from_secs(2));
    drop(crowd);
    play.mend(|play| play.link.lead_to(home));
    play.shows("victim", "401 revoked");
    play.shows("nobody", "401 unknown");
    play.ends("a pooler in between");
}
