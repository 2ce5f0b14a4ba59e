//! Records what the replica contained after each poll, and the snapshot of the poll.
//!
//! It is a store between the sync task and the real one. It passes results through unchanged, records them, and decides
//! when the next poll is due.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tenantgate::clock::Timestamp;
use tenantgate::key::KeyId;
use tenantgate::replica::{Replica, Snapshot};
use tenantgate::store::{
    Announcement, Changes, NewMemo, Refusal, Session, Shadowed, SnapshotRow, Store, StoreError, SyncPoint,
    Touched, Used,
};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::dice::Dice;
use crate::support::PATIENCE;

/// The source of the replica's content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum How {
    Load,
    Changes { rows: usize },
}

/// A poll of the replica.
pub(super) struct Taken {
    pub(super) as_of: String,
    pub(super) how: How,
    pub(super) held: Arc<Snapshot>,
}

/// All polls of one replica.
pub(super) struct Looks {
    taken: Mutex<Vec<Taken>>,
    count: watch::Sender<usize>,
}

impl Default for Looks {
    fn default() -> Self {
        Self { taken: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl Looks {
    pub(super) fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Waits until this number of polls.
    pub(super) async fn reach(&self, count: usize) {
        let mut told = self.count.subscribe();
        let reached = timeout(PATIENCE, told.wait_for(|taken| *taken >= count)).await;
        assert!(reached.is_ok(), "the replica polled {} times of {count} within {PATIENCE:?}", self.count());
    }

    /// Takes the records so far.
    pub(super) fn take(&self) -> Vec<Taken> {
        std::mem::take(&mut self.taken.lock().expect("no panic under the lock"))
    }

    fn note(&self, taken: Taken) {
        self.taken.lock().expect("no panic under the lock").push(taken);
        self.count.send_modify(|count| *count += 1);
    }
}

/// When the replica polls.
pub(super) enum Pace {
    /// At a notification or after a short time, sometimes after a long one.
    Random(Dice),
    /// Once for each permit.
    Told(Arc<Semaphore>),
}

/// A store that records its only session.
pub(super) struct Witness {
    store: Arc<dyn Store>,
    replica: Replica,
    looks: Arc<Looks>,
    pace: Mutex<Option<Pace>>,
}

impl Witness {
    pub(super) fn of(store: Arc<dyn Store>, replica: &Replica, looks: &Arc<Looks>, pace: Pace) -> Self {
        Self { store, replica: replica.clone(), looks: Arc::clone(looks), pace: Mutex::new(Some(pace)) }
    }
}

struct Watched {
    session: Box<dyn Session>,
    replica: Replica,
    looks: Arc<Looks>,
    pace: Pace,
    /// A completed poll that the replica may not have applied yet.
    answered: Option<(String, How)>,
}

#[async_trait]
impl Session for Watched {
    async fn load(&mut self, sink: &mut (dyn FnMut(SnapshotRow) + Send)) -> Result<SyncPoint, StoreError> {
        let look = self.session.load(sink).await?;
        self.answered = Some((look.position.clone(), How::Load));
        Ok(look)
    }

    /// The replica has applied the last poll when it waits for the next one.
    async fn hint(&mut self) -> Result<(), StoreError> {
        if let Some((as_of, how)) = self.answered.take() {
            self.looks.note(Taken { as_of, how, held: Arc::clone(&self.replica.snapshot()) });
        }
        match &mut self.pace {
            Pace::Random(dice) => {
                let most = if dice.one_in(40) { 500 } else { 12 };
                sleep(dice.millis(0, most)).await;
                if let Ok(hint) = timeout(dice.millis(0, 8), self.session.hint()).await {
                    hint?;
                }
            }
            Pace::Told(permits) => permits.acquire().await.expect("never closed").forget(),
        }
        Ok(())
    }

    async fn changes(&mut self) -> Result<Changes, StoreError> {
        let changes = self.session.changes().await?;
        if let Changes::Rows(rows, look) = &changes {
            self.answered = Some((look.position.clone(), How::Changes { rows: rows.len() }));
        }
        Ok(changes)
    }

    async fn has(&mut self, change: &SyncPoint) -> Result<bool, StoreError> {
        self.session.has(change).await
    }
}

/// A replica only needs a session and the version of the schema.
#[async_trait]
impl Store for Witness {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    fn address(&self) -> String {
        self.store.address()
    }

    fn embedded(&self) -> bool {
        self.store.embedded()
    }

    async fn session(&self) -> Result<Box<dyn Session>, StoreError> {
        let pace = self.pace.lock().expect("no panic under the lock").take();
        let pace = pace.expect("the replica opened a second session");
        let session = self.store.session().await?;
        let (replica, looks) = (self.replica.clone(), Arc::clone(&self.looks));
        Ok(Box::new(Watched { session, replica, looks, pace, answered: None }))
    }

    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        self.store.migrate().await
    }

    async fn prune_changes(&self, _: Duration) -> Result<u64, StoreError> {
        unreachable!()
    }

    async fn announce(&self, _: &Announcement<'_>) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn retract(&self, _: Uuid) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn touch_keys(&self, _: &[(KeyId, Timestamp)]) -> Result<Touched, StoreError> {
        unreachable!()
    }

    async fn write_memos(&self, _: &[NewMemo]) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn write_shadowed(&self, _: &[Shadowed]) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn write_refusals(&self, _: &[Refusal]) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn add_usage(&self, _: &[Used]) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn prune_usage(&self, _: Duration) -> Result<(), StoreError> {
        unreachable!()
    }
}
