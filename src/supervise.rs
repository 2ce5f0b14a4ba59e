//! Restarts background tasks that panic.
//!
//! A panic is a defect, but a defect in one task must not stop the others: the server continues to answer from memory.
//! The future that panicked is dropped, and the task starts again, after a pause that doubles each time. Each restart
//! is counted and logged in one line; the panic hook in `telemetry` logs where it happened.
//!
//! A panic never allows a request. A task that does not run shows in its own metrics: the snapshot gets older, a batch
//! waits.
//!
//! Depends on: nothing of what the tasks do.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::error;

use crate::stats::Counter;

/// The future panicked. The message is not kept, because it may contain a key.
#[derive(Clone, Copy, Debug)]
pub struct Panicked;

/// Returns the output of `work`.
///
/// # Errors
///
/// `work` panicked.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(outcome)) => Poll::Ready(Ok(outcome)),
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}

/// A background task.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BackgroundTask {
    /// Writes how far this server has read the change log.
    Heartbeat,
    /// Reloads certificates that changed.
    Certificates,
    /// Keeps the gRPC health status current.
    Health,
    /// Writes the snapshot file.
    SnapshotFile,
    /// Writes memos.
    Memos,
    /// Prunes the change log.
    Prune,
    /// Publishes proven keys to the module inside Envoy.
    Publish,
    /// Sends the shared memory to modules inside Envoy.
    PublishServe,
    /// Writes rejections by decision id.
    Refusals,
    /// Writes the shadow report.
    Shadow,
    /// Writes `last_used_at`.
    LastUsed,
    /// Writes the counts of requests.
    Usage,
}

impl BackgroundTask {
    /// All tasks, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::Heartbeat,
        Self::Certificates,
        Self::Health,
        Self::SnapshotFile,
        Self::Memos,
        Self::Prune,
        Self::Publish,
        Self::PublishServe,
        Self::Refusals,
        Self::Shadow,
        Self::LastUsed,
        Self::Usage,
    ];

    /// Returns the name in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Heartbeat => "announce",
            Self::Certificates => "certificates",
            Self::Health => "health",
            Self::SnapshotFile => "keep",
            Self::Memos => "memos",
            Self::Prune => "prune",
            Self::Publish => "publish",
            Self::PublishServe => "publish_serve",
            Self::Refusals => "refusals",
            Self::Shadow => "shadow",
            Self::LastUsed => "usage",
            Self::Usage => "usage_counts",
        }
    }
}

/// The longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Restarts tasks that panicked, and counts the restarts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Supervisor(Arc<[Counter; BackgroundTask::ALL.len()]>);

impl Supervisor {
    /// Runs the future that `begin` creates, and creates another one whenever it panics.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as the future.
    pub async fn run<T, W: Future<Output = T>>(
        &self,
        part: BackgroundTask,
        mut begin: impl FnMut() -> W,
    ) -> T {
        let mut pause = FIRST_PAUSE;
        loop {
            let since = Instant::now();
            if let Ok(outcome) = caught(begin()).await {
                return outcome;
            }
            self.0[part as usize].add_one();
            // A task that ran for long has recovered: the next panic is a new one.
            pause = if since.elapsed() > LONGEST_PAUSE { FIRST_PAUSE } else { pause };
            error!(part = part.as_str(), again_in = ?pause, "a part of the server panicked and is restarted");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Returns the number of restarts of each task.
    pub fn restarts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        BackgroundTask::ALL.into_iter().map(|part| (part.as_str(), self.0[part as usize].value()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn an_output_is_returned_and_a_panic_is_reported() {
        assert_eq!(caught(async { 7 }).await.unwrap(), 7);
        let later = async {
            tokio::task::yield_now().await;
            panic!("later")
        };
        assert!(caught::<()>(later).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_restarted_with_longer_pauses_until_it_ends() {
        let (supervisor, tries) = (Supervisor::default(), Cell::new(0_u32));
        let started = Instant::now();
        let work = || async {
            tries.set(tries.get() + 1);
            tokio::task::yield_now().await;
            assert!(tries.get() > 4, "not yet");
            tries.get()
        };
        assert_eq!(supervisor.run(BackgroundTask::Memos, work).await, 5);
        assert_eq!(started.elapsed().as_millis(), 50 + 100 + 200 + 400);
        let counted: Vec<_> = supervisor.restarts().filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [("memos", 4)]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_pause_is_longer_than_half_a_minute() {
        let (supervisor, tries) = (Supervisor::default(), Cell::new(0_u32));
        let work = || async {
            tries.set(tries.get() + 1);
            assert!(tries.get() > 100, "not yet");
        };
        let started = Instant::now();
        supervisor.run(BackgroundTask::LastUsed, work).await;
        assert!(started.elapsed() <= 100 * LONGEST_PAUSE);
    }

    #[test]
    fn numbers_follow_the_order_of_the_list() {
        for (at, part) in BackgroundTask::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, at);
        }
    }
}
