//! Lists of keys, for whoever may see some tenants or all.

use super::{Admin, AdminError};
use crate::permission::Reach;
use crate::store::{KeyFilter, KeyPage, KeyPlace};

impl Admin {
    /// Keys of these tenants that a filter wants, after a place, in the order of creation: at most `page`. Where what is
    /// wanted is rare, a part of the list ends before it is full.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn keys_by_creation(
        &self,
        filter: &KeyFilter,
        reach: &Reach,
        after: Option<&KeyPlace>,
        page: usize,
    ) -> Result<KeyPage, AdminError> {
        Ok(self.store.keys_by_creation(filter, reach, after, page).await?)
    }
}
