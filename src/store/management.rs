//! The trait by which tenants and keys are managed.
//!
//! Every method that changes a tenant, a key, a plan, a rule or a management key writes to the audit log in the same
//! transaction. Servers use [`Store`](super::Store) instead.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    AdminKeyChange, AdminSessions, Adoption, AuditFilter, ChangeContext, Check, Claim, Claimed, KeyChange,
    KeyFilter, KeyPage, KeyPlace, Overview, PlanChange, RoutesPlan, SchemaVersion, Shadowed, StoreError,
    StoredKey, TenantChange, TenantFilter, TenantPage, TenantPlace, UsageFilter, UsageRow,
};
use crate::audit::{Action, AuditEntry, Draft};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::permission::{AdminKey, AdminKeyId, Reach};
use crate::plan::PlanRow;
use crate::record::{KeyDetails, KeyTerms, Memo};
use crate::route::RouteRow;
use crate::tenant::{Tenant, TenantId, TenantStatus};

/// A tenant to create.
#[derive(Clone, Debug)]
pub struct NewTenant {
    /// Its id.
    pub id: TenantId,
    /// Its name.
    pub name: String,
    /// Its schema.
    pub schema: String,
    /// Its status.
    pub status: TenantStatus,
    /// The name of its plan.
    pub plan: Option<String>,
}

/// A key to create.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its id.
    pub id: KeyId,
    /// `llmk_<prefix>`.
    pub prefix: String,
    /// Its bcrypt hash.
    pub hash: String,
    /// The id of its tenant.
    pub tenant_id: TenantId,
    /// Its name, for people.
    pub name: Option<String>,
    /// When it was issued.
    pub created_at: Timestamp,
    /// When it expires; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// Its memo, which saves bcrypt.
    pub memo: Option<Memo>,
    /// Its scopes, networks, plan and labels, and the start of its validity.
    pub terms: KeyTerms,
}

/// How a key is rotated.
pub struct Rotation<'r> {
    /// When the old key expires, unless it expires earlier.
    pub expires_at: Timestamp,
    /// The new key.
    pub successor: &'r NewKey,
    /// Called first with the old key: whether its author may rotate it.
    pub check: Check<'r, KeyDetails>,
    /// Called last with the old key: whether it is still the key that the successor was made from.
    pub unchanged: &'r (dyn Fn(&KeyDetails) -> bool + Sync),
}

/// The result of a rotation. Only [`Rotated::Done`] has changed the database.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rotated {
    /// The key has a successor.
    Done {
        /// The old key.
        old: Box<KeyDetails>,
        /// Its successor.
        new: Box<KeyDetails>,
    },
    /// The key is revoked, or does not exist.
    Revoked,
    /// The key has an active successor already, with this prefix.
    Succeeded(String),
    /// The key was changed after the successor was made from it.
    Changed,
}

/// A management key to create.
#[derive(Clone, Debug)]
pub struct NewAdminKey {
    /// The key.
    pub key: AdminKey,
    /// Its hash: [`crate::verify::management::hash`].
    pub hash: String,
}

/// A server that may not have applied a change yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Laggard {
    /// Host and process id, for display.
    pub name: String,
    /// When it last announced itself.
    pub seen_at: Timestamp,
}

/// A server that has announced itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Announced {
    /// Its id.
    pub id: Uuid,
    /// Host and process id, for display.
    pub name: String,
    /// When it last announced itself.
    pub seen_at: Timestamp,
    /// When it stops accepting keys, unless it polls the database again.
    pub serves_until: Timestamp,
}

/// A key to import, with its history.
#[derive(Clone, Debug)]
pub struct ImportedKey {
    /// The key.
    pub new: NewKey,
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// Why it was revoked.
    pub revocation_reason: Option<String>,
    /// The id of its successor.
    pub replaced_by: Option<KeyId>,
    /// When it was disabled.
    pub disabled_at: Option<Timestamp>,
}

/// A change of the table of routes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RoutesChange {
    /// Rules to add.
    pub added: Vec<RouteRow>,
    /// Rules to remove.
    pub removed: Vec<RouteRow>,
    /// Rules before and after the change. Name, mode, scopes and shadow can change.
    pub changed: Vec<(RouteRow, RouteRow)>,
    /// The rule to change, if the change makes no difference.
    pub unchanged: Option<RouteRow>,
    /// The whole table after the change, if it was replaced.
    pub table: Vec<RouteRow>,
    /// The entry for the audit log; `None` if nothing changes.
    pub draft: Option<Draft>,
}

/// The number of tenants and keys that use a plan.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PlanUses {
    /// Tenants.
    pub tenants: i64,
    /// Keys that name the plan themselves.
    pub keys: i64,
}

/// The result of a migration.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Migrated {
    /// The versions that were applied.
    pub applied: Vec<i64>,
    /// The faults that were repaired.
    pub mended: Vec<String>,
    /// Other actions and remarks, for display.
    pub notes: Vec<String>,
    /// The new identity, if one was requested.
    pub identity: Option<Uuid>,
    /// The publication, if one was requested.
    pub publication: Option<String>,
}

/// A database of tenants and keys, with the operations that commands and `manage` need.
///
/// Every method fails with [`StoreError::Unavailable`] if the database is unavailable. "Not found" is `None` or an
/// empty list, never an error. A method that calls a closure of its caller (`change`, `check`, `plan`) returns the
/// error of that closure, and changes nothing then.
#[async_trait]
pub trait Management: AdminSessions + Overview {
    /// Returns the same store with the same connections, whose changes have another author.
    fn with_context(&self, context: ChangeContext) -> Arc<dyn Management>;

    /// Returns whether each tenant has a database schema, which must be created.
    fn has_schemas(&self) -> bool;

    /// Returns the version of the database schema, through a kept connection.
    async fn version(&self) -> Result<SchemaVersion, StoreError>;

    /// Applies the missing migrations as [`Store::migrate`](super::Store::migrate) does, adopts existing tables, and
    /// restores missing triggers, functions and rows.
    async fn adopt(&self, adoption: &Adoption) -> Result<Migrated, StoreError>;

    /// Describes the session that holds the lock that a command gave up waiting for.
    async fn lock_holder(&self) -> Result<Option<String>, StoreError>;

    /// Checks that a new tenant may have this schema; see [`Management::create_schema`]. [`StoreError::Disallowed`] if
    /// not.
    async fn check_schema(&self, schema: &str, adopt: bool) -> Result<(), StoreError>;

    /// Creates the database roles, whose names begin with `prefix`, and grants each the privileges that it needs and no
    /// other. Returns their names.
    async fn create_roles(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// Adds a tenant. [`StoreError::Conflict`] if its schema or id is taken.
    async fn insert_tenant(&self, tenant: &NewTenant, action: Action) -> Result<Tenant, StoreError>;

    /// Creates the schema of a tenant unless it exists. Without `adopt`, an existing schema must be empty. Does nothing
    /// if the database has no schemas.
    async fn create_schema(&self, schema: &str, adopt: bool) -> Result<(), StoreError>;

    /// Returns all tenants, oldest first.
    async fn tenants(&self) -> Result<Vec<Tenant>, StoreError>;

    /// Finds the tenants whose id, schema or exact name is `reference`.
    async fn find_tenants(&self, reference: &str) -> Result<Vec<Tenant>, StoreError>;

    /// Changes a tenant. `None` if there is no such tenant.
    async fn change_tenant(
        &self,
        id: TenantId,
        action: Action,
        change: TenantChange<'_>,
    ) -> Result<Option<Tenant>, StoreError>;

    /// Returns the shadow report of the days since `since`, summed over the days, most requests first.
    async fn shadowed(&self, since: Timestamp) -> Result<Vec<Shadowed>, StoreError>;

    /// Returns the sums of usage that match a filter.
    async fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError>;

    /// Adds a key. [`StoreError::Conflict`] if its prefix, hash or id is taken.
    async fn insert_key(&self, key: &NewKey, action: Action) -> Result<KeyDetails, StoreError>;

    /// Returns the first `page` keys that match a filter, after the id `after`, ordered by id.
    async fn keys_page(
        &self,
        filter: &KeyFilter,
        after: Option<KeyId>,
        page: i64,
    ) -> Result<Vec<StoredKey>, StoreError>;

    /// Returns a page of the keys of these tenants that match a filter, after a place, in the order of creation.
    async fn keys_by_creation(
        &self,
        filter: &KeyFilter,
        reach: &Reach,
        after: Option<&KeyPlace>,
        page: usize,
    ) -> Result<KeyPage, StoreError>;

    /// Counts the keys of these tenants that match a filter.
    async fn count_keys(&self, filter: &KeyFilter, reach: &Reach) -> Result<i64, StoreError>;

    /// Counts the keys of a tenant that are not revoked and were last used at `since` or later.
    async fn count_used(&self, tenant: TenantId, since: Timestamp) -> Result<i64, StoreError>;

    /// Returns the keys whose id, prefix or hash is one of `names`.
    async fn keys_named(&self, names: &[String]) -> Result<Vec<StoredKey>, StoreError>;

    /// Returns the first `page` tenants after the id `after`, ordered by id.
    async fn tenants_page(&self, after: Option<TenantId>, page: i64) -> Result<Vec<Tenant>, StoreError>;

    /// Tenants of this reach that a filter wants, after a place, in the order of creation.
    async fn tenants_by_creation(
        &self,
        filter: &TenantFilter,
        reach: &Reach,
        after: Option<&TenantPlace>,
        page: usize,
    ) -> Result<TenantPage, StoreError>;

    /// Returns the tenants whose id, schema or exact name is in `names`.
    async fn tenants_named(&self, names: &[String]) -> Result<Vec<Tenant>, StoreError>;

    /// Adds all these keys, or none: [`StoreError::Conflict`] if a prefix, hash or id is taken.
    async fn import_keys(&self, keys: &[ImportedKey], draft: Draft) -> Result<(), StoreError>;

    /// Adds all these tenants and creates the missing schemas of active and suspended ones, or changes nothing:
    /// [`StoreError::Conflict`] if a schema or id is taken.
    async fn import_tenants(&self, tenants: &[Tenant], draft: Draft) -> Result<(), StoreError>;

    /// Finds the key whose id or prefix is `reference`.
    async fn find_key(&self, reference: &str) -> Result<Option<KeyDetails>, StoreError>;

    /// Changes these keys, all or none, and returns them in the order of `ids`. [`StoreError::Conflict`] if one does
    /// not exist.
    async fn change_keys(
        &self,
        ids: &[KeyId],
        action: Action,
        change: KeyChange<'_>,
    ) -> Result<Vec<KeyDetails>, StoreError>;

    /// Rotates the key `id` in one transaction.
    async fn rotate_key(&self, id: KeyId, rotation: &Rotation<'_>) -> Result<Rotated, StoreError>;

    /// Returns all plans, by name.
    async fn plans(&self) -> Result<Vec<PlanRow>, StoreError>;

    /// Adds a plan. [`StoreError::Conflict`] if its name is taken.
    async fn insert_plan(&self, plan: &PlanRow) -> Result<(), StoreError>;

    /// Changes the limits of a plan. `None` if there is no such plan.
    async fn change_plan(&self, name: &str, change: PlanChange<'_>) -> Result<Option<PlanRow>, StoreError>;

    /// Counts the tenants and keys that use a plan.
    async fn plan_uses(&self, name: &str) -> Result<PlanUses, StoreError>;

    /// Deletes a plan that is not used. `check` is called first with the plan. `None` if there is no such plan.
    async fn delete_plan(&self, name: &str, check: Check<'_, PlanRow>)
    -> Result<Option<PlanRow>, StoreError>;

    /// Returns all rules of routes, ordered by host, path and method.
    async fn routes(&self) -> Result<Vec<RouteRow>, StoreError>;

    /// Changes the table of routes while other sessions cannot. `plan` computes the change from the current table.
    async fn change_routes(&self, plan: RoutesPlan<'_>) -> Result<RoutesChange, StoreError>;

    /// Returns all management keys, oldest first.
    async fn admin_keys(&self) -> Result<Vec<AdminKey>, StoreError>;

    /// Returns the hash of the management key with this prefix, and the key followed by the key that created it, the
    /// creator of that one, and so on.
    async fn admin_key_chain(&self, prefix: &str) -> Result<Option<(String, Vec<AdminKey>)>, StoreError>;

    /// Records that a management key was used.
    async fn touch_admin_key(&self, id: AdminKeyId, at: Timestamp) -> Result<(), StoreError>;

    /// Adds a management key. [`StoreError::Conflict`] if its name, prefix, hash or id is taken.
    async fn insert_admin_key(&self, key: &NewAdminKey) -> Result<AdminKey, StoreError>;

    /// Changes a management key. `None` if there is no such key; [`StoreError::Conflict`] if its new name is taken.
    async fn change_admin_key(
        &self,
        id: AdminKeyId,
        action: Action,
        change: AdminKeyChange<'_>,
    ) -> Result<Option<AdminKey>, StoreError>;

    /// Claims an Idempotency-Key for a request, and deletes claims that are too old.
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError>;

    /// Deletes the claim of a failed request, so that the Idempotency-Key can be used again.
    async fn give_up_claim(&self, attempt: Uuid) -> Result<(), StoreError>;

    /// Returns the servers that have a heartbeat in the database, ordered by name.
    async fn replicas(&self) -> Result<Vec<Announced>, StoreError>;

    /// Writes a mark into the change log and returns it. A server that has seen the mark has applied everything that
    /// was committed before it.
    async fn mark(&self) -> Result<String, StoreError>;

    /// Returns the servers that may not have applied the changes before a mark: they have not seen it, and may still
    /// accept keys.
    async fn laggards(&self, mark: &str) -> Result<Vec<Laggard>, StoreError>;

    /// Counts the running servers that have seen a mark.
    async fn caught_up(&self, mark: &str) -> Result<u64, StoreError>;

    /// Returns the first `page` matching rows of the audit log after the row `after`, oldest first.
    async fn audit_entries(
        &self,
        filter: &AuditFilter,
        after: i64,
        page: i64,
    ) -> Result<Vec<AuditEntry>, StoreError>;

    /// Returns the number of the row after which the newest `count` matching rows begin.
    async fn audit_before_newest(&self, filter: &AuditFilter, count: i64) -> Result<i64, StoreError>;
}
