//! How do many rows get into Postgres at once, and out of it?
//!
//! A batch is one statement over arrays, in one transaction with its row of the audit
//! log. What is read comes in pages, in the order of ids: no statement and no snapshot
//! lives as long as somebody takes to read a million rows.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

use super::audit::{self, BEGIN};
use super::instant::Micros;
use super::management::{KEY, TENANT, stored_key_of, tenant_of};
use super::schemas;
use crate::audit::{Actor, Draft};
use crate::key::KeyId;
use crate::store::{ImportedKey, StoreError, StoredKey};
use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};

/// The keys of a page with the schemas of their tenants; `keys` says which.
fn stored_keys(keys: &str) -> String {
    format!(
        "SELECT k.*, coalesce(t.db_schema_name, '') AS db_schema_name
         FROM (SELECT {KEY}, hashed_key FROM api_keys WHERE {keys}) AS k
         LEFT JOIN tenants t ON t.id = k.tenant_id ORDER BY k.id"
    )
}

pub(super) async fn keys_page(
    connection: &mut PgConnection,
    tenant: Option<TenantId>,
    after: Option<KeyId>,
    page: i64,
) -> Result<Vec<StoredKey>, StoreError> {
    let wanted =
        "($1::uuid IS NULL OR tenant_id = $1) AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3";
    let query = sqlx::query(AssertSqlSafe(stored_keys(wanted)));
    let query = query.bind(tenant.map(|id| id.0)).bind(after.map(|id| id.0)).bind(page);
    query.fetch_all(connection).await?.iter().map(stored_key_of).collect()
}

pub(super) async fn keys_named(
    connection: &mut PgConnection,
    names: &[String],
) -> Result<Vec<StoredKey>, StoreError> {
    let ids: Vec<_> = names.iter().filter_map(|name| Uuid::parse_str(name).ok()).collect();
    let sql = stored_keys("id = ANY($1) OR key_prefix = ANY($2) OR hashed_key = ANY($2)");
    let query = sqlx::query(AssertSqlSafe(sql)).bind(ids).bind(names);
    query.fetch_all(connection).await?.iter().map(stored_key_of).collect()
}

pub(super) async fn tenants_page(
    connection: &mut PgConnection,
    after: Option<TenantId>,
    page: i64,
) -> Result<Vec<Tenant>, StoreError> {
    let sql = format!("SELECT {TENANT} FROM tenants WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2");
    let query = sqlx::query(AssertSqlSafe(sql)).bind(after.map(|id| id.0)).bind(page);
    query.fetch_all(connection).await?.iter().map(tenant_of).collect()
}

pub(super) async fn tenants_named(
    connection: &mut PgConnection,
    names: &[String],
) -> Result<Vec<Tenant>, StoreError> {
    let ids: Vec<_> = names.iter().filter_map(|name| Uuid::parse_str(name).ok()).collect();
    let sql = format!(
        "SELECT {TENANT} FROM tenants WHERE id = ANY($1) OR db_schema_name = ANY($2) OR name = ANY($2)"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(ids).bind(names);
    query.fetch_all(connection).await?.iter().map(tenant_of).collect()
}

pub(super) async fn import_keys(
    connection: &mut PgConnection,
    actor: &Actor,
    keys: &[ImportedKey],
    draft: Draft,
) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with(BEGIN).await?;
    sqlx::query(
        "INSERT INTO api_keys (id, key_prefix, hashed_key, tenant_id, name, created_at, expires_at, key_memo,
                               last_used_at, revoked_at, revocation_reason, replaced_by)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::timestamptz[],
                              $7::timestamptz[], $8::text[], $9::timestamptz[], $10::timestamptz[], $11::text[],
                              $12::uuid[])",
    )
    .bind(keys.iter().map(|key| key.new.id.0).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.new.prefix.clone()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.new.hash.clone()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.new.tenant_id.0).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.new.name.clone()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| Micros(key.new.created_at)).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.new.expires_at.map(Micros)).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.new.memo.map(|memo| memo.to_string())).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.last_used_at.map(Micros)).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.revoked_at.map(Micros)).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.revocation_reason.clone()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.replaced_by.map(|id| id.0)).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await?;
    audit::append(&mut transaction, actor, [draft]).await?;
    transaction.commit().await?;
    Ok(())
}

pub(super) async fn import_tenants(
    connection: &mut PgConnection,
    home: &str,
    actor: &Actor,
    tenants: &[Tenant],
    draft: Draft,
) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with(BEGIN).await?;
    sqlx::query(
        "INSERT INTO tenants (id, name, db_schema_name, status, mode, created_at)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])",
    )
    .bind(tenants.iter().map(|tenant| tenant.id.0).collect::<Vec<_>>())
    .bind(tenants.iter().map(|tenant| tenant.name.clone()).collect::<Vec<_>>())
    .bind(tenants.iter().map(|tenant| tenant.schema.clone()).collect::<Vec<_>>())
    .bind(tenants.iter().map(|tenant| tenant.status.to_string()).collect::<Vec<_>>())
    .bind(tenants.iter().map(|tenant| tenant.mode.map(Mode::as_str)).collect::<Vec<_>>())
    .bind(tenants.iter().map(|tenant| Micros(tenant.created_at)).collect::<Vec<_>>())
    .execute(&mut *transaction)
    .await?;
    for tenant in tenants {
        if [TenantStatus::Active, TenantStatus::Suspended].contains(&tenant.status) {
            // Its schema usually came with the data.
            schemas::create(&mut transaction, home, &tenant.schema, true).await?;
        }
    }
    audit::append(&mut transaction, actor, [draft]).await?;
    transaction.commit().await?;
    Ok(())
}
