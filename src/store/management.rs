//! The trait by which tenants and keys are managed.
//!
//! Every method that changes something writes to the audit log in the same transaction. Servers need none of it: they
//! ask a [`Store`](super::Store).

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    AdminKeyChange, AdminSessions, Behalf, Check, Claim, Claimed, KeyChange, Overview, PlanChange,
    RoutesPlan, SchemaVersion, Shadowed, StoreError, TenantChange,
};
use crate::audit::{Action, Draft, Entry};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::permission::{AdminKey, AdminKeyId, Reach};
use crate::plan::PlanRow;
use crate::record::{KeyDetails, KeyState, KeyTerms, Memo};
use crate::route::RouteRow;
use crate::tenant::{Tenant, TenantId, TenantStatus};

/// What counts of usage are added up by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UsageBy {
    /// By day, the first one first.
    Day,
    /// By key, the busiest first.
    Key,
    /// By reason, the most frequent first.
    Reason,
}

/// Which counts of usage are asked for.
#[derive(Clone, Debug)]
pub struct UsageFilter {
    /// The first day (UTC) is the one of this instant.
    pub from: Timestamp,
    /// The last day (UTC) is the one of this instant.
    pub to: Timestamp,
    /// Only keys of this tenant.
    pub tenant: Option<TenantId>,
    /// Only this key.
    pub key: Option<KeyId>,
    /// Only keys of these tenants; `All`: also requests without a proven key.
    pub reach: Reach,
    /// What they are added up by.
    pub by: UsageBy,
    /// Only a part of the sums, in the order of days, of reasons or of the ids of keys.
    pub part: Option<UsagePart>,
    /// Without a part: only so many keys that still exist, the busiest first.
    pub busiest: Option<usize>,
}

/// A part of sums of usage.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UsagePart {
    /// It begins after this day, reason or id of a key.
    pub after: Option<String>,
    /// The most rows.
    pub rows: usize,
}

/// Requests that were counted. What they are added up over is `None`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UsageRow {
    /// The day (UTC), as in `2026-01-31`.
    pub day: Option<String>,
    /// The key; the nil UUID without a proven key.
    pub key: Option<KeyId>,
    /// The prefix of the key, if it still exists.
    pub key_prefix: Option<String>,
    /// The tenant of the key, if it still exists.
    pub tenant: Option<TenantId>,
    /// What became of the requests.
    pub reason: Option<String>,
    /// How many.
    pub requests: u64,
}

/// A tenant that does not exist yet.
#[derive(Clone, Debug)]
pub struct NewTenant {
    /// Its identity.
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

/// A key that does not exist yet.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its identity.
    pub id: KeyId,
    /// `llmk_<prefix>`.
    pub prefix: String,
    /// Its bcrypt hash.
    pub hash: String,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// What people call it.
    pub name: Option<String>,
    /// When it was issued.
    pub created_at: Timestamp,
    /// When it expires; nothing: never.
    pub expires_at: Option<Timestamp>,
    /// By which it is known without bcrypt.
    pub memo: Option<Memo>,
    /// What it may do.
    pub terms: KeyTerms,
}

/// A management key that does not exist yet.
#[derive(Clone, Debug)]
pub struct NewAdminKey {
    /// What it will be.
    pub key: AdminKey,
    /// Its hash: [`crate::verify::management::hash`].
    pub hash: String,
}

/// A server that may still serve what was before a change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Laggard {
    /// Host and process, for people.
    pub name: String,
    /// When it last announced itself.
    pub seen_at: Timestamp,
}

/// A server that has announced itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Announced {
    /// Its identity.
    pub id: Uuid,
    /// Host and process, for people.
    pub name: String,
    /// When it last announced itself.
    pub seen_at: Timestamp,
    /// From then on it refuses every key unless it polls again.
    pub serves_until: Timestamp,
}

/// A key that comes with a history.
#[derive(Clone, Debug)]
pub struct ImportedKey {
    /// What every key has.
    pub new: NewKey,
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
    /// When it was taken back.
    pub revoked_at: Option<Timestamp>,
    /// Why.
    pub revocation_reason: Option<String>,
    /// Its successor.
    pub replaced_by: Option<KeyId>,
    /// When it was disabled.
    pub disabled_at: Option<Timestamp>,
}

/// Which keys are asked for; what is `None` or empty: all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// In this state at `now`.
    pub state: Option<KeyState>,
    /// The instant at which the state is.
    pub now: Timestamp,
    /// This is part of the name, in any case.
    pub name: Option<String>,
    /// This is one of the granted scopes, as it is written there.
    pub scope: Option<String>,
    /// It has all of these labels.
    pub labels: Vec<(String, String)>,
    /// It expires before this instant.
    pub expires_before: Option<Timestamp>,
    /// It was not used since this instant, or, if never used, was made before it.
    pub unused_since: Option<Timestamp>,
}

/// The place of a key in the order of creation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyPlace {
    /// When it was created, as the database writes it.
    pub created_at: String,
    /// Its id: keys that were created at the same instant are in the order of their ids.
    pub id: KeyId,
}

/// A part of a list of keys.
#[derive(Clone, Debug, Default)]
pub struct KeyPage {
    /// The keys, at most as many as asked for; fewer, or none, also where what is wanted is rare.
    pub keys: Vec<StoredKey>,
    /// After which place the next part begins; `None` at the end.
    pub next: Option<KeyPlace>,
}

/// Which tenants are asked for, and in which order; what is `None`: all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TenantFilter {
    /// This is the name.
    pub name: Option<String>,
    /// This is part of the name or the schema, in any case, or the id.
    pub search: Option<String>,
    /// The newest first instead of the oldest.
    pub newest_first: bool,
}

/// The place of a tenant in the order of creation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TenantPlace {
    /// When it was created, as the database writes it.
    pub created_at: String,
    /// Its id: tenants that were created at the same instant are in the order of their ids.
    pub id: TenantId,
}

/// A part of a list of tenants.
#[derive(Clone, Debug, Default)]
pub struct TenantPage {
    /// The tenants, at most as many as asked for.
    pub tenants: Vec<Tenant>,
    /// After which place the next part begins; `None` at the end.
    pub next: Option<TenantPlace>,
}

/// A change of the table of routes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RoutesChange {
    /// Rules that are not there yet.
    pub added: Vec<RouteRow>,
    /// Rules that go.
    pub removed: Vec<RouteRow>,
    /// Rules before and after: name, mode, scopes and shadow can change.
    pub changed: Vec<(RouteRow, RouteRow)>,
    /// The rule that was to be changed and is as it was to be.
    pub unchanged: Option<RouteRow>,
    /// The whole table afterwards, if it was replaced.
    pub table: Vec<RouteRow>,
    /// What the audit log has of it; nothing if nothing changes.
    pub draft: Option<Draft>,
}

/// How often a plan is used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PlanUses {
    /// By tenants.
    pub tenants: i64,
    /// By keys of their own.
    pub keys: i64,
}

/// A row of `api_keys` with its hash, for reports and exports.
#[derive(Clone)]
pub struct StoredKey {
    /// What people are shown of it.
    pub details: KeyDetails,
    /// The schema of its tenant; empty if there is no such tenant.
    pub tenant_schema: String,
    /// `api_keys.hashed_key`, whatever stands there.
    pub hash: String,
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredKey").field("details", &self.details).finish_non_exhaustive()
    }
}

/// How to adopt existing tables, and what else `migrate` is to do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Adoption {
    /// Columns that switch rows off and are to be ignored.
    pub ignore_columns: Vec<String>,
    /// Columns and values: keys with such a row are revoked, tenants suspended.
    pub revoke_where: Vec<(String, String)>,
    /// Make this a database of its own.
    pub new_identity: bool,
    /// Make a publication for logical replication.
    pub publication: bool,
}

impl Adoption {
    /// Every column that it names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.ignore_columns.iter().chain(self.revoke_where.iter().map(|(name, _)| name)).map(String::as_str)
    }
}

/// What a migration did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Migrated {
    /// The versions that were applied.
    pub applied: Vec<i64>,
    /// What was wrong and is not any more.
    pub mended: Vec<String>,
    /// What else was done, for people.
    pub notes: Vec<String>,
    /// The new identity, if one was asked for.
    pub identity: Option<Uuid>,
    /// The publication, if one was asked for.
    pub publication: Option<String>,
}

/// Which rows of the audit log are asked for; nothing: all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AuditFilter {
    /// From this instant on.
    pub since: Option<Timestamp>,
    /// Before this instant.
    pub until: Option<Timestamp>,
    /// By this actor.
    pub actor: Option<String>,
    /// About the tenant or key of this id, prefix, schema or name, or the keys of the tenant of this id.
    pub subject: Option<String>,
    /// About these tenants and their keys alone.
    pub tenants: Option<Vec<TenantId>>,
}

/// A database of tenants and keys, as those who manage it need it.
///
/// Every method fails with [`StoreError::Unavailable`] when the database cannot be asked; "not found" is
/// `None` or an empty list, never an error.
#[async_trait]
pub trait Management: AdminSessions + Overview {
    /// The same database through the same connections, on behalf of somebody else.
    fn on_behalf(&self, behalf: Behalf) -> Arc<dyn Management>;

    /// Whether tenants have a schema of their own that must be made.
    fn has_schemas(&self) -> bool;

    /// How far the tables are: [`Store::schema_version`](super::Store::schema_version), by the connection that commands use.
    async fn version(&self) -> Result<SchemaVersion, StoreError>;

    /// Brings the tables up to date as [`Store::migrate`](super::Store::migrate) does, adopts what exists as told, and restores what was
    /// lost.
    async fn adopt(&self, adoption: &Adoption) -> Result<Migrated, StoreError>;

    /// The session that holds a lock which a command gave up on, for people.
    async fn lock_holder(&self) -> Result<Option<String>, StoreError>;

    /// Refuses a schema that a new tenant may not have; see [`Management::create_schema`].
    async fn check_schema(&self, schema: &str, adopt: bool) -> Result<(), StoreError>;

    /// Makes the roles of least privilege, their names beginning with `prefix`, and gives each what it needs of
    /// the tables and nothing else. Returns their names.
    async fn create_roles(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// Adds a tenant. [`StoreError::Conflict`] if its schema or identity is taken.
    async fn insert_tenant(&self, tenant: &NewTenant, action: Action) -> Result<Tenant, StoreError>;

    /// Creates a tenant's schema, if there is such a thing here. Without `adopt`, refuses one that is not empty.
    async fn create_schema(&self, schema: &str, adopt: bool) -> Result<(), StoreError>;

    /// All tenants, oldest first.
    async fn tenants(&self) -> Result<Vec<Tenant>, StoreError>;

    /// The tenants whose id, schema or exact name is `reference`.
    async fn find_tenants(&self, reference: &str) -> Result<Vec<Tenant>, StoreError>;

    /// Changes a tenant; nothing if there is no such tenant.
    async fn change_tenant(
        &self,
        id: TenantId,
        action: Action,
        change: TenantChange<'_>,
    ) -> Result<Option<Tenant>, StoreError>;

    /// What the shadow report has of the days since `since`, that of all days together, the most frequent first.
    async fn shadowed(&self, since: Timestamp) -> Result<Vec<Shadowed>, StoreError>;

    /// The counts of usage that a filter wants.
    async fn usage(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError>;

    /// Adds a key. [`StoreError::Conflict`] if its prefix, hash or identity is taken.
    async fn insert_key(&self, key: &NewKey, action: Action) -> Result<KeyDetails, StoreError>;

    /// The first `page` keys that a filter wants, after the one with the id `after`, by id.
    async fn keys_page(
        &self,
        filter: &KeyFilter,
        after: Option<KeyId>,
        page: i64,
    ) -> Result<Vec<StoredKey>, StoreError>;

    /// Keys of these tenants that a filter wants, after a place, in the order of creation.
    async fn keys_by_creation(
        &self,
        filter: &KeyFilter,
        reach: &Reach,
        after: Option<&KeyPlace>,
        page: usize,
    ) -> Result<KeyPage, StoreError>;

    /// How many keys of these tenants a filter wants.
    async fn count_keys(&self, filter: &KeyFilter, reach: &Reach) -> Result<i64, StoreError>;

    /// How many keys of a tenant that are not revoked were used since an instant.
    async fn count_used(&self, tenant: TenantId, since: Timestamp) -> Result<i64, StoreError>;

    /// The keys of which one of `names` is the id, the prefix or the hash.
    async fn keys_named(&self, names: &[String]) -> Result<Vec<StoredKey>, StoreError>;

    /// The first `page` tenants after the one with the id `after`, by id.
    async fn tenants_page(&self, after: Option<TenantId>, page: i64) -> Result<Vec<Tenant>, StoreError>;

    /// Tenants of this reach that a filter wants, after a place, in the order of creation.
    async fn tenants_by_creation(
        &self,
        filter: &TenantFilter,
        reach: &Reach,
        after: Option<&TenantPlace>,
        page: usize,
    ) -> Result<TenantPage, StoreError>;

    /// The tenants of which one of `names` is the id, the schema or the exact name.
    async fn tenants_named(&self, names: &[String]) -> Result<Vec<Tenant>, StoreError>;

    /// Adds all these keys, or none: [`StoreError::Conflict`] if a prefix, hash or identity is taken.
    async fn import_keys(&self, keys: &[ImportedKey], draft: Draft) -> Result<(), StoreError>;

    /// Adds all these tenants and makes the schemas stand of those that are active or suspended, or does
    /// nothing: [`StoreError::Conflict`] if a schema or identity is taken.
    async fn import_tenants(&self, tenants: &[Tenant], draft: Draft) -> Result<(), StoreError>;

    /// The key whose id or prefix is `reference`.
    async fn find_key(&self, reference: &str) -> Result<Option<KeyDetails>, StoreError>;

    /// Changes these keys, all or none; returns them as they are then, in the order of `ids`.
    /// [`StoreError::Conflict`] if one is gone or `change` refuses one.
    async fn change_keys(
        &self,
        ids: &[KeyId],
        action: Action,
        change: KeyChange<'_>,
    ) -> Result<Vec<KeyDetails>, StoreError>;

    /// In one step: adds `successor` and lets the key `id` expire at `expires_at` if it would not sooner.
    /// `None`, and no change, if the key is gone or has been revoked; [`StoreError::Conflict`] if it has been replaced
    /// already, by a key that is not revoked. `check` judges the key before.
    async fn replace_key(
        &self,
        id: KeyId,
        expires_at: Timestamp,
        successor: &NewKey,
        check: Check<'_, KeyDetails>,
    ) -> Result<Option<(KeyDetails, KeyDetails)>, StoreError>;

    /// All plans, by name.
    async fn plans(&self) -> Result<Vec<PlanRow>, StoreError>;

    /// Adds a plan. [`StoreError::Conflict`] if its name is taken.
    async fn insert_plan(&self, plan: &PlanRow) -> Result<(), StoreError>;

    /// Changes the limits of a plan; nothing if there is no such plan.
    async fn change_plan(&self, name: &str, change: PlanChange<'_>) -> Result<Option<PlanRow>, StoreError>;

    /// How often a plan is used.
    async fn plan_uses(&self, name: &str) -> Result<PlanUses, StoreError>;

    /// Deletes a plan that is not used; nothing if there is no such plan. `check` judges the plan before.
    async fn delete_plan(&self, name: &str, check: Check<'_, PlanRow>)
    -> Result<Option<PlanRow>, StoreError>;

    /// All rules of routes, by host, path and method.
    async fn routes(&self) -> Result<Vec<RouteRow>, StoreError>;

    /// Changes the table of routes while other sessions cannot. [`StoreError::Conflict`] if `plan` refuses.
    async fn change_routes(&self, plan: RoutesPlan<'_>) -> Result<RoutesChange, StoreError>;

    /// All management keys, oldest first.
    async fn admin_keys(&self) -> Result<Vec<AdminKey>, StoreError>;

    /// The hash of the management key with this prefix, and the key, its maker, the maker of that one and so on.
    async fn admin_key_chain(&self, prefix: &str) -> Result<Option<(String, Vec<AdminKey>)>, StoreError>;

    /// Records that a management key was used.
    async fn touch_admin_key(&self, id: AdminKeyId, at: Timestamp) -> Result<(), StoreError>;

    /// Adds a management key. [`StoreError::Conflict`] if its name, prefix, hash or identity is taken.
    async fn insert_admin_key(&self, key: &NewAdminKey) -> Result<AdminKey, StoreError>;

    /// Changes a management key; nothing if there is no such key. [`StoreError::Conflict`] if its name is taken.
    async fn change_admin_key(
        &self,
        id: AdminKeyId,
        action: Action,
        change: AdminKeyChange<'_>,
    ) -> Result<Option<AdminKey>, StoreError>;

    /// Claims an Idempotency-Key for a request, and forgets claims that are too old.
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError>;

    /// Gives up a claim whose request failed, so that the key can be used again.
    async fn give_up_claim(&self, attempt: Uuid) -> Result<(), StoreError>;

    /// The servers that have announced themselves, by name.
    async fn replicas(&self) -> Result<Vec<Announced>, StoreError>;

    /// A mark after everything that is committed now, which every server that is in touch comes to see.
    async fn mark(&self) -> Result<String, StoreError>;

    /// The servers that may still serve what was before a mark: they have not looked since, and their time to
    /// serve without looking is not over.
    async fn laggards(&self, mark: &str) -> Result<Vec<Laggard>, StoreError>;

    /// How many servers that serve now have seen a mark.
    async fn caught_up(&self, mark: &str) -> Result<u64, StoreError>;

    /// The first `page` rows of the audit log after the row `after`, oldest first.
    async fn audit_entries(
        &self,
        filter: &AuditFilter,
        after: i64,
        page: i64,
    ) -> Result<Vec<Entry>, StoreError>;

    /// After which row of the audit log the newest `count` begin.
    async fn audit_before_newest(&self, filter: &AuditFilter, count: i64) -> Result<i64, StoreError>;
}
