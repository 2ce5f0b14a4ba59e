//! Publishes how far this server has read the change log.
//!
//! Every server writes its position to the database: when a client asks for it by a mark in the change log, and
//! otherwise at an interval. Commands can then wait until the last server has applied a change (`key revoke
//! --wait`). A server does not write after every change, because every change would then cause a write by every
//! server. The position of a server that was killed or disconnected counts as long as the server could continue to
//! serve without polling.
//!
//! No check depends on this. If the database rejects the position, only `--wait` is affected.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, warn};
use uuid::Uuid;

use super::Replica;
use crate::random;
use crate::store::{Announcement, Store, StoreError};

/// Options of the heartbeat.
#[derive(Clone, Debug)]
pub struct HeartbeatOptions {
    /// The interval without a mark.
    pub interval: Duration,
    /// How long this server accepts keys without a successful poll.
    pub max_staleness: Duration,
}

/// The heartbeat of a server. Cheap to clone.
#[derive(Clone)]
pub struct Heartbeat {
    id: Uuid,
    name: String,
    replica: Replica,
    store: Arc<dyn Store>,
    options: HeartbeatOptions,
}

impl Heartbeat {
    /// Creates the heartbeat of this replica. `name` is shown to people.
    #[must_use]
    pub fn new(name: String, replica: Replica, store: Arc<dyn Store>, options: HeartbeatOptions) -> Self {
        Self { id: random::new_id(), name, replica, store, options }
    }

    /// Publishes the position at every mark and at the interval, forever.
    pub async fn run(self) {
        let mut marks = self.replica.marks();
        let mut failing = false;
        loop {
            // Both outcomes lead to the next heartbeat.
            let _ = timeout(self.options.interval, marks.changed()).await;
            if !self.replica.connected() {
                continue;
            }
            match self.beat().await {
                Ok(()) => failing = false,
                Err(error) if failing => {
                    debug!(%error, "the position of this server still cannot be written");
                }
                Err(error) => {
                    warn!(%error, "the position of this server cannot be written, `--wait` does not wait for it");
                    failing = true;
                }
            }
        }
    }

    async fn beat(&self) -> Result<(), StoreError> {
        let position = self.replica.sync_point().position;
        // A disconnected server wrote its position up to one interval before its last successful poll; another
        // interval covers a late heartbeat.
        let serves_for = self.options.max_staleness + 2 * self.options.interval;
        let (id, name) = (self.id, self.name.as_str());
        self.store.announce(&Announcement { id, name, position: &position, serves_for }).await
    }

    /// Removes the position of this server, which stops.
    pub async fn retract(&self) {
        if let Err(error) = self.store.retract(self.id).await {
            debug!(%error, "the position of this server was not removed, it expires");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use tokio::time::sleep;

    use super::*;
    use crate::replica::sync::tests::Script;
    use crate::replica::tests::logged;

    fn heartbeat() -> (Heartbeat, Replica, Arc<Script>) {
        let (replica, script) = (Replica::default(), Arc::new(Script::default()));
        let options =
            HeartbeatOptions { interval: Duration::from_secs(10), max_staleness: Duration::from_mins(5) };
        let store = Arc::<Script>::clone(&script);
        (Heartbeat::new("here".into(), replica.clone(), store, options), replica, script)
    }

    #[tokio::test(start_paused = true)]
    async fn it_publishes_at_an_interval_and_at_marks_while_the_database_is_connected() {
        let (heartbeat, replica, script) = heartbeat();
        let running = tokio::spawn(heartbeat.run());
        let times = || script.announced.lock().unwrap().len();
        replica.notify_marks();
        sleep(Duration::from_secs(25)).await;
        assert_eq!(times(), 0);
        replica.set_connected(true);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(times(), 1);
        replica.notify_marks();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(times(), 2);
        let serves_for = Duration::from_secs(320);
        assert_eq!(script.announced.lock().unwrap()[1], (String::new(), serves_for));
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_logged_once_per_outage() {
        let (heartbeat, replica, script) = heartbeat();
        replica.set_connected(true);
        let running = tokio::spawn(heartbeat.run());
        let warning = "WARN: the position of this server cannot be written, `--wait` does not wait for it";
        // Until the task waits for marks.
        sleep(Duration::from_millis(1)).await;
        let _ = logged();
        for (refuses, line) in
            [(true, Some(warning)), (true, None), (false, None), (false, None), (true, Some(warning))]
        {
            script.refuses_announcements.store(refuses, Relaxed);
            replica.notify_marks();
            sleep(Duration::from_millis(1)).await;
            assert_eq!(logged(), Vec::from_iter(line));
        }
        assert_eq!(script.announced.lock().unwrap().len(), 5);
        running.abort();
    }

    #[tokio::test]
    async fn it_removes_its_own_position_only() {
        let (heartbeat, _, script) = heartbeat();
        heartbeat.retract().await;
        assert_eq!(*script.retracted.lock().unwrap(), [heartbeat.id]);
    }
}
