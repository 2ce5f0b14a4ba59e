//! A replica's session with Postgres.
//!
//! One pinned connection: it LISTENs and polls on the same backend, so every answer also proves that the listener
//! lives.
//!
//! Polls rest on snapshots (`pg_current_snapshot`): a row of the change log is new exactly if its transaction is
//! visible now, was not visible at the last poll, and is not of the future. The last condition leaves out rows that
//! a restore brought from another cluster. This misses no transaction, however late it commits, and needs no order
//! among them. Rows are read by the same statement, so under READ COMMITTED they are as of the same instant.
//! <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT>

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgListener, PgPoolOptions, PgRow};
use tokio_stream::StreamExt as _;
use uuid::Uuid;

use super::connection::pin;
use super::instant::{Micros, expiry};
use super::{PostgresStore, memo};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::profile::ProfileRow;
use crate::record::{KeyRecord, Memo, SecretHash};
use crate::store::{CONNECT_TIMEOUT, Change, Changes, Look, Row, Session, StoreError};
use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};

const CHANNEL: &str = "tenantgate_change";

/// What a replica's session runs under, beside what every session does.
///
/// A poll finds a handful of rows through indexes. The planner cannot know that: after a bulk load its estimates say
/// a quarter of a million, and it would choose bitmaps, hashes and compilation that cost a hundred times more than
/// the rows. Without those methods the plan is the same whatever the estimates are, and costs what has changed. A
/// load reads whole tables, which has one plan.
const SETTINGS: [(&str, &str); 12] = [
    ("default_transaction_read_only", "on"),
    ("default_transaction_isolation", "read committed"),
    ("statement_timeout", "60s"),
    ("lock_timeout", "2s"),
    ("jit", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashagg", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("enable_seqscan", "off"),
    ("max_parallel_workers_per_gather", "0"),
    // Planning takes longer than the poll; the one plan is made once.
    ("plan_cache_mode", "force_generic_plan"),
];

/// What every look begins with: a row of kind `h` about the look itself.
const HEADER: &str = "SELECT 'h' AS rec, NULL::uuid AS id, NULL::uuid AS tenant_id, NULL::text AS key_prefix,
    NULL::text AS hashed_key, NULL::timestamptz AS expires_at, NULL::bool AS revoked,
    NULL::text AS key_memo, NULL::text AS name, NULL::text AS db_schema_name, NULL::text AS status, NULL::timestamptz AS created_at, NULL::text AS mode,
    pg_current_snapshot()::text AS snapshot, pg_is_in_recovery() AS standby, clock_timestamp() AS now,
    pg_backend_pid() || ' ' || pg_postmaster_start_time()::text AS backend,
    (SELECT id || ' ' || xid::text FROM tenantgate_change ORDER BY id DESC LIMIT 1) AS newest";

// The columns of a look in their order: a million rows are read faster by place than by name.
const REC: usize = 0;
const ID: usize = 1;
const TENANT_ID: usize = 2;
const KEY_PREFIX: usize = 3;
const HASHED_KEY: usize = 4;
const EXPIRES_AT: usize = 5;
const REVOKED: usize = 6;
const KEY_MEMO: usize = 7;
const NAME: usize = 8;
const DB_SCHEMA_NAME: usize = 9;
const STATUS: usize = 10;
const CREATED_AT: usize = 11;
const MODE: usize = 12;

const KEY_COLUMNS: &str = "k.id, k.tenant_id, k.key_prefix::text, k.hashed_key, k.expires_at,
    k.revoked_at IS NOT NULL, k.key_memo, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL";
const TENANT_COLUMNS: &str =
    "t.id, NULL, NULL, NULL, NULL, NULL, NULL, t.name, t.db_schema_name, t.status, t.created_at, t.mode,
    NULL, NULL, NULL, NULL, NULL";

/// One backend of the primary, for as long as it lasts.
pub(super) struct PostgresSession {
    listener: PgListener,
    /// The backend that the first look came from; another one knows nothing of our LISTEN.
    backend: Option<String>,
    /// What was visible at the last look.
    snapshot: String,
    which: Which,
    schema: String,
}

/// Which database it is.
#[derive(Default)]
struct Which {
    identity: String,
    place: String,
    /// Which change log it has.
    log: String,
}

#[async_trait]
impl Session for PostgresSession {
    async fn load(&mut self, sink: &mut (dyn FnMut(Row) + Send)) -> Result<Look, StoreError> {
        self.which = which(&mut self.listener).await?;
        let sql = format!(
            "{HEADER}, NULL::bool AS reload UNION ALL SELECT 't', {TENANT_COLUMNS}, NULL FROM tenants t
             UNION ALL SELECT 'k', {KEY_COLUMNS}, NULL FROM api_keys k"
        );
        let mut header = None;
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch(&mut self.listener);
        while let Some(row) = rows.next().await {
            let row = row?;
            match row.try_get(REC)? {
                "h" => header = Some(Header::read(&row)?),
                "t" => sink(Row::Tenant(tenant_row(&row)?)),
                _ => sink(key_row(&row)?),
            }
        }
        drop(rows);
        let header = self.accept(header)?;
        Ok(self.look(header))
    }

    async fn hint(&mut self) -> Result<(), StoreError> {
        match self.listener.try_recv().await? {
            // One look answers all the hints there are.
            Some(_) => {
                while self.listener.next_buffered().is_some() {}
                Ok(())
            }
            None => Err(StoreError::Unavailable("the connection to the database broke".into())),
        }
    }

    async fn changes(&mut self) -> Result<Changes, StoreError> {
        // OFFSET 0: each row is looked up by its index, also if the table was empty when the plan was made.
        let sql = format!(
            "WITH c AS MATERIALIZED (
                SELECT DISTINCT key_prefix, tenant_id FROM tenantgate_change
                WHERE xid >= pg_snapshot_xmin($1::pg_snapshot) AND xid < pg_snapshot_xmax(pg_current_snapshot())
                  AND NOT pg_visible_in_snapshot(xid, $1::pg_snapshot))
             {HEADER}, coalesce((SELECT xid FROM tenantgate_change_floor WHERE xid < pg_snapshot_xmax(pg_current_snapshot()))
                >= pg_snapshot_xmin($1::pg_snapshot), false)
                OR EXISTS (SELECT FROM c WHERE key_prefix IS NULL AND tenant_id IS NULL) AS reload
             UNION ALL SELECT 't', c.tenant_id, t.id, NULL, NULL, NULL, NULL, NULL, t.name, t.db_schema_name, t.status, t.created_at,
                t.mode, NULL, NULL, NULL, NULL, NULL, NULL
                FROM c LEFT JOIN LATERAL (SELECT * FROM tenants WHERE id = c.tenant_id OFFSET 0) t ON true
                WHERE c.tenant_id IS NOT NULL
             UNION ALL SELECT 'k', k.id, k.tenant_id, c.key_prefix, k.hashed_key, k.expires_at, k.revoked_at IS NOT NULL,
                k.key_memo, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
                FROM c LEFT JOIN LATERAL (SELECT id, tenant_id, hashed_key, expires_at, revoked_at, key_memo
                    FROM api_keys WHERE key_prefix = c.key_prefix OFFSET 0) k ON true WHERE c.key_prefix IS NOT NULL"
        );
        let (mut header, mut changes) = (None, Vec::new());
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&self.snapshot).fetch(&mut self.listener);
        while let Some(row) = rows.next().await {
            let row = row?;
            match row.try_get(REC)? {
                "h" => header = Some(Header::read(&row)?),
                "t" => changes.push(tenant_change(&row)?),
                _ => changes.push(key_change(&row)?),
            }
        }
        drop(rows);
        let header = self.accept(header)?;
        if header.reload {
            return Ok(Changes::Everything);
        }
        Ok(Changes::Rows(changes, self.look(header)))
    }

    async fn has(&mut self, known: &Look) -> Result<bool, StoreError> {
        let change: Vec<_> = known.newest_change.as_deref().unwrap_or_default().split(' ').collect();
        let [log, id, xid] = change.as_slice() else { return Ok(true) };
        // A subscriber has a log of its own, which says nothing of its publisher's.
        if *log != self.which.log {
            return Ok(true);
        }
        // Elsewhere, transactions have other numbers; how far the log had come is what moved with it.
        let moved = known.place != self.which.place;
        let sql = "SELECT CASE WHEN $3 THEN
                (SELECT coalesce(last_value, 0) >= $1::text::bigint FROM pg_sequences
                 WHERE schemaname = $4 AND sequencename = 'tenantgate_change_id_seq')
            ELSE EXISTS (SELECT FROM tenantgate_change WHERE id = $1::text::bigint AND xid = $2::text::xid8)
                OR (SELECT xid >= $2::text::xid8 FROM tenantgate_change_floor) END";
        let query = sqlx::query(sql).bind(id).bind(xid).bind(moved).bind(&self.schema);
        Ok(query.fetch_one(&mut self.listener).await?.try_get::<Option<bool>, _>(0)?.unwrap_or(true))
    }
}

/// Reads which database this is.
async fn which(listener: &mut PgListener) -> Result<Which, StoreError> {
    let sql = "SELECT i.id::text, i.log::text, (SELECT system_identifier FROM pg_control_system()) || '/' ||
                      (SELECT oid FROM pg_database WHERE datname = current_database())
               FROM (SELECT 1) AS one LEFT JOIN tenantgate_identity i ON true";
    let row = sqlx::query(sql).fetch_one(listener).await?;
    let Some(identity) = row.try_get(0)? else {
        let why = "the database has no identity (tenantgate_identity is empty): run `tenantgate migrate`";
        return Err(StoreError::WrongDatabase(why.into()));
    };
    Ok(Which { identity, log: row.try_get(1)?, place: row.try_get(2)? })
}

impl PostgresSession {
    pub(super) async fn open(store: &PostgresStore) -> Result<Self, StoreError> {
        let address = store.address_now()?;
        let settings = store.settings(&address, &SETTINGS);
        // sqlx listens only on connections of a pool; this one has a single connection and is never shared.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(move |connection, _| {
                let settings = settings.clone();
                Box::pin(async move {
                    let pinned = pin(connection, &settings).await;
                    pinned.map_err(|error| sqlx::Error::Configuration(Box::new(error)))
                })
            })
            .connect_lazy_with(address.options.clone());
        let mut listener =
            PgListener::connect_with(&pool).await.map_err(|error| store.at_host(&address, error.into()))?;
        // A connection that is lost must be seen to be lost.
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        let (backend, snapshot, schema) = (None, String::new(), store.schema.clone());
        Ok(Self { listener, backend, snapshot, which: Which::default(), schema })
    }

    fn look(&self, header: Header) -> Look {
        Look {
            now: Some(header.now),
            identity: self.which.identity.clone(),
            place: self.which.place.clone(),
            position: header.snapshot,
            newest_change: header.newest.map(|newest| format!("{} {newest}", self.which.log)),
        }
    }

    /// Takes account of a look, unless it came from where it should not.
    fn accept(&mut self, header: Option<Header>) -> Result<Header, StoreError> {
        let header =
            header.ok_or_else(|| StoreError::Unavailable("the database answered with nothing".into()))?;
        if header.standby {
            return Err(standby());
        }
        if self.backend.as_ref().is_some_and(|known| *known != header.backend) {
            return Err(StoreError::pooler());
        }
        self.backend = Some(header.backend.clone());
        self.snapshot.clone_from(&header.snapshot);
        Ok(header)
    }
}

/// A standby shows commits in an order of its own, and late.
pub(super) fn standby() -> StoreError {
    StoreError::WrongDatabase("the database is a standby, tenantgate needs the primary".into())
}

/// What a look says about itself.
struct Header {
    snapshot: String,
    standby: bool,
    now: Timestamp,
    backend: String,
    reload: bool,
    newest: Option<String>,
}

impl Header {
    fn read(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self {
            snapshot: row.try_get("snapshot")?,
            standby: row.try_get("standby")?,
            now: row.try_get::<Micros, _>("now")?.0,
            backend: row.try_get("backend")?,
            reload: row.try_get::<Option<bool>, _>("reload")?.unwrap_or(false),
            newest: row.try_get("newest")?,
        })
    }
}

/// One key, read as a look reads it.
pub(super) async fn key_record(
    connection: &mut PgConnection,
    prefix: &str,
) -> Result<Option<(KeyRecord, Option<Memo>)>, StoreError> {
    let sql = format!("SELECT 'k', {KEY_COLUMNS} FROM api_keys k WHERE k.key_prefix = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(prefix).fetch_optional(connection).await?;
    row.as_ref().map(record).transpose()
}

fn key_row(row: &PgRow) -> Result<Row, StoreError> {
    record(row).map(|(record, memo)| Row::Key(record, memo, ProfileRow::default()))
}

fn record(row: &PgRow) -> Result<(KeyRecord, Option<Memo>), StoreError> {
    let record = KeyRecord {
        id: KeyId(row.try_get(ID)?),
        tenant_id: TenantId(row.try_get(TENANT_ID)?),
        prefix: row.try_get::<&str, _>(KEY_PREFIX)?.into(),
        hash: SecretHash::parse(row.try_get(HASHED_KEY)?),
        expires_at: expiry(row, EXPIRES_AT)?.into(),
        revoked: row.try_get(REVOKED)?,
        not_before: Timestamp::MIN,
        disabled: false,
    };
    Ok((record, memo(row, KEY_MEMO)?))
}

fn key_change(row: &PgRow) -> Result<Change, StoreError> {
    if row.try_get::<Option<Uuid>, _>(ID)?.is_none() {
        let prefix: &str = row.try_get(KEY_PREFIX)?;
        // No key has an empty prefix: it is how a mark is written.
        return Ok(if prefix.is_empty() { Change::Mark } else { Change::NoKey(prefix.into()) });
    }
    Ok(Change::Now(key_row(row)?))
}

fn tenant_row(row: &PgRow) -> Result<Tenant, StoreError> {
    Ok(Tenant {
        id: TenantId(row.try_get(ID)?),
        name: row.try_get(NAME)?,
        schema: row.try_get(DB_SCHEMA_NAME)?,
        status: TenantStatus::parse(row.try_get(STATUS)?),
        mode: row.try_get::<Option<&str>, _>(MODE)?.map(Mode::parse),
        created_at: row.try_get::<Micros, _>(CREATED_AT)?.0,
        plan: None,
    })
}

fn tenant_change(row: &PgRow) -> Result<Change, StoreError> {
    if row.try_get::<Option<Uuid>, _>(TENANT_ID)?.is_none() {
        return Ok(Change::NoTenant(TenantId(row.try_get(ID)?)));
    }
    Ok(Change::Now(Row::Tenant(tenant_row(row)?)))
}
