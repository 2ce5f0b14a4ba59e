//! Reports how many requests were made.

use super::{Admin, AdminError};
use crate::clock::Timestamp;
use crate::permission::Reach;
use crate::store::{UsageBy, UsageFilter, UsageRow};
use crate::tenant::TenantId;

impl Admin {
    /// Returns the requests from the day of `since` until today (whole days in UTC), of the keys of one tenant or of
    /// all.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`].
    pub async fn usage(
        &self,
        tenant: Option<&str>,
        since: Timestamp,
        by: UsageBy,
    ) -> Result<Vec<UsageRow>, AdminError> {
        let tenant = match tenant {
            Some(reference) => Some(self.tenant(reference).await?.id),
            None => None,
        };
        self.counted(&UsageFilter { tenant, ..self.all_since(since, by) }).await
    }

    /// Returns the keys of a tenant, or of all, with the most requests from the day of `since` until today: at most
    /// `most`.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn busiest_keys(
        &self,
        tenant: Option<TenantId>,
        since: Timestamp,
        most: usize,
    ) -> Result<Vec<UsageRow>, AdminError> {
        let all = self.all_since(since, UsageBy::Key);
        self.counted(&UsageFilter { tenant, busiest: Some(most), ..all }).await
    }

    fn all_since(&self, from: Timestamp, by: UsageBy) -> UsageFilter {
        let (to, reach) = (self.now(), Reach::All);
        UsageFilter { from, to, tenant: None, key: None, reach, by, part: None, busiest: None }
    }

    /// Returns the requests that match a filter.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn counted(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, AdminError> {
        Ok(self.store.usage(filter).await?)
    }
}
