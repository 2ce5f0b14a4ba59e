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

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgListener, PgPoolOptions, PgRow};
use tokio_stream::StreamExt as _;
use uuid::Uuid;

use super::connection::pin;
use super::instant::{Micros, expiry, instant};
use super::{PostgresStore, memo};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::plan::PlanRow;
use crate::profile::ProfileRow;
use crate::record::{KeyRecord, Memo, SecretHash};
use crate::route::{RouteId, RouteRow};
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

/// The columns of a look: a million rows are read faster by place than by name.
const COLUMNS: [(&str, &str); 21] = [
    ("rec", "text"),
    ("id", "uuid"),
    ("tenant_id", "uuid"),
    ("key_prefix", "text"),
    ("hashed_key", "text"),
    ("expires_at", "timestamptz"),
    ("revoked", "bool"),
    ("key_memo", "text"),
    ("name", "text"),
    ("db_schema_name", "text"),
    ("status", "text"),
    ("created_at", "timestamptz"),
    ("mode", "text"),
    ("disabled", "bool"),
    ("not_before", "timestamptz"),
    ("scopes", "text"),
    ("networks", "text"),
    ("plan", "text"),
    ("host", "text"),
    ("method", "text"),
    ("path", "text"),
];
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
const DISABLED: usize = 13;
const NOT_BEFORE: usize = 14;
const SCOPES: usize = 15;
const NETWORKS: usize = 16;
const PLAN: usize = 17;
const HOST: usize = 18;
const METHOD: usize = 19;
const PATH: usize = 20;
/// The limits of a plan.
const LIMITS: [usize; 4] = [SCOPES, NETWORKS, HOST, METHOD];
/// `tenantgate_route.shadow`.
const SHADOW: usize = DISABLED;
/// What of a change is gone is NULL here: the id of the tenant or rule, the name of the plan.
const THERE: usize = TENANT_ID;
const THERE_PLAN: usize = KEY_PREFIX;

const KEY: &[(usize, &str)] = &[
    (ID, "k.id"),
    (TENANT_ID, "k.tenant_id"),
    (HASHED_KEY, "k.hashed_key"),
    (EXPIRES_AT, "k.expires_at"),
    (REVOKED, "k.revoked_at IS NOT NULL"),
    (KEY_MEMO, "k.key_memo"),
    (DISABLED, "k.disabled_at IS NOT NULL"),
    (NOT_BEFORE, "k.not_before"),
    (SCOPES, "k.scopes"),
    (NETWORKS, "k.networks"),
    (PLAN, "k.plan"),
];
const TENANT: &[(usize, &str)] = &[
    (NAME, "t.name"),
    (DB_SCHEMA_NAME, "t.db_schema_name"),
    (STATUS, "t.status"),
    (CREATED_AT, "t.created_at"),
    (MODE, "t.mode"),
    (PLAN, "t.plan"),
];
const PLAN_LIMITS: &[(usize, &str)] = &[
    (LIMITS[0], "p.request_limit"),
    (LIMITS[1], "p.total_limit"),
    (LIMITS[2], "p.input_limit"),
    (LIMITS[3], "p.output_limit"),
];
const ROUTE: &[(usize, &str)] = &[
    (NAME, "r.name"),
    (HOST, "r.host"),
    (METHOD, "r.method"),
    (PATH, "r.path"),
    (MODE, "r.mode"),
    (SCOPES, "r.scopes"),
    (SHADOW, "r.shadow"),
];

/// What follows the columns in the header, a row of kind `h` about the look itself.
const ABOUT: &str =
    "pg_current_snapshot()::text AS snapshot, pg_is_in_recovery() AS standby, clock_timestamp() AS now,
    pg_backend_pid() || ' ' || pg_postmaster_start_time()::text AS backend,
    (SELECT id || ' ' || xid::text FROM tenantgate_change ORDER BY id DESC LIMIT 1) AS newest";

/// The header, with what says whether everything must be loaded again.
fn header(reload: &str) -> String {
    let typed = COLUMNS[1..].iter().map(|(name, kind)| format!("NULL::{kind} AS {name}"));
    format!("SELECT 'h' AS rec, {}, {ABOUT}, {reload} AS reload", typed.collect::<Vec<_>>().join(", "))
}

/// The columns of rows of one kind; those that are not named are NULL.
fn columns(kind: &str, named: &[&[(usize, &str)]]) -> String {
    let mut all = vec!["NULL"; COLUMNS.len()];
    for (place, what) in named.iter().copied().flatten() {
        all[*place] = what;
    }
    let kind = format!("'{kind}'");
    all[REC] = &kind;
    all.join(", ")
}

/// The same, behind the header: with NULL for what it says.
fn rows(kind: &str, named: &[&[(usize, &str)]]) -> String {
    format!("UNION ALL SELECT {}, NULL, NULL, NULL, NULL, NULL, NULL", columns(kind, named))
}

/// Everything.
fn load() -> String {
    [
        header("NULL::bool"),
        rows("t", &[&[(ID, "t.id")], TENANT]) + " FROM tenants t",
        rows("p", &[&[(NAME, "p.name")], PLAN_LIMITS]) + " FROM tenantgate_plan p",
        rows("r", &[&[(ID, "r.id")], ROUTE]) + " FROM tenantgate_route r",
        rows("k", &[&[(KEY_PREFIX, "k.key_prefix::text")], KEY]) + " FROM api_keys k",
    ]
    .join(" ")
}

/// What changed since the snapshot `$1`. OFFSET 0: each row is looked up by its index, also if the table was empty when
/// the plan was made.
fn changes() -> String {
    let changed = "WITH c AS MATERIALIZED (
            SELECT DISTINCT key_prefix, tenant_id, plan, route_id FROM tenantgate_change
            WHERE xid >= pg_snapshot_xmin($1::pg_snapshot) AND xid < pg_snapshot_xmax(pg_current_snapshot())
              AND NOT pg_visible_in_snapshot(xid, $1::pg_snapshot))";
    let reload = "coalesce((SELECT xid FROM tenantgate_change_floor WHERE xid < pg_snapshot_xmax(pg_current_snapshot()))
            >= pg_snapshot_xmin($1::pg_snapshot), false)
            OR EXISTS (SELECT FROM c WHERE num_nonnulls(key_prefix, tenant_id, plan, route_id) = 0)";
    let from = |table: &str, key: &str, logged: &str, alias: &str| {
        format!(
            " FROM c LEFT JOIN LATERAL (SELECT * FROM {table} WHERE {key} = c.{logged} OFFSET 0) {alias} ON true
             WHERE c.{logged} IS NOT NULL"
        )
    };
    // A role of least privilege may not read every column of a key.
    let keys = "(SELECT id, tenant_id, hashed_key, expires_at, revoked_at, key_memo, disabled_at, not_before, scopes,
                        networks, plan FROM api_keys WHERE key_prefix = c.key_prefix OFFSET 0)";
    [
        changed.to_owned(),
        header(reload),
        rows("t", &[&[(ID, "c.tenant_id"), (THERE, "t.id")], TENANT])
            + &from("tenants", "id", "tenant_id", "t"),
        rows("p", &[&[(NAME, "c.plan"), (THERE_PLAN, "p.name")], PLAN_LIMITS])
            + &from("tenantgate_plan", "name", "plan", "p"),
        rows("r", &[&[(ID, "c.route_id"), (THERE, "r.id")], ROUTE])
            + &from("tenantgate_route", "id", "route_id", "r"),
        rows("k", &[&[(KEY_PREFIX, "c.key_prefix")], KEY])
            + &format!(" FROM c LEFT JOIN LATERAL {keys} k ON true WHERE c.key_prefix IS NOT NULL"),
    ]
    .join(" ")
}

/// One backend of the primary, for as long as it lasts.
pub(super) struct PostgresSession {
    listener: PgListener,
    /// The backend that the first look came from; another one knows nothing of our LISTEN.
    backend: Option<String>,
    /// What was visible at the last look.
    snapshot: String,
    which: Which,
    schema: String,
    changes: Arc<str>,
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
        let mut header = None;
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(load())).fetch(&mut self.listener);
        while let Some(row) = rows.next().await {
            let row = row?;
            match row.try_get(REC)? {
                "h" => header = Some(Header::read(&row)?),
                "t" => sink(Row::Tenant(tenant_row(&row)?)),
                "p" => sink(Row::Plan(plan_row(&row)?)),
                "r" => sink(Row::Route(route_row(&row)?)),
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
        let sql = Arc::clone(&self.changes);
        let (mut header, mut changes) = (None, Vec::new());
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&self.snapshot).fetch(&mut self.listener);
        while let Some(row) = rows.next().await {
            let row = row?;
            match row.try_get(REC)? {
                "h" => header = Some(Header::read(&row)?),
                "t" => changes.push(tenant_change(&row)?),
                "p" => changes.push(plan_change(&row)?),
                "r" => changes.push(route_change(&row)?),
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
        Ok(Self { listener, backend, snapshot, which: Which::default(), schema, changes: changes().into() })
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
    let columns = columns("k", &[&[(KEY_PREFIX, "k.key_prefix::text")], KEY]);
    let sql = format!("SELECT {columns} FROM api_keys k WHERE k.key_prefix = $1");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(prefix).fetch_optional(connection).await?;
    row.as_ref().map(record).transpose()
}

fn key_row(row: &PgRow) -> Result<Row, StoreError> {
    let text = |place: usize| Ok::<_, StoreError>(row.try_get::<Option<&str>, _>(place)?.map(Into::into));
    let profile = ProfileRow { scopes: text(SCOPES)?, networks: text(NETWORKS)?, plan: text(PLAN)? };
    record(row).map(|(record, memo)| Row::Key(record, memo, profile))
}

fn record(row: &PgRow) -> Result<(KeyRecord, Option<Memo>), StoreError> {
    let record = KeyRecord {
        id: KeyId(row.try_get(ID)?),
        tenant_id: TenantId(row.try_get(TENANT_ID)?),
        prefix: row.try_get::<&str, _>(KEY_PREFIX)?.into(),
        hash: SecretHash::parse(row.try_get(HASHED_KEY)?),
        expires_at: expiry(row, EXPIRES_AT)?.into(),
        revoked: row.try_get(REVOKED)?,
        not_before: instant(row, NOT_BEFORE)?.unwrap_or(Timestamp::MIN),
        disabled: row.try_get(DISABLED)?,
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
        plan: row.try_get::<Option<&str>, _>(PLAN)?.map(Into::into),
        created_at: row.try_get::<Micros, _>(CREATED_AT)?.0,
    })
}

fn tenant_change(row: &PgRow) -> Result<Change, StoreError> {
    if row.try_get::<Option<Uuid>, _>(THERE)?.is_none() {
        return Ok(Change::NoTenant(TenantId(row.try_get(ID)?)));
    }
    Ok(Change::Now(Row::Tenant(tenant_row(row)?)))
}

fn plan_row(row: &PgRow) -> Result<PlanRow, StoreError> {
    let [request, total, input, output] = LIMITS.map(|place| row.try_get(place));
    Ok(PlanRow { name: row.try_get(NAME)?, limits: [request?, total?, input?, output?] })
}

fn plan_change(row: &PgRow) -> Result<Change, StoreError> {
    if row.try_get::<Option<&str>, _>(THERE_PLAN)?.is_none() {
        return Ok(Change::NoPlan(row.try_get::<&str, _>(NAME)?.into()));
    }
    Ok(Change::Now(Row::Plan(plan_row(row)?)))
}

fn route_row(row: &PgRow) -> Result<RouteRow, StoreError> {
    Ok(RouteRow {
        id: RouteId(row.try_get(ID)?),
        name: row.try_get(NAME)?,
        host: row.try_get(HOST)?,
        method: row.try_get(METHOD)?,
        path: row.try_get(PATH)?,
        mode: row.try_get(MODE)?,
        scopes: row.try_get(SCOPES)?,
        shadow: row.try_get(SHADOW)?,
    })
}

fn route_change(row: &PgRow) -> Result<Change, StoreError> {
    if row.try_get::<Option<Uuid>, _>(THERE)?.is_none() {
        return Ok(Change::NoRoute(RouteId(row.try_get(ID)?)));
    }
    Ok(Change::Now(Row::Route(route_row(row)?)))
}
