//! A database that follows a script.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::profile::ProfileRow;
use crate::record::KeyRecord;
use crate::store::{
    Announcement, Change, Changes, NewMemo, Refusal, Session, Shadowed, SnapshotRow, Store, StoreError,
    SyncPoint, Touched, Used,
};
use crate::tenant::TenantId;

/// The behavior of a session at the next load or poll.
pub(super) enum ScriptStep {
    /// Returns these keys after 5 s.
    Slow(Vec<&'static str>),
    /// Returns these keys.
    Load(Vec<&'static str>),
    /// Returns these keys of another database.
    Stranger(Vec<&'static str>),
    /// Returns these keys as changed.
    Changed(Vec<&'static str>),
    /// Returns a mark.
    Marked,
    /// Requires a load of all rows.
    Everything,
    /// Fails.
    Broken,
    /// Never answers.
    Silence,
}

/// A database that follows a script: a list of steps for each session. After the last step of a session nothing
/// changes any more.
#[derive(Default)]
pub(crate) struct Script {
    pub(super) sessions: Mutex<VecDeque<Vec<ScriptStep>>>,
    pub(super) old_schema: bool,
    pub(super) embedded: bool,
    pub(super) migrated: AtomicBool,
    /// Whether it still has every change.
    pub(super) remembers: bool,
    pub(super) hint: Arc<Notify>,
    /// When sessions were opened.
    pub(super) asked: Mutex<Vec<Instant>>,
    /// The heartbeats of servers: their position, and how long they serve without polling.
    pub(in crate::replica) announced: Mutex<Vec<(String, Duration)>>,
    pub(in crate::replica) refuses_announcements: AtomicBool,
    pub(in crate::replica) retracted: Mutex<Vec<Uuid>>,
    /// The retention of each pruning of the change log.
    pub(in crate::replica) pruned: Mutex<Vec<Duration>>,
    /// The retention of each pruning of usage.
    pub(in crate::replica) pruned_usage: Mutex<Vec<Duration>>,
    /// The counts of usage that were added.
    pub(crate) usage: Mutex<Vec<Used>>,
    pub(crate) refuses_usage: AtomicBool,
}

struct Scripted {
    steps: VecDeque<ScriptStep>,
    remembers: bool,
    hint: Arc<Notify>,
}

pub(super) fn key(prefix: &str) -> SnapshotRow {
    let record = KeyRecord::new(KeyId(Uuid::nil()), TenantId(Uuid::nil()), prefix.into(), None);
    SnapshotRow::Key(record, None, ProfileRow::default())
}

pub(super) fn known() -> SyncPoint {
    SyncPoint { identity: "ours".into(), newest_change: Some("7".into()), ..SyncPoint::default() }
}

fn broken() -> StoreError {
    StoreError::Unavailable("broken".into())
}

#[async_trait]
impl Session for Scripted {
    async fn load(&mut self, sink: &mut (dyn FnMut(SnapshotRow) + Send)) -> Result<SyncPoint, StoreError> {
        let (keys, identity) = match self.steps.pop_front() {
            Some(ScriptStep::Load(keys)) => (keys, "ours"),
            Some(ScriptStep::Stranger(keys)) => (keys, "another"),
            Some(ScriptStep::Slow(keys)) => {
                sleep(Duration::from_secs(5)).await;
                (keys, "ours")
            }
            Some(ScriptStep::Silence) => std::future::pending().await,
            _ => return Err(broken()),
        };
        for prefix in keys {
            sink(key(prefix));
        }
        Ok(SyncPoint { identity: identity.into(), ..known() })
    }

    async fn hint(&mut self) -> Result<(), StoreError> {
        self.hint.notified().await;
        Ok(())
    }

    async fn has(&mut self, _: &SyncPoint) -> Result<bool, StoreError> {
        Ok(self.remembers)
    }

    async fn changes(&mut self) -> Result<Changes, StoreError> {
        match self.steps.pop_front() {
            Some(ScriptStep::Changed(keys)) => {
                let rows = keys.into_iter().map(|prefix| Change::Now(key(prefix))).collect();
                Ok(Changes::Rows(rows, known()))
            }
            Some(ScriptStep::Marked) => Ok(Changes::Rows(vec![Change::Mark], known())),
            Some(ScriptStep::Everything) => Ok(Changes::Everything),
            Some(ScriptStep::Silence) => std::future::pending().await,
            Some(_) => Err(broken()),
            None => Ok(Changes::Rows(Vec::new(), known())),
        }
    }
}

#[async_trait]
impl Store for Script {
    fn kind(&self) -> &'static str {
        "script"
    }
    fn address(&self) -> String {
        "script".into()
    }
    fn embedded(&self) -> bool {
        self.embedded
    }
    async fn session(&self) -> Result<Box<dyn Session>, StoreError> {
        self.asked.lock().unwrap().push(Instant::now());
        if self.old_schema && !self.migrated.load(Relaxed) {
            return Err(StoreError::OldSchema { current: 0, needed: 1 });
        }
        let steps = self.sessions.lock().unwrap().pop_front().ok_or_else(broken)?;
        let (steps, remembers, hint) = (steps.into(), self.remembers, Arc::clone(&self.hint));
        Ok(Box::new(Scripted { steps, remembers, hint }))
    }
    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        self.migrated.store(true, Relaxed);
        Ok(vec![1])
    }
    async fn prune_changes(&self, keep: Duration) -> Result<u64, StoreError> {
        self.pruned.lock().unwrap().push(keep);
        Err(broken())
    }
    async fn announce(&self, said: &Announcement<'_>) -> Result<(), StoreError> {
        self.announced.lock().unwrap().push((said.position.to_owned(), said.serves_for));
        if self.refuses_announcements.load(Relaxed) { Err(broken()) } else { Ok(()) }
    }
    async fn retract(&self, id: Uuid) -> Result<(), StoreError> {
        self.retracted.lock().unwrap().push(id);
        Err(broken())
    }
    async fn touch_keys(&self, _: &[(KeyId, Timestamp)]) -> Result<Touched, StoreError> {
        Err(broken())
    }
    async fn write_memos(&self, _: &[NewMemo]) -> Result<(), StoreError> {
        Err(broken())
    }
    async fn write_shadowed(&self, _: &[Shadowed]) -> Result<(), StoreError> {
        Err(broken())
    }
    async fn write_refusals(&self, _: &[Refusal]) -> Result<(), StoreError> {
        Err(broken())
    }
    async fn add_usage(&self, used: &[Used]) -> Result<(), StoreError> {
        if self.refuses_usage.load(Relaxed) {
            return Err(broken());
        }
        self.usage.lock().unwrap().extend(used);
        Ok(())
    }
    async fn prune_usage(&self, keep: Duration) -> Result<(), StoreError> {
        self.pruned_usage.lock().unwrap().push(keep);
        Err(broken())
    }
}
