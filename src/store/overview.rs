//! The trait for the overview on the management page.

use std::collections::BTreeSet;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::tenant::TenantId;

/// Counts of keys for the overview.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct KeyCounts {
    /// Keys that are accepted now.
    pub live: u64,
    /// Live keys that expire soon.
    pub expiring: u64,
    /// Live keys that were not used for a long time.
    pub unused: u64,
}

/// The instants that decide which keys count as live, expiring and unused.
#[derive(Clone, Copy, Debug)]
pub struct CountedAt {
    /// Now.
    pub now: Timestamp,
    /// Keys that expire before this instant count as expiring.
    pub expires_before: Timestamp,
    /// Keys that were last used (or, if never used, created) before this instant count as unused.
    pub unused_since: Timestamp,
}

/// A server, and whether it has applied all changes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReplicaState {
    /// Host and process id.
    pub name: String,
    /// When it last announced itself.
    pub seen_at: Timestamp,
    /// When it stops accepting keys, unless it polls the database again.
    pub serves_until: Timestamp,
    /// When the oldest change that it has not applied was made; `None` if it has applied all.
    pub behind_since: Option<Timestamp>,
}

/// The number of requests with one reason on one day.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DayCount {
    /// The day (UTC), as in `2026-01-31`.
    pub day: String,
    /// The reason of the decision.
    pub reason: String,
    /// The number of requests.
    pub requests: u64,
}

/// Selects the requests to count.
#[derive(Clone, Copy, Debug)]
pub enum CountsOf<'c> {
    /// Requests with this key.
    Key(KeyId),
    /// Requests with a key of one of these tenants.
    Tenants(&'c BTreeSet<TenantId>),
    /// All requests, including those without a proven key.
    All,
}

/// A rejection that a server has written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredRefusal {
    /// When it was decided.
    pub at: Timestamp,
    /// Why, as logs spell it.
    pub reason: String,
    /// The key that was proven; the nil UUID without one.
    pub key: KeyId,
}

/// The queries of the overview page.
#[async_trait]
pub trait Overview: Store {
    /// Counts the keys of these tenants; `None` for all tenants.
    async fn key_counts(
        &self,
        tenants: Option<&BTreeSet<TenantId>>,
        at: CountedAt,
    ) -> Result<KeyCounts, StoreError>;

    /// Returns the servers that have a heartbeat in the database, ordered by name.
    async fn servers(&self) -> Result<Vec<ReplicaState>, StoreError>;

    /// Returns the rejection with this decision id; `None` if it is not stored.
    async fn refusal(&self, decision_id: Uuid) -> Result<Option<StoredRefusal>, StoreError>;

    /// Returns the requests on these days (UTC, as in `2026-01-31`) by day and reason. For a key it reads only rows of
    /// that key.
    async fn counts(&self, of: CountsOf<'_>, days: &[String]) -> Result<Vec<DayCount>, StoreError>;
}
