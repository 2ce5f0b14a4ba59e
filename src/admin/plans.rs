//! Manages plans: names for limits that Envoy enforces.

use super::{Admin, AdminError, Setting, refused, unfit};
use crate::plan::{Limit, PlanName, PlanRow};
use crate::store::{PlanUses, StoreError};

/// Changes of the limits of a plan, in the order of the columns.
pub type LimitUpdate = [Setting<Limit>; 4];

impl Admin {
    /// Creates a plan.
    ///
    /// # Errors
    ///
    /// The name is taken.
    pub async fn create_plan(&self, name: &PlanName, asked: &LimitUpdate) -> Result<PlanRow, AdminError> {
        let mut plan = PlanRow { name: name.to_string(), limits: [const { None }; 4] };
        apply(&mut plan, asked);
        match self.store.insert_plan(&plan).await {
            Err(StoreError::Conflict(_)) => {
                refused(format!("there is a plan {name}: change it with `tenantgate plan update`"))
            }
            other => Ok(other.map(|()| plan)?),
        }
    }

    /// Changes the limits of a plan.
    ///
    /// # Errors
    ///
    /// The plan does not exist, or there is nothing to change.
    pub async fn update_plan(&self, name: &PlanName, asked: &LimitUpdate) -> Result<PlanRow, AdminError> {
        if asked.iter().all(|limit| *limit == Setting::Keep) {
            return Err(AdminError::BadRequest("nothing to change: name at least one limit".into()));
        }
        self.patch_plan(name, asked).await
    }

    /// Like [`Admin::update_plan`], but without an error if there is nothing to change.
    ///
    /// # Errors
    ///
    /// The plan does not exist.
    pub async fn patch_plan(&self, name: &PlanName, asked: &LimitUpdate) -> Result<PlanRow, AdminError> {
        let change = |plan: &mut PlanRow| {
            self.judge_plan(plan)?;
            apply(plan, asked);
            Ok(())
        };
        let changed = self.store.change_plan(name.as_str(), &change).await?;
        changed.ok_or_else(|| no_plan(name.as_str()))
    }

    /// Returns all plans, by name.
    ///
    /// # Errors
    ///
    /// The database is not available.
    pub async fn plans(&self) -> Result<Vec<PlanRow>, AdminError> {
        Ok(self.store.plans().await?)
    }

    /// Returns a plan, and how many tenants and keys have it.
    ///
    /// # Errors
    ///
    /// The plan does not exist.
    pub async fn plan(&self, name: &PlanName) -> Result<(PlanRow, PlanUses), AdminError> {
        let found = self.plans().await?.into_iter().find(|plan| plan.name == name.as_str());
        let plan = found.ok_or_else(|| no_plan(name.as_str()))?;
        Ok((plan, self.store.plan_uses(name.as_str()).await?))
    }

    /// Deletes a plan.
    ///
    /// # Errors
    ///
    /// The plan does not exist, or is used.
    pub async fn delete_plan(&self, name: &PlanName) -> Result<PlanRow, AdminError> {
        let PlanUses { tenants, keys } = self.store.plan_uses(name.as_str()).await?;
        if tenants + keys > 0 {
            return refused(format!(
                "the plan {name} is used by {tenants} tenants and {keys} keys: give them another one first"
            ));
        }
        let deleted = self.store.delete_plan(name.as_str(), &|plan| self.judge_plan(plan)).await?;
        deleted.ok_or_else(|| no_plan(name.as_str()))
    }

    /// Rejects the name of a plan that does not exist.
    pub(super) async fn check_plan(&self, name: Option<&str>) -> Result<(), AdminError> {
        let Some(name) = name else { return Ok(()) };
        let known = self.plans().await?.iter().any(|plan| plan.name == name);
        if known { Ok(()) } else { Err(unfit("plan", no_plan(name).to_string())) }
    }
}

fn apply(plan: &mut PlanRow, asked: &LimitUpdate) {
    for (limit, asked) in plan.limits.iter_mut().zip(asked) {
        asked.change(limit, ToString::to_string);
    }
}

fn no_plan(name: &str) -> AdminError {
    AdminError::Missing(format!("there is no plan {name:?}: create it first, or choose another one"))
}
