//! How is all that said to Postgres?
//!
//! Management opens a connection for what it has to do. A replica's session is
//! one connection, pinned: it
//! LISTENs and asks on the same backend, so that every answer also proves that
//! the listener lives.
//!
//! The look at what changed rests on snapshots (`pg_current_snapshot`): a row of
//! the change log is new exactly if its transaction is visible now and was not
//! visible at the last look. That misses no transaction, however late it commits,
//! and needs no order among them. Rows are read by the same statement, so under
//! READ COMMITTED they are as of the same instant. Nothing here judges.

use std::str::FromStr;

use async_trait::async_trait;
use sqlx::postgres::{
    PgConnectOptions, PgConnection, PgListener, PgPoolOptions, PgRow, PgTypeInfo, PgValueRef,
};
use sqlx::{ConnectOptions as _, Connection as _, Decode, Encode, Postgres, Row as _, Type};
use tokio::time::timeout;
use uuid::Uuid;

use super::migrations;
use super::{
    CONNECT_TIMEOUT, Change, Changes, Look, NewKey, NewTenant, Row, SchemaVersion, Session, Store, StoreError,
};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::key::format::is_stored_prefix;
use crate::record::{KeyDetails, KeyRecord, SecretHash};
use crate::tenant::{Tenant, TenantId, TenantStatus, is_schema_name};

const TENANT: &str = "id, name, db_schema_name, status, created_at";
const KEY: &str =
    "id, key_prefix, name, tenant_id, created_at, expires_at, last_used_at, revoked_at, revocation_reason";
const CHANNEL: &str = "auth_change";

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
                StoreError::Unavailable(why) => StoreError::Unavailable(format!("{}: {why}", self.address())),
                other => other,
            })
    }

    /// The address without user and password.
    fn address(&self) -> String {
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

/// What a replica's session runs under. `row_security` off turns a policy that would hide rows into an error.
const SESSION_SETTINGS: [(&str, &str); 5] = [
    ("row_security", "off"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_isolation", "read committed"),
    ("statement_timeout", "60s"),
    ("lock_timeout", "2s"),
];

/// `postgresql+asyncpg://…?ssl=require` as other programs of a deployment spell it.
fn plain_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let scheme = scheme.split('+').next().unwrap_or_default();
    format!("{scheme}://{}", rest.replacen("?ssl=", "?sslmode=", 1).replacen("&ssl=", "&sslmode=", 1))
}

#[async_trait]
impl Store for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
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
            return Err(standby());
        }
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(self.options.clone().options(SESSION_SETTINGS));
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(Box::new(PostgresSession {
            listener,
            backend: None,
            snapshot: String::new(),
            identity: String::new(),
        }))
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
        let sql = format!(
            "UPDATE api_keys SET expires_at = LEAST(expires_at, $2) WHERE id = $1 AND revoked_at IS NULL RETURNING {KEY}"
        );
        let old = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0)
            .bind(Micros(expires_at))
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(old) = old else { return Ok(None) };
        let new = insert_key(&mut *transaction, successor).await?;
        transaction.commit().await?;
        Ok(Some((key_of(&old)?, new)))
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
}

async fn insert_key<'e>(
    executor: impl sqlx::Executor<'e, Database = Postgres>,
    key: &NewKey,
) -> Result<KeyDetails, StoreError> {
    let sql = format!(
        "INSERT INTO api_keys (id, key_prefix, hashed_key, tenant_id, name, created_at, expires_at)
         VALUES (coalesce($1, gen_random_uuid()), $2, $3, $4, $5, $6, $7) RETURNING {KEY}"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(key.id.map(|id| id.0))
        .bind(&key.prefix)
        .bind(&key.hash)
        .bind(key.tenant_id.0)
        .bind(&key.name)
        .bind(Micros(key.created_at))
        .bind(key.expires_at.map(Micros))
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
        expires_at: instant(row, "expires_at")?.filter(|at| *at != INFINITY),
        last_used_at: instant(row, "last_used_at")?,
        revoked_at: instant(row, "revoked_at")?,
        revocation_reason: row.try_get("revocation_reason")?,
    })
}

fn instant(row: &PgRow, column: &str) -> Result<Option<Timestamp>, sqlx::Error> {
    Ok(row.try_get::<Option<Micros>, _>(column)?.map(|m| m.0))
}

/// What every look begins with: a row of kind `h` about the look itself.
const HEADER: &str = "SELECT 'h' AS rec, NULL::uuid AS id, NULL::uuid AS tenant_id, NULL::text AS key_prefix,
    NULL::text AS hashed_key, NULL::timestamptz AS expires_at, NULL::bool AS revoked,
    NULL::text AS name, NULL::text AS db_schema_name, NULL::text AS status, NULL::timestamptz AS created_at,
    pg_current_snapshot()::text AS snapshot, pg_is_in_recovery() AS standby, clock_timestamp() AS now,
    pg_backend_pid() || ' ' || pg_postmaster_start_time()::text AS backend";

const KEY_COLUMNS: &str = "k.id, k.tenant_id, k.key_prefix::text, k.hashed_key, k.expires_at,
    k.revoked_at IS NOT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL";
const TENANT_COLUMNS: &str =
    "t.id, NULL, NULL, NULL, NULL, NULL, t.name, t.db_schema_name, t.status, t.created_at,
    NULL, NULL, NULL, NULL";

/// One backend of the primary, for as long as it lasts.
struct PostgresSession {
    listener: PgListener,
    /// The backend that the first look came from; another one knows nothing of our LISTEN.
    backend: Option<String>,
    /// What was visible at the last look.
    snapshot: String,
    identity: String,
}

#[async_trait]
impl Session for PostgresSession {
    async fn load(&mut self, sink: &mut (dyn FnMut(Row) + Send)) -> Result<Look, StoreError> {
        use tokio_stream::StreamExt as _;
        // Which cluster and which database in it: a standby that was promoted has the same, a stranger has not.
        let identity = "SELECT system_identifier || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
                        FROM pg_control_system()";
        self.identity = sqlx::query(identity).fetch_one(&mut self.listener).await?.try_get(0)?;
        let sql = format!(
            "{HEADER}, NULL::bool AS reload UNION ALL SELECT 't', {TENANT_COLUMNS}, NULL FROM tenants t
             UNION ALL SELECT 'k', {KEY_COLUMNS}, NULL FROM api_keys k"
        );
        let (mut look, mut header) = (Look::default(), None);
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch(&mut self.listener);
        while let Some(row) = rows.next().await {
            let row = row?;
            match row.try_get("rec")? {
                "h" => header = Some(Header::read(&row)?),
                "t" => sink(Row::Tenant(tenant_of(&row)?)),
                _ => match record_of(&row)? {
                    Some(record) => sink(Row::Key(record)),
                    None => look.unusable += 1,
                },
            }
        }
        drop(rows);
        look.now = Some(self.accept(header)?.now);
        look.identity.clone_from(&self.identity);
        Ok(look)
    }

    async fn hint(&mut self) -> Result<(), StoreError> {
        match self.listener.try_recv().await? {
            Some(_) => Ok(()),
            None => Err(StoreError::Unavailable("the connection to the database broke".into())),
        }
    }

    async fn changes(&mut self) -> Result<Changes, StoreError> {
        let sql = format!(
            "WITH c AS MATERIALIZED (
                SELECT DISTINCT key_prefix, tenant_id FROM auth_change
                WHERE xid >= pg_snapshot_xmin($1::pg_snapshot) AND NOT pg_visible_in_snapshot(xid, $1::pg_snapshot))
             {HEADER}, (SELECT xid FROM auth_change_floor) >= pg_snapshot_xmin($1::pg_snapshot)
                OR EXISTS (SELECT FROM c WHERE key_prefix IS NULL AND tenant_id IS NULL) AS reload
             UNION ALL SELECT 't', c.tenant_id, t.id, NULL, NULL, NULL, NULL, t.name, t.db_schema_name, t.status, t.created_at,
                NULL, NULL, NULL, NULL, NULL
                FROM c LEFT JOIN tenants t ON t.id = c.tenant_id WHERE c.tenant_id IS NOT NULL
             UNION ALL SELECT 'k', k.id, k.tenant_id, c.key_prefix, k.hashed_key, k.expires_at, k.revoked_at IS NOT NULL,
                NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
                FROM c LEFT JOIN api_keys k ON k.key_prefix = c.key_prefix WHERE c.key_prefix IS NOT NULL"
        );
        let rows =
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&self.snapshot).fetch_all(&mut self.listener).await?;
        let (mut header, mut changes) = (None, Vec::with_capacity(rows.len() - 1));
        for row in &rows {
            match row.try_get("rec")? {
                "h" => header = Some(Header::read(row)?),
                "t" => changes.push(tenant_change(row)?),
                _ => changes.extend(key_change(row)?),
            }
        }
        let header = self.accept(header)?;
        if header.reload {
            return Ok(Changes::Everything);
        }
        Ok(Changes::Rows(
            changes,
            Look { now: Some(header.now), identity: self.identity.clone(), unusable: 0 },
        ))
    }
}

impl PostgresSession {
    /// Takes account of a look, unless it came from where it should not.
    fn accept(&mut self, header: Option<Header>) -> Result<Header, StoreError> {
        let header =
            header.ok_or_else(|| StoreError::Unavailable("the database answered with nothing".into()))?;
        if header.standby {
            return Err(standby());
        }
        if self.backend.as_ref().is_some_and(|known| *known != header.backend) {
            let why =
                "the connection moved to another backend: connect to the database itself, not to a pooler";
            return Err(StoreError::Impostor(why.into()));
        }
        self.backend = Some(header.backend.clone());
        self.snapshot.clone_from(&header.snapshot);
        Ok(header)
    }
}

/// A standby shows commits in an order of its own, and late.
fn standby() -> StoreError {
    StoreError::Impostor("the database is a standby, tenantgate needs the primary".into())
}

/// What a look says about itself.
struct Header {
    snapshot: String,
    standby: bool,
    now: Timestamp,
    backend: String,
    reload: bool,
}

impl Header {
    fn read(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self {
            snapshot: row.try_get("snapshot")?,
            standby: row.try_get("standby")?,
            now: row.try_get::<Micros, _>("now")?.0,
            backend: row.try_get("backend")?,
            reload: row.try_get::<Option<bool>, _>("reload")?.unwrap_or(false),
        })
    }
}

/// Nothing, if no key can have this prefix.
fn record_of(row: &PgRow) -> Result<Option<KeyRecord>, StoreError> {
    let prefix: String = row.try_get("key_prefix")?;
    if !is_stored_prefix(&prefix) {
        return Ok(None);
    }
    Ok(Some(KeyRecord {
        id: KeyId(row.try_get("id")?),
        tenant_id: TenantId(row.try_get("tenant_id")?),
        prefix: prefix.into(),
        hash: SecretHash::parse(row.try_get("hashed_key")?),
        expires_at: instant(row, "expires_at")?.filter(|at| *at != INFINITY),
        revoked: row.try_get("revoked")?,
    }))
}

fn key_change(row: &PgRow) -> Result<Option<Change>, StoreError> {
    if row.try_get::<Option<Uuid>, _>("id")?.is_none() {
        return Ok(Some(Change::NoKey(row.try_get::<String, _>("key_prefix")?.into())));
    }
    Ok(record_of(row)?.map(|record| Change::Now(Row::Key(record))))
}

fn tenant_change(row: &PgRow) -> Result<Change, StoreError> {
    if row.try_get::<Option<Uuid>, _>("tenant_id")?.is_none() {
        return Ok(Change::NoTenant(TenantId(row.try_get("id")?)));
    }
    Ok(Change::Now(Row::Tenant(tenant_of(row)?)))
}

/// `timestamptz` as it is: microseconds, with Postgres' two infinities at the ends.
/// <https://www.postgresql.org/docs/current/datatype-datetime.html>
#[derive(Clone, Copy)]
struct Micros(Timestamp);

const INFINITY: Timestamp = Timestamp(i64::MAX);

/// Postgres counts from 2000-01-01.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

impl Type<Postgres> for Micros {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }
}

impl sqlx::postgres::PgHasArrayType for Micros {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz[]")
    }
}

impl<'r> Decode<'r, Postgres> for Micros {
    fn decode(value: PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        let micros = i64::from_be_bytes(value.as_bytes()?.try_into()?);
        let infinite = micros == i64::MAX || micros == i64::MIN;
        Ok(Self(Timestamp(if infinite { micros } else { micros.saturating_add(POSTGRES_EPOCH) })))
    }
}

impl Encode<'_, Postgres> for Micros {
    fn encode_by_ref(
        &self,
        buffer: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        buffer.extend(&self.0.0.saturating_sub(POSTGRES_EPOCH).to_be_bytes());
        Ok(sqlx::encode::IsNull::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_spelling_of_sqlalchemy_is_understood() {
        for (given, plain) in [
            ("postgresql+asyncpg://u:p@h/db", "postgresql://u:p@h/db"),
            ("postgresql+asyncpg://u:p@h/db?ssl=require", "postgresql://u:p@h/db?sslmode=require"),
            ("postgres://h/db?sslmode=verify-full", "postgres://h/db?sslmode=verify-full"),
        ] {
            assert_eq!(plain_url(given), plain);
        }
        assert!(PostgresStore::new("postgresql+asyncpg://u:p%40ss@h:1/db").is_ok());
    }
}
