//! Writes statistics: the last use of keys, and the shadow report.

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::PostgresStore;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::store::sql::instant::Micros;
use crate::store::{Shadowed, ShadowedKind, StoreError, Touched};

/// Moves `last_used_at` of keys forward. Skips rows that another session keeps locked.
pub(super) async fn touch_keys(
    store: &PostgresStore,
    used: &[(KeyId, Timestamp)],
) -> Result<Touched, StoreError> {
    match touch(store, used, LockedRows::Wait).await {
        // Another server that writes the same keys takes milliseconds. A session that was left in a transaction may
        // keep its row for hours, and delays that row alone.
        Err(StoreError::Locked(_)) => touch(store, used, LockedRows::Skip).await,
        touched => touched,
    }
}

/// How rows are handled that another session has locked.
#[derive(Clone, Copy, Eq, PartialEq)]
enum LockedRows {
    Wait,
    Skip,
}

async fn touch(
    store: &PostgresStore,
    used: &[(KeyId, Timestamp)],
    rows: LockedRows,
) -> Result<Touched, StoreError> {
    let (ids, at): (Vec<_>, Vec<_>) = used.iter().map(|(id, at)| (id.0, Micros(*at))).unzip();
    let mut connection = store.connect().await?;
    let mut transaction = connection.begin().await?;
    use_async_commit(&mut transaction).await?;
    let skip = if rows == LockedRows::Skip { "SKIP LOCKED" } else { "" };
    // Rows are locked in the order of ids, so that two servers cannot deadlock.
    let sql = format!(
        "WITH used AS (SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS u (id, at)),
              due AS (SELECT k.id FROM api_keys k JOIN used u USING (id)
                      WHERE k.last_used_at IS NULL OR k.last_used_at < u.at),
              mine AS (SELECT k.id, u.at, k.last_used_at IS NULL AS never FROM api_keys k JOIN used u USING (id)
                       WHERE k.last_used_at IS NULL OR k.last_used_at < u.at
                       ORDER BY k.id FOR NO KEY UPDATE OF k {skip}),
              done AS (UPDATE api_keys k SET last_used_at = GREATEST(k.last_used_at, LEAST(mine.at, now()))
                       FROM mine WHERE k.id = mine.id RETURNING k.id, mine.never)
         SELECT due.id, done.never FROM due LEFT JOIN done USING (id)
         WHERE done.never IS DISTINCT FROM false"
    );
    let found = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(ids).bind(at).fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    let mut touched = Touched::default();
    for row in &found {
        let id = KeyId(row.try_get(0)?);
        match row.try_get::<Option<bool>, _>(1)? {
            Some(_) => touched.first.push(id),
            None if rows == LockedRows::Skip => touched.locked.push(id),
            // Another server has moved it further while this one waited.
            None => {}
        }
    }
    Ok(touched)
}

/// Adds entries to the shadow report, and deletes entries older than 30 days.
pub(super) async fn write_shadowed(store: &PostgresStore, requests: &[Shadowed]) -> Result<(), StoreError> {
    let column = |of: fn(&ShadowedKind) -> &String| -> Vec<String> {
        requests.iter().map(|row| of(&row.kind).clone()).collect()
    };
    let instants = |of: fn(&Shadowed) -> Timestamp| requests.iter().map(|row| Micros(of(row))).collect();
    let (first, last): (Vec<_>, Vec<_>) = (instants(|row| row.first_seen), instants(|row| row.last_seen));
    let counts: Vec<_> = requests.iter().map(|row| i64::try_from(row.requests).unwrap_or(i64::MAX)).collect();
    let mut connection = store.connect().await?;
    sqlx::query("DELETE FROM tenantgate_shadow_report WHERE day < (now() AT TIME ZONE 'UTC')::date - 30")
        .execute(&mut connection)
        .await?;
    sqlx::query(
        "INSERT INTO tenantgate_shadow_report (day, reason, network, user_agent, method, path, key_prefix, requests, first_seen, last_seen)
         SELECT (s.first_seen AT TIME ZONE 'UTC')::date, s.*
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
                     $8::timestamptz[], $9::timestamptz[])
           AS s (reason, network, user_agent, method, path, key_prefix, requests, first_seen, last_seen)
         ON CONFLICT (day, reason, network, user_agent, method, path, key_prefix) DO UPDATE
         SET requests = tenantgate_shadow_report.requests + excluded.requests,
             first_seen = LEAST(tenantgate_shadow_report.first_seen, excluded.first_seen),
             last_seen = GREATEST(tenantgate_shadow_report.last_seen, excluded.last_seen)",
    )
    .bind(column(|kind| &kind.reason))
    .bind(column(|kind| &kind.network))
    .bind(column(|kind| &kind.user_agent))
    .bind(column(|kind| &kind.method))
    .bind(column(|kind| &kind.path))
    .bind(column(|kind| &kind.key_prefix))
    .bind(counts)
    .bind(first)
    .bind(last)
    .execute(&mut connection)
    .await?;
    Ok(())
}

/// Lets a transaction of statistics commit asynchronously and give up on locks after half a second. A crash of the
/// database may lose half a second of statistics, but a revocation must not wait for their locks.
pub(super) async fn use_async_commit(transaction: &mut PgConnection) -> Result<(), StoreError> {
    let sql =
        "SELECT set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '500ms', true)";
    sqlx::query(sql).execute(transaction).await?;
    Ok(())
}
