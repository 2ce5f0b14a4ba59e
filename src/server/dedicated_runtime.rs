//! Runs futures on a dedicated thread and runtime, so that they neither delay other work nor wait for it.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::ServeError;
use crate::store::StoreError;

/// A thread with a single-threaded runtime. Both end when this is dropped, even with futures still running.
pub(super) struct RuntimeThread {
    runtime: Handle,
    _running: oneshot::Sender<()>,
}

impl RuntimeThread {
    /// Starts the thread.
    pub(super) fn start(name: String) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (running, dropped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(name);
        thread.spawn(move || runtime.block_on(async { drop(dropped.await) }))?;
        Ok(Self { runtime: handle, _running: running })
    }

    /// Runs a future on the thread.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }
}

/// A future on a thread and runtime of its own. Both end when this is dropped.
pub(super) struct DedicatedRuntime {
    outcome: oneshot::Receiver<StoreError>,
    _thread: RuntimeThread,
}

impl DedicatedRuntime {
    pub(super) fn run(
        name: &str,
        work: impl Future<Output = StoreError> + Send + 'static,
    ) -> Result<Self, ServeError> {
        let start = |e: io::Error| ServeError::Start(format!("cannot start a thread for the {name}: {e}"));
        let thread = RuntimeThread::start(name.to_owned()).map_err(start)?;
        let (done, outcome) = oneshot::channel();
        // The receiver may have been dropped.
        thread.spawn(async move { drop(done.send(work.await)) });
        Ok(Self { outcome, _thread: thread })
    }

    /// Waits until the future ends, which is an error, and returns the reason.
    pub(super) async fn ended(&mut self) -> ServeError {
        match (&mut self.outcome).await {
            Ok(error) => ServeError::Store(error),
            Err(_) => ServeError::Start("the thread of the replica ended".into()),
        }
    }
}
