//! Prunes the change log.
//!
//! Only replicas that polled recently need the change log. Every server prunes it regularly; it does not matter which
//! one does. A replica that was disconnected for longer than the log reaches back notices that and loads everything
//! again. The counts of usage are pruned at the same interval.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;

use crate::store::Store;

/// How long usage is kept by default: a year, and a month to compare it with.
const USAGE_RETENTION: Duration = Duration::from_hours(400 * 24);

/// Options of pruning.
#[derive(Clone, Copy, Debug)]
pub struct PruneOptions {
    /// The interval.
    pub interval: Duration,
    /// The age up to which changes are kept: longer than the usual pauses of a replica, after which it would have to
    /// load everything again.
    pub keep: Duration,
    /// The age up to which counts of usage are kept; `None` if this server does not count.
    pub keep_usage: Option<Duration>,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_mins(10),
            keep: Duration::from_hours(1),
            keep_usage: Some(USAGE_RETENTION),
        }
    }
}

/// Prunes both, forever. A failed attempt does no harm: the next one prunes more.
pub async fn run(store: Arc<dyn Store>, options: PruneOptions) {
    loop {
        sleep(options.interval).await;
        match store.prune_changes(options.keep).await {
            Ok(rows) => debug!(rows, "change log pruned"),
            Err(error) => debug!(%error, "change log not pruned"),
        }
        if let Some(keep) = options.keep_usage
            && let Err(error) = store.prune_usage(keep).await
        {
            debug!(%error, "usage not pruned");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::sync::tests::Script;

    #[tokio::test(start_paused = true)]
    async fn it_continues_after_success_and_failure() {
        let (script, options) = (Arc::new(Script::default()), PruneOptions::default());
        let running = tokio::spawn(run(Arc::<Script>::clone(&script), options));
        sleep(2 * options.interval + Duration::from_secs(1)).await;
        assert_eq!(*script.pruned.lock().unwrap(), [options.keep; 2]);
        assert_eq!(*script.pruned_usage.lock().unwrap(), [USAGE_RETENTION; 2]);
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_count_prunes_no_counts() {
        let (script, options) =
            (Arc::new(Script::default()), PruneOptions { keep_usage: None, ..PruneOptions::default() });
        let running = tokio::spawn(run(Arc::<Script>::clone(&script), options));
        sleep(options.interval + Duration::from_secs(1)).await;
        assert_eq!(script.pruned.lock().unwrap().len(), 1);
        assert!(script.pruned_usage.lock().unwrap().is_empty());
        running.abort();
    }
}
