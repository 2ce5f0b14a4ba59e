//! Reads the counts of usage.

use uuid::Uuid;

use super::connection::{Link, query};
use super::row::SqlRow;
use super::value::Conditions;
use crate::key::KeyId;
use crate::permission::Reach;
use crate::store::{StoreError, UsageBy, UsageFilter, UsageRow};
use crate::tenant::TenantId;

/// Returns the sums of the counts that match a filter.
pub(super) async fn rows(link: &mut Link<'_>, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError> {
    let dialect = link.dialect();
    // The selected columns, those of GROUP BY, and the column that orders pages.
    let (columns, group, place) = match filter.by {
        UsageBy::Day => (dialect.usage_day, "u.day", "u.day"),
        UsageBy::Key => {
            ("u.key_id, k.key_prefix, k.tenant_id", "u.key_id, k.key_prefix, k.tenant_id", "u.key_id")
        }
        UsageBy::Reason => ("u.reason", "u.reason", "u.reason"),
    };
    let join = match (filter.by, filter.busiest) {
        (UsageBy::Key, None) => "LEFT JOIN api_keys k ON k.id = u.key_id",
        (UsageBy::Key, Some(_)) => "JOIN api_keys k ON k.id = u.key_id",
        _ => "",
    };
    let wanted = wanted(link, filter, place);
    let order = match (filter.by, &filter.part) {
        (UsageBy::Key | UsageBy::Reason, None) => format!("total DESC, {place}"),
        _ => place.to_owned(),
    };
    let most = filter.part.as_ref().map(|part| part.rows).or(filter.busiest);
    let limit = most.map_or_else(String::new, |rows| format!("LIMIT {rows}"));
    let sql = format!(
        "SELECT {columns}, CAST(sum(u.requests) AS bigint) AS total FROM tenantgate_usage u {join}
         WHERE {} GROUP BY {group} ORDER BY {order} {limit}",
        wanted.sql()
    );
    query(sql).bind_all(wanted).fetch_all(link).await?.iter().map(|row| usage_of(row, filter.by)).collect()
}

fn wanted(link: &Link<'_>, filter: &UsageFilter, place: &str) -> Conditions {
    let day = |at: &str| link.dialect().day.replace("$1", at);
    let wanted = Conditions::default()
        .and(&format!("u.day >= {}", day("?")), Some(filter.from))
        .and(&format!("u.day <= {}", day("?")), Some(filter.to))
        .and("u.key_id = ?", filter.key)
        .and("u.key_id IN (SELECT id FROM api_keys WHERE tenant_id = ?)", filter.tenant);
    let wanted = match &filter.reach {
        Reach::All => wanted,
        Reach::Some(tenants) => {
            let tenants = tenants.iter().map(|tenant| tenant.0).collect();
            wanted.and_any(
                "u.key_id IN (SELECT id FROM api_keys WHERE tenant_id",
                ")",
                link.dialect(),
                tenants,
            )
        }
    };
    let after = filter.part.as_ref().and_then(|part| part.after.as_deref());
    match filter.by {
        UsageBy::Day => wanted.and(&format!("{place} > {}", link.dialect().a_day), after),
        UsageBy::Reason => wanted.and(&format!("{place} > ?"), after),
        UsageBy::Key => wanted.and(&format!("{place} > ?"), after.and_then(|id| Uuid::parse_str(id).ok())),
    }
}

fn usage_of(row: &SqlRow, by: UsageBy) -> Result<UsageRow, StoreError> {
    let requests = u64::try_from(row.get::<i64>("total")?).unwrap_or(0);
    let sum = UsageRow { requests, ..UsageRow::default() };
    Ok(match by {
        UsageBy::Day => UsageRow { day: Some(row.get("day")?), ..sum },
        UsageBy::Reason => UsageRow { reason: Some(row.get("reason")?), ..sum },
        UsageBy::Key => UsageRow {
            key: Some(KeyId(row.id("key_id", "tenantgate_usage")?)),
            key_prefix: row.get("key_prefix")?,
            tenant: row.maybe_id("tenant_id")?.map(TenantId),
            ..sum
        },
    })
}
