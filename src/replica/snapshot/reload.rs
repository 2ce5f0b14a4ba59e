//! Builds a snapshot from all rows of the database.

use std::sync::Arc;

use super::{PolicyRows, Snapshot, TenantEntry, is_damaged};
use crate::replica::entry::KeyEntry;
use crate::replica::profiles::Profiles;
use crate::replica::table::Table;
use crate::route::RouteTable;
use crate::store::SnapshotRow;
use crate::verify::memo::Peppers;

/// A snapshot that is built from all rows of the database. Unchanged rows share their entries with the previous
/// snapshot, and changed ones keep the results of proofs where possible.
pub(in crate::replica) struct Reload {
    pub(super) before: Arc<Snapshot>,
    pub(super) peppers: Peppers,
    pub(super) keys: Vec<Arc<KeyEntry>>,
    pub(super) tenants: Vec<Arc<TenantEntry>>,
    pub(super) profiles: Profiles,
    pub(super) policy: PolicyRows,
}

impl Reload {
    pub(in crate::replica) fn add(&mut self, row: SnapshotRow) {
        match row {
            SnapshotRow::Key(record, memo, profile) => {
                // The scopes are compiled at the end, when all rules are known.
                let profile = self.profiles.number(profile, &self.before.routes);
                self.keys.push(self.before.entry_for(record, memo.as_ref(), profile, &self.peppers));
            }
            SnapshotRow::Tenant(tenant) => self.tenants.push(Arc::new(TenantEntry::new(tenant))),
            row @ (SnapshotRow::Plan(_) | SnapshotRow::Route(_)) => self.policy.put(row),
        }
    }

    /// Returns whether a row is damaged.
    pub(in crate::replica) fn finds_damaged(&self, row: &SnapshotRow) -> bool {
        is_damaged(row, &self.profiles)
    }

    pub(in crate::replica) fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    pub(in crate::replica) fn finish(self) -> Snapshot {
        let (keys, tenants) = (Table::new(self.keys), Table::new(self.tenants));
        let (mut profiles, policy) = (self.profiles, Arc::new(self.policy));
        profiles.reset_uses();
        keys.iter().for_each(|entry| profiles.count(entry.profile(), 1));
        profiles.sweep();
        let routes = RouteTable::of(policy.rules.values());
        profiles.grant(&routes);
        let remembered = keys.iter().filter(|entry| entry.is_remembered()).count();
        let mut next = Snapshot {
            keys,
            tenants,
            profiles: Arc::new(profiles),
            policy,
            routes: Arc::new(routes),
            damaged: 0,
            damaged_rows: 0,
            damaged_policy: 0,
            remembered,
            generation: self.before.generation + 1,
        };
        next.damaged_rows = next.keys.iter().filter(|entry| next.is_damaged(entry)).count()
            + next.tenants.iter().filter(|entry| !entry.tenant().is_sound()).count();
        next.damaged_policy = next.policy.damaged() + next.routes.damaged().count();
        next.damaged = next.damaged_rows + next.damaged_policy;
        next
    }
}
