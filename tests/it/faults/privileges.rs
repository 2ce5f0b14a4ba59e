//! What if the database shows less than it has? It is not believed, and said aloud.

use std::time::Duration;

use super::history::Sort;
use super::play::{Plan, Play};
use crate::support::link::Link;
use crate::support::{Backend, Database, World};

/// A role that may do what the README gives to `serve`, and owns nothing.
fn narrow_role(database: &Database) -> String {
    let role = format!("serve_{}", database.name());
    database.sql(&format!(
        "CREATE ROLE {role} LOGIN;
         GRANT SELECT ON tenants, api_keys, auth_change, auth_change_floor, tenantgate_migrations TO {role};
         GRANT UPDATE (last_used_at, key_memo) ON api_keys TO {role};
         GRANT SELECT, INSERT, UPDATE, DELETE ON auth_replica, shadow_report TO {role}"
    ));
    role
}

/// Something hides rows; what was known goes on, and a line says what is wrong, until that is mended.
fn is_not_believed(play: &mut Play, hide: &str, line: &str, show: &str) {
    play.fault(Sort::Cut, |play| play.sql(hide));
    play.revoke("victim");
    play.says("ERROR", line);
    play.shows("nobody", "503 unavailable");
    play.shows("steady", "200 ok");
    play.goes_on_for(Duration::from_secs(1));
    play.mend(|play| play.sql(show));
    play.shows("victim", "401 revoked");
    play.shows("nobody", "401 unknown");
    play.restore("victim");
    play.shows("victim", "200 ok");
}

#[test]
fn a_policy_hides_every_row() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let role = narrow_role(&world.db);
    let mut play = Plan::on(&world.db).user(&role).begin();
    for table in ["api_keys", "tenants"] {
        let hide = format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY");
        let show = format!("ALTER TABLE {table} DISABLE ROW LEVEL SECURITY");
        is_not_believed(&mut play, &hide, &format!("row-level security policy for table \"{table}\""), &show);
    }
    play.ends("row-level security");
    world.db.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn a_right_is_taken_away() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let role = narrow_role(&world.db);
    world.db.sql(&format!(
        "REVOKE SELECT ON api_keys FROM {role};
         GRANT SELECT (id, tenant_id, key_prefix, hashed_key, expires_at, revoked_at, last_used_at, key_memo) ON api_keys TO {role}"
    ));
    let mut play = Plan::on(&world.db).user(&role).begin();
    let column = |verb: &str| format!("{verb} SELECT (hashed_key) ON api_keys");
    is_not_believed(
        &mut play,
        &format!("{} FROM {role}", column("REVOKE")),
        "permission denied for table api_keys",
        &format!("{} TO {role}", column("GRANT")),
    );
    play.ends("a right taken away");
    world.db.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

/// All keys gone at once is what a restore into the wrong place looks like, and no reason to lock everybody out.
#[test]
fn every_key_is_gone_after_an_outage() {
    let Some(world) = World::on(Backend::Postgres) else { return };
    let mut play = Plan::on(&world.db).begin();
    play.sql("CREATE TABLE saved AS SELECT * FROM api_keys");
    play.cut_off(Link::slam);
    play.sql("DELETE FROM api_keys");
    play.link.mend();
    play.says("ERROR", "the database shows no keys at all");
    play.shows("nobody", "503 unavailable");
    play.shows("steady", "200 ok");
    play.mend(|play| play.sql("INSERT INTO api_keys SELECT * FROM saved"));
    play.shows("nobody", "401 unknown");
    play.revokes_and_sees("victim");
    play.ends("every key gone");
}
