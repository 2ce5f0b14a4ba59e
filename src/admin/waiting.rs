//! Waits until every server has applied a change.
//!
//! A change is over when the last server that could serve what was before has seen it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Admin, AdminError, refused};
use crate::store::{Announced, Laggard};

/// Which servers know of a change.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Applied {
    /// How many that serve do.
    pub replicas: u64,
    /// Those that may still serve what was before.
    pub pending: Vec<Laggard>,
}

impl Admin {
    /// The servers that have announced themselves, by name.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn replicas(&self) -> Result<Vec<Announced>, AdminError> {
        Ok(self.store.replicas().await?)
    }

    /// Waits until every server knows of everything that is committed now.
    ///
    /// # Errors
    ///
    /// Some may still serve what was before when `limit` is over; says which.
    pub async fn wait_for_servers(&self, limit: Duration) -> Result<(), AdminError> {
        let Applied { pending, .. } = self.applied_within(limit).await?;
        if pending.is_empty() { Ok(()) } else { refused(still_behind(&pending, limit)) }
    }

    /// Waits until every server knows of everything that is committed now, and tells which ones do when `limit` is over.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn applied_within(&self, limit: Duration) -> Result<Applied, AdminError> {
        let mark = self.store.mark().await?;
        let deadline = Instant::now() + limit;
        loop {
            let pending = self.store.laggards(&mark).await?;
            if pending.is_empty() || Instant::now() >= deadline {
                return Ok(Applied { replicas: self.store.caught_up(&mark).await?, pending });
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

/// How often to ask how far the servers are.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

fn still_behind(laggards: &[Laggard], limit: Duration) -> String {
    let names: Vec<_> = laggards.iter().map(|l| format!("{} (last seen {})", l.name, l.seen_at)).collect();
    format!("done, but after {limit:?} these servers may still go by what was before: {}", names.join(", "))
}
