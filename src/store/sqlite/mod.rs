//! The SQLite store: the embedded default, in a file.
//!
//! SQLite has one writer at a time, so the ids of the change log are in the order of commits, and a replica remembers
//! the last id that it read. `PRAGMA data_version` tells within microseconds whether another connection has written, so
//! a poll every 50 ms is cheap.
//!
//! Ids are stored as text in lower case, instants as RFC 3339 in UTC. The common form `2026-01-31 12:00:00` is read,
//! too.

mod adopt;
mod files;
mod inspect;
mod session;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use uuid::Uuid;

use self::files::Files;
use self::session::SqliteSession;
use super::migrations;
use super::sql::{self, ConnectionPool, Link, SqlStore};
use super::{
    AddressError, Adoption, Announcement, ChangeContext, LOCK_TIMEOUT, Migrated, NewMemo, Refusal,
    SchemaVersion, Session, Shadowed, Store, StoreError, Touched, Used, day_of,
};
use crate::audit::Actor;
use crate::clock::Timestamp;
use crate::key::KeyId;

/// A store in a file.
#[derive(Clone)]
pub struct SqliteStore {
    options: SqliteConnectOptions,
    context: ChangeContext,
    /// Whether the file may be created. A file that has existed is not created again if it disappears.
    may_create: Arc<AtomicBool>,
    pool: ConnectionPool,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("address", &self.address()).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Creates a store in this file (`sqlite://path`). The file is created when it is first used.
    ///
    /// # Errors
    ///
    /// The address is invalid, or names a database in memory.
    pub fn new(url: &str) -> Result<Self, AddressError> {
        if url.contains(":memory:") || url.contains("mode=memory") {
            return Err(AddressError::rejected(
                "a database in memory does not last until the next command: use a file",
            ));
        }
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|e| AddressError::Form(e.to_string().into()))?
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(LOCK_TIMEOUT);
        Ok(Self {
            options,
            context: ChangeContext::default(),
            may_create: Arc::new(AtomicBool::new(true)),
            pool: ConnectionPool::default(),
        })
    }

    /// Sets the actor for the audit log.
    #[must_use]
    pub fn acting_for(mut self, actor: Actor) -> Self {
        self.context = ChangeContext::of(actor.into());
        self
    }

    /// Sets the maximum number of connections that are kept for management. The default is 1.
    #[must_use]
    pub fn keeping_connections(mut self, most: usize) -> Self {
        self.pool = ConnectionPool::of(most);
        self
    }

    /// Sets how long statements wait for a lock. The default is [`LOCK_TIMEOUT`].
    #[must_use]
    pub fn giving_up_on_locks_after(mut self, limit: Duration) -> Self {
        self.options = self.options.busy_timeout(limit);
        self
    }

    /// Makes it an error if the file does not exist.
    #[must_use]
    pub fn of_existing_file(self) -> Self {
        self.may_create.store(false, Relaxed);
        self
    }

    async fn connect(&self) -> Result<SqliteConnection, StoreError> {
        self.make_file()?;
        Files::of(self.file()).wait_until_none_is_deleted_but_open().await?;
        let connection = self.options.connect().await?;
        self.may_create.store(false, Relaxed);
        Ok(connection)
    }

    /// Creates the file with access for its owner only. SQLite gives the `-wal` and `-shm` files the same mode.
    fn make_file(&self) -> Result<(), StoreError> {
        let file = self.file();
        if file.exists() {
            return Ok(());
        }
        let unavailable = |why: String| Err(StoreError::Unavailable(format!("{}: {why}", self.address())));
        if !self.may_create.load(Relaxed) {
            return unavailable(
                "there is no such file; check --database-url, or create it with `tenantgate migrate`".into(),
            );
        }
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                unavailable(format!("the file cannot be created: {error}"))
            }
            _ => Ok(()),
        }
    }

    fn file(&self) -> &Path {
        self.options.get_filename()
    }
}

/// What is wrong with a file that has several names: SQLite keeps a WAL for each name.
const LINKED: &str =
    "more than one name (hard links): changes under another name are not noticed, and damage the file";

async fn applied(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    let known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1";
    if sqlx::query(known).bind(migrations::TABLE).fetch_optional(&mut *connection).await?.is_none() {
        return Ok(0);
    }
    let sql = migrations::NEWEST_APPLIED;
    Ok(sqlx::query(sql).fetch_one(connection).await?.try_get::<Option<i64>, _>(0)?.unwrap_or(0))
}

async fn version(connection: &mut SqliteConnection) -> Result<SchemaVersion, StoreError> {
    let current = applied(connection).await?;
    Ok(SchemaVersion { current, needed: migrations::newest(migrations::SQLITE) })
}

#[async_trait]
impl SqlStore for SqliteStore {
    fn context(&self) -> &ChangeContext {
        &self.context
    }

    fn with_context(&self, context: ChangeContext) -> Self {
        Self { context, ..self.clone() }
    }

    fn pool(&self) -> &ConnectionPool {
        &self.pool
    }

    async fn open(&self) -> Result<sql::Connection, StoreError> {
        let connection = self.connect().await?;
        Ok(sql::Connection::from(connection).reading(Files::of(self.file()).ids()))
    }

    /// A file that was replaced under the same name is another database. What is written into a deleted WAL is lost.
    async fn is_same_database(&self, connection: &mut sql::Connection) -> bool {
        connection.files() == Some(Files::of(self.file()).ids())
    }

    async fn version(&self, link: &mut Link<'_>) -> Result<SchemaVersion, StoreError> {
        version(link.sqlite()?).await
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Migrated, StoreError> {
        adopt::migrate(self, adoption).await
    }

    async fn lock_holder(&self) -> Result<Option<String>, StoreError> {
        Ok(Some(format!("another process is writing to {}", self.file().display())))
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn address(&self) -> String {
        let file = self.options.get_filename();
        format!("sqlite://{}", std::path::absolute(file).unwrap_or_else(|_| file.to_owned()).display())
    }

    fn embedded(&self) -> bool {
        true
    }

    async fn session(&self) -> Result<Box<dyn Session>, StoreError> {
        version(&mut self.connect().await?).await?.check()?;
        Ok(Box::new(SqliteSession::open(self.file()).await?))
    }

    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        Ok(adopt::migrate(self, &Adoption::default()).await?.applied)
    }

    async fn prune_changes(&self, keep: Duration) -> Result<u64, StoreError> {
        let done =
            sqlx::query("DELETE FROM tenantgate_change WHERE at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?1)")
                .bind(format!("-{} seconds", keep.as_secs()))
                .execute(&mut self.connect().await?)
                .await?;
        Ok(done.rows_affected())
    }

    async fn announce(&self, announcement: &Announcement<'_>) -> Result<(), StoreError> {
        const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now'";
        let sql = format!(
            "INSERT INTO tenantgate_replica (id, name, applied, seen_at, serves_until)
             VALUES (?1, ?2, CAST(?3 AS INTEGER), {NOW}), {NOW}, ?4))
             ON CONFLICT (id) DO UPDATE SET applied = excluded.applied, seen_at = excluded.seen_at,
                                            serves_until = excluded.serves_until"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(announcement.id.to_string())
            .bind(announcement.name)
            .bind(announcement.position)
            .bind(format!("+{} seconds", announcement.serves_for.as_secs_f64()))
            .execute(&mut self.connect().await?)
            .await?;
        Ok(())
    }

    async fn retract(&self, id: Uuid) -> Result<(), StoreError> {
        let sql = "DELETE FROM tenantgate_replica
             WHERE id = ?1 OR serves_until < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 day')";
        sqlx::query(sql).bind(id.to_string()).execute(&mut self.connect().await?).await?;
        Ok(())
    }

    async fn touch_keys(&self, used: &[(KeyId, Timestamp)]) -> Result<Touched, StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut first = Vec::new();
        for (id, at) in used {
            let touched = |sql| sqlx::query(sql).bind(id.0.to_string()).bind(at.to_string());
            let never = "UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1 AND last_used_at IS NULL";
            if touched(never).execute(&mut *transaction).await?.rows_affected() > 0 {
                first.push(*id);
                continue;
            }
            // Instants are texts of fixed width in UTC, which sort by time.
            let before = "UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1 AND last_used_at < ?2";
            touched(before).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(Touched { first, locked: Vec::new() })
    }

    async fn write_memos(&self, memos: &[NewMemo]) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for new in memos {
            sqlx::query(
                "UPDATE api_keys SET key_memo = ?3 WHERE id = ?1 AND hashed_key = ?2 AND key_memo IS NOT ?3",
            )
            .bind(new.id.0.to_string())
            .bind(new.hash.text().as_str().to_owned())
            .bind(new.memo.to_string())
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    async fn write_shadowed(&self, requests: &[Shadowed]) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("DELETE FROM tenantgate_shadow_report WHERE day < date('now', '-30 days')")
            .execute(&mut *transaction)
            .await?;
        for Shadowed { kind, requests, first_seen, last_seen } in requests {
            // Instants are texts of fixed width in UTC, which sort by time and begin with the day.
            sqlx::query(
                "INSERT INTO tenantgate_shadow_report (day, reason, network, user_agent, method, path, key_prefix, requests, first_seen, last_seen)
                 VALUES (substr(?8, 1, 10), ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
                     first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)",
            )
            .bind(&kind.reason)
            .bind(&kind.network)
            .bind(&kind.user_agent)
            .bind(&kind.method)
            .bind(&kind.path)
            .bind(&kind.key_prefix)
            .bind(i64::try_from(*requests).unwrap_or(i64::MAX))
            .bind(first_seen.to_string())
            .bind(last_seen.to_string())
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    async fn write_refusals(&self, refusals: &[Refusal]) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            "DELETE FROM tenantgate_refusal WHERE at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-3 days')",
        )
        .execute(&mut *transaction)
        .await?;
        for row in refusals {
            sqlx::query(
                "INSERT INTO tenantgate_refusal (decision_id, at, reason, key_id) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )
            .bind(row.decision_id.to_string())
            .bind(row.at.to_string())
            .bind(row.reason)
            .bind(row.key.0.to_string())
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    async fn add_usage(&self, used: &[Used]) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for row in used {
            sqlx::query(
                "INSERT INTO tenantgate_usage (day, key_id, reason, requests) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET requests = requests + excluded.requests",
            )
            .bind(day_of(row.day))
            .bind(row.key.0.to_string())
            .bind(row.reason)
            .bind(i64::try_from(row.requests).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    async fn prune_usage(&self, keep: Duration) -> Result<(), StoreError> {
        const DAY: u64 = 86_400;
        sqlx::query("DELETE FROM tenantgate_usage WHERE day < date('now', ?1)")
            .bind(format!("-{} seconds", keep.as_secs().max(DAY)))
            .execute(&mut self.connect().await?)
            .await?;
        Ok(())
    }
}

/// The text of an instant that never comes.
const INFINITY_TEXT: &str = "infinity";
