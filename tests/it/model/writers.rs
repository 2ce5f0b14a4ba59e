//! Writers that change the tables at random and concurrently, with all kinds of SQL that clients may use.
//!
//! The statements work on both databases. The writers know nothing of replicas.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use super::Tally;
use super::dice::Dice;

/// So few rows that writers conflict all the time.
const PREFIXES: u64 = 40;
const TENANTS: u64 = 8;

/// A tenant and a key that never change, because a replica rejects a database without keys.
pub(super) const ANCHOR: &str = "
    INSERT INTO tenants (id, name, db_schema_name, created_at)
    VALUES ('ffffffff-ffff-4fff-8fff-ffffffffffff', 'Anchor', 'anchor', '2026-01-01T00:00:00Z');
    INSERT INTO api_keys (id, hashed_key, key_prefix, tenant_id)
    VALUES ('eeeeeeee-eeee-4eee-8eee-eeeeeeeeeeee', 'none', 'llmk_anchor', 'ffffffff-ffff-4fff-8fff-ffffffffffff')";

/// The end of writing.
#[derive(Clone, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn now(&self) {
        self.0.store(true, Relaxed);
    }

    fn not_yet(&self) -> bool {
        !self.0.load(Relaxed)
    }
}

pub(super) async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("postgres is up")
}

pub(super) async fn run(session: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(session).await.map(|_| ())
}

/// Writes one transaction after the other.
pub(super) async fn write(url: String, mut dice: Dice, stop: Stop) -> Tally {
    let mut session = connect(&url).await;
    run(&mut session, "SET deadlock_timeout = '20ms'; SET lock_timeout = '100ms'").await.expect("settings");
    let mut tally = Tally::default();
    while stop.not_yet() {
        match transaction(&mut session, &mut dice).await {
            Ok(true) => tally.committed += 1,
            Ok(false) => tally.rolled_back += 1,
            Err(error) => {
                let code = error.as_database_error().and_then(|e| e.code().map(String::from));
                // Unique, foreign key, deadlock, lock timeout: expected with concurrent writers.
                let expected = ["23505", "23503", "40P01", "55P03"].map(|code| Some(code.to_owned()));
                assert!(expected.contains(&code), "a writer met {error}");
                run(&mut session, "ROLLBACK").await.expect("a rollback always works");
                tally.refused += 1;
            }
        }
    }
    tally
}

/// Returns whether it committed.
async fn transaction(session: &mut PgConnection, dice: &mut Dice) -> Result<bool, sqlx::Error> {
    run(session, "BEGIN").await?;
    if dice.one_in(8) {
        // As in restores and logical replication: foreign keys are not checked, but the change log must work.
        run(session, "SET LOCAL session_replication_role = replica").await?;
    }
    for statement in statements(dice) {
        run(session, &statement).await?;
        if dice.one_in(8) {
            sleep(dice.millis(0, 10)).await;
        }
    }
    if dice.one_in(4) {
        // A delayed commit is overtaken by others; a few are overtaken by hundreds.
        let most = if dice.one_in(6) { 200 } else { 20 };
        sleep(dice.millis(0, most)).await;
    }
    let commit = !dice.one_in(5);
    run(session, if commit { "COMMIT" } else { "ROLLBACK" }).await?;
    Ok(commit)
}

/// The statements of one transaction.
pub(super) fn statements(dice: &mut Dice) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..=dice.below(4) {
        if dice.one_in(4) {
            let end = if dice.one_in(3) { "RELEASE s" } else { "ROLLBACK TO s" };
            all.extend(["SAVEPOINT s".to_owned(), step(dice), end.to_owned()]);
        } else {
            all.push(step(dice));
        }
    }
    all
}

/// Returns one statement, or two that belong together.
fn step(dice: &mut Dice) -> String {
    let (key, tenant) = (prefix(dice), tenant_id(dice));
    let on_key = |set: String| format!("UPDATE api_keys SET {set} WHERE key_prefix = '{key}'");
    let on_tenant = |set: String| format!("UPDATE tenants SET {set} WHERE id = '{tenant}'");
    let on_keys_of = |set: String| format!("UPDATE api_keys SET {set} WHERE tenant_id = '{tenant}'");
    match dice.below(44) {
        0 => {
            let take_over =
                "(key_prefix) DO UPDATE SET hashed_key = excluded.hashed_key, tenant_id = excluded.tenant_id";
            insert(dice, &key, tenant, take_over)
        }
        1 => {
            let again = insert(dice, &key, tenant, "DO NOTHING");
            format!("DELETE FROM api_keys WHERE key_prefix = '{key}'; {again}")
        }
        2 => format!("DELETE FROM api_keys WHERE key_prefix = '{key}'"),
        3 => on_key(format!("revoked_at = {}", instant(dice))),
        4 => on_key(format!("expires_at = {}", instant(dice))),
        5 => on_key(format!("hashed_key = '{}'", hash(dice))),
        6 => on_key(format!("key_prefix = '{}'", prefix(dice))),
        7 => on_key(format!("tenant_id = '{tenant}'")),
        8 => on_key(format!("id = '{}'", id(dice))),
        9 => on_key(format!("last_used_at = {}, name = '{key}'", instant(dice))),
        10 => on_keys_of(format!("last_used_at = {}", instant(dice))),
        11 => on_keys_of(format!("revoked_at = {}, expires_at = {}", instant(dice), instant(dice))),
        12..=14 => {
            let (schema, status) = (schema(dice), status(dice));
            format!(
                "INSERT INTO tenants (id, name, db_schema_name, status, created_at)
                 VALUES ('{tenant}', 'New', '{schema}', '{status}', '2026-01-01T00:00:00Z') ON CONFLICT DO NOTHING"
            )
        }
        15 => on_tenant(format!("status = '{}'", status(dice))),
        16 => on_tenant(format!("name = 'Name {}', db_schema_name = '{}'", dice.below(9), schema(dice))),
        // Its keys are deleted, too, or stay without a tenant in the role of a replica.
        17 if dice.one_in(2) => format!("DELETE FROM tenants WHERE id = '{tenant}'"),
        18 => on_tenant(format!("id = '{}'", tenant_id(dice))),
        // A mark, as `key revoke --wait` writes it.
        19 => "INSERT INTO tenantgate_change (key_prefix) VALUES ('')".to_owned(),
        20 | 21 => on_key(format!("scopes = {}", text(dice, &SCOPES))),
        22 | 23 => on_key(format!("networks = {}", text(dice, &NETWORKS))),
        24 => on_key(format!("disabled_at = {}", finite(dice))),
        25 => on_key(format!("not_before = {}", finite(dice))),
        26 | 27 => on_key(format!("plan = {}", plan_of(dice))),
        28 => on_tenant(format!("plan = {}", plan_of(dice))),
        29..=31 => plan(dice),
        32..=35 => rule(dice),
        _ => insert(dice, &key, tenant, "DO NOTHING"),
    }
}

/// Values of columns, of which the last one is damaged: the checks of the database do not reject it.
const SCOPES: [&str; 6] = ["", "a", "a.b", "a.* b", "b c:*", "a.*.b"];
const NETWORKS: [&str; 5] =
    ["10.0.0.0/8", "10.1.0.0/16 2001:db8::/32", "::/0", "192.0.2.7 10.1.2.0/24", "10.0.0.1/8"];
const NEEDS: [&str; 5] = ["a", "a.b", "b | a.c", "c:d b", "a |"];
const HOSTS: [&str; 5] = ["*", "*.example.com", "api.example.com", "*.api.example.com", "a..b"];
const METHODS: [&str; 4] = ["*", "GET", "POST", "TOOLONGTOBEAMETHODOFANYREQUESTATALL"];
const PATHS: [&str; 8] = ["/**", "/v1/**", "/v1/{x}", "/v1/{y}/b", "/v1/a", "/v1/a/b", "/", "/v1//a"];

/// Returns one of the values, or NULL; the damaged last one seldom.
fn text(dice: &mut Dice, values: &[&str]) -> String {
    if dice.one_in(2) { "NULL".to_owned() } else { format!("'{}'", value(dice, values)) }
}

fn value<'v>(dice: &mut Dice, values: &[&'v str]) -> &'v str {
    let (damaged, sound) = values.split_last().expect("values");
    if dice.one_in(25) {
        damaged
    } else {
        sound[usize::try_from(dice.below(sound.len() as u64)).expect("few")]
    }
}

fn finite(dice: &mut Dice) -> String {
    let year = 20 + dice.below(20);
    if dice.one_in(3) { format!("'20{year:02}-06-30T00:00:00Z'") } else { "NULL".to_owned() }
}

/// An expression for a plan that exists, or NULL.
fn plan_of(dice: &mut Dice) -> String {
    format!("(SELECT name FROM tenantgate_plan WHERE name = 'plan_{}')", dice.below(PLANS))
}

const PLANS: u64 = 4;
const RULES: u64 = 10;

fn plan(dice: &mut Dice) -> String {
    let (name, limit) = (format!("plan_{}", dice.below(PLANS)), dice.below(1_000));
    let unused = |table: &str| format!("NOT EXISTS (SELECT 1 FROM {table} WHERE plan = '{name}')");
    match dice.below(4) {
        0 => format!(
            "DELETE FROM tenantgate_plan WHERE name = '{name}' AND {} AND {}",
            unused("api_keys"),
            unused("tenants")
        ),
        1 => format!("UPDATE tenantgate_plan SET total_limit = '{limit}/DAY' WHERE name = '{name}'"),
        _ => format!(
            "INSERT INTO tenantgate_plan (name, request_limit) VALUES ('{name}', '{limit}/MINUTE') ON CONFLICT DO NOTHING"
        ),
    }
}

fn rule(dice: &mut Dice) -> String {
    let id = Uuid::from_u128(dice.below(RULES).into());
    let on_rule = |set: String| format!("UPDATE tenantgate_route SET {set} WHERE id = '{id}'");
    match dice.below(8) {
        0 | 1 => format!("DELETE FROM tenantgate_route WHERE id = '{id}'"),
        2 => on_rule(format!("path = '{}'", value(dice, &PATHS))),
        3 => on_rule(format!("host = '{}', shadow = NOT shadow", value(dice, &HOSTS))),
        4 => on_rule(format!("mode = 'optional', scopes = {}", text(dice, &NEEDS))),
        _ => {
            let (host, method, path) = (value(dice, &HOSTS), value(dice, &METHODS), value(dice, &PATHS));
            let public = dice.one_in(5);
            let (mode, needs) =
                if public { ("public", "NULL".to_owned()) } else { ("required", text(dice, &NEEDS)) };
            let shadow = dice.one_in(2);
            format!(
                "INSERT INTO tenantgate_route (id, name, host, method, path, mode, scopes, shadow)
                 VALUES ('{id}', 'rule {id}', '{host}', '{method}', '{path}', '{mode}', {needs}, {shadow})
                 ON CONFLICT DO NOTHING"
            )
        }
    }
}

fn insert(dice: &mut Dice, key: &str, tenant: Uuid, on_conflict: &str) -> String {
    let (id, hash, expires_at) = (id(dice), hash(dice), instant(dice));
    let (scopes, networks, not_before) = (text(dice, &SCOPES), text(dice, &NETWORKS), finite(dice));
    format!(
        "INSERT INTO api_keys (id, hashed_key, key_prefix, tenant_id, expires_at, scopes, networks, not_before)
         SELECT '{id}', '{hash}', '{key}', '{tenant}', {expires_at}, {scopes}, {networks}, {not_before}
         WHERE EXISTS (SELECT 1 FROM tenants WHERE id = '{tenant}') ON CONFLICT {on_conflict}"
    )
}

fn prefix(dice: &mut Dice) -> String {
    format!("llmk_model{}", dice.below(PREFIXES))
}

fn tenant_id(dice: &mut Dice) -> Uuid {
    Uuid::from_u128(dice.below(TENANTS).into())
}

fn id(dice: &mut Dice) -> Uuid {
    Uuid::from_u64_pair(dice.number(), dice.number())
}

/// Text with the format of bcrypt, sometimes invalid.
fn hash(dice: &mut Dice) -> String {
    let (a, b, c) = (dice.number(), dice.number(), dice.number());
    if dice.one_in(10) {
        // A prefix that another key may have, which the constraint rejects.
        return format!("$2b$04${:0>53}", a % 30);
    }
    if dice.one_in(20) { format!("damaged {a:x}") } else { format!("$2b$04${a:016x}{b:016x}{c:016x}lorem") }
}

/// A schema name, sometimes invalid.
fn schema(dice: &mut Dice) -> String {
    let n = dice.below(20);
    if n == 0 { "Damaged".to_owned() } else { format!("schema_{n}") }
}

fn status(dice: &mut Dice) -> &'static str {
    ["active", "suspended", "pending_provisioning", "deleted"]
        [usize::from(dice.number().to_le_bytes()[0] & 3)]
}

fn instant(dice: &mut Dice) -> String {
    match dice.below(5) {
        0 | 1 => "NULL".to_owned(),
        2 => "'infinity'".to_owned(),
        _ => format!("'20{:02}-01-31T10:00:{:02}Z'", 20 + dice.below(30), dice.below(60)),
    }
}

/// Prunes every change as soon as allowed.
pub(super) async fn prune(url: String, mut dice: Dice, stop: Stop) -> Tally {
    let mut session = connect(&url).await;
    let mut tally = Tally::default();
    while stop.not_yet() {
        sleep(dice.millis(5, 120)).await;
        let sql = "SELECT tenantgate_prune(interval '0')";
        let rows: i64 = sqlx::query_scalar(sql).fetch_one(&mut session).await.expect("it prunes");
        tally.pruned += u64::try_from(rows).expect("a count");
    }
    tally
}

/// Keeps transactions open in a separate database, which delays everything that waits for the oldest transaction.
pub(super) async fn linger(url: String, mut dice: Dice, stop: Stop) -> Tally {
    let mut session = connect(&url).await;
    while stop.not_yet() {
        run(&mut session, "BEGIN; SELECT pg_current_xact_id()").await.expect("it begins");
        sleep(dice.millis(50, 700)).await;
        run(&mut session, "COMMIT").await.expect("it ends");
        sleep(dice.millis(0, 200)).await;
    }
    Tally::default()
}

/// Checks repeatedly that the history equals the tables, see [`super::history::LIES`].
pub(super) async fn audit(url: String, mut dice: Dice, stop: Stop) -> Tally {
    let mut session = connect(&url).await;
    let mut tally = Tally::default();
    while stop.not_yet() {
        let lies: i64 =
            sqlx::query_scalar(super::history::LIES).fetch_one(&mut session).await.expect("an answer");
        assert_eq!(lies, 0, "rows that differ between the history and the tables");
        tally.audits += 1;
        sleep(dice.millis(20, 120)).await;
    }
    tally
}
