//! What the two databases have in common: rows of tenants, keys, the audit log and reports, by one text and one code.
//!
//! A [`SqlStore`] adds what differs: how to connect, schemas of tenants, locks, migrations. Parameters are `$1`, `$2`
//! and so on in both databases; the few words that differ are in [`Dialect`].
//!
//! A store keeps a connection, or a few, for the management of tenants and keys, for as long as the store lives.

mod admin_keys;
pub(super) mod audit;
mod bulk;
mod connection;
mod idempotency;
mod key_list;
mod keys;
mod management;
mod overview;
pub(super) mod plans;
mod pool;
pub(super) mod routes;
mod row;
mod rows;
mod sessions;
mod tenant_list;
mod usage;
mod value;

use async_trait::async_trait;

pub(super) use self::connection::{Connection, Link};
use self::pool::Held;
pub(super) use self::pool::Pool;
pub(super) use self::row::Row;
pub(super) use self::rows::{TENANT, tenant_of};
use self::value::Value;
use super::{Adoption, Behalf, Migrated, SchemaVersion, Store, StoreError};
use crate::tenant::Tenant;

/// The words that the two databases spell differently.
pub(super) struct Dialect {
    /// How a change begins.
    pub(super) begin: &'static str,
    /// The time by the clock of the database.
    pub(super) now: &'static str,
    /// After a SELECT: other sessions do not change the row until the transaction is over.
    pub(super) lock: &'static str,
    /// The same, where several transactions may hold the row.
    share: &'static str,
    /// After a parameter that is JSON.
    json: &'static str,
    /// `?` is an instant: something that compares as time does, NULL for what does not come.
    time: &'static str,
    /// The instant `?`, given as text.
    instant: &'static str,
    /// The instant `created_at` as a text that sorts as the column does and becomes the same instant again.
    place: &'static str,
    /// The function that finds a text in another one.
    position: &'static str,
    /// After a parameter that is JSON with indexes.
    jsonb: &'static str,
    /// What orders rows that were made at the same instant.
    tie: &'static str,
    /// The day of the instant `$1`.
    day: &'static str,
    /// The day `?`, given as `2026-01-31`.
    a_day: &'static str,
    /// The day of a row `u` of usage, as `day` in the form `2026-01-31`.
    usage_day: &'static str,
    /// Takes the lock that gives the audit log its order, where a transaction is not alone.
    lock_audit: Option<&'static str>,
    /// Takes the lock under which the table of routes is changed.
    lock_routes: Option<&'static str>,
    /// Writes a mark into the change log, and returns it as `mark`.
    mark: &'static str,
    /// Servers that serve now.
    live: &'static str,
    /// Servers that have not seen the mark `$1`.
    behind: &'static str,
    /// A change `c` that a server `r` has not applied.
    unapplied: &'static str,
}

/// Under another isolation level, the end of the audit log that a transaction reads would not be the newest.
pub(super) const POSTGRES: Dialect = Dialect {
    begin: "BEGIN ISOLATION LEVEL READ COMMITTED",
    now: "clock_timestamp()",
    lock: " FOR UPDATE",
    share: " FOR SHARE",
    json: "::json",
    time: "?",
    instant: "CAST(? AS timestamptz)",
    place: "to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
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
};

/// One transaction writes at a time.
pub(super) const SQLITE: Dialect = Dialect {
    begin: "BEGIN IMMEDIATE",
    now: "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
    lock: "",
    share: "",
    json: "",
    // What cannot be read is the beginning of time.
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
};

/// A store that this layer manages.
#[async_trait]
pub(super) trait SqlStore: Store + Clone + 'static {
    /// On whose behalf changes are made.
    fn behalf(&self) -> &Behalf;

    /// The same store, with the same connections, on behalf of somebody else.
    fn with_behalf(&self, behalf: Behalf) -> Self;

    /// The connections.
    fn pool(&self) -> &Pool;

    /// Opens a connection.
    async fn open(&self) -> Result<Connection, StoreError>;

    /// Whether a connection that was kept still leads to the database.
    async fn leads_here(&self, connection: &mut Connection) -> bool;

    /// How far the tables are.
    async fn version(&self, link: &mut Link<'_>) -> Result<SchemaVersion, StoreError>;

    /// Refuses a change that must be made elsewhere.
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
        Err(StoreError::Refused(format!(
            "{} has no roles: whoever may write the file may do all",
            self.kind()
        )))
    }
}

/// Returns a connection of the store.
async fn hold(store: &impl SqlStore) -> Result<Held, StoreError> {
    store.pool().hold(store).await
}

/// A connection of the store in a transaction. Dropped before [`Connection::commit`], nothing has changed.
async fn change(store: &impl SqlStore) -> Result<Held, StoreError> {
    let mut connection = hold(store).await?;
    store.refuse_change(&mut connection.link()).await?;
    connection.begin().await?;
    if let Some(key) = store.behalf().key {
        admin_keys::hold_live(&mut connection.link(), key).await?;
    }
    Ok(connection)
}

/// Tenants, read from the rows that a query returns.
async fn tenants(query: connection::Query, link: &mut Link<'_>) -> Result<Vec<Tenant>, StoreError> {
    query.all(link).await?.iter().map(tenant_of).collect()
}

/// Columns of one row that are set.
#[derive(Default)]
struct Sets {
    columns: Vec<String>,
    values: Vec<Value>,
}

impl Sets {
    /// The same columns, and this one if it differs. Its name is one of ours.
    fn set(mut self, column: &str, differs: bool, value: impl Into<Value>) -> Self {
        if differs {
            self.columns.push(column.to_owned());
            self.values.push(value.into());
        }
        self
    }

    /// Updates the row of this id.
    async fn run(self, table: &str, id: impl Into<Value>, link: &mut Link<'_>) -> Result<(), StoreError> {
        self.run_where(table, "id", id, link).await
    }

    /// Updates the row whose `key` has this value.
    async fn run_where(
        self,
        table: &str,
        key: &str,
        value: impl Into<Value>,
        link: &mut Link<'_>,
    ) -> Result<(), StoreError> {
        if self.columns.is_empty() {
            return Ok(());
        }
        let jsonb = link.dialect().jsonb;
        let set = |(at, (column, value)): (usize, (&String, &Value))| {
            let cast = if matches!(value, Value::Json(_)) { jsonb } else { "" };
            format!("{column} = ${}{cast}", at + 2)
        };
        let sets: Vec<_> = self.columns.iter().zip(&self.values).enumerate().map(set).collect();
        let sql = format!("UPDATE {table} SET {} WHERE {key} = $1", sets.join(", "));
        self.values
            .into_iter()
            .fold(connection::ask(sql).bind(value), connection::Query::bind)
            .execute(link)
            .await
    }
}
