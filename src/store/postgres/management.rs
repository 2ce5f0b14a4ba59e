//! Finds, adds and changes rows of Postgres: one statement or one transaction for each method.

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection as _, Postgres, Row as _};
use uuid::Uuid;

use super::audit::{self, BEGIN};
use super::bulk;
use super::instant::{Micros, expiry, instant};
use super::{PostgresStore, locks, memo, migrate, moved, schemas};
use crate::audit::{Action, Draft, Entry};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::{KeyDetails, KeyState};
use crate::store::migrations;
use crate::store::{
    Adoption, AuditFilter, ImportedKey, Laggard, Management, Migrated, NewKey, NewTenant, Shadowed,
    ShadowedKind, StoreError, StoredKey,
};
use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};

pub(super) const TENANT: &str = "id, name, db_schema_name, status, mode, created_at";
pub(super) const KEY: &str = "id, key_prefix, name, tenant_id, created_at, expires_at, last_used_at, revoked_at, revocation_reason, replaced_by, key_memo";

#[async_trait]
impl Management for PostgresStore {
    fn has_schemas(&self) -> bool {
        true
    }

    async fn create_roles(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connect().await?;
        let named = "SELECT set_config('tenantgate.roles', $1, false)";
        sqlx::query(named).bind(prefix).execute(&mut connection).await?;
        sqlx::raw_sql(migrations::ROLES).execute(&mut connection).await?;
        Ok(["serve", "admin", "migrate"].map(|role| format!("{prefix}_{role}")).to_vec())
    }

    async fn insert_tenant(&self, tenant: &NewTenant, action: Action) -> Result<Tenant, StoreError> {
        let mut connection = self.connect_to_change().await?;
        let mut transaction = connection.begin_with(BEGIN).await?;
        let sql = format!(
            "INSERT INTO tenants (id, name, db_schema_name, status, created_at)
             VALUES (coalesce($1, gen_random_uuid()), $2, $3, $4, now()) RETURNING {TENANT}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.id.map(|id| id.0))
            .bind(&tenant.name)
            .bind(&tenant.schema)
            .bind(tenant.status.as_str())
            .fetch_one(&mut *transaction)
            .await?;
        let tenant = tenant_of(&row)?;
        let draft = Draft::of_tenant(action, None, &tenant);
        audit::append(&mut transaction, &self.actor, draft).await?;
        transaction.commit().await?;
        Ok(tenant)
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Migrated, StoreError> {
        migrate::migrate(self, adoption).await
    }

    async fn lock_holder(&self) -> Result<Option<String>, StoreError> {
        locks::holder(self).await
    }

    async fn check_schema(&self, schema: &str, adopt: bool) -> Result<(), StoreError> {
        schemas::check(&mut self.connect().await?, &self.schema, schema, adopt).await
    }

    async fn create_schema(&self, schema: &str, adopt: bool) -> Result<(), StoreError> {
        schemas::create(&mut self.connect_to_change().await?, &self.schema, schema, adopt).await
    }

    async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let sql = format!("SELECT {TENANT} FROM tenants ORDER BY created_at, id");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(&mut self.connect().await?)
            .await?
            .iter()
            .map(tenant_of)
            .collect()
    }

    async fn find_tenants(&self, reference: &str) -> Result<Vec<Tenant>, StoreError> {
        let sql = format!(
            "SELECT {TENANT} FROM tenants WHERE id = $1 OR db_schema_name = $2 OR name = $2 ORDER BY created_at, id"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(Uuid::parse_str(reference).ok())
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
        action: Action,
    ) -> Result<Option<Tenant>, StoreError> {
        self.change_tenant(id, "status", Some(status.as_str()), action).await
    }

    async fn set_tenant_mode(
        &self,
        id: TenantId,
        mode: Option<Mode>,
        action: Action,
    ) -> Result<Option<Tenant>, StoreError> {
        self.change_tenant(id, "mode", mode.map(Mode::as_str), action).await
    }

    async fn shadowed(&self, since: Timestamp) -> Result<Vec<Shadowed>, StoreError> {
        let sql =
            "SELECT reason, network, user_agent, method, path, key_prefix, sum(requests)::bigint AS requests,
                    min(first_seen) AS first_seen, max(last_seen) AS last_seen
             FROM tenantgate_shadow_report WHERE day >= ($1::timestamptz AT TIME ZONE 'UTC')::date
             GROUP BY reason, network, user_agent, method, path, key_prefix
             ORDER BY 7 DESC, reason, network, user_agent, method, path, key_prefix";
        let rows = sqlx::query(sql).bind(Micros(since)).fetch_all(&mut self.connect().await?).await?;
        rows.iter().map(shadowed_of).collect()
    }

    async fn insert_key(&self, key: &NewKey, action: Action) -> Result<KeyDetails, StoreError> {
        let mut connection = self.connect_to_change().await?;
        let mut transaction = connection.begin_with(BEGIN).await?;
        let key = insert_key(&mut *transaction, key).await?;
        audit::append(&mut transaction, &self.actor, Draft::of_key(action, None, &key)).await?;
        transaction.commit().await?;
        Ok(key)
    }

    async fn keys(&self, tenant: Option<TenantId>) -> Result<Vec<KeyDetails>, StoreError> {
        let sql = format!(
            "SELECT {KEY} FROM api_keys WHERE $1::uuid IS NULL OR tenant_id = $1 ORDER BY created_at, id"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(tenant.map(|id| id.0))
            .fetch_all(&mut self.connect().await?)
            .await?
            .iter()
            .map(key_of)
            .collect()
    }

    async fn keys_page(
        &self,
        tenant: Option<TenantId>,
        after: Option<KeyId>,
        page: i64,
    ) -> Result<Vec<StoredKey>, StoreError> {
        bulk::keys_page(&mut self.connect().await?, tenant, after, page).await
    }

    async fn keys_named(&self, names: &[String]) -> Result<Vec<StoredKey>, StoreError> {
        bulk::keys_named(&mut self.connect().await?, names).await
    }

    async fn tenants_page(&self, after: Option<TenantId>, page: i64) -> Result<Vec<Tenant>, StoreError> {
        bulk::tenants_page(&mut self.connect().await?, after, page).await
    }

    async fn tenants_named(&self, names: &[String]) -> Result<Vec<Tenant>, StoreError> {
        bulk::tenants_named(&mut self.connect().await?, names).await
    }

    async fn import_keys(&self, keys: &[ImportedKey], draft: Draft) -> Result<(), StoreError> {
        bulk::import_keys(&mut self.connect_to_change().await?, &self.actor, keys, draft).await
    }

    async fn import_tenants(&self, tenants: &[Tenant], draft: Draft) -> Result<(), StoreError> {
        bulk::import_tenants(&mut self.connect_to_change().await?, &self.schema, &self.actor, tenants, draft)
            .await
    }

    async fn find_key(&self, reference: &str) -> Result<Option<KeyDetails>, StoreError> {
        let sql = format!("SELECT {KEY} FROM api_keys WHERE id = $1 OR key_prefix = $2");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(Uuid::parse_str(reference).ok())
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
        let mut connection = self.connect_to_change().await?;
        let mut transaction = connection.begin_with(BEGIN).await?;
        let Some(before) = key_to_change(&mut transaction, id).await? else { return Ok(None) };
        let sql = format!(
            "UPDATE api_keys SET revocation_reason = CASE WHEN revoked_at IS NULL THEN $3 ELSE revocation_reason END,
                                 revoked_at = coalesce(revoked_at, $2) WHERE id = $1 RETURNING {KEY}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0)
            .bind(Micros(at))
            .bind(reason)
            .fetch_one(&mut *transaction)
            .await?;
        let key = key_of(&row)?;
        let draft = Draft::of_key(Action::KeyRevoke, Some(&before), &key);
        audit::append(&mut transaction, &self.actor, draft).await?;
        transaction.commit().await?;
        Ok(Some(key))
    }

    async fn replace_key(
        &self,
        id: KeyId,
        expires_at: Timestamp,
        successor: &NewKey,
    ) -> Result<Option<(KeyDetails, KeyDetails)>, StoreError> {
        let mut connection = self.connect_to_change().await?;
        let mut transaction = connection.begin_with(BEGIN).await?;
        let before = key_to_change(&mut transaction, id).await?;
        let Some(before) = before.filter(|key| key.revoked_at.is_none()) else { return Ok(None) };
        if let Some(id) = before.replaced_by
            && let Some(live) = key_to_change(&mut transaction, id).await?
            && live.state(successor.created_at) == KeyState::Active
        {
            return Err(StoreError::Conflict(live.prefix));
        }
        let new = insert_key(&mut *transaction, successor).await?;
        let sql = format!(
            "UPDATE api_keys SET expires_at = LEAST(expires_at, $2), replaced_by = $3 WHERE id = $1 RETURNING {KEY}"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id.0)
            .bind(Micros(expires_at))
            .bind(new.id.0)
            .fetch_one(&mut *transaction)
            .await?;
        let old = key_of(&row)?;
        let drafts = [
            Draft::of_key(Action::KeyRotate, Some(&before), &old),
            Draft::of_key(Action::KeyRotate, None, &new),
        ];
        audit::append(&mut transaction, &self.actor, drafts.into_iter().flatten()).await?;
        transaction.commit().await?;
        Ok(Some((old, new)))
    }

    async fn mark(&self) -> Result<String, StoreError> {
        // A transaction of its own: who sees it sees everything that was committed before it began.
        let sql = "SELECT tenantgate_mark()::text";
        Ok(sqlx::query(sql).fetch_one(&mut self.connect().await?).await?.try_get(0)?)
    }

    async fn laggards(&self, mark: &str) -> Result<Vec<Laggard>, StoreError> {
        let sql = "SELECT name, seen_at FROM tenantgate_replica
             WHERE serves_until > now() AND NOT pg_visible_in_snapshot($1::xid8, applied) ORDER BY name";
        let rows = sqlx::query(sql).bind(mark).fetch_all(&mut self.connect().await?).await?;
        let laggard = |row: &PgRow| {
            Ok(Laggard { name: row.try_get("name")?, seen_at: row.try_get::<Micros, _>("seen_at")?.0 })
        };
        rows.iter().map(laggard).collect()
    }

    async fn audit_entries(
        &self,
        filter: &AuditFilter,
        after: i64,
        page: i64,
    ) -> Result<Vec<Entry>, StoreError> {
        audit::entries(&mut self.connect().await?, filter, after, page).await
    }

    async fn audit_before_newest(&self, filter: &AuditFilter, count: i64) -> Result<i64, StoreError> {
        audit::before_newest(&mut self.connect().await?, filter, count).await
    }
}

/// The key as it is, which nobody else changes until this transaction is over.
async fn key_to_change(connection: &mut PgConnection, id: KeyId) -> Result<Option<KeyDetails>, StoreError> {
    let sql = format!("SELECT {KEY} FROM api_keys WHERE id = $1 FOR UPDATE");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.0).fetch_optional(connection).await?;
    row.as_ref().map(key_of).transpose()
}

impl PostgresStore {
    /// A connection for a command that changes tenants or keys.
    async fn connect_to_change(&self) -> Result<PgConnection, StoreError> {
        let mut connection = self.connect().await?;
        moved::refuse_on_subscriber(&mut connection).await?;
        Ok(connection)
    }

    /// Sets one column of a tenant; `column` is a name of ours.
    async fn change_tenant(
        &self,
        id: TenantId,
        column: &str,
        value: Option<&str>,
        action: Action,
    ) -> Result<Option<Tenant>, StoreError> {
        let mut connection = self.connect_to_change().await?;
        let mut transaction = connection.begin_with(BEGIN).await?;
        let sql = format!("SELECT {TENANT} FROM tenants WHERE id = $1 FOR UPDATE");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.0).fetch_optional(&mut *transaction).await?;
        let Some(before) = row.as_ref().map(tenant_of).transpose()? else { return Ok(None) };
        let sql = format!("UPDATE tenants SET {column} = $2 WHERE id = $1 RETURNING {TENANT}");
        let row =
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.0).bind(value).fetch_one(&mut *transaction).await?;
        let tenant = tenant_of(&row)?;
        audit::append(&mut transaction, &self.actor, Draft::of_tenant(action, Some(&before), &tenant))
            .await?;
        transaction.commit().await?;
        Ok(Some(tenant))
    }
}

async fn insert_key<'e>(
    executor: impl sqlx::Executor<'e, Database = Postgres>,
    key: &NewKey,
) -> Result<KeyDetails, StoreError> {
    let sql = format!(
        "INSERT INTO api_keys (id, key_prefix, hashed_key, tenant_id, name, created_at, expires_at, key_memo)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING {KEY}"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(key.id.0)
        .bind(&key.prefix)
        .bind(&key.hash)
        .bind(key.tenant_id.0)
        .bind(&key.name)
        .bind(Micros(key.created_at))
        .bind(key.expires_at.map(Micros))
        .bind(key.memo.map(|memo| memo.to_string()))
        .fetch_one(executor)
        .await?;
    key_of(&row)
}

pub(super) fn tenant_of(row: &PgRow) -> Result<Tenant, StoreError> {
    Ok(Tenant {
        id: TenantId(row.try_get("id")?),
        name: row.try_get("name")?,
        schema: row.try_get("db_schema_name")?,
        status: TenantStatus::parse(row.try_get("status")?),
        mode: row.try_get::<Option<&str>, _>("mode")?.map(Mode::parse),
        created_at: row.try_get::<Micros, _>("created_at")?.0,
        plan: None,
    })
}

fn shadowed_of(row: &PgRow) -> Result<Shadowed, StoreError> {
    let kind = ShadowedKind {
        reason: row.try_get("reason")?,
        network: row.try_get("network")?,
        user_agent: row.try_get("user_agent")?,
        method: row.try_get("method")?,
        path: row.try_get("path")?,
        key_prefix: row.try_get("key_prefix")?,
    };
    Ok(Shadowed {
        kind,
        requests: u64::try_from(row.try_get::<i64, _>("requests")?).unwrap_or(0),
        first_seen: row.try_get::<Micros, _>("first_seen")?.0,
        last_seen: row.try_get::<Micros, _>("last_seen")?.0,
    })
}

fn key_of(row: &PgRow) -> Result<KeyDetails, StoreError> {
    Ok(KeyDetails {
        id: KeyId(row.try_get("id")?),
        prefix: row.try_get("key_prefix")?,
        name: row.try_get("name")?,
        tenant_id: TenantId(row.try_get("tenant_id")?),
        created_at: row.try_get::<Micros, _>("created_at")?.0,
        expires_at: expiry(row, "expires_at")?,
        last_used_at: instant(row, "last_used_at")?,
        revoked_at: instant(row, "revoked_at")?,
        revocation_reason: row.try_get("revocation_reason")?,
        replaced_by: row.try_get::<Option<Uuid>, _>("replaced_by")?.map(KeyId),
        memo: memo(row, "key_memo")?.map(|memo| memo.pepper),
    })
}

pub(super) fn stored_key_of(row: &PgRow) -> Result<StoredKey, StoreError> {
    Ok(StoredKey {
        details: key_of(row)?,
        tenant_schema: row.try_get("db_schema_name")?,
        hash: row.try_get("hashed_key")?,
    })
}
