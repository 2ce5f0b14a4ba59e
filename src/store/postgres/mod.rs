//! The Postgres store.
//!
//! [`super::sql`] manages tenants and keys. [`session`] is how a replica follows the database.

mod address;
mod connection;
mod examine;
mod inspect;
mod locks;
mod migrate;
mod moved;
mod poll;
mod pooler;
mod privileges;
mod schema_check;
mod schemas;
mod session;
mod shape;
mod statistics;

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{ColumnIndex, Connection as _, Row as _};
use uuid::Uuid;

use self::address::DatabaseUrl;
use self::pooler::Vetted;
use self::session::PostgresSession;
use self::statistics::use_async_commit;
use super::migrations;
use super::sql::instant::Micros;
use super::sql::{self, ConnectionPool, Link, SqlStore};
use super::{
    AddressError, Adoption, Announcement, ChangeContext, LOCK_TIMEOUT, Migrated, NewMemo, Refusal,
    SchemaVersion, Session, Shadowed, Store, StoreError, Touched, UrlSource, Used, day_of,
};
use crate::audit::Actor;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::Memo;

/// The default schema of the tables.
const DEFAULT_SCHEMA: &str = "public";

/// A store in Postgres 13 or newer.
#[derive(Clone)]
pub struct PostgresStore {
    source: UrlSource,
    /// The address when it was first read.
    address: DatabaseUrl,
    schema: String,
    lock_timeout: Duration,
    context: ChangeContext,
    pool: ConnectionPool,
    vetted: Vetted,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore").field("address", &self.address()).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Creates a store at this address without connecting. The address is a connection URI of libpq, or has the form
    /// that SQLAlchemy uses (`postgresql+asyncpg://…`).
    ///
    /// # Errors
    ///
    /// The address is invalid. The error says why, without the address.
    pub fn new(url: &str) -> Result<Self, AddressError> {
        Self::at(UrlSource::Text(url.to_owned()), None)
    }

    /// Creates a store whose address is read from `source`, with its tables in `schema` (default `public`).
    ///
    /// # Errors
    ///
    /// The address cannot be read or is invalid, the schema is invalid, or the address names another schema.
    pub fn at(source: UrlSource, schema: Option<&str>) -> Result<Self, AddressError> {
        let address = DatabaseUrl::parse(&source.read()?)?;
        let schema = match (schema, address.schema.as_deref()) {
            (Some(said), _) if !address::is_schema(said) => {
                return Err(AddressError::invalid(
                    "--database-schema",
                    "expected the name of one Postgres schema",
                ));
            }
            (Some(said), Some(other)) if said != other => {
                return Err(AddressError::rejected(format!(
                    "the URL's options set search_path to {other:?}, but --database-schema is {said:?}: use the same \
                     schema"
                )));
            }
            (said, other) => said.or(other).unwrap_or(DEFAULT_SCHEMA).to_owned(),
        };
        Ok(Self {
            source,
            address,
            schema,
            lock_timeout: LOCK_TIMEOUT,
            context: ChangeContext::default(),
            pool: ConnectionPool::default(),
            vetted: Vetted::default(),
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
        self.lock_timeout = limit;
        self
    }

    /// Returns the current address. Reads the URL file and the password file again.
    fn address_now(&self) -> Result<DatabaseUrl, StoreError> {
        let read = self.source.read().and_then(|url| DatabaseUrl::parse(&url));
        let address = read.map_err(|why| StoreError::Unavailable(format!("the database URL: {why}")))?;
        if address.schema.as_ref().is_some_and(|schema| *schema != self.schema) {
            let why = "the database URL names another schema than at the start: restart serve".to_owned();
            return Err(StoreError::WrongDatabase(why));
        }
        Ok(address)
    }
}

impl PostgresStore {
    async fn version_at(&self, connection: &mut PgConnection) -> Result<SchemaVersion, StoreError> {
        let current = applied(&mut *connection).await?;
        if current == 0 {
            migrate::refuse_tables_elsewhere(connection, &self.schema).await?;
        }
        Ok(SchemaVersion { current, needed: migrations::newest(migrations::POSTGRES) })
    }
}

#[async_trait]
impl SqlStore for PostgresStore {
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
        Ok(self.connect().await?.into())
    }

    async fn is_same_database(&self, connection: &mut sql::Connection) -> bool {
        connection.answers().await
    }

    async fn version(&self, link: &mut Link<'_>) -> Result<SchemaVersion, StoreError> {
        self.version_at(link.postgres()?).await
    }

    async fn refuse_change(&self, link: &mut Link<'_>) -> Result<(), StoreError> {
        moved::refuse_on_subscriber(link.postgres()?).await
    }

    fn has_schemas(&self) -> bool {
        true
    }

    async fn check_schema(&self, link: &mut Link<'_>, schema: &str, adopt: bool) -> Result<(), StoreError> {
        schemas::check(link.postgres()?, &self.schema, schema, adopt).await
    }

    async fn create_schema(&self, link: &mut Link<'_>, schema: &str, adopt: bool) -> Result<(), StoreError> {
        schemas::create(link.postgres()?, &self.schema, schema, adopt).await
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Migrated, StoreError> {
        migrate::migrate(self, adoption).await
    }

    async fn lock_holder(&self) -> Result<Option<String>, StoreError> {
        locks::holder(self).await
    }

    async fn create_roles(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connect().await?;
        let named = "SELECT set_config('tenantgate.roles', $1, false)";
        sqlx::query(named).bind(prefix).execute(&mut connection).await?;
        sqlx::raw_sql(migrations::ROLES).execute(&mut connection).await?;
        Ok(["serve", "admin", "migrate"].map(|role| format!("{prefix}_{role}")).to_vec())
    }
}

/// Formats the host and port, or the socket, for display.
fn host(options: &PgConnectOptions) -> String {
    let (host, port) = (options.get_host(), options.get_port());
    match options.get_socket() {
        Some(socket) => format!("{}:{port}", socket.display()),
        None if host.contains(':') => format!("[{host}]:{port}"),
        None => format!("{host}:{port}"),
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

#[async_trait]
impl Store for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn address(&self) -> String {
        let options = &self.address.options;
        format!("postgres://{}/{}", host(options), options.get_database().unwrap_or_default())
    }

    fn embedded(&self) -> bool {
        false
    }

    async fn session(&self) -> Result<Box<dyn Session>, StoreError> {
        // The address may lead elsewhere than the last time.
        self.vetted.forget();
        let mut probe = self.connect().await?;
        // LISTEN fails on a standby, too, but with an error that does not name the cause.
        if sqlx::query("SELECT pg_is_in_recovery()").fetch_one(&mut probe).await?.try_get(0)? {
            return Err(session::standby());
        }
        self.version_at(&mut probe).await?.check()?;
        moved::remove_foreign_rows(&mut probe).await?;
        Ok(Box::new(PostgresSession::open(self).await?))
    }

    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        match migrate::migrate(self, &Adoption::default()).await {
            Err(StoreError::Locked(why)) => {
                let holder = locks::holder(self).await.ok().flatten();
                Err(StoreError::Locked(holder.map_or(why.clone(), |holder| format!("{why}: {holder}"))))
            }
            migrated => Ok(migrated?.applied),
        }
    }

    async fn prune_changes(&self, keep: Duration) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT tenantgate_prune(make_interval(secs => $1))")
            .bind(keep.as_secs_f64())
            .fetch_one(&mut self.connect().await?)
            .await?;
        Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))
    }

    async fn announce(&self, announcement: &Announcement<'_>) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        sqlx::query(
            "INSERT INTO tenantgate_replica (id, name, applied, seen_at, serves_until)
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
        // Deletes its own row, and those of killed servers, which accept no keys any more.
        let sql = "DELETE FROM tenantgate_replica WHERE id = $1 OR serves_until < now() - interval '1 day'";
        sqlx::query(sql).bind(id).execute(&mut self.connect().await?).await?;
        Ok(())
    }

    async fn touch_keys(&self, used: &[(KeyId, Timestamp)]) -> Result<Touched, StoreError> {
        statistics::touch_keys(self, used).await
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

    async fn write_shadowed(&self, requests: &[Shadowed]) -> Result<(), StoreError> {
        statistics::write_shadowed(self, requests).await
    }

    async fn write_refusals(&self, refusals: &[Refusal]) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin().await?;
        use_async_commit(&mut transaction).await?;
        sqlx::query("DELETE FROM tenantgate_refusal WHERE at < now() - interval '3 days'")
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO tenantgate_refusal (decision_id, at, reason, key_id)
             SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::uuid[]) ON CONFLICT DO NOTHING",
        )
        .bind(refusals.iter().map(|row| row.decision_id).collect::<Vec<_>>())
        .bind(refusals.iter().map(|row| Micros(row.at)).collect::<Vec<_>>())
        .bind(refusals.iter().map(|row| row.reason.to_owned()).collect::<Vec<_>>())
        .bind(refusals.iter().map(|row| row.key.0).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn add_usage(&self, used: &[Used]) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin().await?;
        use_async_commit(&mut transaction).await?;
        sqlx::query("SELECT tenantgate_add_usage($1::text[]::date[], $2, $3, $4)")
            .bind(used.iter().map(|row| day_of(row.day)).collect::<Vec<_>>())
            .bind(used.iter().map(|row| row.key.0).collect::<Vec<_>>())
            .bind(used.iter().map(|row| row.reason.to_owned()).collect::<Vec<_>>())
            .bind(used.iter().map(|row| i64::try_from(row.requests).unwrap_or(i64::MAX)).collect::<Vec<_>>())
            .execute(&mut *transaction)
            .await?;
        // With an explicit commit, a statement whose client timed out does not count. Without it, the retry would count
        // twice.
        transaction.commit().await?;
        Ok(())
    }

    async fn prune_usage(&self, keep: Duration) -> Result<(), StoreError> {
        let sql = "SELECT tenantgate_prune_usage(make_interval(secs => $1))";
        sqlx::query(sql).bind(keep.as_secs_f64()).execute(&mut self.connect().await?).await?;
        Ok(())
    }
}

fn memo(row: &PgRow, column: impl ColumnIndex<PgRow>) -> Result<Option<Memo>, StoreError> {
    Ok(row.try_get::<Option<&str>, _>(column)?.and_then(Memo::parse))
}
