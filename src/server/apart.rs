//! What must not wait for other work, nor let it wait?

use std::future::Future;
use std::io;

use tokio::sync::oneshot;

use super::ServeError;
use crate::store::StoreError;

/// Work on a thread and a runtime of its own, which ends when this is dropped.
pub(super) struct Apart {
    outcome: oneshot::Receiver<StoreError>,
    _running: oneshot::Sender<()>,
}

impl Apart {
    pub(super) fn run(
        name: &str,
        work: impl Future<Output = StoreError> + Send + 'static,
    ) -> Result<Self, ServeError> {
        let start = |e: io::Error| ServeError::Start(format!("no thread for the {name}: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(start)?;
        let ((done, outcome), (running, dropped)) = (oneshot::channel(), oneshot::channel::<()>());
        let until_dropped = async move {
            tokio::select! {
                // Who waited for the outcome may be gone.
                error = work => drop(done.send(error)),
                _ = dropped => {}
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(move || runtime.block_on(until_dropped)).map_err(start)?;
        Ok(Self { outcome, _running: running })
    }

    /// Why it ended, which it should not.
    pub(super) async fn ended(&mut self) -> ServeError {
        match (&mut self.outcome).await {
            Ok(error) => ServeError::Store(error),
            Err(_) => ServeError::Start("the thread of the replica ended".into()),
        }
    }
}
