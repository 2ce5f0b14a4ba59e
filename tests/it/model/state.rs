//! All rows of the database at one instant, and how they differ from what a replica has.

use tenantgate::plan::PlanRow;
use tenantgate::profile::ProfileRow;
use tenantgate::record::KeyRecord;
use tenantgate::replica::{Snapshot, TenantEntry};
use tenantgate::route::RouteRow;
use tenantgate::tenant::Tenant;

use super::judged::{Reading, is_damaged_rule};

/// All rows of the four tables, with the fields that decisions need.
pub(super) struct State {
    pub(super) keys: Vec<(KeyRecord, ProfileRow)>,
    pub(super) tenants: Vec<Tenant>,
    pub(super) plans: Vec<PlanRow>,
    pub(super) rules: Vec<RouteRow>,
}

impl State {
    /// Returns the differences of a replica from this state.
    pub(super) fn differs_from(&self, replica: &Snapshot) -> Vec<String> {
        let mut found = Vec::new();
        for (key, profile) in &self.keys {
            let entry = replica.key(&key.prefix);
            let seen = entry.map(|entry| (entry.record(), replica.profile(entry.profile()).row()));
            if seen != Some((key, profile)) {
                found.push(format!("the database has {key:?} {profile:?}, the replica {seen:?}"));
            }
        }
        for tenant in &self.tenants {
            let seen = replica.tenant(tenant.id).map(TenantEntry::tenant);
            if seen != Some(tenant) {
                found.push(format!("the database has {tenant:?}, the replica {seen:?}"));
            }
        }
        let (plans, rules): (Vec<_>, Vec<_>) = (replica.plans().collect(), replica.rules().collect());
        if !plans.iter().copied().eq(&self.plans) {
            found.push(format!("the database has {:?}, the replica {plans:?}", self.plans));
        }
        if !rules.iter().copied().eq(&self.rules) {
            found.push(format!("the database has {:?}, the replica {rules:?}", self.rules));
        }
        let damaged_key = |key: &KeyRecord, profile: &ProfileRow| {
            key.is_damaged() || Reading::of_key(profile) == Reading::Damaged
        };
        let damaged = self.keys.iter().filter(|(key, profile)| damaged_key(key, profile)).count()
            + self.tenants.iter().filter(|tenant| !tenant.is_sound()).count()
            + self.rules.iter().filter(|rule| is_damaged_rule(rule, &self.rules)).count();
        // Every row of the database was found, so an equal number of rows means equal rows.
        for (what, here, there) in [
            ("keys", self.keys.len(), replica.key_count()),
            ("tenants", self.tenants.len(), replica.tenant_count()),
            ("damaged rows", damaged, replica.damaged),
        ] {
            if here != there {
                found.push(format!("the database has {here} {what}, the replica {there}"));
            }
        }
        found
    }
}
