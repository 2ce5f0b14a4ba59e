//! How does something get written down that can wait?
//!
//! Batch by batch, each within a time, and what could not be is for the next time. An outage is one
//! line in the log, however many tries it takes. What is written is not known here, and who keeps
//! what was not written neither.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, warn};

use crate::stats::Count;
use crate::store::StoreError;

/// What came of writing one kind of thing down, for operators.
#[derive(Debug)]
pub struct Writing {
    what: &'static str,
    /// Batches written.
    pub written: Count,
    /// Batches that could not be written, and wait for the next time.
    pub failed: Count,
    /// Whether the last try failed.
    failing: AtomicBool,
}

impl Writing {
    /// Nothing so far. `what` is how the log calls it.
    #[must_use]
    pub fn of(what: &'static str) -> Self {
        Self { what, written: Count::default(), failed: Count::default(), failing: AtomicBool::new(false) }
    }

    /// Tries to write a batch of so many rows; nothing if that could not be.
    pub async fn attempt<T>(
        &self,
        rows: usize,
        within: Duration,
        write: impl Future<Output = Result<T, StoreError>>,
    ) -> Option<T> {
        let what = self.what;
        let error = match timeout(within, write).await {
            Ok(Ok(done)) => {
                self.written.add_one();
                self.failing.store(false, Relaxed);
                debug!(rows, "{what} written");
                return Some(done);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {within:?}"),
        };
        self.failed.add_one();
        if self.failing.swap(true, Relaxed) {
            debug!(error, rows, "{what} still cannot be written");
        } else {
            warn!(error, rows, "{what} could not be written, trying again later");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_written_in_time_or_not_and_counted() {
        let writing = Writing::of("tests");
        let within = Duration::from_secs(5);
        assert_eq!(writing.attempt(1, within, ready(Ok(7))).await, Some(7));
        let refused = Err(StoreError::Unavailable("gone".into()));
        assert_eq!(writing.attempt::<()>(1, within, ready(refused)).await, None);
        assert_eq!(writing.attempt::<()>(1, within, pending()).await, None);
        assert_eq!((writing.written.value(), writing.failed.value()), (1, 2));
    }
}
