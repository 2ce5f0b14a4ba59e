//! Runs a future on a dedicated thread and runtime, so that it neither delays other work nor waits for it.

use std::future::Future;
use std::io;

use tokio::sync::oneshot;

use super::ServeError;
use crate::store::StoreError;

/// A future on a thread and runtime of its own. Both end when this is dropped.
pub(super) struct DedicatedRuntime {
    outcome: oneshot::Receiver<StoreError>,
    _running: oneshot::Sender<()>,
}

impl DedicatedRuntime {
    pub(super) fn run(
        name: &str,
        work: impl Future<Output = StoreError> + Send + 'static,
    ) -> Result<Self, ServeError> {
        let start = |e: io::Error| ServeError::Start(format!("cannot start a thread for the {name}: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start)?;
        let ((done, outcome), (running, dropped)) = (oneshot::channel(), oneshot::channel::<()>());
        let until_dropped = async move {
            tokio::select! {
                // The receiver may have been dropped.
                error = work => drop(done.send(error)),
                _ = dropped => {}
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(move || runtime.block_on(until_dropped)).map_err(start)?;
        Ok(Self { outcome, _running: running })
    }

    /// Waits until the future ends, which it should not, and returns why.
    pub(super) async fn ended(&mut self) -> ServeError {
        match (&mut self.outcome).await {
            Ok(error) => ServeError::Store(error),
            Err(_) => ServeError::Start("the thread of the replica ended".into()),
        }
    }
}
