//! Examines Postgres for `explain` and `doctor`.

use async_trait::async_trait;
use sqlx::Row as _;

use super::{PostgresStore, examine, moved, poll};
use crate::clock::{Clock, Timestamp};
use crate::diagnostics::Finding;
use crate::store::StoreError;
use crate::store::inspect::{Inspect, KeyWithProfile, Purpose};
use crate::store::sql::instant::Micros;

#[async_trait]
impl Inspect for PostgresStore {
    async fn key_row(&self, prefix: &str) -> Result<Option<KeyWithProfile>, StoreError> {
        poll::one_key(&mut self.connect().await?, prefix).await
    }

    async fn time(&self) -> Result<Option<Timestamp>, StoreError> {
        let row = sqlx::query("SELECT clock_timestamp()").fetch_one(&mut self.connect().await?).await?;
        Ok(Some(row.try_get::<Micros, _>(0)?.0))
    }

    async fn is_subscriber(&self) -> Result<bool, StoreError> {
        Ok(moved::subscription(&mut self.connect().await?).await?.is_some())
    }

    async fn examine(&self, clock: &dyn Clock, purpose: Purpose) -> Result<Vec<Finding>, StoreError> {
        examine::examine(self, clock, purpose).await
    }
}
