//! What if a part of us panics?
//!
//! A panic is a defect, and a defect in one part is no reason to take the others along: what is in
//! memory goes on answering. The work that panicked is dropped where it stood and begun again,
//! soon the first time and later and later if that does not help. It is counted, and said in one line; where
//! it happened is said by `telemetry`, which hears of every panic.
//!
//! Nobody is let in because of it. A part that stands still shows as what it is: a snapshot that grows
//! old, a batch that waits.
//!
//! This module knows nothing of what the parts do.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::error;

use crate::stats::Count;

/// Work that panicked. What it said is not kept: it may be about a key.
#[derive(Clone, Copy, Debug)]
pub struct Panicked;

/// The outcome of `work`, or that it panicked; it is dropped then.
///
/// # Errors
///
/// It panicked.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(outcome)) => Poll::Ready(Ok(outcome)),
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}

/// What runs beside requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// Tells others how far we are.
    Announce,
    /// Reads certificates again that changed.
    Certificates,
    /// Keeps gRPC health true.
    Health,
    /// Keeps the snapshot in a file.
    Keep,
    /// Writes memos down.
    Memos,
    /// Cuts the change log.
    Prune,
    /// Writes the shadow report down.
    Shadow,
    /// Writes uses down.
    Usage,
}

impl Part {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Announce,
        Self::Certificates,
        Self::Health,
        Self::Keep,
        Self::Memos,
        Self::Prune,
        Self::Shadow,
        Self::Usage,
    ];

    /// Its name in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Announce => "announce",
            Self::Certificates => "certificates",
            Self::Health => "health",
            Self::Keep => "keep",
            Self::Memos => "memos",
            Self::Prune => "prune",
            Self::Shadow => "shadow",
            Self::Usage => "usage",
        }
    }
}

/// The longest that a part stands still before it is begun again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Begins parts again that panicked, and counts how often. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Supervisor(Arc<[Count; Part::ALL.len()]>);

impl Supervisor {
    /// Does the work that `begin` begins, again and again until it ends without a panic.
    ///
    /// # Cancel safety
    ///
    /// That of the work.
    pub async fn run<T, W: Future<Output = T>>(&self, part: Part, mut begin: impl FnMut() -> W) -> T {
        let mut pause = FIRST_PAUSE;
        loop {
            let since = Instant::now();
            if let Ok(outcome) = caught(begin()).await {
                return outcome;
            }
            self.0[part as usize].add_one();
            // What went well for so long was not begun in vain.
            pause = if since.elapsed() > LONGEST_PAUSE { FIRST_PAUSE } else { pause };
            error!(part = part.as_str(), again_in = ?pause, "a part of the server panicked and is begun again");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// How often each part was begun again.
    pub fn restarts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Part::ALL.into_iter().map(|part| (part.as_str(), self.0[part as usize].value()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn what_ends_well_is_handed_on_and_what_panics_is_told() {
        assert_eq!(caught(async { 7 }).await.unwrap(), 7);
        let later = async {
            tokio::task::yield_now().await;
            panic!("later")
        };
        assert!(caught::<()>(later).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_is_begun_again_until_it_ends_later_and_later() {
        let (supervisor, tries) = (Supervisor::default(), Cell::new(0_u32));
        let begun = Instant::now();
        let work = || async {
            tries.set(tries.get() + 1);
            tokio::task::yield_now().await;
            assert!(tries.get() > 4, "not yet");
            tries.get()
        };
        assert_eq!(supervisor.run(Part::Memos, work).await, 5);
        assert_eq!(begun.elapsed().as_millis(), 50 + 100 + 200 + 400);
        let counted: Vec<_> = supervisor.restarts().filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [("memos", 4)]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_never_stands_still_for_longer_than_half_a_minute() {
        let (supervisor, tries) = (Supervisor::default(), Cell::new(0_u32));
        let work = || async {
            tries.set(tries.get() + 1);
            assert!(tries.get() > 100, "not yet");
        };
        let begun = Instant::now();
        supervisor.run(Part::Usage, work).await;
        assert!(begun.elapsed() <= 100 * LONGEST_PAUSE);
    }

    #[test]
    fn parts_are_numbered_as_they_are_listed() {
        for (at, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, at);
        }
    }
}
