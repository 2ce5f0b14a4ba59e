//! Objects as programs see them: `-o json` of the command line, and the bodies of management over HTTP.
//!
//! The fields are in the order of the contract. None contains a hash or a whole key.

use serde::Serialize;

use super::ListedAdminKey;
use crate::clock::Timestamp;
use crate::permission::{Ended, Permission, Permissions, Reach};
use crate::plan::PlanRow;
use crate::store::PlanUses;
use crate::tenant::Tenant;

/// A tenant.
#[derive(Serialize)]
pub(crate) struct TenantView {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) db_schema_name: String,
    pub(crate) status: String,
    /// The mode, if it differs from the server's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<String>,
    pub(crate) plan: Option<String>,
    pub(crate) created_at: String,
}

impl From<&Tenant> for TenantView {
    fn from(tenant: &Tenant) -> Self {
        Self {
            id: tenant.id.0.to_string(),
            name: tenant.name.clone(),
            db_schema_name: tenant.schema.clone(),
            status: tenant.status.to_string(),
            mode: tenant.mode.map(|mode| mode.as_str().to_owned()),
            plan: tenant.plan.as_deref().map(str::to_owned),
            created_at: tenant.created_at.to_string(),
        }
    }
}

/// A plan.
#[derive(Serialize)]
pub(crate) struct PlanView {
    pub(crate) name: String,
    pub(crate) request_limit: Option<String>,
    pub(crate) total_limit: Option<String>,
    pub(crate) input_limit: Option<String>,
    pub(crate) output_limit: Option<String>,
}

impl From<&PlanRow> for PlanView {
    fn from(plan: &PlanRow) -> Self {
        let [request_limit, total_limit, input_limit, output_limit] = plan.limits.clone();
        Self { name: plan.name.clone(), request_limit, total_limit, input_limit, output_limit }
    }
}

/// A plan, and how often it is used.
#[derive(Serialize)]
pub(crate) struct UsedPlanView {
    #[serde(flatten)]
    pub(crate) plan: PlanView,
    pub(crate) tenants: i64,
    pub(crate) keys: i64,
}

impl UsedPlanView {
    /// The plan with its uses.
    pub(crate) fn new(plan: &PlanRow, uses: PlanUses) -> Self {
        Self { plan: plan.into(), tenants: uses.tenants, keys: uses.keys }
    }
}

/// A management key.
#[derive(Serialize)]
pub(crate) struct AdminKeyView {
    pub(crate) id: String,
    pub(crate) key_prefix: String,
    pub(crate) name: String,
    pub(crate) permissions: Vec<&'static str>,
    pub(crate) tenants: Option<Vec<String>>,
    pub(crate) created_at: String,
    pub(crate) expires_at: Option<String>,
    pub(crate) status: &'static str,
    pub(crate) created_by: Option<String>,
    pub(crate) last_used_at: Option<String>,
    pub(crate) revoked_at: Option<String>,
}

impl From<&ListedAdminKey> for AdminKeyView {
    fn from(listed: &ListedAdminKey) -> Self {
        let key = &listed.key;
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        Self {
            id: key.id.0.to_string(),
            key_prefix: key.prefix.clone(),
            name: key.name.clone(),
            permissions: permissions(key.given.permissions),
            tenants: tenants(&key.given.reach),
            created_at: key.created_at.to_string(),
            expires_at: text(key.given.expires_at),
            status: listed.ended.map_or("active", Ended::as_str),
            created_by: key.created_by.map(|id| id.0.to_string()),
            last_used_at: text(key.last_used_at),
            revoked_at: text(key.revoked_at),
        }
    }
}

/// The names of permissions.
pub(crate) fn permissions(permissions: Permissions) -> Vec<&'static str> {
    permissions.iter().map(Permission::as_str).collect()
}

/// The ids of the tenants that a key may see; `None`: all.
pub(crate) fn tenants(reach: &Reach) -> Option<Vec<String>> {
    match reach {
        Reach::All => None,
        Reach::Some(tenants) => Some(tenants.iter().map(|tenant| tenant.0.to_string()).collect()),
    }
}
