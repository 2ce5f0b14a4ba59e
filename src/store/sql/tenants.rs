//! Reads and writes tenants.

use uuid::Uuid;

use super::Sets;
use super::connection::{Link, Query, query};
use super::rows::{TENANT, tenant_of};
use crate::store::{NewTenant, StoreError, TenantChange};
use crate::tenant::{Mode, Tenant, TenantId};

/// Runs a query and converts its rows to tenants.
pub(super) async fn fetch(query: Query, link: &mut Link<'_>) -> Result<Vec<Tenant>, StoreError> {
    query.fetch_all(link).await?.iter().map(tenant_of).collect()
}

/// Returns all tenants, oldest first.
pub(super) async fn all(link: &mut Link<'_>) -> Result<Vec<Tenant>, StoreError> {
    let sql = format!("SELECT {TENANT} FROM tenants ORDER BY created_at, {}", link.dialect().tie);
    fetch(query(sql), link).await
}

/// Returns the tenants whose id, schema or name is `reference`, oldest first.
pub(super) async fn find(link: &mut Link<'_>, reference: &str) -> Result<Vec<Tenant>, StoreError> {
    let sql = format!(
        "SELECT {TENANT} FROM tenants WHERE id = $1 OR db_schema_name = $2 OR name = $2
         ORDER BY created_at, {}",
        link.dialect().tie
    );
    fetch(query(sql).bind(Uuid::parse_str(reference).ok()).bind(reference), link).await
}

pub(super) async fn insert(link: &mut Link<'_>, tenant: &NewTenant) -> Result<Tenant, StoreError> {
    let sql = format!(
        "INSERT INTO tenants (id, name, db_schema_name, status, plan, created_at)
         VALUES ($1, $2, $3, $4, $5, {}) RETURNING {TENANT}",
        link.dialect().now
    );
    let query = query(sql).bind(tenant.id).bind(&tenant.name).bind(&tenant.schema);
    let query = query.bind(tenant.status.as_str()).bind(&tenant.plan);
    tenant_of(&query.fetch_one(link).await?)
}

/// Locks a tenant and changes it. Returns it before and after the change; `None` if it does not exist.
pub(super) async fn change(
    link: &mut Link<'_>,
    id: TenantId,
    make: TenantChange<'_>,
) -> Result<Option<(Tenant, Tenant)>, StoreError> {
    let sql = format!("SELECT {TENANT} FROM tenants WHERE id = $1{}", link.dialect().lock);
    let row = query(sql).bind(id).fetch_optional(link).await?;
    let Some(before) = row.as_ref().map(tenant_of).transpose()? else { return Ok(None) };
    let mut after = before.clone();
    make(&mut after)?;
    let sets = Sets::default()
        .set("name", before.name != after.name, &after.name)
        .set("status", before.status != after.status, after.status.as_str())
        .set("mode", before.mode != after.mode, after.mode.map(Mode::as_str))
        .set("plan", before.plan != after.plan, after.plan.as_deref());
    sets.run("tenants", id.0, link).await?;
    Ok(Some((before, after)))
}
