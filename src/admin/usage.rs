//! Reports how many requests were made.

use super::{Admin, AdminError};
use crate::clock::Timestamp;
use crate::permission::Reach;
use crate::store::{UsageBy, UsageFilter, UsageRow};

impl Admin {
    /// The requests that were counted from the day of `since` until today, both whole and in UTC: of the keys of a
    /// tenant, or all.
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

    /// The requests that a filter wants.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn counted(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, AdminError> {
        Ok(self.store.usage(filter).await?)
    }
}
