//! How is the audit log kept in SQLite?
//!
//! There is one writer at a time, and it knows the end of the log.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row as _};

use super::instant;
use crate::audit::{Actor, Draft, Entry, Head};
use crate::clock::Timestamp;
use crate::store::{AuditFilter, StoreError};

/// What every change begins with: whoever reads the end of the log is the one who writes.
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";

/// Appends to the log, in the transaction that the connection is in.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    actor: &Actor,
    drafts: impl IntoIterator<Item = Draft>,
) -> Result<(), StoreError> {
    let (now, mut head) = head(connection).await?;
    for draft in drafts {
        insert(connection, &head.append(now, actor, draft)).await?;
    }
    Ok(())
}

/// The time, and the end of the log.
async fn head(connection: &mut SqliteConnection) -> Result<(Timestamp, Head), StoreError> {
    let sql = "SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AS now, a.seq, a.hash FROM (SELECT 1) AS one
         LEFT JOIN (SELECT seq, hash FROM tenantgate_audit_log ORDER BY seq DESC LIMIT 1) AS a ON true";
    let row = sqlx::query(sql).fetch_one(connection).await?;
    let head = match (row.try_get("seq")?, row.try_get("hash")?) {
        (Some(seq), Some(hash)) => Head { seq, hash },
        _ => Head::default(),
    };
    Ok((instant(&row, "now")?.unwrap_or_default(), head))
}

async fn insert(connection: &mut SqliteConnection, entry: &Entry) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tenantgate_audit_log (seq, at, actor, action, subject, before, after, hash)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )
    .bind(entry.seq)
    .bind(entry.at.to_string())
    .bind(&entry.actor)
    .bind(&entry.action)
    .bind(&entry.subject)
    .bind(&entry.before)
    .bind(&entry.after)
    .bind(&entry.hash)
    .execute(connection)
    .await?;
    Ok(())
}

/// Which rows are asked for: parameters 1 to 4.
const WANTED: &str = "(?1 IS NULL OR at >= ?1) AND (?2 IS NULL OR at < ?2) AND (?3 IS NULL OR actor = ?3)
     AND (?4 IS NULL OR lower(?4) = subject OR ?4 IN (subject,
        coalesce(after, before) ->> 'key_prefix', coalesce(after, before) ->> 'tenant_id',
        coalesce(after, before) ->> 'db_schema_name', coalesce(after, before) ->> 'name'))";

/// A page of the log: rows after `after`, oldest first.
pub(super) async fn entries(
    connection: &mut SqliteConnection,
    filter: &AuditFilter,
    after: i64,
    page: i64,
) -> Result<Vec<Entry>, StoreError> {
    let sql = format!(
        "SELECT seq, at, actor, action, subject, before, after, hash
         FROM tenantgate_audit_log WHERE {WANTED} AND seq > ?5 ORDER BY seq LIMIT ?6"
    );
    let (since, until) = (filter.since.map(|at| at.to_string()), filter.until.map(|at| at.to_string()));
    let query = sqlx::query(AssertSqlSafe(sql)).bind(since).bind(until);
    let query = query.bind(&filter.actor).bind(&filter.subject).bind(after).bind(page);
    query.fetch_all(connection).await?.iter().map(entry_of).collect()
}

/// After which row the newest `count` begin.
pub(super) async fn before_newest(
    connection: &mut SqliteConnection,
    filter: &AuditFilter,
    count: i64,
) -> Result<i64, StoreError> {
    let sql = format!(
        "SELECT coalesce(min(seq) - 1, 0) FROM
         (SELECT seq FROM tenantgate_audit_log WHERE {WANTED} ORDER BY seq DESC LIMIT ?5) AS newest"
    );
    let (since, until) = (filter.since.map(|at| at.to_string()), filter.until.map(|at| at.to_string()));
    let query = sqlx::query(AssertSqlSafe(sql)).bind(since).bind(until);
    let query = query.bind(&filter.actor).bind(&filter.subject).bind(count);
    Ok(query.fetch_one(connection).await?.try_get(0)?)
}

fn entry_of(row: &SqliteRow) -> Result<Entry, StoreError> {
    Ok(Entry {
        seq: row.try_get("seq")?,
        at: instant(row, "at")?.unwrap_or_default(),
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        subject: row.try_get("subject")?,
        before: row.try_get("before")?,
        after: row.try_get("after")?,
        hash: row.try_get("hash")?,
    })
}
