//! How is all that said to Postgres?
//!
//! Management opens a connection for what it has to do: one statement or one
//! transaction. How a replica looks at the database is in [`session`]. Nothing here
//! judges.

mod audit;
mod bulk;
mod examine;
mod inspect;
mod instant;
mod made;
mod management;
mod rights;
mod session;

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{ColumnIndex, ConnectOptions as _, Connection as _, Row as _};
use tokio::time::timeout;
use uuid::Uuid;

use self::instant::Micros;
use self::session::PostgresSession;
use super::migrations;
use super::{
    Announcement, CONNECT_TIMEOUT, NewMemo, SchemaVersion, Session, Shadowed, ShadowedKind, Store, StoreError,
};
use crate::audit::Actor;
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::Memo;

/// Tenants and keys in Postgres 13 or newer.
#[derive(Debug)]
pub struct PostgresStore {
    options: PgConnectOptions,
    actor: Actor,
}

impl PostgresStore {
    /// A store at this address, not yet connected. Takes what libpq calls a connection URI, and the
    /// spelling of SQLAlchemy (`postgresql+asyncpg://…`).
    ///
    /// # Errors
    ///
    /// The address makes no sense; says why, without repeating it.
    pub fn new(url: &str) -> Result<Self, String> {
        let options = PgConnectOptions::from_str(&plain_url(url))
            .map_err(|e| format!("the database URL makes no sense: {e}"))?
            .application_name("tenantgate");
        Ok(Self { options, actor: Actor::default() })
    }

    /// The same store, opened by somebody: the audit log has his name.
    #[must_use]
    pub fn acting_for(mut self, actor: Actor) -> Self {
        self.actor = actor;
        self
    }

    /// A connection for one piece of management. There is no pool: management is rare, and a pool hides a
    /// refused connection behind tries of its own.
    async fn connect(&self) -> Result<PgConnection, StoreError> {
        timeout(CONNECT_TIMEOUT, self.options.connect())
            .await
            .unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut))
            .map_err(|error| match StoreError::from(error) {
                StoreError::Unavailable(why) => StoreError::Unavailable(format!("{}: {why}", self.host())),
                other => other,
            })
    }

    /// Where it is to be reached.
    fn host(&self) -> String {
        format!("{}:{}", self.options.get_host(), self.options.get_port())
    }
}

async fn applied(connection: &mut PgConnection) -> Result<i64, StoreError> {
    let known = "SELECT to_regclass($1) IS NOT NULL";
    if !sqlx::query(known).bind(migrations::TABLE).fetch_one(&mut *connection).await?.try_get::<bool, _>(0)? {
        return Ok(0);
    }
    let sql = migrations::NEWEST_APPLIED;
    Ok(sqlx::query(sql).fetch_one(connection).await?.try_get::<Option<i64>, _>(0)?.unwrap_or(0))
}

/// `postgresql+asyncpg://…?ssl=require` as other programs of a deployment spell it, and
/// `postgresql://user@/db?host=/run/postgresql`, whose missing host an RFC 3986 parser will not have.
fn plain_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let scheme = scheme.split('+').next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let host = if authority.ends_with('@') { "localhost" } else { "" };
    let path = path.replacen("?ssl=", "?sslmode=", 1).replacen("&ssl=", "&sslmode=", 1);
    format!("{scheme}://{authority}{host}{path}")
}

#[async_trait]
impl Store for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn address(&self) -> String {
        format!("postgres://{}/{}", self.host(), self.options.get_database().unwrap_or_default())
    }

    fn embedded(&self) -> bool {
        false
    }

    async fn session(&self) -> Result<Box<dyn Session>, StoreError> {
        // LISTEN fails on a standby, with words that do not help.
        let mut probe = self.connect().await?;
        if sqlx::query("SELECT pg_is_in_recovery()").fetch_one(&mut probe).await?.try_get(0)? {
            return Err(session::standby());
        }
        Ok(Box::new(PostgresSession::open(&self.options).await?))
    }

    async fn schema_version(&self) -> Result<SchemaVersion, StoreError> {
        let current = applied(&mut self.connect().await?).await?;
        Ok(SchemaVersion { current, needed: migrations::newest(migrations::POSTGRES) })
    }

    async fn migrate(&self) -> Result<Vec<i64>, StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with(audit::BEGIN).await?;
        // The migrator's own lock ends before our transaction does.
        let lock = "SELECT pg_advisory_xact_lock(hashtext('tenantgate migrate'))";
        sqlx::query(lock).execute(&mut *transaction).await?;
        let before = applied(&mut transaction).await?;
        migrations::migrator(migrations::POSTGRES).run_direct(None, &mut *transaction, false).await?;
        let applied = migrations::after(migrations::POSTGRES, before);
        audit::append(&mut transaction, &self.actor, migrations::draft(before, &applied)).await?;
        transaction.commit().await?;
        Ok(applied)
    }

    async fn prune_changes(&self, keep: Duration) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT auth_prune(make_interval(secs => $1))")
            .bind(keep.as_secs_f64())
            .fetch_one(&mut self.connect().await?)
            .await?;
        Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))
    }

    async fn announce(&self, announcement: &Announcement<'_>) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        sqlx::query(
            "INSERT INTO auth_replica (id, name, applied, seen_at, serves_until)
             VALUES ($1, $2, $3::pg_snapshot, now(), now() + make_interval(secs => $4))
             ON CONFLICT (id) DO UPDATE SET applied = excluded.applied, seen_at = excluded.seen_at,
                                            serves_until = excluded.serves_until",
        )
        .bind(announcement.id)
        .bind(announcement.name)
        .bind(announcement.position)
        .bind(announcement.serves_for.as_secs_f64())
        .execute(&mut connection)
        .await?;
        Ok(())
    }

    async fn retract(&self, id: Uuid) -> Result<(), StoreError> {
        // Its own row, and those of servers that were killed and cannot serve any more.
        let sql = "DELETE FROM auth_replica WHERE id = $1 OR serves_until < now() - interval '1 day'";
        sqlx::query(sql).bind(id).execute(&mut self.connect().await?).await?;
        Ok(())
    }

    async fn touch_keys(&self, used: &[(KeyId, Timestamp)]) -> Result<Vec<KeyId>, StoreError> {
        let (ids, at): (Vec<_>, Vec<_>) = used.iter().map(|(id, at)| (id.0, Micros(*at))).unzip();
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin().await?;
        // A lost second of last_used_at is no loss; a revocation that waits for it would be.
        sqlx::query(
            "SELECT set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '500ms', true)",
        )
        .execute(&mut *transaction)
        .await?;
        // Locked in the order of ids, rows that somebody else holds left for the next time: no deadlock.
        let rows = sqlx::query(
            "WITH used AS (SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS u (id, at)),
                  mine AS (SELECT k.id, u.at, k.last_used_at IS NULL AS never FROM api_keys k JOIN used u USING (id)
                           WHERE k.last_used_at IS NULL OR k.last_used_at < u.at
                           ORDER BY k.id FOR NO KEY UPDATE OF k)
             UPDATE api_keys k SET last_used_at = GREATEST(k.last_used_at, LEAST(mine.at, now()))
             FROM mine WHERE k.id = mine.id RETURNING CASE WHEN mine.never THEN k.id END",
        )
        .bind(ids)
        .bind(at)
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        let first = rows.iter().filter_map(|row| row.try_get::<Option<Uuid>, _>(0).transpose());
        Ok(first.map(|id| id.map(KeyId)).collect::<Result<_, _>>()?)
    }

    async fn write_memos(&self, memos: &[NewMemo]) -> Result<(), StoreError> {
        let ids: Vec<_> = memos.iter().map(|new| new.id.0).collect();
        let hashes: Vec<_> = memos.iter().map(|new| new.hash.text().as_str().to_owned()).collect();
        let texts: Vec<_> = memos.iter().map(|new| new.memo.to_string()).collect();
        sqlx::query(
            "WITH new AS (SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[]) AS n (id, hash, memo)),
                  mine AS (SELECT k.id, n.memo FROM api_keys k JOIN new n ON k.id = n.id AND k.hashed_key = n.hash
                           WHERE k.key_memo IS DISTINCT FROM n.memo ORDER BY k.id FOR NO KEY UPDATE OF k SKIP LOCKED)
             UPDATE api_keys k SET key_memo = mine.memo FROM mine WHERE k.id = mine.id",
        )
        .bind(ids)
        .bind(hashes)
        .bind(texts)
        .execute(&mut self.connect().await?)
        .await?;
        Ok(())
    }

    async fn write_shadowed(&self, requests: &[Shadowed]) -> Result<(), StoreError> {
        let column = |of: fn(&ShadowedKind) -> &String| -> Vec<String> {
            requests.iter().map(|row| of(&row.kind).clone()).collect()
        };
        let instants = |of: fn(&Shadowed) -> Timestamp| requests.iter().map(|row| Micros(of(row))).collect();
        let (first, last): (Vec<_>, Vec<_>) = (instants(|row| row.first_seen), instants(|row| row.last_seen));
        let counts: Vec<_> =
            requests.iter().map(|row| i64::try_from(row.requests).unwrap_or(i64::MAX)).collect();
        let mut connection = self.connect().await?;
        sqlx::query("DELETE FROM shadow_report WHERE day < (now() AT TIME ZONE 'UTC')::date - 30")
            .execute(&mut connection)
            .await?;
        sqlx::query(
            "INSERT INTO shadow_report (day, reason, network, user_agent, method, path, key_prefix, requests, first_seen, last_seen)
             SELECT (s.first_seen AT TIME ZONE 'UTC')::date, s.*
             FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
                         $8::timestamptz[], $9::timestamptz[])
               AS s (reason, network, user_agent, method, path, key_prefix, requests, first_seen, last_seen)
             ON CONFLICT (day, reason, network, user_agent, method, path, key_prefix) DO UPDATE
             SET requests = shadow_report.requests + excluded.requests,
                 first_seen = LEAST(shadow_report.first_seen, excluded.first_seen),
                 last_seen = GREATEST(shadow_report.last_seen, excluded.last_seen)",
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
}

fn memo(row: &PgRow, column: impl ColumnIndex<PgRow>) -> Result<Option<Memo>, StoreError> {
    Ok(row.try_get::<Option<&str>, _>(column)?.and_then(Memo::parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spelling_of_sqlalchemy_is_understood() {
        for (given, plain) in [
            ("postgresql+asyncpg://u:p@h/db", "postgresql://u:p@h/db"),
            ("postgresql+asyncpg://u:p@h/db?ssl=require", "postgresql://u:p@h/db?sslmode=require"),
            ("postgresql://u:p@/db?host=/run/pg", "postgresql://u:p@localhost/db?host=/run/pg"),
            ("postgresql:///db?host=/run/pg", "postgresql:///db?host=/run/pg"),
            ("postgres://h/db?sslmode=verify-full", "postgres://h/db?sslmode=verify-full"),
        ] {
            assert_eq!(plain_url(given), plain);
        }
        for url in
            ["postgresql+asyncpg://u:p%40ss@h:1/db", "postgresql://u@/db?host=/run/pg", "postgresql:///db"]
        {
            assert!(PostgresStore::new(url).is_ok(), "{url}");
        }
    }
}
