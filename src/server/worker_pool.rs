//! Threads that serve connections.
//!
//! Each worker is a thread with a runtime of its own. A connection is given to the worker with the fewest connections
//! and stays there, so that the data of a check does not move between cores.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::dedicated_runtime::RuntimeThread;

/// A fixed number of threads. They end when the pool is dropped, even with futures still running.
pub(super) struct WorkerPool(Vec<Worker>);

struct Worker {
    thread: RuntimeThread,
    busy: Arc<AtomicUsize>,
}

impl WorkerPool {
    /// Starts `count` threads, at least one.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        (0..count.max(1)).map(Worker::start).collect::<io::Result<_>>().map(Self)
    }

    /// Runs a future on the worker with the fewest running futures.
    pub(super) fn give(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Some(worker) = self.0.iter().min_by_key(|worker| worker.busy.load(Relaxed)) else { return };
        let busy = Busy::one_more(&worker.busy);
        worker.thread.spawn(async move {
            work.await;
            drop(busy);
        });
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        Ok(Self { thread: RuntimeThread::start(format!("worker-{number}"))?, busy: Arc::default() })
    }
}

/// Counts as one future of a worker until it is dropped.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn one_more(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    #[tokio::test]
    async fn work_goes_to_the_worker_with_the_fewest_futures() {
        let workers = WorkerPool::start(3).unwrap();
        let (tell, mut told) = mpsc::channel(9);
        let mut going_on = Vec::new();
        for _ in 0..9 {
            let (end, ended) = oneshot::channel::<()>();
            going_on.push(end);
            let tell = tell.clone();
            workers.give(async move {
                tell.send(std::thread::current().name().map(str::to_owned)).await.unwrap();
                let _ = ended.await;
            });
        }
        let mut names = Vec::new();
        for _ in 0..9 {
            names.push(told.recv().await.unwrap().unwrap());
        }
        for name in ["worker-0", "worker-1", "worker-2"] {
            assert_eq!(names.iter().filter(|n| *n == name).count(), 3, "{names:?}");
        }
    }
}
