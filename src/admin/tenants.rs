//! Manages tenants.
//!
//! A tenant is pending until its schema exists, and its row stays in the database for ever.

use uuid::Uuid;

use super::{Admin, AdminError, Setting, missing, refused};
use crate::audit::Action;
use crate::clock::Timestamp;
use crate::key::format::holds_key;
use crate::plan::PlanName;
use crate::store::{NewTenant, Shadowed, StoreError};
use crate::tenant::{
    Mode, Tenant, TenantId, TenantStatus, default_schema_name, is_schema_name, is_tenant_name,
};

impl Admin {
    /// Adds a tenant and creates its schema; with `adopt`, takes one that exists and is not empty.
    ///
    /// # Errors
    ///
    /// A name or schema outside its grammar, or a schema that is taken.
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
                "{schema:?} is no schema name: use a lower-case letter or _, then up to 62 of a-z, 0-9 and _, \
                 and none of Postgres' own (pg_*, public, information_schema)"
            )));
        }
        let (id, plan) = (TenantId(Uuid::new_v4()), plan.map(ToString::to_string));
        let tenant = NewTenant { id, name: name.into(), schema, status, plan };
        self.provision(tenant, adopt, Action::TenantCreate).await
    }

    /// A tenant is pending until its schema exists.
    pub(super) async fn provision(
        &self,
        tenant: NewTenant,
        adopt: bool,
        action: Action,
    ) -> Result<Tenant, AdminError> {
        let taken = self.store.find_tenants(&tenant.schema).await?;
        if !taken.iter().any(|other| other.schema == tenant.schema) {
            // Of another tenant says more than of one that is not empty.
            self.store.check_schema(&tenant.schema, adopt).await?;
        }
        let wanted = tenant.status.clone();
        let without_schema = !self.store.has_schemas() || wanted == TenantStatus::PendingProvisioning;
        let first = if without_schema { wanted.clone() } else { TenantStatus::PendingProvisioning };
        let schema = tenant.schema.clone();
        let added = match self.store.insert_tenant(&NewTenant { status: first, ..tenant }, action).await {
            Err(StoreError::Conflict(_)) => {
                return refused(format!(
                    "the schema {schema:?} belongs to another tenant: choose one with --schema"
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

    /// All tenants that the caller sees, oldest first.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, AdminError> {
        let mut tenants = self.store.tenants().await?;
        tenants.retain(|tenant| self.sees(tenant.id));
        Ok(tenants)
    }

    /// The tenant whose id or schema is `reference`. Its name, which others may have too, is no reference for programs.
    ///
    /// # Errors
    ///
    /// The caller sees none.
    pub async fn tenant_by_id(&self, reference: &str) -> Result<Tenant, AdminError> {
        let named = |tenant: &Tenant| {
            tenant.id.0.to_string().eq_ignore_ascii_case(reference) || tenant.schema == reference
        };
        let found = if may_name(reference) { self.store.find_tenants(reference).await? } else { Vec::new() };
        let found = found.into_iter().find(|tenant| named(tenant) && self.sees(tenant.id));
        found.ok_or_else(|| AdminError::Missing(format!("there is no tenant {reference:?}")))
    }

    /// The tenant whose id, schema or exact name is `reference`.
    ///
    /// # Errors
    ///
    /// There is none, or more than one.
    pub async fn tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        let mut found = self.store.find_tenants(reference).await?;
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
                    "{reference:?} means more than one tenant, name one by its id: {}",
                    ids.join(", ")
                ))
            }
        }
    }

    /// Stops serving a tenant.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`].
    pub async fn suspend_tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        self.set_status(&self.tenant(reference).await?, &TenantStatus::Suspended, Action::TenantSuspend).await
    }

    /// Serves a tenant (again); its schema is made to stand first.
    ///
    /// # Errors
    ///
    /// As [`Admin::tenant`], or its schema cannot be made.
    pub async fn activate_tenant(&self, reference: &str) -> Result<Tenant, AdminError> {
        let tenant = self.tenant(reference).await?;
        // A schema that is made for nothing would remain.
        self.judge_tenant(&tenant).map_err(StoreError::from)?;
        self.store.create_schema(&tenant.schema, true).await?;
        self.set_status(&tenant, &TenantStatus::Active, Action::TenantActivate).await
    }

    /// Sets what becomes of a tenant's proven keys that are to be refused; nothing: what the server's mode says.
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
    /// As [`Admin::tenant`] and [`Admin::create_tenant`]; there is no such plan; nothing is to be changed.
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

    /// Changes what is said of a tenant, which may be nothing.
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

    /// What the shadow report has of the days since `since`.
    ///
    /// # Errors
    ///
    /// The database cannot be asked.
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

/// Whether a text can be a reference at all. Postgres takes no NUL in a text.
pub(super) fn may_name(reference: &str) -> bool {
    !reference.chars().any(char::is_control)
}

fn check_name(name: &str) -> Result<(), AdminError> {
    if !is_tenant_name(name) || holds_key(name) {
        return Err(AdminError::BadRequest(
            "a tenant's name has 1 to 255 characters, no control characters, and no key in it".into(),
        ));
    }
    Ok(())
}
