//! Finds, adds and changes rows: one statement or one transaction for each method.

use async_trait::async_trait;
use uuid::Uuid;

use super::connection::{Link, ask};
use super::rows::{KEY, TENANT, key_of, shadowed_of, tenant_of};
use super::{SqlStore, audit, bulk, change, hold, tenants};
use crate::audit::{Action, Draft, Entry};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::record::{KeyDetails, KeyState};
use crate::store::{
    Adoption, AuditFilter, ImportedKey, Laggard, Management, Migrated, NewKey, NewTenant, SchemaVersion,
    Shadowed, StoreError, StoredKey,
};
use crate::tenant::{Mode, Tenant, TenantId, TenantStatus};

#[async_trait]
impl<S: SqlStore> Management for S {
    fn has_schemas(&self) -> bool {
        SqlStore::has_schemas(self)
    }

    async fn version(&self) -> Result<SchemaVersion, StoreError> {
        SqlStore::version(self, &mut hold(self).await?.link()).await
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Migrated, StoreError> {
        SqlStore::adopt(self, adoption).await
    }

    async fn lock_holder(&self) -> Result<Option<String>, StoreError> {
        SqlStore::lock_holder(self).await
    }

    async fn create_roles(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        SqlStore::create_roles(self, prefix).await
    }

    async fn check_schema(&self, schema: &str, adopt: bool) -> Result<(), StoreError> {
        SqlStore::check_schema(self, &mut hold(self).await?.link(), schema, adopt).await
    }

    async fn create_schema(&self, schema: &str, adopt: bool) -> Result<(), StoreError> {
        let mut connection = hold(self).await?;
        self.refuse_change(&mut connection.link()).await?;
        SqlStore::create_schema(self, &mut connection.link(), schema, adopt).await
    }

    async fn insert_tenant(&self, tenant: &NewTenant, action: Action) -> Result<Tenant, StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        let sql = format!(
            "INSERT INTO tenants (id, name, db_schema_name, status, created_at)
             VALUES ($1, $2, $3, $4, {}) RETURNING {TENANT}",
            link.dialect().now
        );
        let query = ask(sql).bind(tenant.id).bind(&tenant.name).bind(&tenant.schema);
        let tenant = tenant_of(&query.bind(tenant.status.as_str()).one(link).await?)?;
        audit::append(link, self.actor(), Draft::of_tenant(action, None, &tenant)).await?;
        connection.commit().await?;
        Ok(tenant)
    }

    async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let mut connection = hold(self).await?;
        let link = &mut connection.link();
        let sql = format!("SELECT {TENANT} FROM tenants ORDER BY created_at, {}", link.dialect().tie);
        tenants(ask(sql), link).await
    }

    async fn find_tenants(&self, reference: &str) -> Result<Vec<Tenant>, StoreError> {
        let mut connection = hold(self).await?;
        let link = &mut connection.link();
        let sql = format!(
            "SELECT {TENANT} FROM tenants WHERE id = $1 OR db_schema_name = $2 OR name = $2
             ORDER BY created_at, {}",
            link.dialect().tie
        );
        tenants(ask(sql).bind(Uuid::parse_str(reference).ok()).bind(reference), link).await
    }

    async fn set_tenant_status(
        &self,
        id: TenantId,
        status: &TenantStatus,
        action: Action,
    ) -> Result<Option<Tenant>, StoreError> {
        change_tenant(self, id, "status", Some(status.as_str()), action).await
    }

    async fn set_tenant_mode(
        &self,
        id: TenantId,
        mode: Option<Mode>,
        action: Action,
    ) -> Result<Option<Tenant>, StoreError> {
        change_tenant(self, id, "mode", mode.map(Mode::as_str), action).await
    }

    async fn shadowed(&self, since: Timestamp) -> Result<Vec<Shadowed>, StoreError> {
        let mut connection = hold(self).await?;
        let link = &mut connection.link();
        let sql = format!(
            "SELECT reason, network, user_agent, method, path, key_prefix, CAST(sum(requests) AS bigint) AS requests,
                    min(first_seen) AS first_seen, max(last_seen) AS last_seen
             FROM tenantgate_shadow_report WHERE day >= {}
             GROUP BY reason, network, user_agent, method, path, key_prefix
             ORDER BY 7 DESC, reason, network, user_agent, method, path, key_prefix",
            link.dialect().day
        );
        ask(sql).bind(since).all(link).await?.iter().map(shadowed_of).collect()
    }

    async fn insert_key(&self, key: &NewKey, action: Action) -> Result<KeyDetails, StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        let key = insert_key(link, key).await?;
        audit::append(link, self.actor(), Draft::of_key(action, None, &key)).await?;
        connection.commit().await?;
        Ok(key)
    }

    async fn keys(&self, tenant: Option<TenantId>) -> Result<Vec<KeyDetails>, StoreError> {
        let mut connection = hold(self).await?;
        let link = &mut connection.link();
        let sql = format!(
            "SELECT {KEY} FROM api_keys WHERE $1 IS NULL OR tenant_id = $1 ORDER BY created_at, {}",
            link.dialect().tie
        );
        ask(sql).bind(tenant.map(|id| id.0)).all(link).await?.iter().map(key_of).collect()
    }

    async fn keys_page(
        &self,
        tenant: Option<TenantId>,
        after: Option<KeyId>,
        page: i64,
    ) -> Result<Vec<StoredKey>, StoreError> {
        bulk::keys_page(&mut hold(self).await?.link(), tenant, after, page).await
    }

    async fn keys_named(&self, names: &[String]) -> Result<Vec<StoredKey>, StoreError> {
        bulk::keys_named(&mut hold(self).await?.link(), names).await
    }

    async fn tenants_page(&self, after: Option<TenantId>, page: i64) -> Result<Vec<Tenant>, StoreError> {
        bulk::tenants_page(&mut hold(self).await?.link(), after, page).await
    }

    async fn tenants_named(&self, names: &[String]) -> Result<Vec<Tenant>, StoreError> {
        bulk::tenants_named(&mut hold(self).await?.link(), names).await
    }

    async fn import_keys(&self, keys: &[ImportedKey], draft: Draft) -> Result<(), StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        bulk::import_keys(link, keys).await?;
        audit::append(link, self.actor(), [draft]).await?;
        connection.commit().await
    }

    async fn import_tenants(&self, tenants: &[Tenant], draft: Draft) -> Result<(), StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        bulk::import_tenants(link, tenants).await?;
        for tenant in tenants {
            if [TenantStatus::Active, TenantStatus::Suspended].contains(&tenant.status) {
                // Its schema usually came with the data.
                SqlStore::create_schema(self, link, &tenant.schema, true).await?;
            }
        }
        audit::append(link, self.actor(), [draft]).await?;
        connection.commit().await
    }

    async fn find_key(&self, reference: &str) -> Result<Option<KeyDetails>, StoreError> {
        let sql = format!("SELECT {KEY} FROM api_keys WHERE id = $1 OR key_prefix = $2");
        let query = ask(sql).bind(Uuid::parse_str(reference).ok()).bind(reference);
        query.maybe(&mut hold(self).await?.link()).await?.as_ref().map(key_of).transpose()
    }

    async fn revoke_key(
        &self,
        id: KeyId,
        at: Timestamp,
        reason: Option<&str>,
    ) -> Result<Option<KeyDetails>, StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        let Some(before) = key_to_change(link, id).await? else { return Ok(None) };
        let sql = format!(
            "UPDATE api_keys SET revocation_reason = CASE WHEN revoked_at IS NULL THEN $3 ELSE revocation_reason END,
                                 revoked_at = coalesce(revoked_at, $2) WHERE id = $1 RETURNING {KEY}"
        );
        let key = key_of(&ask(sql).bind(id).bind(at).bind(reason).one(link).await?)?;
        let draft = Draft::of_key(Action::KeyRevoke, Some(&before), &key);
        audit::append(link, self.actor(), draft).await?;
        connection.commit().await?;
        Ok(Some(key))
    }

    async fn replace_key(
        &self,
        id: KeyId,
        expires_at: Timestamp,
        successor: &NewKey,
    ) -> Result<Option<(KeyDetails, KeyDetails)>, StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        let before = key_to_change(link, id).await?;
        let Some(before) = before.filter(|key| key.revoked_at.is_none()) else { return Ok(None) };
        if let Some(id) = before.replaced_by
            && let Some(live) = key_to_change(link, id).await?
            && live.state(successor.created_at) == KeyState::Active
        {
            return Err(StoreError::Conflict(live.prefix));
        }
        let new = insert_key(link, successor).await?;
        let expires_at = before.expires_at.map_or(expires_at, |own| own.min(expires_at));
        let sql =
            format!("UPDATE api_keys SET expires_at = $2, replaced_by = $3 WHERE id = $1 RETURNING {KEY}");
        let old = key_of(&ask(sql).bind(id).bind(expires_at).bind(new.id).one(link).await?)?;
        let drafts = [
            Draft::of_key(Action::KeyRotate, Some(&before), &old),
            Draft::of_key(Action::KeyRotate, None, &new),
        ];
        audit::append(link, self.actor(), drafts.into_iter().flatten()).await?;
        connection.commit().await?;
        Ok(Some((old, new)))
    }

    async fn mark(&self) -> Result<String, StoreError> {
        // A transaction of its own: a server that sees it sees everything that was committed before it began.
        let mut connection = hold(self).await?;
        let link = &mut connection.link();
        ask(link.dialect().mark).one(link).await?.get("mark")
    }

    async fn laggards(&self, mark: &str) -> Result<Vec<Laggard>, StoreError> {
        let mut connection = hold(self).await?;
        let link = &mut connection.link();
        let behind = link.dialect().behind;
        let sql = format!("SELECT name, seen_at FROM tenantgate_replica WHERE {behind} ORDER BY name");
        let rows = ask(sql).bind(mark).all(link).await?;
        rows.iter()
            .map(|row| {
                let seen_at = row.instant("seen_at")?.unwrap_or_default();
                Ok(Laggard { name: row.get("name")?, seen_at })
            })
            .collect()
    }

    async fn audit_entries(
        &self,
        filter: &AuditFilter,
        after: i64,
        page: i64,
    ) -> Result<Vec<Entry>, StoreError> {
        audit::entries(&mut hold(self).await?.link(), filter, after, page).await
    }

    async fn audit_before_newest(&self, filter: &AuditFilter, count: i64) -> Result<i64, StoreError> {
        audit::before_newest(&mut hold(self).await?.link(), filter, count).await
    }
}

/// The key as it is, which other sessions do not change until this transaction is over.
async fn key_to_change(link: &mut Link<'_>, id: KeyId) -> Result<Option<KeyDetails>, StoreError> {
    let sql = format!("SELECT {KEY} FROM api_keys WHERE id = $1{}", link.dialect().lock);
    ask(sql).bind(id).maybe(link).await?.as_ref().map(key_of).transpose()
}

/// Sets one column of a tenant; `column` is a name of ours.
async fn change_tenant(
    store: &impl SqlStore,
    id: TenantId,
    column: &str,
    value: Option<&str>,
    action: Action,
) -> Result<Option<Tenant>, StoreError> {
    let mut connection = change(store).await?;
    let link = &mut connection.link();
    let sql = format!("SELECT {TENANT} FROM tenants WHERE id = $1{}", link.dialect().lock);
    let row = ask(sql).bind(id).maybe(link).await?;
    let Some(before) = row.as_ref().map(tenant_of).transpose()? else { return Ok(None) };
    let sql = format!("UPDATE tenants SET {column} = $2 WHERE id = $1 RETURNING {TENANT}");
    let tenant = tenant_of(&ask(sql).bind(id).bind(value).one(link).await?)?;
    audit::append(link, store.actor(), Draft::of_tenant(action, Some(&before), &tenant)).await?;
    connection.commit().await?;
    Ok(Some(tenant))
}

async fn insert_key(link: &mut Link<'_>, key: &NewKey) -> Result<KeyDetails, StoreError> {
    let sql = format!(
        "INSERT INTO api_keys (id, key_prefix, hashed_key, tenant_id, name, created_at, expires_at, key_memo)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING {KEY}"
    );
    let query = ask(sql).bind(key.id).bind(&key.prefix).bind(&key.hash).bind(key.tenant_id).bind(&key.name);
    let query = query.bind(key.created_at).bind(key.expires_at).bind(key.memo.map(|memo| memo.to_string()));
    key_of(&query.one(link).await?)
}
