//! How is all that said to Postgres?
//!
//! Management opens a connection for what it has to do: one statement or one
//! transaction. How a replica looks at the database is in [`session`]. Nothing here
//! judges.

mod instant;
mod session;

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{ColumnIndex, ConnectOptions as _, Connection as _, Postgres, Row as _};
use tokio::time::timeout;
use uuid::Uuid;

use self::instant::{Micros, expiry, instant};
use self::session::PostgresSession;
use super::migrations;
use super::{
    Announcement, CONNECT_TIMEOUT, Laggard, NewKey, NewMemo, NewTenant, SchemaVersion, Session, Store,
    StoreError,
};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::{KeyDetails, Memo};
use crate::tenant::{Tenant, TenantId, TenantStatus, is_schema_name};

const TENANT: &str = "id, name, db_schema_name, status, created_at";
const KEY: &str = "id, key_prefix, name, tenant_id, created_at, expires_at, last_used_at, revoked_at, revocation_reason, replaced_by, key_memo";

/// Tenants and keys in Postgres 13 or newer.
#[derive(Debug)]
pub struct PostgresStore {
    options: PgConnectOptions,
}

impl PostgresStore {
    /// A store at this address, not yet connected. Takes what libpq calls a connection URI, and the
    /// spelling of SQLAlchemy (`postgresql+asyncpg://…`).
    ///
    /// # Errors
    ///
    /// The address makes no sense; says why, without repeating it.
    pub fn new(url: &str) -> Result<Self, String> {
        let options = PgConnectOptions::from_str(&plain_url(url))
            .map_err(|e| format!("the database URL makes no sense: {e}"))?
            .application_name("tenantgate");
        Ok(Self { options })
    }

    /// A connection for one piece of management. There is no pool: management is rare, and a pool hides a
    /// refused connection behind tries of its own.
    async fn connect(&self) -> Result<PgConnection, StoreError> {
        timeout(CONNECT_TIMEOUT, self.options.connect())
            .await
            .unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut))
            .map_err(|error| match StoreError::from(error) {
                StoreError::Unavailable(why) => StoreError::Unavailable(format!("{}: {why}", self.host())),
                other => other,
            })
    }

    /// Where it is to be reached.
    fn host(&self) -> String {
        format!("{}:{}", self.options.get_host(), self.options.get_port())
    }
}

async fn applied(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let known = "SELECT to_regclass($1) IS NOT NULL";
    if !sqlx::query(known).bind(migrations::TABLE).fetch_one(&mut *connection).await?.try_get::<bool, _>(0)? {
        return Ok(0);
    }
    let sql = migrations::NEWEST_APPLIED;
    Ok(sqlx::query(sql).fetch_one(connection).await?.try_get::<Option<i64>, _>(0)?.unwrap_or(0))
}

/// `postgresql+asyncpg://…?ssl=require` as other programs of a deployment spell it, and
/// `postgresql://user@/db?host=/run/postgresql`, whose missing host an RFC 3986 parser will not have.
fn plain_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let scheme = scheme.split('+').next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let host = if authority.ends_with('@') { "localhost" } else { "" };
    let path = path.replacen("?ssl=", "?sslmode=", 1).replacen("&ssl=", "&sslmode=", 1);
    format!("{scheme}://{authority}{host}{path}")
}

#[async_trait]
impl Store for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn address(&self) -> String {
        format!("postgres://{}/{}", self.host(), self.options.get_database().unwrap_or_default())
    }

    fn embedded(&self) -> bool {
        false
    }

    fn has_schemas(&self) -> bool {
        true
    }

    async fn session(&self) -> Result<Box<dyn Session>, StoreError> {
        // LISTEN fails on a standby, with words that do not help.
        let mut probe = self.connect().await?;
        if sqlx::query("SELECT pg_is_in_recovery()").fetch_one(&mut probe).await?.try_get(0)? {
            return Err(session::standby());
        }
        Ok(Box::new(PostgresSession::open(&self.options).await?))
    }

    async fn schema_version(&self) -> Result<SchemaVersion, StoreError> {
        let current = applied(&mut self.connect().await?).await?;
        Ok(SchemaVersion { current, needed: migrations::newest(migrations::POSTGRES) })
    }

    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        let mut connection = self.connect().await?;
        let before = applied(&mut connection).await?;
        migrations::migrator(migrations::POSTGRES).run_direct(None, &mut connection, false).await?;
        Ok(migrations::after(migrations::POSTGRES, before))
    }

    async fn create_roles(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connect().await?;
        let named = "SELECT set_config('tenantgate.roles', $1, false)";
        sqlx::query(named).bind(prefix).execute(&mut connection).await?;
        sqlx::raw_sql(migrations::ROLES).execute(&mut connection).await?;
        Ok(["serve", "admin", "migrate"].map(|role| format!("{prefix}_{role}")).to_vec())
    }

    async fn insert_tenant(&self, tenant: &NewTenant) -> Result<Tenant, StoreError> {
        let sql = format!(
            "INSERT INTO tenants (id, name, db_schema_name, status)
             VALUES (coalesce($1, gen_random_uuid()), $2, $3, $4) RETURNING {TENANT}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.id.map(|id| id.0))
            .bind(&tenant.name)
            .bind(&tenant.schema)
            .bind(tenant.status.as_str())
            .fetch_one(&mut self.connect().await?)
            .await?;
        tenant_of(&row)
    }

    async fn create_schema(&self, schema: &str) -> Result<(), StoreError> {
        if !is_schema_name(schema) {
            return Err(StoreError::Refused(format!("{schema:?} is no name for a tenant's schema")));
        }
        // A name cannot be a parameter; the grammar above leaves nothing that a quote would have to tame.
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"")))
            .execute(&mut self.connect().await?)
            .await?;
        Ok(())
    }

    async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let sql = format!("SELECT {TENANT} FROM tenants ORDER BY created_at, id");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(&mut self.connect().await?)
            .await?
            .iter()
            .map(tenant_of)
            .collect()
    }

    async fn find_tenants(&self, reference: &str) -> Result<Vec<Tenant>, StoreError> {
        let sql = format!(
            "SELECT {TENANT} FROM tenants WHERE id = $1 OR db_schema_name = $2 OR name = $2 ORDER BY created_at, id"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(Uuid::parse_str(reference).ok())
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
        let sql = format!("UPDATE tenants SET status = $2 WHERE id = $1 RETURNING {TENANT}");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0)
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
            "SELECT {KEY} FROM api_keys WHERE $1::uuid IS NULL OR tenant_id = $1 ORDER BY created_at, id"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.map(|id| id.0))
            .fetch_all(&mut self.connect().await?)
            .await?
            .iter()
            .map(key_of)
            .collect()
    }

    async fn find_key(&self, reference: &str) -> Result<Option<KeyDetails>, StoreError> {
        let sql = format!("SELECT {KEY} FROM api_keys WHERE id = $1 OR key_prefix = $2");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(Uuid::parse_str(reference).ok())
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
            "UPDATE api_keys SET revocation_reason = CASE WHEN revoked_at IS NULL THEN $3 ELSE revocation_reason END,
                                 revoked_at = coalesce(revoked_at, $2) WHERE id = $1 RETURNING {KEY}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0)
            .bind(Micros(at))
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
        let mut transaction = connection.begin().await?;
        let new = insert_key(&mut *transaction, successor).await?;
        let sql = format!(
            "UPDATE api_keys SET expires_at = LEAST(expires_at, $2), replaced_by = $3
             WHERE id = $1 AND revoked_at IS NULL RETURNING {KEY}"
        );
        let old = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0)
            .bind(Micros(expires_at))
            .bind(new.id.0)
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(old) = old else { return Ok(None) };
        transaction.commit().await?;
        Ok(Some((key_of(&old)?, new)))
    }

    async fn prune_changes(&self, keep: Duration) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT auth_prune(make_interval(secs => $1))")
            .bind(keep.as_secs_f64())
            .fetch_one(&mut self.connect().await?)
            .await?;
        Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))
    }

    async fn announce(&self, announcement: &Announcement<'_>) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        sqlx::query(
            "INSERT INTO auth_replica (id, name, applied, seen_at, serves_until)
             VALUES ($1, $2, $3::pg_snapshot, now(), now() + make_interval(secs => $4))
             ON CONFLICT (id) DO UPDATE SET applied = excluded.applied, seen_at = excluded.seen_at,
                                            serves_until = excluded.serves_until",
        )
        .bind(announcement.id)
        .bind(announcement.name)
        .bind(announcement.position)
        .bind(announcement.serves_for.as_secs_f64())
        .execute(&mut connection)
        .await?;
        Ok(())
    }

    async fn retract(&self, id: Uuid) -> Result<(), StoreError> {
        // Its own row, and those of servers that were killed and cannot serve any more.
        let sql = "DELETE FROM auth_replica WHERE id = $1 OR serves_until < now() - interval '1 day'";
        sqlx::query(sql).bind(id).execute(&mut self.connect().await?).await?;
        Ok(())
    }

    async fn mark(&self) -> Result<String, StoreError> {
        // A transaction of its own: who sees it sees everything that was committed before it began.
        let sql = "SELECT auth_mark()::text";
        Ok(sqlx::query(sql).fetch_one(&mut self.connect().await?).await?.try_get(0)?)
    }

    async fn laggards(&self, mark: &str) -> Result<Vec<Laggard>, StoreError> {
        let sql = "SELECT name, seen_at FROM auth_replica
             WHERE serves_until > now() AND NOT pg_visible_in_snapshot($1::xid8, applied) ORDER BY name";
        let rows = sqlx::query(sql).bind(mark).fetch_all(&mut self.connect().await?).await?;
        let laggard = |row: &PgRow| {
            Ok(Laggard { name: row.try_get("name")?, seen_at: row.try_get::<Micros, _>("seen_at")?.0 })
        };
        rows.iter().map(laggard).collect()
    }

    async fn touch_keys(&self, used: &[(KeyId, Timestamp)]) -> Result<(), StoreError> {
        let (ids, at): (Vec<_>, Vec<_>) = used.iter().map(|(id, at)| (id.0, Micros(*at))).unzip();
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin().await?;
        // A lost second of last_used_at is no loss; a revocation that waits for it would be.
        sqlx::query(
            "SELECT set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '500ms', true)",
        )
        .execute(&mut *transaction)
        .await?;
        // Locked in the order of ids, rows that somebody else holds left for the next time: no deadlock.
        sqlx::query(
            "WITH used AS (SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS u (id, at)),
                  mine AS (SELECT k.id, u.at FROM api_keys k JOIN used u USING (id)
                           WHERE k.last_used_at IS NULL OR k.last_used_at < u.at
                           ORDER BY k.id FOR NO KEY UPDATE OF k)
             UPDATE api_keys k SET last_used_at = GREATEST(k.last_used_at, LEAST(mine.at, now()))
             FROM mine WHERE k.id = mine.id",
        )
        .bind(ids)
        .bind(at)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn write_memos(&self, memos: &[NewMemo]) -> Result<(), StoreError> {
        let ids: Vec<_> = memos.iter().map(|new| new.id.0).collect();
        let hashes: Vec<_> = memos.iter().map(|new| new.hash.text().as_str().to_owned()).collect();
        let texts: Vec<_> = memos.iter().map(|new| new.memo.to_string()).collect();
        sqlx::query(
            "WITH new AS (SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[]) AS n (id, hash, memo)),
                  mine AS (SELECT k.id, n.memo FROM api_keys k JOIN new n ON k.id = n.id AND k.hashed_key = n.hash
                           WHERE k.key_memo IS DISTINCT FROM n.memo ORDER BY k.id FOR NO KEY UPDATE OF k SKIP LOCKED)
             UPDATE api_keys k SET key_memo = mine.memo FROM mine WHERE k.id = mine.id",
        )
        .bind(ids)
        .bind(hashes)
        .bind(texts)
        .execute(&mut self.connect().await?)
        .await?;
        Ok(())
    }
}

async fn insert_key<'e>(
    executor: impl sqlx::Executor<'e, Database = Postgres>,
    key: &NewKey,
) -> Result<KeyDetails, StoreError> {
    let sql = format!(
        "INSERT INTO api_keys (id, key_prefix, hashed_key, tenant_id, name, created_at, expires_at, key_memo)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING {KEY}"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(key.id.0)
        .bind(&key.prefix)
        .bind(&key.hash)
        .bind(key.tenant_id.0)
        .bind(&key.name)
        .bind(Micros(key.created_at))
        .bind(key.expires_at.map(Micros))
        .bind(key.memo.map(|memo| memo.to_string()))
        .fetch_one(executor)
        .await?;
    key_of(&row)
}

fn tenant_of(row: &PgRow) -> Result<Tenant, StoreError> {
    Ok(Tenant {
        id: TenantId(row.try_get("id")?),
        name: row.try_get("name")?,
        schema: row.try_get("db_schema_name")?,
        status: TenantStatus::parse(row.try_get("status")?),
        created_at: row.try_get::<Micros, _>("created_at")?.0,
    })
}

fn key_of(row: &PgRow) -> Result<KeyDetails, StoreError> {
    Ok(KeyDetails {
        id: KeyId(row.try_get("id")?),
        prefix: row.try_get("key_prefix")?,
        name: row.try_get("name")?,
        tenant_id: TenantId(row.try_get("tenant_id")?),
        created_at: row.try_get::<Micros, _>("created_at")?.0,
        expires_at: expiry(row, "expires_at")?,
        last_used_at: instant(row, "last_used_at")?,
        revoked_at: instant(row, "revoked_at")?,
        revocation_reason: row.try_get("revocation_reason")?,
        replaced_by: row.try_get::<Option<Uuid>, _>("replaced_by")?.map(KeyId),
        memo: memo(row, "key_memo")?.map(|memo| memo.pepper),
    })
}

fn memo(row: &PgRow, column: impl ColumnIndex<PgRow>) -> Result<Option<Memo>, StoreError> {
    Ok(row.try_get::<Option<&str>, _>(column)?.and_then(Memo::parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spelling_of_sqlalchemy_is_understood() {
        for (given, plain) in [
            ("postgresql+asyncpg://u:p@h/db", "postgresql://u:p@h/db"),
            ("postgresql+asyncpg://u:p@h/db?ssl=require", "postgresql://u:p@h/db?sslmode=require"),
            ("postgresql://u:p@/db?host=/run/pg", "postgresql://u:p@localhost/db?host=/run/pg"),
            ("postgresql:///db?host=/run/pg", "postgresql:///db?host=/run/pg"),
            ("postgres://h/db?sslmode=verify-full", "postgres://h/db?sslmode=verify-full"),
        ] {
            assert_eq!(plain_url(given), plain);
        }
        for url in
            ["postgresql+asyncpg://u:p%40ss@h:1/db", "postgresql://u@/db?host=/run/pg", "postgresql:///db"]
        {
            assert!(PostgresStore::new(url).is_ok(), "{url}");
        }
    }
}
