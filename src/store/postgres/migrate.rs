//! Applies migrations, adopts existing tables, and restores triggers, functions and rows that a dump or an operator has
//! lost.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};
use tokio::time::sleep;

use super::connection::quoted;
use super::{PostgresStore, applied, moved, schema_check, shape};
use crate::audit::{Action, Draft};
use crate::store::migrations::{self, POSTGRES, POSTGRES_OBJECTS};
use crate::store::sql::{Link, POSTGRES as DIALECT, audit};
use crate::store::{Adoption, Migrated, StoreError};

/// The name of the publication for logical replication.
const PUBLICATION: &str = "tenantgate";

/// The tables that a subscriber needs. The change log is not among them: each database has its own.
const PUBLISHED: [&str; 5] =
    ["tenants", "api_keys", "tenantgate_plan", "tenantgate_route", "tenantgate_identity"];

/// Does everything in one transaction.
pub(super) async fn migrate(store: &PostgresStore, adoption: &Adoption) -> Result<Migrated, StoreError> {
    let mut connection = store.connect().await?;
    let mut transaction = connection.begin_with(DIALECT.begin).await?;
    let lock = "SELECT pg_advisory_xact_lock(hashtext('tenantgate migrate'))";
    sqlx::query(lock).execute(&mut *transaction).await?;
    let before = applied(&mut transaction).await?;
    if before == 0 {
        refuse_tables_elsewhere(&mut transaction, &store.schema).await?;
        make_schema(&mut transaction, &store.schema).await?;
    } else if !adoption.revoke_where.is_empty() {
        return Err(StoreError::Disallowed(
            "--revoke-where is for adopting tables, and these were adopted before: use `tenantgate key revoke`".into(),
        ));
    }
    // New tables are created in the first schema of the path. Postgres still searches pg_catalog before it.
    let path = format!("SET LOCAL search_path = {}, pg_temp", quoted(&store.schema));
    sqlx::raw_sql(AssertSqlSafe(path)).execute(&mut *transaction).await?;
    let mut migrated = Migrated::default();
    if before == 0 {
        migrated.notes.extend(shape::adopt(&mut transaction, adoption).await?);
    }
    migrated.applied = migrations::after(POSTGRES, before);
    if before > 0 && !migrated.applied.is_empty() {
        lock_tables(&mut transaction).await?;
    }
    migrations::migrator(POSTGRES).run_direct(None, &mut *transaction, false).await?;
    if before == 0 {
        migrated.notes.extend(shape::revoke(&mut transaction, adoption).await?);
    }
    if migrated.applied.is_empty() {
        migrated.mended = repair(&mut transaction, &store.schema).await?;
    } else {
        sqlx::raw_sql(POSTGRES_OBJECTS).execute(&mut *transaction).await?;
    }
    // While a trigger or function was not as it must be, changes may have been missed.
    if before > 0 && !(migrated.applied.is_empty() && migrated.mended.is_empty()) {
        moved::reload(&mut transaction).await?;
    }
    if adoption.new_identity {
        migrated.identity = Some(moved::renew_identity(&mut transaction).await?);
        // A load compares the identity.
        moved::reload(&mut transaction).await?;
    }
    if adoption.publication {
        migrated.notes.extend(publish(&mut transaction).await?);
        migrated.publication = Some(PUBLICATION.to_owned());
    }
    // On a subscriber, the audit log belongs to the publisher.
    if moved::subscription(&mut transaction).await?.is_none() {
        audit::append(
            &mut Link::Postgres(&mut transaction),
            &store.context.author,
            drafts(before, &migrated),
        )
        .await?;
    }
    transaction.commit().await?;
    Ok(migrated)
}

fn drafts(before: i64, migrated: &Migrated) -> impl Iterator<Item = Draft> {
    let other = (!migrated.mended.is_empty()
        || migrated.identity.is_some()
        || migrated.publication.is_some())
    .then(|| {
        let is = serde_json::json!({ "mended": migrated.mended, "identity": migrated.identity,
                                         "publication": migrated.publication });
        Draft::of(Action::Migrate, "schema".into(), None::<&()>, &is)
    });
    migrations::draft(before, &migrated.applied).into_iter().chain(other)
}

/// Restores functions, triggers and required rows if they are missing or differ. Returns what was wrong.
async fn repair(connection: &mut PgConnection, schema: &str) -> Result<Vec<String>, StoreError> {
    let mut wrong = schema_check::wrong(connection, schema).await?;
    wrong.extend(schema_check::mend_parts(connection).await?);
    if !wrong.is_empty() {
        lock_tables(&mut *connection).await?;
        sqlx::raw_sql(POSTGRES_OBJECTS).execute(&mut *connection).await?;
    }
    wrong.extend(moved::repair(connection).await?);
    Ok(wrong)
}

/// Locks the tables that servers poll, all of them at once or none. A poll locks them one after the other: if the
/// statements that follow did so in another order, one of the two would end in a deadlock. Tries for half a second, in
/// which several polls end. Afterwards these statements wait as usual.
async fn lock_tables(connection: &mut PgConnection) -> Result<(), StoreError> {
    const LOCK: &str = "LOCK TABLE tenants, api_keys, tenantgate_plan, tenantgate_route, tenantgate_change,
        tenantgate_change_floor, tenantgate_identity IN ACCESS EXCLUSIVE MODE NOWAIT";
    for _ in 0..50 {
        let mut attempt = connection.begin().await?;
        match sqlx::raw_sql(LOCK).execute(&mut *attempt).await.map_err(StoreError::from) {
            Ok(_) => return Ok(attempt.commit().await?),
            Err(StoreError::Locked(_)) => attempt.rollback().await?,
            // An older version lacks a table, or the role lacks a right, which the next statement reports.
            Err(_) => return Ok(attempt.rollback().await?),
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn make_schema(connection: &mut PgConnection, schema: &str) -> Result<(), StoreError> {
    let known = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
    if !sqlx::query(known).bind(schema).fetch_one(&mut *connection).await?.try_get::<bool, _>(0)? {
        let sql = format!("CREATE SCHEMA {}", quoted(schema));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    }
    Ok(())
}

/// Rejects a database whose tables are in another schema: tables of tenantgate, or two tables that could be adopted. It
/// must not get a second set of tables.
pub(super) async fn refuse_tables_elsewhere(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<(), StoreError> {
    let sql = "WITH found AS (
            SELECT n.nspname, bool_or(c.relname = 'tenantgate_migrations') AS ours,
                   count(*) FILTER (WHERE c.relname IN ('tenants', 'api_keys')) = 2 AS adoptable
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relname IN ('tenantgate_migrations', 'tenants', 'api_keys') AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
              AND n.nspname !~ '^pg_' GROUP BY 1)
        SELECT nspname::text FROM found WHERE nspname <> $1
          AND (ours OR adoptable AND NOT EXISTS (SELECT FROM found f WHERE f.nspname = $1 AND f.adoptable))
        ORDER BY ours DESC, 1 LIMIT 1";
    let row = sqlx::query(sql).bind(schema).fetch_optional(connection).await?;
    match row {
        None => Ok(()),
        Some(row) => Err(StoreError::Elsewhere { found: row.try_get(0)?, wanted: schema.to_owned() }),
    }
}

/// Creates the publication for subscribers, or sets its tables. Returns a remark if the server does not support logical
/// replication yet.
async fn publish(connection: &mut PgConnection) -> Result<Option<String>, StoreError> {
    let known = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1), current_setting('wal_level')";
    let row = sqlx::query(known).bind(PUBLICATION).fetch_one(&mut *connection).await?;
    let (known, level): (bool, String) = (row.try_get(0)?, row.try_get(1)?);
    let tables = PUBLISHED.join(", ");
    // An operator may have changed the default of Postgres.
    let changes = "publish = 'insert, update, delete, truncate'";
    let sql = if known {
        format!(
            "ALTER PUBLICATION {PUBLICATION} SET TABLE {tables}; ALTER PUBLICATION {PUBLICATION} SET ({changes})"
        )
    } else {
        format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE {tables} WITH ({changes})")
    };
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok((level != "logical").then(|| {
        format!("wal_level is {level}: set it to logical and restart Postgres before anything subscribes")
    }))
}
