//! How are rows of SQLite found, added and changed?
//!
//! One statement or one transaction for each thing that people want. Nothing here
//! judges.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{Connection as _, Row as _, Sqlite};
use uuid::Uuid;

use super::{SqliteStore, TENANT, instant, memo, tenant_of, uuid};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::KeyDetails;
use crate::store::{Laggard, Management, NewKey, NewTenant, StoreError};
use crate::tenant::{Tenant, TenantId, TenantStatus};

const KEY: &str = "id, key_prefix, name, tenant_id, created_at, expires_at, last_used_at, revoked_at, revocation_reason, replaced_by, key_memo";

#[async_trait]
impl Management for SqliteStore {
    fn has_schemas(&self) -> bool {
        false
    }

    async fn insert_tenant(&self, tenant: &NewTenant) -> Result<Tenant, StoreError> {
        let sql = format!(
            "INSERT INTO tenants (id, name, db_schema_name, status) VALUES (?1, ?2, ?3, ?4) RETURNING {TENANT}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.id.map_or_else(Uuid::new_v4, |id| id.0).to_string())
            .bind(&tenant.name)
            .bind(&tenant.schema)
            .bind(tenant.status.as_str())
            .fetch_one(&mut self.connect().await?)
            .await?;
        tenant_of(&row)
    }

    async fn create_schema(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let sql = format!("SELECT {TENANT} FROM tenants ORDER BY created_at, rowid");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(&mut self.connect().await?)
            .await?
            .iter()
            .map(tenant_of)
            .collect()
    }

    async fn find_tenants(&self, reference: &str) -> Result<Vec<Tenant>, StoreError> {
        let sql = format!(
            "SELECT {TENANT} FROM tenants WHERE id = lower(?1) OR db_schema_name = ?1 OR name = ?1 ORDER BY created_at, rowid"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(reference)
            .fetch_all(&mut self.connect().await?)
            .await?
            .iter()
            .map(tenant_of)
            .collect()
    }

    async fn set_tenant_status(
        &self,
        id: TenantId,
        status: &TenantStatus,
    ) -> Result<Option<Tenant>, StoreError> {
        let sql = format!("UPDATE tenants SET status = ?2 WHERE id = ?1 RETURNING {TENANT}");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0.to_string())
            .bind(status.as_str())
            .fetch_optional(&mut self.connect().await?)
            .await?;
        row.as_ref().map(tenant_of).transpose()
    }

    async fn insert_key(&self, key: &NewKey) -> Result<KeyDetails, StoreError> {
        insert_key(&mut self.connect().await?, key).await
    }

    async fn keys(&self, tenant: Option<TenantId>) -> Result<Vec<KeyDetails>, StoreError> {
        let sql = format!(
            "SELECT {KEY} FROM api_keys WHERE ?1 IS NULL OR tenant_id = ?1 ORDER BY created_at, rowid"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.map(|id| id.0.to_string()))
            .fetch_all(&mut self.connect().await?)
            .await?
            .iter()
            .map(key_of)
            .collect()
    }

    async fn find_key(&self, reference: &str) -> Result<Option<KeyDetails>, StoreError> {
        let sql = format!("SELECT {KEY} FROM api_keys WHERE id = lower(?1) OR key_prefix = ?1");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(reference)
            .fetch_optional(&mut self.connect().await?)
            .await?;
        row.as_ref().map(key_of).transpose()
    }

    async fn revoke_key(
        &self,
        id: KeyId,
        at: Timestamp,
        reason: Option<&str>,
    ) -> Result<Option<KeyDetails>, StoreError> {
        let sql = format!(
            "UPDATE api_keys SET revocation_reason = CASE WHEN revoked_at IS NULL THEN ?3 ELSE revocation_reason END,
                                 revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1 RETURNING {KEY}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0.to_string())
            .bind(at.to_string())
            .bind(reason)
            .fetch_optional(&mut self.connect().await?)
            .await?;
        row.as_ref().map(key_of).transpose()
    }

    async fn replace_key(
        &self,
        id: KeyId,
        expires_at: Timestamp,
        successor: &NewKey,
    ) -> Result<Option<(KeyDetails, KeyDetails)>, StoreError> {
        let mut connection = self.connect().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let sql = format!("SELECT {KEY} FROM api_keys WHERE id = ?1 AND revoked_at IS NULL");
        let old = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0.to_string())
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(old) = old.as_ref().map(key_of).transpose()? else { return Ok(None) };
        let expires_at = old.expires_at.map_or(expires_at, |own| own.min(expires_at));
        let new = insert_key(&mut *transaction, successor).await?;
        sqlx::query("UPDATE api_keys SET expires_at = ?2, replaced_by = ?3 WHERE id = ?1")
            .bind(id.0.to_string())
            .bind(expires_at.to_string())
            .bind(new.id.0.to_string())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Some((KeyDetails { expires_at: Some(expires_at), replaced_by: Some(new.id), ..old }, new)))
    }

    async fn mark(&self) -> Result<String, StoreError> {
        // A change of nothing: every server looks, and writes down that it has.
        let sql = "INSERT INTO auth_change (key_prefix) VALUES ('') RETURNING id";
        let id: i64 = sqlx::query(sql).fetch_one(&mut self.connect().await?).await?.try_get(0)?;
        Ok(id.to_string())
    }

    async fn laggards(&self, mark: &str) -> Result<Vec<Laggard>, StoreError> {
        let sql = "SELECT name, seen_at FROM auth_replica
             WHERE serves_until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now') AND applied < CAST(?1 AS INTEGER) ORDER BY name";
        let rows = sqlx::query(sql).bind(mark).fetch_all(&mut self.connect().await?).await?;
        let laggard = |row: &SqliteRow| {
            let seen_at = instant(row, "seen_at")?.unwrap_or_default();
            Ok(Laggard { name: row.try_get("name")?, seen_at })
        };
        rows.iter().map(laggard).collect()
    }
}

async fn insert_key<'e>(
    executor: impl sqlx::Executor<'e, Database = Sqlite>,
    key: &NewKey,
) -> Result<KeyDetails, StoreError> {
    let sql = format!(
        "INSERT INTO api_keys (id, key_prefix, hashed_key, tenant_id, name, created_at, expires_at, key_memo)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) RETURNING {KEY}"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(key.id.0.to_string())
        .bind(&key.prefix)
        .bind(&key.hash)
        .bind(key.tenant_id.0.to_string())
        .bind(&key.name)
        .bind(key.created_at.to_string())
        .bind(key.expires_at.map(|at| at.to_string()))
        .bind(key.memo.map(|memo| memo.to_string()))
        .fetch_one(executor)
        .await?;
    key_of(&row)
}

fn key_of(row: &SqliteRow) -> Result<KeyDetails, StoreError> {
    Ok(KeyDetails {
        id: KeyId(uuid(row, "id", "api_keys")?),
        prefix: row.try_get("key_prefix")?,
        name: row.try_get("name")?,
        tenant_id: TenantId(uuid(row, "tenant_id", "api_keys")?),
        created_at: instant(row, "created_at")?.unwrap_or_default(),
        expires_at: instant(row, "expires_at")?,
        last_used_at: instant(row, "last_used_at")?,
        revoked_at: instant(row, "revoked_at")?,
        revocation_reason: row.try_get("revocation_reason")?,
        replaced_by: uuid(row, "replaced_by", "api_keys").ok().map(KeyId),
        memo: memo(row)?.map(|memo| memo.pepper),
    })
}
