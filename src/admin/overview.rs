//! Data of the overview page: keys that need attention, requests by day, and the state of the servers.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::{Admin, AdminError};
use crate::audit::AuditEntry;
use crate::clock::{MICROS_PER_DAY, Timestamp};
use crate::key::KeyId;
use crate::permission::Reach;
use crate::record::KeyDetails;
use crate::store::{AuditFilter, CountedAt, CountsOf, DayCount, KeyCounts, ReplicaState};
use crate::tenant::TenantId;

/// A key that expires within this time is counted as expiring soon.
pub const SOON: Duration = Duration::from_hours(30 * 24);

/// A key that was not used for this time is counted as unused.
pub const LONG: Duration = Duration::from_hours(90 * 24);

/// A rejected request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RefusedRequest {
    /// When it was decided.
    pub at: Timestamp,
    /// Why, as logs spell it.
    pub reason: String,
    /// The key, if it was proven.
    pub key: Option<KeyDetails>,
}

impl Admin {
    /// Counts the keys of the tenants in `reach`.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn key_counts(&self, reach: &Reach) -> Result<KeyCounts, AdminError> {
        let now = self.now();
        let at = CountedAt { now, expires_before: now.after(SOON), unused_since: now.before(LONG) };
        Ok(self.store.key_counts(some(reach), at).await?)
    }

    /// Returns the servers that have a heartbeat in the database, and the state of each.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn servers(&self) -> Result<Vec<ReplicaState>, AdminError> {
        Ok(self.store.servers().await?)
    }

    /// Returns a rejection by its decision id. One without a proven key belongs to no tenant: only a management key of
    /// all tenants sees it.
    ///
    /// # Errors
    ///
    /// No rejection with this id is visible to the caller, or the database is not available.
    pub async fn refusal(&self, decision_id: Uuid) -> Result<RefusedRequest, AdminError> {
        let no_refusal = || AdminError::Missing(format!("there is no refusal {decision_id}"));
        let found = self.store.refusal(decision_id).await?.ok_or_else(no_refusal)?;
        let key = if found.key.0.is_nil() { None } else { Some(self.key(&found.key.0.to_string()).await?) };
        if key.is_none() && self.creator.authority.reach != Reach::All {
            return Err(no_refusal());
        }
        Ok(RefusedRequest { at: found.at, reason: found.reason, key })
    }

    /// Returns the requests that a reach covers, by day and reason, of the last `days` days (UTC) including today.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn requests_by_day(&self, reach: &Reach, days: u32) -> Result<Vec<DayCount>, AdminError> {
        let of = some(reach).map_or(CountsOf::All, CountsOf::Tenants);
        Ok(self.store.counts(of, &last_days(self.now(), days)).await?)
    }

    /// Returns the requests with keys of one tenant, as [`Admin::requests_by_day`] does.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn requests_of_tenant(&self, tenant: TenantId, days: u32) -> Result<Vec<DayCount>, AdminError> {
        let of = BTreeSet::from([tenant]);
        Ok(self.store.counts(CountsOf::Tenants(&of), &last_days(self.now(), days)).await?)
    }

    /// Returns the requests with one key, as [`Admin::requests_by_day`] does.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn requests_of_key(&self, key: KeyId, days: u32) -> Result<Vec<DayCount>, AdminError> {
        Ok(self.store.counts(CountsOf::Key(key), &last_days(self.now(), days)).await?)
    }

    /// Returns one page of the audit log, newest first: `size` rows, after skipping `pages` pages of this size.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn newest_audit(
        &self,
        filter: &AuditFilter,
        pages: i64,
        size: i64,
    ) -> Result<Vec<AuditEntry>, AdminError> {
        let newer = pages.saturating_mul(size);
        let after = self.store.audit_before_newest(filter, newer.saturating_add(size)).await?;
        // Only the rows of this page are read, however many are newer.
        let mut entries = self.store.audit_entries(filter, after, size).await?;
        if newer > 0 {
            let last = self.store.audit_before_newest(filter, newer).await?;
            entries.retain(|entry| entry.seq <= last);
        }
        entries.reverse();
        Ok(entries)
    }
}

fn some(reach: &Reach) -> Option<&BTreeSet<TenantId>> {
    match reach {
        Reach::All => None,
        Reach::Some(tenants) => Some(tenants),
    }
}

/// Returns the last `days` days, such as `2026-01-31`, ending with today.
fn last_days(now: Timestamp, days: u32) -> Vec<String> {
    let day = |ago: i64| Timestamp(now.0.saturating_sub(ago * MICROS_PER_DAY)).to_string();
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
