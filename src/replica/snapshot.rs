//! What does the database hold, as of one instant?
//!
//! All keys and tenants. A [`Snapshot`] never changes: the next one is made beside it,
//! shares with it what stayed the same, and is swapped in whole.

use std::sync::{Arc, OnceLock};

use super::entry::Entry;
use super::table::{Keyed, Table};
use crate::record::{KeyRecord, Memo};
use crate::store::{Change, Row};
use crate::tenant::{Tenant, TenantId};
use crate::verify::memo::Peppers;

/// What the door has made of a tenant once for all its requests. Two pieces of bytes that mean nothing here.
pub type Said = OnceLock<[Box<[u8]>; 2]>;

/// A tenant as the replica has it. A tenant that changes becomes a new one, of which nothing was said yet.
#[derive(Debug)]
pub struct TenantEntry {
    tenant: Tenant,
    said: Said,
}

impl TenantEntry {
    /// A row of which nothing was said yet.
    #[must_use]
    pub fn new(tenant: Tenant) -> Self {
        Self { tenant, said: Said::new() }
    }

    /// The row.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// What was made of it.
    #[must_use]
    pub fn said(&self) -> &Said {
        &self.said
    }
}

impl Keyed for TenantEntry {
    fn key(&self) -> &[u8] {
        self.tenant.id.0.as_bytes()
    }
}

/// All keys and tenants as of one instant of the database.
#[derive(Clone, Debug)]
pub struct Snapshot {
    keys: Table<Entry>,
    tenants: Table<TenantEntry>,
    /// Rows that can serve no request.
    pub damaged: usize,
    /// Keys whose row came with a memo that we understand.
    pub remembered: usize,
    /// Counts the snapshots of this process; 0 is the empty one before the first load.
    pub generation: u64,
}

impl Snapshot {
    /// The key under a prefix.
    #[must_use]
    pub fn key(&self, prefix: &str) -> Option<&Arc<Entry>> {
        self.keys.get(prefix.as_bytes())
    }

    /// A tenant.
    #[must_use]
    pub fn tenant(&self, id: TenantId) -> Option<&TenantEntry> {
        self.tenants.get(id.0.as_bytes()).map(AsRef::as_ref)
    }

    /// How many keys there are.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// How many tenants there are.
    #[must_use]
    pub fn tenant_count(&self) -> usize {
        self.tenants.len()
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.keys.iter()
    }

    /// All tenants, in no order.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.iter().map(|entry| entry.tenant())
    }

    pub(super) fn empty() -> Self {
        let (keys, tenants) = (Table::new(Vec::new()), Table::new(Vec::new()));
        Self { keys, tenants, damaged: 0, remembered: 0, generation: 0 }
    }

    /// The beginning of the snapshot of a whole look.
    pub(super) fn reload(self: &Arc<Self>, peppers: &Peppers) -> Reload {
        let (before, peppers) = (Arc::clone(self), peppers.clone());
        Reload { before, peppers, keys: Vec::new(), tenants: Vec::new() }
    }

    /// The entry of a row: the one before it if nothing changed, else one that inherits what was proven about
    /// that.
    fn heir(&self, record: KeyRecord, memo: Option<&Memo>, peppers: &Peppers) -> Arc<Entry> {
        let before = self.keys.get(record.prefix.as_bytes());
        match before {
            Some(before) if before.is_of(&record, memo, peppers) => Arc::clone(before),
            _ => Arc::new(Entry::heir(record, memo, before.map(AsRef::as_ref), peppers)),
        }
    }

    /// The snapshot after these changes.
    pub(super) fn changed(&self, changes: Vec<Change>, peppers: &Peppers) -> Self {
        let mut next = Self { generation: self.generation + 1, ..self.clone() };
        for change in changes {
            next.apply(change, peppers);
        }
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
            Change::Now(Row::Key(record, memo)) => {
                let entry = self.heir(record, memo.as_ref(), peppers);
                self.count_key(&entry, 1);
                let before = self.keys.put(entry);
                before.inspect(|before| self.count_key(before, -1));
            }
            Change::Now(Row::Tenant(tenant)) => {
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
        }
    }

    fn count_key(&mut self, entry: &Entry, by: isize) {
        self.damaged = self.damaged.saturating_add_signed(by * isize::from(entry.record().is_damaged()));
        self.remembered = self.remembered.saturating_add_signed(by * isize::from(entry.is_remembered()));
    }

    fn count_tenant(&mut self, tenant: &Tenant, by: isize) {
        self.damaged = self.damaged.saturating_add_signed(by * isize::from(!tenant.is_sound()));
    }
}

/// A snapshot that is being made of a whole look, row by row. Rows that were there before keep what was proven
/// about them; those that did not change are shared with the snapshot before.
pub(super) struct Reload {
    before: Arc<Snapshot>,
    peppers: Peppers,
    keys: Vec<Arc<Entry>>,
    tenants: Vec<Arc<TenantEntry>>,
}

impl Reload {
    pub(super) fn add(&mut self, row: Row) {
        match row {
            Row::Key(record, memo) => self.keys.push(self.before.heir(record, memo.as_ref(), &self.peppers)),
            Row::Tenant(tenant) => self.tenants.push(Arc::new(TenantEntry::new(tenant))),
        }
    }

    pub(super) fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    pub(super) fn finish(self) -> Snapshot {
        let (keys, tenants) = (Table::new(self.keys), Table::new(self.tenants));
        let damaged = keys.iter().filter(|entry| entry.record().is_damaged()).count()
            + tenants.iter().filter(|entry| !entry.tenant().is_sound()).count();
        let remembered = keys.iter().filter(|entry| entry.is_remembered()).count();
        Snapshot { keys, tenants, damaged, remembered, generation: self.before.generation + 1 }
    }
}
