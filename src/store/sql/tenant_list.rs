//! Tenants in the order of their creation, a page at a time.

use super::connection::{Link, query};
use super::rows::{TENANT, tenant_of};
use super::value::Conditions;
use crate::permission::Reach;
use crate::store::{StoreError, TenantFilter, TenantPage, TenantPlace};

/// Returns the first `page` tenants after `after` that match a filter and are in this reach.
pub(super) async fn page(
    link: &mut Link<'_>,
    filter: &TenantFilter,
    reach: &Reach,
    after: Option<&TenantPlace>,
    page: usize,
) -> Result<TenantPage, StoreError> {
    let (direction, beyond) = if filter.newest_first { ("DESC", "<") } else { ("ASC", ">") };
    let wanted = wanted(link, filter, reach, after, beyond);
    let sql = format!(
        "SELECT {TENANT}, {} AS place FROM tenants WHERE {}
         ORDER BY tenants.created_at {direction}, tenants.id {direction} LIMIT ${}",
        link.dialect().place,
        wanted.sql(),
        wanted.next()
    );
    let one_more = i64::try_from(page).unwrap_or(i64::MAX).saturating_add(1);
    let mut rows = query(sql).bind_all(wanted).bind(one_more).fetch_all(link).await?;
    let more = rows.len() > page;
    rows.truncate(page);
    let tenants: Vec<_> = rows.iter().map(tenant_of).collect::<Result<_, _>>()?;
    let next = match (rows.last(), tenants.last()) {
        (Some(row), Some(last)) if more => Some(TenantPlace { created_at: row.get("place")?, id: last.id }),
        _ => None,
    };
    Ok(TenantPage { tenants, next })
}

fn wanted(
    link: &Link<'_>,
    filter: &TenantFilter,
    reach: &Reach,
    after: Option<&TenantPlace>,
    beyond: &str,
) -> Conditions {
    let (instant, position) = (link.dialect().instant, link.dialect().position);
    let found = format!(
        "({position}(lower(name), lower(?)) > 0 OR {position}(db_schema_name, lower(?)) > 0 OR CAST(id AS text) = lower(?))"
    );
    let wanted =
        Conditions::default().and("name = ?", filter.name.as_deref()).and(&found, filter.search.as_deref());
    let wanted = match after {
        None => wanted,
        Some(after) => {
            let behind = format!("(created_at, id) {beyond} ({instant}, ?)");
            wanted.and_two(&behind, &after.created_at, after.id)
        }
    };
    match reach {
        Reach::All => wanted,
        Reach::Some(tenants) => {
            let tenants: Vec<_> = tenants.iter().map(|tenant| tenant.0).collect();
            wanted.and_any("id", "", link.dialect(), tenants)
        }
    }
}
