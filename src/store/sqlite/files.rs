//! The files of a SQLite database: the database, its WAL, and the index of the WAL (<https://www.sqlite.org/wal.html>).

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::store::StoreError;
use crate::store::sql::FileIds;

/// How long a connection may take to close. It closes in a thread of its own, after the value was dropped.
const CLOSING: Duration = Duration::from_secs(2);

/// How often is looked whether it has closed.
const LOOK: Duration = Duration::from_millis(2);

/// The files of a database.
pub(super) struct Files {
    pub(super) database: PathBuf,
    pub(super) wal: PathBuf,
    pub(super) index: PathBuf,
}

impl Files {
    /// SQLite keeps the WAL beside the file itself, not beside a symbolic link to it.
    pub(super) fn of(file: &Path) -> Self {
        let real = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let beside = |end: &str| {
            let mut name = real.clone().into_os_string();
            name.push(end);
            PathBuf::from(name)
        };
        Self { database: file.to_owned(), wal: beside("-wal"), index: beside("-shm") }
    }

    /// Returns device and inode of each, which tell a file from another one that replaced it under the same name.
    pub(super) fn ids(&self) -> FileIds {
        let id = |file: &PathBuf| std::fs::metadata(file).ok().map(|meta| (meta.dev(), meta.ino()));
        [&self.database, &self.wal, &self.index].map(id)
    }

    /// Waits until this process has no deleted WAL open. The connections of a process share the index of the WAL, so a
    /// new connection would use the deleted files, too.
    ///
    /// SQLite itself deletes them when it closes the last connection, and closes them a moment later.
    ///
    /// # Errors
    ///
    /// One is still open after [`CLOSING`]: another program has deleted it while a connection uses it.
    pub(super) async fn wait_until_none_is_deleted_but_open(&self) -> Result<(), StoreError> {
        let began = Instant::now();
        while let Some(file) = self.deleted_but_open() {
            if began.elapsed() > CLOSING {
                let file = file.display();
                let why = format!("{file} was deleted while a connection used it, closing that one");
                return Err(StoreError::Unavailable(why));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Returns the WAL or its index, if this process has it open although it was deleted.
    fn deleted_but_open(&self) -> Option<&Path> {
        let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let open: Vec<_> = open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
        [&self.wal, &self.index].into_iter().map(PathBuf::as_path).find(|file| {
            let mut name = file.as_os_str().to_owned();
            name.push(" (deleted)");
            open.iter().any(|link| *link == *name)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tokio::task::yield_now;

    use super::*;
    use crate::store::Store as _;
    use crate::store::sqlite::SqliteStore;

    /// Returns a store, and its WAL in the state in which SQLite is about to close it: deleted, but open.
    async fn closing(dir: &Path) -> (SqliteStore, File) {
        let store = SqliteStore::new(&format!("sqlite://{}", dir.join("a.db").display())).unwrap();
        store.migrate().await.unwrap();
        let wal = dir.join("a.db-wal");
        // The connection that migrated closes in its own thread, and the last one to close deletes the WAL.
        while wal.exists() {
            yield_now().await;
        }
        Files::of(&dir.join("a.db")).wait_until_none_is_deleted_but_open().await.unwrap();
        let open = File::create_new(&wal).unwrap();
        std::fs::remove_file(&wal).unwrap();
        (store, open)
    }

    #[tokio::test]
    async fn a_new_connection_waits_for_the_last_one_to_close() {
        let dir = tempfile::tempdir().unwrap();
        let (store, wal) = closing(dir.path()).await;
        let opened = tokio::spawn(async move { store.session().await.map(drop) });
        yield_now().await;
        assert!(!opened.is_finished(), "it waits");
        drop(wal);
        opened.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_wal_that_stays_open_after_it_was_deleted_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (store, wal) = closing(dir.path()).await;
        let error = store.session().await.map(drop).unwrap_err();
        assert!(error.to_string().contains("a.db-wal was deleted while a connection used it"), "{error}");
        drop(wal);
        store.session().await.map(drop).unwrap();
    }
}
