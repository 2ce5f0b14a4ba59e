//! Implements [`Management`] for both databases, with one statement or one transaction for each method.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use super::connection::query;
use super::keys::{self, insert as insert_key, to_change as key_to_change};
use super::rows::{KEY, key_of, shadowed_of};
use super::{
    PooledConnection, SqlStore, acquire, admin_keys, audit, bulk, change, change_admin_key, idempotency,
    key_list, plans, replicas, routes, tenant_list, tenants, usage,
};
use crate::audit::{Action, AuditEntry, Draft};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::permission::{AdminKey, AdminKeyId, Reach};
use crate::plan::PlanRow;
use crate::record::{KeyDetails, KeyState};
use crate::route::RouteRow;
use crate::store::{
    AdminKeyChange, Adoption, Announced, AuditFilter, ChangeContext, Changed, Check, Claim, Claimed,
    ImportedKey, KeyChange, KeyFilter, KeyPage, KeyPlace, Laggard, Management, Migrated, NewAdminKey, NewKey,
    NewTenant, PlanChange, PlanUses, Rotated, Rotation, RoutesChange, RoutesPlan, SchemaVersion, Shadowed,
    StoreError, StoredKey, TenantChange, TenantFilter, TenantPage, TenantPlace, UsageFilter, UsageRow,
};
use crate::tenant::{Tenant, TenantId, TenantStatus};

/// Finishes a change: stores the answer to its request, writes the audit log, and commits.
async fn finish(
    store: &impl SqlStore,
    mut connection: PooledConnection,
    drafts: impl IntoIterator<Item = Draft>,
    changed: Changed<'_>,
) -> Result<(), StoreError> {
    let context = store.context();
    let link = &mut connection.link();
    if let Some(receipt) = &context.receipt
        && let Some(answer) = (receipt.answer)(changed)
        && let Some(attempt) = receipt.attempt
    {
        idempotency::keep(link, attempt, &answer).await?;
    }
    audit::append(link, &context.author, drafts).await?;
    connection.commit().await
}

#[async_trait]
impl<S: SqlStore> Management for S {
    fn with_context(&self, context: ChangeContext) -> Arc<dyn Management> {
        Arc::new(SqlStore::with_context(self, context))
    }

    fn has_schemas(&self) -> bool {
        SqlStore::has_schemas(self)
    }

    async fn version(&self) -> Result<SchemaVersion, StoreError> {
        SqlStore::version(self, &mut acquire(self).await?.link()).await
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
        SqlStore::check_schema(self, &mut acquire(self).await?.link(), schema, adopt).await
    }

    async fn create_schema(&self, schema: &str, adopt: bool) -> Result<(), StoreError> {
        let mut connection = acquire(self).await?;
        self.refuse_change(&mut connection.link()).await?;
        admin_keys::hold(&mut connection.link(), self.context().key.as_ref(), None).await?;
        SqlStore::create_schema(self, &mut connection.link(), schema, adopt).await
    }

    async fn insert_tenant(&self, tenant: &NewTenant, action: Action) -> Result<Tenant, StoreError> {
        let mut connection = change(self).await?;
        let tenant = tenants::insert(&mut connection.link(), tenant).await?;
        let draft = Draft::of_tenant(action, None, &tenant);
        finish(self, connection, draft, Changed::Tenant(&tenant)).await?;
        Ok(tenant)
    }

    async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        tenants::all(&mut acquire(self).await?.link()).await
    }

    async fn find_tenants(&self, reference: &str) -> Result<Vec<Tenant>, StoreError> {
        tenants::find(&mut acquire(self).await?.link(), reference).await
    }

    async fn change_tenant(
        &self,
        id: TenantId,
        action: Action,
        make: TenantChange<'_>,
    ) -> Result<Option<Tenant>, StoreError> {
        let mut connection = change(self).await?;
        let changed = tenants::change(&mut connection.link(), id, make).await?;
        let Some((before, after)) = changed else { return Ok(None) };
        let draft = Draft::of_tenant(action, Some(&before), &after);
        finish(self, connection, draft, Changed::Tenant(&after)).await?;
        Ok(Some(after))
    }

    async fn shadowed(&self, since: Timestamp) -> Result<Vec<Shadowed>, StoreError> {
        let mut connection = acquire(self).await?;
        let link = &mut connection.link();
        let sql = format!(
            "SELECT reason, network, user_agent, method, path, key_prefix, CAST(sum(requests) AS bigint) AS requests,
                    min(first_seen) AS first_seen, max(last_seen) AS last_seen
             FROM tenantgate_shadow_report WHERE day >= {}
             GROUP BY reason, network, user_agent, method, path, key_prefix
             ORDER BY 7 DESC, reason, network, user_agent, method, path, key_prefix",
            link.dialect().day
        );
        query(sql).bind(since).fetch_all(link).await?.iter().map(shadowed_of).collect()
    }

    async fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError> {
        usage::rows(&mut acquire(self).await?.link(), filter).await
    }

    async fn insert_key(&self, key: &NewKey, action: Action) -> Result<KeyDetails, StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        let key = insert_key(link, key).await?;
        finish(self, connection, Draft::of_key(action, None, &key), Changed::Key(&key)).await?;
        Ok(key)
    }

    async fn keys_page(
        &self,
        filter: &KeyFilter,
        after: Option<KeyId>,
        page: i64,
    ) -> Result<Vec<StoredKey>, StoreError> {
        bulk::keys_page(&mut acquire(self).await?.link(), filter, after, page).await
    }

    async fn keys_by_creation(
        &self,
        filter: &KeyFilter,
        reach: &Reach,
        after: Option<&KeyPlace>,
        page: usize,
    ) -> Result<KeyPage, StoreError> {
        key_list::page(&mut acquire(self).await?.link(), filter, reach, after, page).await
    }

    async fn count_keys(&self, filter: &KeyFilter, reach: &Reach) -> Result<i64, StoreError> {
        key_list::count(&mut acquire(self).await?.link(), filter, reach).await
    }

    async fn count_used(&self, tenant: TenantId, since: Timestamp) -> Result<i64, StoreError> {
        key_list::count_used(&mut acquire(self).await?.link(), tenant, since).await
    }

    async fn keys_named(&self, names: &[String]) -> Result<Vec<StoredKey>, StoreError> {
        bulk::keys_named(&mut acquire(self).await?.link(), names).await
    }

    async fn tenants_page(&self, after: Option<TenantId>, page: i64) -> Result<Vec<Tenant>, StoreError> {
        bulk::tenants_page(&mut acquire(self).await?.link(), after, page).await
    }

    async fn tenants_by_creation(
        &self,
        filter: &TenantFilter,
        reach: &Reach,
        after: Option<&TenantPlace>,
        page: usize,
    ) -> Result<TenantPage, StoreError> {
        tenant_list::page(&mut acquire(self).await?.link(), filter, reach, after, page).await
    }

    async fn tenants_named(&self, names: &[String]) -> Result<Vec<Tenant>, StoreError> {
        bulk::tenants_named(&mut acquire(self).await?.link(), names).await
    }

    async fn import_keys(&self, keys: &[ImportedKey], draft: Draft) -> Result<(), StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        bulk::import_keys(link, keys).await?;
        audit::append(link, &self.context().author, [draft]).await?;
        connection.commit().await
    }

    async fn import_tenants(&self, tenants: &[Tenant], draft: Draft) -> Result<(), StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        bulk::import_tenants(link, tenants).await?;
        for tenant in tenants {
            if [TenantStatus::Active, TenantStatus::Suspended].contains(&tenant.status) {
                // A schema that was copied with the data is adopted.
                SqlStore::create_schema(self, link, &tenant.schema, true).await?;
            }
        }
        audit::append(link, &self.context().author, [draft]).await?;
        connection.commit().await
    }

    async fn find_key(&self, reference: &str) -> Result<Option<KeyDetails>, StoreError> {
        let sql = format!("SELECT {KEY} FROM api_keys WHERE id = $1 OR key_prefix = $2");
        let query = query(sql).bind(Uuid::parse_str(reference).ok()).bind(reference);
        query.fetch_optional(&mut acquire(self).await?.link()).await?.as_ref().map(key_of).transpose()
    }

    async fn change_keys(
        &self,
        ids: &[KeyId],
        action: Action,
        make: KeyChange<'_>,
    ) -> Result<Vec<KeyDetails>, StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        // Locked in the order of ids, so that two commands cannot deadlock.
        let mut in_order: Vec<_> = ids.iter().enumerate().collect();
        in_order.sort_unstable_by_key(|(_, id)| id.0);
        let (mut changed, mut drafts) = (Vec::with_capacity(ids.len()), Vec::new());
        for (place, id) in in_order {
            let before = key_to_change(link, *id).await?;
            let before = before.ok_or_else(|| StoreError::Conflict(format!("key {} is gone", id.0)))?;
            let mut after = before.clone();
            make(&mut after)?;
            keys::update(link, &before, &after).await?;
            drafts.extend(Draft::of_key(action, Some(&before), &after));
            changed.push((place, after));
        }
        changed.sort_unstable_by_key(|(place, _)| *place);
        let changed: Vec<_> = changed.into_iter().map(|(_, key)| key).collect();
        let shown = if let [one] = &changed[..] { Changed::Key(one) } else { Changed::Keys(&changed) };
        finish(self, connection, drafts, shown).await?;
        Ok(changed)
    }

    async fn rotate_key(&self, id: KeyId, rotation: &Rotation<'_>) -> Result<Rotated, StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        let Some(before) = key_to_change(link, id).await? else { return Ok(Rotated::Revoked) };
        (rotation.check)(&before)?;
        if before.revoked_at.is_some() {
            return Ok(Rotated::Revoked);
        }
        if let Some(id) = before.replaced_by
            && let Some(live) = key_to_change(link, id).await?
            && live.state(rotation.successor.created_at) == KeyState::Active
        {
            return Ok(Rotated::Succeeded(live.prefix));
        }
        if !(rotation.unchanged)(&before) {
            return Ok(Rotated::Changed);
        }
        let new = insert_key(link, rotation.successor).await?;
        let expires_at = before.expires_at.map_or(rotation.expires_at, |own| own.min(rotation.expires_at));
        let sql =
            format!("UPDATE api_keys SET expires_at = $2, replaced_by = $3 WHERE id = $1 RETURNING {KEY}");
        let old = key_of(&query(sql).bind(id).bind(expires_at).bind(new.id).fetch_one(link).await?)?;
        let drafts = [
            Draft::of_key(Action::KeyRotate, Some(&before), &old),
            Draft::of_key(Action::KeyRotate, None, &new),
        ];
        finish(self, connection, drafts.into_iter().flatten(), Changed::Rotated(&old, &new)).await?;
        Ok(Rotated::Done { old: Box::new(old), new: Box::new(new) })
    }

    async fn plans(&self) -> Result<Vec<PlanRow>, StoreError> {
        plans::all(&mut acquire(self).await?.link()).await
    }

    async fn insert_plan(&self, plan: &PlanRow) -> Result<(), StoreError> {
        let mut connection = change(self).await?;
        let draft = plans::insert(&mut connection.link(), plan).await?;
        finish(self, connection, [draft], Changed::Plan(plan)).await
    }

    async fn change_plan(&self, name: &str, make: PlanChange<'_>) -> Result<Option<PlanRow>, StoreError> {
        let mut connection = change(self).await?;
        let changed = plans::change(&mut connection.link(), name, make).await?;
        let Some((plan, draft)) = changed else { return Ok(None) };
        finish(self, connection, draft, Changed::Plan(&plan)).await?;
        Ok(Some(plan))
    }

    async fn plan_uses(&self, name: &str) -> Result<PlanUses, StoreError> {
        plans::uses(&mut acquire(self).await?.link(), name).await
    }

    async fn delete_plan(
        &self,
        name: &str,
        check: Check<'_, PlanRow>,
    ) -> Result<Option<PlanRow>, StoreError> {
        let mut connection = change(self).await?;
        let deleted = plans::delete(&mut connection.link(), name, check).await?;
        let Some((plan, draft)) = deleted else { return Ok(None) };
        finish(self, connection, [draft], Changed::Plan(&plan)).await?;
        Ok(Some(plan))
    }

    async fn routes(&self) -> Result<Vec<RouteRow>, StoreError> {
        routes::all(&mut acquire(self).await?.link()).await
    }

    async fn change_routes(&self, plan: RoutesPlan<'_>) -> Result<RoutesChange, StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        let planned = plan(&routes::to_change(link).await?)?;
        routes::write(link, &planned).await?;
        finish(self, connection, planned.draft.clone(), Changed::Routes(&planned)).await?;
        Ok(planned)
    }

    async fn admin_keys(&self) -> Result<Vec<AdminKey>, StoreError> {
        admin_keys::all(&mut acquire(self).await?.link()).await
    }

    async fn admin_key_chain(&self, prefix: &str) -> Result<Option<(String, Vec<AdminKey>)>, StoreError> {
        admin_keys::chain(&mut acquire(self).await?.link(), prefix).await
    }

    async fn touch_admin_key(&self, id: AdminKeyId, at: Timestamp) -> Result<(), StoreError> {
        let mut connection = acquire(self).await?;
        self.refuse_change(&mut connection.link()).await?;
        admin_keys::touch(&mut connection.link(), id, at).await
    }

    async fn insert_admin_key(&self, new: &NewAdminKey) -> Result<AdminKey, StoreError> {
        let mut connection = change(self).await?;
        let link = &mut connection.link();
        let (key, draft) = admin_keys::insert(link, new).await?;
        finish(self, connection, [draft], Changed::AdminKey(&key)).await?;
        Ok(key)
    }

    async fn change_admin_key(
        &self,
        id: AdminKeyId,
        action: Action,
        make: AdminKeyChange<'_>,
    ) -> Result<Option<AdminKey>, StoreError> {
        let mut connection = change_admin_key(self, Some(id)).await?;
        let link = &mut connection.link();
        let Some((key, draft)) = admin_keys::change(link, id, action, make).await? else { return Ok(None) };
        finish(self, connection, draft, Changed::AdminKey(&key)).await?;
        Ok(Some(key))
    }

    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let mut connection = change(self).await?;
        let claimed = idempotency::claim(&mut connection.link(), claim).await?;
        connection.commit().await?;
        Ok(claimed)
    }

    async fn give_up_claim(&self, attempt: Uuid) -> Result<(), StoreError> {
        idempotency::give_up(&mut acquire(self).await?.link(), attempt).await
    }

    async fn mark(&self) -> Result<String, StoreError> {
        replicas::mark(&mut acquire(self).await?.link()).await
    }

    async fn replicas(&self) -> Result<Vec<Announced>, StoreError> {
        replicas::all(&mut acquire(self).await?.link()).await
    }

    async fn laggards(&self, mark: &str) -> Result<Vec<Laggard>, StoreError> {
        replicas::laggards(&mut acquire(self).await?.link(), mark).await
    }

    async fn caught_up(&self, mark: &str) -> Result<u64, StoreError> {
        replicas::caught_up(&mut acquire(self).await?.link(), mark).await
    }

    async fn audit_entries(
        &self,
        filter: &AuditFilter,
        after: i64,
        page: i64,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        audit::entries(&mut acquire(self).await?.link(), filter, after, page).await
    }

    async fn audit_before_newest(&self, filter: &AuditFilter, count: i64) -> Result<i64, StoreError> {
        audit::before_newest(&mut acquire(self).await?.link(), filter, count).await
    }
}
