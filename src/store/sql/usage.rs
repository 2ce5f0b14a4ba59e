//! Reads the counts of usage.

use super::connection::{Link, ask};
use super::row::Row;
use crate::key::KeyId;
use crate::store::{StoreError, UsageBy, UsageFilter, UsageRow};
use crate::tenant::TenantId;

/// The counts that a filter wants, added up.
pub(super) async fn rows(link: &mut Link<'_>, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError> {
    let dialect = link.dialect();
    let (columns, group, order) = match filter.by {
        UsageBy::Day => (dialect.usage_day, "u.day", "u.day"),
        UsageBy::Key => (
            "u.key_id, k.key_prefix, k.tenant_id",
            "u.key_id, k.key_prefix, k.tenant_id",
            "total DESC, u.key_id",
        ),
        UsageBy::Reason => ("u.reason", "u.reason", "total DESC, u.reason"),
    };
    let join = if filter.by == UsageBy::Key { "LEFT JOIN api_keys k ON k.id = u.key_id" } else { "" };
    let of_tenant =
        filter.tenant.map_or("", |_| "AND u.key_id IN (SELECT id FROM api_keys WHERE tenant_id = $3)");
    let (from, to) = (dialect.day, dialect.day.replace("$1", "$2"));
    let sql = format!(
        "SELECT {columns}, CAST(sum(u.requests) AS bigint) AS total FROM tenantgate_usage u {join}
         WHERE u.day >= {from} AND u.day <= {to} {of_tenant} GROUP BY {group} ORDER BY {order}"
    );
    let query = ask(sql).bind(filter.from).bind(filter.to);
    let query = if let Some(tenant) = filter.tenant { query.bind(tenant) } else { query };
    query.all(link).await?.iter().map(|row| usage_of(row, filter.by)).collect()
}

fn usage_of(row: &Row, by: UsageBy) -> Result<UsageRow, StoreError> {
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
