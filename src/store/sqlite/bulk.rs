//! How do many rows get into SQLite at once, and out of it?
//!
//! A batch is one statement over a JSON array, in one transaction with its row of the
//! audit log.

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use super::audit::{self, BEGIN};
use super::management::{KEY, stored_key_of};
use super::{TENANT, tenant_of};
use crate::audit::{Actor, Draft};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::store::{ImportedKey, StoreError, StoredKey};
use crate::tenant::{Tenant, TenantId};

/// The keys of a page with the schemas of their tenants; `keys` says which.
fn stored_keys(keys: &str) -> String {
    format!(
        "SELECT k.*, coalesce(t.db_schema_name, '') AS db_schema_name
         FROM (SELECT {KEY}, hashed_key FROM api_keys WHERE {keys}) AS k
         LEFT JOIN tenants t ON t.id = k.tenant_id ORDER BY k.id"
    )
}

/// A list as SQLite takes one.
fn list(names: &[String]) -> String {
    serde_json::to_string(names).unwrap_or_default()
}

pub(super) async fn keys_page(
    connection: &mut SqliteConnection,
    tenant: Option<TenantId>,
    after: Option<KeyId>,
    page: i64,
) -> Result<Vec<StoredKey>, StoreError> {
    // Ids are in lower case, and every one is above the empty text.
    let sql = stored_keys("(?1 IS NULL OR tenant_id = ?1) AND id > ?2 ORDER BY id LIMIT ?3");
    let after = after.map(|id| id.0.to_string()).unwrap_or_default();
    let query =
        sqlx::query(AssertSqlSafe(sql)).bind(tenant.map(|id| id.0.to_string())).bind(after).bind(page);
    query.fetch_all(connection).await?.iter().map(stored_key_of).collect()
}

pub(super) async fn keys_named(
    connection: &mut SqliteConnection,
    names: &[String],
) -> Result<Vec<StoredKey>, StoreError> {
    let sql = stored_keys(
        "rowid IN (SELECT rowid FROM api_keys WHERE id IN (SELECT value FROM json_each(?1))
         UNION SELECT rowid FROM api_keys WHERE key_prefix IN (SELECT value FROM json_each(?1))
         UNION SELECT rowid FROM api_keys WHERE hashed_key IN (SELECT value FROM json_each(?1)))",
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(list(names));
    query.fetch_all(connection).await?.iter().map(stored_key_of).collect()
}

pub(super) async fn tenants_page(
    connection: &mut SqliteConnection,
    after: Option<TenantId>,
    page: i64,
) -> Result<Vec<Tenant>, StoreError> {
    let sql = format!("SELECT {TENANT} FROM tenants WHERE id > ?1 ORDER BY id LIMIT ?2");
    let after = after.map(|id| id.0.to_string()).unwrap_or_default();
    let query = sqlx::query(AssertSqlSafe(sql)).bind(after).bind(page);
    query.fetch_all(connection).await?.iter().map(tenant_of).collect()
}

pub(super) async fn tenants_named(
    connection: &mut SqliteConnection,
    names: &[String],
) -> Result<Vec<Tenant>, StoreError> {
    let sql = format!(
        "SELECT {TENANT} FROM tenants
         WHERE id IN (SELECT lower(value) FROM json_each(?1)) OR db_schema_name IN (SELECT value FROM json_each(?1))
            OR name IN (SELECT value FROM json_each(?1))"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(list(names));
    query.fetch_all(connection).await?.iter().map(tenant_of).collect()
}

pub(super) async fn import_keys(
    connection: &mut SqliteConnection,
    actor: &Actor,
    keys: &[ImportedKey],
    draft: Draft,
) -> Result<(), StoreError> {
    let rows: Vec<_> = keys.iter().map(key_values).collect();
    let mut transaction = connection.begin_with(BEGIN).await?;
    sqlx::query(
        "INSERT INTO api_keys (id, key_prefix, hashed_key, tenant_id, name, created_at, expires_at, key_memo,
                               last_used_at, revoked_at, revocation_reason, replaced_by)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
                value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11 FROM json_each(?1)",
    )
    .bind(serde_json::to_string(&rows).unwrap_or_default())
    .execute(&mut *transaction)
    .await?;
    audit::append(&mut transaction, actor, [draft]).await?;
    transaction.commit().await?;
    Ok(())
}

/// The columns in the order of the statement above.
fn key_values(key: &ImportedKey) -> [Option<String>; 12] {
    let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
    [
        Some(key.new.id.0.to_string()),
        Some(key.new.prefix.clone()),
        Some(key.new.hash.clone()),
        Some(key.new.tenant_id.0.to_string()),
        key.new.name.clone(),
        Some(key.new.created_at.to_string()),
        text(key.new.expires_at),
        key.new.memo.map(|memo| memo.to_string()),
        text(key.last_used_at),
        text(key.revoked_at),
        key.revocation_reason.clone(),
        key.replaced_by.map(|id| id.0.to_string()),
    ]
}

pub(super) async fn import_tenants(
    connection: &mut SqliteConnection,
    actor: &Actor,
    tenants: &[Tenant],
    draft: Draft,
) -> Result<(), StoreError> {
    let rows: Vec<_> = tenants.iter().map(tenant_values).collect();
    let mut transaction = connection.begin_with(BEGIN).await?;
    sqlx::query(
        "INSERT INTO tenants (id, name, db_schema_name, status, mode, created_at)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5 FROM json_each(?1)",
    )
    .bind(serde_json::to_string(&rows).unwrap_or_default())
    .execute(&mut *transaction)
    .await?;
    audit::append(&mut transaction, actor, [draft]).await?;
    transaction.commit().await?;
    Ok(())
}

/// The columns in the order of the statement above.
fn tenant_values(tenant: &Tenant) -> [Option<String>; 6] {
    [
        Some(tenant.id.0.to_string()),
        Some(tenant.name.clone()),
        Some(tenant.schema.clone()),
        Some(tenant.status.to_string()),
        tenant.mode.map(|mode| mode.as_str().to_owned()),
        Some(tenant.created_at.to_string()),
    ]
}
