//! Sends checks at a steady rate, and measures the latency of others beside them.
//!
//! A check is sent without waiting for the response to the one before, as independent clients do: when the server
//! stalls, checks continue to arrive, and all of them count as delayed. Each sender has its own thread, so that the
//! load does not delay the few checks that are measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Heard, Line, percentile};

/// The maximum number of checks in flight. Beyond it the sender waits, which shows in the rate that was reached.
const UNANSWERED: usize = 1_000;

/// A sender on its own thread that runs until it is stopped.
pub(crate) struct Asking<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Asking<T> {
    /// Starts it, on its own thread and runtime.
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

    /// Stops it and returns its result.
    pub(crate) fn stop(self) -> T {
        self.stop.store(true, Relaxed);
        self.wait()
    }

    /// Waits until it stops by itself.
    pub(crate) fn wait(self) -> T {
        self.thread.join().expect("no panic")
    }
}

/// Sends these checks at a rate over two connections, until there are no more or `stop` is set.
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

/// Returns the p99 of valid, proven keys, checked in turn 1,000 times a second for this time.
pub(crate) fn hot_p99(address: &str, messages: &[Bytes], span: Duration) -> Duration {
    const PER_SECOND: u32 = 1_000;
    let times = usize::try_from(span.as_millis()).expect("short");
    let messages: Vec<Bytes> = messages.iter().cycle().take(times).cloned().collect();
    let address = address.to_owned();
    let heard = Asking::start(|stop| paced(address, PER_SECOND, messages.into_iter(), stop)).wait();
    assert!(heard.iter().all(|heard| heard.allowed), "a valid key is always allowed");
    let mut times: Vec<Duration> = heard.iter().map(|heard| heard.took).collect();
    times.sort_unstable();
    percentile(&times, 99.0)
}
