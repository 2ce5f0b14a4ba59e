//! Reports how many requests were made.

use super::{Admin, AdminError};
use crate::clock::Timestamp;
use crate::permission::Reach;
use crate::store::{UsageBy, UsageFilter, UsageRow};

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
        let (to, reach) = (self.now(), Reach::All);
        self.counted(&UsageFilter { from: since, to, tenant, key: None, reach, by, part: None }).await
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
