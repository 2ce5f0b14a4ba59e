//! When is a change forgotten?
//!
//! The change log only serves replicas that looked a moment ago. Every server cuts
//! it now and then; which of them does it makes no difference. A replica that was
//! away for longer than the log reaches back notices, and loads everything again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::debug;

use crate::store::Store;

/// How the change log is cut.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often.
    pub interval: Duration,
    /// How much is kept: longer than any pause a replica may make, so that it need not load everything again.
    pub keep: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { interval: Duration::from_mins(10), keep: Duration::from_hours(1) }
    }
}

/// Cuts the log for ever. A try that fails is no harm: the next one cuts more.
pub async fn run(store: Arc<dyn Store>, options: Options) {
    loop {
        sleep(options.interval).await;
        match store.prune_changes(options.keep).await {
            Ok(rows) => debug!(rows, "change log cut"),
            Err(error) => debug!(%error, "change log not cut"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::sync::tests::Script;

    #[tokio::test(start_paused = true)]
    async fn it_is_cut_again_and_again_whether_that_succeeds_or_not() {
        let (script, options) = (Arc::new(Script::default()), Options::default());
        let running = tokio::spawn(run(Arc::<Script>::clone(&script), options));
        sleep(2 * options.interval + Duration::from_secs(1)).await;
        assert_eq!(*script.pruned.lock().unwrap(), [options.keep; 2]);
        running.abort();
    }
}
