//! Waits until every live server has applied a change.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Admin, AdminError, refused};
use crate::store::{Announced, Laggard};

/// Which servers have applied a change.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Applied {
    /// The number of serving servers that have applied it.
    pub replicas: u64,
    /// The servers that may not have applied it.
    pub pending: Vec<Laggard>,
}

impl Admin {
    /// Returns the servers that have a heartbeat in the database, by name.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn replicas(&self) -> Result<Vec<Announced>, AdminError> {
        Ok(self.store.replicas().await?)
    }

    /// Waits until every live server has applied everything that is committed now.
    ///
    /// # Errors
    ///
    /// Some servers may not have applied it after `limit`; the error names them. Or the database is not available.
    pub async fn wait_for_servers(&self, limit: Duration) -> Result<(), AdminError> {
        let Applied { pending, .. } = self.applied_within(limit).await?;
        if pending.is_empty() { Ok(()) } else { refused(still_behind(&pending, limit)) }
    }

    /// Waits at most `limit` until every live server has applied everything that is committed now. Returns which
    /// servers have.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn applied_within(&self, limit: Duration) -> Result<Applied, AdminError> {
        let mark = self.store.mark().await?;
        let deadline = Instant::now() + limit;
        loop {
            let pending = self.store.laggards(&mark).await?;
            if pending.is_empty() || Instant::now() >= deadline {
                return Ok(Applied { replicas: self.store.caught_up(&mark).await?, pending });
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// The interval between two queries for the state of the servers.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

fn still_behind(laggards: &[Laggard], limit: Duration) -> String {
    let names: Vec<_> = laggards.iter().map(|l| format!("{} (last seen {})", l.name, l.seen_at)).collect();
    format!("done, but after {limit:?} these servers may not have applied it: {}", names.join(", "))
}
