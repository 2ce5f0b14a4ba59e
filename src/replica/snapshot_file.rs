//! Keeps a copy of the snapshot in a file, so that a server can start while the database is unavailable.
//!
//! A server with a snapshot file writes its snapshot there regularly, and reads it once, when it starts. The file is
//! authenticated with a pepper, so that only servers with it can add keys. It contains the time of its last poll, so
//! that it is never treated as younger than it is. It is rejected if it is older than `--max-staleness`, of another
//! database, or from the future. It contains no plain text of keys: bcrypt hashes and memos, as the database does.
//!
//! A restored snapshot is treated like an own poll: if a database with quite different content appears, the server
//! waits until the file is too old to serve from.

mod format;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use self::format::{FileHead, open, save};
use super::{Replica, Snapshot};
use crate::clock::{Clock, Timestamp};
use crate::store::SyncPoint;

/// The difference between two clocks that is still normal.
const SLACK: Duration = Duration::from_secs(2);

/// Options of the file.
#[derive(Clone, Debug)]
pub struct SnapshotFileOptions {
    /// The path of the file.
    pub path: PathBuf,
    /// The pause between two writes while the data changes. Writing a million keys takes one to two seconds of one
    /// core.
    pub interval: Duration,
    /// The maximum age of a snapshot that is served.
    pub max_staleness: Duration,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum UnusableFile {
    /// The file is missing or cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// The file is incomplete or has another format.
    #[error("not a complete snapshot file of this version")]
    Malformed,
    /// The file was not written with one of the peppers, or was changed later.
    #[error("written with another pepper, or modified later")]
    NotOurs,
    /// The file is of another database.
    #[error("written for another database, {0}")]
    OtherDatabase(String),
    /// The time in the file is in the future.
    #[error("from the future, {0}: check the clock of this machine")]
    Future(Timestamp),
    /// The last poll before the file was written is too long ago.
    #[error("{0:?} old, older than --max-staleness")]
    TooOld(Duration),
}

/// Writes and restores the snapshot file of a replica. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotFile {
    replica: Replica,
    clock: Arc<dyn Clock>,
    /// The name of the database, from its store.
    source: String,
    options: SnapshotFileOptions,
    written: Option<Written>,
    failing: bool,
}

/// The last write.
#[derive(Clone, Copy)]
struct Written {
    generation: u64,
    age_then: Duration,
    at: Instant,
    took: Duration,
}

impl SnapshotFile {
    /// Creates the snapshot file of this replica. `source` is the name of the database, from its store.
    #[must_use]
    pub fn new(
        replica: Replica,
        clock: Arc<dyn Clock>,
        source: String,
        options: SnapshotFileOptions,
    ) -> Self {
        Self { replica, clock, source, options, written: None, failing: false }
    }

    /// Publishes the snapshot in the file, if it is valid. Must be called before the first poll.
    pub fn restore(&self) {
        match self.read() {
            Ok((snapshot, point, age)) => {
                let (keys, tenants) = (snapshot.key_count(), snapshot.tenant_count());
                info!(
                    keys,
                    tenants,
                    age_ms = age.as_millis(),
                    "serving from the snapshot file until there is a database"
                );
                self.replica.restored(snapshot, point, age, self.clock.uptime());
            }
            Err(UnusableFile::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => {
                debug!("no snapshot file yet");
            }
            Err(why) => warn!(file = %self.options.path.display(), %why, "the snapshot file is not used"),
        }
    }

    fn read(&self) -> Result<(Snapshot, SyncPoint, Duration), UnusableFile> {
        let bytes = fs::read(&self.options.path)?;
        let (head, body) = open(&bytes, self.replica.peppers())?;
        if head.source != self.source {
            return Err(UnusableFile::OtherDatabase(head.source));
        }
        let age = self.age(&head)?;
        let mut reload = self.replica.snapshot().reload(self.replica.peppers());
        format::rows(&head, body, |row| reload.add(row))?;
        let snapshot = reload.finish();
        Ok((snapshot, head.sync_point(), age))
    }

    /// Returns the time since the last poll before the file was written: by the wall clock, and also by the uptime if
    /// the machine was not restarted. The longer one counts, so that setting the wall clock back does not make a file
    /// younger.
    fn age(&self, head: &FileHead) -> Result<Duration, UnusableFile> {
        let (synced_at, now) = (Timestamp(head.synced_at), self.clock.now());
        if synced_at > now.after(SLACK) {
            return Err(UnusableFile::Future(synced_at));
        }
        let same_boot = head.boot == self.clock.boot();
        let uptime = Duration::from_millis(head.uptime_ms);
        let by_uptime = if same_boot { self.clock.uptime().saturating_sub(uptime) } else { Duration::ZERO };
        let age = now.since(synced_at).max(by_uptime);
        if age > self.options.max_staleness { Err(UnusableFile::TooOld(age)) } else { Ok(age) }
    }

    /// Writes the file whenever it is due, forever.
    pub async fn run(mut self) {
        let mut generation = self.replica.generation();
        loop {
            // Both outcomes lead to the next check.
            let _ = timeout(Duration::from_secs(1), generation.changed()).await;
            if self.is_due() {
                self.write().await;
            }
        }
    }

    /// Returns whether the file should be written. It is not due after every change, because a busy database would
    /// cause constant writes.
    fn is_due(&self) -> bool {
        let Some(age) = self.replica.age(self.clock.as_ref()) else { return false };
        let Some(written) = &self.written else { return self.replica.connected() };
        let changed = self.replica.snapshot().generation != written.generation;
        let rested = written.at.elapsed() >= self.options.interval.max(written.took * 20);
        let behind = (written.at.elapsed() + written.age_then).saturating_sub(age);
        // Without the database the snapshot will not get newer: write the last one at once.
        let last = !self.replica.connected() && (changed || behind > SLACK);
        // A failed write is retried, also without a change.
        last || (changed || self.failing) && rested || behind >= self.options.max_staleness / 4
    }

    /// Writes the current snapshot.
    pub async fn write(&mut self) {
        // The age is read first: if a snapshot is published in between, the file is newer than it claims, never
        // older.
        let Some(age) = self.replica.age(self.clock.as_ref()) else { return };
        let head = self.head(age);
        let snapshot = Arc::clone(&self.replica.snapshot());
        let (generation, at) = (snapshot.generation, Instant::now());
        let (path, peppers) = (self.options.path.clone(), self.replica.peppers().clone());
        let work = move || save(&path, head, &snapshot, &peppers);
        // The message of a panic may contain secrets; the panic hook logs it without them.
        let panicked = |_| Err(io::Error::other("a panic during the write"));
        let result = tokio::task::spawn_blocking(work).await.unwrap_or_else(panicked);
        self.written = Some(Written { generation, age_then: age, at, took: at.elapsed() });
        self.record(result);
    }

    fn head(&self, age: Duration) -> FileHead {
        let point = self.replica.sync_point();
        let (now, uptime) = (self.clock.now(), self.clock.uptime());
        FileHead {
            synced_at: now.before(age).0,
            boot: self.clock.boot(),
            uptime_ms: u64::try_from(uptime.saturating_sub(age).as_millis()).unwrap_or(u64::MAX),
            source: self.source.clone(),
            database_now: point.now.map(|now| now.0),
            identity: point.identity,
            place: point.place,
            tables: point.tables,
            position: point.position,
            newest_change: point.newest_change,
            keys: 0,
            tenants: 0,
            plans: 0,
            rules: 0,
        }
    }

    /// Counts the result. Logs one line for each change between success and failure.
    fn record(&mut self, result: io::Result<u64>) {
        let stats = self.replica.stats();
        match result {
            Ok(bytes) => {
                stats.kept.add_one();
                debug!(bytes, "snapshot file written");
                self.failing = false;
            }
            Err(error) => {
                stats.not_kept.add_one();
                if !std::mem::replace(&mut self.failing, true) {
                    let file = self.options.path.display();
                    warn!(%file, %error, "the snapshot file cannot be written, a restart without the database would serve old data or nothing");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
