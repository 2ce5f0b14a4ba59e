//! The audit log: all changes with their authors, in a chain of hashes.
//!
//! Every change by the command line or over HTTP adds an [`AuditEntry`] in the same transaction. The hash of each entry
//! covers the hash of the entry before it and its own fields, so no entry can be changed, removed or inserted without
//! changing the hashes of all later ones.
//!
//! ```text
//! hash(n) = hex SHA-256( hash(n - 1) ‖ net(seq) ‖ net(at) ‖ net(actor) ‖ net(action)
//!                        ‖ net(subject) ‖ net(before) ‖ net(after) ‖ origin )
//! origin  = nothing if request_id and address are both NULL, else net(request_id) ‖ net(address)
//! hash(0) = 64 zeros          net(x) = <bytes of x, in decimal> ":" x ","
//! at      = 2026-11-25T02:34:04.123456Z          NULL is written as the empty text
//! ```
//!
//! A text of `net` parts can be split in one way only, so a row with an origin never has the input of one without.
//!
//! NEVER CHANGE THIS: existing logs could no longer be verified.
//!
//! An entry contains what commands show of a key or tenant. A hash, a memo or a secret cannot get into an entry.

mod chain;

use std::collections::BTreeMap;

use serde::Serialize;

pub use self::chain::{AuditEntry, BrokenChain, LogHead, hex};
use crate::invalid::InvalidValue;
use crate::key::format::holds_key;
use crate::record::KeyDetails;
use crate::tenant::{Mode, Tenant};

/// The author of a change: a user of the operating system, or the name given with `--actor`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Actor(Box<str>);

impl Actor {
    /// Creates an actor with this name.
    ///
    /// # Errors
    ///
    /// The name is empty, longer than 255 characters, or contains control characters or a whole key.
    pub fn new(name: &str) -> Result<Self, InvalidValue> {
        let fine = (1..=255).contains(&name.chars().count()) && !name.chars().any(char::is_control);
        if !fine || holds_key(name) {
            return Err(
                "invalid actor: expected 1 to 255 characters without control characters and keys".into()
            );
        }
        Ok(Self(name.into()))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The default actor is the program itself.
impl Default for Actor {
    fn default() -> Self {
        Self("tenantgate".into())
    }
}

/// The author of a change, and its request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Author {
    /// The name.
    pub actor: Actor,
    /// The id of the request over HTTP; `None` for the command line.
    pub request_id: Option<String>,
    /// The IP address of the client; `None` for the command line and for Unix sockets.
    pub address: Option<String>,
}

/// The author of changes by the command line, which have neither a request nor an address.
impl From<Actor> for Author {
    fn from(actor: Actor) -> Self {
        Self { actor, request_id: None, address: None }
    }
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// A management key is created.
    AdminKeyCreate,
    /// A link is made that signs in to the page as a management key.
    AdminKeyLoginLink,
    /// A management key is revoked.
    AdminKeyRevoke,
    /// A session of the page begins.
    AdminKeySignIn,
    /// Sessions of the page end.
    AdminKeySignOut,
    /// The permissions, expiry or name of a management key changed.
    AdminKeyUpdate,
    /// A key is created.
    KeyCreate,
    /// A key is disabled.
    KeyDisable,
    /// A disabled key is enabled again.
    KeyEnable,
    /// Keys are imported from a file.
    KeyImport,
    /// A key is revoked.
    KeyRevoke,
    /// A key is rotated.
    KeyRotate,
    /// The policy, name or labels of a key changed.
    KeyUpdate,
    /// The schema is migrated.
    Migrate,
    /// A plan is created.
    PlanCreate,
    /// A plan is deleted.
    PlanDelete,
    /// The limits of a plan are changed.
    PlanUpdate,
    /// A route is added.
    RouteAdd,
    /// The table of routes is replaced.
    RouteApply,
    /// A route is removed.
    RouteRemove,
    /// The name, mode, needs or shadow of a route is changed.
    RouteUpdate,
    /// The demonstration tenant and key are created.
    SeedDemo,
    /// A tenant is activated.
    TenantActivate,
    /// A tenant is created.
    TenantCreate,
    /// A tenant is marked as deleted.
    TenantDelete,
    /// Tenants are imported from a file.
    TenantImport,
    /// The mode of a tenant is set: whether rejections are enforced.
    TenantMode,
    /// The provisioning of a tenant is complete.
    TenantProvision,
    /// A tenant is suspended.
    TenantSuspend,
    /// The name or the plan of a tenant is changed.
    TenantUpdate,
}

impl Action {
    /// Returns the value of `tenantgate_audit_log.action`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AdminKeyCreate => "admin_key.create",
            Self::AdminKeyLoginLink => "admin_key.login_link",
            Self::AdminKeyRevoke => "admin_key.revoke",
            Self::AdminKeySignIn => "admin_key.sign_in",
            Self::AdminKeySignOut => "admin_key.sign_out",
            Self::AdminKeyUpdate => "admin_key.update",
            Self::KeyCreate => "key.create",
            Self::KeyImport => "key.import",
            Self::KeyRevoke => "key.revoke",
            Self::KeyRotate => "key.rotate",
            Self::Migrate => "migrate",
            Self::SeedDemo => "seed-demo",
            Self::KeyDisable => "key.disable",
            Self::KeyEnable => "key.enable",
            Self::KeyUpdate => "key.update",
            Self::PlanCreate => "plan.create",
            Self::PlanDelete => "plan.delete",
            Self::PlanUpdate => "plan.update",
            Self::RouteAdd => "route.add",
            Self::RouteApply => "route.apply",
            Self::RouteRemove => "route.remove",
            Self::RouteUpdate => "route.update",
            Self::TenantUpdate => "tenant.update",
            Self::TenantActivate => "tenant.activate",
            Self::TenantCreate => "tenant.create",
            Self::TenantDelete => "tenant.delete",
            Self::TenantImport => "tenant.import",
            Self::TenantMode => "tenant.mode",
            Self::TenantProvision => "tenant.provision",
            Self::TenantSuspend => "tenant.suspend",
        }
    }
}

/// A change to record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Draft {
    action: Action,
    subject: String,
    before: Option<String>,
    after: Option<String>,
}

impl Draft {
    /// Creates the draft of a change that is not about a tenant or a key.
    #[must_use]
    pub fn of(
        action: Action,
        subject: String,
        before: Option<&impl Serialize>,
        after: &impl Serialize,
    ) -> Self {
        Self { action, subject, before: before.map(json), after: Some(json(after)) }
    }

    /// Creates the draft of a deletion.
    #[must_use]
    pub fn of_removed(action: Action, subject: String, before: &impl Serialize) -> Self {
        Self { action, subject, before: Some(json(before)), after: None }
    }

    /// Creates the draft of a new or changed tenant; `None` if nothing changed.
    #[must_use]
    pub fn of_tenant(action: Action, before: Option<&Tenant>, after: &Tenant) -> Option<Self> {
        let shown = before.map(SeenTenant::from);
        let draft = Self::of(action, after.id.0.to_string(), shown.as_ref(), &SeenTenant::from(after));
        (draft.before != draft.after).then_some(draft)
    }

    /// Creates the draft of a new or changed key; `None` if nothing changed.
    #[must_use]
    pub fn of_key(action: Action, before: Option<&KeyDetails>, after: &KeyDetails) -> Option<Self> {
        let shown = before.map(SeenKey::from);
        let draft = Self::of(action, after.id.0.to_string(), shown.as_ref(), &SeenKey::from(after));
        (draft.before != draft.after).then_some(draft)
    }
}

/// Encodes JSON, which cannot fail for text fields.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The fields of a tenant in the log, which are those that commands show.
#[derive(Serialize)]
struct SeenTenant<'a> {
    id: String,
    name: &'a str,
    db_schema_name: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'a str>,
    created_at: String,
}

impl<'a> From<&'a Tenant> for SeenTenant<'a> {
    fn from(tenant: &'a Tenant) -> Self {
        Self {
            id: tenant.id.0.to_string(),
            name: &tenant.name,
            db_schema_name: &tenant.schema,
            status: tenant.status.as_str(),
            mode: tenant.mode.map(Mode::as_str),
            plan: tenant.plan.as_deref(),
            created_at: tenant.created_at.to_string(),
        }
    }
}

/// The fields of a key in the log, without those that its use changes.
#[derive(Serialize)]
struct SeenKey<'a> {
    id: String,
    key_prefix: &'a str,
    name: Option<&'a str>,
    tenant_id: String,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    revocation_reason: Option<&'a str>,
    replaced_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disabled_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    networks: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<&'a str, &'a str>,
}

impl<'a> From<&'a KeyDetails> for SeenKey<'a> {
    fn from(key: &'a KeyDetails) -> Self {
        Self {
            id: key.id.0.to_string(),
            key_prefix: &key.prefix,
            name: key.name.as_deref(),
            tenant_id: key.tenant_id.0.to_string(),
            created_at: key.created_at.to_string(),
            expires_at: key.expires_at.map(|at| at.to_string()),
            revoked_at: key.revoked_at.map(|at| at.to_string()),
            revocation_reason: key.revocation_reason.as_deref(),
            replaced_by: key.replaced_by.map(|id| id.0.to_string()),
            disabled_at: key.disabled_at.map(|at| at.to_string()),
            not_before: key.terms.not_before.map(|at| at.to_string()),
            scopes: key.terms.scopes.as_deref(),
            networks: key.terms.networks.as_deref(),
            plan: key.terms.plan.as_deref(),
            labels: key.terms.labels.iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests;
