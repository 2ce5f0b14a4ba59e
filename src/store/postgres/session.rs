//! The session of a replica with Postgres.
//!
//! It LISTENs and polls on the same backend, so every response to a poll also proves that the listener works.
//!
//! Polls compare snapshots (`pg_current_snapshot`): a row of the change log is new exactly if its transaction is
//! visible now, was not visible at the last poll, and its id is below those of future transactions. The last condition
//! excludes rows that a restore brought from another cluster. This misses no transaction, however late it commits, and
//! does not depend on the order of commits. The same statement reads the changed rows, so under READ COMMITTED all are
//! from the same instant.
//! <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT>

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio_stream::StreamExt as _;

use super::PostgresStore;
use super::connection::pin;
use super::poll::{self, PollHeader, REC};
use crate::store::{CONNECT_TIMEOUT, Changes, Session, SnapshotRow, StoreError, SyncPoint};

const CHANNEL: &str = "tenantgate_change";

/// The settings of the session of a replica, in addition to those of every session.
///
/// A poll finds a few rows through indexes. The planner cannot know that: after a bulk load it estimates a quarter of a
/// million rows, and would choose bitmaps, hashes and compilation, which cost a hundred times more than the rows.
/// Without those methods the plan does not depend on the estimates, and its cost depends only on the number of changes.
/// A load reads whole tables, for which there is only one plan.
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
    // Planning takes longer than the poll, so the plan is made only once.
    ("plan_cache_mode", "force_generic_plan"),
];

/// Every twentieth poll, about one a second, also compares the foundation.
const POLLS_PER_FOUNDATION: u32 = 20;

/// A connection to one backend of the primary.
pub(super) struct PostgresSession {
    listener: PgListener,
    /// The backend of the first response. Another backend does not know our LISTEN.
    backend: Option<String>,
    /// The snapshot of the last load or poll.
    snapshot: String,
    foundation: Foundation,
    polls: u32,
    /// Which tables were loaded.
    tables: String,
    /// The newest change that was pruned, for while the change log is empty.
    pruned: Option<String>,
    /// The cluster, and the database in it.
    place: String,
    schema: String,
    changes: Arc<str>,
}

/// What the change log depends on; see [`poll::foundation`].
#[derive(Default, PartialEq)]
struct Foundation {
    identity: String,
    /// The id of the change log.
    log: String,
    triggers: Option<String>,
}

#[async_trait]
impl Session for PostgresSession {
    async fn load(&mut self, sink: &mut (dyn FnMut(SnapshotRow) + Send)) -> Result<SyncPoint, StoreError> {
        self.place = place(&mut self.listener).await?;
        // Before the rows: if it changes meanwhile, a poll notices.
        self.foundation = self.read_foundation().await?;
        let mut header = None;
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(poll::load())).fetch(&mut self.listener);
        while let Some(row) = rows.next().await {
            let row = row?;
            match row.try_get(REC)? {
                "h" => header = Some(PollHeader::read(&row)?),
                "t" => sink(SnapshotRow::Tenant(poll::tenant_row(&row)?)),
                "p" => sink(SnapshotRow::Plan(poll::plan_row(&row)?)),
                "r" => sink(SnapshotRow::Route(poll::route_row(&row)?)),
                _ => sink(poll::key_row(&row)?),
            }
        }
        drop(rows);
        let header = self.accept(header)?;
        self.tables.clone_from(&header.tables);
        Ok(self.sync_point(header))
    }

    async fn hint(&mut self) -> Result<(), StoreError> {
        match self.listener.try_recv().await? {
            // One poll covers all buffered hints.
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
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(POLLS_PER_FOUNDATION) && self.read_foundation().await? != self.foundation
        {
            return Ok(Changes::Everything);
        }
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&self.snapshot).fetch(&mut self.listener);
        while let Some(row) = rows.next().await {
            let row = row?;
            match row.try_get(REC)? {
                "h" => header = Some(PollHeader::read(&row)?),
                "t" => changes.push(poll::tenant_change(&row)?),
                "p" => changes.push(poll::plan_change(&row)?),
                "r" => changes.push(poll::route_change(&row)?),
                _ => changes.push(poll::key_change(&row)?),
            }
        }
        drop(rows);
        let header = self.accept(header)?;
        if header.tables != self.tables {
            // A new session also removes what a restore may have left in the change log.
            let why = "the tables were replaced (a restore?), connecting again";
            return Err(StoreError::Unavailable(why.into()));
        }
        if header.reload {
            return Ok(Changes::Everything);
        }
        Ok(Changes::Rows(changes, self.sync_point(header)))
    }

    async fn has(&mut self, known: &SyncPoint) -> Result<bool, StoreError> {
        let change: Vec<_> = known.newest_change.as_deref().unwrap_or_default().split(' ').collect();
        let [log, id, xid, pruned @ ..] = change.as_slice() else { return Ok(true) };
        // A subscriber has its own change log, which cannot contain a change of its publisher's.
        if *log != self.foundation.log {
            return Ok(true);
        }
        // In another cluster, transaction ids differ. There, compare with the sequence of the log, which was copied
        // with the data.
        let moved = known.place != self.place;
        let sql = "SELECT CASE WHEN $3 THEN
                (SELECT coalesce(last_value, 0) >= $1::text::bigint FROM pg_sequences
                 WHERE schemaname = $4 AND sequencename = 'tenantgate_change_id_seq')
            ELSE EXISTS (SELECT FROM tenantgate_change WHERE xid = $2::text::xid8 AND ($5 OR id = $1::text::bigint))
                OR (SELECT xid >= $2::text::xid8 FROM tenantgate_change_floor) END";
        let query = sqlx::query(sql).bind(id).bind(xid).bind(moved).bind(&self.schema);
        let query = query.bind(!pruned.is_empty());
        Ok(query.fetch_one(&mut self.listener).await?.try_get::<Option<bool>, _>(0)?.unwrap_or(true))
    }
}

/// Reads which cluster and database this is.
async fn place(listener: &mut PgListener) -> Result<String, StoreError> {
    let sql = "SELECT (SELECT system_identifier FROM pg_control_system()) || '/' ||
                      (SELECT oid FROM pg_database WHERE datname = current_database())";
    Ok(sqlx::query(sql).fetch_one(listener).await?.try_get(0)?)
}

impl PostgresSession {
    pub(super) async fn open(store: &PostgresStore) -> Result<Self, StoreError> {
        let address = store.address_now()?;
        let settings = store.settings(&address, &SETTINGS);
        // sqlx can LISTEN only on a connection of a pool. This pool has a single connection and is not shared.
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
            PgListener::connect_with(&pool).await.map_err(|error| store.at_host(&address, error))?;
        // A lost connection must cause an error. A silent reconnect would lose hints and move to another backend.
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        let (backend, snapshot, schema) = (None, String::new(), store.schema.clone());
        Ok(Self {
            listener,
            backend,
            snapshot,
            foundation: Foundation::default(),
            polls: 0,
            tables: String::new(),
            pruned: None,
            place: String::new(),
            schema,
            changes: poll::changes().into(),
        })
    }

    async fn read_foundation(&mut self) -> Result<Foundation, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(poll::foundation())).fetch_one(&mut self.listener).await?;
        let (Some(identity), Some(log)) = (row.try_get("identity")?, row.try_get("log")?) else {
            let why = "the database has no identity (tenantgate_identity is empty): run `tenantgate migrate`";
            return Err(StoreError::WrongDatabase(why.into()));
        };
        self.pruned = row.try_get("pruned")?;
        Ok(Foundation { identity, log, triggers: row.try_get("triggers")? })
    }

    fn sync_point(&self, header: PollHeader) -> SyncPoint {
        let newest = header.newest.as_ref().or(self.pruned.as_ref());
        SyncPoint {
            now: Some(header.now),
            identity: self.foundation.identity.clone(),
            place: self.place.clone(),
            tables: self.tables.clone(),
            position: header.snapshot,
            newest_change: newest.map(|newest| format!("{} {newest}", self.foundation.log)),
        }
    }

    /// Checks that a response came from the expected backend of the primary, and remembers its snapshot.
    fn accept(&mut self, header: Option<PollHeader>) -> Result<PollHeader, StoreError> {
        let header = header.ok_or_else(|| StoreError::Unavailable("the database returned no rows".into()))?;
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

/// The error for a standby, which shows commits late.
pub(super) fn standby() -> StoreError {
    StoreError::WrongDatabase("the database is a standby, tenantgate needs the primary".into())
}
