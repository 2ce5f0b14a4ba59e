//! Manages tenants.
//!
//! A tenant is pending until its schema exists. Rows of tenants are never removed.

use super::{Admin, AdminError, Setting, missing, refused};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::key::format::holds_key;
use crate::plan::PlanName;
use crate::random;
use crate::store::{NewTenant, Shadowed, StoreError};
use crate::tenant::{
    Mode, Tenant, TenantId, TenantStatus, default_schema_name, is_schema_name, is_tenant_name,
};

impl Admin {
    /// Creates a tenant and its schema. With `adopt`, the schema may exist and contain tables.
    ///
    /// # Errors
    ///
    /// The name, the schema or the plan is invalid, or the schema belongs to another tenant or is not empty.
    pub async fn create_tenant(
        &self,
        name: &str,
        schema: Option<&str>,
        adopt: bool,
        status: TenantStatus,
        plan: Option<&PlanName>,
    ) -> Result<Tenant, AdminError> {
        check_name(name)?;
        self.check_plan(plan.map(PlanName::as_str)).await?;
        let schema = schema.map_or_else(|| default_schema_name(name), str::to_owned);
        if !is_schema_name(&schema) {
            return Err(AdminError::BadRequest(format!(
                "invalid schema name {schema:?}: use a lower-case letter or _, then up to 62 of a-z, 0-9 and _, \
                 and none of Postgres' own (pg_*, public, information_schema)"
            )));
        }
        let (id, plan) = (TenantId(random::new_id()), plan.map(ToString::to_string));
        let tenant = NewTenant { id, name: name.into(), schema, status, plan };
        self.provision(tenant, adopt, Action::TenantCreate).await
    }

    /// Inserts a tenant as pending, creates its schema, and then sets its status.
    pub(super) async fn provision(
        &self,
        tenant: NewTenant,
        adopt: bool,
        action: Action,
    ) -> Result<Tenant, AdminError> {
        let taken = self.store.find_tenants(&tenant.schema).await?;
        if !taken.iter().any(|other| other.schema == tenant.schema) {
            // The conflict with the other tenant is reported below, which is clearer than "not empty".
            self.store.check_schema(&tenant.schema, adopt).await?;
        }
        let wanted = tenant.status.clone();
        let without_schema = !self.store.has_schemas() || wanted == TenantStatus::PendingProvisioning;
        let first = if without_schema { wanted.clone() } else { TenantStatus::PendingProvisioning };
        let schema = tenant.schema.clone();
        let added = match self.store.insert_tenant(&NewTenant { status: first, ..tenant }, action).await {
            Err(StoreError::Conflict(_)) => {
                return refused(format!(
                    "the schema {schema:?} belongs to another tenant: choose another one (--schema; over HTTP db_schema_name)"
                ));
            }
            other => other?,
        };
        if without_schema {
            return Ok(added);
        }
        if let Err(error) = self.store.create_schema(&schema, adopt).await {
            return refused(format!(
                "tenant {} is pending_provisioning because its schema {schema:?} could not be created ({error}): \
                 correct that, then run `tenantgate tenant activate {}`",
                added.id.0, added.id.0
            ));
        }
        self.set_status(&added, &wanted, Action::TenantProvision).await
    }

    async fn set_status(
        &self,
        tenant: &Tenant,
        status: &TenantStatus,
        action: Action,
    ) -> Result<Tenant, AdminError> {
        let change = |tenant: &mut Tenant| {
            self.judge_tenant(tenant)?;
            tenant.status.clone_from(status);
            Ok(())
        };
        let changed = self.store.change_tenant(tenant.id, action, &change).await?;
        changed.ok_or_else(|| AdminError::Missing(format!("tenant {} is gone", tenant.id.0)))
    }

    /// Returns all tenants that the caller sees, oldest first.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, AdminError> {
        let mut tenants = self.store.tenants().await?;
        tenants.retain(|tenant| self.sees(tenant.id));
        Ok(tenants)
    }

    /// Returns the tenant whose id or schema is `reference`. A name is not accepted, because it need not be unique.
    ///
    /// # Errors
    ///
    /// There is no such tenant, or the caller does not see it.
    pub async fn tenant_by_id(&self, reference: &str) -> Result<Tenant, AdminError> {
        let named = |tenant: &Tenant| {
            tenant.id.0.to_string().eq_ignore_ascii_case(reference) || tenant.schema == reference
        };
        let found = if may_name(reference) { self.store.find_tenants(reference).await? } else { Vec::new() };
        let found = found.into_iter().find(|tenant| named(tenant) && self.sees(tenant.id));
        found.ok_or_else(|| AdminError::Missing(format!("there is no tenant {reference:?}")))
    }

    /// Returns the tenant whose id, schema or exact name is `reference`.
    ///
    /// # Errors
    ///
    /// There is no such tenant, or more than one.
    pub async fn tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        let mut found =
            if may_name(reference) { self.store.find_tenants(reference).await? } else { Vec::new() };
        found.retain(|tenant| self.sees(tenant.id));
        if let Some(at) = found.iter().position(|t| t.id.0.to_string().eq_ignore_ascii_case(reference)) {
            return Ok(found.swap_remove(at));
        }
        match found.len() {
            0 => missing(format!(
                "there is no tenant {reference:?} in {}: `tenantgate tenant list` shows all",
                self.store.address()
            )),
            1 => Ok(found.swap_remove(0)),
            _ => {
                let ids: Vec<_> = found.iter().map(|t| t.id.0.to_string()).collect();
                refused(format!(
                    "{reference:?} is the name of more than one tenant: use one of these ids: {}",
                    ids.join(", ")
                ))
            }
        }
    }

    /// Suspends a tenant: its keys are rejected.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`].
    pub async fn suspend_tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        self.set_status(&self.tenant(reference).await?, &TenantStatus::Suspended, Action::TenantSuspend).await
    }

    /// Activates a tenant, after creating its schema if that is missing.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`], or the schema cannot be created. A pending tenant does not get a schema that is not empty.
    pub async fn activate_tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        self.activate_tenant_with(reference, false).await
    }

    /// The same. With `adopt`, a pending tenant gets its schema even if it is not empty.
    ///
    /// # Errors
    ///
    /// As [`Admin::activate_tenant`].
    pub async fn activate_tenant_with(&self, reference: &str, adopt: bool) -> Result<Tenant, AdminError> {
        let tenant = self.tenant(reference).await?;
        let has_its_schema = tenant.status != TenantStatus::PendingProvisioning;
        // Checked first, because a schema would remain if the change of the row failed.
        self.judge_tenant(&tenant).map_err(StoreError::from)?;
        self.store.create_schema(&tenant.schema, adopt || has_its_schema).await?;
        self.set_status(&tenant, &TenantStatus::Active, Action::TenantActivate).await
    }

    /// Sets whether rejections of a tenant's proven keys are enforced. `None`: as in the mode of the server.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`].
    pub async fn set_tenant_mode(&self, reference: &str, mode: Option<Mode>) -> Result<Tenant, AdminError> {
        let tenant = self.tenant(reference).await?;
        let change = |tenant: &mut Tenant| {
            self.judge_tenant(tenant)?;
            tenant.mode = mode;
            Ok(())
        };
        let changed = self.store.change_tenant(tenant.id, Action::TenantMode, &change).await?;
        changed.ok_or_else(|| AdminError::Missing(format!("tenant {} is gone", tenant.id.0)))
    }

    /// Changes the name or the plan of a tenant.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`] and [`Admin::create_tenant`]; the plan does not exist; or there is nothing to change.
    pub async fn update_tenant(
        &self,
        reference: &str,
        name: Option<&str>,
        plan: &Setting<PlanName>,
    ) -> Result<Tenant, AdminError> {
        if name.is_none() && *plan == Setting::Keep {
            return Err(AdminError::BadRequest("nothing to change: name at least one option".into()));
        }
        self.patch_tenant(reference, name, plan, &Setting::Keep).await
    }

    /// Like [`Admin::update_tenant`], but without an error if there is nothing to change.
    ///
    /// # Errors
    ///
    /// As [`Admin::update_tenant`].
    pub async fn patch_tenant(
        &self,
        reference: &str,
        name: Option<&str>,
        plan: &Setting<PlanName>,
        mode: &Setting<Mode>,
    ) -> Result<Tenant, AdminError> {
        name.map_or(Ok(()), check_name)?;
        self.check_plan(plan.value().map(PlanName::as_str)).await?;
        let tenant = self.tenant(reference).await?;
        let change = |tenant: &mut Tenant| {
            self.judge_tenant(tenant)?;
            if let Some(name) = name {
                name.clone_into(&mut tenant.name);
            }
            plan.change(&mut tenant.plan, |plan| plan.as_str().into());
            mode.change(&mut tenant.mode, |mode| *mode);
            Ok(())
        };
        let changed = self.store.change_tenant(tenant.id, Action::TenantUpdate, &change).await?;
        changed.ok_or_else(|| AdminError::Missing(format!("tenant {} is gone", tenant.id.0)))
    }

    /// Returns the rows of the shadow report since the day of `since`.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn shadow_report(&self, since: Timestamp) -> Result<Vec<Shadowed>, AdminError> {
        Ok(self.store.shadowed(since).await?)
    }

    /// Marks a tenant as deleted; its rows stay.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`].
    pub async fn delete_tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        self.set_status(&self.tenant(reference).await?, &TenantStatus::Deleted, Action::TenantDelete).await
    }
}

/// Returns whether a text can be a reference. Postgres does not accept NUL in a text.
pub(super) fn may_name(reference: &str) -> bool {
    !reference.chars().any(char::is_control)
}

fn check_name(name: &str) -> Result<(), AdminError> {
    if !is_tenant_name(name) || holds_key(name) {
        return Err(AdminError::BadRequest(
            "invalid name of a tenant: expected 1 to 255 characters without control characters and keys"
                .into(),
        ));
    }
    Ok(())
}
