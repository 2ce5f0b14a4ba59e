//! Describes the session that holds the lock that a command gave up waiting for.

use sqlx::Row as _;

use super::PostgresStore;
use crate::store::StoreError;

/// Finds the session that most probably holds the lock on tenantgate's tables, or one of its advisory locks: one that has
/// written before one that has only read, one that waits for its client before one that works, and the oldest of those.
///
/// The session that gave up has ended, so `pg_blocking_pids` does not know its lock any more.
pub(super) async fn holder(store: &PostgresStore) -> Result<Option<String>, StoreError> {
    let sql = "SELECT a.pid, a.usename::text, coalesce(a.state, 'state not visible to this role'),
                to_char(a.query_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), coalesce(a.application_name, '')
         FROM pg_locks l JOIN pg_stat_activity a USING (pid)
         WHERE l.granted AND a.pid <> pg_backend_pid()
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (l.locktype = 'advisory' AND l.objsubid = 1 AND l.classid::bigint << 32 | l.objid::bigint IN (
                hashtext('tenantgate migrate'), hashtext('tenantgate roles'), hashtext('tenantgate usage'),
                hashtext('tenantgate tenantgate_audit_log')) OR l.relation IN (
                SELECT c.oid FROM pg_class c
                WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1)
                  AND (c.relname IN ('tenants', 'api_keys') OR c.relname LIKE 'tenantgate\\_%')))
         GROUP BY a.pid, a.usename, a.state, a.query_start, a.application_name, a.xact_start, a.backend_xid
         ORDER BY max(CASE l.mode WHEN 'AccessShareLock' THEN 1 WHEN 'RowShareLock' THEN 2 WHEN 'RowExclusiveLock' THEN 2
                      ELSE 3 END) DESC,
                  a.backend_xid IS NULL, a.state NOT LIKE 'idle in transaction%', a.xact_start NULLS LAST
         LIMIT 1";
    let mut connection = store.connect().await?;
    let Some(row) = sqlx::query(sql).bind(&store.schema).fetch_optional(&mut connection).await? else {
        return Ok(None);
    };
    let (pid, role, state): (i32, Option<String>, String) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let (since, program): (Option<String>, String) = (row.try_get(3)?, row.try_get(4)?);
    let since = since.unwrap_or_else(|| "a time not visible to this role".into());
    let role = role.unwrap_or_else(|| "unknown".into());
    Ok(Some(format!(
        "pid {pid} holds the lock (role {role}, program {program:?}, {state}, query started at {since}): end it with SELECT \
         pg_terminate_backend({pid}), or wait longer with --lock-timeout"
    )))
}
