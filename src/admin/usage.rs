//! Reports how many requests were made.

use super::{Admin, AdminError};
use crate::clock::Timestamp;
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
        Ok(self.store.usage(&UsageFilter { from: since, to: self.now(), tenant, by }).await?)
    }
}
