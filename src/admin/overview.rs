//! What people see first: how many keys need attention, what became of requests, and how far the servers are.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Admin, AdminError};
use crate::audit::Entry;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::permission::Reach;
use crate::store::{
    AuditFilter, CountedAt, CountsOf, DayCount, KeyCounts, KeyFilter, ReplicaState, StoredKey,
};
use crate::tenant::{Tenant, TenantId};

/// What expires within this expires soon.
pub const SOON: Duration = Duration::from_hours(30 * 24);

/// What was not used within this is unused.
pub const LONG: Duration = Duration::from_hours(90 * 24);

const DAY: i64 = 86_400_000_000;

impl Admin {
    /// Counts the keys that a reach covers.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn key_counts(&self, reach: &Reach) -> Result<KeyCounts, AdminError> {
        let now = self.now();
        let at = CountedAt { now, expires_before: now.after(SOON), unused_since: now.before(LONG) };
        Ok(self.store.key_counts(some(reach), at).await?)
    }

    /// The servers that announced themselves, and how far each of them is.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn replicas(&self) -> Result<Vec<ReplicaState>, AdminError> {
        Ok(self.store.replicas().await?)
    }

    /// Requests that a reach covers, by day and reason, of the last `days` days (UTC) with today.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn requests_by_day(&self, reach: &Reach, days: u32) -> Result<Vec<DayCount>, AdminError> {
        let of = some(reach).map_or(CountsOf::All, CountsOf::Tenants);
        Ok(self.store.counts(of, &last_days(self.now(), days)).await?)
    }

    /// Requests with the keys of one tenant, likewise.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn requests_of_tenant(&self, tenant: TenantId, days: u32) -> Result<Vec<DayCount>, AdminError> {
        let of = BTreeSet::from([tenant]);
        Ok(self.store.counts(CountsOf::Tenants(&of), &last_days(self.now(), days)).await?)
    }

    /// Requests with one key, likewise.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn requests_of_key(&self, key: KeyId, days: u32) -> Result<Vec<DayCount>, AdminError> {
        Ok(self.store.counts(CountsOf::Key(key), &last_days(self.now(), days)).await?)
    }

    /// Rows of the audit log, the newest first: `size` of them after as many times `size` as `pages` says.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn newest_audit(
        &self,
        filter: &AuditFilter,
        pages: i64,
        size: i64,
    ) -> Result<Vec<Entry>, AdminError> {
        let newer = pages.saturating_mul(size);
        let after = self.store.audit_before_newest(filter, newer.saturating_add(size)).await?;
        let mut entries = self.store.audit_entries(filter, after, newer.saturating_add(size)).await?;
        let shown = entries.len().saturating_sub(usize::try_from(newer).unwrap_or(usize::MAX));
        entries.truncate(shown);
        entries.reverse();
        Ok(entries)
    }

    /// The first `size` keys of a filter after `after` that a reach covers, by id.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn keys_after(
        &self,
        filter: &KeyFilter,
        reach: &Reach,
        after: Option<KeyId>,
        size: usize,
    ) -> Result<Vec<StoredKey>, AdminError> {
        let page = i64::try_from(size).unwrap_or(i64::MAX);
        let tenants = match (filter.tenant, some(reach)) {
            (Some(tenant), Some(ours)) if !ours.contains(&tenant) => return Ok(Vec::new()),
            (None, Some(ours)) => ours,
            _ => return Ok(self.store.keys_page(filter, after, page).await?),
        };
        // The page of each tenant, of which the first together are the page of all.
        let mut keys = Vec::new();
        for tenant in tenants {
            let filter = KeyFilter { tenant: Some(*tenant), ..filter.clone() };
            keys.extend(self.store.keys_page(&filter, after, page).await?);
        }
        keys.sort_by_key(|key| key.details.id);
        keys.truncate(size);
        Ok(keys)
    }

    /// The key whose id or prefix is `reference`; `None` if a reach does not cover it or it does not exist.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn visible_key(
        &self,
        reference: &str,
        reach: &Reach,
    ) -> Result<Option<(StoredKey, Tenant)>, AdminError> {
        let keys = self.store.keys_named(&[reference.to_owned()]).await?;
        let named =
            |key: &StoredKey| key.details.prefix == reference || key.details.id.0.to_string() == reference;
        let Some(key) = keys.into_iter().find(named) else { return Ok(None) };
        Ok(self.visible_tenant_id(key.details.tenant_id, reach).await?.map(|tenant| (key, tenant)))
    }

    /// The tenant whose id or schema is `reference`; `None` if a reach does not cover it or it does not exist.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn visible_tenant(&self, reference: &str, reach: &Reach) -> Result<Option<Tenant>, AdminError> {
        let named = |tenant: &Tenant| tenant.schema == reference || tenant.id.0.to_string() == reference;
        let tenants = self.store.find_tenants(reference).await?;
        Ok(tenants.into_iter().find(|tenant| named(tenant) && reach.has(tenant.id)))
    }

    async fn visible_tenant_id(&self, id: TenantId, reach: &Reach) -> Result<Option<Tenant>, AdminError> {
        self.visible_tenant(&id.0.to_string(), reach).await
    }
}

fn some(reach: &Reach) -> Option<&BTreeSet<TenantId>> {
    match reach {
        Reach::All => None,
        Reach::Some(tenants) => Some(tenants),
    }
}

/// The last days, as in `2026-01-31`, today last.
fn last_days(now: Timestamp, days: u32) -> Vec<String> {
    let day = |ago: i64| Timestamp(now.0.saturating_sub(ago * DAY)).to_string();
    (0..i64::from(days)).rev().map(|ago| day(ago).get(..10).unwrap_or_default().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_days_end_with_today() {
        let now = Timestamp::parse("2026-03-01T00:00:00Z").unwrap();
        assert_eq!(last_days(now, 2), ["2026-02-28", "2026-03-01"]);
        assert_eq!(last_days(now, 400).len(), 400);
    }
}
