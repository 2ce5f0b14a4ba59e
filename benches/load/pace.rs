//! How does one ask at a steady pace, and measure who waits beside it?
//!
//! Nobody waits for an answer before he asks again, as clients do not wait for each
//! other: a server that stalls is asked all the same, and every one of those who asked
//! meanwhile has waited. Whoever asks does so on a thread of his own, so that the many
//! do not stand in the way of the few whose times are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Heard, Line, percentile};

/// More unanswered questions than these, and the next one waits: the pace that was reached says so.
const UNANSWERED: usize = 1_000;

/// Somebody who asks until he is told to stop.
pub(crate) struct Asking<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Asking<T> {
    /// Starts it, on a thread and a runtime of its own.
    pub(crate) fn start<F: Future<Output = T>>(
        work: impl FnOnce(Arc<AtomicBool>) -> F + Send + 'static,
    ) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work(told))
        });
        Self { stop, thread }
    }

    /// Tells it to stop, and gives what came of it.
    pub(crate) fn stop(self) -> T {
        self.stop.store(true, Relaxed);
        self.wait()
    }

    /// Waits until it stops by itself.
    pub(crate) fn wait(self) -> T {
        self.thread.join().expect("no panic")
    }
}

/// Asks these, so many a second over two connections, until there are no more or `stop` says so.
pub(crate) async fn paced(
    address: String,
    per_second: u32,
    messages: impl Iterator<Item = Bytes>,
    stop: Arc<AtomicBool>,
) -> Vec<Heard> {
    let lines = [Line::to(&address).await, Line::to(&address).await];
    let (mut asking, mut heard) = (JoinSet::new(), Vec::new());
    let (begun, each) = (Instant::now(), Duration::from_secs(1) / per_second);
    for (n, message) in (0_u32..).zip(messages) {
        let due = begun + each * n;
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        if stop.load(Relaxed) {
            break;
        }
        while asking.len() >= UNANSWERED {
            heard.extend(asking.join_next().await.map(|answer| answer.expect("no panic")));
        }
        let line = lines[usize::from(n % 2 == 1)].clone();
        asking.spawn(async move { line.ask(message).await });
        while let Some(answer) = asking.try_join_next() {
            heard.push(answer.expect("no panic"));
        }
    }
    heard.extend(asking.join_all().await);
    heard
}

/// The p99 of keys that are right and proven, each asked for in turn, 1,000 times a second for so long.
pub(crate) fn hot_p99(address: &str, messages: &[Bytes], span: Duration) -> Duration {
    const PER_SECOND: u32 = 1_000;
    let times = usize::try_from(span.as_millis()).expect("short");
    let messages: Vec<Bytes> = messages.iter().cycle().take(times).cloned().collect();
    let address = address.to_owned();
    let heard = Asking::start(|stop| paced(address, PER_SECOND, messages.into_iter(), stop)).wait();
    assert!(heard.iter().all(|heard| heard.allowed), "a right key is allowed, whatever happens beside it");
    let mut times: Vec<Duration> = heard.iter().map(|heard| heard.took).collect();
    times.sort_unstable();
    percentile(&times, 99.0)
}
