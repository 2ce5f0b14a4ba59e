//! How is the audit log kept in Postgres?
//!
//! Whoever changes something appends to the log last, before he commits: the lock that
//! gives the log its one order is the last one he takes, so nobody waits for anybody in
//! a circle, and it is held for two short statements and the commit. Should there be
//! two next rows all the same, the primary key refuses the second.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row as _};

use super::instant::Micros;
use crate::audit::{Actor, Draft, Entry, Head};
use crate::clock::Timestamp;
use crate::store::{AuditFilter, StoreError};

/// What every change begins with: under another isolation level the head that is read would not be the newest.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// Appends to the log, in the transaction that the connection is in.
pub(super) async fn append(
    connection: &mut PgConnection,
    actor: &Actor,
    drafts: impl IntoIterator<Item = Draft>,
) -> Result<(), StoreError> {
    let mut drafts = drafts.into_iter().peekable();
    if drafts.peek().is_none() {
        return Ok(());
    }
    let lock = "SELECT pg_advisory_xact_lock(hashtext('tenantgate tenantgate_audit_log'))";
    sqlx::query(lock).execute(&mut *connection).await?;
    let (now, mut head) = head(connection).await?;
    for draft in drafts {
        insert(connection, &head.append(now, actor, draft)).await?;
    }
    Ok(())
}

/// The time, and the end of the log.
async fn head(connection: &mut PgConnection) -> Result<(Timestamp, Head), StoreError> {
    let sql = "SELECT clock_timestamp() AS now, a.seq, a.hash FROM (SELECT 1) AS one
         LEFT JOIN (SELECT seq, hash FROM tenantgate_audit_log ORDER BY seq DESC LIMIT 1) AS a ON true";
    let row = sqlx::query(sql).fetch_one(connection).await?;
    let head = match (row.try_get("seq")?, row.try_get("hash")?) {
        (Some(seq), Some(hash)) => Head { seq, hash },
        _ => Head::default(),
    };
    Ok((row.try_get::<Micros, _>("now")?.0, head))
}

async fn insert(connection: &mut PgConnection, entry: &Entry) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tenantgate_audit_log (seq, at, actor, action, subject, before, after, hash)
         VALUES ($1, $2, $3, $4, $5, $6::text::json, $7::text::json, $8)",
    )
    .bind(entry.seq)
    .bind(Micros(entry.at))
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
const WANTED: &str = "($1::timestamptz IS NULL OR at >= $1) AND ($2::timestamptz IS NULL OR at < $2)
     AND ($3::text IS NULL OR actor = $3)
     AND ($4::text IS NULL OR lower($4) = subject OR EXISTS (
        SELECT FROM coalesce(after, before) AS seen
        WHERE $4 IN (subject, seen ->> 'key_prefix', seen ->> 'tenant_id', seen ->> 'db_schema_name', seen ->> 'name')))";

/// A page of the log: rows after `after`, oldest first.
pub(super) async fn entries(
    connection: &mut PgConnection,
    filter: &AuditFilter,
    after: i64,
    page: i64,
) -> Result<Vec<Entry>, StoreError> {
    let sql = format!(
        "SELECT seq, at, actor, action, subject, before::text AS before, after::text AS after, hash
         FROM tenantgate_audit_log WHERE {WANTED} AND seq > $5 ORDER BY seq LIMIT $6"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(filter.since.map(Micros)).bind(filter.until.map(Micros));
    let query = query.bind(&filter.actor).bind(&filter.subject).bind(after).bind(page);
    query.fetch_all(connection).await?.iter().map(entry_of).collect()
}

/// After which row the newest `count` begin.
pub(super) async fn before_newest(
    connection: &mut PgConnection,
    filter: &AuditFilter,
    count: i64,
) -> Result<i64, StoreError> {
    let sql = format!(
        "SELECT coalesce(min(seq) - 1, 0) FROM
         (SELECT seq FROM tenantgate_audit_log WHERE {WANTED} ORDER BY seq DESC LIMIT $5) AS newest"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(filter.since.map(Micros)).bind(filter.until.map(Micros));
    let query = query.bind(&filter.actor).bind(&filter.subject).bind(count);
    Ok(query.fetch_one(connection).await?.try_get(0)?)
}

fn entry_of(row: &PgRow) -> Result<Entry, StoreError> {
    Ok(Entry {
        seq: row.try_get("seq")?,
        at: row.try_get::<Micros, _>("at")?.0,
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        subject: row.try_get("subject")?,
        before: row.try_get("before")?,
        after: row.try_get("after")?,
        hash: row.try_get("hash")?,
    })
}
