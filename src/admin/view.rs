//! Objects as programs see them: `-o json` of the command line, and the bodies of management over HTTP.
//!
//! The fields are in the order of the contract. None contains a hash; only [`IssuedView`] and [`IssuedAdminKeyView`] can
//! contain a whole key.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Issued, IssuedAdminKey, ListedAdminKey};
use crate::clock::Timestamp;
use crate::permission::{AdminKey, Ended, Permission, Permissions, Reach};
use crate::plan::PlanRow;
use crate::record::KeyDetails;
use crate::store::{PlanUses, StoredKey};
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

/// A key that was just created.
#[derive(Serialize)]
pub(crate) struct IssuedView {
    pub(crate) id: String,
    /// The whole key: shown once, and not at all if its client made it.
    pub(crate) key: Option<String>,
    pub(crate) key_prefix: String,
    pub(crate) name: Option<String>,
    pub(crate) tenant_id: String,
    pub(crate) created_at: String,
    pub(crate) expires_at: Option<String>,
    #[serde(flatten)]
    pub(crate) terms: TermsView,
}

/// What a key may do: `null` where nothing is said.
#[derive(Serialize)]
pub(crate) struct TermsView {
    pub(crate) scopes: Option<String>,
    pub(crate) networks: Option<String>,
    pub(crate) plan: Option<String>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) disabled_at: Option<String>,
    pub(crate) not_before: Option<String>,
}

impl From<&KeyDetails> for TermsView {
    fn from(key: &KeyDetails) -> Self {
        let terms = &key.terms;
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let labels: BTreeMap<_, _> = terms.labels.iter().map(owned).collect();
        Self {
            scopes: terms.scopes.clone(),
            networks: terms.networks.clone(),
            plan: terms.plan.clone(),
            labels: (!labels.is_empty()).then_some(labels),
            disabled_at: text(key.disabled_at),
            not_before: text(terms.not_before),
        }
    }
}

impl IssuedView {
    /// The key without its secret.
    pub(crate) fn hidden(key: &KeyDetails) -> Self {
        Self {
            id: key.id.0.to_string(),
            key: None,
            key_prefix: key.prefix.clone(),
            name: key.name.clone(),
            tenant_id: key.tenant_id.0.to_string(),
            created_at: key.created_at.to_string(),
            expires_at: key.expires_at.map(|at| at.to_string()),
            terms: key.into(),
        }
    }
}

impl From<&Issued> for IssuedView {
    fn from(issued: &Issued) -> Self {
        Self { key: Some(issued.key.expose().to_owned()), ..Self::hidden(&issued.details) }
    }
}

/// A key.
#[derive(Serialize)]
pub(crate) struct KeyView {
    pub(crate) id: String,
    pub(crate) key_prefix: String,
    pub(crate) name: Option<String>,
    pub(crate) tenant_id: String,
    pub(crate) created_at: String,
    pub(crate) expires_at: Option<String>,
    pub(crate) status: &'static str,
    pub(crate) last_used_at: Option<String>,
    pub(crate) revoked_at: Option<String>,
    pub(crate) revocation_reason: Option<String>,
    /// Whether there is a memo, and the id of its pepper.
    pub(crate) memo: bool,
    pub(crate) memo_pepper: Option<String>,
    #[serde(flatten)]
    pub(crate) terms: TermsView,
}

impl KeyView {
    /// The key with its status at `now`.
    pub(crate) fn at(key: &KeyDetails, now: Timestamp) -> Self {
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        Self {
            id: key.id.0.to_string(),
            key_prefix: key.prefix.clone(),
            name: key.name.clone(),
            tenant_id: key.tenant_id.0.to_string(),
            created_at: key.created_at.to_string(),
            expires_at: text(key.expires_at),
            status: key.state(now).as_str(),
            last_used_at: text(key.last_used_at),
            revoked_at: text(key.revoked_at),
            revocation_reason: key.revocation_reason.clone(),
            memo: key.memo.is_some(),
            memo_pepper: key.memo.map(|pepper| pepper.to_string()),
            terms: key.into(),
        }
    }
}

/// A key of a list.
#[derive(Serialize)]
pub(crate) struct ListedKeyView {
    #[serde(flatten)]
    pub(crate) key: KeyView,
    pub(crate) tenant_schema: String,
}

impl ListedKeyView {
    /// The key as it is at `now`.
    pub(crate) fn at(key: &StoredKey, now: Timestamp) -> Self {
        Self { key: KeyView::at(&key.details, now), tenant_schema: key.tenant_schema.clone() }
    }
}

/// A key and its successor.
#[derive(Serialize)]
pub(crate) struct RotatedView {
    pub(crate) old: KeyView,
    pub(crate) new: IssuedView,
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

/// A management key that was just created.
#[derive(Serialize)]
pub(crate) struct IssuedAdminKeyView {
    pub(crate) id: String,
    /// The whole key: shown once.
    pub(crate) key: Option<String>,
    pub(crate) key_prefix: String,
    pub(crate) name: String,
    pub(crate) permissions: Vec<&'static str>,
    pub(crate) tenants: Option<Vec<String>>,
    pub(crate) created_at: String,
    pub(crate) expires_at: Option<String>,
}

impl IssuedAdminKeyView {
    /// The key without its secret.
    pub(crate) fn hidden(key: &AdminKey) -> Self {
        Self {
            id: key.id.0.to_string(),
            key: None,
            key_prefix: key.prefix.clone(),
            name: key.name.clone(),
            permissions: permissions(key.given.permissions),
            tenants: tenants(&key.given.reach),
            created_at: key.created_at.to_string(),
            expires_at: key.given.expires_at.map(|at| at.to_string()),
        }
    }
}

impl From<&IssuedAdminKey> for IssuedAdminKeyView {
    fn from(issued: &IssuedAdminKey) -> Self {
        Self { key: Some(issued.key.expose().to_owned()), ..Self::hidden(&issued.details) }
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
