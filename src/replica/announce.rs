//! How do others know how far we are?
//!
//! Every server writes down how far it has looked: when somebody asks by a mark in
//! the change log, and now and then unasked. Who takes a key back can then wait until
//! the last server knows (`key revoke --wait`). Not after every change: that would make
//! every server write for each of them. A server that was killed or cut off counts for as
//! long as it could go on serving without looking, and not longer.
//!
//! No check waits for this, and a database that cannot take it down loses nothing
//! but the waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, warn};
use uuid::Uuid;

use super::Replica;
use crate::store::{Announcement, Store, StoreError};

/// How a server announces itself.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often, without being asked.
    pub interval: Duration,
    /// How long this server lets keys pass without looking at the database.
    pub max_staleness: Duration,
}

/// Announces a server. Cheap to clone.
#[derive(Clone)]
pub struct Announcer {
    id: Uuid,
    name: String,
    replica: Replica,
    store: Arc<dyn Store>,
    options: Options,
}

impl Announcer {
    /// An announcer of this replica under a name for people.
    #[must_use]
    pub fn new(name: String, replica: Replica, store: Arc<dyn Store>, options: Options) -> Self {
        Self { id: Uuid::new_v4(), name, replica, store, options }
    }

    /// Announces, for ever.
    pub async fn run(self) {
        let mut marks = self.replica.marks();
        let mut silent = false;
        loop {
            // Whether somebody asks or the time is up is all the same.
            let _ = timeout(self.options.interval, marks.changed()).await;
            if !self.replica.connected() {
                continue;
            }
            match self.announce().await {
                Ok(()) => silent = false,
                Err(error) if silent => debug!(%error, "still not announced"),
                Err(error) => {
                    warn!(%error, "cannot announce how far this server is, `--wait` does not know of it");
                    silent = true;
                }
            }
        }
    }

    async fn announce(&self) -> Result<(), StoreError> {
        let position = self.replica.look().position;
        // A server that is cut off announced itself up to an interval before its last good look; one more is
        // for an announcement that was late.
        let serves_for = self.options.max_staleness + 2 * self.options.interval;
        let (id, name) = (self.id, self.name.as_str());
        self.store.announce(&Announcement { id, name, position: &position, serves_for }).await
    }

    /// Takes the announcement back: we are gone.
    pub async fn retract(&self) {
        if let Err(error) = self.store.retract(self.id).await {
            debug!(%error, "announcement not taken back, it ages out");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use tokio::time::sleep;

    use super::*;
    use crate::replica::sync::tests::Script;
    use crate::replica::tests::said;

    fn announcer() -> (Announcer, Replica, Arc<Script>) {
        let (replica, script) = (Replica::default(), Arc::new(Script::default()));
        let options = Options { interval: Duration::from_secs(10), max_staleness: Duration::from_mins(5) };
        let store = Arc::<Script>::clone(&script);
        (Announcer::new("here".into(), replica.clone(), store, options), replica, script)
    }

    #[tokio::test(start_paused = true)]
    async fn it_announces_now_and_then_and_when_asked_as_long_as_it_has_the_database() {
        let (announcer, replica, script) = announcer();
        let running = tokio::spawn(announcer.run());
        let times = || script.announced.lock().unwrap().len();
        replica.tell_of_mark();
        sleep(Duration::from_secs(25)).await;
        assert_eq!(times(), 0);
        replica.set_connected(true);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(times(), 1);
        replica.tell_of_mark();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(times(), 2);
        let serves_for = Duration::from_secs(320);
        assert_eq!(script.announced.lock().unwrap()[1], (String::new(), serves_for));
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn that_it_cannot_is_said_once_and_again_after_it_could() {
        let (announcer, replica, script) = announcer();
        replica.set_connected(true);
        let running = tokio::spawn(announcer.run());
        let warning = "WARN: cannot announce how far this server is, `--wait` does not know of it";
        // Until it listens.
        sleep(Duration::from_millis(1)).await;
        let _ = said();
        for (refuses, line) in
            [(true, Some(warning)), (true, None), (false, None), (false, None), (true, Some(warning))]
        {
            script.refuses_announcements.store(refuses, Relaxed);
            replica.tell_of_mark();
            sleep(Duration::from_millis(1)).await;
            assert_eq!(said(), Vec::from_iter(line));
        }
        assert_eq!(script.announced.lock().unwrap().len(), 5);
        running.abort();
    }

    #[tokio::test]
    async fn what_it_takes_back_is_its_own() {
        let (announcer, _, script) = announcer();
        announcer.retract().await;
        assert_eq!(*script.retracted.lock().unwrap(), [announcer.id]);
    }
}
