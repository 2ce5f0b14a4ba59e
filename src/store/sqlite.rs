//! How is all that said to SQLite?
//!
//! The embedded default: a file, no server. SQLite has one writer at a time, so
//! the change log's ids are in the order of commits and a replica remembers the
//! last one it saw. `PRAGMA data_version` tells in microseconds whether anybody
//! wrote since, so looking every 50 ms costs nothing.
//!
//! Identities are kept as text in lower case, instants as RFC 3339 in UTC; other
//! programs' spelling of an instant (`2026-01-31 12:00:00`) is understood. Nothing
//! here judges.

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, Sqlite};
use tokio_stream::StreamExt as _;
use tracing::warn;
use uuid::Uuid;

use super::migrations;
use super::{
    Announcement, Change, Changes, Laggard, Look, NewKey, NewMemo, NewTenant, Row, SchemaVersion, Session,
    Store, StoreError,
};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::{KeyDetails, KeyRecord, Memo, SecretHash};
use crate::tenant::{Tenant, TenantId, TenantStatus};

const TENANT: &str = "id, name, db_schema_name, status, created_at";
const KEY: &str = "id, key_prefix, name, tenant_id, created_at, expires_at, last_used_at, revoked_at, revocation_reason, replaced_by, key_memo";

/// Tenants and keys in a file.
#[derive(Debug)]
pub struct SqliteStore {
    options: SqliteConnectOptions,
}

impl SqliteStore {
    /// A store in this file (`sqlite://path`), made when it is first used.
    ///
    /// # Errors
    ///
    /// The address makes no sense.
    pub fn new(url: &str) -> Result<Self, String> {
        if url.contains(":memory:") || url.contains("mode=memory") {
            return Err("a database in memory is gone before the next command: name a file".into());
        }
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|e| format!("the database URL makes no sense: {e}"))?
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(5));
        Ok(Self { options })
    }

    async fn connect(&self) -> Result<SqliteConnection, StoreError> {
        Ok(self.options.connect().await?)
    }
}

async fn applied(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    let known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1";
    if sqlx::query(known).bind(migrations::TABLE).fetch_optional(&mut *connection).await?.is_none() {
        return Ok(0);
    }
    let sql = migrations::NEWEST_APPLIED;
    Ok(sqlx::query(sql).fetch_one(connection).await?.try_get::<Option<i64>, _>(0)?.unwrap_or(0))
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

    fn has_schemas(&self) -> bool {
        false
    }

    async fn session(&self) -> Result<Box<dyn Session>, StoreError> {
        let connection = self.connect().await?;
        Ok(Box::new(SqliteSession { connection, cursor: 0, data_version: -1 }))
    }

    async fn schema_version(&self) -> Result<SchemaVersion, StoreError> {
        let current = applied(&mut self.connect().await?).await?;
        Ok(SchemaVersion { current, needed: migrations::newest(migrations::SQLITE) })
    }

    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        // The migrator's lock is none on SQLite: two programs that start together take turns here.
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let before = applied(&mut transaction).await?;
        migrations::migrator(migrations::SQLITE).run_direct(None, &mut *transaction, false).await?;
        transaction.commit().await?;
        Ok(migrations::after(migrations::SQLITE, before))
    }

    async fn insert_tenant(&self, tenant: &NewTenant) -> Result<Tenant, StoreError> {
        let sql = format!(
            "INSERT INTO tenants (id, name, db_schema_name, status) VALUES (?1, ?2, ?3, ?4) RETURNING {TENANT}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.id.map_or_else(Uuid::new_v4, |id| id.0).to_string())
            .bind(&tenant.name)
            .bind(&tenant.schema)
            .bind(tenant.status.as_str())
            .fetch_one(&mut self.connect().await?)
            .await?;
        tenant_of(&row)
    }

    async fn create_schema(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let sql = format!("SELECT {TENANT} FROM tenants ORDER BY created_at, rowid");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(&mut self.connect().await?)
            .await?
            .iter()
            .map(tenant_of)
            .collect()
    }

    async fn find_tenants(&self, reference: &str) -> Result<Vec<Tenant>, StoreError> {
        let sql = format!(
            "SELECT {TENANT} FROM tenants WHERE id = lower(?1) OR db_schema_name = ?1 OR name = ?1 ORDER BY created_at, rowid"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(reference)
            .fetch_all(&mut self.connect().await?)
            .await?
            .iter()
            .map(tenant_of)
            .collect()
    }

    async fn set_tenant_status(
        &self,
        id: TenantId,
        status: &TenantStatus,
    ) -> Result<Option<Tenant>, StoreError> {
        let sql = format!("UPDATE tenants SET status = ?2 WHERE id = ?1 RETURNING {TENANT}");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0.to_string())
            .bind(status.as_str())
            .fetch_optional(&mut self.connect().await?)
            .await?;
        row.as_ref().map(tenant_of).transpose()
    }

    async fn insert_key(&self, key: &NewKey) -> Result<KeyDetails, StoreError> {
        insert_key(&mut self.connect().await?, key).await
    }

    async fn keys(&self, tenant: Option<TenantId>) -> Result<Vec<KeyDetails>, StoreError> {
        let sql = format!(
            "SELECT {KEY} FROM api_keys WHERE ?1 IS NULL OR tenant_id = ?1 ORDER BY created_at, rowid"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.map(|id| id.0.to_string()))
            .fetch_all(&mut self.connect().await?)
            .await?
            .iter()
            .map(key_of)
            .collect()
    }

    async fn find_key(&self, reference: &str) -> Result<Option<KeyDetails>, StoreError> {
        let sql = format!("SELECT {KEY} FROM api_keys WHERE id = lower(?1) OR key_prefix = ?1");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(reference)
            .fetch_optional(&mut self.connect().await?)
            .await?;
        row.as_ref().map(key_of).transpose()
    }

    async fn revoke_key(
        &self,
        id: KeyId,
        at: Timestamp,
        reason: Option<&str>,
    ) -> Result<Option<KeyDetails>, StoreError> {
        let sql = format!(
            "UPDATE api_keys SET revocation_reason = CASE WHEN revoked_at IS NULL THEN ?3 ELSE revocation_reason END,
                                 revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1 RETURNING {KEY}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0.to_string())
            .bind(at.to_string())
            .bind(reason)
            .fetch_optional(&mut self.connect().await?)
            .await?;
        row.as_ref().map(key_of).transpose()
    }

    async fn replace_key(
        &self,
        id: KeyId,
        expires_at: Timestamp,
        successor: &NewKey,
    ) -> Result<Option<(KeyDetails, KeyDetails)>, StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let sql = format!("SELECT {KEY} FROM api_keys WHERE id = ?1 AND revoked_at IS NULL");
        let old = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0.to_string())
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(old) = old.as_ref().map(key_of).transpose()? else { return Ok(None) };
        let expires_at = old.expires_at.map_or(expires_at, |own| own.min(expires_at));
        let new = insert_key(&mut *transaction, successor).await?;
        sqlx::query("UPDATE api_keys SET expires_at = ?2, replaced_by = ?3 WHERE id = ?1")
            .bind(id.0.to_string())
            .bind(expires_at.to_string())
            .bind(new.id.0.to_string())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Some((KeyDetails { expires_at: Some(expires_at), replaced_by: Some(new.id), ..old }, new)))
    }

    async fn prune_changes(&self, keep: Duration) -> Result<u64, StoreError> {
        let done =
            sqlx::query("DELETE FROM auth_change WHERE at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?1)")
                .bind(format!("-{} seconds", keep.as_secs()))
                .execute(&mut self.connect().await?)
                .await?;
        Ok(done.rows_affected())
    }

    async fn announce(&self, announcement: &Announcement<'_>) -> Result<(), StoreError> {
        const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now'";
        let sql = format!(
            "INSERT INTO auth_replica (id, name, applied, seen_at, serves_until)
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
        let sql = "DELETE FROM auth_replica
             WHERE id = ?1 OR serves_until < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 day')";
        sqlx::query(sql).bind(id.to_string()).execute(&mut self.connect().await?).await?;
        Ok(())
    }

    async fn mark(&self) -> Result<String, StoreError> {
        // A change of nothing: every server looks, and writes down that it has.
        let sql = "INSERT INTO auth_change (key_prefix) VALUES ('') RETURNING id";
        let id: i64 = sqlx::query(sql).fetch_one(&mut self.connect().await?).await?.try_get(0)?;
        Ok(id.to_string())
    }

    async fn laggards(&self, mark: &str) -> Result<Vec<Laggard>, StoreError> {
        let sql = "SELECT name, seen_at FROM auth_replica
             WHERE serves_until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AND applied < CAST(?1 AS INTEGER) ORDER BY name";
        let rows = sqlx::query(sql).bind(mark).fetch_all(&mut self.connect().await?).await?;
        let laggard = |row: &SqliteRow| {
            let seen_at = instant(row, "seen_at")?.unwrap_or_default();
            Ok(Laggard { name: row.try_get("name")?, seen_at })
        };
        rows.iter().map(laggard).collect()
    }

    async fn touch_keys(&self, used: &[(KeyId, Timestamp)]) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for (id, at) in used {
            // Fixed-width text in UTC compares as time does.
            sqlx::query("UPDATE api_keys SET last_used_at = ?2 WHERE id = ?1 AND (last_used_at IS NULL OR last_used_at < ?2)")
                .bind(id.0.to_string())
                .bind(at.to_string())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
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
}

async fn insert_key<'e>(
    executor: impl sqlx::Executor<'e, Database = Sqlite>,
    key: &NewKey,
) -> Result<KeyDetails, StoreError> {
    let sql = format!(
        "INSERT INTO api_keys (id, key_prefix, hashed_key, tenant_id, name, created_at, expires_at, key_memo)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) RETURNING {KEY}"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(key.id.0.to_string())
        .bind(&key.prefix)
        .bind(&key.hash)
        .bind(key.tenant_id.0.to_string())
        .bind(&key.name)
        .bind(key.created_at.to_string())
        .bind(key.expires_at.map(|at| at.to_string()))
        .bind(key.memo.map(|memo| memo.to_string()))
        .fetch_one(executor)
        .await?;
    key_of(&row)
}

fn tenant_of(row: &SqliteRow) -> Result<Tenant, StoreError> {
    Ok(Tenant {
        id: TenantId(uuid(row, "id", "tenants")?),
        name: row.try_get("name")?,
        schema: row.try_get("db_schema_name")?,
        status: TenantStatus::parse(row.try_get("status")?),
        created_at: instant(row, "created_at")?.unwrap_or_default(),
    })
}

fn key_of(row: &SqliteRow) -> Result<KeyDetails, StoreError> {
    Ok(KeyDetails {
        id: KeyId(uuid(row, "id", "api_keys")?),
        prefix: row.try_get("key_prefix")?,
        name: row.try_get("name")?,
        tenant_id: TenantId(uuid(row, "tenant_id", "api_keys")?),
        created_at: instant(row, "created_at")?.unwrap_or_default(),
        expires_at: instant(row, "expires_at")?,
        last_used_at: instant(row, "last_used_at")?,
        revoked_at: instant(row, "revoked_at")?,
        revocation_reason: row.try_get("revocation_reason")?,
        replaced_by: uuid(row, "replaced_by", "api_keys").ok().map(KeyId),
        memo: memo(row)?.map(|memo| memo.pepper),
    })
}

fn uuid(row: &SqliteRow, column: &str, table: &'static str) -> Result<Uuid, StoreError> {
    let text: String = row.try_get(column)?;
    let why = format!("{column} is no UUID");
    Uuid::parse_str(&text).map_err(|_| StoreError::Inconsistent { table, row: text, why })
}

/// NULL and `infinity` are nothing; what cannot be read is the beginning of time, so that a row with such an
/// expiry is expired and the others are shown all the same.
fn instant(row: &SqliteRow, column: &str) -> Result<Option<Timestamp>, StoreError> {
    let text: Option<String> = row.try_get(column)?;
    Ok(text.filter(|t| t != INFINITY).map(|text| Timestamp::parse(&text).unwrap_or(Timestamp::MIN)))
}

fn is_instant(text: &str) -> bool {
    text == INFINITY || Timestamp::parse(text).is_some()
}

const INFINITY: &str = "infinity";

/// A connection that only reads.
struct SqliteSession {
    connection: SqliteConnection,
    /// The newest id of the change log that was taken account of.
    cursor: i64,
    /// What `PRAGMA data_version` said before the last look.
    data_version: i64,
}

#[async_trait]
impl Session for SqliteSession {
    async fn load(&mut self, sink: &mut (dyn FnMut(Row) + Send)) -> Result<Look, StoreError> {
        self.data_version = self.read_data_version().await?;
        let mut transaction = self.connection.begin().await?;
        let newest = sqlx::query(NEWEST_CHANGE).fetch_one(&mut *transaction).await?.try_get(0)?;
        let sql = format!("SELECT {TENANT} FROM tenants");
        for row in sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *transaction).await? {
            match tenant_of(&row) {
                Ok(tenant) => sink(Row::Tenant(tenant)),
                Err(StoreError::Inconsistent { row, why, .. }) => {
                    warn!(row, why, "damaged row of tenants, its keys get 503 until it is mended");
                }
                Err(error) => return Err(error),
            }
        }
        let sql = format!("SELECT {RECORD} FROM api_keys");
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch(&mut *transaction);
        while let Some(row) = rows.next().await {
            sink(key_row(&row?)?);
        }
        drop(rows);
        transaction.commit().await?;
        self.cursor = newest;
        Ok(self.look())
    }

    /// Nobody hints: the tick is enough.
    async fn hint(&mut self) -> Result<(), StoreError> {
        std::future::pending().await
    }

    async fn has(&mut self, change: &str) -> Result<bool, StoreError> {
        let newest: i64 = sqlx::query(NEWEST_CHANGE).fetch_one(&mut self.connection).await?.try_get(0)?;
        Ok(change.parse::<i64>().is_ok_and(|change| change <= newest))
    }

    async fn changes(&mut self) -> Result<Changes, StoreError> {
        let version = self.read_data_version().await?;
        if version == self.data_version {
            return Ok(Changes::Rows(Vec::new(), self.look()));
        }
        let mut transaction = self.connection.begin().await?;
        let newest: i64 = sqlx::query(NEWEST_CHANGE).fetch_one(&mut *transaction).await?.try_get(0)?;
        let missing: bool =
            sqlx::query(PRUNED).bind(self.cursor).fetch_one(&mut *transaction).await?.try_get(0)?;
        if newest < self.cursor || missing {
            return Ok(Changes::Everything);
        }
        let mut changes = Vec::new();
        let sql = "SELECT DISTINCT key_prefix, tenant_id FROM auth_change WHERE id > ?1";
        for row in sqlx::query(sql).bind(self.cursor).fetch_all(&mut *transaction).await? {
            changes.extend(change_of(&mut transaction, &row).await?);
        }
        transaction.commit().await?;
        (self.cursor, self.data_version) = (newest, version);
        Ok(Changes::Rows(changes, self.look()))
    }
}

const RECORD: &str =
    "id, tenant_id, key_prefix, hashed_key, expires_at, revoked_at IS NOT NULL AS revoked, key_memo";

/// The newest id ever given, whether or not the row is still there.
const NEWEST_CHANGE: &str =
    "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'auth_change'), 0)";

/// Whether rows after the cursor are missing from the log.
const PRUNED: &str = "SELECT coalesce((SELECT min(id) FROM auth_change WHERE id > ?1), ?1 + 1) > ?1 + 1
    OR (SELECT count(*) FROM auth_change WHERE id > ?1)
       < coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'auth_change'), 0) - ?1";

impl SqliteSession {
    fn look(&self) -> Look {
        Look {
            position: self.cursor.to_string(),
            newest_change: Some(self.cursor.to_string()),
            ..Look::default()
        }
    }

    async fn read_data_version(&mut self) -> Result<i64, StoreError> {
        Ok(sqlx::query("PRAGMA data_version").fetch_one(&mut self.connection).await?.try_get(0)?)
    }
}

async fn change_of(
    connection: &mut SqliteConnection,
    logged: &SqliteRow,
) -> Result<Option<Change>, StoreError> {
    if let Some(prefix) = logged.try_get::<Option<String>, _>("key_prefix")? {
        let sql = format!("SELECT {RECORD} FROM api_keys WHERE key_prefix = ?1");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&prefix).fetch_optional(connection).await?;
        let row = row.as_ref().map(key_row).transpose()?;
        return Ok(Some(row.map_or(Change::NoKey(prefix.into()), Change::Now)));
    }
    let Some(id) = logged.try_get::<Option<String>, _>("tenant_id")? else { return Ok(None) };
    let Ok(tenant_id) = Uuid::parse_str(&id).map(TenantId) else { return Ok(None) };
    let sql = format!("SELECT {TENANT} FROM tenants WHERE id = ?1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&id).fetch_optional(connection).await?;
    let tenant = row.as_ref().map(tenant_of).transpose()?;
    Ok(Some(tenant.map_or(Change::NoTenant(tenant_id), |tenant| Change::Now(Row::Tenant(tenant)))))
}

/// A row whose expiry cannot be read is damaged, not everlasting; so is one with an identity that is none.
fn key_row(row: &SqliteRow) -> Result<Row, StoreError> {
    let (id, tenant_id) = (uuid(row, "id", "api_keys"), uuid(row, "tenant_id", "api_keys"));
    let expires_at: Option<String> = row.try_get("expires_at")?;
    let sound = id.is_ok() && tenant_id.is_ok() && expires_at.as_deref().is_none_or(is_instant);
    let record = KeyRecord {
        id: KeyId(id.unwrap_or_default()),
        tenant_id: TenantId(tenant_id.unwrap_or_default()),
        prefix: row.try_get::<&str, _>("key_prefix")?.into(),
        hash: SecretHash::parse(row.try_get("hashed_key")?).filter(|_| sound),
        expires_at: instant(row, "expires_at")?.into(),
        revoked: row.try_get("revoked")?,
    };
    Ok(Row::Key(record, memo(row)?))
}

fn memo(row: &SqliteRow) -> Result<Option<Memo>, StoreError> {
    Ok(row.try_get::<Option<&str>, _>("key_memo")?.and_then(Memo::parse))
}
