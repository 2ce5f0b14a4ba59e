//! Appends to the audit log and reads it.
//!
//! A transaction appends to the log last, just before it commits. The lock that orders the log is therefore the last
//! lock that a transaction takes: transactions cannot deadlock on it, and hold it only for two short statements and the
//! commit. If two transactions computed the same next row all the same, the primary key would reject the second.

use super::connection::{Link, query};
use super::rows::entry_of;
use super::value::Conditions;
use crate::audit::{AuditEntry, Author, Draft, LogHead};
use crate::clock::Timestamp;
use crate::store::{AuditFilter, StoreError};

/// Appends to the log, in the current transaction of the connection.
pub(in crate::store) async fn append(
    link: &mut Link<'_>,
    author: &Author,
    drafts: impl IntoIterator<Item = Draft>,
) -> Result<(), StoreError> {
    let mut drafts = drafts.into_iter().peekable();
    if drafts.peek().is_none() {
        return Ok(());
    }
    if let Some(lock) = link.dialect().lock_audit {
        link.run(lock).await?;
    }
    let (now, mut head) = head(link).await?;
    for draft in drafts {
        insert(link, &head.append(now, author, draft)).await?;
    }
    Ok(())
}

/// Returns the time of the database, and the end of the log.
async fn head(link: &mut Link<'_>) -> Result<(Timestamp, LogHead), StoreError> {
    let now = link.dialect().now;
    let sql = format!(
        "SELECT {now} AS now, a.seq, a.hash FROM (SELECT 1) AS one
         LEFT JOIN (SELECT seq, hash FROM tenantgate_audit_log ORDER BY seq DESC LIMIT 1) AS a ON true"
    );
    let row = query(sql).fetch_one(link).await?;
    let head = match (row.get("seq")?, row.get("hash")?) {
        (Some(seq), Some(hash)) => LogHead { seq, hash },
        _ => LogHead::default(),
    };
    Ok((row.instant("now")?.unwrap_or_default(), head))
}

async fn insert(link: &mut Link<'_>, entry: &AuditEntry) -> Result<(), StoreError> {
    let json = link.dialect().json;
    let sql = format!(
        "INSERT INTO tenantgate_audit_log (seq, at, actor, action, subject, before, after, request_id, address, hash)
         VALUES ($1, $2, $3, $4, $5, $6{json}, $7{json}, $8, $9, $10)"
    );
    let query = query(sql).bind(entry.seq).bind(entry.at).bind(&entry.actor).bind(&entry.action);
    let query = query.bind(&entry.subject).bind(&entry.before).bind(&entry.after);
    query.bind(&entry.request_id).bind(&entry.address).bind(&entry.hash).execute(link).await
}

/// Builds the conditions of a filter.
fn wanted(link: &Link<'_>, filter: &AuditFilter) -> Conditions {
    const SUBJECT: &str = "(lower(?) = subject OR ? IN (subject,
        coalesce(after, before) ->> 'key_prefix', coalesce(after, before) ->> 'tenant_id',
        coalesce(after, before) ->> 'db_schema_name', coalesce(after, before) ->> 'name'))";
    let wanted = Conditions::default()
        .and("at >= ?", filter.since)
        .and("at < ?", filter.until)
        .and("actor = ?", filter.actor.as_deref())
        .and(SUBJECT, filter.subject.as_deref());
    let Some(tenants) = &filter.tenants else { return wanted };
    let tenants: Vec<String> = tenants.iter().map(|tenant| tenant.0.to_string()).collect();
    let any = link.dialect().any(wanted.next());
    // The tenant itself, or an object that belongs to it.
    let theirs = format!("(subject {any} OR coalesce(after, before) ->> 'tenant_id' {any})");
    wanted.with(theirs, tenants.as_slice())
}

/// Returns a page of the log: the first matching rows after `after`, oldest first.
pub(super) async fn entries(
    link: &mut Link<'_>,
    filter: &AuditFilter,
    after: i64,
    page: i64,
) -> Result<Vec<AuditEntry>, StoreError> {
    let wanted = wanted(link, filter).and("seq > ?", Some(after));
    let sql = format!(
        "SELECT seq, at, actor, action, subject, CAST(before AS text) AS before, CAST(after AS text) AS after,
                request_id, address, hash
         FROM tenantgate_audit_log WHERE {} ORDER BY seq LIMIT ${}",
        wanted.sql(),
        wanted.next()
    );
    query(sql).bind_all(wanted).bind(page).fetch_all(link).await?.iter().map(entry_of).collect()
}

/// Returns the number of the row after which the newest `count` matching rows begin.
pub(super) async fn before_newest(
    link: &mut Link<'_>,
    filter: &AuditFilter,
    count: i64,
) -> Result<i64, StoreError> {
    let wanted = wanted(link, filter);
    let sql = format!(
        "SELECT coalesce(min(seq) - 1, 0) AS before FROM
         (SELECT seq FROM tenantgate_audit_log WHERE {} ORDER BY seq DESC LIMIT ${}) AS newest",
        wanted.sql(),
        wanted.next()
    );
    query(sql).bind_all(wanted).bind(count).fetch_one(link).await?.get("before")
}
