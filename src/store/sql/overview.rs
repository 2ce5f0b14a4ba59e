//! The queries of the overview on the management page.

use std::collections::BTreeSet;

use async_trait::async_trait;
use uuid::Uuid;

use super::connection::query;
use super::row::SqlRow;
use super::{SqlStore, acquire};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::store::{
    CountedAt, CountsOf, DayCount, KeyCounts, Overview, ReplicaState, StoreError, StoredRefusal,
};
use crate::tenant::TenantId;

/// Formats ids as a list in SQL. UUIDs contain nothing that needs escaping.
fn list(tenants: &BTreeSet<TenantId>) -> String {
    let ids: Vec<_> = tenants.iter().map(|tenant| format!("'{}'", tenant.0)).collect();
    // SQL allows no empty list, and NULL equals nothing.
    if ids.is_empty() { "NULL".into() } else { ids.join(", ") }
}

/// Formats days as a list in SQL. Texts that are not a day are omitted, so nothing needs escaping.
fn days_list(days: &[String]) -> String {
    let is_day = |day: &&String| day.len() == 10 && day.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    let days: Vec<_> = days.iter().filter(is_day).map(|day| format!("'{day}'")).collect();
    if days.is_empty() { "NULL".into() } else { days.join(", ") }
}

fn count(row: &SqlRow, column: &str) -> Result<u64, StoreError> {
    Ok(u64::try_from(row.get::<i64>(column)?).unwrap_or(0))
}

#[async_trait]
impl<S: SqlStore> Overview for S {
    async fn key_counts(
        &self,
        tenants: Option<&BTreeSet<TenantId>>,
        at: CountedAt,
    ) -> Result<KeyCounts, StoreError> {
        let mut connection = acquire(self).await?;
        let link = &mut connection.link();
        let time = |what: &str| link.dialect().time.replace('?', what);
        let (now, soon, long_ago) = (time("$1"), time("$2"), time("$3"));
        let (expires, begins) = (time("expires_at"), time("not_before"));
        let (used, made) = (time("last_used_at"), time("created_at"));
        let of = tenants.map_or("true".into(), |tenants| format!("tenant_id IN ({})", list(tenants)));
        let sql = format!(
            "SELECT count(*) AS live, count(*) FILTER (WHERE {expires} < {soon}) AS expiring,
                    count(*) FILTER (WHERE coalesce({used}, {made}) < {long_ago}) AS unused
             FROM api_keys WHERE {of} AND revoked_at IS NULL AND disabled_at IS NULL
               AND (expires_at IS NULL OR {expires} IS NULL OR {expires} > {now})
               AND (not_before IS NULL OR {begins} <= {now})"
        );
        let row =
            query(sql).bind(at.now).bind(at.expires_before).bind(at.unused_since).fetch_one(link).await?;
        Ok(KeyCounts {
            live: count(&row, "live")?,
            expiring: count(&row, "expiring")?,
            unused: count(&row, "unused")?,
        })
    }

    async fn servers(&self) -> Result<Vec<ReplicaState>, StoreError> {
        let mut connection = acquire(self).await?;
        let link = &mut connection.link();
        let sql = format!(
            "SELECT name, seen_at, serves_until, (SELECT min(c.at) FROM tenantgate_change c WHERE {}) AS behind_since
             FROM tenantgate_replica r ORDER BY name",
            link.dialect().unapplied
        );
        let state = |row: &SqlRow| {
            Ok(ReplicaState {
                name: row.get("name")?,
                seen_at: row.instant("seen_at")?.unwrap_or(Timestamp::MIN),
                serves_until: row.instant("serves_until")?.unwrap_or(Timestamp::MIN),
                behind_since: row.instant("behind_since")?,
            })
        };
        query(sql).fetch_all(link).await?.iter().map(state).collect()
    }

    async fn refusal(&self, decision_id: Uuid) -> Result<Option<StoredRefusal>, StoreError> {
        let mut connection = acquire(self).await?;
        let sql = "SELECT at, reason, key_id FROM tenantgate_refusal WHERE decision_id = $1";
        let row = query(sql).bind(decision_id).fetch_optional(&mut connection.link()).await?;
        let refusal = |row: SqlRow| {
            Ok(StoredRefusal {
                at: row.instant("at")?.unwrap_or(Timestamp::MIN),
                reason: row.get("reason")?,
                key: KeyId(row.id("key_id", "tenantgate_refusal")?),
            })
        };
        row.map(refusal).transpose()
    }

    async fn counts(&self, of: CountsOf<'_>, days: &[String]) -> Result<Vec<DayCount>, StoreError> {
        let mut connection = acquire(self).await?;
        let link = &mut connection.link();
        let condition = match of {
            CountsOf::All => String::new(),
            CountsOf::Key(key) => format!("AND u.key_id = '{}'", key.0),
            CountsOf::Tenants(tenants) => {
                format!("AND u.key_id IN (SELECT id FROM api_keys WHERE tenant_id IN ({}))", list(tenants))
            }
        };
        // A list of days, not a range: the primary key begins with the day, so the index leads directly to the rows of
        // one key.
        let sql = format!(
            "SELECT {}, u.reason, CAST(sum(u.requests) AS bigint) AS total FROM tenantgate_usage u
             WHERE u.day IN ({}) {condition} GROUP BY u.day, u.reason ORDER BY u.day, u.reason",
            link.dialect().usage_day,
            days_list(days)
        );
        let counted = |row: &SqlRow| {
            Ok(DayCount { day: row.get("day")?, reason: row.get("reason")?, requests: count(row, "total")? })
        };
        query(sql).fetch_all(link).await?.iter().map(counted).collect()
    }
}
