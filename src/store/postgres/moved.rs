//! Handles databases that were restored, replicated or promoted.
//!
//! `tenantgate_identity` identifies the database, wherever it runs. A restore can bring rows of the change log from
//! another cluster, with transaction ids that this cluster has not reached yet. They are ignored, and removed.

use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::store::StoreError;

/// The condition that the change log has rows from a cluster with higher transaction ids.
pub(super) const FOREIGN: &str =
    "EXISTS (SELECT FROM tenantgate_change WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
    OR EXISTS (SELECT FROM tenantgate_change_floor WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))";

/// Removes foreign rows of the log, and returns whether it did. Without the privilege they stay, and are still ignored.
pub(super) async fn remove_foreign_rows(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let sql = format!("SELECT {FOREIGN}");
    let asked = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&mut *connection).await;
    match asked.map_err(StoreError::from) {
        Ok(row) if row.try_get::<bool, _>(0)? => {}
        // The load that follows reports the missing privilege.
        Ok(_) | Err(StoreError::Refused(_)) => return Ok(false),
        Err(error) => return Err(error),
    }
    match sqlx::query("SELECT tenantgate_settle()").execute(connection).await.map_err(StoreError::from) {
        Ok(_) => Ok(true),
        Err(StoreError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes foreign rows, and inserts the required single rows if they are missing. Returns what was wrong.
pub(super) async fn repair(connection: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    let mut mended = Vec::new();
    if remove_foreign_rows(&mut *connection).await? {
        mended.push("the change log held rows of another cluster".to_owned());
    }
    for (sql, what) in [
        ("INSERT INTO tenantgate_identity DEFAULT VALUES ON CONFLICT DO NOTHING", "the identity was missing"),
        (
            "INSERT INTO tenantgate_change_floor DEFAULT VALUES ON CONFLICT DO NOTHING",
            "the floor of the change log was missing",
        ),
    ] {
        let table = sql.split(' ').nth(2).unwrap_or_default();
        let known = format!("SELECT EXISTS (SELECT FROM {table})");
        let row = sqlx::query(sqlx::AssertSqlSafe(known)).fetch_one(&mut *connection).await?;
        if !row.try_get::<bool, _>(0)? {
            sqlx::query(sql).execute(&mut *connection).await?;
            mended.push(what.to_owned());
        }
    }
    Ok(mended)
}

/// Makes every server load everything again.
pub(super) async fn reload(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO tenantgate_change DEFAULT VALUES").execute(&mut *connection).await?;
    sqlx::query("SELECT pg_notify('tenantgate_change', '')").execute(connection).await?;
    Ok(())
}

/// Gives the database a new identity, and returns it.
pub(super) async fn renew_identity(connection: &mut PgConnection) -> Result<Uuid, StoreError> {
    sqlx::query("DELETE FROM tenantgate_replica").execute(&mut *connection).await?;
    let sql = "UPDATE tenantgate_identity SET id = gen_random_uuid(), log = gen_random_uuid(), made_at = now() RETURNING id";
    Ok(sqlx::query(sql).fetch_one(connection).await?.try_get(0)?)
}

/// A subscription that writes tenants and keys into this database.
pub(super) struct Subscription {
    pub(super) name: String,
    /// Whether its worker may run. A disabled one writes again as soon as it is enabled.
    pub(super) enabled: bool,
}

/// Returns the subscription that writes tenants and keys into this database, if there is one.
pub(super) async fn subscription(connection: &mut PgConnection) -> Result<Option<Subscription>, StoreError> {
    let sql = "SELECT s.subname::text, s.subenabled
               FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid
               WHERE r.srrelid IN (to_regclass('tenants'), to_regclass('api_keys')) ORDER BY 2, 1 LIMIT 1";
    let row = sqlx::query(sql).fetch_optional(connection).await?;
    row.map(|row| Ok(Subscription { name: row.try_get(0)?, enabled: row.try_get(1)? })).transpose()
}

/// Rejects a change on a subscriber, because the publisher would undo it or conflict with it.
pub(super) async fn refuse_on_subscriber(connection: &mut PgConnection) -> Result<(), StoreError> {
    match subscription(connection).await? {
        None => Ok(()),
        Some(Subscription { name, enabled: true }) => Err(StoreError::Disallowed(format!(
            "tenants and keys are read-only here: the subscription {name:?} writes them. Run the command on the \
             publisher, or promote this database with DROP SUBSCRIPTION {name}"
        ))),
        Some(Subscription { name, enabled: false }) => Err(StoreError::Disallowed(format!(
            "tenants and keys are read-only here: the subscription {name:?} writes them as soon as it is enabled \
             again. Enable it with ALTER SUBSCRIPTION {name} ENABLE and run the command on the publisher, or promote \
             this database with DROP SUBSCRIPTION {name}"
        ))),
    }
}
