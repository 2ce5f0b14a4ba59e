//! Immutable snapshots of all keys, tenants, plans and rules.
//!
//! A [`Snapshot`] never changes. The next one is built beside it, shares the unchanged entries with it, and is then
//! published as a whole.

mod reload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

pub(super) use self::reload::Reload;
use super::entry::KeyEntry;
use super::profiles::{FREE, Interned, Profiles, ResponseParts};
use super::table::{Keyed, Table};
use crate::clock::Timestamp;
use crate::invalid::Invalid;
use crate::plan::{Plan, PlanRow};
use crate::profile::ProfileRow;
use crate::record::{KeyRecord, Memo, has_expired};
use crate::route::{RouteId, RouteRow, RouteTable};
use crate::store::{Change, SnapshotRow};
use crate::tenant::{Tenant, TenantId, TenantStatus};
use crate::verify::memo::Peppers;

/// The cached response fragments of a tenant.
pub type ResponseCache = ResponseParts<2>;

/// A tenant in the snapshot. A tenant that changes becomes a new entry with an empty cache.
#[derive(Debug)]
pub struct TenantEntry {
    tenant: Tenant,
    responses: ResponseCache,
}

impl TenantEntry {
    /// Creates an entry with an empty cache.
    #[must_use]
    pub fn new(tenant: Tenant) -> Self {
        Self { tenant, responses: ResponseCache::new() }
    }

    /// Returns the row.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Returns the cached response fragments.
    #[must_use]
    pub fn responses(&self) -> &ResponseCache {
        &self.responses
    }
}

impl Keyed for TenantEntry {
    fn key(&self) -> &[u8] {
        self.tenant.id.0.as_bytes()
    }
}

/// A plan in the snapshot.
#[derive(Debug)]
pub struct PlanEntry {
    row: PlanRow,
    plan: Result<Plan, Invalid>,
    responses: ResponseParts<5>,
}

impl PlanEntry {
    /// Creates the entry of a row.
    #[must_use]
    pub fn of(row: PlanRow) -> Self {
        Self { plan: row.compile(), row, responses: ResponseParts::new() }
    }

    /// Returns the cached response fragments.
    #[must_use]
    pub fn responses(&self) -> &ResponseParts<5> {
        &self.responses
    }

    /// Returns the plan.
    ///
    /// # Errors
    ///
    /// Returns why the row is damaged.
    pub fn plan(&self) -> Result<&Plan, &Invalid> {
        self.plan.as_ref()
    }
}

/// The differences between two snapshots.
#[derive(Debug)]
pub struct Difference<'s> {
    /// The prefixes of keys.
    pub keys: Vec<&'s str>,
    /// Tenants.
    pub tenants: BTreeSet<TenantId>,
    /// Whether plans or rules differ.
    pub policy: bool,
}

/// The rows of plans and rules.
#[derive(Clone, Debug, Default)]
struct PolicyRows {
    plans: BTreeMap<Box<str>, Arc<PlanEntry>>,
    rules: BTreeMap<RouteId, RouteRow>,
}

/// The rows of the database as of one instant.
#[derive(Clone, Debug)]
pub struct Snapshot {
    keys: Table<KeyEntry>,
    tenants: Table<TenantEntry>,
    profiles: Arc<Profiles>,
    policy: Arc<PolicyRows>,
    /// The rules, compiled.
    routes: Arc<RouteTable>,
    /// The number of damaged rows: the sum of the two numbers below.
    pub damaged: usize,
    /// The number of damaged rows of keys and tenants.
    damaged_rows: usize,
    /// The number of damaged rows of plans and rules.
    damaged_policy: usize,
    /// The number of keys whose row has a valid memo with one of our peppers.
    pub remembered: usize,
    /// The number of this snapshot since the process started; 0 is the empty one before the first load.
    pub generation: u64,
}

impl Snapshot {
    /// Returns the key with this prefix.
    #[must_use]
    pub fn key(&self, prefix: &str) -> Option<&Arc<KeyEntry>> {
        self.keys.get(prefix.as_bytes())
    }

    /// Returns the tenant with this id.
    #[must_use]
    pub fn tenant(&self, id: TenantId) -> Option<&TenantEntry> {
        self.tenants.get(id.0.as_bytes()).map(AsRef::as_ref)
    }

    /// Returns the profile with this number, which must be from a [`KeyEntry`] of this snapshot.
    #[must_use]
    pub fn profile(&self, number: u32) -> &Interned {
        self.profiles.get(number)
    }

    /// Returns the plan with this name.
    #[must_use]
    pub fn plan(&self, name: &str) -> Option<&PlanEntry> {
        self.policy.plans.get(name).map(AsRef::as_ref)
    }

    /// Returns whether a key or a tenant has the plan with this name, which need not exist.
    #[must_use]
    pub fn names_plan(&self, name: &str) -> bool {
        let of_tenant = |tenant: &Tenant| tenant.plan.as_deref() == Some(name);
        self.profiles.is_used(|row| row.plan.as_deref() == Some(name)) || self.tenants().any(of_tenant)
    }

    /// Returns the rows of all plans, sorted by name.
    pub fn plans(&self) -> impl Iterator<Item = &PlanRow> {
        self.policy.plans.values().map(|entry| &entry.row)
    }

    /// Returns the rows of all rules, sorted by id.
    pub fn rules(&self) -> impl Iterator<Item = &RouteRow> {
        self.policy.rules.values()
    }

    /// Returns the compiled rules.
    #[must_use]
    pub fn routes(&self) -> &RouteTable {
        &self.routes
    }

    /// Returns the number of keys.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// Returns the number of tenants.
    #[must_use]
    pub fn tenant_count(&self) -> usize {
        self.tenants.len()
    }

    /// Returns all keys, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<KeyEntry>> {
        self.keys.iter()
    }

    /// Returns all tenants, in no particular order.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.iter().map(|entry| entry.tenant())
    }

    /// Returns the differences from `before`.
    #[must_use]
    pub fn since<'s>(&'s self, before: &'s Self) -> Difference<'s> {
        let text = |key: &'s [u8]| std::str::from_utf8(key).ok();
        let tenant = |id: &[u8]| Uuid::from_slice(id).ok().map(TenantId);
        Difference {
            keys: self.keys.differences(&before.keys).into_iter().filter_map(text).collect(),
            tenants: self.tenants.differences(&before.tenants).into_iter().filter_map(tenant).collect(),
            policy: !Arc::ptr_eq(&self.policy, &before.policy),
        }
    }

    /// Returns how many keys and tenants are in force here, and were revoked, disabled, expired, suspended or deleted in
    /// `before`.
    pub(super) fn revived_since(&self, before: &Self, now: Timestamp) -> usize {
        let off = |key: &KeyRecord| key.revoked || key.disabled || has_expired(key.expires_at.at(), now);
        let key = |entry: &&Arc<KeyEntry>| {
            let before = entry.record();
            let here = self.keys.get(before.prefix.as_bytes()).map(|entry| entry.record());
            off(before) && here.is_some_and(|here| here.id == before.id && !off(here))
        };
        let tenant = |before: &&Tenant| {
            let now = self.tenant(before.id).map(TenantEntry::tenant);
            let off = !matches!(before.status, TenantStatus::Active | TenantStatus::PendingProvisioning);
            off && now.is_some_and(|now| now.status == TenantStatus::Active)
        };
        before.keys().filter(key).count() + before.tenants().filter(tenant).count()
    }

    pub(super) fn empty() -> Self {
        let (keys, tenants) = (Table::new(Vec::new()), Table::new(Vec::new()));
        let (profiles, policy, routes) = (Arc::default(), Arc::default(), Arc::default());
        Self {
            keys,
            tenants,
            profiles,
            policy,
            routes,
            damaged: 0,
            damaged_rows: 0,
            damaged_policy: 0,
            remembered: 0,
            generation: 0,
        }
    }

    /// Starts to build the next snapshot from all rows of the database.
    pub(super) fn reload(self: &Arc<Self>, peppers: &Peppers) -> Reload {
        let (before, peppers) = (Arc::clone(self), peppers.clone());
        let (profiles, policy) = (Profiles::clone(&self.profiles), PolicyRows::default());
        Reload { before, peppers, keys: Vec::new(), tenants: Vec::new(), profiles, policy }
    }

    /// Returns the entry of a row: the current one if nothing changed, otherwise a new one that keeps the result of
    /// the current one's proof where possible.
    fn entry_for(
        &self,
        record: KeyRecord,
        memo: Option<&Memo>,
        profile: u32,
        peppers: &Peppers,
    ) -> Arc<KeyEntry> {
        let before = self.keys.get(record.prefix.as_bytes());
        match before {
            Some(before) if before.profile() == profile && before.is_of(&record, memo, peppers) => {
                Arc::clone(before)
            }
            _ => {
                let entry = KeyEntry::replacing(record, memo, before.map(AsRef::as_ref), peppers);
                Arc::new(entry.with_profile(profile))
            }
        }
    }

    /// Creates a snapshot of these rows.
    #[must_use]
    pub fn of(rows: Vec<SnapshotRow>, peppers: &Peppers) -> Self {
        Self::empty().changed(rows.into_iter().map(Change::Now).collect(), peppers)
    }

    /// Returns the snapshot after these changes.
    pub(super) fn changed(&self, changes: Vec<Change>, peppers: &Peppers) -> Self {
        let mut next = Self { generation: self.generation + 1, ..self.clone() };
        let rules =
            changes.iter().any(|c| matches!(c, Change::Now(SnapshotRow::Route(_)) | Change::NoRoute(_)));
        for change in changes {
            next.apply(change, peppers);
        }
        if rules {
            next.routes = Arc::new(RouteTable::of(next.policy.rules.values()));
            Arc::make_mut(&mut next.profiles).grant(&next.routes);
        }
        if next.profiles.needs_sweep() {
            Arc::make_mut(&mut next.profiles).sweep();
        }
        if !Arc::ptr_eq(&next.policy, &self.policy) {
            next.damaged_policy = next.policy.damaged() + next.routes.damaged().count();
        }
        next.damaged = next.damaged_rows + next.damaged_policy;
        if next.keys.outgrown() {
            next.keys = Table::new(next.keys.iter().cloned().collect());
        }
        if next.tenants.outgrown() {
            next.tenants = Table::new(next.tenants.iter().cloned().collect());
        }
        next
    }

    fn apply(&mut self, change: Change, peppers: &Peppers) {
        match change {
            Change::Now(SnapshotRow::Key(record, memo, profile)) => {
                let profile = self.number(profile);
                let entry = self.entry_for(record, memo.as_ref(), profile, peppers);
                self.count_key(&entry, 1);
                let before = self.keys.put(entry);
                before.inspect(|before| self.count_key(before, -1));
            }
            Change::Now(SnapshotRow::Tenant(tenant)) => {
                self.count_tenant(&tenant, 1);
                let before = self.tenants.put(Arc::new(TenantEntry::new(tenant)));
                before.inspect(|before| self.count_tenant(before.tenant(), -1));
            }
            Change::NoKey(prefix) => {
                let before = self.keys.remove(prefix.as_bytes());
                before.inspect(|before| self.count_key(before, -1));
            }
            Change::NoTenant(id) => {
                let before = self.tenants.remove(id.0.as_bytes());
                before.inspect(|before| self.count_tenant(before.tenant(), -1));
            }
            Change::Now(row @ (SnapshotRow::Plan(_) | SnapshotRow::Route(_))) => {
                Arc::make_mut(&mut self.policy).put(row);
            }
            Change::NoPlan(name) => drop(Arc::make_mut(&mut self.policy).plans.remove(&name)),
            Change::NoRoute(id) => drop(Arc::make_mut(&mut self.policy).rules.remove(&id)),
            Change::Mark => {}
        }
    }

    /// Returns the number of a profile. Does not copy the list for the empty profile, which most keys have.
    fn number(&mut self, row: ProfileRow) -> u32 {
        if row.is_free() { FREE } else { Arc::make_mut(&mut self.profiles).number(row, &self.routes) }
    }

    /// Returns whether a row of a poll is damaged.
    pub(super) fn finds_damaged(&self, row: &SnapshotRow) -> bool {
        is_damaged(row, &self.profiles)
    }

    fn is_damaged(&self, entry: &KeyEntry) -> bool {
        entry.record().is_damaged() || self.profiles.get(entry.profile()).profile().is_err()
    }

    fn count_key(&mut self, entry: &KeyEntry, by: isize) {
        let damaged = isize::from(self.is_damaged(entry));
        if entry.profile() != FREE {
            Arc::make_mut(&mut self.profiles).count(entry.profile(), by);
        }
        self.damaged_rows = self.damaged_rows.saturating_add_signed(by * damaged);
        self.remembered = self.remembered.saturating_add_signed(by * isize::from(entry.is_remembered()));
    }

    fn count_tenant(&mut self, tenant: &Tenant, by: isize) {
        self.damaged_rows = self.damaged_rows.saturating_add_signed(by * isize::from(!tenant.is_sound()));
    }
}

/// Equals whether there is [`SnapshotRow::damage`], but does not parse known profiles again. False for rules: the
/// [`RouteTable`] parses them, and says which are damaged.
fn is_damaged(row: &SnapshotRow, profiles: &Profiles) -> bool {
    match row {
        SnapshotRow::Key(record, _, profile) => record.is_damaged() || profiles.is_damaged(profile),
        SnapshotRow::Tenant(_) | SnapshotRow::Plan(_) => row.damage().is_some(),
        SnapshotRow::Route(_) => false,
    }
}

impl PolicyRows {
    fn put(&mut self, row: SnapshotRow) {
        match row {
            SnapshotRow::Plan(row) => {
                drop(self.plans.insert(row.name.as_str().into(), Arc::new(PlanEntry::of(row))));
            }
            SnapshotRow::Route(row) => drop(self.rules.insert(row.id, row)),
            SnapshotRow::Key(..) | SnapshotRow::Tenant(_) => {}
        }
    }

    /// Returns the number of damaged plans. The [`RouteTable`] counts damaged rules.
    fn damaged(&self) -> usize {
        self.plans.values().filter(|entry| entry.plan.is_err()).count()
    }
}

#[cfg(test)]
mod tests;
