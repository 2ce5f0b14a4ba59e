//! The SQL that both databases share: tenants, keys, plans, routes, the audit log and reports.
//!
//! A [`SqlStore`] adds what differs: connecting, schemas of tenants, locks, migrations. Parameters are `$1`, `$2` and
//! so on in both databases; the few expressions that differ are in [`Dialect`].
//!
//! A store keeps one or a few connections for management, for as long as the store lives.

mod admin_keys;
pub(super) mod audit;
mod bulk;
mod connection;
mod idempotency;
pub(super) mod instant;
mod key_list;
mod keys;
mod management;
mod overview;
pub(super) mod plans;
mod pool;
mod replicas;
pub(super) mod routes;
mod row;
mod rows;
mod sessions;
mod tenant_list;
mod tenants;
mod usage;
mod value;

use async_trait::async_trait;

pub(super) use self::connection::{Connection, FileIds, Link};
pub(super) use self::pool::ConnectionPool;
use self::pool::PooledConnection;
pub(super) use self::row::{SqlRow, sqlite_text};
pub(super) use self::rows::{TENANT, tenant_of};
use self::value::SqlValue;
use super::{Adoption, ChangeContext, Migrated, SchemaVersion, Store, StoreError};
use crate::permission::AdminKeyId;

/// The SQL that the two databases spell differently.
pub(super) struct Dialect {
    /// Begins the transaction of a change.
    pub(super) begin: &'static str,
    /// The current time of the database.
    pub(super) now: &'static str,
    /// Follows a SELECT: locks the rows until the transaction ends.
    pub(super) lock: &'static str,
    /// Locks the management key `$1` until the transaction ends, for a change that it makes: several transactions may
    /// hold it. `None` if the database has no concurrent writers. The lock is fair, unlike that of a row: a change of
    /// the key does not wait for ever while the key makes changes.
    share_admin_key: Option<&'static str>,
    /// The same for a change of the key itself.
    lock_admin_key: Option<&'static str>,
    /// After a parameter that is JSON.
    json: &'static str,
    /// Converts the instant `?` to a value that sorts by time. On SQLite, `infinity` becomes NULL.
    time: &'static str,
    /// Converts the text `?` to an instant.
    instant: &'static str,
    /// Formats `created_at` as a text that sorts like the column and can be converted back without loss.
    place: &'static str,
    /// The function that returns the position of one text in another.
    position: &'static str,
    /// Follows a parameter of type `jsonb`.
    jsonb: &'static str,
    /// The column that orders rows that were created at the same instant.
    tie: &'static str,
    /// Converts the instant `$1` to its day.
    day: &'static str,
    /// Converts the text `?`, such as `2026-01-31`, to a day.
    a_day: &'static str,
    /// The day of a row `u` of usage as a column `day`, such as `2026-01-31`.
    usage_day: &'static str,
    /// Takes the lock that orders the audit log, if the database has concurrent writers.
    lock_audit: Option<&'static str>,
    /// Takes the lock for changes of the table of routes, if the database has concurrent writers.
    lock_routes: Option<&'static str>,
    /// Writes a mark into the change log, and returns it as `mark`.
    mark: &'static str,
    /// The condition for servers that may accept keys now.
    live: &'static str,
    /// The condition for servers that may accept keys now and have not seen the mark `$1`.
    behind: &'static str,
    /// The condition for a change `c` that the server `r` has not applied.
    unapplied: &'static str,
    /// After a column: it is one of the list in the parameter between the two parts.
    any: [&'static str; 2],
}

impl Dialect {
    /// After a column: it is one of the list in the parameter `$at`.
    fn any(&self, at: usize) -> String {
        let [before, after] = self.any;
        format!("{before}${at}{after}")
    }
}

/// The SQL for Postgres. With another isolation level than READ COMMITTED, a transaction could read an old end of the
/// audit log.
pub(super) const POSTGRES: Dialect = Dialect {
    begin: "BEGIN ISOLATION LEVEL READ COMMITTED",
    now: "clock_timestamp()",
    lock: " FOR UPDATE",
    share_admin_key: Some(
        "SELECT pg_advisory_xact_lock_shared(hashtextextended('tenantgate_admin_key ' || $1, 0))",
    ),
    lock_admin_key: Some("SELECT pg_advisory_xact_lock(hashtextextended('tenantgate_admin_key ' || $1, 0))"),
    json: "::json",
    time: "?",
    instant: "CAST(? AS timestamptz)",
    // `to_char` of infinity is NULL.
    place: "coalesce(to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), CAST(created_at AS text))",
    position: "strpos",
    jsonb: "::jsonb",
    tie: "id",
    day: "($1 AT TIME ZONE 'UTC')::date",
    a_day: "CAST(? AS date)",
    usage_day: "to_char(u.day, 'YYYY-MM-DD') AS day",
    lock_audit: Some("SELECT pg_advisory_xact_lock(hashtext('tenantgate tenantgate_audit_log'))"),
    lock_routes: Some("LOCK TABLE tenantgate_route IN SHARE ROW EXCLUSIVE MODE"),
    mark: "SELECT tenantgate_mark()::text AS mark",
    live: "serves_until > now()",
    behind: "serves_until > now() AND NOT pg_visible_in_snapshot($1::xid8, applied)",
    unapplied: "c.xid >= pg_snapshot_xmin(r.applied) AND NOT pg_visible_in_snapshot(c.xid, r.applied)",
    any: ["= ANY(", ")"],
};

/// The SQL for SQLite, which has one writer at a time.
pub(super) const SQLITE: Dialect = Dialect {
    begin: "BEGIN IMMEDIATE",
    now: "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
    lock: "",
    share_admin_key: None,
    lock_admin_key: None,
    json: "",
    // An invalid instant counts as the beginning of time.
    time: "CASE WHEN ? IS NULL OR ? = 'infinity' THEN NULL ELSE coalesce(julianday(?), 0) END",
    instant: "?",
    place: "created_at",
    position: "instr",
    jsonb: "",
    tie: "rowid",
    day: "substr($1, 1, 10)",
    a_day: "?",
    usage_day: "u.day",
    lock_audit: None,
    lock_routes: None,
    mark: "INSERT INTO tenantgate_change (key_prefix) VALUES ('') RETURNING CAST(id AS TEXT) AS mark",
    live: "serves_until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
    behind: "serves_until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AND applied < CAST($1 AS INTEGER)",
    unapplied: "c.id > r.applied",
    any: ["IN (SELECT value FROM json_each(", "))"],
};

/// A store whose rows are managed by the SQL of this module.
#[async_trait]
pub(super) trait SqlStore: Store + Clone + 'static {
    /// Returns the author of changes, and the request that they belong to.
    fn context(&self) -> &ChangeContext;

    /// Returns the same store with the same connections and another author.
    fn with_context(&self, context: ChangeContext) -> Self;

    /// Returns the connections.
    fn pool(&self) -> &ConnectionPool;

    /// Opens a connection.
    async fn open(&self) -> Result<Connection, StoreError>;

    /// Returns whether a kept connection still leads to the database.
    async fn is_same_database(&self, connection: &mut Connection) -> bool;

    /// Returns the version of the database schema.
    async fn version(&self, link: &mut Link<'_>) -> Result<SchemaVersion, StoreError>;

    /// Rejects changes if this database is a subscriber, whose publisher must be changed instead.
    async fn refuse_change(&self, _: &mut Link<'_>) -> Result<(), StoreError> {
        Ok(())
    }

    /// See [`super::Management::has_schemas`].
    fn has_schemas(&self) -> bool {
        false
    }

    /// See [`super::Management::check_schema`].
    async fn check_schema(&self, _: &mut Link<'_>, _: &str, _: bool) -> Result<(), StoreError> {
        Ok(())
    }

    /// See [`super::Management::create_schema`].
    async fn create_schema(&self, _: &mut Link<'_>, _: &str, _: bool) -> Result<(), StoreError> {
        Ok(())
    }

    /// See [`super::Management::adopt`].
    async fn adopt(&self, adoption: &Adoption) -> Result<Migrated, StoreError>;

    /// See [`super::Management::lock_holder`].
    async fn lock_holder(&self) -> Result<Option<String>, StoreError>;

    /// See [`super::Management::create_roles`].
    async fn create_roles(&self, _: &str) -> Result<Vec<String>, StoreError> {
        Err(StoreError::Disallowed(format!(
            "{} has no roles: a user who can write the file can do everything",
            self.kind()
        )))
    }
}

/// Takes a connection from the pool of the store.
async fn acquire(store: &impl SqlStore) -> Result<PooledConnection, StoreError> {
    store.pool().acquire(store).await
}

/// Takes a connection and begins a transaction. If the connection is dropped before [`Connection::commit`], the
/// transaction is rolled back.
async fn change(store: &impl SqlStore) -> Result<PooledConnection, StoreError> {
    change_admin_key(store, None).await
}

/// The same, to change this management key.
async fn change_admin_key(
    store: &impl SqlStore,
    target: Option<AdminKeyId>,
) -> Result<PooledConnection, StoreError> {
    let mut connection = acquire(store).await?;
    store.refuse_change(&mut connection.link()).await?;
    connection.begin().await?;
    admin_keys::hold(&mut connection.link(), store.context().key.as_ref(), target).await?;
    Ok(connection)
}

/// The columns that an UPDATE of one row sets.
#[derive(Default)]
struct Sets {
    columns: Vec<String>,
    values: Vec<SqlValue>,
}

impl Sets {
    /// Adds a column if its value differs. The name is inserted into the SQL unquoted.
    fn set(mut self, column: &str, differs: bool, value: impl Into<SqlValue>) -> Self {
        if differs {
            self.columns.push(column.to_owned());
            self.values.push(value.into());
        }
        self
    }

    /// Updates the row with this id. Does nothing without columns.
    async fn run(self, table: &str, id: impl Into<SqlValue>, link: &mut Link<'_>) -> Result<(), StoreError> {
        self.run_where(table, "id", id, link).await
    }

    /// Updates the row whose column `key` has this value. Does nothing without columns.
    async fn run_where(
        self,
        table: &str,
        key: &str,
        value: impl Into<SqlValue>,
        link: &mut Link<'_>,
    ) -> Result<(), StoreError> {
        if self.columns.is_empty() {
            return Ok(());
        }
        let jsonb = link.dialect().jsonb;
        let set = |(at, (column, value)): (usize, (&String, &SqlValue))| {
            let cast = if matches!(value, SqlValue::Json(_)) { jsonb } else { "" };
            format!("{column} = ${}{cast}", at + 2)
        };
        let sets: Vec<_> = self.columns.iter().zip(&self.values).enumerate().map(set).collect();
        let sql = format!("UPDATE {table} SET {} WHERE {key} = $1", sets.join(", "));
        self.values
            .into_iter()
            .fold(connection::query(sql).bind(value), connection::Query::bind)
            .execute(link)
            .await
    }
}
