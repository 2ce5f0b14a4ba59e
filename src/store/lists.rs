//! The filters, pages and rows of lists.

use std::fmt;

use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::permission::Reach;
use crate::record::{KeyDetails, KeyState};
use crate::tenant::{Tenant, TenantId};

/// How counts of usage are grouped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UsageBy {
    /// By day, oldest first.
    Day,
    /// By key, most requests first.
    Key,
    /// By reason, most requests first.
    Reason,
}

/// Selects counts of usage.
#[derive(Clone, Debug)]
pub struct UsageFilter {
    /// An instant of the first day (UTC).
    pub from: Timestamp,
    /// An instant of the last day (UTC).
    pub to: Timestamp,
    /// Only keys of this tenant.
    pub tenant: Option<TenantId>,
    /// Only this key.
    pub key: Option<KeyId>,
    /// Only keys of these tenants. `All` includes requests without a proven key.
    pub reach: Reach,
    /// How they are grouped.
    pub by: UsageBy,
    /// One page of the sums, ordered by day, reason or key id. `None` for all sums.
    pub part: Option<UsagePart>,
    /// Without a part: at most this number of existing keys, those with the most requests first.
    pub busiest: Option<usize>,
}

/// A page of the sums of usage.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UsagePart {
    /// The page begins after this day, reason or key id.
    pub after: Option<String>,
    /// The maximum number of rows.
    pub rows: usize,
}

/// A sum of usage. Of `day`, `key` and `reason`, only the one that the sums are grouped by is set.
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
    /// The reason of the decision.
    pub reason: Option<String>,
    /// The number of requests.
    pub requests: u64,
}

/// Selects keys. A filter that is `None` or empty selects all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyFilter {
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// In this state at `now`.
    pub state: Option<KeyState>,
    /// The instant for `state`.
    pub now: Timestamp,
    /// A part of the name; case is ignored.
    pub name: Option<String>,
    /// One of the granted scopes, exactly as stored.
    pub scope: Option<String>,
    /// Labels as names and values; the key has all of them.
    pub labels: Vec<(String, String)>,
    /// The key expires before this instant.
    pub expires_before: Option<Timestamp>,
    /// The key was last used at this instant or before; if never used, created at this instant or before.
    pub unused_since: Option<Timestamp>,
}

/// The place of a key in a list ordered by creation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyPlace {
    /// When it was created, as the database formats it.
    pub created_at: String,
    /// Its id, which orders keys that were created at the same instant.
    pub id: KeyId,
}

/// A page of a list of keys.
#[derive(Clone, Debug, Default)]
pub struct KeyPage {
    /// At most as many keys as requested. A page before the end can have fewer or none, if few keys match the filter.
    pub keys: Vec<StoredKey>,
    /// The place after which the next page begins; `None` at the end of the list.
    pub next: Option<KeyPlace>,
}

/// Selects and orders tenants. A filter that is `None` selects all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TenantFilter {
    /// With exactly this name.
    pub name: Option<String>,
    /// A part of the name or the schema, ignoring case; or the id.
    pub search: Option<String>,
    /// Whether the newest come first, instead of the oldest.
    pub newest_first: bool,
}

/// The place of a tenant in the order of creation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TenantPlace {
    /// When it was created, as the database formats it.
    pub created_at: String,
    /// Its id, which orders tenants that were created at the same instant.
    pub id: TenantId,
}

/// A page of a list of tenants.
#[derive(Clone, Debug, Default)]
pub struct TenantPage {
    /// At most as many tenants as requested.
    pub tenants: Vec<Tenant>,
    /// The place after which the next page begins; `None` at the end of the list.
    pub next: Option<TenantPlace>,
}

/// A row of `api_keys` with its hash, for reports and exports.
#[derive(Clone)]
pub struct StoredKey {
    /// The fields without secrets.
    pub details: KeyDetails,
    /// The schema of its tenant; empty if the tenant does not exist.
    pub tenant_schema: String,
    /// `api_keys.hashed_key`, which may be invalid.
    pub hash: String,
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredKey").field("details", &self.details).finish_non_exhaustive()
    }
}

/// Selects rows of the audit log. A filter that is `None` selects all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AuditFilter {
    /// At this instant or later.
    pub since: Option<Timestamp>,
    /// Before this instant.
    pub until: Option<Timestamp>,
    /// By this actor.
    pub actor: Option<String>,
    /// About the tenant or key with this id, prefix, schema or name, or about the keys of the tenant with this id.
    pub subject: Option<String>,
    /// Only about these tenants and their keys.
    pub tenants: Option<Vec<TenantId>>,
}
