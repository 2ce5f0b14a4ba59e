//! Examines logical replication from and to this database.

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::diagnostics::Finding;
use crate::store::StoreError;
use crate::store::postgres::moved::{self, Subscription};

/// Examines logical replication: whether the rows of a subscriber still arrive, or whether a publication would stop its
/// subscribers.
pub(super) async fn subscription(connection: &mut PgConnection) -> Result<Finding, StoreError> {
    const CHECK: &str = "database.replication";
    let Some(Subscription { name, enabled }) = moved::subscription(&mut *connection).await? else {
        return publications(connection).await;
    };
    if !enabled {
        let what = format!("the subscription {name} is disabled: revocations of its publisher do not arrive");
        let remedy = format!(
            "run ALTER SUBSCRIPTION {name} ENABLE, or promote this database: DROP SUBSCRIPTION {name}"
        );
        return Ok(Finding::bad(CHECK, what, remedy));
    }
    let sql = "SELECT EXISTS (SELECT FROM pg_stat_subscription WHERE subname = $1 AND pid IS NOT NULL),
        (SELECT subsynccommit = 'off' FROM pg_subscription
            WHERE subname = $1 AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database()))";
    let row = sqlx::query(sql).bind(&name).fetch_one(&mut *connection).await?;
    let (alive, lazy): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let absent = if alive { not_replicated(connection, &name).await? } else { None };
    Ok(if let Some(finding) = absent {
        finding
    } else if !alive {
        let what = format!("the subscription {name} has no running worker: revocations do not arrive");
        Finding::bad(CHECK, what, "see the log of Postgres for why it stops, and pg_stat_subscription")
    } else if lazy {
        let what = format!(
            "the subscription {name} commits asynchronously: a crash takes changes back until they are sent again"
        );
        Finding::warn(CHECK, what, format!("run ALTER SUBSCRIPTION {name} SET (synchronous_commit = on)"))
    } else {
        Finding::ok(
            CHECK,
            format!("the subscription {name} writes tenants and keys; commands change them at its publisher"),
        )
    })
}

/// Finds a table whose changes a running subscription does not apply: it is not in the subscription, or its existing
/// rows are not copied.
async fn not_replicated(connection: &mut PgConnection, name: &str) -> Result<Option<Finding>, StoreError> {
    const CHECK: &str = "database.replication";
    let sql = "SELECT t.name, (SELECT r.srsubstate::text FROM pg_subscription_rel r WHERE r.srrelid = to_regclass(t.name)
                               ORDER BY 1 LIMIT 1)
               FROM unnest(ARRAY['api_keys', 'tenants', 'tenantgate_plan', 'tenantgate_route']) AS t (name)";
    for row in sqlx::query(sql).fetch_all(connection).await? {
        let (table, state): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        match state.as_deref() {
            // Ready: applied by the worker of the subscription.
            Some("r") => {}
            Some(_) => {
                let what = format!(
                    "the subscription {name} has not copied the rows of {table} yet: its changes do not arrive"
                );
                let remedy = "wait if pg_stat_progress_copy shows a copy; else see the log of Postgres for why it fails";
                return Ok(Some(Finding::bad(CHECK, what, remedy)));
            }
            None => {
                let what =
                    format!("{table} is not part of the subscription {name}: its changes do not arrive");
                let remedy = format!(
                    "run `tenantgate migrate --publication` on the publisher, then ALTER SUBSCRIPTION {name} REFRESH \
                     PUBLICATION"
                );
                return Ok(Some(Finding::bad(CHECK, what, remedy)));
            }
        }
    }
    Ok(None)
}

/// Finds publications whose subscribers would stop or miss changes.
async fn publications(connection: &mut PgConnection) -> Result<Finding, StoreError> {
    const CHECK: &str = "database.replication";
    // Subscribers do not have the partitions that servers create here every month.
    let sql =
        "SELECT pubname::text FROM pg_publication_tables WHERE tablename ~ '^tenantgate_usage_' LIMIT 1";
    if let Some(row) = sqlx::query(sql).fetch_optional(&mut *connection).await? {
        let name: String = row.try_get(0)?;
        let what = format!("the publication {name} sends usage by partition, which stops its subscribers");
        let remedy = format!("run ALTER PUBLICATION {name} SET (publish_via_partition_root = true)");
        return Ok(Finding::bad(CHECK, what, remedy));
    }
    let sql = "SELECT p.pubname::text, p.pubinsert, p.pubupdate
               FROM pg_publication p JOIN pg_publication_tables t USING (pubname)
               WHERE to_regclass(format('%I.%I', t.schemaname, t.tablename)) IN (to_regclass('tenants'), to_regclass('api_keys'))
                 AND NOT (p.pubinsert AND p.pubupdate AND p.pubdelete) ORDER BY 1 LIMIT 1";
    if let Some(row) = sqlx::query(sql).fetch_optional(&mut *connection).await? {
        let (name, inserts, updates): (String, bool, bool) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let missing = match (inserts, updates) {
            (false, _) => "no new keys",
            (true, false) => "no updates, such as revocations",
            (true, true) => "no deletions",
        };
        let what = format!(
            "the publication {name} sends {missing}: its subscribers allow other keys than this database"
        );
        let remedy =
            format!("run ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')");
        return Ok(Finding::bad(CHECK, what, remedy));
    }
    slots(connection).await
}

/// Finds replication slots whose subscribers do not read the changes that Postgres keeps for them.
async fn slots(connection: &mut PgConnection) -> Result<Finding, StoreError> {
    const CHECK: &str = "database.replication";
    let sql = "SELECT slot_name::text FROM pg_replication_slots
               WHERE database = current_database() AND plugin = 'pgoutput' AND NOT active ORDER BY 1 LIMIT 1";
    Ok(match sqlx::query(sql).fetch_optional(connection).await? {
        None => Finding::ok(CHECK, "tenants and keys are changed here"),
        Some(row) => {
            let slot: String = row.try_get(0)?;
            let what = format!(
                "no subscriber reads the slot {slot}: revocations do not reach it, and Postgres keeps all WAL for it"
            );
            let remedy = format!("start the subscriber, or run SELECT pg_drop_replication_slot('{slot}')");
            Finding::warn(CHECK, what, remedy)
        }
    })
}
