//! Objects as programs see them: `-o json` of the command line, and the bodies of management over HTTP.
//!
//! The fields are in the order of the contract. None contains a hash; only [`IssuedView`] and [`IssuedAdminKeyView`]
//! can contain a whole key.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{Issued, IssuedAdminKey, ListedAdminKey};
use crate::audit::AuditEntry;
use crate::clock::Timestamp;
use crate::key::PlainKey;
use crate::permission::{AdminKey, Ended, Permission, Permissions, Reach};
use crate::plan::PlanRow;
use crate::record::KeyDetails;
use crate::store::{PlanUses, StoredKey, UsageRow};
use crate::tenant::Tenant;

/// A tenant.
#[derive(Serialize, ToSchema)]
pub(crate) struct TenantView {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) db_schema_name: String,
    pub(crate) status: String,
    /// The mode; absent if it is that of the server.
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
#[derive(Serialize, ToSchema)]
#[schema(as = IssuedKey)]
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

/// The policy of a key; `null` for a field that is not set.
#[derive(Serialize, ToSchema)]
#[schema(as = KeyTerms)]
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
    /// Returns the key without its secret.
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
        Self { key: Some(shown_once(&issued.key)), ..Self::hidden(&issued.details) }
    }
}

/// A key.
#[derive(Serialize, ToSchema)]
#[schema(as = Key)]
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
    /// Returns the key with its status at `now`.
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
#[derive(Serialize, ToSchema)]
pub(crate) struct ListedKeyView {
    #[serde(flatten)]
    pub(crate) key: KeyView,
    pub(crate) tenant_schema: String,
}

impl ListedKeyView {
    /// Returns the key as it is at `now`.
    pub(crate) fn at(key: &StoredKey, now: Timestamp) -> Self {
        Self { key: KeyView::at(&key.details, now), tenant_schema: key.tenant_schema.clone() }
    }
}

/// A key and its successor.
#[derive(Serialize, ToSchema)]
pub(crate) struct RotatedView {
    pub(crate) old: KeyView,
    pub(crate) new: IssuedView,
}

/// A plan.
#[derive(Serialize, ToSchema)]
#[schema(as = Plan)]
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
#[derive(Serialize, ToSchema)]
pub(crate) struct UsedPlanView {
    #[serde(flatten)]
    pub(crate) plan: PlanView,
    pub(crate) tenants: i64,
    pub(crate) keys: i64,
}

impl UsedPlanView {
    /// Returns the plan with its uses.
    pub(crate) fn new(plan: &PlanRow, uses: PlanUses) -> Self {
        Self { plan: plan.into(), tenants: uses.tenants, keys: uses.keys }
    }
}

/// A management key.
#[derive(Serialize, ToSchema)]
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
        let (key, authority) = (&listed.key, listed.authority());
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        Self {
            id: key.id.0.to_string(),
            key_prefix: key.prefix.clone(),
            name: key.name.clone(),
            permissions: permissions(authority.permissions),
            tenants: tenants(&authority.reach),
            created_at: key.created_at.to_string(),
            expires_at: text(authority.expires_at),
            status: listed.ended.map_or("active", Ended::as_str),
            created_by: key.created_by.map(|id| id.0.to_string()),
            last_used_at: text(key.last_used_at),
            revoked_at: text(key.revoked_at),
        }
    }
}

/// A management key that was just created.
#[derive(Serialize, ToSchema)]
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
    /// Returns the key without its secret.
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
        Self { key: Some(shown_once(&issued.key)), ..Self::hidden(&issued.details) }
    }
}

/// Returns a key that is shown once, to its creator.
pub(crate) fn shown_once(key: &PlainKey) -> String {
    key.expose().to_owned()
}

/// Returns the names of permissions.
pub(crate) fn permissions(permissions: Permissions) -> Vec<&'static str> {
    permissions.iter().map(Permission::as_str).collect()
}

/// Returns the ids of the tenants that a key may see; `None` for all.
pub(crate) fn tenants(reach: &Reach) -> Option<Vec<String>> {
    match reach {
        Reach::All => None,
        Reach::Some(tenants) => Some(tenants.iter().map(|tenant| tenant.0.to_string()).collect()),
    }
}

/// A row of the audit log.
#[derive(Serialize, ToSchema)]
pub(crate) struct EntryView<'a> {
    pub(crate) seq: i64,
    pub(crate) at: String,
    pub(crate) actor: &'a str,
    pub(crate) action: &'a str,
    pub(crate) subject: &'a str,
    #[schema(value_type = Option<Object>)]
    pub(crate) before: Option<StoredJson<'a>>,
    #[schema(value_type = Option<Object>)]
    pub(crate) after: Option<StoredJson<'a>>,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) address: Option<&'a str>,
    pub(crate) hash: &'a str,
}

/// JSON as stored; a text if the column was changed to something else.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum StoredJson<'a> {
    Json(&'a RawValue),
    Text(&'a str),
}

impl<'a> StoredJson<'a> {
    fn of(text: &'a str) -> Self {
        serde_json::from_str(text).map_or(Self::Text(text), Self::Json)
    }

    pub(crate) fn fields(&self) -> BTreeMap<String, Value> {
        let Self::Json(json) = self else { return BTreeMap::new() };
        serde_json::from_str(json.get()).unwrap_or_default()
    }
}

impl<'a> From<&'a AuditEntry> for EntryView<'a> {
    fn from(entry: &'a AuditEntry) -> Self {
        Self {
            seq: entry.seq,
            at: entry.at.to_string(),
            actor: &entry.actor,
            action: &entry.action,
            subject: &entry.subject,
            before: entry.before.as_deref().map(StoredJson::of),
            after: entry.after.as_deref().map(StoredJson::of),
            request_id: entry.request_id.as_deref(),
            address: entry.address.as_deref(),
            hash: &entry.hash,
        }
    }
}

/// Requests that are counted together. Fields that the counts do not distinguish are `null`.
#[derive(Serialize, ToSchema)]
pub(crate) struct UsageView {
    pub(crate) day: Option<String>,
    pub(crate) tenant_id: Option<String>,
    pub(crate) key_id: Option<String>,
    /// `null` for requests without a proven key, and if the key no longer exists.
    pub(crate) key_prefix: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) requests: u64,
}

impl From<UsageRow> for UsageView {
    fn from(row: UsageRow) -> Self {
        Self {
            day: row.day,
            tenant_id: row.tenant.map(|tenant| tenant.0.to_string()),
            key_id: row.key.map(|key| key.0.to_string()),
            key_prefix: row.key_prefix,
            reason: row.reason,
            requests: row.requests,
        }
    }
}
