//! Reads keys, audit entries and counts for callers that may see some or all tenants.

use std::collections::BTreeSet;
use std::time::Duration;

use super::tenants::may_name;
use super::{Admin, AdminError};
use crate::audit::AuditEntry;
use crate::permission::Reach;
use crate::record::{KeyDetails, KeyState};
use crate::store::{AuditFilter, KeyFilter, KeyPage, KeyPlace, TenantFilter, TenantPage, TenantPlace};
use crate::tenant::Tenant;

impl Admin {
    /// Returns at most `page` keys of the tenants in `reach` that match the filter, in the order of creation, after a
    /// position. If matches are rare, the page may be shorter although more keys follow.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn keys_by_creation(
        &self,
        filter: &KeyFilter,
        reach: &Reach,
        after: Option<&KeyPlace>,
        page: usize,
    ) -> Result<KeyPage, AdminError> {
        Ok(self.store.keys_by_creation(filter, reach, after, page).await?)
    }

    /// Tenants that the caller sees and a filter wants, after a place, in the order of creation: at most `page`.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn tenants_by_creation(
        &self,
        filter: &TenantFilter,
        after: Option<&TenantPlace>,
        page: usize,
    ) -> Result<TenantPage, AdminError> {
        if [&filter.name, &filter.search].into_iter().flatten().any(|text| !may_name(text)) {
            // No tenant has such a text, and Postgres takes no NUL.
            return Ok(TenantPage::default());
        }
        Ok(self.store.tenants_by_creation(filter, &self.creator.authority.reach, after, page).await?)
    }

    /// Returns the tenants of these keys that the caller sees, in no order.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn tenants_of(&self, keys: &[KeyDetails]) -> Result<Vec<Tenant>, AdminError> {
        let ids: BTreeSet<_> = keys.iter().map(|key| key.tenant_id.0.to_string()).collect();
        let mut tenants = self.store.tenants_named(&ids.into_iter().collect::<Vec<_>>()).await?;
        tenants.retain(|tenant| self.sees(tenant.id));
        Ok(tenants)
    }

    /// Returns the number of keys of a tenant that are accepted now, and of those that are not revoked and were used in
    /// the last 24 hours.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn impact(&self, tenant: &Tenant) -> Result<(i64, i64), AdminError> {
        let now = self.now();
        let live =
            KeyFilter { tenant: Some(tenant.id), state: Some(KeyState::Active), now, ..KeyFilter::default() };
        let live = self.store.count_keys(&live, &Reach::All).await?;
        let used = self.store.count_used(tenant.id, now.before(Duration::from_hours(24))).await?;
        Ok((live, used))
    }

    /// Returns at most `rows` entries of the audit log after the row number `after`, oldest first.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn audit_part(
        &self,
        filter: &AuditFilter,
        after: i64,
        rows: usize,
    ) -> Result<Vec<AuditEntry>, AdminError> {
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        Ok(self.store.audit_entries(filter, after, rows).await?)
    }

    /// Returns whether the database is a file of this program (SQLite).
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.store.embedded()
    }
}
