//! Lists keys in the order of their creation, page by page.
//!
//! The query of a page reads a bounded number of rows from an index, and returns those that match the filter. If few
//! rows match, the page ends before it is full, and the next page begins where this one stopped. Every page therefore
//! takes milliseconds, whatever the filter is, and all pages together show every key once.

use super::bulk::{stored_keys, wanted};
use super::connection::{Link, query};
use super::rows::stored_key_of;
use super::value::Conditions;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::permission::Reach;
use crate::record::KeyState;
use crate::store::{KeyFilter, KeyPage, KeyPlace, StoreError};
use crate::tenant::TenantId;

/// The number of rows that a page reads at most: a few milliseconds in Postgres.
const WALK: i64 = 5_000;

/// Builds the conditions that select the rows to read. Each of them is the leading part of an index.
fn base(link: &Link<'_>, filter: &KeyFilter, after: Option<&KeyPlace>) -> Conditions {
    let instant = link.dialect().instant;
    let state = match filter.state {
        Some(KeyState::Revoked) => Some("revoked_at IS NOT NULL"),
        Some(KeyState::Disabled) => Some("disabled_at IS NOT NULL"),
        _ => None,
    };
    let base = Conditions::default().and("tenant_id = ?", filter.tenant);
    let base = if let Some(state) = state { base.always(state) } else { base };
    let Some(after) = after else { return base };
    base.and_two(&format!("(created_at, id) > ({instant}, ?)"), &after.created_at, after.id)
}

/// Returns the first `page` keys of these tenants that match a filter, after `after`.
pub(super) async fn page(
    link: &mut Link<'_>,
    filter: &KeyFilter,
    reach: &Reach,
    after: Option<&KeyPlace>,
    page: usize,
) -> Result<KeyPage, StoreError> {
    let (base_sql, all) = {
        let base = base(link, filter, after);
        (base.sql(), conditions_of(link, base, filter, reach))
    };
    let last = all.next();
    let place = link.dialect().place;
    let walked = format!("SELECT * FROM api_keys WHERE {base_sql} ORDER BY created_at, id LIMIT {WALK}");
    let found = format!(
        "id IN (SELECT id FROM ({walked}) AS walked WHERE {} ORDER BY created_at, id LIMIT ${last})",
        all.sql()
    );
    let sql = stored_keys(&format!(", {place} AS place"), &found, "k.created_at, k.id");
    let one_more = i64::try_from(page).unwrap_or(i64::MAX).saturating_add(1);
    let rows = query(sql).bind_all(all).bind(one_more).fetch_all(link).await?;
    let mut keys = Vec::with_capacity(rows.len());
    for row in &rows {
        keys.push((stored_key_of(row)?, row.get::<String>("place")?));
    }
    let next = if keys.len() > page {
        keys.truncate(page);
        keys.last().map(|(key, at)| KeyPlace { created_at: at.clone(), id: key.details.id })
    } else {
        end_of_walk(link, filter, after).await?
    };
    Ok(KeyPage { keys: keys.into_iter().map(|(key, _)| key).collect(), next })
}

/// Counts the keys of these tenants that match a filter.
pub(super) async fn count(link: &mut Link<'_>, filter: &KeyFilter, reach: &Reach) -> Result<i64, StoreError> {
    let all = conditions_of(link, Conditions::default(), filter, reach);
    let sql = format!("SELECT count(*) AS keys FROM api_keys WHERE {}", all.sql());
    query(sql).bind_all(all).fetch_one(link).await?.get("keys")
}

/// Builds all conditions, with parameters numbered after those of `base`.
fn conditions_of(link: &Link<'_>, base: Conditions, filter: &KeyFilter, reach: &Reach) -> Conditions {
    // This repeats conditions of `base`, which costs nothing.
    let all = wanted(base, link.dialect(), filter);
    match reach {
        Reach::All => all,
        Reach::Some(tenants) => {
            let tenants: Vec<_> = tenants.iter().map(|tenant| tenant.0).collect();
            all.and_any("tenant_id", "", link.dialect(), tenants)
        }
    }
}

/// Returns the last row that the page read, if there may be rows after it.
async fn end_of_walk(
    link: &mut Link<'_>,
    filter: &KeyFilter,
    after: Option<&KeyPlace>,
) -> Result<Option<KeyPlace>, StoreError> {
    let base = base(link, filter, after);
    let sql = format!(
        "SELECT id, {} AS place FROM api_keys WHERE {} ORDER BY created_at, id LIMIT 1 OFFSET {}",
        link.dialect().place,
        base.sql(),
        WALK - 1
    );
    let row = query(sql).bind_all(base).fetch_optional(link).await?;
    row.map(|row| Ok(KeyPlace { created_at: row.get("place")?, id: KeyId(row.id("id", "api_keys")?) }))
        .transpose()
}

/// Returns the number of keys of a tenant that are not revoked and were used since an instant.
pub(super) async fn count_used(
    link: &mut Link<'_>,
    tenant: TenantId,
    since: Timestamp,
) -> Result<i64, StoreError> {
    let time = |column: &str| link.dialect().time.replace('?', column);
    let sql = format!(
        "SELECT count(*) AS used FROM api_keys
         WHERE tenant_id = $1 AND revoked_at IS NULL AND {} >= {}",
        time("last_used_at"),
        time("$2")
    );
    query(sql).bind(tenant).bind(since).fetch_one(link).await?.get("used")
}
